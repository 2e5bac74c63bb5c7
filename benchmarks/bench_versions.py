"""What does a version cost, from arrays to a receiver that holds them proven, against writing it by hand?

By hand means what reinforcement learning projects wrote for themselves: numpy XOR with the version before,
python-zstandard level 1, an XXH3 digest for each tensor, a file and a pointer to it in a directory; the
receiver undoes it in place, proves it, and has no way back. Weights are bf16, rounded from 32-bit ones to
which each version adds updates as large as the learning rate, as Adam's are. Both sides are in this process,
one thread each, one after the other.
"""

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

import dwcp_fast
import harness

Bits = npt.NDArray[np.uint16]
TENSORS = 16


class Weights:
    """32-bit weights that move, and their bf16 rounding."""

    def __init__(self, count: int, rate: float) -> None:
        self._rng = np.random.default_rng(7)
        self._master = [
            self._rng.normal(0, 0.02, count // TENSORS).astype(np.float32) for _ in range(TENSORS)
        ]
        self._rate = np.float32(rate)
        self.bits = [round_bf16(one) for one in self._master]
        self.changed = 0.0

    def step(self) -> None:
        before = self.bits
        for one in self._master:
            one += self._rate * self._rng.standard_normal(one.size, dtype=np.float32)
        self.bits = [round_bf16(one) for one in self._master]
        self.changed = float(np.mean([np.mean(a != b) for a, b in zip(before, self.bits, strict=True)]))

    def named(self) -> dict[str, Bits]:
        return {f"layer{number}": one for number, one in enumerate(self.bits)}


def round_bf16(values: npt.NDArray[np.float32]) -> Bits:
    bits = values.view(np.uint32)
    rounded: Bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


class ByHand:
    """The pipeline that this package is to replace."""

    def __init__(self, folder: Path, first: dict[str, Bits]) -> None:
        self._folder = folder
        self._sent = {name: one.copy() for name, one in first.items()}
        self.held = {name: one.copy() for name, one in first.items()}
        self._difference = np.empty_like(next(iter(first.values())))
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self.bytes = 0

    def publish(self, new: dict[str, Bits]) -> None:
        parts, listed, at = [], {}, 0
        for name, one in new.items():
            np.bitwise_xor(one, self._sent[name], out=self._difference)
            packed = self._compressor.compress(self._difference.data.cast("B"))
            listed[name] = (at, len(packed), xxhash.xxh3_128_hexdigest(one))
            parts.append(packed)
            at += len(packed)
        self._write("delta", b"".join(parts))
        self._write("pointer", json.dumps(listed).encode())
        for name, one in new.items():
            self._sent[name][:] = one
        self.bytes = at

    def follow(self) -> None:
        listed = json.loads((self._folder / "pointer").read_bytes())
        data = memoryview((self._folder / "delta").read_bytes())
        for name, (at, length, digest) in listed.items():
            difference = np.frombuffer(self._decompressor.decompress(data[at : at + length]), np.uint16)
            np.bitwise_xor(self.held[name], difference, out=self.held[name])
            assert xxhash.xxh3_128_hexdigest(self.held[name]) == digest

    def _write(self, name: str, data: bytes) -> None:
        with (self._folder / f".{name}").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (self._folder / f".{name}").replace(self._folder / name)


class Ours:
    """The same by publisher and subscriber, held in memory."""

    def __init__(self, folder: Path, first: dict[str, Bits]) -> None:
        self._publisher = dwcp_fast.DeltaPublisher(folder / "store", anchor_every=1000)
        self._number = 0
        self.bytes = 0
        self._put(first)
        self.subscriber = dwcp_fast.DeltaSubscriber(folder / "store")
        self.follow()

    def publish(self, new: dict[str, Bits]) -> None:
        self._put(new)

    def follow(self) -> None:
        assert self.subscriber.follow(0) is not None

    def _put(self, new: dict[str, Bits]) -> None:
        self._number += 1
        with self._publisher.version(self._number) as draft:
            for name, one in new.items():
                draft.put(name, one, dtype="bf16")
        assert draft.report is not None
        self.bytes = draft.report.bytes_delta or 0


def measure(rate: float, count: int, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="dwcp-bench-"))
    try:
        weights = Weights(count, rate)
        sides: dict[str, ByHand | Ours] = {
            "by hand": ByHand(folder, weights.named()),
            "dwcp_fast": Ours(folder, weights.named()),
        }
        samples: dict[str, dict[str, list[float]]] = {
            verb: {name: [] for name in sides} for verb in ("publish", "follow")
        }
        sizes: dict[str, list[int]] = {name: [] for name in sides}
        shares = []
        new = weights.named()
        for turn in range(repeats + 2):
            weights.step()
            new = weights.named()
            for name, side in sorted(sides.items(), reverse=bool(turn % 2)):
                actions: dict[str, Callable[[], object]] = {
                    "publish": partial(side.publish, new),
                    "follow": side.follow,
                }
                for verb, action in actions.items():
                    taken = harness.seconds(action)
                    # The first versions go to fresh memory on both sides.
                    if turn > 1:
                        samples[verb][name].append(taken)
                sizes[name].append(side.bytes)
            shares.append(weights.changed)
        by_hand, ours = sides["by hand"], sides["dwcp_fast"]
        assert isinstance(by_hand, ByHand) and isinstance(ours, Ours)
        tensors = ours.subscriber.tensors()
        for name, one in new.items():
            assert tensors[name].data == one.tobytes() == by_hand.held[name].tobytes()
    finally:
        shutil.rmtree(folder)
    case = f"bf16, {statistics.median(shares):.1%} changed"
    speeds = {"publish": 6.0, "follow": 7.0}
    claims = [
        harness.claim(f"{case}: {verb}", harness.ratio(samples[verb], "dwcp_fast", "by hand"), bar, "by hand")
        for verb, bar in speeds.items()
    ]
    smaller = statistics.median(sizes["by hand"]) / statistics.median(sizes["dwcp_fast"])
    claims.append(harness.claim(f"{case}: times smaller", smaller, 2.0, "by hand"))
    return claims, {
        "rate": rate,
        "bytes_raw": 2 * count,
        "seconds": samples,
        "bytes": sizes,
        "changed": shares,
    }


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=9)
    count = (8 << 20) if options.quick else (64 << 20)
    claims, raw = [], {}
    for rate in (3e-7, 2e-6, 3e-5):
        found, told = measure(rate, count, options.repeats)
        claims += found
        raw[str(rate)] = told
    harness.show(claims)
    print(harness.publish("versions", options.out, claims=claims, raw=raw))


if __name__ == "__main__":
    main()
