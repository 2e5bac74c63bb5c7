"""What a run of the demo found: cells, claims, facts of the machine; and its form in ``run.json``."""

import dataclasses
import os
import platform
import sys
import types
import typing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from dwcp_fast.demo.state import StateFacts
from dwcp_fast.errors import FormatError

__all__ = [
    "CHANGE_ONLY",
    "METHODS",
    "SCHEMA",
    "Cell",
    "Claim",
    "LinkFacts",
    "Loss",
    "RunRecord",
    "describe_machine",
    "describe_versions",
    "find_losses",
]

SCHEMA: Final = "dwcp-demo-run/1"
METHODS: Final = ("raw", "zstd-1", "v1", "xor-zstd-1", "v3")
CHANGE_ONLY: Final = ("xor-zstd-1",)
"""Methods that cannot send a first version."""


@dataclass(frozen=True)
class LinkFacts:
    """A link as it was set.

    Attributes:
        name: name in tables, for example ``100 Mbps, 50 ms``.
        rate_mbps: rate of each direction in megabits per second.
        delay_ms: one-way delay in milliseconds.
    """

    name: str
    rate_mbps: float
    delay_ms: float


@dataclass(frozen=True)
class Cell:
    """One transfer.

    Attributes:
        link: name of the link.
        state: name of the state.
        version: ``version 0`` or ``change``.
        method: one of :data:`METHODS`.
        seconds: from the sender's first step on the network, handshakes included, to the end the method can
            see: the verified acknowledgement, or for v1, which has none, the receiver's check.
        raw_bytes: length of what was sent.
        wire_bytes: bytes the link carried for it, both directions, with TLS and framing.
        digest: XXH3-128 of the file the receiver ended up with, in hexadecimal.
        verified: whether that is the digest of what was sent.
    """

    link: str
    state: str
    version: str
    method: str
    seconds: float
    raw_bytes: int
    wire_bytes: int
    digest: str
    verified: bool


@dataclass(frozen=True)
class Claim:
    """Something the run says, and whether it was so.

    Attributes:
        text: the claim.
        held: whether the run bore it out.
        evidence: the measured values it rests on.
    """

    text: str
    held: bool
    evidence: str


@dataclass(frozen=True)
class RunRecord:
    """Everything a run found. :meth:`to_dict` is the content of ``run.json``."""

    seed: int
    quick: bool
    started: str
    duration_s: float
    machine: dict[str, str]
    versions: dict[str, str]
    links: list[LinkFacts]
    states: list[StateFacts]
    cells: list[Cell]
    claims: list[Claim]
    schema: str = field(default=SCHEMA)

    @property
    def ok(self) -> bool:
        """Whether every claim held."""
        return all(claim.held for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the verdict and the losses derived from the cells."""
        losses = [dataclasses.asdict(loss) for loss in find_losses(self.cells)]
        return {**dataclasses.asdict(self), "ok": self.ok, "losses": losses}

    @classmethod
    def from_dict(cls, value: object) -> "RunRecord":
        """Read what :meth:`to_dict` made, strictly.

        Raises:
            FormatError: a key is missing, unknown or of the wrong type, the schema is another one, or
                the derived values do not follow from the cells and claims.
        """
        if not isinstance(value, dict):
            raise FormatError(f"a run record is an object, not {type(value).__name__}")
        own = {key: item for key, item in value.items() if key not in ("ok", "losses")}
        record: RunRecord = _read(cls, own, "run")
        if record.schema != SCHEMA:
            raise FormatError(f"schema is {record.schema!r}, not {SCHEMA!r}")
        for cell in record.cells:
            if cell.method not in METHODS:
                raise FormatError(f"unknown method {cell.method!r}")
        derived = record.to_dict()
        for key in ("ok", "losses"):
            if value.get(key) != derived[key]:
                raise FormatError(f"{key!r} does not follow from the cells and claims")
        return record


@dataclass(frozen=True)
class Loss:
    """A case that v3 did not win.

    Attributes:
        link: name of the link.
        state: name of the state.
        version: version sent.
        measure: ``seconds`` or ``wire bytes``.
        winner: the best other method.
        winner_value: its value.
        v3_value: v3's value.
        ratio: v3's value over the winner's; above 1.
    """

    link: str
    state: str
    version: str
    measure: str
    winner: str
    winner_value: float
    v3_value: float
    ratio: float


def find_losses(cells: list[Cell]) -> list[Loss]:
    """Cases in which some other method took less time or fewer bytes than v3, the worst first."""
    cases: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        cases.setdefault((cell.link, cell.state, cell.version), {})[cell.method] = cell
    losses = []
    for (link, state, version), by_method in cases.items():
        mine = by_method.get("v3")
        others = [cell for method, cell in by_method.items() if method != "v3"]
        if mine is None or not others:
            continue
        for measure, value in _MEASURES.items():
            best = min(others, key=value)
            if value(mine) > value(best):
                ratio = value(mine) / max(value(best), 1e-9)
                losses.append(
                    Loss(link, state, version, measure, best.method, value(best), value(mine), ratio)
                )
    return sorted(losses, key=lambda loss: -loss.ratio)


_MEASURES: Final[dict[str, typing.Callable[[Cell], float]]] = {
    "seconds": lambda cell: cell.seconds,
    "wire bytes": lambda cell: float(cell.wire_bytes),
}


def describe_machine() -> dict[str, str]:
    """Facts of this machine that bear on the numbers; nothing that names it."""
    model = "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": model,
        "usable_cpus": str(cpus),
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    versions = {"python": sys.version.split()[0]}
    for package in ("dwcp_fast", "numpy", "zstandard", "xxhash", "lz4", "matplotlib"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _read(wanted: Any, value: object, where: str) -> Any:
    """Turn plain values into dataclasses, refusing what does not fit the annotations."""
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        fields = typing.get_type_hints(wanted)
        if not isinstance(value, dict) or set(value) != set(fields):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise FormatError(f"{where} holds {found}, not {sorted(fields)}")
        return wanted(**{key: _read(fields[key], value[key], f"{where}.{key}") for key in fields})
    if isinstance(wanted, types.GenericAlias):
        inner = typing.get_args(wanted)
        if wanted.__origin__ is list and isinstance(value, list):
            return [_read(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        if wanted.__origin__ is dict and isinstance(value, dict):
            return {_read(inner[0], k, where): _read(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    elif wanted is float and type(value) is int:
        return float(value)
    elif type(value) is wanted:
        return value
    raise FormatError(f"{where} is {type(value).__name__}, not {getattr(wanted, '__name__', wanted)}")
