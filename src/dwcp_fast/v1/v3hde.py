"""Packets of upstream's v3: a 12-byte header with both sizes, full states only.

Upstream also writes deltas, but without the key of their baseline, so no other process can apply
them; they are refused here and never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from dwcp_fast.errors import FormatError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.v1.options import DEFAULT_MAX_BYTES, check_choice
from dwcp_fast.v1.payload import decode_lz4, decode_zstd, encode_lz4, encode_zstd, view_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["V3_HEADER_BYTES", "V3Algorithm", "V3Mode", "V3Packet", "decode_v3", "encode_v3"]

V3Algorithm: TypeAlias = Literal["none", "lz4", "zstd", "zstd-max", "brotli"]
V3Mode: TypeAlias = Literal["datacenter", "internet", "hybrid"]

V3_HEADER_BYTES: Final = 12
HEADER = Struct(">BBBBII")
VERSION: Final = 3
ALGORITHMS: Final[tuple[V3Algorithm, ...]] = get_args(V3Algorithm)
MODES: Final[tuple[V3Mode, ...]] = get_args(V3Mode)
ZSTD_LEVEL: Final = 3
ZSTD_MAX_LEVEL: Final = 19


@dataclass(frozen=True, slots=True)
class V3Packet:
    """What one upstream v3 packet held.

    Attributes:
        payload: The state.
        algorithm: The algorithm the header names; "brotli" is in fact zstd.
        mode: The mode the sender was in.
        wire_bytes: Length of the packet, header included.
    """

    payload: bytes
    algorithm: V3Algorithm
    mode: V3Mode
    wire_bytes: int


def encode_v3(state: Buffer, *, algorithm: V3Algorithm = "zstd", mode: V3Mode = "internet") -> bytes:
    """Write one full packet.

    Args:
        state: The whole state; not empty, below 4 GiB.
        algorithm: How to compress it; "brotli" is refused, as that number means zstd.
        mode: The mode to name.

    Returns:
        The packet.

    Raises:
        ConfigError: An unknown algorithm or mode.
        FormatError: The state is empty.
        LimitExceededError: A size does not fit into its 32-bit field.
    """
    check_choice("algorithm", algorithm, ALGORITHMS[:-1])
    check_choice("mode", mode, MODES)
    view = view_bytes(state)
    if not view:
        raise FormatError("state is empty: v3 packets are never empty")
    if len(view) >= 1 << 32:
        raise LimitExceededError(f"state of {len(view)} bytes does not fit the 32-bit size field")
    if algorithm == "none":
        payload = bytes(view)
    elif algorithm == "lz4":
        payload = encode_lz4(view)
    else:
        payload = encode_zstd(view, ZSTD_LEVEL if algorithm == "zstd" else ZSTD_MAX_LEVEL)
    if len(payload) >= 1 << 32:
        raise LimitExceededError(f"payload of {len(payload)} bytes does not fit the 32-bit size field")
    header = HEADER.pack(VERSION, 0, ALGORITHMS.index(algorithm), MODES.index(mode), len(view), len(payload))
    return header + payload


def decode_v3(packet: Buffer, *, max_bytes: int = DEFAULT_MAX_BYTES) -> V3Packet:
    """Read one full packet, checking both sizes.

    Args:
        packet: The whole packet.
        max_bytes: The most bytes of content to allow.

    Returns:
        The state and what the header said.

    Raises:
        FormatError: The packet is malformed, or a size is not what is there or what comes out.
        UnsupportedFormatError: Another version, an unknown algorithm or mode, or a delta.
        IntegrityError: A checksum does not match.
        LimitExceededError: The content is above `max_bytes`.
    """
    view = view_bytes(packet)
    if len(view) < V3_HEADER_BYTES:
        raise FormatError(f"packet of {len(view)} bytes is shorter than its header of {V3_HEADER_BYTES}")
    version, flag, algorithm, mode, original, compressed = HEADER.unpack_from(view)
    if version != VERSION:
        raise UnsupportedFormatError(f"version {version} is not {VERSION}")
    if flag == 1:
        raise UnsupportedFormatError("delta packet: v3 does not name its baseline, so it cannot be applied")
    if flag:
        raise FormatError(f"delta flag {flag} is neither 0 nor 1")
    if algorithm >= len(ALGORITHMS):
        raise UnsupportedFormatError(f"algorithm {algorithm} is above {len(ALGORITHMS) - 1}")
    if mode >= len(MODES):
        raise UnsupportedFormatError(f"mode {mode} is above {len(MODES) - 1}")
    payload = view[V3_HEADER_BYTES:]
    if compressed != len(payload):
        raise FormatError(f"header names {compressed} payload bytes, {len(payload)} are there")
    if original == 0:
        raise FormatError("header names an empty state")
    if original > max_bytes:
        raise LimitExceededError(f"state of {original} bytes is above the limit of {max_bytes}")
    name = ALGORITHMS[algorithm]
    if name == "none":
        content = bytes(payload) if len(payload) == original else b""
    elif name == "lz4":
        content = decode_lz4(payload, original)
    else:
        content = decode_zstd(payload, original)
    if len(content) != original:
        raise FormatError(f"header names a state of {original} bytes, not what the payload gives")
    return V3Packet(content, name, MODES[mode], len(view))
