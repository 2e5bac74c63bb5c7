"""A TCP relay that counts, slows down, cuts and alters what passes towards whoever receives."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

PIECE: Final = 16 << 10


class Relay:
    """Forwards connections; what it does to the bytes is set by its attributes."""

    def __init__(self, target: tuple[str, int], *, pulled: bool = False) -> None:
        self._target = target
        self._pulled = pulled
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = self._server.getsockname()[1]
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
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def reroute(self, pairing: str) -> str:
        """Point a pairing string here."""
        head, _, secret = pairing.partition("#")
        assert head.startswith("dwcp://")
        return f"dwcp://127.0.0.1:{self.port}#{secret}"

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End, and wait until every thread has."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._server.close()
        self.hold.set()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(self._target, timeout=10)
            except OSError:
                client.close()
                continue
            upstream.settimeout(None)
            thread = threading.Thread(target=self._join, args=(client, upstream), daemon=True)
            with self._lock:
                self._sockets += [client, upstream]
                self._threads.append(thread)
            thread.start()

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
