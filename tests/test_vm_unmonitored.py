"""A guest that starts by itself does so when the other side has let it go; with a QEMU that is none."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dwcp_fast.errors import ConfigError, FormatError, PeerClosedError, QmpError
from dwcp_fast.state import served_arrival
from dwcp_fast.vm.control import DISKS, MIGRATION
from dwcp_fast.vm.place import Presence
from dwcp_fast.vm.unmonitored import HELD_BYTES, Unmonitored, end_of_state

WAIT_S: Final = 20.0
WISH: Final = {"memory_bytes": 1 << 27, "multifd": 0, "disks": []}
DESCRIPTION: Final = b'{"page_size": 4096, "devices": []}'
END: Final = b"\0\x06" + len(DESCRIPTION).to_bytes(4, "big") + DESCRIPTION
STATE: Final = bytes(range(256)) * 4096 + b"\x7e\0\0\0\x02"

QEMU: Final = """
import socket, sys, time
door, most, lives = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "lives"
listener = socket.socket(socket.AF_UNIX)
listener.bind(door)
listener.listen(1)
print("listens", flush=True)
stream, _ = listener.accept()
count = 0
while count < most:
    data = stream.recv(1 << 16)
    if not data:
        sys.exit("the stream ended")
    count += len(data)
print(count, flush=True)
if lives:
    stream.close()
    time.sleep(600)
"""
"""Reads so much, and then starts its guest and goes on, or ends."""


class Process:
    """A process that reads a stream as QEMU would."""

    def __init__(self, door: Path, most: int, *, lives: bool = True) -> None:
        command = [sys.executable, "-c", QEMU, str(door), str(most), "lives" if lives else "ends"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "listens\n"
        self.stdout = self.process.stdout

    def started(self) -> bool:
        return bool(self.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self.stdout.close()


@pytest.fixture(autouse=True)
def kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(most: int, *, lives: bool = True) -> Process:
        door(tmp_path).unlink(missing_ok=True)
        made.append(Process(door(tmp_path), most, lives=lives))
        return made[-1]

    yield make
    for one in made:
        one.end()


def door(folder: Path) -> Path:
    return folder / "in.sock"


def come(place: Unmonitored, folder: Path, stream: bytes) -> str:
    """Have a stream come from a relay, to its end; give the name of the move."""
    channels = {MIGRATION: folder / "migration.sock", DISKS: folder / "disks.sock"}
    ready = place.prepare(WISH, channels)
    assert ready["answers"] is False
    with socket.socket(socket.AF_UNIX) as relay:
        relay.connect(str(channels[MIGRATION]))
        relay.sendall(stream)
    return str(ready["move"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_end_of_a_stream_is_known_by_its_description() -> None:
    assert end_of_state(STATE + END) == len(STATE)
    # Its length may look like its beginning.
    long = b"{" + b" " * (0x0006_0010 - 2) + b"}"
    assert end_of_state(STATE + b"\0\x06" + len(long).to_bytes(4, "big") + long) == len(STATE)
    for stream in (b"", STATE, STATE + END[:-1], STATE + END + b"}", STATE + b"\0", END[:6]):
        assert end_of_state(stream) is None


@pytest.mark.parametrize("more", [0, HELD_BYTES])
def test_a_guest_starts_when_it_is_let_go_and_not_before(
    qemu: Callable[..., Process], tmp_path: Path, more: int
) -> None:
    stream = bytes(more) + STATE + END
    there = qemu(len(stream))
    place = Unmonitored(door(tmp_path))
    move = come(place, tmp_path, stream)
    until(place._can_start)
    assert place.settle({"move": move}) == Presence(loaded=True, running=False)
    assert not place.may_have_run
    assert place.start(runs=True) and there.started()
    assert place.settle({"move": move}) == Presence(loaded=True, running=True)
    place.close()
    # Another process knows it too, by what is kept, until both sides are done.
    again = Unmonitored(door(tmp_path))
    assert again.settle({"move": move}).running and again.start(runs=True)
    there.end()
    with pytest.raises(QmpError, match="its QEMU has ended since"):
        again.settle({"move": move})
    again.forget()
    again.close()


def test_a_guest_that_was_not_let_go_can_never_start(qemu: Callable[..., Process], tmp_path: Path) -> None:
    there = qemu(len(STATE + END))
    place = Unmonitored(door(tmp_path))
    move = come(place, tmp_path, STATE + END)
    until(place._can_start)
    place.close()
    assert not there.started(), "it had the whole stream"
    qemu(1)
    again = Unmonitored(door(tmp_path))
    assert again.settle({"move": move}) == Presence(loaded=False, running=False)
    with pytest.raises(PeerClosedError, match="no guest here"):
        again.start(runs=True)
    again.close()


@pytest.mark.parametrize(
    ("stream", "most", "why"),
    [
        (STATE, 1 << 30, "not whole"),
        (STATE + END[:-1], 1 << 30, "not whole"),
        (STATE + END, 1000, "has ended"),
    ],
)
def test_a_guest_that_cannot_start_is_lost_before_it_ran(
    qemu: Callable[..., Process], tmp_path: Path, stream: bytes, most: int, why: str
) -> None:
    qemu(most, lives=False)
    place = Unmonitored(door(tmp_path))
    try:
        come(place, tmp_path, stream)
    except BrokenPipeError:
        assert why == "has ended"
    with pytest.raises(PeerClosedError, match=f"{why}|not whole"):
        place.start(runs=True)
    assert place.is_lost() and not place.may_have_run and not place.has_come()
    place.close()


def test_a_guest_whose_qemu_ends_when_it_is_started_may_have_run(
    qemu: Callable[..., Process], tmp_path: Path
) -> None:
    there = qemu(len(STATE + END), lives=False)
    place = Unmonitored(door(tmp_path))
    move = come(place, tmp_path, STATE + END)
    until(place._can_start)
    threading.Thread(target=there.process.wait, daemon=True).start()
    with pytest.raises(PeerClosedError, match="ended when the guest was to be started"):
        place.start(runs=True)
    assert place.is_lost() and place.may_have_run
    with pytest.raises(QmpError, match="was let run here"):
        place.settle({"move": move})
    place.close()


@pytest.mark.parametrize("wish", [{"multifd": 2}, {"disks": [{"name": "disk0", "length_bytes": 1}]}])
def test_what_needs_a_monitor_is_refused(
    qemu: Callable[..., Process], tmp_path: Path, wish: dict[str, object]
) -> None:
    qemu(1)
    place = Unmonitored(door(tmp_path))
    with pytest.raises(QmpError, match="need the monitor"):
        place.prepare(WISH | wish, {MIGRATION: tmp_path / "migration.sock"})
    place.close()


def test_another_move_and_names_that_are_none_are_refused(
    qemu: Callable[..., Process], tmp_path: Path
) -> None:
    qemu(1)
    place = Unmonitored(door(tmp_path))
    with pytest.raises(QmpError, match="for no guest yet"):
        place.settle({"move": "0" * 32})
    come(place, tmp_path, STATE)
    with pytest.raises(QmpError, match="for the guest of another move"):
        place.settle({"move": "0" * 32})
    for told in (None, 5, "", "0" * 31, "0" * 33, "../" + "0" * 29):
        with pytest.raises(FormatError, match="32 hexadecimal digits"):
            place.settle({"move": told})
    place.close()


def test_a_socket_has_one_process_that_waits_and_has_to_be_there(
    qemu: Callable[..., Process], tmp_path: Path
) -> None:
    with pytest.raises(QmpError, match="there is no socket") as told:
        Unmonitored(door(tmp_path))
    assert "-incoming unix:" in (told.value.hint or "")
    with pytest.raises(ConfigError, match="too long"):
        Unmonitored(Path("/tmp", "x" * 200))
    qemu(1)
    place = Unmonitored(door(tmp_path))
    with pytest.raises(ConfigError, match="another process waits"):
        Unmonitored(door(tmp_path))
    place.close()
    served_arrival(door(tmp_path)).write_text(json.dumps({"move": 5, "process": None}), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        Unmonitored(door(tmp_path))
