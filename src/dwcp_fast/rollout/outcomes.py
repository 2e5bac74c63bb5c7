"""How transfers end, as lines of a file: written by the nodes that send.

A node takes part where ``DWCP_OUTCOMES_FILE`` names its file.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.policy.engine import Engine
from dwcp_fast.reports import SendReport
from dwcp_fast.rollout.flags import node_name

__all__ = [
    "MAX_FILE_BYTES",
    "OUTCOMES_VARIABLE",
    "append",
    "failure_code",
    "failures_recorded",
    "older",
    "recorded",
]

LOG: Final = logging.getLogger(__name__)
OUTCOMES_VARIABLE: Final = "DWCP_OUTCOMES_FILE"
MAX_FILE_BYTES: Final = 8 << 20
"""A longer file becomes the one before, so that two of them are kept."""
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
            if os.fstat(descriptor).st_size > MAX_FILE_BYTES:
                make_room(path, descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        LOG.warning("the outcome of a transfer cannot be written to %s: %s", path, exc.strerror)


def make_room(path: Path, descriptor: int) -> None:
    """Make a full file the one before, unless another writer of it does or did."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    with contextlib.suppress(FileNotFoundError):
        # Not what others have written since then to a new file of that name.
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            path.replace(older(path))


def older(path: Path) -> Path:
    """Name the file before."""
    return path.with_name(f"{path.name}.1")
