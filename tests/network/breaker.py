"""A relay that stops everything at an exact byte, so that a fault can be done there."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from .forwarder import Forwarder

PIECE: Final = 16 << 10
BUFFER: Final = 64 << 10
"""Of each socket here: what is on the way when a process is killed is bounded by it."""

RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Lane:
    """One connection that is relayed."""

    near: socket.socket
    far: socket.socket
    silent: threading.Event = field(default_factory=threading.Event)
    """Set: what comes is thrown away, and nobody is told."""
    torn: bool = False

    def cut(self) -> None:
        """End both sides in order."""
        for one in (self.near, self.far):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End both sides with a reset."""
        self.torn = True
        for one in (self.near, self.far):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                one.shutdown(socket.SHUT_RD)


class Breaker(Forwarder):
    """Forwards connections, and counts what goes to the target."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.passed = 0
        """Bytes on their way to the target, of all connections together."""
        self.carrier: Lane | None = None
        """The lane with the byte at which everything was stopped."""
        self.flip_next = False
        """Alter one bit of the next piece."""
        self.lag: Callable[[Lane], float] | None = None
        """How long, in seconds, each piece of a lane is kept back."""
        self._stop_at: int | None = None
        self._held = False
        self._closed = False
        self._changed = threading.Condition()
        self._lanes: list[Lane] = []
        super().__init__(target)

    def stop_at(self, byte: int | None) -> None:
        """Let everything pass again, up to this byte or for ever."""
        with self._changed:
            assert byte is None or byte > self.passed
            self._stop_at, self._held, self.carrier = byte, False, None
            self._changed.notify_all()

    def wait_until_held(self, timeout_s: float) -> bool:
        """Wait until everything is stopped."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held, timeout_s)

    def lanes(self) -> list[Lane]:
        """The lanes that are up, in the order they came."""
        with self._changed:
            return list(self._lanes)

    def cut(self) -> None:
        """End every connection in order."""
        for lane in self.lanes():
            lane.cut()

    def close(self) -> None:
        """End, and wait until every thread has."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _let_in(self, near: socket.socket, far: socket.socket) -> Callable[[], None]:
        for one in (near, far):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lane = Lane(near, far)
        with self._changed:
            self._lanes.append(lane)
        return partial(self._carry, lane)

    def _carry(self, lane: Lane) -> None:
        """Carry one connection, both ways, to its end."""
        back = threading.Thread(target=self._back, args=(lane,), daemon=True)
        with lane.near, lane.far:
            back.start()
            self._forth(lane)
            back.join()
        with self._changed:
            self._lanes.remove(lane)

    def _forth(self, lane: Lane) -> None:
        with contextlib.suppress(OSError):
            while data := lane.near.recv(PIECE):
                rest = memoryview(bytearray(data))
                while rest and not lane.silent.is_set():
                    count = self._admit(lane, rest)
                    if self.lag is not None:
                        time.sleep(self.lag(lane))
                    lane.far.sendall(rest[:count])
                    rest = rest[count:]
        self._hang_up(lane, lane.far)

    def _back(self, lane: Lane) -> None:
        with contextlib.suppress(OSError):
            while data := lane.far.recv(PIECE):
                if not lane.silent.is_set():
                    lane.near.sendall(data)
        self._hang_up(lane, lane.near)

    @staticmethod
    def _hang_up(lane: Lane, sink: socket.socket) -> None:
        if not lane.torn:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _admit(self, lane: Lane, rest: memoryview) -> int:
        """Wait until something may pass, and tell how much."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._closed)
            count = len(rest)
            if self._stop_at is not None:
                count = min(count, self._stop_at - self.passed)
            self.passed += count
            if self.flip_next:
                self.flip_next = False
                rest[count // 2] ^= 1
            if self.passed == self._stop_at:
                self._held, self.carrier = True, lane
                self._changed.notify_all()
            return count
