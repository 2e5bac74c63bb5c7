"""A QEMU whose monitor is not to be had, which starts its guest once it has read the end of its stream."""

import fcntl
import json
import logging
import os
import secrets
import struct
import termios
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from socket import AF_UNIX, SHUT_RDWR, SHUT_WR, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any, Final

from dwcp_fast.errors import ConfigError, PeerClosedError, QmpError
from dwcp_fast.state import served_arrival, write_private
from dwcp_fast.vm.control import MIGRATION
from dwcp_fast.vm.machine import check_move, only
from dwcp_fast.vm.place import Channels, Presence, refuse_another, wished_disks
from dwcp_fast.vm.relay import MAX_SOCKET_PATH

__all__ = ["Gate", "Unmonitored"]

LOG: Final = logging.getLogger(__name__)
CHUNK: Final = 1 << 18
HELD_BYTES: Final = 4 << 20
"""How much of the stream is kept back at any time; its description at the end has some 100 kB."""
DESCRIPTION: Final = b"\0\x06"
"""The end of QEMU's state, and what its description begins with."""
HEAD: Final = struct.Struct(">2sI")
CREDENTIALS: Final = struct.Struct("3i")
EXITING: Final = 0x4
"""Of the flags of a process in Linux: it ends, and may have let go of its sockets."""
LOADING_S: Final = 0.05
ENDING_S: Final = 0.5
END_S: Final = 45.0
WHY_LOST: Final = {False: "its stream is not whole", True: "QEMU has ended"}
POLL_S: Final = 0.01
MAX_KEPT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Process:
    """One process, not another one of the same number.

    Attributes:
        pid: Its number.
        started: When it began, in ticks since the machine did.
    """

    pid: int
    started: int

    @classmethod
    def at(cls, connection: socket) -> "Process":
        """Find the process that listens at the other end of a Unix socket.

        Raises:
            QmpError: It cannot be seen from here.
        """
        pid, _, _ = CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
        told = fields_of(pid)
        if told is None:
            raise QmpError(
                f"the QEMU behind the socket, process {pid}, cannot be seen from here",
                hint="run the command where QEMU runs, in the same container, or give it a monitor: --qmp",
            )
        return cls(pid, int(told[19]))

    def lives(self) -> bool:
        """Whether it is there and does not end, which its flags tell before its sockets close."""
        told = fields_of(self.pid)
        return told is not None and int(told[19]) == self.started and not int(told[6]) & EXITING


def fields_of(pid: int) -> list[bytes] | None:
    """Read what the system says of a process, from its state on; None if there is none."""
    try:
        # Its name may have any letters, parentheses too.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class Gate:
    """Carries the stream of a migration to a QEMU, but not its end.

    QEMU starts the guest when it has read the last byte of its state, so that keeping that byte back keeps
    the guest from running; everything before it is loaded meanwhile.
    """

    def __init__(self, door: Path, to: Path) -> None:
        """Listen.

        Args:
            door: Where the relay brings the stream.
            to: Where QEMU listens.

        Raises:
            OSError: It cannot be listened there.
        """
        self.process: Process | None = None
        self._door, self._to = door, to
        self._end: bytes | None = None
        self._over, self._closed = threading.Event(), threading.Event()
        self._far = socket(AF_UNIX, SOCK_STREAM)
        self._listener = socket(AF_UNIX, SOCK_STREAM)
        try:
            self._listener.bind(str(door))
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._run, name="dwcp-vm-gate", daemon=True).start()

    def can_start(self) -> bool:
        """Whether the stream has come to its end, which is kept here, and QEMU lives."""
        return self._end is not None and not self._closed.is_set() and self._lives()

    def await_end(self) -> None:
        """Wait until QEMU has read all but the end.

        Raises:
            PeerClosedError: The stream ended before, or QEMU did; it can never start the guest then.
        """
        deadline = time.monotonic() + END_S
        self._over.wait(END_S)
        while self.can_start() and unread_bytes(self._far) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if self.can_start():
            # What QEMU read last may be what it cannot load: known now, the guest can go on where it was.
            time.sleep(LOADING_S)
        if not self.can_start():
            whole = self._end is not None
            self.close()
            raise PeerClosedError(f"the guest cannot start here: {WHY_LOST[whole]}")

    def let_go(self) -> None:
        """Give QEMU the end, and wait until it has started the guest.

        Raises:
            PeerClosedError: QEMU ended; whether the guest ran first is not known.
        """
        try:
            self._far.settimeout(END_S)
            self._far.sendall(self._end or b"")
            self._far.shutdown(SHUT_WR)
            # QEMU leaves when it has started the guest.
            while self._far.recv(CHUNK):
                pass
        except OSError as error:
            LOG.debug("QEMU left the stream: %s", error)
        # One that cannot start its guest leaves too, and then ends.
        deadline = time.monotonic() + ENDING_S
        while self._lives() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not self._lives():
            raise PeerClosedError("QEMU ended when the guest was to be started")

    def close(self) -> None:
        """Carry nothing any more: a guest whose end was kept back cannot start."""
        self._closed.set()
        shut(self._listener)
        self._door.unlink(missing_ok=True)
        shut(self._far)

    def _lives(self) -> bool:
        return self.process is not None and self.process.lives()

    def _run(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        try:
            with near:
                self._far.connect(str(self._to))
                self.process = Process.at(self._far)
                self._end = self._carry(near)
            if self._end is None:
                shut(self._far)
        except (OSError, QmpError) as error:
            # The relay notices that nobody reads, and with it the other side.
            LOG.warning("the stream does not get to QEMU: %s", error)
            shut(self._far)
        finally:
            self._over.set()

    def _carry(self, near: socket) -> bytes | None:
        """Carry all but the end, and give that; None if the stream has none."""
        held: deque[bytes] = deque()
        count = 0
        while data := near.recv(CHUNK):
            held.append(data)
            count += len(data)
            while count - len(held[0]) >= HELD_BYTES:
                first = held.popleft()
                count -= len(first)
                self._far.sendall(first)
        rest = b"".join(held)
        at = end_of_state(rest)
        if at is None:
            return None
        self._far.sendall(memoryview(rest)[:at])
        return rest[at:]


def end_of_state(stream: bytes) -> int | None:
    """Find the last byte of QEMU's state, by the description behind it; None if that is not there."""
    at = stream.rfind(DESCRIPTION)
    while at >= 0:
        if len(stream) >= at + HEAD.size:
            _, length = HEAD.unpack_from(stream, at)
            description = stream[at + HEAD.size :]
            if length == len(description) and description[:1] == b"{" and description[-1:] == b"}":
                return at
        at = stream.rfind(DESCRIPTION, 0, at + 1)
    return None


def unread_bytes(connection: socket) -> int:
    """How much of what was written to a Unix socket the other end has not read."""
    told = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(told, "little")


def shut(connection: socket) -> None:
    """End a connection, also for a thread that waits for it."""
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError as error:
        LOG.debug("%s", error)
    connection.close()


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is kept of a move, so that another process can tell whether the guest can have run.

    Attributes:
        move: Its name.
        process: The QEMU that was let start the guest; None if none was.
    """

    move: str
    process: Process | None

    @classmethod
    def read(cls, path: Path) -> "Arrival | None":
        """Read what is kept; None if nothing is.

        Raises:
            ConfigError: It is damaged.
        """
        try:
            with path.open("rb") as file:
                told = json.loads(file.read(MAX_KEPT_BYTES))
            process = told["process"]
            return cls(check_move(told["move"]), None if process is None else Process(*map(int, process)))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"what is kept of a move in {path} cannot be read", hint="remove it") from error

    def keep(self, path: Path) -> None:
        """Keep it, through a crash of the machine too."""
        process = self.process
        told = {"move": self.move, "process": None if process is None else [process.pid, process.started]}
        write_private(path, json.dumps(told).encode(), replace=True)


class Unmonitored:
    """A QEMU behind the socket that it listens on: ``-incoming unix:SOCKET``, without ``-S``.

    What a monitor would be asked for is known in other ways: the guest cannot run before the end of its
    stream is given away, and runs if QEMU lives on after that. Neither disks nor several connections can be
    had so.
    """

    def __init__(self, to: Path) -> None:
        """See what is known of that socket; nobody is connected to, for QEMU takes one connection.

        Args:
            to: The socket.

        Raises:
            ConfigError: Another process waits for a guest there, or its path is too long.
            QmpError: There is no such socket.
        """
        if len(bytes(to)) > MAX_SOCKET_PATH:
            raise ConfigError(f"the path of a Unix socket is too long: {len(bytes(to))} bytes, {to}")
        self.may_have_run = False
        self._to = to
        self._gate: Gate | None = None
        self._file = served_arrival(to)
        self._lock = lock(self._file.with_suffix(".lock"))
        try:
            self._arrival = Arrival.read(self._file)
            if self._is_running():
                self.may_have_run = True
            elif not to.is_socket():
                raise QmpError(f"there is no socket {to}", hint=f"start QEMU with -incoming unix:{to}")
        except BaseException:
            os.close(self._lock)
            raise

    def prepare(self, told: dict[str, Any], channels: Channels) -> dict[str, Any]:
        """See :meth:`Place.prepare`."""
        if self._is_running():
            raise QmpError("a guest is here already, and another one is to come")
        if wished_disks(told) or only(told, "multifd", int):
            raise QmpError(
                "disks, and memory over several connections, need the monitor of this side's QEMU",
                hint="use --qmp there",
            )
        self._close_gate()
        self._arrival = Arrival(secrets.token_hex(16), None)
        self._arrival.keep(self._file)
        self._gate = Gate(channels[MIGRATION], self._to)
        # The answer of QEMU would come when the guest runs already, and QEMU there would wait for it.
        return {"qemu": "unknown", "move": self._arrival.move, "answers": False}

    def end_disks(self) -> None:
        """There are none."""

    def settle(self, told: dict[str, Any]) -> Presence:
        """See :meth:`Place.settle`."""
        held = self._arrival
        refuse_another(check_move(told.get("move")), None if held is None else held.move)
        if held is not None and held.process is not None:
            if not held.process.lives():
                raise QmpError("the guest was let run here, and its QEMU has ended since")
            return Presence(loaded=True, running=True)
        if self._can_start():
            return Presence(loaded=True, running=False)
        # Nothing is left by which it could start, and nothing will be.
        self._close_gate()
        return Presence(loaded=False, running=False)

    def start(self, *, runs: bool) -> bool:
        """See :meth:`Place.start`; a guest that was paused stays so by itself."""
        if self._is_running():
            return runs
        if self._gate is None or self._arrival is None:
            raise PeerClosedError("there is no guest here")
        try:
            self._gate.await_end()
            self.may_have_run = True
            self._arrival = Arrival(self._arrival.move, self._gate.process)
            self._arrival.keep(self._file)
            self._gate.let_go()
        except PeerClosedError:
            self._close_gate()
            raise
        return runs

    def is_lost(self) -> bool:
        """See :meth:`Place.is_lost`."""
        return not self._is_running() and not self._can_start()

    def has_come(self) -> bool:
        """See :meth:`Place.has_come`: a move counts as done there when the relay has all of its stream."""
        return self._is_running() or (self._gate is not None and self._gate.process is not None)

    def advice(self) -> str | None:
        """See :meth:`Place.advice`: without its end a stream is worth nothing."""
        if self._is_running() or not self.has_come():
            return None
        return "the guest never ran here: if it stands still there, run both commands again, and it goes on"

    def abandon(self) -> None:
        """See :meth:`Place.abandon`: QEMU ends when its stream does."""
        self._close_gate()

    def forget(self) -> None:
        """See :meth:`Place.forget`."""
        self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave: a guest that was not let run ends with its QEMU."""
        self._close_gate()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _is_running(self) -> bool:
        process = None if self._arrival is None else self._arrival.process
        return process is not None and process.lives()

    def _can_start(self) -> bool:
        return self._gate is not None and self._gate.can_start()

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None


def lock(path: Path) -> int:
    """Be the only process that waits for a guest there, until the descriptor is closed.

    Raises:
        ConfigError: Another one is.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError("another process waits for a guest at that socket") from error
    return descriptor
