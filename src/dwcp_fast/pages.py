"""Pages of a memory, compressed together in one call.

A page of 4 KiB compressed alone costs a call and a table of its own, and finds nothing in its neighbours.
Bring together about a MiB of pages at a time: they stay in the cache, and are as fast as one buffer.

>>> import array
>>> memory = bytearray(b"page by page... " * 256 * 8)
>>> dirty = array.array("Q", [1, 6])
>>> packed = compress_pages(memory, dirty)
>>> held = bytearray(len(memory))
>>> decompress_pages_into(packed, held, dirty)
>>> held[4096:8192] == memory[4096:8192], any(held[:4096])
(True, False)
"""

from typing import Final

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import ConfigError

__all__ = ["MAX_BATCH_BYTES", "compress_pages", "decompress_pages_into"]

MAX_BATCH_BYTES: Final = 64 << 20
"""Bytes that the pages of one call may have together."""


def compress_pages(
    memory: BufferLike,
    pages: BufferLike,
    *,
    page_bytes: int = 4096,
    codec: str = "auto",
    checksum: bool = False,
) -> bytes:
    """Compress pages of a memory into one container (``DWCB``) of the pages one behind the other.

    Args:
        memory: The memory, of which only these pages are read.
        pages: Numbers of the pages: integers of 8 bytes each (numpy ``uint64`` or ``int64``, ``array("Q")``).
        page_bytes: Length of a page in bytes.
        codec: As for :func:`~dwcp_fast.compress`.
        checksum: As for :func:`~dwcp_fast.compress`.

    Returns:
        The container.

    Raises:
        ConfigError: There is no such page, `page_bytes` is below 1, `pages` has items of another size, or
            the codec is not known.
        LimitExceededError: The pages have more than 64 MiB together.
        BufferError: A buffer is not C-contiguous.
    """
    return _core.compress_pages(
        memory, checked(pages, page_bytes), page_bytes, codec, checksum, MAX_BATCH_BYTES
    )


def decompress_pages_into(
    packed: BufferLike, memory: BufferLike, pages: BufferLike, *, page_bytes: int = 4096
) -> None:
    """Decompress pages to their places in a memory.

    The memory is written to only when all pages are decoded and, with a checksum, verified.

    Args:
        packed: What :func:`compress_pages` made.
        memory: A writable buffer.
        pages: Numbers of the places, in the order of the pages, as for :func:`compress_pages`.
        page_bytes: Length of a page in bytes.

    Raises:
        ConfigError: There is no such page, `page_bytes` is below 1, or `pages` has items of another size.
        FormatError: `packed` is damaged, or holds another number of pages.
        IntegrityError: The digest does not match.
        LimitExceededError: The pages have more than 64 MiB together.
        ValueError: Buffers share memory.
        BufferError: A buffer is not C-contiguous, or `memory` is read-only.
    """
    _core.decompress_pages_into(packed, memory, checked(pages, page_bytes), page_bytes, MAX_BATCH_BYTES)


def checked(pages: BufferLike, page_bytes: int) -> BufferLike:
    """Refuse page numbers that are not 8 bytes each, which would silently be other numbers."""
    if page_bytes < 1:
        raise ConfigError(f"page_bytes is {page_bytes}: it must be 1 or more")
    item_bytes = memoryview(pages).itemsize
    if item_bytes != 8:
        raise ConfigError(f"pages has items of {item_bytes} bytes: page numbers have 8")
    return pages
