"""Two QEMUs, a move between them, and the proof that its guest never runs twice."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dwcp_fast.demo.guest import Console, Machine, downtime_s, longest_gap_s
from dwcp_fast.demo.link import Link
from dwcp_fast.errors import DwcpError
from dwcp_fast.trust import Insecure
from dwcp_fast.vm.accept import Acceptance
from dwcp_fast.vm.carrying import SourceCarrier
from dwcp_fast.vm.migrate import Migration
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions
from dwcp_fast.vm.report import AcceptReport, MigrationReport

from .tunnel import SourceTunnel, TargetTunnel

READY_S: Final = 90.0
END_S: Final = 90.0
Events = list[dict[str, Any]]


class Pair:
    """A guest on one side, a QEMU that waits on the other, and a watch on both."""

    def __init__(
        self,
        folder: Path,
        initramfs: Path,
        *,
        memory_mib: int = 128,
        writer_mib: int = 32,
        disks: tuple[Path, Path | None] | None = None,
        incoming: str = "defer",
        runners: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        """Start both and wait for the guest."""
        self._stack = ExitStack()
        append = f"writer.mib={writer_mib}" + (" writer.disk=1" if disks else "")
        both: dict[str, Any] = {"memory_mib": memory_mib, "append": append}
        try:
            self.source = self._stack.enter_context(
                Machine(
                    folder,
                    "source",
                    initramfs,
                    disk=disks[0] if disks else None,
                    runner=runners[0],
                    **both,
                )
            )
            self.target = self._stack.enter_context(
                Machine(
                    folder,
                    "target",
                    initramfs,
                    disk=disks[1] if disks else None,
                    incoming=incoming,
                    runner=runners[1],
                    **both,
                )
            )
            self.source.console.wait_for("READY", READY_S)
        except BaseException:
            self._stack.close()
            raise
        self._same = both
        self.both_ran = False
        self._ran_s: dict[Machine, float] = {}
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        while not self._done.wait(0.004):
            source, target = self.source, self.target
            if source is target or not target.is_running():
                continue
            self._ran_s.setdefault(target, time.monotonic())
            # In this order: a source that runs after its target did is one guest too many.
            if source.is_running():
                self.both_ran = True

    @property
    def ran_there_s(self) -> float | None:
        """When the guest was first seen to run on the other side, by :func:`time.monotonic`."""
        return self._ran_s.get(self.target)

    def end_watch(self) -> None:
        """Watch no longer, and tell what was seen."""
        self._done.set()
        self._watching.join(30)
        assert not self.both_ran, "the guest ran on both sides"

    def turn(self, folder: Path, initramfs: Path) -> None:
        """Have another QEMU wait where the guest came from."""
        back = Machine(folder, "back", initramfs, incoming="defer", **self._same)
        self.source, self.target = self.target, self._stack.enter_context(back)

    def running(self) -> list[Machine]:
        """The machines on which the guest runs."""
        return [machine for machine in (self.source, self.target) if machine.is_running()]

    def check_moved(self) -> None:
        """Check that the guest runs on the other side only, and finds its memory as it wrote it."""
        self.end_watch()
        assert self.running() == [self.target]
        assert self.source.console.complaints() == []
        check_guest(self.target)

    def check_stayed(self) -> None:
        """Check that the guest runs where it was only, and finds its memory as it wrote it."""
        self.end_watch()
        assert self.running() == [self.source]
        check_guest(self.source)

    def __enter__(self) -> Self:
        """Use it in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both."""
        self._done.set()
        self._watching.join(30)
        self._stack.close()


def check_guest(machine: Machine) -> None:
    """Have the guest look at all its memory."""
    console = machine.console
    console.wait_for_ticks()
    told = console.ask("v", "VERIFIED")
    assert " bad=0 " in told and told.endswith("ever_bad=0"), told
    assert console.complaints() == []


def check_downtime(source: Console, target: Console, told_s: float) -> None:
    """Check that the guest was silent for no longer than is told, and than it is late without any move."""
    busy_s = max(longest_gap_s(source), longest_gap_s(target))
    heard_s = downtime_s(source, target)
    assert heard_s < told_s + 2 * busy_s + 0.5, f"{heard_s:.2f} s, told {told_s:.2f} s, late {busy_s:.2f} s"


class Acceptor:
    """The side that a guest comes to, in a thread."""

    def __init__(
        self,
        machine: Machine,
        *,
        to_unix: Path | None = None,
        options: AcceptOptions | None = None,
        timeout_s: float = 30.0,
        listen: Callable[..., Any] | None = TargetTunnel,
        trust: Insecure | None = None,
    ) -> None:
        """Listen; through the relay itself if `listen` is None, without the monitor if `to_unix` is given."""
        self.events: Events = []
        self.acceptance = Acceptance(
            str(machine.monitor) if to_unix is None else None,
            "127.0.0.1:0",
            to_unix=to_unix,
            options=options or AcceptOptions(settle_s=20),
            trust=trust,
            events=self.events.append,
            listen=listen,
        )
        self.address = self.acceptance.address
        self.report: AcceptReport | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(timeout_s,), daemon=True)
        self._thread.start()

    def _run(self, timeout_s: float) -> None:
        try:
            self.report = self.acceptance.run(timeout_s)
        except BaseException as error:  # noqa: BLE001  # for the test to look at
            self.error = error

    def end(self) -> AcceptReport | None:
        """Wait for its end, and give what it did; None if it failed."""
        self._thread.join(END_S)
        assert not self._thread.is_alive(), "the side that accepts does not end"
        self.acceptance.close()
        return self.report

    def __enter__(self) -> Self:
        """Use it in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.acceptance.cancel()
        self._thread.join(END_S)
        self.acceptance.close()


def move(
    pair: Pair,
    *,
    options: MigrateOptions | None = None,
    through: Link | None = None,
    dial: Callable[[str, Mapping[str, Path]], SourceCarrier] = SourceTunnel,
    events: Events | None = None,
    acceptor: Acceptor | None = None,
) -> MigrationReport:
    """Move the guest of a pair through a tunnel, by way of a link if one is given."""
    with ExitStack() as stack:
        taken = acceptor or stack.enter_context(Acceptor(pair.target))
        to = taken.address
        if through is not None:
            host, _, port = to.rpartition(":")
            through.retarget(host, int(port))
            to = f"127.0.0.1:{through.port}"
        report = Migration(
            str(pair.source.monitor),
            to,
            options=options or MigrateOptions(settle_s=20),
            dial=dial,
            events=None if events is None else events.append,
        ).run()
        assert taken.end() is not None, taken.error
    return report


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} does not come to be in {timeout_s:g} s")
        time.sleep(0.01)


def failure(error: BaseException) -> str:
    """The code of an error of ours."""
    return error.code if isinstance(error, DwcpError) else type(error).__name__
