"""What do more lanes and more threads bring on this machine, up to one for each processor?

Transfers are from memory to memory on one host, with every byte hashed on both sides; patches are of bf16
values of which 5 % changed. The only claim is whether a second thread does what it should.
"""

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import datacenter_ends as ends
import dwcp_fast
import harness
from dwcp_fast import delta

OF_ONE = 1.8
CHANGED_SHARE = 0.05
KINDS = {"plain": (True, "tcp"), "TLS": (False, "tcp"), "shared memory": (False, "shm")}
Rates = dict[str, dict[int, list[float]]]


def counts() -> list[int]:
    """1, 2, 4 and so on, up to the number of processors."""
    return [1 << power for power in range((os.cpu_count() or 1).bit_length())]


def transfers(size: int, repeats: int) -> Rates:
    """GB a second by lanes, for each kind of link."""
    rates: Rates = {kind: {lanes: [] for lanes in counts()} for kind in KINDS}
    with ends.End("send", size) as sender, ends.End("receive", size) as receiver:
        contenders = {f"{kind} {lanes}": (kind, lanes) for kind in KINDS for lanes in counts()}
        for turn in range(repeats):
            for name in harness.in_turn(contenders, turn):
                kind, lanes = contenders[name]
                plain, link = KINDS[kind]
                receiver.tell("transfers", plain=plain)
                target = receiver.told()["target"]
                sender.tell("transfers", plain=plain, target=target, lanes=lanes, link=link, rounds=2)
                taken = [one["seconds"] for one in sender.told()["facts"][1:]]
                receiver.told()
                rates[kind][lanes] += [size / 1e9 / seconds for seconds in taken]
    return rates


def codings(size: int, repeats: int) -> Rates:
    """GB a second by threads, for patches and for calls of a thread each."""
    chance = np.random.default_rng(1)
    values = chance.standard_normal(size // 2, dtype=np.float32).view(np.uint32)
    base = (values >> 16).astype(np.uint16)
    other = base.copy()
    where = chance.integers(0, len(base), int(len(base) * CHANGED_SHARE))
    other[where] ^= chance.integers(1, 8, len(where), dtype=np.uint16)
    patch, into = delta.encode(base, other, dtype="bf16"), np.empty_like(base)
    room = bytearray(delta.max_patch_length(other.nbytes))
    text = harness.real_files(size // 16)
    rooms = [bytearray(2 * len(text)) for _ in range(max(counts()))]

    def compressing(threads: int) -> Callable[[], None]:
        jobs = [partial(dwcp_fast.compress_into, text, one, codec="zstd:3") for one in rooms[:threads]]
        return harness.together(jobs)

    ways: dict[str, tuple[int, Callable[[int], Callable[[], object]]]] = {
        "encode": (
            other.nbytes,
            lambda threads: partial(delta.encode_into, base, other, room, dtype="bf16", threads=threads),
        ),
        "apply": (
            other.nbytes,
            lambda threads: partial(delta.apply_onto, patch, base, into, threads=threads),
        ),
        "compress, zstd:3, a call for each thread": (0, compressing),
    }
    contenders = {
        f"{name} {threads}": make(threads) for name, (_, make) in ways.items() for threads in counts()
    }
    samples = harness.interleave(contenders, repeats)
    assert np.array_equal(into, other)
    return {
        name: {
            threads: [(once or threads * len(text)) / 1e9 / taken for taken in samples[f"{name} {threads}"]]
            for threads in counts()
        }
        for name, (once, _) in ways.items()
    }


def claims_of(rates: Rates) -> list[dict[str, Any]]:
    """What a second thread brings to coding."""
    gains = {name: gains_of(by_count) for name, by_count in rates.items()}
    return [
        harness.claim(f"{name}: two threads", gain[2], OF_ONE, "one")
        for name, gain in gains.items()
        if 2 in gain and name not in KINDS
    ]


def gains_of(by_count: dict[int, list[float]]) -> dict[int, float]:
    """How many times as much as one does each number of them."""
    one = statistics.median(by_count[1])
    return {count: statistics.median(rates) / one for count, rates in by_count.items()}


def table(rates: Rates) -> str:
    rows = ["| GB/s (of one) | " + " | ".join(map(str, counts())) + " |", "|---" * (len(counts()) + 1) + "|"]
    for name, by_count in rates.items():
        gains = gains_of(by_count)
        cells = [f"{statistics.median(by_count[count]):.2f} ({gains[count]:.1f})" for count in counts()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=5)
    size = (64 if options.quick else 1024) << 20
    rates = transfers(size, options.repeats) | codings(size, options.repeats)
    claims = claims_of(rates)
    path = harness.publish("scaling", options.out, claims=claims, raw={"bytes": size, "GB/s": rates})
    harness.show(claims)
    print(table(rates))
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
