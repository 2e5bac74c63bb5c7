"""The two chunk layouts of v1: `v1-amst` (16-byte headers) and `v1-mstcp`, which upstream's v3 also uses.

These functions work on whole captured streams; :mod:`dwcp_fast.v1.receiver` and
:mod:`dwcp_fast.v1.sender` do the same over sockets.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from dwcp_fast.errors import FormatError, LimitExceededError
from dwcp_fast.v1._v1engine import MAX_CHUNKS, MSTCP_HEADER_BYTES, AmstAssembly, place_mstcp
from dwcp_fast.v1.options import (
    DEFAULT_MAX_BYTES,
    MAX_CHUNK_BYTES,
    MAX_STREAMS,
    MAX_TRANSFER_BYTES,
    check_range,
)
from dwcp_fast.v1.payload import view_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

__all__ = [
    "AMST_HEADER",
    "check_amst_transfer",
    "deal_amst",
    "deal_mstcp",
    "read_amst",
    "read_amst_sequence",
    "read_mstcp",
]

AMST_HEADER: Final = Struct(">IIII")
MSTCP_HEADER: Final = Struct(">II")


def check_amst_transfer(size: int, chunk_bytes: int, streams: int) -> int:
    """Check that v1-amst can carry a transfer, and count its chunks.

    Args:
        size: Bytes to send.
        chunk_bytes: Bytes of data in each chunk but the last.
        streams: Connections to send on.

    Returns:
        The number of chunks.

    Raises:
        FormatError: Nothing to send, which v1 cannot say.
        LimitExceededError: 4 GiB or more, which would wrap in v1's 32-bit fields, or too many chunks.
        ConfigError: `chunk_bytes` or `streams` is out of range.
    """
    check_range("chunk_bytes", chunk_bytes, 1, MAX_CHUNK_BYTES)
    check_range("streams", streams, 1, MAX_STREAMS)
    if size == 0:
        raise FormatError("transfer is empty: v1 has no empty transfer")
    if size > MAX_TRANSFER_BYTES:
        raise LimitExceededError(f"transfer of {size} bytes is above the v1 limit of {MAX_TRANSFER_BYTES}")
    chunks = -(-size // chunk_bytes)
    if chunks > MAX_CHUNKS:
        raise LimitExceededError(f"{chunks} chunks are above the limit of {MAX_CHUNKS}")
    return chunks


def deal_amst(data: Buffer, *, streams: int, chunk_bytes: int = 65_536) -> list[bytes]:
    """Lay out one v1-amst transfer, its chunks dealt to the streams in turn.

    Args:
        data: What to send; 1 byte to below 4 GiB.
        streams: How many streams to deal to.
        chunk_bytes: Bytes of data in each chunk but the last.

    Returns:
        The bytes of each stream; some are empty when there are fewer chunks than streams.

    Raises:
        FormatError: Nothing to send.
        LimitExceededError: The data is too large for v1.
        ConfigError: `chunk_bytes` or `streams` is out of range.
    """
    view = view_bytes(data)
    chunks = check_amst_transfer(len(view), chunk_bytes, streams)
    dealt = [bytearray() for _ in range(streams)]
    for number in range(chunks):
        offset = number * chunk_bytes
        piece = view[offset : offset + chunk_bytes]
        stream = dealt[number % streams]
        stream += AMST_HEADER.pack(number, offset, len(piece), len(view))
        stream += piece
    return [bytes(stream) for stream in dealt]


def read_amst(streams: Sequence[Buffer], *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Put one v1-amst transfer together from its captured streams.

    Args:
        streams: The bytes of each stream up to its end, in any order.
        max_bytes: The largest transfer to allow.

    Returns:
        The data.

    Raises:
        FormatError: A header, offset, number, length or total does not fit the others, something is
            missing, or bytes follow the transfer.
        LimitExceededError: The transfer is above `max_bytes`.
    """
    assembly = AmstAssembly(max_bytes)
    for stream in streams:
        view = view_bytes(stream)
        position = assembly.feed(view)
        if position != len(view):
            raise FormatError(f"{len(view) - position} bytes on a stream after the transfer was complete")
    return bytes(assembly.content())


def read_amst_sequence(stream: Buffer, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Iterator[bytes]:
    """Read the transfers that follow each other on one stream.

    Only a single stream can carry several: with more, the bytes do not say which transfer came first.

    Args:
        stream: The bytes of the stream up to its end.
        max_bytes: The largest transfer to allow.

    Yields:
        The data of each transfer.

    Raises:
        FormatError: A transfer is malformed or not complete.
        LimitExceededError: A transfer is above `max_bytes`.
    """
    view = view_bytes(stream)
    position = 0
    while position < len(view):
        assembly = AmstAssembly(max_bytes)
        position = assembly.feed(view, position)
        yield bytes(assembly.content())


def deal_mstcp(message: Buffer, *, streams: int, chunk_bytes: int = 262_144) -> list[bytes]:
    """Lay out one v1-mstcp message: chunk i on stream i modulo the number of streams.

    Use a fresh set of connections for each message: the layout has no boundary between two.

    Args:
        message: What to send; not empty.
        streams: How many streams there are.
        chunk_bytes: Bytes of data in each chunk but the last; the reader must be told.

    Returns:
        The bytes of each stream.

    Raises:
        FormatError: The message is empty.
        LimitExceededError: The message needs more chunks than a number can name.
        ConfigError: `chunk_bytes` or `streams` is out of range.
    """
    check_range("chunk_bytes", chunk_bytes, 1, MAX_CHUNK_BYTES)
    check_range("streams", streams, 1, MAX_STREAMS)
    view = view_bytes(message)
    if not view:
        raise FormatError("message is empty: v1 has no empty message")
    if -(-len(view) // chunk_bytes) > MAX_CHUNKS:
        raise LimitExceededError(f"message of {len(view)} bytes needs more than {MAX_CHUNKS} chunks")
    dealt = [bytearray() for _ in range(streams)]
    for number, offset in enumerate(range(0, len(view), chunk_bytes)):
        piece = view[offset : offset + chunk_bytes]
        stream = dealt[number % streams]
        stream += MSTCP_HEADER.pack(number, len(piece))
        stream += piece
    return [bytes(stream) for stream in dealt]


def read_mstcp(
    streams: Sequence[Buffer], *, sizes: Sequence[int], chunk_bytes: int, max_bytes: int = DEFAULT_MAX_BYTES
) -> list[bytes]:
    """Put v1-mstcp messages together; each stream owes a fixed number of chunks to each message.

    Args:
        streams: The bytes of each stream up to its end, in any order; as many as the sender opened.
        sizes: Length of each message in bytes, in the order they were sent.
        chunk_bytes: The sender's chunk size; the wire does not carry it.
        max_bytes: The most bytes to allow for all messages together.

    Returns:
        The messages.

    Raises:
        FormatError: A chunk does not belong where it is, one is missing, or bytes are left over.
        LimitExceededError: The messages are above `max_bytes`.
        ConfigError: `sizes`, `chunk_bytes` or the number of streams is out of range.
    """
    check_range("streams", len(streams), 1, MAX_STREAMS)
    check_range("chunk_bytes", chunk_bytes, 1, (1 << 32) - 1)
    for size in sizes:
        check_range("size", size, 1, 1 << 62)
    total = sum(sizes)
    if total > max_bytes:
        raise LimitExceededError(f"messages of {total} bytes are above the limit of {max_bytes}")
    views = [view_bytes(stream) for stream in streams]
    counts = [-(-size // chunk_bytes) for size in sizes]
    wire = total + MSTCP_HEADER_BYTES * sum(counts)
    present = sum(len(view) for view in views)
    if present != wire:
        raise FormatError(f"streams hold {present} bytes, the messages take {wire}")
    residues = _number_streams(views)
    positions = [0] * len(views)
    messages: list[bytes] = []
    for size, count in zip(sizes, counts, strict=True):
        message = bytearray(size)
        seen = bytearray(count)
        for index, residue in residues.items():
            positions[index] = place_mstcp(
                views[index], positions[index], message, seen, chunk_bytes, len(views), residue
            )
        if seen.count(1) != count:
            raise FormatError(f"{count - seen.count(1)} of {count} chunks of a message are missing")
        messages.append(bytes(message))
    for index, view in enumerate(views):
        if positions[index] != len(view):
            raise FormatError(f"{len(view) - positions[index]} bytes on a stream after the last message")
    return messages


def _number_streams(views: Sequence[memoryview]) -> dict[int, int]:
    """Find which stream each one is in the sender's order, from the first chunk number on it."""
    residues: dict[int, int] = {}
    for index, view in enumerate(views):
        if not view:
            continue
        if len(view) < MSTCP_HEADER_BYTES:
            raise FormatError(f"stream ends {len(view)} bytes into a chunk header of {MSTCP_HEADER_BYTES}")
        number, _ = MSTCP_HEADER.unpack_from(view)
        residue = number % len(views)
        if residue in residues.values():
            raise FormatError(f"chunks of stream {residue} of {len(views)} come on two streams")
        residues[index] = residue
    return residues
