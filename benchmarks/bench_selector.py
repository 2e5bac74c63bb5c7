"""Does choosing per block (`--codec auto`) end as soon as the best fixed codec, for every link and data?

Every session is two processes over TLS, through a user-space link of the named rate, or over the loopback
interface itself. `first` is a session of one transfer in a new process, from connecting to the receiver's
proof; `known` the same by a sender that remembers the link from an earlier session; `again` are later
transfers of a session. Contenders take turns, round after round; a fixed codec that takes half as long again
as the best in the first round is not run in later ones: it cannot be the best.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import delta_data
import dwcp_fast
import harness
from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.demo.v3 import reroute
from dwcp_fast.state import kept_links

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1 << 20
FIXED = ("none", "lz4", "zstd:1", "zstd:3", "zstd:9")
CONTENDERS = ("auto", *FIXED)
KINDS = ("first", "known", "again")
MIXED = "mixed"
BOUND = 1.02
HOPELESS = 1.5
DELAY_S = 0.0005
GONE_S = 1.0
TIMEOUT_S = 120.0
# Another loopback address than that from which the system dials, so that the peer does not count as local.
LINK_HOST = "127.0.0.2"
DEFAULT_DATA = {
    "vm": "vm_2s.bin",
    "disk": "disk_a.img",
    "text": "text_a.tar",
    "logs": "logs_a",
    "bf16:2": "bf16_base.bin",
    "noise": "noise_a.bin",
}

Buffers = dict[str, npt.NDArray[Any]]
Layout = list[tuple[str, int]]
# Kind, link, data, contender: the seconds of each transfer, round by round.
Table = dict[str, dict[str, dict[str, dict[str, list[list[float]]]]]]


@dataclass(frozen=True)
class Case:
    """A link, and how much goes over it: MiB at first, MiB again, and how often again."""

    rate_bps: float | None
    first_mib: int
    again_mib: int
    again: int


LINKS = {
    "50 Mbps": Case(50e6, 12, 6, 1),
    "200 Mbps": Case(200e6, 48, 24, 1),
    "1 Gbps": Case(1e9, 128, 128, 1),
    "5 Gbps": Case(5e9, 256, 256, 2),
    "loopback": Case(None, 256, 256, 4),
}
QUICK_LINKS = {
    "50 Mbps": Case(50e6, 2, 2, 1),
    "200 Mbps": Case(200e6, 6, 6, 1),
    "1 Gbps": Case(1e9, 24, 24, 1),
    "5 Gbps": Case(5e9, 64, 64, 1),
    "loopback": Case(None, 64, 64, 1),
}


@dataclass(frozen=True)
class Source:
    """A file whose elements are `width` bytes wide."""

    name: str
    width: int
    path: Path

    def blocks(self, count: int) -> npt.NDArray[Any]:
        """So many MiB of it, from all over the file, and all of it over again if it is shorter."""
        data = np.memmap(self.path, mode="r")
        held = data.size // MIB
        if not held:
            raise SystemExit(f"{self.path}: shorter than 1 MiB")
        picked = np.empty((count, MIB), np.uint8)
        for number in range(count):
            block = number * held // count if count < held else number % held
            picked[number] = data[block * MIB : (block + 1) * MIB]
        return picked.reshape(-1).view(f"u{self.width}")


def cut(sources: list[Source], name: str, mib: int) -> Buffers:
    """What is sent under the name of a set: one buffer, or for `mixed` blocks of all sets, shuffled."""
    if name != MIXED:
        return {name: next(source for source in sources if source.name == name).blocks(mib)}
    share = -(-mib // len(sources))
    parts = [
        (source.name, block)
        for source in sources
        for block in source.blocks(share).reshape(share, MIB // source.width)
    ]
    order = np.random.default_rng(5).permutation(len(parts))[:mib]
    return {f"{turn:03}-{parts[at][0]}": parts[at][1] for turn, at in enumerate(order)}


def layout(buffers: Buffers) -> Layout:
    return [(name, data.nbytes) for name, data in buffers.items()]


def receive() -> None:
    """Worker: a session for each line, which tells the layouts of its transfers; all into the same memory."""
    memory = memoryview(bytearray(os.urandom(MIB) * max(case.first_mib for case in LINKS.values())))
    options = dwcp_fast.ReceiveOptions(sync=False)
    with dwcp_fast.listen("127.0.0.1:0", options=options) as listener:
        print(json.dumps({"pairing": listener.pairing}), flush=True)
        for line in sys.stdin:
            session = listener.accept(timeout_s=TIMEOUT_S)
            for told in json.loads(line):
                into, at = {}, 0
                for name, length in told:
                    into[name] = memory[at : at + length]
                    at += length
                while session is not None and session.receive_into(into, timeout_s=TIMEOUT_S) is None:
                    session.close()
                    # A sender whose last blocks went twice goes on in another session (docs/design.md);
                    # one that has had enough of a slow codec does not.
                    session = listener.accept(timeout_s=GONE_S)
            if session is not None:
                session.receive(timeout_s=TIMEOUT_S)
                session.close()
            print(json.dumps({"done": True}), flush=True)


class Receiver:
    """The receiving process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pairing: str = self._line()["pairing"]

    def expect(self, transfers: list[Layout]) -> None:
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(transfers) + "\n")
        stdin.flush()

    def finish(self) -> None:
        assert self._line()["done"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        facts: dict[str, Any] = json.loads(self._process.stdout.readline())
        return facts


def send(told: Connection, target: str, codec: str, transfers: list[Buffers], patience_s: float) -> None:
    """A new process: one session, without the later transfers if the first takes more than `patience_s`."""
    options = dwcp_fast.SendOptions(codec=codec, base="none", link="tcp")
    start = time.perf_counter()
    with dwcp_fast.connect(target, options=options) as session:
        seconds, chosen = [], None
        for buffers in transfers:
            report = session.send(buffers)
            now = time.perf_counter()
            assert report.verified
            seconds.append(now - start)
            chosen = report.selection
            if seconds[0] > patience_s:
                break
            start = time.perf_counter()
    facts: dict[str, Any] = {}
    if chosen is not None:
        facts = {
            "blocks": {share.action: share.blocks for share in chosen.actions},
            "reasons": dict(chosen.reasons),
            "price": round(chosen.price, 3),
            "link_mbps": round(8e-6 * (chosen.link_bytes_per_s or 0)),
            "processors": round(chosen.processors, 2),
            "trials": chosen.trials,
            "guard_trips": chosen.guard_trips,
        }
    told.send((seconds, facts))


class Run:
    """All sessions, and what they took."""

    def __init__(self, sources: list[Source], links: dict[str, Case]) -> None:
        self.sources = sources
        self.links = links
        self.data = [*(source.name for source in sources), MIXED]
        self.table: Table = {
            kind: {link: {data: {codec: [] for codec in CONTENDERS} for data in self.data} for link in links}
            for kind in KINDS
        }
        self.chosen: dict[str, dict[str, Any]] = {link: {} for link in links}
        self._targets: dict[str, str] = {}
        self._fork = multiprocessing.get_context("fork")

    def rounds(self, repeats: int, deadline: float) -> None:
        """Run them; no round of a link and its data begins after `deadline`."""
        with ExitStack() as stack:
            os.environ["DWCP_STATE_DIR"] = stack.enter_context(TemporaryDirectory())
            self._receiver = Receiver()
            stack.callback(self._receiver.close)
            for name, case in self.links.items():
                self._targets[name] = self._receiver.pairing
                if case.rate_bps is not None:
                    link = stack.enter_context(Link(LinkShape(case.rate_bps, DELAY_S), LINK_HOST))
                    self._targets[name], address = reroute(self._receiver.pairing, link.port, LINK_HOST)
                    link.retarget(*address)
            for turn in range(repeats):
                for name, case in self.links.items():
                    begin = time.monotonic()
                    for data in self.data:
                        if time.monotonic() < deadline:
                            self._visit(turn, name, case, data)
                    print(f"round {turn + 1}, {name}: {time.monotonic() - begin:.0f} s", flush=True)

    def _visit(self, turn: int, link: str, case: Case, data: str) -> None:
        """One session of every contender that may still be the best."""
        first = cut(self.sources, data, case.first_mib)
        again = first if case.again_mib == case.first_mib else cut(self.sources, data, case.again_mib)
        transfers = [first, *[again] * case.again]
        taken = self.table["first"][link][data]
        kept_links().unlink(missing_ok=True)
        for codec in harness.in_turn(CONTENDERS, turn):
            best = min(
                (runs[0][0] for fixed, runs in taken.items() if runs and fixed != "auto"),
                default=float("inf"),
            )
            if turn and codec != "auto" and taken[codec][0][0] > best * HOPELESS:
                continue
            patience_s = float("inf") if codec == "auto" else best * 2
            seconds, facts = self._session(self._targets[link], codec, transfers, patience_s)
            taken[codec].append(seconds[:1])
            if codec == "auto":
                # The session before has left behind what it found out.
                known, _ = self._session(self._targets[link], codec, [first], patience_s)
                self.table["known"][link][data][codec].append(known)
            else:
                self.table["known"][link][data][codec].append(seconds[:1])
            if seconds[1:]:
                self.table["again"][link][data][codec].append(seconds[1:])
            if facts:
                self.chosen[link][data] = facts

    def _session(
        self, target: str, codec: str, transfers: list[Buffers], patience_s: float
    ) -> tuple[list[float], dict[str, Any]]:
        self._receiver.expect([layout(buffers) for buffers in transfers])
        ours, theirs = self._fork.Pipe()
        process = self._fork.Process(target=send, args=(theirs, target, codec, transfers, patience_s))
        process.start()
        theirs.close()
        if not ours.poll(TIMEOUT_S):
            process.kill()
            raise SystemExit(f"no end within {TIMEOUT_S:g} s: {codec}")
        told: tuple[list[float], dict[str, Any]] = ours.recv()
        process.join(TIMEOUT_S)
        self._receiver.finish()
        return told


@dataclass(frozen=True)
class Verdict:
    """How long auto took, as a multiple of the best fixed codec; low and high of round by round."""

    kind: str
    link: str
    data: str
    best: str
    ratio: float
    low: float
    high: float
    # Slowest over fastest round of the best fixed codec, against itself.
    spread: float

    def text(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} - {self.high:.2f}) {self.best}"


def median(rounds: list[list[float]]) -> float:
    return statistics.median(value for one in rounds for value in one)


def judge(table: Table) -> list[Verdict]:
    verdicts = []
    for kind, links in table.items():
        for link, sets in links.items():
            for data, codecs in sets.items():
                fixed = {codec: median(codecs[codec]) for codec in FIXED if codecs[codec]}
                if not fixed or not codecs["auto"]:
                    continue
                best = min(fixed, key=lambda codec: fixed[codec])
                ours, theirs = ([statistics.median(one) for one in codecs[name]] for name in ("auto", best))
                pairs = [mine / its for mine, its in zip(ours, theirs, strict=False)]
                ratio = median(codecs["auto"]) / fixed[best]
                spread = max(theirs) / min(theirs)
                verdicts.append(Verdict(kind, link, data, best, ratio, min(pairs), max(pairs), spread))
    return verdicts


def claims_of(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    claims = []
    for one in verdicts:
        case = f"{one.kind}, {one.link}, {one.data}"
        detail = {
            "range": [round(one.low, 3), round(one.high, 3)],
            "best fixed, slowest over fastest round": round(one.spread, 3),
        }
        against = f"{one.best}, the best fixed"
        claims.append(
            harness.claim(f"{case}: time", one.ratio, BOUND, against, lower_is_better=True) | detail
        )
        if one.data == MIXED:
            claims.append(harness.claim(f"{case}: ahead", 1 / one.ratio, 1.0, against) | detail)
    return claims


def tables(verdicts: list[Verdict]) -> str:
    """Markdown: a table for each kind, a row for each set, worst first."""
    lines = []
    for kind in KINDS:
        of_kind = {(one.data, one.link): one for one in verdicts if one.kind == kind}
        links = list(dict.fromkeys(link for _, link in of_kind))
        rows = sorted(
            dict.fromkeys(data for data, _ in of_kind),
            key=lambda data: -max(one.ratio for (name, _), one in of_kind.items() if name == data),
        )
        lines += ["", " | ".join([f"| {kind}", *links]) + " |", "|---" * (len(links) + 1) + "|"]
        for data in rows:
            cells = [of_kind[data, link].text() if (data, link) in of_kind else "" for link in links]
            lines.append(" | ".join([f"| {data}", *cells]) + " |")
    return "\n".join(lines)


COLOURS = {
    "none": "#b4bac2",
    "lz4": "#c2985b",
    "zstd:1": "#8fb0d3",
    "zstd:3": "#5b7fa6",
    "zstd:9": "#9d6b8f",
    "auto": "#0f6b62",
}


def draw(table: Table, path: Path) -> None:
    """Crossover chart: time over that of the best fixed codec against the link, and the band of 2 %."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    style: dict[Any, Any] = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "dwcp-selector"}
    with matplotlib.rc_context(style):
        links = list(table["first"])
        names = list(table["first"][links[0]])
        figure = Figure(figsize=(12, 5.6), layout="constrained")
        axes = figure.subplots(2, -(-(len(names) + 1) // 2), sharey=True).ravel()
        for axis, data in zip(axes, names, strict=False):
            draw_set(axis, table, links, data)
        legend = axes[len(names)]
        legend.axis("off")
        handles: list[Any] = [Line2D([], [], color=COLOURS[codec], label=codec) for codec in CONTENDERS]
        handles.append(
            Line2D([], [], color=COLOURS["auto"], ls="", marker="o", mfc="none", label="auto, first")
        )
        handles.append(Patch(color=COLOURS["auto"], alpha=0.2, label="at most 2 % over the best fixed"))
        legend.legend(handles=handles, loc="center", frameon=False)
        figure.supylabel("time / that of the best fixed codec (later transfers of a session)")
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_set(axis: "Axes", table: Table, links: list[str], data: str) -> None:
    from matplotlib.ticker import NullLocator

    for kind in KINDS:
        for codec in CONTENDERS:
            if kind != "again" and (codec, kind) != ("auto", "first"):
                continue
            points = []
            for place, link in enumerate(links):
                # One that was too slow for later transfers is shown where its only one was.
                codecs = table[kind][link][data]
                if not codecs[codec]:
                    codecs = table["first"][link][data]
                taken = [median(codecs[fixed]) for fixed in FIXED if codecs[fixed]]
                if codecs[codec] and taken:
                    points.append((place, median(codecs[codec]) / min(taken)))
            marks: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "none", "ms": 6}
            if kind == "again":
                marks = {"marker": ".", "lw": 2.2 if codec == "auto" else 1.1}
            axis.plot(*zip(*points, strict=True), color=COLOURS[codec], **marks)
    axis.axhspan(0.5, BOUND, color=COLOURS["auto"], alpha=0.12, lw=0)
    axis.axhline(1, color="#30363d", lw=0.6)
    axis.set_yscale("log")
    axis.set_ylim(0.7, 6)
    ticks = [0.8, 1, 1.5, 2, 3, 5]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xticks(range(len(links)), links, rotation=30)
    axis.set_title(data, loc="left", fontweight="bold")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        action="append",
        metavar="NAME[:WIDTH]=FILE",
        help="a data set of elements so many bytes wide; by default six of those of delta_data.py",
    )
    parser.add_argument("--link", action="append", choices=list(LINKS), help="only these links")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="begin nothing after so long (default %(default)s)"
    )


def source_of(text: str) -> Source:
    label, _, path = text.partition("=")
    name, _, width = label.partition(":")
    if not name or width not in ("", "1", "2", "4", "8") or not Path(path).is_file():
        raise SystemExit(f"--data {text}: not NAME[:WIDTH]=FILE of a file, with a width of 1, 2, 4 or 8")
    return Source(name, int(width or 1), Path(path))


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=3, extend=add_options)
    missing = {} if options.data else delta_data.build(delta_data.CACHE, [])
    built = {label: delta_data.CACHE / file for label, file in DEFAULT_DATA.items()}
    default = [f"{label}={path}" for label, path in built.items() if path.exists()]
    sources = [source_of(text) for text in options.data or default]
    if not sources:
        raise SystemExit(f"no data: {missing}")
    links = QUICK_LINKS if options.quick else LINKS
    wanted = {name: case for name, case in links.items() if name in (options.link or links)}
    run = Run(sources, wanted)
    run.rounds(options.repeats, time.monotonic() + options.minutes * 60)
    verdicts = judge(run.table)
    claims = claims_of(verdicts)
    raw = {
        "links": {name: vars(case) | {"delay_s": DELAY_S} for name, case in wanted.items()},
        "chosen by auto in the last transfer": run.chosen,
        "seconds": run.table,
        "not measured": missing,
    }
    whole = wanted == LINKS and options.data is None and len(default) == len(DEFAULT_DATA)
    path = harness.publish("selector" if whole else "selector_part", options.out, claims=claims, raw=raw)
    harness.show(claims)
    for name, why in missing.items():
        print(f"not measured: data set {name}: {why}")
    print(tables(verdicts))
    for kind in KINDS:
        ratios = [one.ratio for one in verdicts if one.kind == kind]
        print(f"{kind}: within 2 % in {sum(ratio <= BOUND for ratio in ratios)} of {len(ratios)}")
    try:
        draw(run.table, path.with_suffix(".svg"))
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'dwcp-fast[demo]')")
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        receive()
    else:
        main()
