"""Where the rollout's flags come from, and which of them are in force.

A source that cannot be read keeps what it said last; the log says why, once a minute for each cause.
"""

import json
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from dwcp_fast.errors import ConfigError, LimitExceededError
from dwcp_fast.policy.rollout import COMPONENTS, RolloutFlags, merge_flags, parse_changes

__all__ = [
    "FILE_VARIABLE",
    "FLAGS_VARIABLE",
    "NODE_VARIABLE",
    "EnvironmentFlags",
    "FileFlags",
    "FlagSource",
    "FlagsInForce",
    "component_refusal",
    "current_flags",
    "node_name",
    "use_flags",
]

LOG: Final = logging.getLogger(__name__)
FILE_VARIABLE: Final = "DWCP_FLAGS_FILE"
FLAGS_VARIABLE: Final = "DWCP_FLAGS"
NODE_VARIABLE: Final = "DWCP_NODE_NAME"
MAX_FILE_BYTES: Final = 64 << 10
QUIET_S: Final = 60.0
MAX_CAUSES: Final = 64


class FlagSource(Protocol):
    """Somewhere flags come from."""

    @property
    def name(self) -> str:
        """What it is called in logs."""

    def read(self) -> Mapping[str, object]:
        """Give the flags that it names, by their JSON names.

        Raises:
            DwcpError: They cannot be used.
            OSError: They cannot be read.
        """


class FileFlags:
    """A file with one JSON object."""

    def __init__(self, path: Path) -> None:
        """Note where it is; nothing is read yet."""
        self._path = path

    @property
    def name(self) -> str:
        """The file."""
        return str(self._path)

    def read(self) -> dict[str, object]:
        """Read the file.

        Raises:
            ConfigError: It is not what :func:`~dwcp_fast.policy.rollout.parse_flags` reads, or no file.
            LimitExceededError: It is too long.
            OSError: It cannot be read.
        """
        # A pipe in its place must not make anybody wait.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"flag file {self._path} is no regular file")
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise LimitExceededError(
                f"flag file {self._path} has over {MAX_FILE_BYTES} bytes, which is the limit"
            )
        return parse_changes(text)


class EnvironmentFlags:
    """An environment variable with one JSON object."""

    name = FLAGS_VARIABLE

    def read(self) -> dict[str, object]:
        """Read the variable; not set or empty, it names no flag.

        Raises:
            ConfigError: It is not what :func:`~dwcp_fast.policy.rollout.parse_flags` reads.
        """
        text = os.environ.get(FLAGS_VARIABLE)
        return parse_changes(text, FLAGS_VARIABLE) if text else {}


class FlagsInForce:
    """The flags of several sources, later ones the stronger; what one leaves out it does not change."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Hold nothing yet.

        Args:
            clock: Tells the seconds, for how often a cause is logged.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._good: dict[str, Mapping[str, object]] = {}
        self._told: dict[tuple[str, str], float] = {}

    def read(self, sources: Sequence[FlagSource]) -> RolloutFlags:
        """Read the sources.

        Args:
            sources: Where flags come from, the weakest first.

        Returns:
            The flags in force.

        Raises:
            DwcpError: A source cannot be used, and never could be.
            OSError: A source cannot be read, and never could be.
        """
        with self._lock:
            flags = RolloutFlags()
            for source in sources:
                flags = merge_flags(flags, self._read_source(source))
            return flags

    def renew_lock(self) -> None:
        """Forget who holds the lock: after a fork it may be a thread that is not there."""
        self._lock = threading.Lock()

    def _read_source(self, source: FlagSource) -> Mapping[str, object]:
        good = self._good.get(source.name)
        try:
            changes = dict(source.read())
            merge_flags(RolloutFlags(), changes)
        except Exception as exc:
            # Whatever a source raises, it must not end the sessions of those who do not read it.
            if good is None:
                raise
            self._complain(source.name, exc)
            return good
        if good is not None and changes != good:
            LOG.info("the flags of %s are %s now", source.name, json.dumps(changes, sort_keys=True))
        self._good[source.name] = changes
        return changes

    def _complain(self, name: str, exc: Exception) -> None:
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        # Behind a colon are positions and the like, which differ from one read to the next.
        cause = (name, text.partition(":")[0])
        now = self._clock()
        last = self._told.get(cause)
        if last is not None and now - last < QUIET_S:
            return
        if len(self._told) >= MAX_CAUSES:
            self._told.clear()
        self._told[cause] = now
        LOG.warning("the flags of %s stay what they were, since they cannot be used: %s", name, text)


IN_FORCE: Final = FlagsInForce()
os.register_at_fork(after_in_child=IN_FORCE.renew_lock)
OWN: Final[list[FlagSource]] = []
"""What the process itself has given, one at most."""


def use_flags(source: FlagSource | None) -> None:
    """Have this process read flags from a source of its own, weaker than the file and the environment.

    Args:
        source: The source, such as :class:`~dwcp_fast.rollout.openfeature.OpenFeatureFlags`; None for none.
    """
    OWN[:] = [] if source is None else [source]


def current_flags() -> RolloutFlags | None:
    """Read the flags in force: of :func:`use_flags`, the file, and the environment, the last the strongest.

    Returns:
        The flags, None where there is no source of any.

    Raises:
        DwcpError: A source cannot be used, and never could be.
        OSError: A source cannot be read, and never could be.
    """
    path = os.environ.get(FILE_VARIABLE)
    sources: list[FlagSource] = list(OWN)
    if path:
        sources.append(FileFlags(Path(path)))
    if os.environ.get(FLAGS_VARIABLE):
        sources.append(EnvironmentFlags())
    return IN_FORCE.read(sources) if sources else None


def component_refusal(component: str) -> str | None:
    """Say why a component of a v3 session is not to be used, None if it is.

    Args:
        component: Its name, such as "compression".

    Raises:
        DwcpError: As for :func:`current_flags`.
        OSError: As for :func:`current_flags`.
    """
    flags = current_flags()
    if flags is None or getattr(flags, COMPONENTS[component]):
        return None
    return f"the flags leave {COMPONENTS[component]} off"


def node_name() -> str:
    """Give the name that places this node in a rollout: ``DWCP_NODE_NAME``, or that of the host."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()
