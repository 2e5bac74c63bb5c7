"""A plain tunnel in place of the relay: a TCP connection for each connection, neither coded nor encrypted.

It is what a move is compared with, and carries moves in tests that are not about the relay.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dwcp_fast.errors import DeadlineError, PeerClosedError
from dwcp_fast.vm.control import DISKS
from dwcp_fast.vm.relay import RelayStats

CHUNK: Final = 1 << 18
NAME_BYTES: Final = 16


class Pump:
    """What both ends have: connections, each carried on by two threads, and a count of bytes."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_stopped = False
        self._started = time.monotonic()
        self.failed = False
        self.sent = 0

    def join(self, channel: str, near: socket.socket, far: socket.socket, *, counts_near: bool) -> None:
        """Carry bytes both ways between two sockets."""
        with self._lock:
            if self._is_stopped:
                cut(near)
                cut(far)
                return
            self._sockets += [near, far]
        for source, sink, counts in ((near, far, counts_near), (far, near, not counts_near)):
            thread = threading.Thread(target=self._carry, args=(channel, source, sink, counts), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, channel: str, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(CHUNK):
                if not self.passes(data):
                    break
                sink.sendall(data)
                if counts:
                    self.sent += len(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # QEMU leaves an NBD server without reading to the end.
            self.failed = self.failed or channel != DISKS
            cut(source)
            cut(sink)

    def passes(self, data: bytes) -> bool:
        """Whether these bytes are carried."""
        return True

    def stats(self) -> RelayStats:
        """Count."""
        return RelayStats(
            state="failed" if self.failed else "running",
            error=None,
            seconds=time.monotonic() - self._started,
            stream_bytes=self.sent,
            migration_bytes=self.sent,
            wire_bytes=self.sent,
            return_bytes=0,
            unacknowledged_bytes=0,
            behind_s=0.0,
            streams=0,
            streams_open=0,
            lanes=1,
            lanes_lost=0,
            records_resent=0,
            rtt_ms=None,
            pages={},
            page_bytes=0,
            opaque="a plain tunnel",
            compressed_by_qemu=False,
            cpu_seconds=0.0,
            codec_mix=(),
            timeline=(),
        )

    present = stats

    def wait(self, timeout_s: float | None) -> RelayStats:
        """Let all connections come to their ends, or tell of a failure."""
        for thread in list(self._threads):
            if not self.failed:
                thread.join(timeout_s)
        if self.failed:
            raise PeerClosedError("the tunnel broke")
        return self.stats()

    def finish(self) -> None:
        """Connections end by themselves."""

    def stop(self, reason: str = "cancelled") -> None:
        """Cut everything."""
        with self._lock:
            self._is_stopped = True
            for one in self._sockets:
                cut(one)

    def close(self) -> None:
        """Cut everything."""
        self.stop()


def cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class SourceTunnel(Pump):
    """The end that QEMU connects to."""

    def __init__(self, to: str, channels: Mapping[str, Path]) -> None:
        super().__init__()
        host, _, port = to.rpartition(":")
        self._far = (host, int(port))
        # As a relay does, it fails at once if nobody is there.
        socket.create_connection(self._far, 5).close()
        self._paths = list(channels.values())
        self._listeners = []
        for name, path in channels.items():
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(64)
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(name, listener), daemon=True).start()

    def _accept(self, name: str, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._far, 5)
            except OSError:
                self.failed = True
                cut(near)
                continue
            try:
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far.sendall(name.encode().ljust(NAME_BYTES))
                if far.recv(1) != b"+":
                    raise OSError("the other side has no such channel")
                far.settimeout(None)
            except OSError:
                self.failed = True
                cut(near)
                cut(far)
                continue
            self.join(name, near, far, counts_near=True)

    def close(self) -> None:
        """Listen no longer, and cut everything."""
        for listener in self._listeners:
            cut(listener)
        for path in self._paths:
            path.unlink(missing_ok=True)
        super().close()


class TargetTunnel(Pump):
    """The end that connects to QEMU."""

    pairing: str | None = None

    def __init__(self, address: str, channels: Mapping[str, Path]) -> None:
        super().__init__()
        host, _, port = address.rpartition(":")
        self._channels = dict(channels)
        self._listener = socket.create_server((host, int(port)))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._came = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def accept(self, timeout_s: float | None = None) -> None:
        """Wait for the first connection."""
        if not self._came.wait(timeout_s):
            raise DeadlineError("nobody came")

    def _accept(self) -> None:
        while True:
            try:
                far, _ = self._listener.accept()
            except OSError:
                return
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._open, args=(far,), daemon=True).start()

    def _open(self, far: socket.socket) -> None:
        name = b""
        near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while len(name) < NAME_BYTES:
                got = far.recv(NAME_BYTES - len(name))
                if not got:
                    raise ConnectionError("it left before it had said what for")
                name += got
            near.connect(str(self._channels[name.decode().strip()]))
            far.sendall(b"+")
        except (OSError, KeyError):
            cut(near)
            cut(far)
            return
        self._came.set()
        self.join(name.decode().strip(), near, far, counts_near=False)

    def close(self) -> None:
        """Listen no longer, and cut everything."""
        cut(self._listener)
        super().close()
