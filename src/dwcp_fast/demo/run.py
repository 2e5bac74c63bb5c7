"""The demo itself: every method over every link, then faults on purpose, then the report."""

import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dwcp_fast.demo.drills import Drill, flip_one_bit, kill_receiver, lose_one_lane, measure_undisturbed
from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.demo.methods import Method, V3Method, WorkerMethod, run_cell
from dwcp_fast.demo.pictures import require_pictures
from dwcp_fast.demo.record import (
    CHANGE_ONLY,
    METHODS,
    Cell,
    Claim,
    LinkFacts,
    RunRecord,
    describe_machine,
    describe_versions,
)
from dwcp_fast.demo.report import write_report
from dwcp_fast.demo.state import (
    DEFAULT_SIZE_BYTES,
    ChangingState,
    build_bf16_weights,
    build_states,
    measure_facts,
)
from dwcp_fast.errors import DwcpError

__all__ = ["DemoResult", "run_demo"]

LINKS = (
    LinkFacts("100 Mbps, 50 ms", 100.0, 50.0),
    LinkFacts("400 Mbps, 20 ms", 400.0, 20.0),
    LinkFacts("2 Gbps, 1 ms", 2000.0, 1.0),
)
QUICK_LINKS = LINKS[1:]
_QUICK_SIZE_BYTES = 4 * 1024 * 1024
_VERSION_0 = "version 0"
_CHANGE = "change"
# Long enough on the slowest link for every lane to be at work when it is struck.
_DRILL_SIZE_BYTES = 32 * 1024 * 1024
_QUICK_DRILL_SIZE_BYTES = 16 * 1024 * 1024

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo found and where it wrote it.

    Attributes:
        record: every measurement and claim.
        files: the files written, the report first.
    """

    record: RunRecord
    files: list[Path]

    @property
    def ok(self) -> bool:
        """Whether every claim held."""
        return self.record.ok


@dataclass(frozen=True)
class _Folders:
    """Where the two versions lie on the sending side, and where receivers write."""

    root: Path

    def version_0(self, name: str) -> Path:
        return self.root / "version-0" / name

    def version_1(self, name: str) -> Path:
        return self.root / "version-1" / name

    def fresh(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def kept(self) -> Path:
        """Where the commands of v3 keep what they would keep in the home directory."""
        return self.root / "state"


def run_demo(out: Path, seed: int, quick: bool, say: Say) -> DemoResult:
    """Run the demo and write ``report.html``, ``run.json`` and pictures into ``out``.

    Args:
        out: directory for the results, made when missing; work files live there during the run.
        seed: seed of the synthetic state.
        quick: a quarter of the data over the faster links, for a first look; in short transfers handshakes
            count more than they otherwise would.
        say: called with one line of progress at a time.

    Returns:
        The result; its ``ok`` is True only if every claim held.

    Raises:
        ConfigError: matplotlib is missing.
        OSError: ``out`` cannot be written.
    """
    require_pictures()
    links = QUICK_LINKS if quick else LINKS
    started = datetime.datetime.now(datetime.UTC)
    clock = time.monotonic()
    machine = describe_machine()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dwcp-demo-", dir=out) as work, ExitStack() as stack:
        folders = _Folders(Path(work))
        say("building the state: memory image, bf16 weights, disk image")
        states = build_states(seed, _QUICK_SIZE_BYTES if quick else DEFAULT_SIZE_BYTES)
        drill_state = build_bf16_weights(seed, _QUICK_DRILL_SIZE_BYTES if quick else _DRILL_SIZE_BYTES)
        _write_states(states, folders)
        facts = [measure_facts(state) for state in states]
        methods: list[Method] = [
            stack.enter_context(WorkerMethod(name, folders.fresh(f"received-{name}")))
            for name in METHODS
            if name != "v3"
        ]
        methods.append(V3Method(folders.fresh("received-v3"), folders.kept()))
        cells, problems = _run_matrix(links, [state.name for state in states], methods, folders, say)
        claims = [*_judge(links, cells, problems), *_run_drills(drill_state, folders, say)]
    record = RunRecord(
        seed=seed,
        quick=quick,
        started=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - clock, 2),
        machine=machine,
        versions=describe_versions(),
        links=list(links),
        states=facts,
        cells=cells,
        claims=claims,
    )
    say("writing the report")
    descriptions = {state.name: state.description for state in states}
    return DemoResult(record, write_report(out, record, descriptions))


def _write_states(states: list[ChangingState], folders: _Folders) -> None:
    folders.fresh("version-0")
    folders.fresh("version-1")
    for state in states:
        folders.version_0(state.name).write_bytes(state.version_0)
        folders.version_1(state.name).write_bytes(state.version_1)


def _start_link(facts: LinkFacts) -> Link:
    return Link(LinkShape(rate_bps=facts.rate_mbps * 1e6, delay_s=facts.delay_ms / 1e3))


def _run_matrix(
    links: Sequence[LinkFacts], names: list[str], methods: list[Method], folders: _Folders, say: Say
) -> tuple[list[Cell], list[str]]:
    """Send version 0 and then the change by every method over every link."""
    cells: list[Cell] = []
    problems: list[str] = []
    for facts in links:
        with _start_link(facts) as link:
            for version in (_VERSION_0, _CHANGE):
                taking_part = [m for m in methods if version == _CHANGE or m.name not in CHANGE_ONLY]
                say(f"{facts.name}: sending {version} by {', '.join(m.name for m in taking_part)}")
                for name in names:
                    old = folders.version_0(name)
                    path, base = (old, None) if version == _VERSION_0 else (folders.version_1(name), old)
                    for method in taking_part:
                        try:
                            cells.append(run_cell(method, link, facts.name, version, path, base))
                        except (DwcpError, OSError) as error:
                            problems.append(f"{facts.name}, {name}, {version}, {method.name}: {error}")
                            say(f"failed: {problems[-1]}")
    return cells, problems


def _judge(links: Sequence[LinkFacts], cells: list[Cell], problems: list[str]) -> list[Claim]:
    """The claims that rest on the matrix alone."""
    wrong = [f"{c.link}, {c.state}, {c.version}, {c.method}" for c in cells if not c.verified]
    planned = len(links) * 3 * (2 * len(METHODS) - len(CHANGE_ONLY))
    verified = sum(cell.verified for cell in cells)
    by_case = {(c.link, c.state, c.version, c.method): c for c in cells}
    mine = [cell for cell in cells if cell.method == "v3"]

    heavier = []
    for cell in mine:
        raw = by_case.get((cell.link, cell.state, cell.version, "raw"))
        if raw is None or cell.wire_bytes >= raw.wire_bytes:
            heavier.append(f"{cell.link}, {cell.state}, {cell.version}")
    changes = [cell for cell in mine if cell.version == _CHANGE]
    no_gain = []
    for cell in changes:
        first = by_case.get((cell.link, cell.state, _VERSION_0, "v3"))
        if first is None or cell.wire_bytes >= first.wire_bytes:
            no_gain.append(f"{cell.link}, {cell.state}")
    share = sum(c.wire_bytes for c in changes) / max(1, sum(c.raw_bytes for c in changes))
    expected = len(links) * 3
    kept = len(changes) - len(no_gain)
    gain = f"{kept} of {expected} cases; {share:.2%} of the state on the wire on average"
    return [
        Claim(
            "every transfer ends with exactly the bytes that were sent",
            verified == planned,
            "; ".join([f"{verified} of {planned} digests equal", *problems, *wrong]),
        ),
        Claim(
            "v3 puts fewer bytes on the wire than raw, in every case",
            len(mine) == 2 * expected and not heavier,
            "; ".join([f"{len(mine) - len(heavier)} of {2 * expected} cases", *heavier]),
        ),
        Claim(
            "v3 sends a change as a difference: fewer bytes than for version 0, in every case",
            len(changes) == expected and not no_gain,
            "; ".join([gain, *no_gain]),
        ),
    ]


def _run_drills(state: ChangingState, folders: _Folders, say: Say) -> list[Claim]:
    """The fault drills, on the slowest link, where a transfer lasts long enough to be struck."""
    facts = LINKS[0]
    old, new = folders.fresh("drill-0") / state.name, folders.fresh("drill-1") / state.name
    old.write_bytes(state.version_0)
    new.write_bytes(state.version_1)
    say(f"{facts.name}: a transfer without faults, to compare with")
    try:
        with _start_link(facts) as link:
            usual = measure_undisturbed(Drill(link, new, folders.fresh("drill-none"), folders.kept()))
    except (DwcpError, OSError) as error:
        return [Claim("v3 survives faults", False, f"the file did not even arrive without faults: {error}")]
    claims: list[Claim] = []
    drills: list[tuple[str, Callable[[Drill], Claim]]] = [
        ("resetting one connection in mid-transfer", lose_one_lane),
        ("killing the receiver in mid-transfer and starting it again", kill_receiver),
        ("flipping one bit on the wire", lambda drill: flip_one_bit(drill, old)),
    ]
    for number, (title, drill) in enumerate(drills):
        say(f"{facts.name}: {title}")
        # A link of its own, so that no left-over connection of one drill is struck in the next.
        with _start_link(facts) as link:
            into = folders.fresh(f"drill-into-{number}")
            try:
                claims.append(drill(Drill(link, new, into, folders.kept(), usual)))
            except (DwcpError, OSError) as error:
                claims.append(Claim(title, False, str(error)))
    return claims
