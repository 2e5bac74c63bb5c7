"""Where flags come from: partial changes, broken files, and what OpenFeature gives."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp_fast.errors import ConfigError, DwcpError, LimitExceededError
from dwcp_fast.policy.rollout import (
    RolloutFlags,
    component_uses_v3,
    format_flags,
    is_component_enabled,
    merge_flags,
    parse_changes,
    uses_v3,
)
from dwcp_fast.rollout.flagfile import change_flags, read_flags
from dwcp_fast.rollout.flags import (
    FILE_VARIABLE,
    FLAGS_VARIABLE,
    FileFlags,
    FlagsInForce,
    current_flags,
    use_flags,
)
from two_ends import WAIT_S, meanwhile

PERCENTAGES = st.integers(0, 100)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        field.name: PERCENTAGES if field.name == "v3RolloutPercentage" else st.booleans()
        for field in fields(RolloutFlags)
    },
)
FLAGS = CHANGES.map(lambda changes: merge_flags(RolloutFlags(), changes))
COMPONENTS = st.sampled_from(["transport", "amst", "compression", "hde", "consensus", "unknown"])
ALL = merge_flags(RolloutFlags(), {"enableV3Transport": True, "v3RolloutPercentage": 100})


@given(FLAGS, CHANGES)
def test_a_change_changes_what_it_names_and_nothing_else(
    flags: RolloutFlags, changes: Mapping[str, object]
) -> None:
    merged = merge_flags(flags, changes)
    for field in fields(RolloutFlags):
        before, after = getattr(flags, field.name), getattr(merged, field.name)
        assert after == changes.get(field.name, before)
    assert merge_flags(merged, changes) == merged


@given(FLAGS, CHANGES, CHANGES)
def test_changes_merge_one_after_the_other_as_they_do_together(
    flags: RolloutFlags, first: Mapping[str, object], second: Mapping[str, object]
) -> None:
    one_by_one = merge_flags(merge_flags(flags, first), second)
    assert one_by_one == merge_flags(flags, {**first, **second})
    assert parse_changes(format_flags(one_by_one)) == json.loads(format_flags(one_by_one))


@given(FLAGS, st.text(max_size=20), COMPONENTS, PERCENTAGES, PERCENTAGES)
def test_a_larger_percentage_never_takes_v3_away(
    flags: RolloutFlags, node: str, component: str, one: int, other: int
) -> None:
    less, more = (merge_flags(flags, {"v3RolloutPercentage": share}) for share in sorted((one, other)))
    assert uses_v3(less, node) <= uses_v3(more, node)
    assert component_uses_v3(less, component, node) <= component_uses_v3(more, component, node)


@given(FLAGS, st.text(max_size=20), COMPONENTS)
def test_percentage_and_component_must_both_allow(flags: RolloutFlags, node: str, component: str) -> None:
    both = uses_v3(flags, node) and is_component_enabled(flags, component)
    assert component_uses_v3(flags, component, node) is both
    if flags.forceV1Mode:
        assert not both


@pytest.fixture
def flags_file(tmp_path: Path) -> Path:
    """A file with good flags."""
    path = tmp_path / "flags.json"
    path.write_text(format_flags(ALL))
    return path


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def spoil_emptied(path: Path) -> None:
    path.write_bytes(b"")


def spoil_value(path: Path) -> None:
    path.write_text('{"v3RolloutPercentage": 101}')


def spoil_name(path: Path) -> None:
    path.write_text('{"forceV1mode": true}')


def spoil_removed(path: Path) -> None:
    path.unlink()


def spoil_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def spoil_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def spoil_length(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * (64 << 10))


def spoil_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_truncated, "not JSON"),
        (spoil_emptied, "not JSON"),
        (spoil_value, "101"),
        (spoil_name, "forceV1mode"),
        (spoil_removed, "No such file"),
        (spoil_directory, "regular file|directory"),
        (spoil_pipe, "regular file"),
        (spoil_device, "regular file"),
        (spoil_length, "65536 bytes"),
        (spoil_loop, "symbolic links"),
    ],
)
def test_the_last_good_flags_stay_and_the_log_says_why_once(
    flags_file: Path, caplog: pytest.LogCaptureFixture, spoil: object, told: str
) -> None:
    assert callable(spoil)
    now = [0.0]
    flags = FlagsInForce(clock=lambda: now[0])
    source = FileFlags(flags_file)
    assert flags.read([source]) == ALL
    spoil(flags_file)
    for _ in range(50):
        assert flags.read([source]) == ALL
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(flags_file) in record.getMessage()
    caplog_matches(record.getMessage(), told)
    now[0] = 61.0
    assert flags.read([source]) == ALL
    assert len(caplog.records) == 2, "it is told again after a minute"
    if flags_file.is_dir():
        flags_file.rmdir()
    else:
        flags_file.unlink(missing_ok=True)
    flags_file.write_text('{"forceV1Mode": true}')
    assert flags.read([source]) == RolloutFlags(forceV1Mode=True), "good again"
    with pytest.raises((DwcpError, OSError)):
        spoil(flags_file)
        FlagsInForce().read([source])


def caplog_matches(text: str, told: str) -> None:
    assert any(part in text for part in told.split("|")), text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_flags_that_may_not_be_read_any_more_stay(flags_file: Path) -> None:
    flags = FlagsInForce()
    assert flags.read([FileFlags(flags_file)]) == ALL
    flags_file.chmod(0)
    assert flags.read([FileFlags(flags_file)]) == ALL


def test_a_file_written_a_hundred_times_a_second_gives_flags_that_somebody_wrote(
    flags_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    texts = [format_flags(merge_flags(ALL, {"v3RolloutPercentage": share})) for share in (5, 37, 100)]

    written = 0

    def write() -> None:
        nonlocal written
        while not ended.wait(0.005):
            # In place, in two pieces: what is read between them is no file that anybody meant.
            text = texts[written % 3] if written % 7 else "{"
            with flags_file.open("w") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                file.write(text[len(text) // 2 :])
            written += 1

    def complaints() -> int:
        return len([record for record in caplog.records if record.levelno == logging.WARNING])

    flags = FlagsInForce()
    source = FileFlags(flags_file)
    assert flags.read([source]) == ALL
    with meanwhile(write) as writing:
        end = time.monotonic() + WAIT_S
        seen = set[int]()
        try:
            while written <= 50 or len(seen) < 2 or not complaints():
                assert time.monotonic() < end, (written, seen)
                read = flags.read([source])
                seen.add(read.v3RolloutPercentage)
                assert read == merge_flags(ALL, {"v3RolloutPercentage": read.v3RolloutPercentage})
        finally:
            ended.set()
        writing.result(WAIT_S)
    assert seen <= {5, 37, 100}
    assert complaints() <= 3, "once for each cause"


def test_the_environment_is_over_the_file_and_the_file_over_what_the_process_gives(
    flags_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own:
        name = "own"

        def read(self) -> Mapping[str, object]:
            return {"enableV3Consensus": True, "v3RolloutPercentage": 1}

    assert current_flags() is None
    try:
        use_flags(Own())
        assert current_flags() == RolloutFlags(enableV3Consensus=True, v3RolloutPercentage=1)
        flags_file.write_text('{"enableV3Transport": true, "v3RolloutPercentage": 2}')
        monkeypatch.setenv(FILE_VARIABLE, str(flags_file))
        monkeypatch.setenv(FLAGS_VARIABLE, '{"forceV1Mode": true}')
        assert current_flags() == RolloutFlags(
            enableV3Consensus=True, enableV3Transport=True, v3RolloutPercentage=2, forceV1Mode=True
        )
    finally:
        use_flags(None)
    monkeypatch.setenv(FLAGS_VARIABLE, "nonsense")
    assert current_flags() == RolloutFlags(enableV3Transport=True, v3RolloutPercentage=2, forceV1Mode=True), (
        "the last good ones"
    )


def test_a_source_that_raises_whatever_it_likes_does_not_end_sessions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Moody:
        name = "moody"
        failure: Exception | None = None
        flags: Mapping[str, object] = {"v3RolloutPercentage": 9}

        def read(self) -> Mapping[str, object]:
            if self.failure is not None:
                raise self.failure
            return self.flags

    source, flags = Moody(), FlagsInForce()
    assert flags.read([source]).v3RolloutPercentage == 9
    source.failure = RuntimeError("boom")
    assert flags.read([source]).v3RolloutPercentage == 9
    source.failure, source.flags = None, {"v3RolloutPercentage": "9"}
    assert flags.read([source]).v3RolloutPercentage == 9
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_changes_of_several_processes_at_once_are_all_kept(flags_file: Path) -> None:
    names = [field.name for field in fields(RolloutFlags) if field.name.startswith("enableV3")]
    children = []
    for name in names:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for value in (False, True) * 10:
                    change_flags(flags_file, lambda flags, n=name, v=value: merge_flags(flags, {n: v}))  # type: ignore[misc]  # bound at once
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    deadline = time.monotonic() + WAIT_S
    codes = []
    for child in children:
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
    assert codes == [0] * len(names)
    flags = read_flags(flags_file)
    assert flags == merge_flags(ALL, dict.fromkeys(names, True))


def test_a_file_that_is_no_flags_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"name": "something else"}')
    with pytest.raises(ConfigError, match="name"):
        change_flags(path, lambda _: ALL)
    assert path.read_text() == '{"name": "something else"}'
    path.write_bytes(b" " * (65 << 10))
    with pytest.raises(LimitExceededError, match="65536"):
        read_flags(path)


class TestOpenFeature:
    """Against the real SDK, with the provider that comes with it."""

    @pytest.fixture(autouse=True)
    def no_provider(self) -> Iterator[None]:
        api = pytest.importorskip("openfeature.api", reason="the extra openfeature is not installed")
        yield
        api.clear_providers()
        use_flags(None)

    def test_flags_are_those_of_the_provider_and_others_keep_what_they_are(
        self, flags_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from openfeature import api
        from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

        from dwcp_fast.rollout.openfeature import OpenFeatureFlags

        def provide(**flags: bool | int) -> None:
            api.set_provider(
                InMemoryProvider({name: InMemoryFlag("on", {"on": value}) for name, value in flags.items()})
            )

        use_flags(OpenFeatureFlags())
        with pytest.raises(ConfigError, match="no OpenFeature provider"):
            current_flags()
        provide(enableV3Transport=True, v3RolloutPercentage=30)
        assert current_flags() == RolloutFlags(enableV3Transport=True, v3RolloutPercentage=30)
        provide(enableV3Transport=True, v3RolloutPercentage=30, forceV1Mode=True)
        flags = current_flags()
        assert flags is not None and flags.forceV1Mode and flags.v3RolloutPercentage == 30
        # A flag of the wrong type is no reason to take any of them.
        provide(enableV3Transport=1, v3RolloutPercentage=30)
        assert current_flags() == flags
        assert "enableV3Transport" in caplog.text
        api.clear_providers()
        assert current_flags() == flags, "no provider: the last good ones"

    def test_the_node_is_the_targeting_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from openfeature import api
        from openfeature.evaluation_context import EvaluationContext
        from openfeature.flag_evaluation import FlagResolutionDetails
        from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

        from dwcp_fast.rollout.openfeature import OpenFeatureFlags

        def evaluate(
            flag: InMemoryFlag[bool], context: EvaluationContext | None
        ) -> FlagResolutionDetails[bool]:
            return FlagResolutionDetails(context is not None and context.targeting_key == "node-7")

        flag = InMemoryFlag("off", {"off": False}, context_evaluator=evaluate)
        api.set_provider(InMemoryProvider({"forceV1Mode": flag}))
        monkeypatch.setenv("DWCP_NODE_NAME", "node-7")
        assert OpenFeatureFlags().read() == {"forceV1Mode": True}
        assert OpenFeatureFlags(node="node-8").read() == {"forceV1Mode": False}
