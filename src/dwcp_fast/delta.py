"""Patches: the difference of two versions of the same state, checked against the base before it is applied.

A patch (``DWCD``) compares the two versions block by block at the same offsets, names the exact base it was
made from by its tree digest, and carries a digest of every block. Applying it to anything else raises
:class:`~dwcp_fast.errors.BaseMismatchError` before a byte is written.

Buffers are taken as in :mod:`dwcp_fast.codec`: C-contiguous, without copying, the interpreter released.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import check_block_bytes

__all__ = ["PatchInfo", "apply", "apply_files", "apply_into", "diff_files", "encode", "info"]

WIDTHS: Final = {
    **dict.fromkeys(("int8", "uint8", "bool", "fp8"), 1),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("fp32", "float32", "int32", "uint32"), 4),
    **dict.fromkeys(("fp64", "float64", "int64", "uint64"), 8),
}
"""Bytes of an element by the name of its type."""

DEFAULT_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says of itself.

    Attributes:
        base_bytes: Length of the version it applies to.
        base_digest: Tree digest of that version, in hex.
        target_bytes: Length of the version it makes.
        target_digest: Tree digest of that version, in hex.
        block_bytes: Length of a block.
        element_bytes: Length of an element, 1, 2, 4 or 8.
        blocks: Number of blocks of the target.
        blocks_same: Blocks that are as in the base.
        blocks_fill: Blocks of one repeated byte.
        blocks_xor: Blocks told by their difference from the base.
        blocks_plain: Blocks told in full.
        patch_bytes: Length of the patch itself.
    """

    base_bytes: int
    base_digest: str
    target_bytes: int
    target_digest: str
    block_bytes: int
    element_bytes: int
    blocks: int
    blocks_same: int
    blocks_fill: int
    blocks_xor: int
    blocks_plain: int
    patch_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self)


def encode(
    old: BufferLike,
    new: BufferLike,
    *,
    dtype: str | None = None,
    codec: str = "zstd:1",
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> bytes:
    """Make the patch that turns `old` into `new`; they may differ in length.

    Args:
        old: The version that the other side holds.
        new: The version that it shall hold.
        dtype: Type of the elements (``"bf16"``, ``"fp16"``, ``"fp32"``, ``"fp64"``, ``"int64"`` and so on),
            which makes patches of numbers smaller; None for bytes.
        codec: Codec of what changed: ``"none"``, ``"lz4"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        block_bytes: Length of a block: a power of two, 64 KiB to 4 MiB.

    Returns:
        The patch.

    Raises:
        ConfigError: `dtype`, `codec` or `block_bytes` cannot be used.
        BufferError: A buffer is not C-contiguous.

    >>> old = bytes(200_000)
    >>> new = old[:-1] + b"!"
    >>> patch = encode(old, new)
    >>> len(patch) < 1000, apply(patch, old) == new
    (True, True)
    """
    return _core.patch_encode(old, new, width_of(dtype), codec, checked_block_bytes(block_bytes))


def apply(patch: BufferLike, old: BufferLike) -> bytes:
    """Make the new version from a patch and the old one.

    Args:
        patch: What :func:`encode` made.
        old: The exact version the patch was made from.

    Returns:
        The new version, every block verified.

    Raises:
        BaseMismatchError: `old` is another version.
        FormatError: The patch is damaged.
        BufferError: A buffer is not C-contiguous.
    """
    return _core.patch_apply(patch, old)


def apply_into(patch: BufferLike, old: BufferLike) -> None:
    """Turn a buffer with the old version into the new version, in place.

    Every changed block is decoded and verified before the first byte is written.

    Args:
        patch: What :func:`encode` made of two versions of the same length.
        old: A writable buffer with the exact version the patch was made from.

    Raises:
        BaseMismatchError: `old` holds another version; it is unchanged.
        DeltaError: The versions differ in length.
        FormatError: The patch is damaged; `old` is unchanged.
        BufferError: A buffer is not C-contiguous, or `old` is read-only.

    >>> held = bytearray(b"version 1")
    >>> apply_into(encode(b"version 1", b"version 2"), held)
    >>> held
    bytearray(b'version 2')
    """
    _core.patch_apply_in_place(patch, old)


def info(patch: BufferLike) -> PatchInfo:
    """Read what a patch says of itself, without applying it.

    Args:
        patch: What :func:`encode` made.

    Returns:
        Lengths, digests and the number of blocks of each kind.

    Raises:
        FormatError: `patch` is no patch, or damaged.

    >>> info(encode(b"version 1", b"version 2")).target_bytes
    9
    """
    return PatchInfo(**_core.patch_info(patch))


def diff_files(
    old: str | PathLike[str],
    new: str | PathLike[str],
    patch: str | PathLike[str],
    *,
    dtype: str | None = None,
    codec: str = "zstd:1",
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> PatchInfo:
    """Write the patch between two files; the patch appears under its name only when it is complete.

    Files are read block by block, whatever their length.

    Args:
        old: File with the old version.
        new: File with the new version.
        patch: File to write.
        dtype: As for :func:`encode`.
        codec: As for :func:`encode`.
        block_bytes: As for :func:`encode`.

    Returns:
        What the patch says of itself.

    Raises:
        OSError: A file cannot be read or written.
        ConfigError: `dtype` or `codec` cannot be used.
    """
    with staged(Path(patch)) as out:
        told = _core.patch_encode_files(
            Path(old), Path(new), out, width_of(dtype), codec, checked_block_bytes(block_bytes)
        )
    return PatchInfo(**told)


def apply_files(patch: str | PathLike[str], old: str | PathLike[str], new: str | PathLike[str]) -> PatchInfo:
    """Write the new version of a file; `new` appears, or is replaced, only when it is verified.

    Args:
        patch: File with the patch.
        old: File with the exact version the patch was made from.
        new: File to write; may be `old`, which is then replaced as one step.

    Returns:
        What the patch says of itself.

    Raises:
        OSError: A file cannot be read or written.
        BaseMismatchError: `old` is another version.
        FormatError: The patch is damaged.
    """
    with staged(Path(new), like=Path(old)) as out:
        told = _core.patch_apply_files(Path(patch), Path(old), out)
    return PatchInfo(**told)


def width_of(dtype: str | None) -> int:
    """Give the bytes of an element."""
    if dtype is None:
        return 1
    try:
        return WIDTHS[dtype]
    except KeyError:
        raise ConfigError(f"dtype {dtype!r} is not known: it must be one of {', '.join(WIDTHS)}") from None


def checked_block_bytes(value: int) -> int:
    """Refuse a block length that a patch has no room for."""
    check_block_bytes(value)
    return value


@contextmanager
def staged(target: Path, like: Path | None = None) -> Iterator[Path]:
    """Give a new file beside `target` that takes its place, on disk, when all went well."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    # Opened like any new file, so that the umask is the system's to apply.
    name = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield name
            if like is not None:
                os.fchmod(descriptor, like.stat().st_mode & 0o777)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        name.replace(target)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
