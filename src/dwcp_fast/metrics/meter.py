"""Counts what the sessions and listeners of this process do.

One lock guards all counters, so that what belongs together changes together. No call of the native side is
made under it: those take locks of their own.
"""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

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
from dwcp_fast.received import Received
from dwcp_fast.reports import CodecShare, Progress, ReceiveReport, SendReport
from dwcp_fast.told import EventsTold

__all__ = ["ERROR_CODES", "METER", "Meter", "SessionMark"]

T = TypeVar("T", bound=SendReport | ReceiveReport | Received | None)

ERROR_CODES: Final = frozenset(
    {"cancelled", "closed", "interrupted", "system", "internal", "other"}
    | {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DwcpError)}
)
"""The values that the label of an error may have: a peer cannot make more of them."""

MOST_REPORTS: Final = 128
ENDED_BY_US: Final = frozenset({"cancelled", "closed", "v3-stopped"})


@dataclass(eq=False, slots=True)
class Running:
    """A transfer under way."""

    direction: Direction
    protocol: Protocol
    progress: Callable[[], Progress]
    credited: int = 0
    begun: bool = False
    last: Progress | None = None


@dataclass(slots=True)
class Flow:
    """The counters of one direction and protocol, by the names of `FlowStats`, of what has ended."""

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

    def __init__(self, events: Callable[[], EventsTold] = _core.event_counts) -> None:
        """Begin at zero.

        Args:
            events: Tells what has happened on all sessions and listeners; the native side counts that itself,
                so that nobody has to be called for it.
        """
        self._events = events
        self._lock = threading.Lock()
        self._enabled = True
        # What the garbage collector ends may be ended while this very thread holds the lock.
        self._ended: SimpleQueue[Role] = SimpleQueue()
        self._opened: Counter[Role] = Counter()
        self._closed: Counter[Role] = Counter()
        self._flows = {(way, protocol): Flow() for way in DIRECTIONS for protocol in PROTOCOLS}
        self._errors: Counter[tuple[Phase, str]] = Counter()
        self._running: set[Running] = set()
        # To add up a hundred takes a quarter of what it takes for each at the end of its transfer.
        self._reports: list[tuple[Direction, Protocol, int, SendReport | ReceiveReport | None]] = []

    def set_enabled(self, on: bool) -> None:
        """Count from now on, or no more; sessions and transfers under way are counted to their end.

        Args:
            on: Whether to count.
        """
        self._enabled = on

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

    def measure(
        self,
        direction: Direction,
        protocol: Protocol,
        progress: Callable[[], Progress],
        call: Callable[[], T],
        *,
        waits: bool = False,
    ) -> T:
        """Make a transfer, and count what comes of it.

        Args:
            direction: Whether this side sends or receives.
            protocol: The engine.
            progress: Tells where it stands.
            call: Makes it; gives None where there was none to be made.
            waits: Whether it begins by waiting for the peer, so that it may end without having begun.

        Returns:
            What `call` returns; what it raises is raised.
        """
        if not self._enabled:
            return call()
        running = Running(direction, protocol, progress)
        with self._lock:
            self._running.add(running)
        try:
            outcome = call()
        except BaseException as error:
            self._end_failed(running, error, waits=waits)
            raise
        report = outcome.report if isinstance(outcome, Received) else outcome
        with self._lock:
            self._running.discard(running)
            self._reports.append((direction, protocol, running.credited, report))
            if len(self._reports) >= MOST_REPORTS:
                self._add_reports()
        return outcome

    def _add_reports(self) -> None:
        """Add up what has ended well."""
        for direction, protocol, credited, report in self._reports:
            flow = self._flows[direction, protocol]
            if report is None:
                flow.withdrawn += 1
            else:
                add_report(flow, report, credited)
        self._reports.clear()

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
        with self._lock:
            running = list(self._running)
        seen = [(transfer, read_progress(transfer)) for transfer in running]
        events = self._events()
        with self._lock:
            self._add_reports()
            for transfer, progress in seen:
                # One that has ended meanwhile was counted to its end.
                if transfer in self._running and progress is not None:
                    self._credit(transfer, progress)
            self._count_closed()
            return self._stats(events)

    def _count_closed(self) -> None:
        """Count the sessions that have ended, with the lock held."""
        while True:
            try:
                self._closed[self._ended.get_nowait()] += 1
            except Empty:
                return

    def _credit(self, running: Running, progress: Progress) -> None:
        """Count what has gone over the wire of a transfer that is not complete."""
        if progress.state_bytes_total == 0:
            return
        running.begun, running.last = True, progress
        more = progress.wire_bytes - running.credited
        if more > 0:
            running.credited = progress.wire_bytes
            flow = self._flows[running.direction, running.protocol]
            flow.wire_bytes += more
            flow.unfinished_wire_bytes += more

    def _end_failed(self, running: Running, error: BaseException, *, waits: bool) -> None:
        progress = read_progress(running)
        code = error_code(error)
        with self._lock:
            if progress is not None:
                self._credit(running, progress)
            self._running.discard(running)
            flow = self._flows[running.direction, running.protocol]
            # Nobody came, and nobody is waited for any more: that is no failure of a transfer.
            idle = isinstance(error, DeadlineError) or code in ENDED_BY_US
            if waits and not running.begun and idle:
                flow.withdrawn += 1
                return
            flow.failed += 1
            self._errors["transfer", code] += 1

    def _stats(self, events: EventsTold) -> Stats:
        active = Counter((running.direction, running.protocol) for running in self._running)
        live = [running.last for running in self._running if running.last is not None]
        paths = [progress.path for progress in live if progress.path is not None]
        return Stats(
            taken_s=time.monotonic(),
            sessions=tuple(
                SessionStats(role=role, opened=self._opened[role], closed=self._closed[role])
                for role in ROLES
            ),
            flows=tuple(flow_stats(*key, flow, active[key]) for key, flow in self._flows.items()),
            lanes=LaneStats(
                opened=events["lanes_opened"],
                lost=events["lanes_lost"],
                reconnects=events["reconnects"],
                open=sum(progress.lanes for progress in live),
                rtt_s=sum(path.rtt_ms for path in paths) / len(paths) / 1e3 if paths else None,
                delivery_bytes_per_s=sum(path.delivery_bytes_per_s for path in paths),
            ),
            errors=tuple(
                ErrorCount(phase=phase, code=code, count=count)
                for (phase, code), count in sorted(self._errors.items())
            ),
            integrity_failures=events["integrity_failures"],
            peers_refused=events["peers_refused"],
        )


def error_code(error: BaseException) -> str:
    """Give the name of a failure, one of `ERROR_CODES`."""
    if isinstance(error, DwcpError):
        return error.code if error.code in ERROR_CODES else "other"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "system" if isinstance(error, OSError) else "internal"


def read_progress(running: Running) -> Progress | None:
    """Tell where a transfer stands, None if its session is gone."""
    try:
        return running.progress()
    except DwcpError:
        return None


def add_report(flow: Flow, report: SendReport | ReceiveReport, credited: int) -> None:
    """Count a completed transfer, of which some bytes were counted already."""
    flow.completed += 1
    flow.state_bytes += report.bytes_raw
    flow.wire_bytes += report.bytes_wire - credited
    flow.unfinished_wire_bytes -= credited
    # What is mostly zero is not added: this is done for each transfer, and some are short.
    if report.bytes_held or report.bytes_same or report.nacks:
        flow.held_bytes += report.bytes_held
        flow.same_bytes += report.bytes_same
        flow.nacks += report.nacks
    flow.seconds += report.seconds
    flow.cpu_seconds += report.cpu_seconds or 0.0
    if isinstance(report, SendReport):
        flow.blocks_resent += report.blocks_resent
        if report.path is not None:
            flow.tcp_sent_bytes += report.path.sent_bytes or 0
            flow.tcp_retransmitted_bytes += report.path.retransmitted_bytes or 0
            flow.tcp_retransmitted_segments += report.path.retransmitted_segments
    for share in report.codec_mix:
        sums = flow.shares.setdefault((share.kind, share.codec), [0, 0, 0])
        sums[0] += share.blocks
        sums[1] += share.raw_bytes
        sums[2] += share.wire_bytes


def flow_stats(direction: Direction, protocol: Protocol, flow: Flow, active: int) -> FlowStats:
    """Make the immutable picture of a flow of which so many transfers are under way."""
    plain = {name: getattr(flow, name) for name in Flow.__slots__ if name != "shares"}
    shares = tuple(CodecShare(*key, *sums) for key, sums in sorted(flow.shares.items()))
    started = active + flow.completed + flow.failed + flow.withdrawn
    return FlowStats(direction=direction, protocol=protocol, started=started, codecs=shares, **plain)


METER: Final = Meter()
"""The counters of this process."""
