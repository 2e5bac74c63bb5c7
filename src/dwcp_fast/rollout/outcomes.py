"""How transfers ended, as lines of a file: written by the nodes that send, read by whoever judges a rollout.

A node takes part where ``DWCP_OUTCOMES_FILE`` names its file.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeGuard

from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.policy.engine import Engine
from dwcp_fast.policy.stages import Outcome
from dwcp_fast.reports import SendReport
from dwcp_fast.rollout.flags import node_name

__all__ = ["OUTCOMES_VARIABLE", "failure_code", "failures_recorded", "read_outcomes", "recorded"]

LOG: Final = logging.getLogger(__name__)
OUTCOMES_VARIABLE: Final = "DWCP_OUTCOMES_FILE"
MAX_FILE_BYTES: Final = 8 << 20
"""A longer file becomes the one before, so that two of them are kept."""
MAX_LINE_BYTES: Final = 16 << 10
NOT_FAILURES: Final = frozenset({"cancelled", "closed", "v3-stopped"})
"""Ends that somebody wanted: they say nothing about the engine."""


def recorded(engine: Callable[[], Engine], send: Callable[[], SendReport]) -> SendReport:
    """Send, and write down how it ended if the environment says where.

    Args:
        engine: Tells the engine at work when it fails.
        send: Sends.

    Returns:
        What `send` returns; it raises what `send` raises.
    """
    first, began = engine(), time.monotonic()
    with failures_recorded(engine):
        report = send()
    path = os.environ.get(OUTCOMES_VARIABLE)
    if path:
        # As whoever waits for it sees it; but v1 is not to blame for what v3 took before it was stopped.
        seconds = time.monotonic() - began if report.protocol == first else report.seconds
        told = {
            "protocol": report.protocol,
            "failure": None,
            "seconds": seconds,
            "bytes_raw": report.bytes_raw,
        }
        append(Path(path), told, report.record())
    return report


@contextmanager
def failures_recorded(engine: Callable[[], Engine]) -> Iterator[None]:
    """Write down what the block raises, if the environment says where.

    Args:
        engine: Tells the engine at work when it fails.
    """
    began = time.monotonic()
    try:
        yield
    except Exception as exc:
        path, code = os.environ.get(OUTCOMES_VARIABLE), failure_code(exc)
        if path and code is not None:
            seconds = time.monotonic() - began
            append(Path(path), {"protocol": engine(), "failure": code, "seconds": seconds}, None)
        raise


def failure_code(exc: Exception) -> str | None:
    """Give the code of what ended a transfer, None if that says nothing about the engine.

    Options that cannot be used, files that cannot be read, and ends that somebody wanted do not.
    """
    if isinstance(exc, DwcpError):
        return None if isinstance(exc, ConfigError) or exc.code in NOT_FAILURES else exc.code
    if isinstance(exc, OSError) and not isinstance(exc, ConnectionError | TimeoutError):
        return None
    return type(exc).__name__


def append(path: Path, told: dict[str, Any], record: dict[str, Any] | None) -> None:
    """Add a line to a file; what cannot be written is logged, since the transfer is what matters."""
    line = {"at_s": time.time(), "node": node_name(), "bytes_raw": 0, **told, "record": record}
    data = f"{json.dumps(line)}\n".encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            # One write: lines of several processes do not mix.
            os.write(descriptor, data)
            full = os.fstat(descriptor).st_size > MAX_FILE_BYTES
        finally:
            os.close(descriptor)
        if full:
            path.replace(older(path))
    except OSError as exc:
        LOG.warning("the outcome of a transfer cannot be written to %s: %s", path, exc.strerror)


def older(path: Path) -> Path:
    """Name the file before."""
    return path.with_name(f"{path.name}.1")


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
        for path in sorted(place.glob("*.jsonl")) if place.is_dir() else [place]:
            for one in (older(path), path):
                with contextlib.suppress(FileNotFoundError):
                    # A file that nobody wrote to since then has nothing of interest.
                    if one.stat().st_mtime >= since_s:
                        found += (outcome for outcome in read_lines(one) if outcome.at_s >= since_s)
    return found


def read_lines(path: Path) -> Iterator[Outcome]:
    """Read the outcomes in a file."""
    bad = 0
    with path.open("rb") as file:
        # Whoever writes it keeps it short; another file is read no further than that.
        left = MAX_FILE_BYTES + MAX_LINE_BYTES
        while left > 0 and (line := file.readline(MAX_LINE_BYTES)):
            left -= len(line)
            if not line.endswith(b"\n"):
                # Somebody is writing it, or it is too long.
                continue
            outcome = parse_outcome(line)
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
    if not (is_number(at_s) and is_number(seconds) and type(bytes_raw) is int and bytes_raw >= 0):
        return None
    if protocol not in {"v1", "v3"} or not isinstance(node, str) or not isinstance(failure, str | None):
        return None
    return Outcome(
        at_s=at_s, node=node, protocol=protocol, failure=failure, seconds=seconds, bytes_raw=bytes_raw
    )


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
