"""What a patch says of itself, and how long it may be."""

from dataclasses import asdict, dataclass
from typing import Any

from dwcp_fast import _core
from dwcp_fast.options import MAX_OBJECT_BYTES, check_int

__all__ = ["PatchInfo", "max_patch_length"]


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says of itself.

    Attributes:
        patches: Number of patches, more than one in a chain; blocks and lengths of patches are those of all.
        base_bytes: Length of the version it applies to.
        base_digest: Tree digest of that version, in hex.
        target_bytes: Length of the version it makes.
        target_digest: Tree digest of that version, in hex.
        block_bytes: Length of a block.
        blocks: Number of blocks of the target.
        blocks_same: Blocks that are as in the base.
        blocks_plain: Blocks told in full.
        blocks_fill: Blocks of one repeated byte.
        blocks_planes: Blocks told in full, by the bytes of their elements.
        blocks_difference: Blocks told by the bytes of the differences of their elements from the base's.
        blocks_sparse: Blocks told by the elements that changed.
        blocks_runs: Blocks told by the runs of bytes that changed.
        blocks_copy: Blocks made of parts of the base and of the target before them.
        blocks_splice: Blocks made of such parts and of new bytes.
        patch_bytes: Length of the patch itself.
        dictionary: Digest of the dictionary that it needs to be applied, if it needs one.
    """

    patches: int
    base_bytes: int
    base_digest: str
    target_bytes: int
    target_digest: str
    block_bytes: int
    blocks: int
    blocks_same: int
    blocks_plain: int
    blocks_fill: int
    blocks_planes: int
    blocks_difference: int
    blocks_sparse: int
    blocks_runs: int
    blocks_copy: int
    blocks_splice: int
    patch_bytes: int
    dictionary: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self)


def max_patch_length(length: int) -> int:
    """Give the most bytes that a patch may have.

    Args:
        length: Length of the version that it makes.

    Returns:
        The bound, which holds for every base and whatever the options.

    Raises:
        ConfigError: No version has this length.

    >>> max_patch_length(1 << 20) - (1 << 20)
    480
    """
    check_int("length", length, 0, MAX_OBJECT_BYTES)
    return _core.max_patch_length(length)
