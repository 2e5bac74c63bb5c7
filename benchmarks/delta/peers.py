"""Contenders within this process: ours, today's pipeline, sparse lists, page runs, prefixes, chunks."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
import zstandard

import dwcp_fast
from delta.measuring import Contender, Decode, Pair, in_place, module, to_new
from delta.native import (
    Bytes,
    MissingError,
    address,
    coded,
    count,
    kernels,
    prefix_decode,
    prefix_encode,
    zstd,
)

OURS = "dwcp_fast"
OURS_SNAPSHOT = "dwcp_fast snapshot"
PIPELINE = "numpy XOR + python-zstandard 1 + XXH3"
NATIVE_XOR = "XOR + zstd-1 + XXH3 in C"
XBZRLE = "XBZRLE + zstd-1"
PREFIX_3 = "zstd-3 whole prefix + LDM"
DIGEST_BYTES = 16


def ours(pair: Pair) -> Contender:
    """Encode, and both ways to apply; every way proves the base and the result."""
    dtype = pair.dtype
    ways = {"new": Decode(lambda patch: dwcp_fast.delta.apply(patch, pair.old))} | reused(pair, pair.old)
    if pair.old.size == pair.new.size:
        ways = in_place(pair, lambda patch: dwcp_fast.delta.apply_into(patch, pair.held)) | ways
    return Contender(lambda: dwcp_fast.delta.encode(pair.old, pair.new, dtype=dtype), ways)


def snapshot(pair: Pair, *, given: str = "new") -> Contender:
    """Ours with the held version kept in a snapshot on both sides, so that it is not hashed again.

    `given` says what the sender is told: the new version, a mask of changed elements with it, or only the
    changed elements; what differs is then known beforehand, as after a diff on the device that trained.
    """
    old, new = pair.old.view(f"u{pair.width}"), pair.new.view(f"u{pair.width}")
    mask = old != new
    index = np.flatnonzero(mask).astype(np.uint32)
    values = new[index]
    kept: dict[str, dwcp_fast.delta.Snapshot] = {}

    def hold() -> None:
        kept["held"] = dwcp_fast.delta.Snapshot(pair.old, dtype=pair.dtype)

    def apply(patch: bytes) -> memoryview:
        kept["held"].apply(patch)
        return kept["held"].view()

    def advance() -> bytes:
        if given == "mask":
            return kept["held"].advance_masked(pair.new, mask)
        if given == "sparse":
            return kept["held"].advance_sparse(index, values)
        return kept["held"].advance(pair.new)

    return Contender(advance, {"in place": Decode(apply, hold)}, len, hold)


def pipeline(pair: Pair) -> Contender:
    """What trainers run today: XOR in numpy, python-zstandard, a digest of the result; buffers are reused."""
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    scratch = pair.out

    def encode() -> bytes:
        np.bitwise_xor(pair.old, pair.new, out=scratch)
        return xxhash.xxh3_128_digest(pair.new) + compressor.compress(scratch.data)

    def decode(patch: bytes) -> None:
        difference = decompressor.decompress(memoryview(patch)[DIGEST_BYTES:])
        np.bitwise_xor(pair.held, np.frombuffer(difference, np.uint8), out=pair.held)
        prove(pair.held, patch[:DIGEST_BYTES])

    return Contender(encode, in_place(pair, decode))


def prove(data: Bytes, digest: bytes) -> None:
    if xxhash.xxh3_128_digest(data) != digest:
        raise RuntimeError("the digest differs")


def native_xor(pair: Pair) -> Contender:
    """The same without Python, in blocks that stay in the cache."""
    library = coded()

    def encode() -> Bytes:
        made = library.xor_zstd_encode(
            address(pair.old),
            address(pair.new),
            count(pair.new.size),
            1,
            address(pair.room),
            count(pair.room.size),
        )
        if not made:
            raise RuntimeError("the patch did not fit")
        return pair.room[:made]

    def decode(patch: Bytes) -> None:
        if library.xor_zstd_decode(address(patch), address(pair.held), count(pair.held.size)):
            raise RuntimeError("the digest differs")

    return Contender(encode, in_place(pair, decode))


def sparse_list(pair: Pair, *, gaps: bool) -> Contender:
    """Indices (or the gaps between them) and new values of changed elements, through zstd-1."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[pair.width]
    old, new, held = pair.old.view(kind), pair.new.view(kind), pair.held.view(kind)
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()

    def encode() -> bytes:
        index = np.flatnonzero(old != new).astype(np.uint32)
        listed = np.diff(index, prepend=np.uint32(0)) if gaps else index
        head = xxhash.xxh3_128_digest(new) + len(index).to_bytes(8, "little")
        return head + compressor.compress(listed.tobytes() + new[index].tobytes())

    def decode(patch: bytes) -> None:
        entries = int.from_bytes(patch[DIGEST_BYTES : DIGEST_BYTES + 8], "little")
        body = decompressor.decompress(memoryview(patch)[DIGEST_BYTES + 8 :])
        listed = np.frombuffer(body, np.uint32, entries)
        index = np.cumsum(listed, dtype=np.uint32) if gaps else listed
        held[index] = np.frombuffer(body, kind, entries, 4 * entries)
        prove(pair.held, patch[:DIGEST_BYTES])

    return Contender(encode, in_place(pair, decode))


def shuffling(width: int) -> tuple[Callable[[Bytes], bytes], Callable[[bytes, Bytes], None]]:
    """To compress and to decompress with blosc2: byte shuffle and zstd-1, on one thread."""
    blosc2 = module("blosc2")
    blosc2.set_nthreads(1)
    options = {
        "typesize": width,
        "codec": blosc2.Codec.ZSTD,
        "clevel": 1,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }

    def compress(data: Bytes) -> bytes:
        packed: bytes = blosc2.compress2(data, **options)
        return packed

    def decompress(packed: bytes, out: Bytes) -> None:
        blosc2.decompress2(packed, dst=out, nthreads=1)

    return compress, decompress


def shuffled(pair: Pair) -> Contender:
    """XOR, then blosc2 with byte shuffle and zstd-1."""
    compress, decompress = shuffling(pair.width)
    scratch = pair.out

    def encode() -> bytes:
        np.bitwise_xor(pair.old, pair.new, out=scratch)
        return xxhash.xxh3_128_digest(pair.new) + compress(scratch)

    def decode(patch: bytes) -> None:
        decompress(patch[DIGEST_BYTES:], scratch)
        np.bitwise_xor(pair.held, scratch, out=pair.held)
        prove(pair.held, patch[:DIGEST_BYTES])

    return Contender(encode, in_place(pair, decode))


def page_runs(pair: Pair) -> Contender:
    """Page runs in the manner of XBZRLE, by AVX-512 where there is one, through zstd-1; proves nothing."""
    library = kernels()
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    size = pair.new.size
    if size != pair.old.size or size % 4096:
        raise MissingError("page runs need two versions of whole pages and one length")

    def encode() -> bytes:
        made = library.xbzrle_encode(address(pair.old), address(pair.new), count(size), address(pair.room))
        return compressor.compress(pair.room[:made].data)

    def decode(patch: bytes, target: Bytes) -> Bytes:
        runs = np.frombuffer(decompressor.decompress(patch), np.uint8)
        library.xbzrle_decode(address(runs), count(runs.size), address(target))
        return target

    def copy_and_decode(patch: bytes) -> Bytes:
        ctypes.memmove(pair.out.ctypes.data, pair.old.ctypes.data, size)
        return decode(patch, pair.out)

    return Contender(encode, to_new(copy_and_decode) | in_place(pair, lambda patch: decode(patch, pair.held)))


def prefixed(pair: Pair, *, level: int) -> Contender:
    """The C library of zstd with the whole old version as prefix, as `zstd --patch-from` does."""
    zstd()

    def decode(patch: Bytes) -> Bytes:
        prefix_decode(patch, pair.old, pair.out)
        return pair.out

    return Contender(
        lambda: prefix_encode(level, pair.old, pair.new, pair.room), to_new(decode), most_rounds=3
    )


def chunked(pair: Pair) -> Contender:
    """Content-defined chunks of 16 KiB known by XXH3; unknown ones through zstd-1.

    The old version's chunks are known before, as a store knows them: their cost is not counted.
    """
    library = kernels()
    gear = np.random.default_rng(2).integers(0, 2**64, 256, dtype=np.uint64)
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()

    def cut(data: Bytes) -> list[tuple[int, int]]:
        ends = np.empty(data.size // 4096 + 2, np.uint64)
        found = library.chunk_ends(
            address(data), count(data.size), address(gear.view(np.uint8)), address(ends.view(np.uint8))
        )
        listed = ends[:found].tolist()
        return list(zip([0, *listed[:-1]], listed, strict=True))

    known = {xxhash.xxh3_128_digest(pair.old[start:end]): start for start, end in cut(pair.old)}

    def encode() -> tuple[Bytes, bytes]:
        seen, recipe, unknown = dict(known), [], []
        for start, end in cut(pair.new):
            chunk = pair.new[start:end]
            digest = xxhash.xxh3_128_digest(chunk)
            if digest not in seen:
                seen[digest] = pair.old.size + start
                recipe.append((2**63, end - start))
                unknown.append(chunk)
            else:
                recipe.append((seen[digest], end - start))
        fresh = np.concatenate(unknown) if unknown else np.empty(0, np.uint8)
        return np.array(recipe, np.uint64), compressor.compress(fresh.data)

    def decode(patch: tuple[Bytes, bytes]) -> Bytes:
        fresh, at, taken = np.frombuffer(decompressor.decompress(patch[1]), np.uint8), 0, 0
        for origin, length in patch[0].tolist():
            if origin == 2**63:
                pair.out[at : at + length] = fresh[taken : taken + length]
                taken += length
            elif origin >= pair.old.size:
                pair.out[at : at + length] = pair.out[origin - pair.old.size :][:length]
            else:
                pair.out[at : at + length] = pair.old[origin : origin + length]
            at += length
        return pair.out

    return Contender(encode, to_new(decode), lambda patch: patch[0].size * 4 + len(patch[1]), most_rounds=3)


def suffix_sorted(pair: Pair) -> Contender:
    """bsdiff, on a slice that the caller has cut."""
    bsdiff4 = module("bsdiff4")
    old, new = pair.old.tobytes(), pair.new.tobytes()
    return Contender(
        lambda: bsdiff4.diff(old, new), to_new(lambda patch: bsdiff4.patch(old, patch)), most_rounds=1
    )


def full(pair: Pair, *, level: int) -> Contender:
    """The new version alone, by zstd."""
    compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return Contender(lambda: compressor.compress(pair.new.data), to_new(decompressor.decompress))


def typed_graph(pair: Pair) -> Contender:
    """OpenZL: exponents apart from sign and fraction, each entropy coded."""
    openzl = module("openzl.ext")
    split = {2: openzl.nodes.BFloat16Deconstruct, 4: openzl.nodes.Float32Deconstruct}[pair.width]
    kind = {2: np.uint16, 4: np.uint32}[pair.width]
    entropy = openzl.graphs.Entropy
    rest = openzl.graphs.Entropy if pair.width == 2 else openzl.graphs.Store
    compressor = openzl.Compressor()
    compressor.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)
    compressor.select_starting_graph(split()(compressor, rest()(compressor), entropy()(compressor)))
    values = pair.new.view(kind)

    def encode() -> bytes:
        context = openzl.CCtx()
        context.ref_compressor(compressor)
        packed: bytes = context.compress([openzl.Input(openzl.Type.Numeric, values)])
        return packed

    def decode(packed: bytes) -> Any:
        return np.asarray(openzl.DCtx().decompress(packed)[0].content.as_nparray())

    return Contender(encode, to_new(decode))


def zipnn_full(pair: Pair) -> Contender:
    """zipnn on one thread."""
    zipnn = module("zipnn")
    name = {2: "bfloat16", 4: "float32"}[pair.width]
    coder = zipnn.ZipNN(bytearray_dtype=name, input_format="byte", threads=1)
    # It may change what it is given, so that each call needs an input of its own.
    given = [bytearray()]

    def prepare() -> None:
        given[0] = bytearray(pair.new)

    return Contender(lambda: coder.compress(given[0]), to_new(coder.decompress), prepare=prepare)


def shuffled_full(pair: Pair) -> Contender:
    """blosc2 with byte shuffle and zstd-1, without the old version."""
    compress, decompress = shuffling(pair.width)

    def decode(packed: bytes) -> Bytes:
        decompress(packed, pair.out)
        return pair.out

    return Contender(lambda: compress(pair.new), to_new(decode))


def ours_full(pair: Pair) -> Contender:
    """Ours against an empty base, which is how a first version goes out."""
    ways = {"new": Decode(lambda patch: dwcp_fast.delta.apply(patch, b""))} | reused(pair, b"")
    return Contender(lambda: dwcp_fast.delta.encode(b"", pair.new, dtype=pair.dtype), ways)


def reused(pair: Pair, old: Bytes | bytes) -> dict[str, Decode]:
    """Apply into memory that is there already."""

    def apply(patch: bytes) -> Bytes:
        dwcp_fast.delta.apply_onto(patch, old, pair.out)
        return pair.out

    return {"reused": Decode(apply)}
