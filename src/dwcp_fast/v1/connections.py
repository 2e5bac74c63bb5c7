"""The connections of a v1 sender: how they are made, how long they are waited for, how they are stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dwcp_fast.errors import DeadlineError, DwcpError

if sys.platform != "win32":
    import fcntl
    import termios

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience", "V1Stop", "connect", "shut"]

LOOKS: Final = 4
"""How many times in the longest silence it is looked at whether the peer's system has taken anything."""

A = TypeVar("A")
T = TypeVar("T")


class V1Stop:
    """Ends, from any thread, the transfers that were given it: what is under way and whatever comes later."""

    def __init__(self) -> None:
        """Stop nothing yet."""
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._stopped = False

    def stop(self) -> None:
        """Have the transfers raise :class:`~dwcp_fast.DwcpError` with the code ``"cancelled"``."""
        with self._lock:
            self._stopped = True
            for connection in self._connections:
                shut(connection)

    def check(self) -> None:
        """Raise what a transfer that was stopped ends with, if it was.

        Raises:
            DwcpError: It was stopped.
        """
        if self._stopped:
            error = DwcpError("cancelled")
            # As with v3, this has a code and no class of its own.
            vars(error)["code"] = "cancelled"
            raise error

    def hold(self, connection: socket.socket) -> None:
        """Have a connection shut when this is stopped."""
        with self._lock:
            self._connections.add(connection)

    def close(self, connection: socket.socket) -> None:
        """Close a connection that was held, but not while another thread shuts it by its number."""
        with self._lock:
            self._connections.discard(connection)
            connection.close()


class Patience:
    """How long a peer may be silent on all connections of a transfer together, and how long it may take."""

    def __init__(self, timeout_s: float, idle_timeout_s: float) -> None:
        """Begin to count.

        Args:
            timeout_s: How long everything may take.
            idle_timeout_s: How long the peer may take nothing, and close nothing.
        """
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._look_s = idle_timeout_s / LOOKS
        self._heard = time.monotonic()
        self._end = self._heard + timeout_s

    def wait(self, connection: socket.socket, call: Callable[[A], T], argument: A) -> T:
        """Give what a socket call returns, as soon as it does.

        Args:
            connection: Its socket.
            call: The call; it is made again when its time has passed and there is more.
            argument: What it is given.

        Raises:
            DeadlineError: The peer was silent for too long, or all the time has passed.
            OSError: The connection is lost.
        """
        before: int | None = None
        while True:
            left = self._left()
            if connection.gettimeout() != left:
                # Mostly it is what it was, and setting it is a call to the system.
                connection.settimeout(left)
            try:
                outcome = call(argument)
            except TimeoutError as exc:
                if exc.errno is not None:
                    # Not this wait has timed out: the system has given the connection up.
                    raise
            else:
                self._heard = time.monotonic()
                return outcome
            pending = unacknowledged(connection)
            if before is not None and pending != before:
                # What was sent long ago still goes over a slow link.
                self._heard = time.monotonic()
            before = pending

    def _left(self) -> float:
        now = time.monotonic()
        silent_until = self._heard + self._idle_timeout_s
        left = min(self._end, silent_until) - now
        if left > self._look_s:
            return self._look_s
        if left > 0:
            return left
        if now >= self._end:
            raise DeadlineError(
                f"peer did not take the v1 transfer and close every connection within {self._timeout_s} s"
            )
        raise DeadlineError(
            f"peer took nothing of the v1 transfer and closed no connection for {self._idle_timeout_s} s"
        )


def connect(host: str, port: int, timeout_s: float, stop: V1Stop) -> socket.socket:
    """Connect to the first address of a host that can be connected to.

    Args:
        host: Its name or an address.
        port: Its port.
        timeout_s: How long each address may take.
        stop: Ends the attempt; it holds the connection.

    Raises:
        DwcpError: It was stopped.
        OSError: No address can be connected to; what is raised is the last one's failure.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        stop.hold(connection)
        try:
            attempt(connection, address, timeout_s, stop)
        except BaseException as exc:
            stop.close(connection)
            if not isinstance(exc, OSError):
                raise
            failure = exc
        else:
            return connection
    raise failure or OSError(f"{host} has no address")


def attempt(connection: socket.socket, address: tuple[Any, ...], timeout_s: float, stop: V1Stop) -> None:
    """Connect a socket that `stop` holds."""
    connection.setblocking(False)
    code = connection.connect_ex(address)
    # Shutting does nothing to a socket that has not begun to connect, and ends an attempt that has.
    stop.check()
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        with selectors.DefaultSelector() as waiting:
            waiting.register(connection, selectors.EVENT_WRITE)
            if not waiting.select(timeout_s):
                raise TimeoutError(f"no answer within {timeout_s} s")
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        stop.check()
    if code:
        raise OSError(code, os.strerror(code))


def shut(connection: socket.socket) -> None:
    """End a connection both ways, which wakes the threads that are in a call on it; closing would not."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def unacknowledged(connection: socket.socket) -> int:
    """Give how many bytes the system has that the peer's has not taken; 0 where it does not tell."""
    if sys.platform == "win32":
        return 0
    answer = bytearray(4)
    fcntl.ioctl(connection, termios.TIOCOUTQ, answer)
    return int.from_bytes(answer, sys.byteorder)
