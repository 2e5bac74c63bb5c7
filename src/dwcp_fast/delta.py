"""Patches: the difference of two versions of the same state, checked against the base before it is applied.

A patch (``DWCD``) tells each block of the new version in the cheapest way: as in the base, by what differs
from the base at the same place, by where its content is elsewhere in the base or earlier in the new
version, or in full. It names the exact base it was made from by its tree digest, and carries a digest of
every block. Applying it to any other version but the one it makes raises
:class:`~dwcp_fast.errors.BaseMismatchError` before a byte is written.

Patches may stand one behind the other, each for the version that the one before makes: a chain, which is
taken wherever a patch is.

Applying is idempotent: what is the new version already is left, or given back, as it is, and what is a
version in the middle of a chain goes on from there.

Buffers are taken as in :mod:`dwcp_fast.codec`: C-contiguous, without copying, the interpreter released.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Final, Literal

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.dictionary import Dictionary, native
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import check_block_bytes, check_threads
from dwcp_fast.patchinfo import PatchInfo, max_patch_length
from dwcp_fast.staging import staged

__all__ = [
    "PatchInfo",
    "Snapshot",
    "apply",
    "apply_files",
    "apply_into",
    "apply_onto",
    "apply_together",
    "diff_files",
    "encode",
    "encode_into",
    "info",
    "max_patch_length",
    "recover",
]

WIDTHS: Final = {
    **dict.fromkeys(("int8", "uint8", "bool", "fp8"), 1),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("fp32", "float32", "int32", "uint32"), 4),
    **dict.fromkeys(("fp64", "float64", "int64", "uint64"), 8),
}
"""Bytes of an element by the name of its type."""

DEFAULT_BLOCK_BYTES: Final = 1 << 20


def encode(
    old: BufferLike,
    new: BufferLike,
    *,
    dtype: str | None = None,
    codec: str = "zstd:1",
    dictionary: Dictionary | None = None,
    block_bytes: int | None = None,
    search: bool = True,
    threads: int = 1,
) -> bytes:
    """Make the patch that turns `old` into `new`; they may differ in length.

    Args:
        old: The version that the other side holds.
        new: The version that it shall hold.
        dtype: Type of the elements (``"bf16"``, ``"fp16"``, ``"fp32"``, ``"fp64"``, ``"int64"`` and so on),
            which makes patches of numbers smaller; None to find it out block by block.
        codec: Codec of what is told in full: ``"none"``, ``"lz4"``,
            ``"lz4:ACCELERATION"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        dictionary: What blocks of up to 128 KiB are made with where nothing else is smaller. Whoever applies
            the patch needs it, too.
        block_bytes: Length of a block: a power of two, 64 KiB to 4 MiB; None for 4 MiB where much has moved
            or is new, and 1 MiB otherwise.
        search: Whether to look for content that moved, where a block is not much like the base's.
        threads: How many threads work on it, 1 to 256. The patch does not depend on it.

    Returns:
        The patch.

    Raises:
        ConfigError: An option cannot be used.
        BufferError: A buffer is not C-contiguous.

    >>> old = bytes(200_000)
    >>> new = old[:-1] + b"!"
    >>> patch = encode(old, new)
    >>> len(patch) < 1000, apply(patch, old) == new
    (True, True)
    """
    options = checked(dtype, codec, dictionary, block_bytes, search, threads)
    return _core.patch_encode(old, new, *options)


def encode_into(
    old: BufferLike,
    new: BufferLike,
    out: BufferLike,
    *,
    dtype: str | None = None,
    codec: str = "zstd:1",
    dictionary: Dictionary | None = None,
    block_bytes: int | None = None,
    search: bool = True,
    threads: int = 1,
) -> int:
    """Write the patch that turns `old` into `new` to a buffer of the caller's, best one that is used again.

    Args:
        old: As for :func:`encode`, as all that is not told here.
        new: As for :func:`encode`.
        out: A writable buffer that shares no memory with the others; :func:`max_patch_length` tells a length
            that always suffices. After an error its content is unspecified.
        dtype: As for :func:`encode`.
        codec: As for :func:`encode`.
        dictionary: As for :func:`encode`.
        block_bytes: As for :func:`encode`.
        search: As for :func:`encode`.
        threads: As for :func:`encode`.

    Returns:
        How many bytes the patch has, at the start of `out`; it is the one that :func:`encode` makes.

    Raises:
        ConfigError: `out` is too small, or an option cannot be used.
        BufferError: A buffer is not C-contiguous, or `out` is read-only.
        ValueError: `out` shares memory with another buffer.

    >>> out = bytearray(max_patch_length(9))
    >>> length = encode_into(b"version 1", b"version 2", out)
    >>> apply(memoryview(out)[:length], b"version 1")
    b'version 2'
    """
    options = checked(dtype, codec, dictionary, block_bytes, search, threads)
    return _core.patch_encode_into(old, new, out, *options)


def apply(
    patch: BufferLike, old: BufferLike, *, threads: int = 1, dictionary: Dictionary | None = None
) -> bytes:
    """Make the new version from a patch and the old one.

    :func:`apply_onto` is faster: new memory costs more than the rest of the work.

    Args:
        patch: What :func:`encode` made, or several of these, one behind the other.
        old: The exact version the patch was made from, or the one that it makes.
        threads: How many threads work on it, 1 to 256.
        dictionary: What the patch was made with, if it was: :func:`info` tells which it needs.

    Returns:
        The new version, every block verified.

    Raises:
        BaseMismatchError: `old` is neither of them.
        FormatError: The patch is damaged.
        ConfigError: `threads` cannot be used.
        BufferError: A buffer is not C-contiguous.
    """
    check_threads(threads)
    return _core.patch_apply(patch, old, threads, native(dictionary))


def apply_onto(
    patch: BufferLike,
    old: BufferLike,
    out: BufferLike,
    *,
    threads: int = 1,
    dictionary: Dictionary | None = None,
) -> None:
    """Write the new version to a buffer of the caller's; best to one that is used again and again.

    Args:
        patch: As for :func:`apply`.
        old: As for :func:`apply`.
        out: A writable buffer with the length of the new version that shares no memory with the others.
            After an error its content is unspecified.
        threads: As for :func:`apply`.
        dictionary: As for :func:`apply`.

    Raises:
        BaseMismatchError: `old` is neither of them.
        DeltaError: `out` has another length than the new version.
        FormatError: The patch is damaged.
        ConfigError: `threads` cannot be used.
        BufferError: A buffer is not C-contiguous, or `out` is read-only.
        ValueError: `out` shares memory with another buffer.

    >>> out = bytearray(9)
    >>> apply_onto(encode(b"version 1", b"version 2"), b"version 1", out)
    >>> out
    bytearray(b'version 2')
    """
    check_threads(threads)
    _core.patch_apply_onto(patch, old, out, threads, native(dictionary))


def apply_into(
    patch: BufferLike, old: BufferLike, *, threads: int = 1, dictionary: Dictionary | None = None
) -> None:
    """Turn a buffer with the old version into the new version, in place.

    On an error it is as it was: every changed block is verified, and what was changed before is changed back.

    Args:
        patch: As for :func:`apply`, between versions of the same length.
        old: A writable buffer with the exact version the patch was made from, or the one that it makes.
        threads: As for :func:`apply`.
        dictionary: As for :func:`apply`.

    Raises:
        BaseMismatchError: `old` holds neither of them; it is unchanged.
        DeltaError: The versions differ in length.
        FormatError: The patch is damaged; `old` is unchanged.
        ConfigError: `threads` cannot be used.
        BufferError: A buffer is not C-contiguous, or `old` is read-only.

    >>> held = bytearray(b"version 1")
    >>> apply_into(encode(b"version 1", b"version 2"), held)
    >>> held
    bytearray(b'version 2')
    """
    check_threads(threads)
    _core.patch_apply_in_place(patch, old, threads, native(dictionary))


def info(patch: BufferLike) -> PatchInfo:
    """Read what a patch says of itself, without applying it.

    Args:
        patch: As for :func:`apply`.

    Returns:
        Lengths, digests and the number of blocks of each kind.

    Raises:
        FormatError: `patch` is no patch, or damaged.

    >>> info(encode(b"version 1", b"version 2")).target_bytes
    9
    """
    return PatchInfo(**_core.patch_info(patch))


class Snapshot:
    """A held version: the sender makes patches of the next version from it, the receiver applies them to it.

    The digests of its blocks are kept, so that a version is hashed once and not for every patch. Every
    method that changes the version does all of it or, when it raises, nothing; only an interruption
    (:class:`KeyboardInterrupt`) may come when all is done, which `digest` tells. If that is so the patch is
    lost, and receivers need the whole version. Methods may be called from any thread, one at a time, but not
    with views of the version that they change (:class:`ValueError`).

    >>> sender, receiver = Snapshot(b"version 1"), Snapshot(b"version 1")
    >>> receiver.apply(sender.advance(b"version 2"))
    >>> bytes(receiver.view()), receiver.digest == sender.digest
    (b'version 2', True)
    """

    def __init__(
        self,
        data: BufferLike,
        *,
        dtype: str | None = None,
        codec: str = "zstd:1",
        block_bytes: int = DEFAULT_BLOCK_BYTES,
        search: bool = True,
        threads: int = 1,
    ) -> None:
        """Copy and hash a version.

        Args:
            data: The version.
            dtype: As for :func:`encode`; the elements of masks and indices are of this type, bytes if it is
                None.
            codec: As for :func:`encode`.
            block_bytes: Length of a block: a power of two, 64 KiB to 4 MiB; the patches that are applied must
                have the same.
            search: As for :func:`encode`.
            threads: How many threads hash it, 1 to 256.

        Raises:
            ConfigError: An option cannot be used.
            BufferError: `data` is not C-contiguous.
        """
        check_block_bytes(block_bytes)
        check_threads(threads)
        self._held = _core.Snapshot(data, width_of(dtype), codec, block_bytes, search, threads)

    @property
    def size(self) -> int:
        """Length of the version in bytes."""
        return len(self._held)

    @property
    def block_bytes(self) -> int:
        """Length of a block."""
        return self._held.block_bytes

    @property
    def is_viewed(self) -> bool:
        """Whether there is a view of the version."""
        return self._held.is_viewed

    @property
    def digest(self) -> str:
        """Tree digest of the version, in hex: ``target_digest`` of the patch that led to it."""
        return self._held.digest

    def view(self) -> memoryview:
        """Give the version itself, to read; it changes under the view when the version does.

        While there is a view the version can only become one of the same length: others raise
        :class:`BufferError`.
        """
        return memoryview(self._held)

    def advance(self, new: BufferLike, *, threads: int = 1) -> bytes:
        """Make the patch to `new`, and hold `new` from then on.

        Args:
            new: The next version.
            threads: How many threads work on it, 1 to 256. The patch does not depend on it.

        Returns:
            The patch.

        Raises:
            ConfigError: `threads` cannot be used.
            BufferError: `new` is not C-contiguous, or of another length while there is a view.
        """
        check_threads(threads)
        return self._held.advance(new, threads)

    def advance_masked(
        self, new: BufferLike, mask: BufferLike, *, packed: bool = False, threads: int = 1
    ) -> bytes:
        """Make the patch to a version that differs only in some elements; the others are not read.

        Args:
            new: The next version, of the same length.
            mask: For each element a byte that is not 0 if it may have changed, as of a bool array.
            packed: Whether the mask has a bit for each element instead, the low bit of a byte first.
            threads: As for :meth:`advance`.

        Returns:
            The patch.

        Raises:
            DeltaError: `new` or `mask` has another length.
            ConfigError: `threads` cannot be used.
            BufferError: A buffer is not C-contiguous.
        """
        check_threads(threads)
        return self._held.advance_masked(new, mask, packed, threads)

    def advance_sparse(self, index: BufferLike, values: BufferLike, *, threads: int = 1) -> bytes:
        """Make the patch to a version in which some elements have other values.

        Args:
            index: The numbers of the elements, as integers of 4 or 8 bytes, in any order, each once.
            values: Their new values, in the same order.
            threads: As for :meth:`advance`.

        Returns:
            The patch.

        Raises:
            DeltaError: An element is named twice or does not exist, or there are not as many values.
            ConfigError: `threads` cannot be used.
            BufferError: A buffer is not C-contiguous.
        """
        check_threads(threads)
        return self._held.advance_sparse(index, values, threads)

    def apply(self, patch: BufferLike, *, threads: int = 1) -> None:
        """Hold the version that a patch makes of the one held, in place if it keeps the length.

        Args:
            patch: One patch, made with the same `block_bytes`.
            threads: As for :meth:`advance`.

        Raises:
            BaseMismatchError: The patch is for another version, and makes another.
            FormatError: The patch is damaged, or has other blocks.
            ConfigError: `threads` cannot be used.
            BufferError: The length changes while there is a view.
        """
        check_threads(threads)
        self._held.apply(patch, threads)

    def fork(self, patch: BufferLike, *, reuse: "Snapshot | None" = None, threads: int = 1) -> "Snapshot":
        """Hold the version that a patch makes of this one in another snapshot; this one stays as it is.

        Every block of the new version is proven. This one is not hashed again if its blocks are as long as
        those of the patch, as the new snapshot's are.

        Args:
            patch: One patch.
            reuse: A snapshot whose memory is taken if it is as long as the new version and nobody looks at
                it, which is several times faster than new memory. It is empty then.
            threads: As for :meth:`advance`.

        Returns:
            The new version, with the options of this one.

        Raises:
            BaseMismatchError: The patch is for another version.
            FormatError: The patch is damaged.
            ConfigError: `threads` cannot be used.

        >>> first = Snapshot(b"version 1")
        >>> bytes(first.fork(encode(b"version 1", b"version 2")).view())
        b'version 2'
        """
        check_threads(threads)
        forked = Snapshot.__new__(Snapshot)
        memory = None if reuse is None else reuse._held  # noqa: SLF001 - of the same class
        forked._held = self._held.fork(patch, memory, threads)  # noqa: SLF001 - as above
        return forked


def apply_together(changes: Sequence[tuple[Snapshot, BufferLike]], *, threads: int = 1) -> None:
    """Apply patches to several snapshots in place: to all of them or, when it raises, to none.

    Args:
        changes: Snapshots, none of them twice, each with a patch as for :meth:`Snapshot.apply`.
        threads: As for :meth:`Snapshot.apply`.

    Raises:
        BaseMismatchError: As for :meth:`Snapshot.apply`.
        FormatError: As for :meth:`Snapshot.apply`.
        ConfigError: `threads` cannot be used.
        BufferError: There is a view of one of them.
        ValueError: A snapshot is there twice.
    """
    check_threads(threads)
    parts = [(snapshot._held, patch) for snapshot, patch in changes]  # noqa: SLF001 - this module's own
    _core.snapshots_apply(parts, threads)


def diff_files(
    old: str | PathLike[str],
    new: str | PathLike[str],
    patch: str | PathLike[str],
    *,
    dtype: str | None = None,
    codec: str = "zstd:1",
    dictionary: Dictionary | None = None,
    block_bytes: int | None = None,
    search: bool = True,
    threads: int = 1,
) -> PatchInfo:
    """Write the patch between two files; the patch appears under its name only when it is complete.

    Files may have any length: memory is taken for some blocks of them, and up to 64 MiB for what is looked
    up.

    Args:
        old: File with the old version.
        new: File with the new version.
        patch: File to write.
        dtype: As for :func:`encode`.
        codec: As for :func:`encode`.
        dictionary: As for :func:`encode`.
        block_bytes: As for :func:`encode`.
        search: As for :func:`encode`.
        threads: As for :func:`encode`.

    Returns:
        What the patch says of itself.

    Raises:
        OSError: A file cannot be read or written.
        DeltaError: A file was being changed in place when that ended: see :func:`recover`.
        ConfigError: An option cannot be used.
    """
    options = checked(dtype, codec, dictionary, block_bytes, search, threads)
    with staged(Path(patch)) as out:
        told = _core.patch_encode_files(Path(old), Path(new), out, *options)
    return PatchInfo(**told)


def apply_files(
    patch: str | PathLike[str],
    old: str | PathLike[str],
    new: str | PathLike[str] | None = None,
    *,
    in_place: bool = False,
    threads: int = 1,
    dictionary: Dictionary | None = None,
) -> PatchInfo:
    """Write the new version of a file; `new` appears, or is replaced, only when it is verified.

    In place only the blocks that change are written, twice: to a journal beside the file, and to the file
    when all of them are there and verified. However this ends, also by a kill, the file is the old or the
    new version, or the journal is there, and the same call made again, or :func:`recover`, finishes it.
    Meanwhile readers may see a mix.

    Args:
        patch: File with the patch, or several of them, one behind the other.
        old: File with the exact version the patch was made from, or the one that it makes.
        new: File to write; may be `old`, which is then replaced as one step. Not with `in_place`.
        in_place: Whether to change `old` itself.
        threads: How many threads work on it, 1 to 256.
        dictionary: As for :func:`apply`.

    Returns:
        What the patch says of itself.

    Raises:
        OSError: A file cannot be read or written.
        BaseMismatchError: `old` is neither of them, or another dictionary is needed; the message names it.
        DeltaError: `old` was being changed in place when that ended: see :func:`recover`.
        FormatError: The patch is damaged.
        ConfigError: An option cannot be used.
    """
    check_threads(threads)
    if in_place:
        if new is not None:
            raise ConfigError(f"new is {str(new)!r}, but the change is to be made in place")
        return PatchInfo(
            **_core.patch_apply_in_place_files(Path(patch), Path(old), threads, native(dictionary))
        )
    if new is None:
        raise ConfigError("new is missing: name a file to write, or change the old one in place")
    with staged(Path(new), like=Path(old)) as out:
        told = _core.patch_apply_files(Path(patch), Path(old), out, threads, native(dictionary))
    return PatchInfo(**told)


def recover(file: str | PathLike[str]) -> Literal["nothing", "discarded", "finished"]:
    """Finish or take back a change of a file in place that ended before it was done.

    Args:
        file: The file that was to be changed.

    Returns:
        What there was to do: ``"nothing"``, or the journal was ``"discarded"`` and the file is the old
        version, or the change is ``"finished"`` now and the file is the new one.

    Raises:
        OSError: The file or its journal cannot be read or written, or is in use.
        IntegrityError: The journal is not of this file as it is now; both are left as they are.
    """
    return _core.patch_recover(Path(file))


def checked(
    dtype: str | None,
    codec: str,
    dictionary: Dictionary | None,
    block_bytes: int | None,
    search: bool,
    threads: int,
) -> tuple[int | None, str, _core.Dictionary | None, int | None, bool, int]:
    """Give the options of :func:`encode` as the native module takes them."""
    if block_bytes is not None:
        check_block_bytes(block_bytes)
    check_threads(threads)
    return width_of(dtype), codec, native(dictionary), block_bytes, search, threads


def width_of(dtype: str | None) -> int | None:
    """Give the bytes of an element."""
    if dtype is None:
        return None
    try:
        return WIDTHS[dtype]
    except KeyError:
        raise ConfigError(f"dtype {dtype!r} is not known: it must be one of {', '.join(WIDTHS)}") from None
