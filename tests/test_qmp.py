"""The client of QEMU's machine protocol, against sockets that say what QEMU would, and what it would not."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import DeadlineError, FormatError, PeerClosedError, QmpError
from dwcp_fast.vm import qmp
from dwcp_fast.vm.qmp import Qmp

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 9}}}}\n'


@pytest.fixture
def monitor(tmp_path: Path) -> Any:
    """A place to listen, and a function that has a thread say what it is given for each line it hears."""
    path = tmp_path / "qmp"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve(greeting: bytes, answer: Callable[[dict[str, Any]], bytes | None]) -> str:
        def run() -> None:
            connection, _ = listener.accept()
            # Whoever was told nonsense leaves in the middle of it.
            with connection, connection.makefile("rb") as heard, contextlib.suppress(OSError):
                connection.sendall(greeting)
                for line in heard:
                    said = answer(json.loads(line))
                    if said is None:
                        return
                    connection.sendall(said)

        threading.Thread(target=run, daemon=True).start()
        return str(path)

    yield serve
    listener.close()


def done(_: dict[str, Any]) -> bytes:
    return b'{"return": {}}\n'


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
    ("greeting", "error"),
    [
        (b"", DeadlineError),
        (b"SSH-2.0-OpenSSH\n", FormatError),
        (b"[1]\n", FormatError),
        (b'{"hello": 1}\n', FormatError),
        (b'{"QMP"', DeadlineError),
    ],
)
def test_what_is_no_monitor_is_refused(monitor: Any, greeting: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Qmp(monitor(greeting, done), timeout_s=0.3)


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


def test_a_monitor_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Qmp(str(tmp_path / "none"))
    assert missing.value.filename == str(tmp_path / "none")
