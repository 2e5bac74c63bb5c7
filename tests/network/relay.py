"""A TCP relay that counts, slows down, cuts and alters what passes towards whoever receives."""

import contextlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from .forwarder import Forwarder

PIECE: Final = 16 << 10


class Relay(Forwarder):
    """Forwards connections; what it does to the bytes is set by its attributes."""

    def __init__(self, target: tuple[str, int], *, pulled: bool = False) -> None:
        self._pulled = pulled
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.forwarded = 0
        self.flip_after: int | None = None
        """Alter one bit of the first piece after this many bytes; done once."""
        self.hold = threading.Event()
        """Set: everything may pass."""
        self.hold.set()
        self.hold_after: int | None = None
        """Stop passing anything on after this many bytes, until `hold` is set again."""
        self.held = threading.Event()
        self.on_piece: Callable[[bytes], object] | None = None
        """Shown every piece that passes."""
        super().__init__(target)

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End, and wait until every thread has."""
        self.hold.set()
        super().close()

    def _let_in(self, near: socket.socket, far: socket.socket) -> Callable[[], None]:
        with self._lock:
            self._sockets += [near, far]
        return partial(self._join, near, far)

    def _join(self, client: socket.socket, upstream: socket.socket) -> None:
        """Carry one connection, both ways, to its end."""
        back = threading.Thread(target=self._pump, args=(upstream, client, False), daemon=True)
        with client, upstream:
            back.start()
            self._pump(client, upstream, True)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                sink.sendall(self._pass(bytearray(data)) if forward != self._pulled else data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _pass(self, data: bytearray) -> bytearray:
        with self._lock:
            self.forwarded += len(data)
            if self.on_piece is not None:
                self.on_piece(bytes(data))
            if self.flip_after is not None and self.forwarded > self.flip_after:
                self.flip_after = None
                data[len(data) // 2] ^= 1
            if self.hold_after is not None and self.forwarded > self.hold_after:
                self.hold_after = None
                self.hold.clear()
                self.held.set()
        self.hold.wait(60)
        return data
