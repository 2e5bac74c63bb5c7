"""Compress and decompress buffers in one call.

Every function takes any C-contiguous buffer (``bytes``, ``bytearray``, ``memoryview``, ``mmap``, numpy and
Arrow arrays, ``PickleBuffer``) as raw bytes without copying it, and releases the interpreter while it works.
The buffer must not be written to by another thread meanwhile. A buffer that is not contiguous raises
:class:`BufferError`.
"""

from typing import Final

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.dictionary import Dictionary, native

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "compress",
    "compress_into",
    "decompress",
    "decompress_into",
    "digest",
    "max_compressed_length",
    "needed_dictionary",
]

DEFAULT_MAX_LENGTH: Final = 1 << 32
"""Bytes to which :func:`decompress` expands at most unless told otherwise."""


def compress(
    buf: BufferLike,
    codec: str = "auto",
    *,
    checksum: bool = False,
    dictionary: Dictionary | None = None,
) -> bytes:
    """Compress a buffer into a self-describing container (``DWCB``).

    Data that would not shrink is stored, so the result is at most 32 bytes longer than `buf`, digest
    included.

    Args:
        buf: The bytes to compress.
        codec: ``"none"``, ``"lz4"``, ``"lz4:ACCELERATION"``, ``"zstd"`` (level 3), ``"zstd:LEVEL"``, or
            ``"auto"``: zstd level 1 for what a quick probe finds compressible, none for the rest.
        checksum: Whether to add a 16-byte digest that :func:`decompress` checks.
        dictionary: What the data has in common with other data, for zstd; ``"auto"`` is then zstd level 1.

    Returns:
        The container.

    Raises:
        ConfigError: The codec is not known, its level out of range, or it takes no dictionary.
        LimitExceededError: lz4 was asked for more than 2 113 929 216 bytes.
        BufferError: `buf` is not C-contiguous.

    >>> packed = compress(b"state " * 1000, "zstd:1", checksum=True)
    >>> len(packed) < 100, decompress(packed) == b"state " * 1000
    (True, True)
    """
    return _core.compress(buf, codec, checksum, native(dictionary))


def compress_into(
    buf: BufferLike,
    out: BufferLike,
    codec: str = "auto",
    *,
    checksum: bool = False,
    dictionary: Dictionary | None = None,
) -> int:
    """Compress a buffer into one that exists.

    Args:
        buf: The bytes to compress.
        out: A writable buffer; :func:`max_compressed_length` tells a length that always suffices.
        codec: As for :func:`compress`.
        checksum: As for :func:`compress`.
        dictionary: As for :func:`compress`.

    Returns:
        The number of bytes written at the start of `out`.

    Raises:
        ConfigError: `out` is too small, or the codec is not known.
        ValueError: `buf` and `out` share memory.
        BufferError: A buffer is not C-contiguous, or `out` is read-only.

    >>> out = bytearray(max_compressed_length(6000))
    >>> length = compress_into(b"state " * 1000, out)
    >>> decompress(memoryview(out)[:length]) == b"state " * 1000
    True
    """
    return _core.compress_into(buf, out, codec, checksum, native(dictionary))


def decompress(
    buf: BufferLike, *, max_length: int = DEFAULT_MAX_LENGTH, dictionary: Dictionary | None = None
) -> bytes:
    """Decompress a container.

    Args:
        buf: What :func:`compress` made.
        max_length: Most bytes to expand to; checked before memory is taken.
        dictionary: The dictionary it was made with, if any; :func:`needed_dictionary` tells which.

    Returns:
        The bytes that were compressed.

    Raises:
        FormatError: `buf` is no container, or is damaged or cut short.
        IntegrityError: The digest in the container does not match.
        BaseMismatchError: It was made with a dictionary, and that was not given.
        UnsupportedFormatError: The container is of a later version.
        LimitExceededError: It would expand to more than `max_length` bytes.
        BufferError: `buf` is not C-contiguous.
    """
    return _core.decompress(buf, max_length, native(dictionary))


def decompress_into(buf: BufferLike, out: BufferLike, *, dictionary: Dictionary | None = None) -> int:
    """Decompress a container into a buffer that exists.

    After an error the content of `out` is unspecified.

    Args:
        buf: What :func:`compress` made.
        out: A writable buffer with room for the decompressed bytes.
        dictionary: As for :func:`decompress`.

    Returns:
        The number of bytes written at the start of `out`.

    Raises:
        ConfigError: `out` is too small; the message tells the length needed.
        FormatError: As for :func:`decompress`.
        ValueError: `buf` and `out` share memory.
        BufferError: A buffer is not C-contiguous, or `out` is read-only.

    >>> out = bytearray(5)
    >>> decompress_into(compress(b"state"), out), bytes(out)
    (5, b'state')
    """
    return _core.decompress_into(buf, out, native(dictionary))


def needed_dictionary(buf: BufferLike) -> str | None:
    """Tell which dictionary a container was made with.

    Args:
        buf: What :func:`compress` made; its first 48 bytes are enough.

    Returns:
        The :attr:`~dwcp_fast.Dictionary.digest` of the dictionary; None if there was none.

    Raises:
        FormatError: `buf` is no container.
    """
    return _core.needed_dictionary(buf)


def max_compressed_length(length: int) -> int:
    """Tell the length of a buffer that any container of `length` bytes fits in.

    Args:
        length: Number of bytes to compress.

    Returns:
        A number of bytes; what is written is usually far less.
    """
    return _core.max_compressed_length(length)


def digest(buf: BufferLike) -> bytes:
    """Compute the XXH3-128 digest of a buffer.

    It finds accidents, not forgeries.

    Args:
        buf: The bytes.

    Returns:
        16 bytes in canonical (big-endian) order.

    >>> digest(b"").hex()
    '99aa06d3014798d86001c324468d497f'
    """
    return _core.digest(buf)
