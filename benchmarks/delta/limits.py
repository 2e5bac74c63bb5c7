"""What the machine allows, and how near ours comes: identical, zero-heavy and incompressible input,
decompression into the caller's buffer, small pages, two threads."""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import lz4.block
import numpy as np
import zstandard

import dwcp_fast
import harness
from delta.measuring import module, turns
from delta.native import Bytes, MissingError, address, checked, coded, count, kernels, loaded, memory, zstd

Found = tuple[list[dict[str, Any]], dict[str, Any]]
PAGE_BYTES, BLOCK_BYTES = 4096, 1 << 20


def hashed(data: Bytes) -> int:
    """XXH3, compiled for this machine."""
    return int(coded().hash_all(address(data), count(data.size)))


def limit_claims(
    samples: harness.Samples, wanted: dict[tuple[str, str], float], case: str
) -> list[dict[str, Any]]:
    """For each (contender, limit): at least so many times as fast."""
    return [
        harness.claim(f"{case}: {name}", harness.ratio(samples, name, against), target, against)
        for (name, against), target in wanted.items()
    ]


def identical(state: Bytes, repeats: int) -> Found:
    """Nothing changed: ours against comparing, and against comparing and hashing in one pass."""
    twin, held = state.copy(), state.copy()
    patch = dwcp_fast.delta.encode(state, twin)
    actions: dict[str, Callable[[], object]] = {
        "encode": lambda: dwcp_fast.delta.encode(state, twin),
        "apply in place": lambda: dwcp_fast.delta.apply_into(patch, held),
        "memcmp": lambda: memory("memcmp", address(state), address(twin), count(state.size)),
        "memcmp + XXH3": lambda: coded().compare_and_hash(address(state), address(twin), count(state.size)),
        "XXH3": lambda: hashed(held),
    }
    samples = turns(actions, repeats)
    wanted = {
        ("encode", "memcmp"): 0.85,
        ("encode", "memcmp + XXH3"): 0.85,
        ("apply in place", "XXH3"): 0.85,
    }
    return limit_claims(samples, wanted, "identical"), samples | {"bytes": state.size}


def zero_heavy(old: Bytes, new: Bytes, repeats: int) -> Found:
    """Mostly zero pages: a pair, a first version, and nothing but zeros."""
    # A comparison of versions that differ would end at the first difference.
    twin = new.copy()
    zeros = np.full(new.size, 0, np.uint8)
    actions: dict[str, Callable[[], object]] = {
        "pair": lambda: dwcp_fast.delta.encode(old, new),
        "first version": lambda: dwcp_fast.delta.encode(b"", new),
        "all zero": lambda: dwcp_fast.delta.encode(b"", zeros),
        "memcmp": lambda: memory("memcmp", address(new), address(twin), count(new.size)),
        "read": lambda: kernels().read_all(address(new), count(new.size // 8)),
        "XXH3": lambda: hashed(new),
    }
    samples = turns(actions, repeats)
    wanted = {("pair", "memcmp"): 0.85, ("first version", "read"): 0.85, ("all zero", "read"): 0.85}
    return limit_claims(samples, wanted, "zero-heavy"), samples | {"bytes": new.size}


def incompressible(old: Bytes, new: Bytes, repeats: int) -> Found:
    """Noise: what it costs to find out that nothing can be saved, and how much is added."""
    out = np.ones(dwcp_fast.max_compressed_length(new.size), np.uint8)
    target = np.ones_like(new)
    patch = np.ones(dwcp_fast.delta.max_patch_length(new.size), np.uint8)

    def hash_and_copy() -> object:
        return coded().hash_and_copy(address(new), address(target), count(new.size))

    def hash_both_and_copy() -> object:
        return hashed(old), hash_and_copy()

    def hash_and_copy_to_fresh() -> object:
        return hashed(old), hashed(new), new.tobytes()

    actions: dict[str, Callable[[], object]] = {
        "compress_into": lambda: dwcp_fast.compress_into(new, out, "zstd:1", checksum=True),
        "encode": lambda: dwcp_fast.delta.encode(old, new),
        "encode_into": lambda: dwcp_fast.delta.encode_into(old, new, patch),
        "hash + memcpy": hash_and_copy,
        "hash both + memcpy": hash_both_and_copy,
        "hash both + memcpy to fresh memory": hash_and_copy_to_fresh,
    }
    samples = turns(actions, repeats)
    wanted = {
        ("compress_into", "hash + memcpy"): 0.97,
        ("encode_into", "hash both + memcpy"): 0.97,
        ("encode", "hash both + memcpy to fresh memory"): 0.97,
    }
    claims = limit_claims(samples, wanted, "incompressible")
    grown = len(dwcp_fast.delta.encode(old, new)) / new.size
    claims.append(harness.claim("incompressible: size", grown, 1.001, "the input", lower_is_better=True))
    return claims, samples | {"bytes": new.size}


def decompression(data: Bytes, repeats: int, missing: dict[str, str]) -> Found:
    """Into a buffer that is there already, against the C libraries and the Python packages."""
    out, held = np.ones_like(data), data.tobytes()
    claims, raw = [], {}
    for codec, peers in (("zstd:1", zstd_peers), ("zstd:3", zstd_peers), ("lz4", lz4_peers)):
        packed = dwcp_fast.compress(held, codec=codec)

        def ours(packed: bytes = packed) -> object:
            return dwcp_fast.decompress_into(packed, out)

        actions: dict[str, Callable[[], object]] = {"dwcp_fast": ours}
        for name, make in peers(held, out, codec).items():
            try:
                actions[name] = make()
            except MissingError as error:
                missing[name] = str(error)
        for name, action in actions.items():
            out[:] = 0
            made = action()
            if not np.array_equal(out, data) and made != held:
                raise RuntimeError(f"{name} did not decompress")
        samples = turns(actions, repeats)
        raw[f"decompress {codec}"] = samples | {"bytes": data.size}
        claims += [
            harness.claim(
                f"decompress {codec} into a buffer", harness.ratio(samples, "dwcp_fast", name), 0.97, name
            )
            for name in actions
            if name != "dwcp_fast"
        ]
    return claims, raw


Maker = Callable[[], Callable[[], object]]


def zstd_peers(data: bytes, out: Bytes, codec: str) -> dict[str, Maker]:
    packed = zstandard.ZstdCompressor(level=int(codec[-1])).compress(data)
    given = np.frombuffer(packed, np.uint8)

    def library() -> Callable[[], object]:
        context = zstd().ZSTD_createDCtx()
        return lambda: checked(
            zstd().ZSTD_decompressDCtx(context, address(out), out.size, address(given), given.size)
        )

    def package() -> Callable[[], object]:
        unpack = zstandard.ZstdDecompressor().decompress
        return lambda: unpack(packed)

    def cramjam() -> Callable[[], object]:
        unpack = module("cramjam").zstd.decompress_into
        return lambda: unpack(packed, out)

    return {"libzstd": library, "python-zstandard": package, "cramjam zstd": cramjam}


def lz4_peers(data: bytes, out: Bytes, _codec: str) -> dict[str, Maker]:
    packed = lz4.block.compress(data, store_size=False)
    given = np.frombuffer(packed, np.uint8)

    def library() -> Callable[[], object]:
        unpack = loaded("lz4").LZ4_decompress_safe
        return lambda: unpack(address(given), address(out), ctypes.c_int(given.size), ctypes.c_int(out.size))

    def package() -> Callable[[], object]:
        return lambda: lz4.block.decompress(packed, uncompressed_size=out.size)

    def cramjam() -> Callable[[], object]:
        unpack = module("cramjam").lz4.decompress_block_into
        return lambda: unpack(packed, out)

    return {"liblz4": library, "python-lz4": package, "cramjam lz4": cramjam}


def pages(data: Bytes, repeats: int) -> Found:
    """Scattered pages of 4 KiB, a MiB of them in one call, against the same bytes lying together."""
    claims, raw = [], {}
    order = np.random.default_rng(1).permutation(data.size // PAGE_BYTES).astype(np.uint64)
    batches = np.split(order, range(BLOCK_BYTES // PAGE_BYTES, order.size, BLOCK_BYTES // PAGE_BYTES))
    whole = data[: data.size // PAGE_BYTES * PAGE_BYTES].reshape(-1, PAGE_BYTES)
    blocks = [np.ascontiguousarray(whole[batch]).reshape(-1) for batch in batches]
    places, out = np.ones_like(data), np.ones(BLOCK_BYTES, dtype=np.uint8)
    for codec in ("lz4", "zstd:1"):
        packed = [dwcp_fast.compress(block, codec) for block in blocks]

        def scattered(codec: str = codec) -> None:
            for batch in batches:
                dwcp_fast.compress_pages(data, batch, codec=codec)

        def lying_together(codec: str = codec) -> None:
            for block in blocks:
                dwcp_fast.compress(block, codec)

        def to_places(packed: list[bytes] = packed) -> None:
            for one, batch in zip(packed, batches, strict=True):
                dwcp_fast.decompress_pages_into(one, places, batch)

        def to_one_place(packed: list[bytes] = packed) -> None:
            for one in packed:
                dwcp_fast.decompress_into(one, out)

        to_places()
        assert np.array_equal(places[: whole.size], whole.reshape(-1))
        for verb, spread, dense in (
            ("compress", scattered, lying_together),
            ("decompress", to_places, to_one_place),
        ):
            samples = turns({"pages": spread, "blocks": dense}, repeats)
            case = f"{verb} 4 KiB pages, {codec}"
            raw[case] = samples | {"bytes": data.size}
            claims.append(harness.claim(case, harness.ratio(samples, "pages", "blocks"), 0.9, "1 MiB blocks"))
    return claims, raw


def two_threads(name: str, old: Bytes, new: Bytes, dtype: str | None, repeats: int) -> Found:
    """The `threads` option: two threads against one, by wall time.

    Where one thread takes all that the memory gives, two gain nothing: what comparing alone gains in the same
    rounds tells that apart.
    """
    delta = dwcp_fast.delta
    patch, out = delta.encode(old, new, dtype=dtype), np.ones_like(new)
    twin, half = new.copy(), new.size // 2

    def compared(part: slice) -> Callable[[], object]:
        left, right = new[part], twin[part]
        return lambda: memory("memcmp", address(left), address(right), count(left.size))

    actions: dict[str, Callable[[], object]] = {
        "compare, one": compared(slice(None)),
        "compare, two": harness.together([compared(slice(half)), compared(slice(half, None))]),
    }
    for threads, told in ((1, "one"), (2, "two")):
        actions[f"encode, {told}"] = partial(delta.encode, old, new, dtype=dtype, threads=threads)
        actions[f"apply, {told}"] = partial(delta.apply_onto, patch, old, out, threads=threads)
    samples = harness.interleave_on_two_cores(actions, repeats)
    claims = [
        harness.claim(
            f"two threads: {verb}, {name}",
            harness.gain_of_two(samples, f"{verb}, two", f"{verb}, one"),
            1.8,
            "one",
        )
        for verb in ("encode", "apply")
    ]
    allowed = harness.gain_of_two(samples, "compare, two", "compare, one")
    claims += [
        harness.claim(
            f"{claim['case']}, for what memory gives",
            claim["measured"] / min(max(allowed, 1.0), 2.0) if allowed else 0.0,
            0.9,
            f"memcmp, which gains {allowed:.2f}",
        )
        for claim in claims
    ]
    return claims, samples | {"bytes": new.size}
