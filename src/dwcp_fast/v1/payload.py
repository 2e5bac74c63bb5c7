"""Bounded zstd and LZ4 frames, as v1 and upstream v3 carry them.

Neither wire format says how large the content is, and the frames themselves may lie. So a zstd frame
is walked block by block first: its exact end and the bounds of its content are known before any byte
of output is allocated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import lz4.frame
import zstandard

from dwcp_fast.errors import FormatError, IntegrityError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.v1._v1engine import measure_zstd_frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

__all__ = ["MAX_ZSTD_WINDOW_BYTES", "decode_lz4", "decode_zstd", "encode_lz4", "encode_zstd", "view_bytes"]

MAX_ZSTD_WINDOW_BYTES: Final = 1 << 28
"""The largest window a v1 peer reads; larger ones are refused here as well."""

LZ4_MAX_RATIO: Final = 255
"""No LZ4 block expands further than this, so a larger claim is false."""


def view_bytes(data: Buffer) -> memoryview:
    """View a C-contiguous buffer as plain bytes, without a copy.

    Args:
        data: Any object with the buffer protocol.

    Returns:
        A one-dimensional view of unsigned bytes.

    Raises:
        TypeError: `data` is no buffer, or is not C-contiguous.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise TypeError("buffer is not contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")


def encode_zstd(data: Buffer, level: int) -> bytes:
    """Compress into one frame with content size and content checksum.

    Args:
        data: What to compress.
        level: libzstd level, 1 to 19.

    Returns:
        The frame.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return compressor.compress(view_bytes(data))


def decode_zstd(payload: Buffer, max_bytes: int, dictionaries: Mapping[int, bytes] | None = None) -> bytes:
    """Decompress exactly one zstd frame with nothing after it.

    Args:
        payload: The frame.
        max_bytes: The most bytes of output to allow.
        dictionaries: Dictionaries held, by the ID a frame names.

    Returns:
        The content, at most `max_bytes` long.

    Raises:
        FormatError: Not one whole zstd frame, or a declared size its blocks cannot have.
        IntegrityError: The content checksum does not match.
        LimitExceededError: The content or the window is above its limit.
        UnsupportedFormatError: The frame needs a dictionary that is not held.
    """
    view = view_bytes(payload)
    frame_bytes, least, most, declared, window, dictionary_id = measure_zstd_frame(view)
    if frame_bytes != len(view):
        raise FormatError(f"{len(view) - frame_bytes} bytes after the zstd frame of {frame_bytes}")
    smallest = least if declared < 0 else declared
    if smallest > max_bytes:
        raise LimitExceededError(f"zstd frame gives {smallest} bytes, above the limit of {max_bytes}")
    if declared >= 0 and not least <= declared <= most:
        raise FormatError(f"zstd frame declares {declared} bytes, but its blocks give {least} to {most}")
    if declared < 0 and window > MAX_ZSTD_WINDOW_BYTES:
        raise LimitExceededError(
            f"zstd window of {window} bytes is above the limit of {MAX_ZSTD_WINDOW_BYTES}"
        )
    dictionary = None
    if dictionary_id:
        if dictionaries is None or dictionary_id not in dictionaries:
            raise UnsupportedFormatError(
                f"zstd frame needs dictionary {dictionary_id:#010x}, which is not held"
            )
        dictionary = zstandard.ZstdCompressionDict(dictionaries[dictionary_id])
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=MAX_ZSTD_WINDOW_BYTES)
    room = min(most, max_bytes)
    try:
        content = decompressor.decompress(view, max_output_size=max(room, 1), allow_extra_data=False)
    except zstandard.ZstdError as exc:
        reason = str(exc)
        if "checksum" in reason:
            raise IntegrityError("zstd content checksum does not match") from exc
        if declared < 0 and room < most and ("too small" in reason or "full frame" in reason):
            raise LimitExceededError(f"zstd frame gives more than the limit of {max_bytes} bytes") from exc
        raise FormatError(f"zstd frame cannot be decoded: {reason.lower()}") from exc
    if declared >= 0 and len(content) != declared:
        raise FormatError(f"zstd frame declares {declared} bytes and gives {len(content)}")
    return content


def encode_lz4(data: Buffer) -> bytes:
    """Compress into one LZ4 frame laid out as upstream v3 writes it.

    Args:
        data: What to compress.

    Returns:
        A frame of independent blocks of at most 4 MiB, with a content checksum and no content size.
    """
    frame: bytes = lz4.frame.compress(
        view_bytes(data),
        block_size=lz4.frame.BLOCKSIZE_MAX4MB,
        block_linked=False,
        content_checksum=True,
        store_size=False,
    )
    return frame


def decode_lz4(payload: Buffer, size: int) -> bytes:
    """Decompress exactly one LZ4 frame of a known content size.

    Args:
        payload: The frame.
        size: The content size in bytes the packet header gives; the caller has checked it against its limit.

    Returns:
        The content, exactly `size` bytes.

    Raises:
        FormatError: Not one whole LZ4 frame, or another content size.
        IntegrityError: A checksum does not match.
    """
    view = view_bytes(payload)
    if size > LZ4_MAX_RATIO * len(view):
        raise FormatError(f"LZ4 frame of {len(view)} bytes cannot give {size}")
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        content: bytes = decompressor.decompress(view, max_length=size + 1)
    except RuntimeError as exc:
        reason = str(exc)
        if "checksum" in reason.lower():
            raise IntegrityError("LZ4 content checksum does not match") from exc
        raise FormatError(f"LZ4 frame cannot be decoded: {reason}") from exc
    if len(content) != size:
        raise FormatError(f"LZ4 frame gives {len(content)} bytes or more, not {size}")
    if not decompressor.eof or decompressor.unused_data:
        raise FormatError(f"LZ4 frame does not end with the packet at {len(view)} bytes")
    return content
