"""Measuring what every action makes of real blocks, in a run that can be stopped and goes on where it was."""

import hashlib
import os
import platform
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dwcp_fast import __version__, _core
from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.options import check_int, check_seconds
from dwcp_fast.train.selector.content import Content, Deadline
from dwcp_fast.train.selector.corpus import Candidate, chosen, rank, split_by_group
from dwcp_fast.train.selector.journal import Journal
from dwcp_fast.train.selector.table import (
    MANIFEST_NAME,
    TABLE_NAME,
    TYPED,
    Row,
    write_manifest,
    write_table,
)

__all__ = ["CollectOptions", "CollectReport", "Step", "collect"]

KIB: Final = 1 << 10
BLOCK_BYTES: Final = 1 << 20
SHORT_BLOCKS: Final = (256 * KIB, 64 * KIB)
"""A block of each of these lengths is taken as well of a file that is longer than a block."""
PAGE_BYTES: Final = 4 * KIB
SLOW_NS: Final = 6_000_000
"""What takes longer than this is repeated once less: noise is a smaller part of it."""
SAMPLE_WIDTH: Final = 4
SAMPLE_REPEATS: Final = 8
JOURNAL_NAME: Final = "unfinished.jsonl"
Costs = dict[str, tuple[int, int, int]]
"""For each action: coded length in bytes, and nanoseconds for coding and decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """How to measure.

    Attributes:
        blocks: Most whole blocks (1 MiB) of a file, spread over it.
        repeats: How often each action is measured in a pass, the actions in turn; the least time is kept.
        file_timeout_s: Seconds for one file; what was measured until then is kept.
        seed: What the choice and the division of files depend on.

    Raises:
        ConfigError: A value is out of range; the message names the field.
    """

    blocks: int = 6
    repeats: int = 3
    file_timeout_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        check_int("blocks", self.blocks, 1, 1 << 16)
        check_int("repeats", self.repeats, 1, 1_000)
        check_seconds("file_timeout_s", self.file_timeout_s)
        check_int("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a collection has come.

    Attributes:
        done: Files done with, measured or skipped.
        total: Files in all.
        rows: Rows measured.
        file: The file that was done with last.
        reason: Why it was skipped, None if it was measured.
    """

    done: int
    total: int
    rows: int
    file: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection came to.

    Attributes:
        rows: Rows of the table.
        families: Files of each family.
        skipped: Why each of the other files is not in the table.
        kept: Files that an earlier, interrupted run had measured.
    """

    rows: int
    families: dict[str, int]
    skipped: dict[str, str]
    kept: int


def collect(
    candidates: Iterable[Candidate],
    folder: Path,
    options: CollectOptions,
    tell: Callable[[Step], None],
) -> CollectReport:
    """Measure files, and write the table and its manifest.

    Every file is measured once and then in the journal, so that a run that was stopped goes on with the next.
    Files that cannot be read are skipped, and named with the reason in the manifest, as are those whose bytes
    were measured under another name.

    Args:
        candidates: What to measure.
        folder: Where the table goes; made if it is missing.
        options: How to measure.
        tell: Is called after every file.

    Raises:
        ConfigError: The folder holds a table, or an interrupted run of other settings.
        FormatError: It holds something else under the name of the journal.
        OSError: It cannot be written.
    """
    ordered = chosen(candidates, options.seed)
    actions, features = _core.select_actions(), _core.select_feature_names()
    journal_path, table_path = folder / JOURNAL_NAME, folder / TABLE_NAME
    if table_path.exists() and not journal_path.exists():
        raise ConfigError(f"{table_path} is complete", hint="name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal.resume(journal_path, {**asdict(options), "actions": actions, "features": features})
    kept = sum(candidate.id in journal.entries for candidate in ordered)
    digests = {entry["sha256"]: name for name, entry in journal.entries.items() if "sha256" in entry}
    rows = sum(len(entry.get("rows", ())) for entry in journal.entries.values())
    for done, candidate in enumerate(ordered, 1):
        if candidate.id in journal.entries:
            continue
        entry = measured(candidate, options, actions, digests)
        journal.entries[candidate.id] = entry
        journal.append(entry)
        rows += len(entry.get("rows", ()))
        tell(Step(done, len(ordered), rows, candidate.id, entry.get("skipped")))
    report = write(folder, journal, options, actions, features, kept)
    journal_path.unlink()
    return report


def measured(
    candidate: Candidate, options: CollectOptions, actions: Sequence[str], digests: dict[str, str]
) -> dict[str, Any]:
    """Measure a file, and give its entry of the journal."""
    entry: dict[str, Any] = {
        "id": candidate.id,
        "family": candidate.family,
        "group": candidate.group,
        "source": candidate.source,
        "width": candidate.width,
    }
    deadline = Deadline.after(options.file_timeout_s)
    try:
        with candidate.open(deadline) as content:
            if not content.length:
                return {**entry, "skipped": "is empty"}
            digest = digest_of(content, deadline)
            if digest in digests:
                return {**entry, "skipped": f"has the bytes of {digests[digest]}"}
            most = candidate.blocks or options.blocks
            extents = list(extents_of(content.length, most, candidate.id, options.seed))
            rows = measured_rows(content, extents, candidate.width, options.repeats, actions, deadline)
            entry |= {"bytes": content.length, "sha256": digest, "rows": rows}
    except (OSError, DwcpError, ValueError, subprocess.SubprocessError) as error:
        return {**entry, "skipped": told(error)}
    digests[digest] = candidate.id
    return entry


def told(error: Exception) -> str:
    """Tell what is wrong without naming a path, which says nothing of the content and much of the machine."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done within {error.timeout:.0f} s"
    return str(error) or type(error).__name__


def digest_of(content: Content, deadline: Deadline) -> str:
    """Give the SHA-256 of a content."""
    digest = hashlib.sha256()
    for offset in range(0, content.length, 4 * BLOCK_BYTES):
        deadline.check()
        digest.update(content.read(offset, 4 * BLOCK_BYTES))
    return digest.hexdigest()


def extents_of(length: int, most: int, name: str, seed: int) -> Iterator[tuple[int, int]]:
    """Give offset and length of the blocks to take: whole ones, as a transfer has them, then shorter ones."""
    count = length // BLOCK_BYTES
    if not count:
        yield 0, length
        return
    taken = min(count, most)
    yield from ((count * (2 * place + 1) // (2 * taken) * BLOCK_BYTES, BLOCK_BYTES) for place in range(taken))
    if length > BLOCK_BYTES:
        for short in SHORT_BLOCKS:
            at = int.from_bytes(rank(seed, f"{name}:{short}")[:8], "big") % (length - short + 1)
            yield at - at % PAGE_BYTES, short


def measured_rows(
    content: Content,
    extents: Sequence[tuple[int, int]],
    width: int | None,
    repeats: int,
    actions: Sequence[str],
    deadline: Deadline,
) -> list[dict[str, Any]]:
    """Measure blocks: all of them in a first pass, then all again in another.

    Where the width is known there is a row with it and one without for every block, of the same measurement.
    """
    offered = [action for action in actions if width is not None or action != TYPED]
    first: list[Costs] = []
    for offset, length in extents:
        # One block is measured however long it takes; others, only if the time allows.
        if first and not deadline.remaining_s:
            break
        first.append(least(content.read(offset, length), width, repeats, offered))
    rows: list[dict[str, Any]] = []
    for place, once in enumerate(first):
        block = content.read(*extents[place])
        again = least(block, width, repeats, offered)
        costs = {name: [*cost, again[name][1]] for name, cost in once.items()}
        for told in {width, None}:
            row = {"block": place, "raw_bytes": len(block), "width": told}
            taken = {name: cost for name, cost in costs.items() if told is not None or name != TYPED}
            rows.append({**row, "features": _core.select_features(block, told), "costs": taken})
    # The rows that a stream of such blocks would have follow each other.
    return sorted(rows, key=lambda row: (row["width"] or 0, row["block"]))


def least(block: bytes, width: int | None, repeats: int, actions: Sequence[str]) -> Costs:
    """Measure actions in turn, again and again, and keep the least times of each.

    In turn, because a processor that sees the same block twice running foretells its branches: for 64 KiB of
    logs LZ4 then takes half of the time that it takes in a stream of blocks, and in turn 5 % more than that.
    """
    best: Costs = {}
    for turn in range(repeats):
        for action in actions:
            known = best.get(action)
            if known and turn == repeats - 1 > 0 and known[1] > SLOW_NS:
                continue
            size, compress_ns, decompress_ns = _core.measure_action(block, action, width, 1)
            if known:
                compress_ns, decompress_ns = min(compress_ns, known[1]), min(decompress_ns, known[2])
            best[action] = (size, compress_ns, decompress_ns)
    return best


def write(
    folder: Path,
    journal: Journal,
    options: CollectOptions,
    actions: Sequence[str],
    features: Sequence[str],
    kept: int,
) -> CollectReport:
    """Write the table and the manifest of what the journal holds."""
    taken = {name: entry for name, entry in sorted(journal.entries.items()) if "rows" in entry}
    skipped = {
        name: str(entry["skipped"]) for name, entry in sorted(journal.entries.items()) if "skipped" in entry
    }
    splits = split_by_group([(entry["family"], entry["group"]) for entry in taken.values()], options.seed)
    files = []
    for entry in taken.values():
        said = {key: entry[key] for key in ("id", "family", "group", "source", "width", "bytes", "sha256")}
        blocks = len({row["block"] for row in entry["rows"]})
        files.append({**said, "blocks": blocks, "rows": len(entry["rows"]), "split": splits[entry["group"]]})
    rows = write_table(
        folder / TABLE_NAME,
        features,
        actions,
        ((name, entry["family"], map(row_of, entry["rows"])) for name, entry in taken.items()),
    )
    families = dict(sorted(Counter(entry["family"] for entry in taken.values()).items()))
    write_manifest(
        folder / MANIFEST_NAME,
        {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            # The codecs' libraries are built in, so that this says which they are.
            "versions": {"dwcp_fast": __version__},
            "calibration_ns_per_byte": calibration(actions),
            "settings": {**asdict(options), "block_bytes": BLOCK_BYTES},
            "actions": actions,
            "features": features,
            "rows": rows,
            "families": families,
            "splits": counts_of(files),
            "files": files,
            "skipped": skipped,
        },
    )
    return CollectReport(rows, families, skipped, kept)


def row_of(row: dict[str, Any]) -> Row:
    """Give a row as the table takes it."""
    return Row(
        block=row["block"],
        raw_bytes=row["raw_bytes"],
        width=row["width"],
        features=tuple(row["features"]),
        costs={action: (cost[0], cost[1], cost[2], cost[3]) for action, cost in row["costs"].items()},
    )


def counts_of(files: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count files and rows of each split."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"files": 0, "rows": 0})
    for entry in files:
        counts[entry["split"]]["files"] += 1
        counts[entry["split"]]["rows"] += entry["rows"]
    return dict(counts)


def calibration(actions: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Measure how long each action takes to code and decode the sample for calibration, in ns for a byte."""
    sample = _core.calibration_sample()
    costs = least(sample, SAMPLE_WIDTH, SAMPLE_REPEATS, actions)
    return {
        action: (round(cost[1] / len(sample), 4), round(cost[2] / len(sample), 4))
        for action, cost in costs.items()
    }


def machine() -> dict[str, Any]:
    """Tell what the times were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    said = {key.strip(): value.strip() for key, value in told.items()}
    keys = {"model name": "cpu", "cpu family": "cpu_family", "model": "cpu_model", "cache size": "cache"}
    return {
        **{name: said[key] for key, name in keys.items() if key in said},
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
