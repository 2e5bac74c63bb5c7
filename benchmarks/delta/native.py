"""The kernels in C, compiled here with `cc`, and the C library of zstd, through ctypes."""

import ctypes
import ctypes.util
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
SOURCES = Path(__file__).with_name("native")
LEVEL, WINDOW_LOG, LONG_DISTANCE, LARGEST_WINDOW = 100, 101, 160, 100
"""Numbers of zstd's stable parameters: three of the compressor, one of the decompressor."""


class MissingError(Exception):
    """A contender cannot run here; the text says what is missing."""


@cache
def kernels() -> ctypes.CDLL:
    """Page runs, reading, chunk ends: no library needed."""
    library = built("kernels.c", [])
    library.xbzrle_encode.restype = library.chunk_ends.restype = ctypes.c_size_t
    library.read_all.restype = ctypes.c_uint64
    return library


@cache
def coded() -> ctypes.CDLL:
    """XOR, zstd and XXH3 fused."""
    library = built("coded.c", ["-l:libzstd.so.1"])
    library.xor_zstd_encode.restype = ctypes.c_size_t
    for call in (library.hash_all, library.hash_and_copy, library.compare_and_hash):
        call.restype = ctypes.c_uint64
    return library


def built(name: str, libraries: list[str]) -> ctypes.CDLL:
    """Compile one source for this very machine and load it."""
    if shutil.which("cc") is None:
        raise MissingError("cc is missing")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.so")
        options = ["-O3", "-march=native", "-shared", "-fPIC", "-o", str(path)]
        done = subprocess.run(
            ["cc", *options, str(SOURCES / name), *libraries], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingError(f"{name} does not compile: {done.stderr.strip()[-200:]}")
        return ctypes.CDLL(str(path))


@cache
def loaded(name: str) -> ctypes.CDLL:
    """A shared library of the system."""
    found = ctypes.util.find_library(name)
    if found is None:
        raise MissingError(f"lib{name} is missing")
    return ctypes.CDLL(found)


@cache
def zstd() -> ctypes.CDLL:
    """The C library, with the types of what is called."""
    library = loaded("zstd")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for call in ("ZSTD_createCCtx", "ZSTD_createDCtx"):
        getattr(library, call).restype = pointer
    for call in ("ZSTD_compress2", "ZSTD_decompressDCtx"):
        getattr(library, call).restype = size
        getattr(library, call).argtypes = [pointer, pointer, size, pointer, size]
    for call in ("ZSTD_CCtx_refPrefix", "ZSTD_DCtx_refPrefix"):
        getattr(library, call).restype = size
        getattr(library, call).argtypes = [pointer, pointer, size]
    for call in ("ZSTD_CCtx_setParameter", "ZSTD_DCtx_setParameter"):
        getattr(library, call).restype = size
        getattr(library, call).argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    for call in ("ZSTD_freeCCtx", "ZSTD_freeDCtx"):
        getattr(library, call).argtypes = [pointer]
    library.ZSTD_isError.argtypes = library.ZSTD_compressBound.argtypes = [size]
    library.ZSTD_compressBound.restype = size
    library.ZSTD_versionString.restype = ctypes.c_char_p
    return library


def address(data: Bytes) -> ctypes.c_void_p:
    """Where an array begins."""
    return ctypes.c_void_p(data.ctypes.data)


def count(number: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(number)


def checked(result: int) -> int:
    """What zstd returned, unless it is an error."""
    if zstd().ZSTD_isError(result):
        raise MissingError(f"zstd failed with code {result:#x}")
    return result


def prefix_encode(level: int, old: Bytes, new: Bytes, out: Bytes) -> Bytes:
    """What `zstd --patch-from` does: the whole old version as prefix, with long-distance matching."""
    library = zstd()
    context = library.ZSTD_createCCtx()
    try:
        window = min(31, (old.size + new.size).bit_length())
        for parameter, value in ((LEVEL, level), (WINDOW_LOG, window), (LONG_DISTANCE, 1)):
            checked(library.ZSTD_CCtx_setParameter(context, parameter, value))
        checked(library.ZSTD_CCtx_refPrefix(context, address(old), old.size))
        made = library.ZSTD_compress2(context, address(out), out.size, address(new), new.size)
        return out[: checked(made)]
    finally:
        library.ZSTD_freeCCtx(context)


def prefix_decode(patch: Bytes, old: Bytes, out: Bytes) -> None:
    """Turn such a patch and the old version into the new one."""
    library = zstd()
    context = library.ZSTD_createDCtx()
    try:
        checked(library.ZSTD_DCtx_setParameter(context, LARGEST_WINDOW, 31))
        checked(library.ZSTD_DCtx_refPrefix(context, address(old), old.size))
        checked(library.ZSTD_decompressDCtx(context, address(out), out.size, address(patch), patch.size))
    finally:
        library.ZSTD_freeDCtx(context)


def memory(name: str, *arguments: Any) -> int:
    """`memcmp` or `memcpy` of the C library."""
    return int(getattr(ctypes.CDLL(None), name)(*arguments))
