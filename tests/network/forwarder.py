"""Letting connections in and dialling on for each; what happens between is up to who derives from it."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable


class Forwarder(ABC):
    """Joins each connection that comes with one to `target`, which may be set anew."""

    def __init__(self, target: tuple[str, int], source: str | None = None) -> None:
        """Let connections in from now on, and dial from `source`; to be called when all else is there."""
        self.target = target
        self._source = None if source is None else (source, 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def reroute(self, pairing: str) -> str:
        """Point a pairing string here."""
        head, _, secret = pairing.partition("#")
        assert head.startswith("dwcp://")
        return f"dwcp://127.0.0.1:{self.port}#{secret}"

    @abstractmethod
    def cut(self) -> None:
        """End every connection."""

    def close(self) -> None:
        """End, and wait until every thread has."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    @abstractmethod
    def _let_in(self, near: socket.socket, far: socket.socket) -> Callable[[], None]:
        """Note a connection, and give what carries it to its end in a thread of its own."""

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=10, source_address=self._source)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            thread = threading.Thread(target=self._let_in(near, far), daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()
