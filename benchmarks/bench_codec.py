"""Is compressing through dwcp_fast as fast as through python-zstandard and lz4?

Same buffers, one thread, one-shot calls with reused contexts; then two threads against one.
"""

from collections.abc import Callable
from functools import partial
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

            pack = partial(dwcp_fast.compress, codec=codec)
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
    """What two threads do more than one, and the peers' two."""
    claims, raw = [], {}
    data = harness.real_files(1 << 20)
    # An object of python-zstandard is not to be used by two threads at once.
    for codec, first, second in zip(peers(), peers().values(), peers().values(), strict=True):
        packed, packed_by_peer = dwcp_fast.compress(data, codec=codec), first[0](data)
        pack = repeat(partial(dwcp_fast.compress, codec=codec), data, 48)
        unpack = repeat(dwcp_fast.decompress, packed, 48)
        for verb, own, peer in (
            ("compress", pack, [repeat(one[0], data, 48) for one in (first, second)]),
            ("decompress", unpack, [repeat(one[1], packed_by_peer, 48) for one in (first, second)]),
        ):
            contenders = {
                "one": own,
                "two": harness.together([own, own]),
                "peer's one": peer[0],
                "peer's two": harness.together(peer),
            }
            samples = harness.interleave_on_two_cores(contenders, repeats)
            case = f"{verb} {codec} on two threads"
            raw[case] = samples
            gain = harness.gain_of_two(samples, "two", "one", 2)
            peers_gain = harness.gain_of_two(samples, "peer's two", "peer's one", 2)
            claims.append(harness.claim(case, gain, 1.8, "one thread"))
            claims.append(
                harness.claim(
                    f"{case}, of the peer's gain", gain / max(peers_gain, 1.0), 0.97, f"{peers_gain:.2f}"
                )
            )
    return claims, raw


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=31)
    claims, raw = one_thread(options.repeats, SIZES[:2] if options.quick else SIZES)
    more, raw_threads = two_threads(options.repeats)
    claims += more
    path = harness.publish("codec", options.out, claims=claims, raw=raw | raw_threads)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
