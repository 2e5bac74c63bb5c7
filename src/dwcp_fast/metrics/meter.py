"""Counts what the sessions and listeners of this process do.

The native side counts events and the transfers of v3, so that Python is not called for any of them; here are
sessions, v1, relays, and what could not be connected. On either side one lock guards all counters, so that
what belongs together changes together. No call of the native side is made under the one here.
"""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from dwcp_fast import _core, errors
from dwcp_fast.errors import DeadlineError, DwcpError
from dwcp_fast.metrics.stats import (
    DIRECTIONS,
    PROTOCOLS,
    ROLES,
    Direction,
    ErrorCount,
    FlowStats,
    LaneStats,
    Phase,
    Protocol,
    Role,
    SessionStats,
    Stats,
)
from dwcp_fast.reports import CodecShare, ReceiveReport, SendReport
from dwcp_fast.told import EventsTold, FlowTold, TotalsTold

__all__ = ["ERROR_CODES", "METER", "Counting", "Meter", "SessionMark", "count_failed"]

T = TypeVar("T", bound=SendReport | ReceiveReport)
Counting = _core.Sender | _core.Fetcher | _core.Server | _core.Receiver

ERROR_CODES: Final = frozenset(
    {"cancelled", "closed", "interrupted", "system", "internal", "other"}
    | {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DwcpError)}
)
"""The values that the label of an error may have: a peer cannot make more of them."""

ENDED_BY_US: Final = frozenset({"cancelled", "closed", "v3-stopped"})
NO_EVENTS: Final = EventsTold(
    lanes_opened=0, lanes_lost=0, reconnects=0, integrity_failures=0, peers_refused=0
)


@dataclass(slots=True)
class Flow:
    """The counters of one direction and protocol, by the names of `FlowStats`."""

    active: int = 0
    completed: int = 0
    failed: int = 0
    withdrawn: int = 0
    state_bytes: int = 0
    wire_bytes: int = 0
    unfinished_wire_bytes: int = 0
    held_bytes: int = 0
    same_bytes: int = 0
    blocks_resent: int = 0
    nacks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tcp_sent_bytes: int = 0
    tcp_retransmitted_bytes: int = 0
    tcp_retransmitted_segments: int = 0
    shares: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def copy(self) -> "Flow":
        """Give the same counters, to add others to."""
        return replace(self, shares={key: list(sums) for key, sums in self.shares.items()})

    def add_shares(self, shares: Iterable[CodecShare]) -> None:
        """Count how the blocks of a transfer were represented."""
        for share in shares:
            sums = self.shares.setdefault((share.kind, share.codec), [0, 0, 0])
            sums[0] += share.blocks
            sums[1] += share.raw_bytes
            sums[2] += share.wire_bytes


COUNTERS: Final = tuple(name for name in Flow.__slots__ if name != "shares")


class SessionMark:
    """That a session is open; closing it a second time does nothing."""

    def __init__(self, close: Callable[[], object]) -> None:
        """Note what ends it."""
        self._close = close

    def close(self) -> None:
        """Count the session as closed."""
        self._close()


class Meter:
    """The counters of a process."""

    def __init__(
        self,
        totals: Callable[[], TotalsTold] | None = None,
        set_counting: Callable[[bool], None] | None = None,
    ) -> None:
        """Begin at zero.

        Args:
            totals: Tells what the native side has counted; None leaves it out.
            set_counting: Has the native side count transfers, or count them no more.
        """
        self._totals = totals
        self._set_counting = set_counting
        self._lock = threading.Lock()
        self._enabled = True
        # What the garbage collector ends may be ended while this very thread holds the lock.
        self._ended: SimpleQueue[Role] = SimpleQueue()
        self._opened: Counter[Role] = Counter()
        self._closed: Counter[Role] = Counter()
        self._flows = {(way, protocol): Flow() for way in DIRECTIONS for protocol in PROTOCOLS}
        self._errors: Counter[tuple[Phase, str]] = Counter()

    def set_enabled(self, on: bool) -> None:
        """Count from now on, or no more; sessions and transfers under way are counted to their end.

        Args:
            on: Whether to count.
        """
        self._enabled = on
        if self._set_counting is not None:
            self._set_counting(on)

    def opened(self, session: object, role: Role) -> SessionMark:
        """Count a session as open until its mark is closed, or it is garbage.

        Args:
            session: The session, held weakly.
            role: What it is there for.
        """
        if not self._enabled:
            return SessionMark(lambda: None)
        with self._lock:
            # Where nobody asks for snapshots, what has ended must not pile up.
            self._count_closed()
            self._opened[role] += 1
        # A finalizer runs once, whoever calls it.
        end = weakref.finalize(session, self._ended.put, role)
        end.atexit = False
        return SessionMark(end)

    def count_error(self, phase: Phase, error: BaseException) -> None:
        """Count a failure that no transfer tells of."""
        if self._enabled:
            with self._lock:
                self._errors[phase, error_code(error)] += 1

    def measure(self, direction: Direction, protocol: Protocol, call: Callable[[], T]) -> T:
        """Make a transfer, and count what comes of it.

        Args:
            direction: Whether this side sends or receives.
            protocol: The engine.
            call: Makes it.

        Returns:
            What `call` returns; what it raises is raised.
        """
        if not self._enabled:
            return call()
        flow = self._flows[direction, protocol]
        with self._lock:
            flow.active += 1
        try:
            report = call()
        except BaseException as error:
            with self._lock:
                flow.active -= 1
                flow.failed += 1
                self._errors["transfer", error_code(error)] += 1
            raise
        with self._lock:
            flow.active -= 1
            add_report(flow, report)
        return report

    def count_ended(
        self,
        direction: Direction,
        protocol: Protocol,
        *,
        state_bytes: int,
        wire_bytes: int,
        seconds: float,
        error: BaseException | None = None,
    ) -> None:
        """Count what no call that is measured has made: what v1 delivers, and what a relay carries.

        Args:
            direction: Whether this side has sent or received it.
            protocol: The engine.
            state_bytes: Bytes of the state.
            wire_bytes: What it took on the wire.
            seconds: How long it took.
            error: What it failed with, None if it did not.
        """
        if not self._enabled:
            return
        with self._lock:
            flow = self._flows[direction, protocol]
            flow.wire_bytes += wire_bytes
            if error is not None:
                flow.failed += 1
                flow.unfinished_wire_bytes += wire_bytes
                self._errors["transfer", error_code(error)] += 1
                return
            flow.completed += 1
            flow.state_bytes += state_bytes
            flow.seconds += seconds

    def snapshot(self) -> Stats:
        """Give all counters as they are at one moment."""
        told = None if self._totals is None else self._totals()
        with self._lock:
            self._count_closed()
            return self._stats(told)

    def _count_closed(self) -> None:
        """Count the sessions that have ended, with the lock held."""
        while True:
            try:
                self._closed[self._ended.get_nowait()] += 1
            except Empty:
                return

    def _stats(self, told: TotalsTold | None) -> Stats:
        flows = {key: flow.copy() for key, flow in self._flows.items()}
        counted = self._errors.copy()
        if told is not None:
            add_flow(flows["sent", "v3"], told["sent"])
            add_flow(flows["received", "v3"], told["received"])
            counted.update({("transfer", code): count for code, count in told["errors"].items()})
        events = NO_EVENTS if told is None else told["events"]
        paths = [] if told is None else told["paths"]
        return Stats(
            taken_s=time.monotonic(),
            sessions=tuple(
                SessionStats(role=role, opened=self._opened[role], closed=self._closed[role])
                for role in ROLES
            ),
            flows=tuple(flow_stats(*key, flow) for key, flow in flows.items()),
            lanes=LaneStats(
                opened=events["lanes_opened"],
                lost=events["lanes_lost"],
                reconnects=events["reconnects"],
                open=0 if told is None else told["lanes"],
                rtt_s=sum(rtt_ms for rtt_ms, _ in paths) / len(paths) / 1e3 if paths else None,
                delivery_bytes_per_s=sum(arriving for _, arriving in paths),
            ),
            errors=tuple(
                ErrorCount(phase=phase, code=code, count=count)
                for (phase, code), count in sorted(counted.items())
            ),
            integrity_failures=events["integrity_failures"],
            peers_refused=events["peers_refused"],
        )


def count_failed(native: Counting, error: BaseException, *, waits: bool = False) -> None:
    """Count that the last transfer of a native session has failed.

    Args:
        native: The session.
        error: What is raised.
        waits: Whether such a call begins by waiting for the peer: that nobody came, and nobody is waited for
            any more, is no failure of a transfer.
    """
    code = error_code(error)
    native.count_failed(code, waits and (isinstance(error, DeadlineError) or code in ENDED_BY_US))


def error_code(error: BaseException) -> str:
    """Give the name of a failure, one of `ERROR_CODES`."""
    if isinstance(error, DwcpError):
        return error.code if error.code in ERROR_CODES else "other"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "system" if isinstance(error, OSError) else "internal"


def add_report(flow: Flow, report: SendReport | ReceiveReport) -> None:
    """Count a completed transfer."""
    flow.completed += 1
    flow.state_bytes += report.bytes_raw
    flow.wire_bytes += report.bytes_wire
    flow.seconds += report.seconds
    flow.cpu_seconds += report.cpu_seconds or 0.0
    flow.add_shares(report.codec_mix)


def add_flow(flow: Flow, told: FlowTold) -> None:
    """Add what the native side has counted."""
    counts: dict[str, Any] = {**told}
    for name in COUNTERS:
        setattr(flow, name, getattr(flow, name) + counts[name])
    flow.add_shares(CodecShare(**share) for share in told["shares"])


def flow_stats(direction: Direction, protocol: Protocol, flow: Flow) -> FlowStats:
    """Make the immutable picture of a flow."""
    plain = {name: getattr(flow, name) for name in COUNTERS if name != "active"}
    shares = tuple(CodecShare(*key, *sums) for key, sums in sorted(flow.shares.items()))
    started = flow.active + flow.completed + flow.failed + flow.withdrawn
    return FlowStats(direction=direction, protocol=protocol, started=started, codecs=shares, **plain)


METER: Final = Meter(_core.totals, _core.set_counting)
"""The counters of this process."""
