"""The event loop of the user-space link: rate, delay, a bounded queue, and faults on command.

One thread carries every connection. Each direction of the link has one virtual clock: a chunk read
at time *t* leaves the serialiser at ``max(t, clock) + length / rate`` and is delivered one delay later.
Nothing sleeps per chunk; the loop waits for the next due event only.
"""

import contextlib
import dataclasses
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["LinkShape", "LinkStats", "Relay"]

_CHUNK_S = 0.001
_MIN_CHUNK_BYTES = 4096
_MAX_CHUNK_BYTES = 256 * 1024
# A loop woken late may serve the link from the moment it fell due, but not from further back than this.
_LATENESS_S = 0.05
_CONNECT_TIMEOUT_S = 2.0
_MAX_CONNECTIONS = 256
_MAX_SPARES = 64
_KERNEL_BUFFER_BYTES = 128 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class LinkShape:
    """What the link does to bytes.

    Attributes:
        rate_bps: bits per second in each direction, shared by all connections.
        delay_s: one-way propagation delay in seconds.
        queue_s: how much data, in seconds at ``rate_bps``, may wait before the serialiser; above it the
            relay stops reading and the senders block.
    """

    rate_bps: float
    delay_s: float
    queue_s: float = 0.01

    @property
    def bytes_per_s(self) -> float:
        """Rate in bytes per second."""
        return self.rate_bps / 8

    @property
    def chunk_bytes(self) -> int:
        """Most bytes read at once: about a millisecond of the rate."""
        return max(_MIN_CHUNK_BYTES, min(_MAX_CHUNK_BYTES, int(self.bytes_per_s * _CHUNK_S)))

    @property
    def held_limit_bytes(self) -> int:
        """Most bytes one direction of one connection may hold: a queue and a delay full, and two chunks."""
        return int(self.bytes_per_s * (self.delay_s + self.queue_s)) + 2 * self.chunk_bytes


@dataclass
class LinkStats:
    """Counters of a link since it started.

    Attributes:
        bytes_up: payload bytes taken from clients.
        bytes_down: payload bytes taken from the target.
        connections: connections accepted.
        live: connections open now.
        killed: connections reset by command.
        refused: connections the target did not take.
        flipped: bits flipped.
        held_bytes: bytes in the link now.
        held_peak_bytes: the most one direction of one connection ever held.
        held_limit_bytes: the bound on that.
        opened_at: when the first connection since the last :meth:`Relay.retarget` was accepted, in seconds
            since the epoch; 0 before.
        killed_bytes_up: payload bytes taken from clients on connections that were then reset by command.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    live: int = 0
    killed: int = 0
    refused: int = 0
    flipped: int = 0
    held_bytes: int = 0
    held_peak_bytes: int = 0
    held_limit_bytes: int = 0
    opened_at: float = 0.0
    killed_bytes_up: int = 0


_Mark = Literal["eof", "reset"]


@dataclass
class _Parcel:
    """A chunk, or an end mark, on its way."""

    due: float
    data: memoryview
    mark: _Mark | None = None


class _Direction:
    """One direction of the link: a serialiser with a virtual clock, and a byte counter."""

    def __init__(self, shape: LinkShape) -> None:
        self.shape = shape
        self.free_at = 0.0
        self.taken_bytes = 0
        self.was_full = False
        self.catching_up = False

    def ready_at(self) -> float:
        """When the queue has room again."""
        return self.free_at - self.shape.queue_s

    def poll(self, now: float) -> bool:
        """Whether sources may be read now; remembers whether data may have waited for it."""
        if now < self.ready_at():
            self.was_full = True
            return False
        self.catching_up, self.was_full = self.was_full, False
        return True

    def serialise(self, length: int, now: float) -> float:
        """Account for ``length`` bytes and return when they arrive at the other end."""
        floor = now - _LATENESS_S if self.catching_up else now
        self.free_at = max(self.free_at, floor) + length / self.shape.bytes_per_s
        self.taken_bytes += length
        return self.free_at + self.shape.delay_s


@dataclass
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    direction: _Direction
    parcels: deque[_Parcel] = field(default_factory=deque)
    held_bytes: int = 0
    taken_bytes: int = 0
    opens_at: float = 0.0
    source_open: bool = True
    sink_open: bool = True
    blocked: bool = False

    def wants_bytes(self) -> bool:
        return self.source_open and self.held_bytes + self.direction.shape.chunk_bytes <= (
            self.direction.shape.held_limit_bytes
        )

    def abandon(self) -> None:
        """Carry nothing more in this direction; what is on its way is lost."""
        self.source_open = self.sink_open = self.blocked = False
        self.parcels.clear()
        self.held_bytes = 0


@dataclass
class _Connection:
    up: _Pipe
    down: _Pipe

    def pipes(self) -> tuple[_Pipe, _Pipe]:
        return (self.up, self.down)

    def finished(self) -> bool:
        return not (self.up.sink_open or self.down.sink_open)


class Relay:
    """Carries connections between a listening socket and a target over a modelled link."""

    def __init__(self, shape: LinkShape, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        """Listen on a free port of the loopback interface.

        Args:
            shape: rate, delay and queue of both directions.
            target: where accepted connections are continued; see :meth:`retarget`.
            host: address to listen on.
        """
        self.shape = shape
        self._target = target
        self._up = _Direction(shape)
        self._down = _Direction(shape)
        self._connections: list[_Connection] = []
        self._dialling: deque[tuple[float, socket.socket]] = deque()
        self._buffer = self._new_buffer()
        self._spares: list[bytearray] = []
        self._stats = LinkStats(held_limit_bytes=shape.held_limit_bytes)
        self._flip_after: int | None = None
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._limit_buffers(self._listener)
        self._listener.bind((host, 0))
        self._listener.listen(128)
        self._listener.setblocking(False)

    @property
    def port(self) -> int:
        """Port the relay listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    def run_until_readable(self, control: int) -> None:
        """Carry bytes until the file descriptor ``control`` can be read."""
        while True:
            now = time.monotonic()
            self._dial_due(now)
            self._deliver_due(now)
            sources, sinks, timeout_s = self._interests(now)
            waited: list[int | socket.socket] = [control, self._listener, *sources]
            ready, writable, _ = select.select(waited, list(sinks), [], timeout_s)
            for sink in writable:
                sinks[sink].blocked = False
            self._take([sources[end] for end in ready if isinstance(end, socket.socket) and end in sources])
            if self._listener in ready:
                self._accept()
            if control in ready:
                return

    def stats(self) -> LinkStats:
        """Counters as of now."""
        self._stats.bytes_up = self._up.taken_bytes
        self._stats.bytes_down = self._down.taken_bytes
        self._stats.live = len(self._connections)
        self._stats.held_bytes = sum(p.held_bytes for c in self._connections for p in c.pipes())
        return dataclasses.replace(self._stats)

    def retarget(self, target: tuple[str, int]) -> None:
        """Continue connections accepted from now on to ``target``."""
        self._target = target
        self._stats.opened_at = 0.0

    def kill_one(self) -> int:
        """Reset, of the live connections with data in flight, the one that carried most; return how many."""
        if not self._connections:
            return 0
        self._kill(max(self._connections, key=lambda c: (c.up.held_bytes > 0, c.up.taken_bytes)))
        return 1

    def kill_all(self) -> int:
        """Reset every live connection; return how many."""
        victims = list(self._connections)
        for connection in victims:
            self._kill(connection)
        return len(victims)

    def flip_byte(self, after_bytes: int) -> None:
        """Flip one bit once ``after_bytes`` more client bytes have been taken, counting all connections."""
        self._flip_after = self._up.taken_bytes + after_bytes

    def close(self) -> None:
        """Reset what is open and stop listening."""
        for connection in list(self._connections):
            self._drop(connection)
        for _, client in self._dialling:
            _reset(client)
        self._listener.close()

    def _interests(
        self, now: float
    ) -> tuple[dict[socket.socket, _Pipe], dict[socket.socket, _Pipe], float | None]:
        """Sources that may be read, sinks that are blocked, and how long until the next due event."""
        sources: dict[socket.socket, _Pipe] = {}
        sinks: dict[socket.socket, _Pipe] = {}
        due = [self._dialling[0][0]] if self._dialling else []
        for direction, pipes in (
            (self._up, [c.up for c in self._connections]),
            (self._down, [c.down for c in self._connections]),
        ):
            for pipe in pipes:
                if pipe.blocked:
                    sinks[pipe.sink] = pipe
                elif pipe.parcels:
                    due.append(pipe.parcels[0].due)
            wanting = [pipe for pipe in pipes if pipe.wants_bytes() and pipe.opens_at <= now]
            due.extend(pipe.opens_at for pipe in pipes if pipe.opens_at > now)
            if not wanting:
                continue
            if direction.poll(now):
                sources.update((pipe.source, pipe) for pipe in wanting)
            else:
                due.append(direction.ready_at())
        return sources, sinks, max(0.0, min(due) - now) if due else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._connections) + len(self._dialling) >= _MAX_CONNECTIONS:
            self._stats.refused += 1
            _reset(client)
            return
        _prepare(client)
        self._stats.connections += 1
        if self._stats.opened_at == 0.0:
            # The clock that processes share and that commands print.
            self._stats.opened_at = time.time()
        self._dialling.append((time.monotonic() + self.shape.delay_s, client))

    def _dial_due(self, now: float) -> None:
        """Continue accepted connections to the target, one delay after they were accepted."""
        while self._dialling and self._dialling[0][0] <= now:
            _, client = self._dialling.popleft()
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._limit_buffers(server)
            server.settimeout(_CONNECT_TIMEOUT_S)
            try:
                server.connect(self._target)
            except OSError:
                self._stats.refused += 1
                server.close()
                _reset(client)
                continue
            _prepare(server)
            connection = _Connection(_Pipe(client, server, self._up), _Pipe(server, client, self._down))
            # The client could not have sent before the answer to its SYN was back.
            connection.up.opens_at = now + self.shape.delay_s
            self._connections.append(connection)

    def _take(self, pipes: list[_Pipe]) -> None:
        """Read one chunk from each pipe in turn while its direction's queue has room."""
        now = time.monotonic()
        for pipe in pipes:
            if not pipe.source_open or now < pipe.direction.ready_at():
                continue
            try:
                length = pipe.source.recv_into(self._buffer)
            except BlockingIOError:
                continue
            except OSError:
                self._end(pipe, "reset", now)
                continue
            if length == 0:
                self._end(pipe, "eof", now)
                continue
            # A full buffer is handed on as it is and replaced; a short read is copied, so that what is
            # held in memory is what is held in the link.
            if length == len(self._buffer):
                data, self._buffer = self._buffer, self._spares.pop() if self._spares else self._new_buffer()
            else:
                data = self._buffer[:length]
            if pipe.direction is self._up:
                self._flip_when_due(data)
            pipe.parcels.append(_Parcel(pipe.direction.serialise(length, now), memoryview(data)))
            pipe.taken_bytes += length
            pipe.held_bytes += length
            self._stats.held_peak_bytes = max(self._stats.held_peak_bytes, pipe.held_bytes)
        # Who was first served goes last, so that a nearly full queue is shared.
        if self._connections:
            self._connections.append(self._connections.pop(0))

    def _end(self, pipe: _Pipe, mark: _Mark, now: float) -> None:
        pipe.source_open = False
        pipe.parcels.append(_Parcel(pipe.direction.serialise(0, now), memoryview(b""), mark))

    def _flip_when_due(self, data: bytearray) -> None:
        if self._flip_after is None:
            return
        position = self._flip_after - self._up.taken_bytes
        if position < len(data):
            data[max(0, position)] ^= 0x10
            self._flip_after = None
            self._stats.flipped += 1

    def _deliver_due(self, now: float) -> None:
        for connection in list(self._connections):
            for pipe in connection.pipes():
                if not self._deliver(pipe, now):
                    self._drop(connection)
                    break
            else:
                if connection.finished():
                    self._drop(connection, gently=True)

    def _deliver(self, pipe: _Pipe, now: float) -> bool:
        """Hand over what is due on one pipe; False when the connection is to be reset."""
        while pipe.sink_open and not pipe.blocked and pipe.parcels and pipe.parcels[0].due <= now:
            parcel = pipe.parcels[0]
            if parcel.mark == "reset":
                return False
            if parcel.mark == "eof":
                pipe.parcels.popleft()
                pipe.sink_open = False
                with contextlib.suppress(OSError):
                    pipe.sink.shutdown(socket.SHUT_WR)
                continue
            try:
                sent = pipe.sink.send(parcel.data)
            except BlockingIOError:
                pipe.blocked = True
                break
            except OSError:
                # What the peer said before it went away may still be on its way back.
                pipe.abandon()
                break
            pipe.held_bytes -= sent
            if sent < len(parcel.data):
                parcel.data = parcel.data[sent:]
            else:
                pipe.parcels.popleft()
                self._recycle(parcel.data)
        return True

    def _recycle(self, data: memoryview) -> None:
        buffer = data.obj
        data.release()
        if isinstance(buffer, bytearray) and len(buffer) == self.shape.chunk_bytes:
            self._spares.append(buffer)
            del self._spares[_MAX_SPARES:]

    def _new_buffer(self) -> bytearray:
        return bytearray(self.shape.chunk_bytes)

    def _kill(self, connection: _Connection) -> None:
        self._stats.killed += 1
        self._stats.killed_bytes_up += connection.up.taken_bytes
        self._drop(connection)

    def _drop(self, connection: _Connection, gently: bool = False) -> None:
        self._connections.remove(connection)
        for end in (connection.up.source, connection.up.sink):
            if gently:
                end.close()
            else:
                _reset(end)

    def _limit_buffers(self, end: socket.socket) -> None:
        """Keep the kernel's buffers small, so that the modelled queue governs."""
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BUFFER_BYTES)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER_BYTES)


def _prepare(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setblocking(False)


def _reset(end: socket.socket) -> None:
    """Close a socket so that its peer sees a reset, not an orderly end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.close()
