"""How long a block is."""

from typing import Final

from dwcp_fast.policy.choice import Choice

__all__ = ["BLOCK_BYTES", "choose_block_bytes"]

BLOCK_BYTES: Final = 1 << 20
FAR_BLOCK_BYTES: Final = 256 << 10
FAR_LEAST_BYTES: Final = 16 << 20
"""Fewer, in shorter blocks, would be given lanes that they are not worth: a lane for each block at most."""
FAR_MOST_BYTES: Final = 2 << 30
"""Of more than this the end is a small part."""


def choose_block_bytes(requested: int | None, *, far: bool, total_bytes: int) -> Choice[int]:
    """Choose the length of a block for buffers.

    Files keep one length wherever they go: what is remembered of them for later transfers is told by it.

    Args:
        requested: A length, None for a choice by rule.
        far: Whether the receiver is far.
        total_bytes: Of all that is to be sent.

    Returns:
        The length.
    """
    if requested is not None:
        return Choice("block_bytes", requested, "asked for")
    if far and FAR_LEAST_BYTES <= total_bytes <= FAR_MOST_BYTES:
        # Each of dozens of lanes carries a small part of what the link does: whichever has begun with a long
        # block last is waited for while the link stands empty.
        return Choice("block_bytes", FAR_BLOCK_BYTES, "the last block of a slow lane is waited for")
    return Choice("block_bytes", BLOCK_BYTES, "longer ones compress better and cost less work")
