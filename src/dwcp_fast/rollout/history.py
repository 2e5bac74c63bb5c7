"""How transfers ended, as whoever judges a rollout reads it from the files of the nodes."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeGuard

from dwcp_fast.policy.stages import MAX_TIME_S, Outcome
from dwcp_fast.rollout.outcomes import MAX_FILE_BYTES, older

__all__ = ["read_outcomes"]

LOG: Final = logging.getLogger(__name__)
MAX_LINE_BYTES: Final = 16 << 10
MAX_TRANSFER_BYTES: Final = 1 << 63


def read_outcomes(places: tuple[Path, ...], since_s: float) -> list[Outcome]:
    """Read how transfers ended.

    Args:
        places: Files, and directories with files named ``*.jsonl``. What is missing has nothing to tell yet.
        since_s: Seconds since 1970 before which nothing is of interest.

    Returns:
        The outcomes, file by file. Lines that are none are left out, and logged.

    Raises:
        OSError: A file cannot be read.
    """
    found: list[Outcome] = []
    for place in places:
        for path in files_in(place) if place.is_dir() else [place]:
            for one in (older(path), path):
                with contextlib.suppress(FileNotFoundError):
                    # A file that nobody wrote to since then has nothing of interest.
                    if one.stat().st_mtime >= since_s:
                        found += (outcome for outcome in read_lines(one) if outcome.at_s >= since_s)
    return found


def files_in(directory: Path) -> list[Path]:
    """Name the files of a directory, also one that was just made the one before and not begun again."""
    full = directory.glob(older(Path("*.jsonl")).name)
    return sorted({*directory.glob("*.jsonl"), *(path.with_suffix("") for path in full)})


def read_lines(path: Path) -> Iterator[Outcome]:
    """Read the outcomes in a file."""
    bad = 0
    with path.open("rb") as file:
        # Whoever writes it keeps it short; another file is read no further than that.
        left, is_whole = MAX_FILE_BYTES + MAX_LINE_BYTES, True
        while left > 0 and (line := file.readline(MAX_LINE_BYTES)):
            left -= len(line)
            is_begin, is_whole = is_whole, line.endswith(b"\n")
            if not is_whole:
                # Somebody is writing it, or it is too long: then what follows is no line either.
                continue
            outcome = parse_outcome(line) if is_begin else None
            if outcome is None:
                bad += 1
            else:
                yield outcome
    if bad:
        LOG.warning("%s has %d lines that are no outcomes", path, bad)


def parse_outcome(line: bytes) -> Outcome | None:
    """Read one line, None if it is no outcome."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    at_s, seconds, bytes_raw = told.get("at_s"), told.get("seconds"), told.get("bytes_raw")
    node, protocol, failure = told.get("node"), told.get("protocol"), told.get("failure")
    if not (
        is_number(at_s)
        and is_number(seconds)
        and type(bytes_raw) is int
        and 0 <= bytes_raw < MAX_TRANSFER_BYTES
    ):
        return None
    if protocol not in {"v1", "v3"} or not isinstance(node, str) or not isinstance(failure, str | None):
        return None
    return Outcome(
        at_s=at_s, node=node, protocol=protocol, failure=failure, seconds=seconds, bytes_raw=bytes_raw
    )


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_TIME_S
