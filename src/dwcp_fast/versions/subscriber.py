"""Following: each version is fetched, proven, and only then offered to be committed."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from dwcp_fast.closing import Closing
from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    ConflictError,
    DwcpError,
    IntegrityError,
)
from dwcp_fast.options import check_int, check_seconds, check_threads
from dwcp_fast.policy.versions import Form, Retained, Step, plan_route
from dwcp_fast.trust import Trust
from dwcp_fast.versions.folder import Folder
from dwcp_fast.versions.manifest import Head
from dwcp_fast.versions.places import open_source
from dwcp_fast.versions.reading import Refusal, Stopped, follow, follow_in_place
from dwcp_fast.versions.reports import CommitReport
from dwcp_fast.versions.spares import Spares
from dwcp_fast.versions.state import State, Tensors
from dwcp_fast.versions.store import Source, Stamp
from dwcp_fast.waiting import Worker

__all__ = ["AsyncStagedVersion", "DeltaSubscriber", "StagedVersion"]

T = TypeVar("T")
LOG: Final = logging.getLogger(__name__)
SLICE_S: Final = 20.0
"""Longest single wait for a head."""


class StagedVersion:
    """A version that is complete and proven, but not committed.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
    """

    def __init__(self, state: State, report: CommitReport, commit: Callable[[State], bool]) -> None:
        """Hold what was staged."""
        self.version = state.version
        self.digest = state.digest
        self._commit = commit
        self._state = state
        # From now on, so that its memory is left alone.
        self._tensors = state.tensors()
        self._report = report

    @property
    def report(self) -> CommitReport:
        """What it took."""
        return self._report

    def tensors(self) -> Tensors:
        """Give its tensors by name; they never change, also when further versions come."""
        return self._tensors

    def commit(self) -> CommitReport:
        """Make it the subscriber's version: all of it, or nothing if this raises. A second time does nothing.

        Returns:
            What it took.

        Raises:
            ConflictError: Another version was committed since this one was staged.
            OSError: It cannot be written; the version before is still there, and this one is offered again.
        """
        started = time.perf_counter()
        if self._commit(self._state):
            self._report = replace(self._report, seconds_commit=time.perf_counter() - started)
        return self._report


class AsyncStagedVersion:
    """The same from coroutines.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
    """

    def __init__(self, staged: StagedVersion, worker: Worker) -> None:
        """Wrap a staged version."""
        self.version = staged.version
        self.digest = staged.digest
        self._staged = staged
        self._worker = worker

    @property
    def report(self) -> CommitReport:
        """What it took."""
        return self._staged.report

    def tensors(self) -> Tensors:
        """Give its tensors; see :meth:`StagedVersion.tensors`."""
        return self._staged.tensors()

    async def commit(self) -> CommitReport:
        """Make it the subscriber's version; see :meth:`StagedVersion.commit`.

        When the awaiting task is cancelled, the commit is still brought to its end, and this raises after it.
        """
        return await self._worker.run(self._staged.commit, lambda: None)


class DeltaSubscriber(Closing):
    """Follows the versions of a publisher. Iterating gives the newest version each time there is a newer one.

    What is held is always exactly some published version, proven tensor by tensor. A delta that cannot be
    applied is left aside for the way from an anchor; where that fails too, the typed error is raised, what is
    held stays, and the next version is tried.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Source,
        into: str | PathLike[str] | None = None,
        *,
        trust: Trust | None = None,
        threads: int = 1,
        max_version_bytes: int = 1 << 36,
    ) -> None:
        """Follow a source.

        Args:
            source: A directory, ``s3://bucket/prefix``, ``HOST:PORT`` or a pairing string of a publisher that
                listens, or a source.
            into: A directory whose ``model.safetensors`` is the committed version; None keeps it in memory.
            trust: How to know a publisher that listens; see :func:`~dwcp_fast.connect`.
            threads: Threads that decode and prove, 1 to 256.
            max_version_bytes: Most bytes that a version may have.

        Raises:
            ConfigError: An option cannot be used, or `into` holds a file that no subscriber wrote.
            ConflictError: Another subscriber uses `into`.
            OSError: `into` cannot be read.
        """
        check_threads(threads)
        check_int("max_version_bytes", max_version_bytes, 1, 1 << 46)
        self._threads = threads
        self._max_bytes = max_version_bytes
        self._folder = None if into is None else Folder(Path(into))
        self._lock = threading.Lock()
        # Who begins to look at what is held, or changes it where it is.
        self._looking = threading.Lock()
        self._busy = threading.Lock()
        self._worker = Worker("dwcp-subscriber")
        self._closed = False
        self._spares = Spares()
        self._seen: Stamp | None = None
        try:
            self._held = None if self._folder is None else self._folder.load(threads, max_version_bytes)
            self._source: Source = open_source(source, trust, max_version_bytes)
        except BaseException:
            if self._folder is not None:
                self._folder.close()
            raise

    @property
    def version(self) -> int | None:
        """Number of the committed version, None if there is none."""
        held = self._held
        return None if held is None else held.version

    @property
    def digest(self) -> str | None:
        """Digest of the content of the committed version, in hex, None if there is none."""
        held = self._held
        return None if held is None else held.digest

    def tensors(self) -> Tensors:
        """Give the tensors of the committed version.

        Returns:
            They never change, also when further versions come.

        Raises:
            ConfigError: No version is committed.
        """
        with self._looking:
            held = self._held
            if held is None:
                raise ConfigError("no version is committed yet")
            return held.tensors()

    def wait(self, timeout_s: float | None = None) -> StagedVersion | None:
        """Wait for a version newer than the committed one. One that was offered is not offered again.

        Args:
            timeout_s: Seconds to wait; None waits until :meth:`close`, 0 only looks.

        Returns:
            The newest version, staged and proven; None if there is none in time, or after :meth:`close`.

        Raises:
            FormatError: What leads to the newest version is damaged; later versions will be tried.
            DeltaError: The same, for deltas that do not fit what is held.
            LimitExceededError: The version is larger than is allowed.
            OSError: The source cannot be read.
            TransportError: The source cannot be reached.
        """
        return self._next(timeout_s, threading.Event())

    def follow(self, timeout_s: float | None = None) -> CommitReport | None:
        """Wait for a version newer than the committed one, and commit it: :meth:`wait` and commit in one.

        Without `into`, memory that nobody looks at becomes the new version where it is, proven, or is left as
        it was. That is faster than making another version, and takes half of the memory. Tensors that were
        handed out never change: while there is one, or a :class:`StagedVersion`, its memory is left alone.

        Args:
            timeout_s: As for :meth:`wait`.

        Returns:
            What it took; None if there is no newer version in time, or after :meth:`close`.

        Raises:
            FormatError: As for :meth:`wait`. These leave what was committed, or a version on the way.
            DeltaError: As for :meth:`wait`.
            LimitExceededError: As for :meth:`wait`.
            OSError: The source cannot be read, or `into` not be written.
            TransportError: As for :meth:`wait`.
        """

        def commit(state: State, report: CommitReport) -> CommitReport:
            started = time.perf_counter()
            if not self._commit(state):
                self._source.tell(state.version, None)
            return replace(report, seconds_commit=time.perf_counter() - started)

        return self._wait(timeout_s, threading.Event(), commit, at_once=self._folder is None)

    def close(self) -> None:
        """End every wait and let go of everything; a second time does nothing. What is committed stays."""
        self._closed = True
        self._source.interrupt()
        with self._busy:
            self._source.close()
            if self._folder is not None:
                # Not while a version is put into it.
                with self._lock:
                    self._folder.close()
        self._worker.close()

    def _next(self, timeout_s: float | None, stop: threading.Event) -> StagedVersion | None:
        """Wait for a version, and stage it."""

        def offer(state: State, report: CommitReport) -> StagedVersion:
            return StagedVersion(state, report, self._commit)

        return self._wait(timeout_s, stop, offer)

    def _wait(
        self,
        timeout_s: float | None,
        stop: threading.Event,
        finish: Callable[[State, CommitReport], T],
        *,
        at_once: bool = False,
    ) -> T | None:
        """Wait for a version, prove it, and give what `finish` makes of it."""
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s, zero=True)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._busy:
            while not (self._closed or stop.is_set()):
                left = SLICE_S if until is None else max(0.0, until - time.monotonic())
                stamp = self._source.wait_head(self._seen, self.digest, min(left, SLICE_S))
                if stamp is not None:
                    reached = self._reach(stamp, stop, at_once)
                    if reached is not None:
                        return finish(*reached)
                elif until is not None and time.monotonic() >= until:
                    return None
        return None

    def _reach(self, stamp: Stamp, stop: threading.Event, at_once: bool) -> tuple[State, CommitReport] | None:
        """Come to the newest version of a head; None if it is not newer, or there is a newer head by now."""

        def check() -> None:
            if self._closed or stop.is_set():
                raise Stopped

        started = time.perf_counter()
        held = self._held
        refusals: list[Refusal] = []
        refused: set[tuple[str, Form]] = set()
        try:
            while True:
                # An interruption ends what is asked, which then looks as if it were not there.
                check()
                versions = self._newer(Head.load(stamp.data), self._held)
                if versions is None:
                    self._seen = stamp
                    return None
                route = plan_route(versions, held.digest if held else None, refused)
                if route.value is None:
                    self._seen = stamp
                    self._source.tell(self.version, str(refusals[0].error) if refusals else route.why)
                    if refusals:
                        raise refusals[0].error
                    raise IntegrityError(f"{route.why}, which is the newest")
                try:
                    state = self._follow(route.value, versions[-1], held, check, at_once)
                except Refusal as refusal:
                    check()
                    refusals.append(refusal)
                    if held is not None and isinstance(refusal.error, BaseMismatchError):
                        # The delta may be good, and what is held not what it says it is.
                        held = None
                    else:
                        refused.add(refusal.key)
                        # Some steps may have been taken.
                        held = None if held is None else self._held
                    LOG.warning(
                        "the %s of version %d cannot be used: %s",
                        refusal.step.form,
                        refusal.step.entry.version,
                        refusal.error,
                    )
                    # What is missing may have been removed for a newer version.
                    stamp = self._source.read_head() or stamp
                    continue
                self._seen = stamp
                report = describe(state, route.value, route.why, refusals, time.perf_counter() - started)
                return state, report
        except Stopped:
            return None
        except (DwcpError, ValueError) as exc:
            # A damaged head is not read again before it changes; one that could not be followed yet is.
            if not getattr(exc, "retryable", False):
                self._seen = stamp
            raise

    def _newer(self, head: Head, held: State | None) -> tuple[Retained, ...] | None:
        newest = head.newest
        if newest is None:
            return None
        if held is not None and (newest.version, newest.digest) == (held.version, held.digest):
            return None
        if held is not None and newest.version < held.version:
            LOG.warning(
                "the source is at version %d, below version %d that is held; it is not followed back",
                newest.version,
                held.version,
            )
            return None
        return head.versions

    def _follow(
        self,
        steps: tuple[Step, ...],
        newest: Retained,
        held: State | None,
        check: Callable[[], None],
        at_once: bool,
    ) -> State:
        if held is not None and not steps:
            return replace(held, version=newest.version)
        if not at_once or held is None or steps[0].form == "anchor":
            return follow(
                self._source,
                steps,
                held,
                threads=self._threads,
                max_bytes=self._max_bytes,
                check=check,
                spares=self._spares,
            )
        for step in steps:
            held = follow_in_place(
                self._source,
                step,
                held,
                threads=self._threads,
                max_bytes=self._max_bytes,
                check=check,
                spares=self._spares,
                alone=self._alone(held),
                hold=self._hold,
            )
        return held

    @contextmanager
    def _alone(self, held: State) -> Iterator[None]:
        """Keep others from looking at what is held, and from committing, if it is still `held`."""
        with self._lock, self._looking:
            if self._held is not held:
                raise Stopped
            yield

    def _hold(self, state: State) -> None:
        """Hold a version from now on, and give up what of the one before is not in it."""
        held, self._held = self._held, state
        if held is not None:
            staying = set(map(id, state.groups))
            self._spares.replace(group for group in held.groups if id(group) not in staying)

    def _commit(self, state: State) -> bool:
        with self._lock:
            held = self._held
            if held is state:
                return False
            if held is not None and state.version < held.version:
                raise ConflictError(
                    f"version {held.version} was committed since version {state.version} was staged"
                )
            try:
                if self._folder is not None:
                    if self._closed:
                        raise ConflictError("the subscriber is closed, and its folder may be another's")
                    self._folder.commit(state)
            except BaseException as exc:
                # It is offered again.
                self._seen = None
                self._source.tell(self.version, str(exc))
                raise
            # Looking need not wait for the disk.
            with self._looking:
                self._hold(state)
            self._source.tell(state.version, None)
            return True

    def __iter__(self) -> Iterator[StagedVersion]:
        """Give versions until :meth:`close`."""
        return self

    def __next__(self) -> StagedVersion:
        """Wait for the next version; raises what :meth:`wait` raises, after which iterating can go on."""
        staged = self._next(None, threading.Event())
        if staged is None:
            raise StopIteration
        return staged

    def __aiter__(self) -> "AsyncVersions":
        """Give versions to a coroutine."""
        return AsyncVersions(self._next, self._source.interrupt, self._worker)

    async def __aenter__(self) -> Self:
        """Use the subscriber in an ``async with`` statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)


class AsyncVersions:
    """The versions of a subscriber, for ``async for``.

    When the awaiting task is cancelled, the work is given up and its end awaited. Nothing was committed, and
    the version will be offered again.
    """

    def __init__(
        self,
        wait: Callable[[float | None, threading.Event], StagedVersion | None],
        interrupt: Callable[[], None],
        worker: Worker,
    ) -> None:
        """Wait by a function, which `interrupt` ends once its event is set."""
        self._wait = wait
        self._interrupt = interrupt
        self._worker = worker

    def __aiter__(self) -> Self:
        """Give itself."""
        return self

    async def __anext__(self) -> AsyncStagedVersion:
        """Wait for the next version."""
        stop = threading.Event()

        def cancel() -> None:
            stop.set()
            self._interrupt()

        staged = await self._worker.run(lambda: self._wait(None, stop), cancel)
        if staged is None:
            raise StopAsyncIteration
        return AsyncStagedVersion(staged, self._worker)


def describe(
    state: State, steps: Sequence[Step], why: str, refusals: Sequence[Refusal], seconds: float
) -> CommitReport:
    """Say what it took to come to a version."""
    read = sum(step.bytes + step.entry.manifest_bytes for step in steps)
    forms = [step.form for step in steps]
    if not forms:
        kind = "same"
    elif forms[0] == "delta":
        kind = "delta"
    else:
        kind = "anchor" if len(forms) == 1 else "anchor+delta"
    return CommitReport(
        version=state.version,
        digest=state.digest,
        kind=kind,
        why={"route": why},
        healed=tuple(f"{one.step.form} of version {one.step.entry.version}: {one.error}" for one in refusals),
        steps=len(steps),
        tensors=len(state.layout.specs),
        bytes_raw=state.layout.nbytes,
        bytes_read=read,
        ratio=state.layout.nbytes / read if read else None,
        seconds=seconds,
    )
