"""What v1's MigrationAdapter puts into a transfer: memory, disk blocks, and (B, C) an envelope.

Generation A sends a bare payload; B puts an envelope in front; C puts an envelope and a session block
in front of every stream, so that streams of two migrations cannot be mixed up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final

from dwcp_fast.errors import ConfigError, FormatError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.v1.options import DEFAULT_MAX_BYTES, MAX_STREAMS, check_range
from dwcp_fast.v1.payload import view_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from dwcp_fast.v1.hde import HdeDecoder

__all__ = [
    "Envelope",
    "MigrationKind",
    "SessionBlock",
    "decode_disk",
    "disk_key",
    "memory_key",
    "pack_disk_blocks",
    "pack_envelope",
    "pack_session",
    "pack_standard_disk",
    "pack_standard_memory",
    "read_envelope",
    "read_session",
    "read_standard_disk",
    "read_standard_memory",
    "split_disk_blocks",
]

SIZE: Final = Struct(">Q")
BLOCK_HEADER: Final = Struct(">II")
ENVELOPE_HEADER: Final = Struct(">BH")
SESSION: Final = Struct(">16sHH")
MAX_FIELD: Final = (1 << 32) - 1


class MigrationKind(IntEnum):
    """What an envelope announces."""

    STANDARD_MEMORY = 0
    STANDARD_DISK = 1
    DWCP_MEMORY = 2
    DWCP_DISK = 3


@dataclass(frozen=True, slots=True)
class Envelope:
    """The head of a migration in generations B and C.

    Attributes:
        kind: What follows.
        vm_id: The machine being moved.
    """

    kind: MigrationKind
    vm_id: str


@dataclass(frozen=True, slots=True)
class SessionBlock:
    """What ties the streams of one generation C migration together.

    Attributes:
        session: 16 random bytes, the same on every stream.
        index: This stream, from 0.
        count: How many streams there are.
    """

    session: bytes
    index: int
    count: int


def memory_key(vm_id: str) -> str:
    """Name the baseline of a machine's memory.

    Args:
        vm_id: The machine.

    Returns:
        The key as v1 deltas carry it.
    """
    return f"{vm_id}_memory"


def disk_key(vm_id: str, block_id: int) -> str:
    """Name the baseline of one disk block.

    Args:
        vm_id: The machine.
        block_id: The block.

    Returns:
        The key as v1 deltas carry it.
    """
    return f"{vm_id}_disk_{block_id}"


def pack_disk_blocks(blocks: Mapping[int, Buffer]) -> bytes:
    """Join blocks as [u32 number][u32 length][data], the list both disk layouts use.

    Args:
        blocks: HDE packets, or raw data for standard disks, by block number.

    Returns:
        The list, in the order of `blocks`.

    Raises:
        ConfigError: A block number is not 32 bits.
        LimitExceededError: A block does not fit its 32-bit length.
    """
    packed = bytearray()
    for number, block in blocks.items():
        check_range("block number", number, 0, MAX_FIELD)
        view = view_bytes(block)
        if len(view) > MAX_FIELD:
            raise LimitExceededError(f"block {number} of {len(view)} bytes is above the limit of {MAX_FIELD}")
        packed += BLOCK_HEADER.pack(number, len(view))
        packed += view
    return bytes(packed)


def split_disk_blocks(data: Buffer) -> dict[int, memoryview]:
    """Split a list of [u32 number][u32 length][data] without a copy.

    Args:
        data: The whole list.

    Returns:
        The blocks by number, in the order they came.

    Raises:
        FormatError: The list is cut off, or a block comes twice.
    """
    view = view_bytes(data)
    blocks: dict[int, memoryview] = {}
    position = 0
    while position < len(view):
        if len(view) - position < BLOCK_HEADER.size:
            raise FormatError(
                f"block list ends {len(view) - position} bytes into a header of {BLOCK_HEADER.size}"
            )
        number, length = BLOCK_HEADER.unpack_from(view, position)
        position += BLOCK_HEADER.size
        if length > len(view) - position:
            raise FormatError(f"block {number} names {length} bytes, {len(view) - position} are there")
        if number in blocks:
            raise FormatError(f"block {number} comes twice")
        blocks[number] = view[position : position + length]
        position += length
    return blocks


def decode_disk(
    data: Buffer, decoder: HdeDecoder, *, vm_id: str, max_bytes: int = DEFAULT_MAX_BYTES
) -> dict[int, bytes]:
    """Read the HDE packets of a DWCP disk transfer.

    Args:
        data: The block list.
        decoder: Reads the packets and holds their baselines.
        vm_id: The machine, for the baseline keys.
        max_bytes: The most bytes to allow for all blocks together.

    Returns:
        The content of each block by number.

    Raises:
        FormatError: The list or a packet is malformed.
        LimitExceededError: The blocks are above `max_bytes`, or one is above the decoder's limit.
        BaseMismatchError: A delta for a baseline that is not held.
    """
    decoded: dict[int, bytes] = {}
    total = 0
    for number, packet in split_disk_blocks(data).items():
        decoded[number] = decoder.decode(packet, key=disk_key(vm_id, number)).payload
        total += len(decoded[number])
        if total > max_bytes:
            raise LimitExceededError(f"disk blocks give more than the limit of {max_bytes} bytes")
    return decoded


def pack_standard_memory(state: Buffer) -> bytes:
    """Write memory with DWCP off: [u64 size][raw].

    Args:
        state: The memory.

    Returns:
        The bytes of the one stream.
    """
    view = view_bytes(state)
    return SIZE.pack(len(view)) + view


def read_standard_memory(data: Buffer, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Read memory sent with DWCP off.

    Args:
        data: The stream up to its end.
        max_bytes: The largest memory to allow.

    Returns:
        The memory.

    Raises:
        FormatError: The size field is not what is there.
        LimitExceededError: The memory is above `max_bytes`.
    """
    size, body = _read_size(data, max_bytes)
    if size != len(body):
        raise FormatError(f"header names {size} bytes, {len(body)} are there")
    return bytes(body)


def pack_standard_disk(blocks: Mapping[int, Buffer]) -> bytes:
    """Write a disk with DWCP off: [u64 sum of data lengths] and the block list.

    Args:
        blocks: The data by block number.

    Returns:
        The bytes of the one stream.

    Raises:
        ConfigError: A block number is not 32 bits.
        LimitExceededError: A block does not fit its 32-bit length.
    """
    total = sum(len(view_bytes(block)) for block in blocks.values())
    return SIZE.pack(total) + pack_disk_blocks(blocks)


def read_standard_disk(data: Buffer, *, max_bytes: int = DEFAULT_MAX_BYTES) -> dict[int, bytes]:
    """Read a disk sent with DWCP off.

    Args:
        data: The stream up to its end.
        max_bytes: The most bytes of blocks to allow.

    Returns:
        The data by block number.

    Raises:
        FormatError: The list is malformed, or its lengths do not add up to the size field.
        LimitExceededError: The blocks are above `max_bytes`.
    """
    size, body = _read_size(data, max_bytes)
    blocks = split_disk_blocks(body)
    # The size field leaves the block headers out.
    total = sum(len(block) for block in blocks.values())
    if size != total:
        raise FormatError(f"header names {size} bytes of blocks, {total} are there")
    return {number: bytes(block) for number, block in blocks.items()}


def _read_size(data: Buffer, max_bytes: int) -> tuple[int, memoryview]:
    """Take the 64-bit size off the front and bound it."""
    view = view_bytes(data)
    if len(view) < SIZE.size:
        raise FormatError(f"stream of {len(view)} bytes is shorter than its size field of {SIZE.size}")
    (size,) = SIZE.unpack_from(view)
    if size > max_bytes:
        raise LimitExceededError(f"{size} bytes are above the limit of {max_bytes}")
    return size, view[SIZE.size :]


def pack_envelope(envelope: Envelope) -> bytes:
    """Write the head of a generation B or C migration.

    Args:
        envelope: What to announce.

    Returns:
        The bytes in front of the stream.

    Raises:
        ConfigError: The machine's name does not fit, or holds a zero byte, which deltas cannot carry.
    """
    name = envelope.vm_id.encode()
    if not 1 <= len(name) <= 0xFFFF or b"\0" in name:
        raise ConfigError(f"vm_id of {len(name)} bytes is not 1 to {0xFFFF} without a zero byte")
    return ENVELOPE_HEADER.pack(envelope.kind, len(name)) + name


def read_envelope(data: Buffer) -> tuple[Envelope, int]:
    """Read the head of a generation B or C migration.

    Args:
        data: The stream, at least its head.

    Returns:
        The envelope and its length in bytes.

    Raises:
        FormatError: The head is cut off or its name is not valid.
        UnsupportedFormatError: An unknown protocol number.
    """
    view = view_bytes(data)
    if len(view) < ENVELOPE_HEADER.size:
        raise FormatError(f"stream of {len(view)} bytes ends inside the envelope")
    kind, length = ENVELOPE_HEADER.unpack_from(view)
    if kind > max(MigrationKind):
        raise UnsupportedFormatError(f"migration protocol {kind} is above {int(max(MigrationKind))}")
    end = ENVELOPE_HEADER.size + length
    if end > len(view):
        raise FormatError(
            f"envelope names a vm_id of {length} bytes, {len(view) - ENVELOPE_HEADER.size} are there"
        )
    name = bytes(view[ENVELOPE_HEADER.size : end])
    if not name or b"\0" in name:
        raise FormatError("envelope holds an empty vm_id, or one with a zero byte")
    try:
        return Envelope(MigrationKind(kind), name.decode()), end
    except UnicodeDecodeError as exc:
        raise FormatError(f"envelope holds a vm_id that is not UTF-8: {name[:64]!r}") from exc


def pack_session(block: SessionBlock) -> bytes:
    """Write the session block of one generation C stream.

    Args:
        block: Which stream of which session.

    Returns:
        The 20 bytes after the envelope.

    Raises:
        ConfigError: A field is out of range.
    """
    if len(block.session) != 16:
        raise ConfigError(f"session of {len(block.session)} bytes is not 16")
    check_range("count", block.count, 1, MAX_STREAMS)
    check_range("index", block.index, 0, block.count - 1)
    return SESSION.pack(block.session, block.index, block.count)


def read_session(data: Buffer, position: int = 0) -> tuple[SessionBlock, int]:
    """Read the session block of one generation C stream.

    Args:
        data: The stream.
        position: Where the block begins, after the envelope.

    Returns:
        The block and the position after it.

    Raises:
        FormatError: The block is cut off, or its index is not below its count.
        LimitExceededError: More streams than are allowed.
    """
    view = view_bytes(data)[position:]
    if len(view) < SESSION.size:
        raise FormatError(f"stream ends {len(view)} bytes into a session block of {SESSION.size}")
    session, index, count = SESSION.unpack_from(view)
    if count > MAX_STREAMS:
        raise LimitExceededError(f"session of {count} streams is above the limit of {MAX_STREAMS}")
    if index >= count:
        raise FormatError(f"stream index {index} is not below the count {count}")
    return SessionBlock(session, index, count), position + SESSION.size
