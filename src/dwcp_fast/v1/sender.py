"""Sending one v1 transfer over several TCP connections.

v1 has no acknowledgement and no checksum of the whole: that every connection was taken to its end is
all a sender can learn. The report says so.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, get_args

import xxhash

from dwcp_fast.errors import DeadlineError, FormatError, PeerClosedError
from dwcp_fast.v1.chunks import AMST_HEADER, check_amst_transfer
from dwcp_fast.v1.connections import Patience, V1Stop, connect, shut
from dwcp_fast.v1.hde import HdeEncoder
from dwcp_fast.v1.options import Generation, PayloadFormat, Tier, check_choice, check_range
from dwcp_fast.v1.payload import view_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["V1SendReport", "send_v1"]

LOG: Final = logging.getLogger(__name__)
SERVE_HINT: Final = (
    "the peer may not serve v1 (start it with `dwcp recv --allow-v1`), "
    "or it refused the transfer; its log says which"
)


@dataclass(frozen=True, slots=True)
class V1SendReport:
    """What is known after a v1 transfer was sent.

    Attributes:
        host: Where it went.
        port: Where it went.
        payload_bytes: Length of what the caller gave.
        transfer_bytes: Length of the transfer after encoding.
        wire_bytes: The transfer with its chunk headers.
        chunks: How many chunks were sent.
        streams: How many connections were used.
        duration_s: From the first connect to the last close.
        payload_format: "hde" or "raw".
        generation: The v1 generation written.
        xxh3_128: Digest of the payload in hexadecimal, to compare with what the receiver reports.
        verified: Always False: v1 cannot confirm that the data arrived intact.
    """

    host: str
    port: int
    payload_bytes: int
    transfer_bytes: int
    wire_bytes: int
    chunks: int
    streams: int
    duration_s: float
    payload_format: PayloadFormat
    generation: Generation
    xxh3_128: str
    verified: bool = False

    def to_dict(self) -> dict[str, object]:
        """Give the report as plain values, ready for JSON."""
        return asdict(self)


class Dealer:
    """Hands the chunks of one transfer to whichever connection can take the next."""

    def __init__(
        self, transfer: memoryview, chunk_bytes: int, chunks: int, connections: list[socket.socket]
    ) -> None:
        """Set up the shared queue.

        Args:
            transfer: All bytes to send.
            chunk_bytes: Bytes of data in each chunk but the last.
            chunks: How many chunks there are.
            connections: The connections that take from it.
        """
        self._transfer = transfer
        self._chunk_bytes = chunk_bytes
        self._chunks = chunks
        self._connections = connections
        self._next = 0
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def take(self) -> tuple[bytes, memoryview] | None:
        """Give the next chunk's header and data, or None when all are taken or a connection failed."""
        with self._lock:
            if self._failure is not None or self._next == self._chunks:
                return None
            number = self._next
            self._next += 1
        offset = number * self._chunk_bytes
        piece = self._transfer[offset : offset + self._chunk_bytes]
        return AMST_HEADER.pack(number, offset, len(piece), len(self._transfer)), piece

    def fail(self, failure: BaseException) -> None:
        """Stop all connections; the first failure is the one reported."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        for connection in self._connections:
            shut(connection)

    @property
    def failure(self) -> BaseException | None:
        """The first failure, or None."""
        return self._failure


def send_v1(
    host: str,
    port: int,
    payload: Buffer,
    *,
    streams: int = 4,
    chunk_bytes: int = 65_536,
    payload_format: PayloadFormat = "hde",
    generation: Generation = "A",
    tier: Tier = "regional",
    connect_timeout_s: float = 10.0,
    timeout_s: float = 300.0,
    idle_timeout_s: float = 60.0,
    stop: V1Stop | None = None,
) -> V1SendReport:
    """Send one payload to a v1 receiver, and wait until it has taken every connection to its end.

    Args:
        host: Name or address of the receiver.
        port: Its port.
        payload: What to send; not empty.
        streams: How many connections to open.
        chunk_bytes: Bytes of data in each chunk but the last.
        payload_format: "hde" to send one full HDE packet, "raw" to send the payload itself.
        generation: The packet layout the receiver reads; v1 cannot negotiate it.
        tier: The compression tier of the packet.
        connect_timeout_s: How long each connection may take to open.
        timeout_s: How long everything after that may take.
        idle_timeout_s: How long the peer may take nothing and close no connection, over all of them.
        stop: Ends the transfer from another thread.

    Returns:
        What was sent. It is never verified: v1 has no acknowledgement.

    Raises:
        ConfigError: An argument is out of range.
        FormatError: The payload is empty.
        LimitExceededError: The payload is too large for v1, or for one packet.
        PeerClosedError: The peer reset or closed a connection before it took all bytes, or answered.
        DeadlineError: Not done in `timeout_s`, no connection in `connect_timeout_s`, or no sign of the peer
            for `idle_timeout_s`.
        DwcpError: It was stopped; ``code`` is ``"cancelled"``.
        OSError: The connection could not be opened.
    """
    check_choice("payload_format", payload_format, get_args(PayloadFormat))
    check_range("port", port, 1, 65_535)
    check_range("connect_timeout_s", connect_timeout_s, 0.01, 3600)
    check_range("timeout_s", timeout_s, 0.01, 604_800)
    check_range("idle_timeout_s", idle_timeout_s, 0.01, 2_592_000)
    stop = stop or V1Stop()
    stop.check()
    plain = view_bytes(payload)
    if not plain:
        raise FormatError("payload is empty: v1 has no empty transfer")
    transfer = plain
    if payload_format == "hde":
        transfer = memoryview(HdeEncoder(generation).encode(plain, tier=tier))
    chunks = check_amst_transfer(len(transfer), chunk_bytes, streams)
    started = time.monotonic()
    connections = _dial(host, port, streams, connect_timeout_s, stop)
    dealer = Dealer(transfer, chunk_bytes, chunks, connections)
    patience = Patience(timeout_s, idle_timeout_s)
    threads = [
        threading.Thread(
            target=_run_stream, args=(connection, dealer, patience), name=f"dwcp-v1-send-{index}"
        )
        for index, connection in enumerate(connections)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as exc:
        dealer.fail(exc)
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        for connection in connections:
            stop.close(connection)
    # To the threads a connection that was shut may look like one that the peer has closed.
    stop.check()
    if dealer.failure is not None:
        raise dealer.failure
    report = V1SendReport(
        host=host,
        port=port,
        payload_bytes=len(plain),
        transfer_bytes=len(transfer),
        wire_bytes=len(transfer) + AMST_HEADER.size * chunks,
        chunks=chunks,
        streams=streams,
        duration_s=time.monotonic() - started,
        payload_format=payload_format,
        generation=generation,
        xxh3_128=xxhash.xxh3_128_hexdigest(plain),
    )
    LOG.info("v1 transfer of %d bytes sent to %s port %d, not verified", len(plain), host, port)
    return report


def _dial(host: str, port: int, streams: int, connect_timeout_s: float, stop: V1Stop) -> list[socket.socket]:
    """Open every connection before the first chunk, as v1 receivers expect."""
    connections: list[socket.socket] = []
    try:
        for _ in range(streams):
            connection = connect(host, port, connect_timeout_s, stop)
            connections.append(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException as exc:
        for connection in connections:
            stop.close(connection)
        if isinstance(exc, TimeoutError):
            raise DeadlineError(f"no connection to {host} port {port} within {connect_timeout_s} s") from exc
        raise
    return connections


def _run_stream(connection: socket.socket, dealer: Dealer, patience: Patience) -> None:
    """Send chunks until none is left, half-close, and wait for the peer to close."""
    try:
        while (chunk := dealer.take()) is not None:
            header, piece = chunk
            sent = patience.wait(connection, connection.sendmsg, (header, piece))
            while sent < len(header):
                sent += patience.wait(connection, connection.send, header[sent:])
            while sent < len(header) + len(piece):
                sent += patience.wait(connection, connection.send, piece[sent - len(header) :])
        if dealer.failure is not None:
            return
        # v1 receivers wait for the end of every stream, also of those that carried nothing.
        connection.shutdown(socket.SHUT_WR)
        answer = patience.wait(connection, connection.recv, 64)
        if answer:
            raise PeerClosedError(f"peer answered {answer[:16]!r}, where v1 has no answer", hint=SERVE_HINT)
    except (DeadlineError, PeerClosedError) as exc:
        dealer.fail(exc)
    except OSError as exc:
        failure = PeerClosedError(
            f"peer closed a connection before it took all bytes: {exc.strerror or exc}", hint=SERVE_HINT
        )
        failure.__cause__ = exc
        dealer.fail(failure)
