"""A rollout at work: outcomes that transfers leave, and the files that a controller reads and writes."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors
from dwcp_fast.cli.program import run
from dwcp_fast.policy.rollout import RolloutFlags, enable_all, merge_flags
from dwcp_fast.policy.stages import Outcome, RolloutPlan
from dwcp_fast.rollout import outcomes as written
from dwcp_fast.rollout.controller import Controller
from dwcp_fast.rollout.flagfile import change_flags, read_flags
from dwcp_fast.rollout.history import read_outcomes
from dwcp_fast.rollout.outcomes import OUTCOMES_VARIABLE, failure_code
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

PLAN = RolloutPlan(hold_s=10.0, window_s=10.0, min_transfers=3, min_failures=2)


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    return tmp_path / "flags.json"


def line(protocol: str, at_s: float, **more: Any) -> str:
    told = {"at_s": at_s, "node": "n", "protocol": protocol, "failure": None, "seconds": 1.0, "bytes_raw": 10}
    return json.dumps({**told, **more}) + "\n"


def test_every_transfer_leaves_a_line_that_tells_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.jsonl"
    monkeypatch.setenv(OUTCOMES_VARIABLE, str(path))
    monkeypatch.setenv("DWCP_NODE_NAME", "node-7")
    with dwcp.listen(LOCAL) as listener:
        with (
            meanwhile(lambda: accepted(listener).receive(WAIT_S)) as arriving,
            dwcp.connect(pairing_of(listener)) as sending,
        ):
            sending.send({"state": b"state" * 100})
            arriving.result(WAIT_S)
        v1 = dwcp.SendOptions(protocol="v1", timeout_s=20)
        with dwcp.connect(listener.address, options=v1) as sending, pytest.raises(errors.PeerClosedError):
            sending.send({"state": bytes(3_000_000)})
        address = listener.address
    with pytest.raises((errors.TransportError, OSError)):
        dwcp.connect(address, trust=dwcp.INSECURE, options=dwcp.SendOptions(connect_timeout_s=1))
    with pytest.raises(errors.ConfigError):
        dwcp.connect(address, trust=dwcp.MutualTls(tmp_path / "no", tmp_path / "no", tmp_path / "no"))
    found = read_outcomes((tmp_path,), 0.0)
    assert [(one.protocol, one.failure, one.node) for one in found] == [
        ("v3", None, "node-7"),
        ("v1", "peer-closed", "node-7"),
        ("v3", "transport", "node-7"),
    ]
    assert found[0].bytes_raw == 500 and found[0].seconds > 0
    assert json.loads(path.read_text().splitlines()[0])["record"]["bytes_tx"] > 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.IntegrityError("x"), "integrity"),
        (errors.DeadlineError("x"), "deadline"),
        (ConnectionResetError(), "ConnectionResetError"),
        (RuntimeError("a bug"), "RuntimeError"),
        (errors.V3StoppedError("x"), None),
        (errors.ConfigError("x"), None),
        (FileNotFoundError(), None),
    ],
)
def test_only_what_may_be_the_engines_fault_is_a_failure(error: Exception, code: str | None) -> None:
    assert failure_code(error) == code


def test_lines_that_are_no_outcomes_are_left_out_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "node.jsonl"
    good = line("v3", 5.0)
    bad = [
        "nonsense\n",
        "[]\n",
        line("v2", 5.0),
        line("v3", float("nan")),
        line("v3", 5.0, seconds=-1),
        line("v3", 5.0, seconds=True),
        line("v3", 5.0, bytes_raw="10"),
        line("v3", 5.0, failure=3),
        "[" * 5_000 + "\n",
        line("v3", 5.0, bytes_raw=10**400),
        line("v3", 5.0, seconds=10**400),
        " " * (16 << 10) + good,
    ]
    path.write_text(good + "".join(bad) + good + "x" * 100_000 + "\n" + good + good.rstrip())
    assert len(read_outcomes((path, tmp_path / "missing.jsonl"), 0.0)) == 3, "the last is not complete yet"
    assert f"{len(bad) + 1} lines" in caplog.text, "the long one is one"
    assert read_outcomes((path,), 6.0) == []


def test_a_file_of_outcomes_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "MAX_FILE_BYTES", 2_000)
    path = tmp_path / "node.jsonl"
    for _ in range(100):
        written.append(path, {"protocol": "v3", "failure": None, "seconds": 1.0}, None)
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 3 * 2_000
    assert read_outcomes((tmp_path,), 0.0)
    path.rename(written.older(path))
    assert read_outcomes((tmp_path,), 0.0), "also before the next is begun"


def test_writers_that_see_a_full_file_at_once_keep_what_others_write_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "MAX_FILE_BYTES", 2_000)
    path, write, overtaken = tmp_path / "node.jsonl", os.write, list[int]()
    told = {"protocol": "v3", "failure": None, "seconds": 1.0}

    def write_and_be_overtaken(descriptor: int, data: bytes) -> int:
        length = write(descriptor, data)
        if not overtaken:
            # One sees the full file too, and makes room; another writes to what is the file then.
            overtaken.append(length)
            written.append(path, told, None)
            written.append(path, told, None)
        return length

    monkeypatch.setattr("dwcp_fast.rollout.outcomes.os.write", write_and_be_overtaken)
    written.append(path, {**told, "why": "x" * 2_000}, None)
    assert overtaken and len(read_outcomes((tmp_path,), 0.0)) == 3


def test_an_outcome_that_cannot_be_written_is_logged_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written.append(
        tmp_path / "missing" / "node.jsonl", {"protocol": "v3", "failure": None, "seconds": 1.0}, None
    )
    assert "cannot be written" in caplog.text


def test_a_rollout_is_taken_back_without_touching_any_other_flag(tmp_path: Path, flags: Path) -> None:
    now = [1000.0]
    controller = Controller(flags, (tmp_path / "out",), clock=lambda: now[0])
    controller.start(PLAN)
    change_flags(flags, lambda old: merge_flags(old, {"enableHybridMode": False}))
    before = read_flags(flags)
    assert before is not None and before.v3RolloutPercentage == 10
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n.jsonl").write_text(line("v3", 1001.0, failure="transport") * 2)
    now[0] = 1002.0
    found = controller.look()
    assert found.choice.value == "rollback" and read_flags(flags) == before, "a look changes nothing"
    found = controller.step()
    assert found.rollout.status == "rolled-back"
    assert read_flags(flags) == merge_flags(before, {"v3RolloutPercentage": 0, "forceV1Mode": True})
    again = Controller(flags, clock=lambda: now[0]).look()
    assert "error rate" in again.rollout.why, "it is known to whoever comes later"


def test_a_controller_that_starts_again_goes_on_where_it_was(tmp_path: Path, flags: Path) -> None:
    now = [1000.0]
    place = tmp_path / "n.jsonl"
    for percentage in (10, 50, 100):
        controller = Controller(flags, (place,), clock=lambda: now[0])
        if percentage == 10:
            controller.start(PLAN)
        at = now[0] + 9
        v1 = "" if percentage == 100 else line("v1", at) * 3
        place.write_text(line("v3", at) * 3 + v1)
        assert controller.step().choice.value == "wait"
        now[0] += 11
        controller = Controller(flags, (place,), clock=lambda: now[0])
        assert controller.look().rollout.percentage == percentage
        assert controller.step().choice.value == ("finish" if percentage == 100 else "advance")
    read = read_flags(flags)
    assert read is not None and read.v3RolloutPercentage == 100


def test_a_controller_does_not_fight_with_whoever_changes_the_flags(tmp_path: Path, flags: Path) -> None:
    now = [1000.0]
    controller = Controller(flags, (tmp_path / "n.jsonl",), clock=lambda: now[0])
    controller.start(PLAN)
    with pytest.raises(errors.ConflictError):
        controller.start(PLAN)
    change_flags(flags, lambda old: merge_flags(old, {"v3RolloutPercentage": 25}))
    with pytest.raises(errors.ConflictError, match="25"):
        controller.advance()
    change_flags(flags, lambda old: merge_flags(old, {"forceV1Mode": True}))
    assert controller.step().rollout.status == "rolled-back"
    read = read_flags(flags)
    assert read is not None and read.v3RolloutPercentage == 25 and read.forceV1Mode


def advancing(tmp_path: Path, flags: Path) -> Callable[[], Controller]:
    """A rollout whose first stage is over and was good; gives what makes controllers of it."""
    now, place = [1000.0], tmp_path / "n.jsonl"

    def make() -> Controller:
        return Controller(flags, (place,), clock=lambda: now[0])

    make().start(PLAN)
    now[0] += 11
    place.write_text((line("v3", 1010.0) + line("v1", 1010.0)) * 3)
    return make


def test_two_that_watch_one_rollout_do_not_undo_what_the_other_has_done(
    tmp_path: Path, flags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = advancing(tmp_path, flags)
    name = "dwcp_fast.rollout.controller.read_outcomes"

    def overtaken(places: tuple[Path, ...], since_s: float) -> list[Outcome]:
        found = read_outcomes(places, since_s)
        monkeypatch.setattr(name, read_outcomes)
        assert make().step().choice.value == "advance"
        return found

    monkeypatch.setattr(name, overtaken)
    late = make().step()
    assert (late.choice.value, late.rollout.percentage) == ("wait", 50)
    assert make().look().rollout.percentage == 50
    assert make().advance().rollout.percentage == 100
    read = read_flags(flags)
    assert read is not None and read.v3RolloutPercentage == 100


def test_a_step_that_ended_between_the_flags_and_the_state_is_done_again(
    tmp_path: Path, flags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = advancing(tmp_path, flags)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
        broken.setattr(Controller, "_save", fail)
        make().step()
    read = read_flags(flags)
    assert read is not None and read.v3RolloutPercentage == 50
    assert make().look().rollout.percentage == 10
    assert make().step().rollout.percentage == 50
    assert make().advance().rollout.percentage == 100


def fail(*_: object) -> None:
    raise OSError(28, "full")


@pytest.mark.parametrize("broken", ["", "{", "[" * 60_000, '{"plan": 1}', '{"since_s": "x"}'])
def test_a_state_that_cannot_be_read_keeps_nobody_from_starting_or_ending_a_rollout(
    flags: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    plain = Controller(flags)
    plain.start(PLAN)
    state = flags.with_name("flags.json.rollout")
    good = state.read_text()

    def spoil() -> None:
        state.write_text(json.dumps(json.loads(good) | json.loads(broken)) if "since_s" in broken else broken)

    spoil()
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        plain.look()
    assert plain.rollback("it is Friday").why == "it is Friday"
    assert plain.look().rollout.status == "rolled-back"
    spoil()
    assert plain.start(PLAN).status == "running" and plain.look().rollout.percentage == 10
    assert "cannot be read" in caplog.text


def test_to_look_changes_no_file_even_if_somebody_else_has_ended_the_rollout(flags: Path) -> None:
    Controller(flags).start(PLAN)
    change_flags(flags, lambda old: merge_flags(old, {"forceV1Mode": True}))

    def kept() -> dict[Path, tuple[int, bytes]]:
        return {one: (one.stat().st_ino, one.read_bytes()) for one in flags.parent.iterdir()}

    before = kept()
    assert Controller(flags).look().rollout.status == "rolled-back"
    assert run(["rollout", "status", "--flags", str(flags), "--quiet"]) == 0
    assert kept() == before
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize("broken", ["", '{"v3RolloutPercentage": 101}', " " * 70_000])
def test_flags_that_are_broken_do_not_keep_a_bad_v3_on(tmp_path: Path, flags: Path, broken: str) -> None:
    now = [1000.0]
    place = tmp_path / "n.jsonl"
    controller = Controller(flags, (place,), clock=lambda: now[0])
    controller.start(PLAN)
    flags.write_text(broken)
    assert controller.step().choice.value == "wait"
    place.write_text(line("v3", 1001.0, failure="transport") * 2)
    now[0] = 1002.0
    assert controller.step().rollout.status == "rolled-back"
    assert read_flags(flags) == merge_flags(enable_all(RolloutFlags(), 0), {"forceV1Mode": True})
    other = tmp_path / "other.json"
    other.write_text(broken)
    with pytest.raises(errors.DwcpError):
        Controller(other).rollback("of something that is no flags file")
    assert other.read_text() == broken


def test_a_watch_outlives_files_that_cannot_be_read_for_a_moment(
    tmp_path: Path, flags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, place = str(flags), tmp_path / "out" / "n.jsonl"
    place.parent.mkdir()
    assert run(["rollout", "start", "--flags", name]) == 0
    watch = ["rollout", "watch", "--flags", name, "--outcomes", str(place), "--every", "20ms"]
    with meanwhile(lambda: run(watch)) as watching:
        deadline = time.monotonic() + WAIT_S
        while "running" not in capsys.readouterr().err:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        place.mkdir()
        (place / "n.jsonl").mkdir()
        state = flags.with_name("flags.json.rollout")
        kept = state.read_text()
        state.write_text("{")
        time.sleep(0.2)
        assert not watching.done()
        state.write_text(kept)
        (place / "n.jsonl").rmdir()
        (place / "n.jsonl").write_text(line("v3", time.time(), failure="transport") * 9)
        assert watching.result(WAIT_S) == 1
    assert "error" in capsys.readouterr().err
    logging.getLogger().handlers.clear()


def test_a_rollback_needs_no_rollout(flags: Path) -> None:
    Controller(flags).rollback("just so")
    assert read_flags(flags) == RolloutFlags(forceV1Mode=True)
    state = flags.with_name("flags.json.rollout")
    state.write_text(state.read_text().replace('"stage": 0', '"stage": 7'))
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        Controller(flags).look()


def test_the_commands_tell_programs_and_people(
    flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(flags)
    assert run(["rollout", "status", "--flags", name]) == 2
    assert "dwcp rollout start" in capsys.readouterr().err
    assert run(["rollout", "start", "--flags", name, "--hold", "5s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["percentage"] == 10
    assert run(["rollout", "start", "--flags", name]) == 1
    assert run(["rollout", "set", "v3RolloutPercentage", "--flags", name]) == 2
    assert run(["rollout", "set", "v3RolloutPercentage=x", "--flags", name]) == 2
    assert run(["rollout", "set", "nothing=1", "--flags", name]) == 2
    assert run(["rollout", "start", "--flags", name, "--stages", "10,x"]) == 2
    assert run(["rollout", "watch", "--flags", name]) == 2
    capsys.readouterr()
    (tmp_path / "n.jsonl").write_text(line("v3", time.time() + 0.2, failure="transport") * 9)
    watch = ["rollout", "watch", "--flags", name, "--outcomes", str(tmp_path), "--every", "50ms", "--json"]
    assert run(watch) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "rolled-back" and "error rate" in told["why"]
    assert told["measured"]["v3_failures"] == 9
    logging.getLogger().handlers.clear()
