"""What the two sides of a move tell each other: JSON objects, one a line, over a stream of the relay."""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, Final, Self

from dwcp_fast.closing import Closing
from dwcp_fast.errors import DeadlineError, FormatError, PeerClosedError
from dwcp_fast.vm.lines import JsonLines

__all__ = ["CONTROL", "DISKS", "MIGRATION", "Control", "ControlDoor"]

CONTROL: Final = "control"
MIGRATION: Final = "migration"
DISKS: Final = "disks"
"""The channels of the relay."""
MAX_MESSAGE_BYTES: Final = 1 << 20
SEND_S: Final = 30.0
Message = dict[str, Any]


class Control(Closing):
    """One end of the conversation; for one thread."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connection."""
        self._socket = connection
        self._lines = JsonLines(connection, "the other side", MAX_MESSAGE_BYTES)

    @classmethod
    def dial(cls, path: Path, timeout_s: float) -> Self:
        """Connect to the relay's socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def send(self, kind: str, **told: Any) -> None:
        """Tell the other side something.

        Raises:
            PeerClosedError: The connection is gone.
        """
        self._socket.settimeout(SEND_S)
        try:
            self._socket.sendall(json.dumps({"type": kind, **told}).encode() + b"\n")
        except OSError as error:
            raise PeerClosedError("the other side is gone") from error

    def receive(self, timeout_s: float) -> Message | None:
        """Give the next message, or None when none comes in time.

        Raises:
            PeerClosedError: The connection is gone.
            FormatError: What came is no message.
        """
        message = self._lines.next(time.monotonic() + timeout_s)
        if message is not None and not isinstance(message.get("type"), str):
            raise FormatError(f"a message says not what it is, but {list(message)[:4]}")
        return message

    def expect(self, kind: str, timeout_s: float) -> Message:
        """Wait for a message of one kind.

        Raises:
            DeadlineError: None comes in time.
            FormatError: Another one comes.
            PeerClosedError: The connection is gone.
        """
        message = self.receive(timeout_s)
        if message is None:
            raise DeadlineError(f"the other side does not say {kind} in {timeout_s:g} s")
        if message["type"] != kind:
            raise FormatError(f"the other side says {message['type']!r} instead of {kind!r}")
        return message

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class ControlDoor(Closing):
    """Where the relay brings the conversation to, at the side that a guest comes to."""

    def __init__(self, path: Path) -> None:
        """Listen."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(str(path))
            self._socket.listen(1)
        except BaseException:
            self._socket.close()
            raise

    def accept(self, timeout_s: float) -> Control:
        """Wait for the conversation to begin.

        Raises:
            DeadlineError: It does not in time.
        """
        self._socket.settimeout(timeout_s)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError as error:
            raise DeadlineError(f"the other side says nothing in {timeout_s:g} s") from error
        return Control(connection)

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
