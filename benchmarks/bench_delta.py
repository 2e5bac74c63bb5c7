"""Are our patches smaller, and made and applied faster, than by anything else? Real data, all peers, one run.

The data is built by `delta_data.py` on first use. Single-threaded work is told by processor time (of the
child, for programs), two threads by wall time; every decode is compared with the new version before its
time counts.
`--case NAME` picks cases by a part of their name; `--no-programs` leaves the command-line tools out.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import delta_data
import harness
from delta import limits, peers
from delta.measuring import Contender, Pair, Result, assemble, measure
from delta.native import Bytes
from delta.programs import OURS_FILES, programs

MIB = 1 << 20
QUICK = 8 * MIB
SLICE = 4 * MIB
"""What bsdiff and the slow programs get of weights."""
TYPED = {
    "bf16, 1 step at 1e-6": ("bf16", "lr1e-6"),
    "bf16, 1 step at 1e-5": ("bf16", "lr1e-5"),
    "bf16, 1 step at 2e-4": ("bf16", "lr2e-4"),
    "bf16, 10 steps at 1e-5": ("bf16", "lr1e-5_10"),
    "fp32 master, 1 step at 1e-5": ("fp32", "lr1e-5"),
    "fp32 master, 10 steps at 1e-5": ("fp32", "lr1e-5_10"),
    "AdamW first moment, 1 step": ("adam_m", "lr1e-5"),
    "AdamW second moment, 1 step": ("adam_v", "lr1e-5"),
}
VM = {"memory, 2 s apart": ("vm_a.bin", "vm_2s.bin"), "memory, 12 s apart": ("vm_a.bin", "vm_12s.bin")}
FILES = {
    "disk image": ("disk_a.img", "disk_b.img"),
    "text, patch releases": ("text_a.tar", "text_b.tar"),
    "text, minor releases": ("text_minor_a.tar", "text_minor_b.tar"),
    "logs, rotated": ("logs_a", "logs_b"),
    "noise with insertions": ("noise_a.bin", "insert_b.bin"),
}
Makers = Mapping[str, Callable[[Pair], Contender]]
TYPED_PEERS: Makers = {
    peers.OURS: peers.ours,
    peers.OURS_SNAPSHOT: peers.snapshot,
    f"{peers.OURS_SNAPSHOT}, mask": partial(peers.snapshot, given="mask"),
    f"{peers.OURS_SNAPSHOT}, sparse": partial(peers.snapshot, given="sparse"),
    peers.PIPELINE: peers.pipeline,
    peers.NATIVE_XOR: peers.native_xor,
    "index + values + zstd-1": partial(peers.sparse_list, gaps=False),
    "gaps + values + zstd-1": partial(peers.sparse_list, gaps=True),
    "XOR + blosc2 shuffle zstd-1": peers.shuffled,
    peers.XBZRLE: peers.page_runs,
    peers.PREFIX_3: partial(peers.prefixed, level=3),
}
SLICE_PEERS: Makers = {peers.OURS: peers.ours, "bsdiff4": peers.suffix_sorted}
FULL_PEERS: Makers = {
    peers.OURS: peers.ours_full,
    "OpenZL float graph": peers.typed_graph,
    "zipnn": peers.zipnn_full,
    "blosc2 shuffle zstd-1": peers.shuffled_full,
    "zstd-1": partial(peers.full, level=1),
    "zstd-3": partial(peers.full, level=3),
}
VM_PEERS: Makers = {
    peers.OURS: peers.ours,
    peers.OURS_SNAPSHOT: peers.snapshot,
    peers.XBZRLE: peers.page_runs,
    peers.NATIVE_XOR: peers.native_xor,
    "zstd-1 whole prefix + LDM": partial(peers.prefixed, level=1),
    peers.PREFIX_3: partial(peers.prefixed, level=3),
    "chunks + zstd-1": peers.chunked,
}
FILE_PEERS: Makers = {
    peers.OURS: peers.ours,
    "zstd-1 whole prefix + LDM": partial(peers.prefixed, level=1),
    peers.PREFIX_3: partial(peers.prefixed, level=3),
    "chunks + zstd-1": peers.chunked,
}
FLOAT_PROGRAMS = ("zstd -3 --patch-from", "xdelta3 -6")
SLICED = ("bf16", "fp32 master, 1 step")
"""What the slow contenders are measured on: they need seconds for each MiB of the rest."""


class Run:
    """The options of this run, and what it has found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: Path = options.data
        self.repeats: int = options.repeats
        self.quick: bool = options.quick
        self.with_programs: bool = options.programs
        self.wanted: list[str] = options.case or []
        self.missing: dict[str, str] = {}
        self.claims: list[dict[str, Any]] = []
        self.raw: dict[str, Any] = {}

    def wants(self, case: str) -> bool:
        return not self.wanted or any(part.casefold() in case.casefold() for part in self.wanted)

    def load(self, name: str, most: int | None = None) -> Bytes | None:
        """One file of the data, or its beginning; None, and a note, if it could not be built."""
        path = self.data / name
        if not path.exists():
            self.missing.setdefault(name, "its data could not be built")
            return None
        most = min(most or QUICK, QUICK) if self.quick else most
        # A guest's memory is in use at its end first, so that is what a quick look is about.
        skipped = max(0, path.stat().st_size - QUICK) if self.quick and name.startswith("vm_") else 0
        return np.fromfile(path, np.uint8, count=-1 if most is None else most, offset=skipped)

    def pair(self, case: str, files: tuple[str, str], dtype: str | None = None) -> Pair | None:
        """Both versions of one case; None if it is not wanted or cannot be had."""
        if not self.wants(case):
            return None
        old, new = (
            self.load(files[0], 64 * MIB if dtype else None),
            self.load(files[1], 64 * MIB if dtype else None),
        )
        return None if old is None or new is None else Pair(case, old, new, dtype)

    def race(self, pair: Pair, makers: Makers, only: tuple[str, ...] | None = ()) -> dict[str, Result]:
        """Measure the contenders of one pair, with programs if `only` names some or is None for all."""
        contenders = assemble(makers, pair, self.missing)
        with tempfile.TemporaryDirectory(dir=self.data) as folder:
            if self.with_programs and only != ():
                contenders |= programs(pair, Path(folder), only, self.missing)
            results = measure(pair, contenders, self.repeats)
        self.raw[pair.name] = {name: result.raw() for name, result in results.items()}
        table(pair, results)
        return results

    def claim(self, case: str, measured: float, target: float, against: str, *, lower: bool = False) -> None:
        self.claims.append(harness.claim(case, measured, target, against, lower_is_better=lower))

    def faster(
        self, case: str, results: dict[str, Result], steps: tuple[str, str], target: float, against: str
    ) -> None:
        """Each of ours takes `steps[0]`, the rival `steps[1]`."""
        for name in (peers.OURS, peers.OURS_SNAPSHOT):
            if name in results and against in results and steps[0] in results[name].cpu:
                gain = results[against].cpu_s(steps[1]) / results[name].cpu_s(steps[0])
                how = "" if name == peers.OURS else ", snapshot"
                self.claim(f"{case}: {steps[0]}{how}", gain, target, against)

    def smaller(self, case: str, results: dict[str, Result], target: float, against: str) -> None:
        if against in results:
            ratio = results[peers.OURS].patch_bytes / results[against].patch_bytes
            self.claim(f"{case}: size", ratio, target, against, lower=True)

    def smallest_and_fastest(self, case: str, results: dict[str, Result], *, fastest: bool = True) -> None:
        """Against the best of all others, whichever that is."""
        others = {name: result for name, result in results.items() if not name.startswith(peers.OURS)}
        best = min(others, key=lambda name: others[name].patch_bytes)
        self.smaller(f"{case}, smallest of all", results, 1.0, best)
        if fastest:
            quick = min(others, key=lambda name: others[name].cpu_s("encode"))
            self.faster(f"{case}, fastest of all", results, ("encode", "encode"), 1.0, quick)


def table(pair: Pair, results: dict[str, Result]) -> None:
    print(f"\n{pair.name} ({pair.new.size / MIB:.1f} MiB): % of the new version, MB per processor second")
    for name, result in results.items():
        rates = "  ".join(f"{step} {result.rate(step):.0f}" for step in result.cpu)
        peaks = "  ".join(f"{key} {value / MIB:.0f} MiB" for key, value in result.notes.items())
        print(f"  {name:<40} {100 * result.patch_bytes / result.nbytes:8.3f}  {rates}  {peaks}")


def entropy_bound(pair: Pair) -> float:
    """Bytes of the zero-order bound: which elements changed, and the zigzag differences of those."""
    kind, signed = {2: (np.uint16, np.int16), 4: (np.uint32, np.int32)}[pair.width]
    old, new = pair.old.view(kind), pair.new.view(kind)
    index = np.flatnonzero(old != new)
    difference = (new[index] - old[index]).view(signed).astype(np.int64)
    _, counts = np.unique(difference, return_counts=True)
    share = np.array([index.size, old.size - index.size]) / old.size
    places = -old.size * float(np.sum(share * np.log2(share, where=share > 0, out=np.zeros(2))))
    values = -float(np.sum(counts * np.log2(counts / index.size)))
    return (places + values) / 8


def typed(run: Run) -> None:
    """Weights and optimizer state against their versions one and ten steps before."""
    for case, (kind, version) in TYPED.items():
        dtype = "bf16" if kind == "bf16" else "fp32"
        pair = run.pair(case, (f"{kind}_base.bin", f"{kind}_{version}.bin"), dtype)
        if pair is None:
            continue
        results = run.race(pair, TYPED_PEERS)
        changed = float(np.mean(pair.old.view(f"u{pair.width}") != pair.new.view(f"u{pair.width}")))
        bound = entropy_bound(pair)
        run.raw[case] |= {"changed": changed, "bound_bytes": bound}
        print(
            f"  {100 * changed:.2f} % of the elements changed; "
            f"zero-order bound {100 * bound / pair.new.size:.3f} %"
        )
        if kind == "bf16":
            run.claim(
                f"{case}: size",
                results[peers.OURS].patch_bytes / bound,
                1.08,
                "the zero-order bound",
                lower=True,
            )
            run.faster(case, results, ("encode", "encode"), 6.0, peers.PIPELINE)
            run.faster(case, results, ("decode in place", "decode in place"), 7.0, peers.PIPELINE)
            run.faster(case, results, ("encode", "encode"), 2.5, peers.NATIVE_XOR)
            run.faster(case, results, ("decode in place", "decode in place"), 2.0, peers.NATIVE_XOR)
        run.smallest_and_fastest(case, results)
        if not case.startswith(SLICED):
            continue
        cut = pair.sliced(SLICE)
        cut.name = f"{case}, first 4 MiB"
        run.smallest_and_fastest(cut.name, run.race(cut, SLICE_PEERS, FLOAT_PROGRAMS))


def first_versions(run: Run) -> None:
    """Tensors without a base."""
    for kind in ("bf16", "fp32"):
        pair = run.pair(f"{kind} without a base", (f"{kind}_base.bin", f"{kind}_base.bin"), kind)
        if pair is None:
            continue
        results = run.race(pair, FULL_PEERS)
        run.smaller(pair.name, results, 1.0, "OpenZL float graph")
        run.faster(pair.name, results, ("encode", "encode"), 1.1, "OpenZL float graph")
        for way in ("decode reused", "decode new"):
            run.faster(pair.name, results, (way, "decode new"), 1.5, "OpenZL float graph")


def guests(run: Run) -> None:
    """Memory of a running guest."""
    for case, files in VM.items():
        pair = run.pair(case, files)
        if pair is None:
            continue
        results = run.race(pair, VM_PEERS, None)
        run.smallest_and_fastest(case, results, fastest=False)
        run.faster(case, results, ("encode", "encode"), 0.95, peers.XBZRLE)
        run.faster(case, results, ("decode in place", "decode in place"), 0.95, peers.XBZRLE)
        for way in ("decode reused", "decode new"):
            run.faster(case, results, (way, "decode new"), 0.95, peers.XBZRLE)


def files(run: Run) -> None:
    """Disk images, text, logs, shifted bytes."""
    for case, names in FILES.items():
        pair = run.pair(case, names)
        if pair is None:
            continue
        results = run.race(pair, FILE_PEERS, None)
        run.smaller(case, results, 1.05, peers.PREFIX_3)
        for rival, step in (
            (peers.PREFIX_3, "decode new"),
            ("zstd -3 --patch-from", "decode file"),
        ):
            run.faster(case, results, ("encode", "encode"), 4.0, rival)
            for way in ("decode in place", "decode reused", "decode new"):
                run.faster(case, results, (way, step), 3.0, rival)
        run.smallest_and_fastest(case, results, fastest=False)
        if {OURS_FILES, "zstd -3 --patch-from"} <= results.keys():
            for step in ("encode", "decode"):
                own, theirs = (
                    results[name].notes[f"peak_bytes {step}"] for name in (OURS_FILES, "zstd -3 --patch-from")
                )
                run.claim(
                    f"{case}: peak memory, {step}", own / theirs, 0.5, "zstd -3 --patch-from", lower=True
                )


def machine_limits(run: Run) -> None:
    """Identical, zero-heavy, incompressible; decompression; pages; threads."""

    def keep(case: str, *names: str, action: Callable[..., limits.Found], most: int = 64 * MIB) -> None:
        if run.wants(case):
            loaded = [data for name in names if (data := run.load(name, most)) is not None]
            if len(loaded) == len(names):
                claims, raw = action(*loaded)
                run.claims += claims
                run.raw[case] = raw

    keep("identical", "vm_a.bin", action=lambda state: limits.identical(state, run.repeats), most=256 * MIB)
    keep(
        "zero-heavy",
        "sparse_a.bin",
        "sparse_b.bin",
        action=lambda old, new: limits.zero_heavy(old, new, run.repeats),
    )
    keep(
        "incompressible",
        "noise_a.bin",
        "noise_b.bin",
        action=lambda old, new: limits.incompressible(old, new, run.repeats),
    )
    keep("decompress", "text_a.tar", action=lambda data: limits.decompression(data, run.repeats, run.missing))
    keep("pages", "text_a.tar", action=lambda data: limits.pages(data, run.repeats), most=16 * MIB)
    for name, dtype, names in (
        ("bf16", "bf16", ("bf16_base.bin", "bf16_lr1e-5.bin")),
        ("memory", None, ("vm_a.bin", "vm_12s.bin")),
        ("disk", None, ("disk_a.img", "disk_b.img")),
    ):
        keep(
            f"two threads, {name}",
            *names,
            action=lambda old, new, name=name, dtype=dtype: limits.two_threads(
                name, old, new, dtype, run.repeats
            ),
            most=256 * MIB,
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, default=delta_data.CACHE, help="folder of the data (default %(default)s)"
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="only cases whose name has this in it"
    )
    parser.add_argument(
        "--no-programs", dest="programs", action="store_false", help="leave the command-line tools out"
    )


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=7, extend=add_options)
    run = Run(options)
    run.missing |= {f"data set {name}": why for name, why in delta_data.build(run.data, []).items()}
    for group in (typed, first_versions, guests, files, machine_limits):
        group(run)
    for name, why in run.missing.items():
        print(f"not measured: {name}: {why}")
    partly = run.quick or run.wanted or not run.with_programs
    raw = run.raw | {"not measured": run.missing}
    path = harness.publish("delta_part" if partly else "delta", options.out, claims=run.claims, raw=raw)
    harness.show(run.claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
