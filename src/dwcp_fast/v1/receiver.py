"""Receiving v1 transfers on connections somebody else accepted.

The wire has no transfer ID, so connections are grouped by the address they come from: one transfer
per address at a time, and the next begins when it is complete. Nothing a peer says is trusted: every
wait has a deadline, every size a limit, and what one peer does wrong ends only its own transfer.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, TypeAlias

import xxhash

from dwcp_fast.errors import DeadlineError, DwcpError, FormatError, LimitExceededError, PeerClosedError
from dwcp_fast.v1._v1engine import AMST_HEADER_BYTES, AmstAssembly
from dwcp_fast.v1.chunks import AMST_HEADER
from dwcp_fast.v1.hde import BaselineStore, HdeDecoder, HdePacket, guess_generation
from dwcp_fast.v1.options import Generation, PayloadFormat, Tier, V1Options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["PeerAddress", "V1Delivery", "V1Receiver"]

PeerAddress: TypeAlias = tuple[str, int]

LOG: Final = logging.getLogger(__name__)
PAGE_BYTES: Final = 4096
STRAGGLER_S: Final = 60.0
"""How long after a transfer a connection of its sender may still arrive without a byte, unremarked."""
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Delivery:
    """One transfer that arrived whole and was decoded.

    Attributes:
        peer: Address and port of the connection that carried the last chunk.
        payload: The data.
        payload_format: How it was sent.
        generation: The generation it was read as.
        tier: The compression tier its packet names; None when raw.
        is_delta: Whether it was sent as a delta and applied.
        transfer_bytes: Length of the transfer before decoding.
        wire_bytes: The transfer with its chunk headers.
        chunks: How many chunks came.
        streams: How many connections carried them.
        duration_s: From the first chunk to the last.
        xxh3_128: Digest of the payload in hexadecimal, to compare with the sender's by other means.
        verified: Always False: v1 cannot prove that this is what was sent.
    """

    peer: PeerAddress
    payload: bytes
    payload_format: PayloadFormat
    generation: Generation
    tier: Tier | None
    is_delta: bool
    transfer_bytes: int
    wire_bytes: int
    chunks: int
    streams: int
    duration_s: float
    xxh3_128: str
    verified: bool = False

    def to_dict(self) -> dict[str, object]:
        """Give everything but the payload as plain values, ready for JSON."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "payload"}
        return {**plain, "peer": list(self.peer), "payload_bytes": len(self.payload)}


class Transfer:
    """One transfer in progress."""

    def __init__(self, max_bytes: int, now: float) -> None:
        """Begin a transfer.

        Args:
            max_bytes: The largest one to allow.
            now: Monotonic time of its first chunk, in seconds.
        """
        self.assembly = AmstAssembly(max_bytes)
        self.streams: set[Connection] = set()
        self.started = now
        self.progress = now
        self.held_bytes = 0
        self.done = False


class Peer:
    """What is known of one address."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self.connections: set[Connection] = set()
        self.transfer: Transfer | None = None
        self.delivering = False
        self.finished = float("-inf")

    @property
    def live(self) -> bool:
        """Whether any connection may still bring bytes."""
        return any(not connection.ended and not connection.waiting for connection in self.connections)

    def is_free_for(self, total: int) -> bool:
        """Whether a chunk of a transfer of `total` bytes can be taken now."""
        return not self.delivering and (self.transfer is None or self.transfer.assembly.total == total)


class Connection:
    """One accepted connection and the thread that reads it."""

    def __init__(self, sock: socket.socket, address: PeerAddress, peer: Peer, now: float) -> None:
        """Take a connection.

        Args:
            sock: The socket; owned from now on.
            address: Where it comes from.
            peer: The record of that address.
            now: Monotonic time in seconds.
        """
        self.sock = sock
        self.address = address
        self.peer = peer
        self.transfer: Transfer | None = None
        self.last_byte = now
        self.ended = False
        self.waiting = False
        self.dropped = False
        self.thread: threading.Thread | None = None

    def stop(self, *, reset: bool) -> None:
        """End its thread's wait; with `reset` the peer sees that its transfer failed."""
        with contextlib.suppress(OSError):
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.sock.shutdown(socket.SHUT_RD)


def scope_of(connection: Connection) -> str:
    """Name the part of the baseline store that one address may use."""
    return f"{connection.address[0]}\0"


class V1Receiver:
    """Reads v1 transfers from connections handed to it, one thread for each."""

    def __init__(
        self,
        options: V1Options,
        *,
        on_delivery: Callable[[V1Delivery], None],
        on_error: Callable[[PeerAddress, Exception], None] | None = None,
    ) -> None:
        """Set up a receiver; it opens nothing itself.

        Args:
            options: How peers are read and bounded.
            on_delivery: Called with each transfer, in the thread that read its last chunk. While it runs the
                sender's connections stay open and its next transfer waits. `queue.Queue.put` fits.
            on_error: Called with each refused connection or failed transfer, which is also logged.
        """
        self._options = options
        self._on_delivery = on_delivery
        self._on_error = on_error
        self._baselines = BaselineStore(options.max_baseline_bytes)
        self._peers: dict[str, Peer] = {}
        self._held_bytes = 0
        self._closing = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        """Use the receiver in a `with` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it without waiting for transfers in progress when an exception ended the block."""
        self.close(5.0 if value is None else 0.0)

    def add_connection(self, sock: socket.socket, peer: tuple[str, int] | tuple[str, int, int, int]) -> bool:
        """Take an accepted connection whose stream stands at its first byte.

        Args:
            sock: The connection. It is owned and closed by the receiver from now on, also when refused.
            peer: Its remote address, as `accept` gave it.

        Returns:
            Whether it was taken. A refusal for a limit is also reported to `on_error`.
        """
        options = self._options
        address = (peer[0], peer[1])
        now = time.monotonic()
        refusal: str | None = None
        with self._changed:
            self._forget_idle_peers(now)
            record = self._peers.setdefault(address[0], Peer())
            open_now = sum(len(known.connections) for known in self._peers.values())
            most = options.max_transfers * options.max_connections_per_peer
            if self._closing:
                refusal = "receiver is closing"
            elif len(record.connections) >= options.max_connections_per_peer:
                refusal = f"{len(record.connections)} connections from one address reach the limit"
            elif open_now >= most:
                refusal = f"{open_now} connections reach the limit of {most}"
            else:
                connection = Connection(sock, address, record, now)
                record.connections.add(connection)
                connection.thread = threading.Thread(
                    target=self._serve, args=(connection,), name=f"dwcp-v1-recv-{address[1]}", daemon=True
                )
                self._changed.notify_all()
                try:
                    connection.thread.start()
                except RuntimeError as exc:
                    record.connections.discard(connection)
                    refusal = f"no thread to read it: {exc}"
        if refusal is None:
            return True
        sock.close()
        if not self._closing:
            self._report(address, LimitExceededError(f"connection refused: {refusal}"))
        return False

    def close(self, deadline_s: float = 5.0) -> None:
        """Take no more connections, let transfers in progress end, then drop the rest.

        Args:
            deadline_s: How long transfers in progress may still take. What is dropped after that is
                reported to `on_error` as a DeadlineError.
        """
        until = time.monotonic() + deadline_s
        with self._changed:
            self._closing = True
            while self._busy() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            connections = [one for peer in self._peers.values() for one in peer.connections]
            broken = [one for one in connections if one.transfer is not None and not one.transfer.done]
        for one in broken:
            self._fail(one, DeadlineError("receiver closed before the transfer was complete"))
        for one in connections:
            one.stop(reset=False)
        with self._changed:
            self._changed.notify_all()
        until = max(until, time.monotonic() + 1.0)
        for one in connections:
            if one.thread is not None and one.thread is not threading.current_thread():
                one.thread.join(max(0.0, until - time.monotonic()))

    def _busy(self) -> bool:
        """Whether any transfer is in progress or being delivered."""
        return any(peer.transfer is not None or peer.delivering for peer in self._peers.values())

    def _forget_idle_peers(self, now: float) -> None:
        """Drop addresses without connections that need not be remembered for stragglers."""
        for name in [
            name
            for name, peer in self._peers.items()
            if not peer.connections and now - peer.finished > STRAGGLER_S
        ]:
            del self._peers[name]

    def _serve(self, connection: Connection) -> None:
        """Read one connection to its end; the body of its thread."""
        try:
            while self._read_chunk(connection):
                pass
            self._end_stream(connection)
        except DwcpError as exc:
            self._fail(connection, exc)
        except Exception as exc:
            LOG.exception("v1 receiver failed on a connection from %s port %d", *connection.address)
            self._fail(connection, exc)
        finally:
            connection.sock.close()
            with self._changed:
                connection.ended = True
                connection.peer.connections.discard(connection)
                self._changed.notify_all()

    def _read_chunk(self, connection: Connection) -> bool:
        """Read one chunk into its place; False at the end of the stream."""
        header = bytearray(AMST_HEADER_BYTES)
        if not self._fill(connection, memoryview(header), inside=False):
            return False
        transfer, place = self._claim(connection, header)
        if not self._fill(connection, place, inside=True):
            return False
        with self._changed:
            transfer.assembly.commit(len(place))
            transfer.progress = time.monotonic()
            complete = transfer.assembly.complete and not transfer.done
            if complete:
                connection.peer.delivering = True
        if complete:
            self._finish(connection, transfer)
        return True

    def _fill(self, connection: Connection, target: memoryview, *, inside: bool) -> bool:
        """Read exactly `target`, or nothing when the stream ends before a header."""
        filled = 0
        while filled < len(target):
            connection.sock.settimeout(self._remaining(connection, inside=inside or filled > 0))
            try:
                count = connection.sock.recv_into(target[filled:])
            except TimeoutError:
                continue
            except OSError as exc:
                raise PeerClosedError(f"connection lost: {exc.strerror or exc}") from exc
            if count == 0:
                if (inside or filled) and not connection.dropped:
                    raise FormatError(f"stream ends {filled} bytes into {len(target)} of a chunk")
                return False
            filled += count
            connection.last_byte = time.monotonic()
        return True

    def _remaining(self, connection: Connection, *, inside: bool) -> float:
        """How long the next read may take; DeadlineError when no time is left."""
        options = self._options
        now = time.monotonic()
        if connection.peer.delivering:
            return 1.0  # the wait is the caller's, who is taking the transfer; the peer is not to blame
        transfer = connection.transfer or connection.peer.transfer
        reference = connection.last_byte
        left = options.deadline_s
        if transfer is not None and not transfer.done:
            left = options.deadline_s - (now - transfer.started)
            if left <= 0:
                raise DeadlineError(f"transfer took longer than {options.deadline_s} s")
            if not inside:
                # A stream that carries nothing is no fault while the others move.
                reference = max(reference, transfer.progress)
        idle = options.idle_timeout_s - (now - reference)
        if idle <= 0:
            raise DeadlineError(f"peer sent nothing for {options.idle_timeout_s} s")
        return max(0.001, min(left, idle))

    def _claim(self, connection: Connection, header: bytearray) -> tuple[Transfer, memoryview]:
        """Check a chunk header against its transfer, which it may begin, and claim room for the chunk."""
        peer = connection.peer
        with self._changed:
            transfer = self._await_turn(connection, AMST_HEADER.unpack(header)[3]) or self._begin()
            # A first chunk that does not fit ends its own connection, not a transfer it was no part of.
            offset, length = transfer.assembly.reserve(header)
            connection.transfer = transfer
            transfer.streams.add(connection)
            peer.transfer = transfer
            transfer.progress = time.monotonic()
            rounded = -(-length // PAGE_BYTES) * PAGE_BYTES
            held = min(transfer.assembly.total, transfer.held_bytes + rounded)
            most = self._options.max_bytes
            if self._held_bytes + held - transfer.held_bytes > most:
                raise LimitExceededError(f"unfinished transfers hold more than the limit of {most} bytes")
            self._held_bytes += held - transfer.held_bytes
            transfer.held_bytes = held
            return transfer, transfer.assembly.region(offset, length)

    def _await_turn(self, connection: Connection, total: int) -> Transfer | None:
        """Give the transfer a chunk belongs to, or None when it begins one; the lock is held.

        A sender may begin its next transfer on new connections before this end has read the last one. Another
        total says so, and such a connection waits.
        """
        peer = connection.peer
        previous = connection.transfer
        if previous is not None and not previous.done:
            return previous
        if previous is not None:
            connection.transfer = None
            if len(previous.streams) > 1:
                raise FormatError("chunk after the transfer was complete: use new connections for the next")
        patience_s = self._options.idle_timeout_s
        if not peer.is_free_for(total):
            connection.waiting = True
            # A transfer that waits only for this connection must see that it gets nothing from it.
            self._changed.notify_all()
            free = self._changed.wait_for(lambda: peer.is_free_for(total), patience_s)
            connection.waiting = False
            connection.last_byte = time.monotonic()
            if not free:
                raise DeadlineError(f"transfer of {total} bytes waited {patience_s} s for the one before it")
        return peer.transfer

    def _begin(self) -> Transfer:
        """Begin a transfer, unless there are too many; the lock is held."""
        if self._closing:
            raise LimitExceededError("transfer refused: receiver is closing")
        active = sum(known.transfer is not None for known in self._peers.values())
        if active >= self._options.max_transfers:
            raise LimitExceededError(f"{active} transfers in progress reach the limit")
        return Transfer(self._options.max_bytes, time.monotonic())

    def _release(self, transfer: Transfer, peer: Peer) -> None:
        """Let a transfer go; the lock is held."""
        transfer.done = True
        self._held_bytes -= transfer.held_bytes
        transfer.held_bytes = 0
        if peer.transfer is transfer:
            peer.transfer = None
        if transfer.assembly.complete:
            peer.delivering = False
        transfer.assembly.discard()
        peer.finished = time.monotonic()
        self._changed.notify_all()

    def _finish(self, connection: Connection, transfer: Transfer) -> None:
        """Decode and deliver a complete transfer, then let its other connections go."""
        peer = connection.peer
        delivery = self._decode(connection, transfer)
        size = delivery.transfer_bytes
        LOG.info("v1 transfer of %d bytes from %s port %d, not verified", size, *connection.address)
        self._on_delivery(delivery)
        connection.last_byte = time.monotonic()
        with self._changed:
            self._release(transfer, peer)
        if len(transfer.streams) > 1:
            for other in transfer.streams:
                other.stop(reset=False)

    def _decode(self, connection: Connection, transfer: Transfer) -> V1Delivery:
        """Turn the bytes of a transfer into a delivery."""
        options = self._options
        assembly = transfer.assembly
        content = assembly.content()
        duration_s = time.monotonic() - transfer.started
        packet: HdePacket | None = None
        if options.payload_format == "hde":
            decoder = HdeDecoder(
                options.generation,
                strict=options.strict,
                max_bytes=options.max_bytes,
                baselines=self._baselines,
                scope=scope_of(connection),
            )
            try:
                packet = decoder.decode(content, key=options.baseline_key)
            except DwcpError as exc:
                guess = guess_generation(content)
                if exc.hint is None and guess is not None and (guess == "C") != (options.generation == "C"):
                    exc.hint = f"the packet looks like generation {'C' if guess == 'C' else 'A or B'}"
                raise
        payload = packet.payload if packet is not None else bytes(content)
        return V1Delivery(
            peer=connection.address,
            payload=payload,
            payload_format=options.payload_format,
            generation=options.generation,
            tier=packet.tier if packet is not None else None,
            is_delta=packet is not None and packet.is_delta,
            transfer_bytes=len(content),
            wire_bytes=len(content) + AMST_HEADER_BYTES * assembly.chunks,
            chunks=assembly.chunks,
            streams=len(transfer.streams),
            duration_s=duration_s,
            xxh3_128=xxhash.xxh3_128_hexdigest(payload),
        )

    def _end_stream(self, connection: Connection) -> None:
        """Hold an ended stream open until its transfer is done: closing it tells the sender so."""
        options = self._options
        peer = connection.peer
        settled = 0.0
        with self._changed:
            connection.ended = True
            self._changed.notify_all()
            while True:
                transfer = connection.transfer or peer.transfer
                if self._closing and transfer is None:
                    return
                if transfer is not None and transfer.done:
                    return
                now = time.monotonic()
                if transfer is None and (peer.live or now - peer.finished <= STRAGGLER_S):
                    return
                if peer.live or peer.delivering:
                    settled = 0.0
                    self._changed.wait(options.idle_timeout_s)
                    continue
                settled = settled or now + options.settle_s
                if now < settled:
                    self._changed.wait(settled - now)
                    continue
                if transfer is not None:
                    transfer.assembly.content()
                peer.finished = now
                raise FormatError("no data: every connection ended without a byte")

    def _fail(self, connection: Connection, failure: Exception) -> None:
        """End the transfer a connection belongs to, or only the connection, and report it once."""
        peer = connection.peer
        with self._changed:
            transfer = connection.transfer
            over = transfer is not None and transfer.done
            if transfer is not None and not over:
                self._release(transfer, peer)
                broken = [
                    one for one in peer.connections if one.transfer in (None, transfer) and not one.waiting
                ]
            else:
                broken = [connection]
            idle = isinstance(failure, DeadlineError) and transfer is None
            harmless = over or (idle and peer.finished >= connection.last_byte)
            quiet = harmless or connection.dropped
            if not quiet and self._options.baseline_key is not None:
                # Its sender has moved on to a state that never came: no later delta fits the old one.
                self._baselines.drop(scope_of(connection) + self._options.baseline_key)
            connection.ended = True
            for one in broken:
                one.dropped = True
            self._changed.notify_all()
        for one in broken:
            one.stop(reset=not harmless)
        if quiet:
            LOG.debug("v1 connection from %s port %d ends without effect: %s", *connection.address, failure)
        else:
            self._report(connection.address, failure)

    def _report(self, address: PeerAddress, failure: Exception) -> None:
        """Log a failure and tell the callback, whose own failure must not end the thread."""
        LOG.warning("v1 peer %s port %d: %s", *address, failure)
        if self._on_error is None:
            return
        try:
            self._on_error(address, failure)
        except Exception:
            LOG.exception("v1 on_error callback failed")
