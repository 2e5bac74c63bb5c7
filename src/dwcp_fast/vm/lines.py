"""JSON objects, one a line, from a socket whose other end may say anything, or nothing."""

import json
import socket
import time
from typing import Any, Final

from dwcp_fast.errors import FormatError, PeerClosedError

__all__ = ["JsonLines"]

READ_BYTES: Final = 1 << 16
SHOWN_BYTES: Final = 60


class JsonLines:
    """What is said on a socket; for one thread."""

    def __init__(self, connection: socket.socket, who: str, max_bytes: int) -> None:
        """Read nothing yet.

        Args:
            connection: The socket; its timeout is changed with every read.
            who: The other end, as errors call it.
            max_bytes: Most that it may say in one line.
        """
        self._socket = connection
        self._who = who
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def next(self, deadline: float) -> dict[str, Any] | None:
        """Give the next object, or None when none has come by then.

        Args:
            deadline: By :func:`time.monotonic`; what is there already is given after it, too.

        Raises:
            FormatError: A line is too long, or no JSON object.
            PeerClosedError: The other end is gone.
        """
        while True:
            line = self._line(deadline)
            if line is None:
                return None
            if line.strip():
                return self._object(line)

    def _line(self, deadline: float) -> bytes | None:
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0:
            searched = len(self._pending)
            if searched > self._max_bytes:
                raise FormatError(f"{self._who} says more than {self._max_bytes} bytes in one line")
            self._socket.settimeout(max(deadline - time.monotonic(), 0))
            try:
                got = self._socket.recv(READ_BYTES)
            except (BlockingIOError, TimeoutError):
                return None
            except OSError as error:
                raise PeerClosedError(f"{self._who} is gone") from error
            if not got:
                raise PeerClosedError(f"{self._who} is gone")
            self._pending += got
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self._who} says what is no JSON: {line[:SHOWN_BYTES]!r}") from error
        if not isinstance(message, dict):
            raise FormatError(f"{self._who} says what is no JSON object: {line[:SHOWN_BYTES]!r}")
        return message
