"""The client of QEMU's machine protocol, against sockets that say what QEMU would, and what it would not."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import DeadlineError, FormatError, PeerClosedError, QmpError
from dwcp_fast.vm import qmp
from dwcp_fast.vm.qmp import Qmp
from monitor import GREETING, Answer, Monitor, done


@pytest.fixture
def monitor(tmp_path: Path) -> Any:
    """A function that has a monitor say what it is given."""
    with contextlib.ExitStack() as stack:

        def serve(greeting: bytes, answer: Answer) -> str:
            return stack.enter_context(Monitor(tmp_path / "qmp", answer, greeting)).address

        yield serve


def test_events_between_a_question_and_its_answer_are_kept(monitor: Any) -> None:
    def answer(asked: dict[str, Any]) -> bytes:
        if asked["execute"] == "query-status":
            return b'{"event": "STOP"}\n{"return": {"status": "paused"}}\n{"event": "RESUME"}\n'
        return done(asked)

    with Qmp(monitor(GREETING, answer)) as client:
        assert client.version == (7, 2, 9)
        assert client.execute("query-status") == {"status": "paused"}
        assert [client.next_event(5)["event"] for _ in range(2)] == ["STOP", "RESUME"]  # type: ignore[index]
        assert client.next_event(0.01) is None


def test_what_qemu_refuses_is_said_in_its_words(monitor: Any) -> None:
    def answer(asked: dict[str, Any]) -> bytes:
        told = {"error": {"class": "GenericError", "desc": "There is no such thing."}}
        return json.dumps(told).encode() + b"\n" if asked["execute"] == "migrate" else done(asked)

    with Qmp(monitor(GREETING, answer)) as client:
        with pytest.raises(QmpError, match=r"^migrate of .*: There is no such thing$"):
            client.execute("migrate")
        assert client.execute("query-status") == {}


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-OpenSSH\n", b"[1]\n", b'{"hello": 1}\n', b'{"QMP": 1}\n', b"[" * 100_000 + b"\n"],
    ids=["no JSON", "no object", "no greeting", "no version", "deep"],
)
def test_what_is_no_monitor_is_refused(monitor: Any, greeting: bytes) -> None:
    with pytest.raises(FormatError):
        Qmp(monitor(greeting, done), timeout_s=10)


@pytest.mark.parametrize("greeting", [b"", b'{"QMP"'])
def test_a_monitor_that_does_not_greet_has_a_deadline(monitor: Any, greeting: bytes) -> None:
    with pytest.raises(DeadlineError, match="another client may be connected"):
        Qmp(monitor(greeting, done), timeout_s=0.3)


def test_a_version_that_is_none_is_taken_for_zeros(monitor: Any) -> None:
    with Qmp(monitor(b'{"QMP": {"version": {"qemu": {"major": "seven"}}}}\n', done)) as client:
        assert client.version == (0, 0, 0)


def test_a_line_without_an_end_is_bounded(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(FormatError, match="more than 1048576 bytes"):
        Qmp(monitor(b"x" * (3 << 20), done), timeout_s=10)


def test_a_qemu_that_ends_is_told_from_one_that_is_slow(monitor: Any) -> None:
    address = monitor(GREETING, lambda asked: None if asked["execute"] == "quit" else done(asked))
    with Qmp(address) as client, pytest.raises(PeerClosedError, match="is gone"):
        client.execute("quit")


def test_an_answer_that_does_not_come_has_a_deadline(monitor: Any) -> None:
    address = monitor(GREETING, lambda asked: b"" if asked["execute"] == "stop" else done(asked))
    with Qmp(address) as client, pytest.raises(DeadlineError, match="an answer to stop"):
        client.execute("stop", timeout_s=0.2)


def test_a_late_answer_is_not_taken_for_that_to_the_next_command(monitor: Any) -> None:
    late: list[int] = []

    def answer(asked: dict[str, Any]) -> bytes:
        if asked["execute"] == "migrate":
            late.append(asked["id"])
            return b""
        said = b"".join(
            json.dumps({"error": {"desc": "migrate failed"}, "id": number}).encode()
            + b'\n{"event": "STOP"}\n'
            for number in late
        )
        late.clear()
        return said + b'{"return": {"status": "running"}}\n'

    with Qmp(monitor(GREETING, answer)) as client:
        with pytest.raises(DeadlineError):
            client.execute("migrate", timeout_s=0.2)
        assert client.execute("query-status") == {"status": "running"}
        assert client.execute("query-status") == {"status": "running"}
        event = client.next_event(5)
        assert event is not None and event["event"] == "STOP"


def test_what_qemu_cannot_read_at_all_is_an_error_of_its_own(monitor: Any) -> None:
    def answer(asked: dict[str, Any]) -> bytes:
        said = b'{"error": {"desc": "JSON parse error"}, "id": null}\n'
        return said.replace(b', "id": null', b"") if asked["execute"] == "migrate" else done(asked)

    with Qmp(monitor(GREETING, answer)) as client, pytest.raises(QmpError, match="JSON parse error"):
        client.execute("migrate")


def test_a_monitor_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Qmp(str(tmp_path / "none"))
    assert missing.value.filename == str(tmp_path / "none")
