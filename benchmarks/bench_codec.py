"""Is compressing through dwcp_fast as fast as through python-zstandard and lz4?

Same buffers, one thread, one-shot calls with reused contexts; then two threads against one.
"""

import threading
from collections.abc import Callable
from typing import Any

import lz4.block
import zstandard

import dwcp_fast
import harness

KIB = 1 << 10
SIZES = (64 * KIB, 256 * KIB, 1 << 20, 16 << 20)


def repeat(action: Callable[[bytes], object], data: bytes, times: int) -> Callable[[], None]:
    """Call the action often enough for the clock."""

    def run() -> None:
        for _ in range(times):
            action(data)

    return run


def peers() -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    """What people call today: compress and decompress for each codec name of ours."""
    pairs: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {}
    for level in (1, 3):
        compressor = zstandard.ZstdCompressor(level=level)
        pairs[f"zstd:{level}"] = (compressor.compress, zstandard.ZstdDecompressor().decompress)
    pairs["lz4"] = (lz4.block.compress, lz4.block.decompress)
    return pairs


def one_thread(repeats: int, sizes: tuple[int, ...]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    claims, raw = [], {}
    for size in sizes:
        data = harness.real_files(size)
        times = max(1, (8 << 20) // size)
        for codec, (compress, decompress) in peers().items():
            theirs = compress(data)
            ours = dwcp_fast.compress(data, codec=codec)
            assert dwcp_fast.decompress(ours) == data == decompress(theirs)

            def pack(buffer: bytes, name: str = codec) -> bytes:
                return dwcp_fast.compress(buffer, codec=name)

            for verb, own, peer, own_input, peer_input in (
                ("compress", pack, compress, data, data),
                ("decompress", dwcp_fast.decompress, decompress, ours, theirs),
            ):
                contenders = {
                    "dwcp_fast": repeat(own, own_input, times),
                    "peer": repeat(peer, peer_input, times),
                }
                samples = harness.interleave(contenders, repeats)
                case = f"{verb} {codec} {size // KIB} KiB"
                raw[case] = samples | {"bytes": size * times}
                against = "lz4.block" if codec == "lz4" else "python-zstandard"
                claims.append(harness.claim(case, harness.ratio(samples, "dwcp_fast", "peer"), 0.97, against))
    return claims, raw


def two_threads(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    claims, raw = [], {}
    data = harness.real_files(1 << 20)
    for codec in ("zstd:1", "zstd:3", "lz4"):
        packed = dwcp_fast.compress(data, codec=codec)

        def pack(buffer: bytes, name: str = codec) -> bytes:
            return dwcp_fast.compress(buffer, codec=name)

        for verb, action, buffer in (("compress", pack, data), ("decompress", dwcp_fast.decompress, packed)):
            work = repeat(action, buffer, 48)

            def both(job: Callable[[], None] = work) -> None:
                threads = [threading.Thread(target=job) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            samples = harness.interleave({"one": work, "two": both}, repeats)
            case = f"{verb} {codec} on two threads"
            raw[case] = samples
            claims.append(harness.claim(case, 2 * harness.ratio(samples, "two", "one"), 1.8, "one thread"))
    return claims, raw


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=11)
    claims, raw = one_thread(options.repeats, SIZES[:2] if options.quick else SIZES)
    more, raw_threads = two_threads(options.repeats)
    claims += more
    path = harness.publish("codec", options.out, claims=claims, raw=raw | raw_threads)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
