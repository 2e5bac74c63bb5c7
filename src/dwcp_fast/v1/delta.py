"""Bodies of v1's DeltaEncoder: xor and rsync, with the algorithm always named.

Nothing in a body says which algorithm, block size or original size it has, so all three come from
the caller. Upstream's "auto" guesses and returns wrong data without an error; it is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import xxhash

from dwcp_fast.errors import BaseMismatchError, FormatError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.v1._v1engine import apply_rsync, xor_longest
from dwcp_fast.v1.options import DEFAULT_MAX_BYTES, check_range
from dwcp_fast.v1.payload import decode_zstd, encode_zstd, view_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DEFAULT_BLOCK_BYTES", "DeltaAlgorithm", "decode_delta", "encode_delta"]

DeltaAlgorithm: TypeAlias = Literal["xor", "rsync"]
DEFAULT_BLOCK_BYTES: Final = 4096
MAX_FIELD: Final = (1 << 32) - 1
INSTRUCTION_BYTES: Final = 5


def check_algorithm(algorithm: str) -> None:
    """Refuse every algorithm a body cannot be read by without guessing."""
    if algorithm not in ("xor", "rsync"):
        raise UnsupportedFormatError(
            f"delta algorithm {algorithm!r} is not xor or rsync",
            hint="a v1 delta body does not name its algorithm; ask the sender which one it used",
        )


def encode_delta(
    base: Buffer,
    current: Buffer,
    *,
    algorithm: DeltaAlgorithm,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    wrapped: bool = False,
) -> bytes:
    """Write `current` as a delta against `base`.

    Args:
        base: The state the receiver holds.
        current: The new state.
        algorithm: "xor" or "rsync".
        block_bytes: Block size of rsync.
        wrapped: Put the body into a zstd frame, as upstream's DeltaEncoder does.

    Returns:
        The body. The receiver needs algorithm, block size and `len(current)` from elsewhere.

    Raises:
        UnsupportedFormatError: Another algorithm.
        ConfigError: `block_bytes` is out of range.
        LimitExceededError: A position or length does not fit rsync's 32-bit fields.
    """
    check_algorithm(algorithm)
    check_range("block_bytes", block_bytes, 1, MAX_FIELD)
    if algorithm == "xor":
        body = xor_longest(view_bytes(base), view_bytes(current))
    else:
        body = _match_blocks(view_bytes(base), view_bytes(current), block_bytes)
    return encode_zstd(body, 3) if wrapped else body


def _match_blocks(base: memoryview, current: memoryview, block_bytes: int) -> bytes:
    """Copy the blocks of `current` that are equal to some block of `base`, byte for byte."""
    if len(base) > MAX_FIELD:
        raise LimitExceededError(f"baseline of {len(base)} bytes is above the rsync limit of {MAX_FIELD}")
    places: dict[bytes, int] = {}
    for at in range(0, len(base) - block_bytes + 1, block_bytes):
        places[xxhash.xxh3_128_digest(base[at : at + block_bytes])] = at
    body = bytearray()
    for at in range(0, len(current), block_bytes):
        block = current[at : at + block_bytes]
        place = places.get(xxhash.xxh3_128_digest(block)) if len(block) == block_bytes else None
        # Upstream trusts its 32-bit sum and corrupts on a collision; equal bytes are the only proof.
        if place is not None and base[place : place + block_bytes] == block:
            body += b"\xff" + place.to_bytes(4, "big")
        else:
            body += b"\x00" + len(block).to_bytes(4, "big")
            body += block
    return bytes(body)


def decode_delta(
    body: Buffer,
    base: Buffer,
    *,
    algorithm: DeltaAlgorithm,
    original_bytes: int,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    wrapped: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> bytes:
    """Rebuild the state a delta was made of.

    Args:
        body: The delta.
        base: The state it was made against.
        algorithm: "xor" or "rsync", as the sender used it.
        original_bytes: Length of the state; the body does not say.
        block_bytes: Block size the sender's rsync used.
        wrapped: Whether the body is inside a zstd frame.
        max_bytes: The most bytes to allow for the state.

    Returns:
        The state, exactly `original_bytes` long.

    Raises:
        UnsupportedFormatError: Another algorithm.
        ConfigError: `block_bytes` or `original_bytes` is out of range.
        FormatError: The body is malformed or gives another length.
        BaseMismatchError: An xor body cannot belong to this baseline.
        LimitExceededError: The state is above `max_bytes`.
    """
    check_algorithm(algorithm)
    check_range("block_bytes", block_bytes, 1, MAX_FIELD)
    check_range("original_bytes", original_bytes, 0, 1 << 62)
    if original_bytes > max_bytes:
        raise LimitExceededError(f"state of {original_bytes} bytes is above the limit of {max_bytes}")
    held = view_bytes(base)
    # The engine reads a body twice without the GIL: once to check it, once to run it.
    plain = view_bytes(body if isinstance(body, bytes) else bytes(view_bytes(body)))
    if wrapped:
        # An instruction carries at least one byte, so a body is never larger than this.
        most = max(len(held), original_bytes * (INSTRUCTION_BYTES + 1))
        plain = view_bytes(decode_zstd(plain, most))
    if algorithm == "rsync":
        return apply_rsync(plain, held, block_bytes, original_bytes)
    if len(plain) != max(len(held), original_bytes):
        raise FormatError(
            f"xor body of {len(plain)} bytes does not fit a baseline of {len(held)} "
            f"and a state of {original_bytes}"
        )
    if plain[original_bytes:] != held[original_bytes:]:
        raise BaseMismatchError("xor body ends with other bytes than the baseline it is applied to")
    return xor_longest(held[:original_bytes], plain[:original_bytes])
