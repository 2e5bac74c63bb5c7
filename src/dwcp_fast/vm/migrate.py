"""The side that a guest leaves."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from dwcp_fast.engine import engine_for
from dwcp_fast.errors import (
    DeadlineError,
    DwcpError,
    FormatError,
    IntegrityError,
    NotConvergingError,
    PeerClosedError,
    PeerError,
    QmpError,
    TransportError,
    V3StoppedError,
)
from dwcp_fast.policy.precopy import why_not_converging
from dwcp_fast.rollout.switch import SWITCH, Guard
from dwcp_fast.trust import Trust
from dwcp_fast.vm.carrying import Carrier, SourceCarrier, socket_folder
from dwcp_fast.vm.control import CONTROL, DISKS, MIGRATION, Control
from dwcp_fast.vm.machine import LEFT, Disk, Machine, Settings, capabilities_of_a_move, check_move, only
from dwcp_fast.vm.mirrors import Mirrors
from dwcp_fast.vm.options import MigrateOptions
from dwcp_fast.vm.relay import RelayOptions, SourceRelay
from dwcp_fast.vm.relay_stats import RelayStats
from dwcp_fast.vm.report import MigrationReport
from dwcp_fast.vm.switchover import Switchover
from dwcp_fast.vm.watch import Watch
from dwcp_fast.waiting import Worker

__all__ = ["Migration", "migrate", "migrate_async"]

LOG: Final = logging.getLogger(__name__)
DEFAULTS: Final = MigrateOptions()
UNLIMITED_BYTES_PER_S: Final = 1 << 50
POLL_S: Final = 0.02
LOOK_S: Final = 0.05
"""The longest time between two looks at a move, of whose states and rounds QEMU tells by itself."""
ANSWER_S: Final = 60.0
END_S: Final = 60.0
PARTING_S: Final = 5.0
REDIAL_S: Final = 0.5
OTHER_RAM_BYTES: Final = 1 << 28
"""What a guest has besides its memory that is told in pages too: of graphics, firmware."""
HERE: Final = frozenset({"running", "paused"})
"""What QEMU says of a guest that has not left."""
Channels = Mapping[str, Path]
Dial = Callable[[str, Channels], SourceCarrier]


class Migration:
    """A guest on its way.

    At any time it runs on one side at most. It is started on the other side only when QEMU here has counted
    the move as done, after which it does not run here again unless the other side says that it has no guest.
    """

    def __init__(
        self,
        qmp: str,
        to: str,
        *,
        trust: Trust | None = None,
        options: MigrateOptions = DEFAULTS,
        events: Callable[[dict[str, Any]], None] | None = None,
        dial: Dial | None = None,
    ) -> None:
        """Note what is to be done.

        Args:
            qmp: Monitor of the guest's QEMU.
            to: ``HOST:PORT`` or the pairing string of the other side.
            trust: As for :func:`~dwcp_fast.connect`.
            options: How to move it.
            events: Called with a dictionary for each event.
            dial: Makes the relay, from `to` and its channels; None takes ours.
        """
        self._qmp = qmp
        self._to = to
        self._trust = trust
        self._options = options
        self._events = events or (lambda _: None)
        self._dial = dial or self._dial_out
        self._cancelled = threading.Event()
        self._was_running = True
        self._guard: Guard | None = None
        self._asked_to_leave = False
        self._most_base_bytes = 0

    def cancel(self) -> None:
        """Give up, from another thread or a signal handler: the guest goes on here.

        Once QEMU has counted the move as done it is no longer heeded, and neither is a first Ctrl-C.
        """
        self._cancelled.set()

    def run(self) -> MigrationReport:
        """Move the guest, or, if it has left here before and nobody knows if it has arrived, settle that.

        Returns:
            What was done; the guest runs on the other side.

        Raises:
            NotConvergingError: The guest writes faster than can be sent; it goes on here.
            DeadlineError: The move took too long; the guest goes on here.
            QmpError: A QEMU refused or failed; the guest goes on here.
            TransportError: The link failed. The guest goes on here, unless the message says that it has
                stopped.
            AuthError: The other side does not let this one in; nothing was done.
            NegotiationError: The kill switch is on; nothing was done.
            V3StoppedError: The kill switch was turned on; the guest goes on here.
            KeyboardInterrupt: It was cancelled; the guest goes on here.
        """
        with ExitStack() as stack:
            machine = Machine(self._qmp)
            stack.callback(machine.close)
            status, migration = machine.status(), machine.migration()
            folder = stack.enter_context(socket_folder(self._options.socket_dir))
            channels = {name: folder / f"{name}.sock" for name in (CONTROL, MIGRATION, DISKS)}
            if status == "postmigrate" and migration.status == "completed":
                self._was_running = not machine.is_noted_paused()
                if machine.noted_move(LEFT) is None:
                    raise QmpError(
                        "the guest has left, and not by a move of ours: where it runs cannot be asked",
                        hint="only if it runs nowhere else, let it go on here with `cont`",
                    )
                return self._settle(machine, channels, Watch(machine, None, self._events), None)
            if status not in {"running", "paused"} or not migration.has_ended:
                raise QmpError(
                    f"the guest is {status} and its migration {migration.status}: it cannot be moved now"
                )
            self._was_running = status == "running"
            engine_for("v3")
            # It only tells: relay and guest are parted where the guest may still go on here.
            self._guard = SWITCH.guard(lambda: None)
            stack.callback(self._guard.release)
            return self._move(machine, channels)

    def _dial_out(self, to: str, channels: Channels) -> SourceCarrier:
        options = self._options
        bits = options.bandwidth_bits_per_s
        relay_options = RelayOptions(
            lanes=options.streams,
            codec=options.codec,
            page_cache_bytes=options.page_cache_bytes,
            max_base_bytes=self._most_base_bytes,
            keep=options.keep,
            bandwidth_bytes_per_s=None if bits is None else bits // 8,
            congestion=options.congestion,
            idle_timeout_s=options.idle_timeout_s,
            connect_timeout_s=options.connect_timeout_s,
        )
        return SourceRelay(to, channels, trust=self._trust, options=relay_options, events=self._events)

    def _move(self, machine: Machine, channels: Channels) -> MigrationReport:
        options = self._options
        disks = machine.disks() if options.disks else []
        mirrors = Mirrors(machine, disks, channels[DISKS])
        self._most_base_bytes = machine.memory_bytes() + OTHER_RAM_BYTES
        relay = self._dial(self._to, channels)
        try:
            watch = Watch(machine, relay, self._events)
            watch.disk_bytes = sum(disk.length_bytes for disk in disks)
            control = Control.dial(channels[CONTROL], options.connect_timeout_s)
            with control:
                settings = machine.settings()
                try:
                    self._prepare(machine, control, disks)
                    if disks:
                        self._mirror(mirrors, watch, control)
                    self._asked_to_leave = True
                    machine.qmp.execute("migrate", {"uri": f"unix:{channels[MIGRATION]}"})
                    self._follow(machine, mirrors, watch, control)
                except BaseException as error:
                    if not self._has_left(machine):
                        stuck = self._go_on_here(machine, control, error)
                        relay.stop("the guest goes on where it was")
                        # Only now: a job that waits for the other side ends when its socket is shut.
                        self._tidy(machine, mirrors, settings)
                        raise (stuck or self._why(error, relay)) from error
                    LOG.warning("the guest has left, and then: %r", error)
                try:
                    return self._hand_over(machine, control, relay, watch)
                except (DwcpError, OSError, KeyboardInterrupt) as error:
                    if isinstance(error, PeerError):
                        raise
                    LOG.warning("the link was lost after the guest had stopped here: %s", error)
                    self._events({"type": "in-doubt", "message": words_of(error)})
                    failure = error
        finally:
            relay.close()
        return self._settle(machine, channels, watch, failure)

    def _prepare(self, machine: Machine, control: Control, disks: list[Disk]) -> None:
        options = self._options
        control.send(
            "prepare",
            qemu=machine.version,
            memory_bytes=machine.memory_bytes(),
            multifd=options.multifd,
            disks=[{"name": disk.name, "length_bytes": disk.length_bytes} for disk in disks],
        )
        answer = control.receive(ANSWER_S)
        if answer is None:
            raise DeadlineError(f"the other side does not get ready in {ANSWER_S:g} s")
        if answer["type"] != "ready":
            raise PeerError(f"the other side refused: {answer.get('message', answer['type'])}")
        # Held by both QEMUs: one that takes the place of another cannot be taken for it.
        machine.note_move(LEFT, check_move(answer.get("move")))
        machine.note_paused(paused=not self._was_running)
        machine.set_capabilities(
            capabilities_of_a_move(
                multifd=options.multifd > 0, pause=bool(disks), answers=only(answer, "answers", bool)
            )
        )
        machine.qmp.execute(
            "migrate-set-parameters",
            {
                "downtime-limit": round(options.max_downtime_s * 1000),
                # The relay bounds the rate, by what it puts on the link.
                "max-bandwidth": UNLIMITED_BYTES_PER_S,
                "multifd-channels": options.multifd or None,
                "multifd-compression": "none" if options.multifd else None,
            },
        )

    def _mirror(self, mirrors: Mirrors, watch: Watch, control: Control) -> None:
        mirrors.start()
        while True:
            copied, total, ready = mirrors.progress()
            watch.note_disks(copied, total)
            if ready:
                return
            self._check(watch, control)
            watch.wait(0.1)

    def _follow(self, machine: Machine, mirrors: Mirrors, watch: Watch, control: Control) -> None:
        """Watch QEMU until it counts the move as done."""
        options = self._options
        paused = False
        switchover = Switchover(machine, options.max_downtime_s)
        while True:
            state = watch.look()
            if state.status == "completed":
                return
            if state.status in {"failed", "cancelled"}:
                raise QmpError(f"QEMU gave up: {state.error or state.status}")
            if state.status == "pre-switchover" and not paused:
                paused = True
                mirrors.complete(watch.seen)
                control.send("disks-done")
                control.expect("disks-closed", ANSWER_S)
                machine.qmp.execute("migrate-continue", {"state": "pre-switchover"})
            stats = self._check(watch, control)
            if state.status == "active":
                switchover.consider(stats)
            why = why_not_converging(
                watch.rounds, max_downtime_s=options.max_downtime_s, patience_rounds=options.patience_rounds
            )
            if why is not None and state.status == "active":
                raise NotConvergingError(
                    why, hint="allow a longer --max-downtime, or move it when it writes less"
                )
            watch.wait(LOOK_S)

    def _check(self, watch: Watch, control: Control) -> RelayStats | None:
        """Raise what speaks against going on; give where the relay stands."""
        if self._cancelled.is_set():
            raise KeyboardInterrupt
        if self._guard is not None and self._guard.why is not None:
            raise V3StoppedError(
                f"the move was stopped: {self._guard.why}", hint="move it again when v3 may be used"
            )
        limit_s = self._options.timeout_s
        if limit_s is not None and watch.seconds() > limit_s:
            raise DeadlineError(f"the move took more than {limit_s:g} s")
        watch.check_progress(self._options.stall_s)
        stats = watch.check_relay()
        message = control.receive(0)
        if message is not None:
            raise PeerError(f"the other side says {message['type']!r}: {message.get('message', '')}")
        return stats

    def _has_left(self, machine: Machine) -> bool:
        """End QEMU's migration, and tell if it was too late for that: then the guest may not go on here."""
        if not self._asked_to_leave:
            return False
        deadline = time.monotonic() + END_S
        asked = False
        while True:
            state = machine.migration()
            if state.status == "completed":
                # QEMU says that of an earlier move too, by which the guest came or did not get away, if it
                # refused this one. One that has left neither runs nor is merely paused.
                return machine.status() not in HERE
            if state.has_ended:
                return False
            if not asked:
                asked = True
                machine.qmp.execute("migrate_cancel")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"QEMU's migration is still {state.status} after {END_S:g} s of being cancelled"
                )
            time.sleep(POLL_S)

    def _go_on_here(self, machine: Machine, control: Control, error: BaseException) -> DwcpError | None:
        """See first that the guest does here what it did before; tell if it does not."""
        stuck: DwcpError | None = None
        try:
            if self._was_running:
                if self._asked_to_leave:
                    # QEMU lets go on by itself what it stopped for a move.
                    with suppress(DeadlineError):
                        machine.wait_for(frozenset({"running"}), PARTING_S)
                if machine.status() != "running":
                    machine.qmp.execute("cont")
                    machine.wait_for(frozenset({"running"}), END_S)
            self._events({"type": "goes-on", "status": machine.status()})
        except PeerClosedError as failure:
            stuck = failure
        except (DwcpError, OSError) as failure:
            stuck = QmpError(
                f"the guest stands still here: {failure}; its move was given up: {words_of(error)}",
                hint="let it go on with `cont`",
            )
        with suppress(DwcpError, OSError):
            control.send("abort", message=words_of(error))
            # Its answer would be that it is gone; until then the message is on its way.
            control.receive(1.0)
        return stuck

    def _tidy(self, machine: Machine, mirrors: Mirrors, settings: Settings) -> None:
        """Leave QEMU as it was found; what fails of that is no reason to hide why the move was given up."""
        for step in (
            mirrors.abandon,
            lambda: machine.put_back(settings),
            lambda: machine.note_paused(paused=False),
            lambda: machine.note_move(LEFT, None),
        ):
            try:
                step()
            except (DwcpError, OSError) as failure:
                LOG.warning("the QEMU at %s is not as it was: %s", machine.qmp.address, failure)

    def _why(self, error: BaseException, relay: Carrier) -> BaseException:
        """Give the reason behind an error: sockets that QEMU lost were lost by the relay, which knows why."""
        told = KeyboardInterrupt | NotConvergingError | DeadlineError | IntegrityError | V3StoppedError
        if isinstance(error, told):
            return error
        if isinstance(error, PeerError) and not isinstance(error, QmpError):
            # The other side said why; that it left then is no news.
            return error
        stats = relay.present()
        if stats.state == "failed":
            try:
                relay.wait(0.1)
            except DeadlineError:
                return error
            except DwcpError as reason:
                if reason.code != "cancelled":
                    return reason
        return error

    def _hand_over(
        self, machine: Machine, control: Control, relay: SourceCarrier, watch: Watch
    ) -> MigrationReport:
        """Have the other side start the guest, which no longer runs here."""
        self._have_it_started(machine, control)
        # From here on it is known where the guest runs: not even a QEMU here that ends changes that.
        with suppress(DwcpError, OSError):
            watch.note_running()
        report = watch.report(settled=False)
        self._part(control, relay)
        return report

    def _part(self, control: Control, relay: SourceCarrier) -> None:
        """Say that it is known here where the guest runs, and see that this is heard."""
        with suppress(DwcpError, OSError, KeyboardInterrupt):
            with suppress(DwcpError, OSError):
                control.send("bye")
            control.close()
            relay.finish()
            relay.wait(PARTING_S)

    def _settle(
        self, machine: Machine, channels: Channels, watch: Watch, failure: BaseException | None
    ) -> MigrationReport:
        """Find out if the guest runs on the other side, and let it run there, or here if it never came."""
        deadline = time.monotonic() + self._options.settle_s
        last = failure
        while True:
            try:
                return self._settle_once(machine, channels, watch)
            except PeerError:
                raise
            except (DwcpError, OSError, KeyboardInterrupt) as error:
                last = error
                LOG.info("not settled yet: %s", words_of(error))
            if time.monotonic() > deadline or isinstance(last, KeyboardInterrupt):
                raise TransportError(
                    "the guest has stopped here, and whether it runs there could not be learnt: "
                    + words_of(last),
                    hint="it stands still on both sides or runs there: run both commands again to settle it; "
                    "only if the other side is gone for good, let it go on here with `cont`",
                )
            time.sleep(REDIAL_S)

    def _settle_once(self, machine: Machine, channels: Channels, watch: Watch) -> MigrationReport:
        relay = self._dial(self._to, channels)
        try:
            with Control.dial(channels[CONTROL], self._options.connect_timeout_s) as control:
                control.send("settle", move=machine.noted_move(LEFT))
                state = self._hear_state(control)
                if not (state.get("loaded") or state.get("running")):
                    # It has no guest, and no way to get one: the only one is here.
                    control.send("abort", message="the guest never came")
                    self._resume(machine, "it never arrived there")
                self._have_it_started(machine, control)
                watch.note_running()
                self._part(control, relay)
                return watch.report(settled=True)
        finally:
            relay.close()

    def _hear_state(self, control: Control) -> dict[str, Any]:
        """Hear what the other side has of the guest, if it is the one that the guest left for."""
        answer = control.receive(ANSWER_S)
        if answer is None:
            raise DeadlineError(f"the other side does not say in {ANSWER_S:g} s what it has")
        if answer["type"] == "refused":
            raise PeerError(
                "the guest stands still here, and whether it ran there cannot be known: "
                f"{answer.get('message')}",
                hint="if it never ran there, let it go on here with `cont`; else what is here is older than "
                "its disks: start it anew from them",
            )
        if answer["type"] != "state":
            raise FormatError(f"the other side says {answer['type']!r} instead of 'state'")
        return answer

    def _have_it_started(self, machine: Machine, control: Control) -> None:
        """Tell the other side that the guest no longer runs here, and hear that it runs there."""
        status = machine.wait_for(frozenset({"postmigrate"}) | HERE, PARTING_S)
        if status in HERE:
            raise QmpError(
                f"the guest is {status} here, by another hand: it is not started on the other side"
            )
        control.send("go", running=self._was_running)
        answer = control.receive(ANSWER_S)
        if answer is None:
            raise DeadlineError(f"the other side does not say in {ANSWER_S:g} s that the guest runs")
        if answer["type"] == "lost":
            if answer.get("ran", True):
                raise PeerError(
                    f"the guest was lost after it had been started there: {answer.get('message')}",
                    hint="what stands still here is older than its disks: start it anew from them",
                )
            self._resume(machine, f"it was lost there: {answer.get('message')}")
        if answer["type"] != "running":
            raise FormatError(f"the other side says {answer['type']!r} instead of 'running'")

    def _resume(self, machine: Machine, why: str) -> NoReturn:
        """Let a guest that had stopped here go on, since there is no other one."""
        if self._was_running:
            machine.qmp.execute("cont")
            machine.wait_for(frozenset({"running"}), END_S)
        with suppress(DwcpError, OSError):
            machine.note_move(LEFT, None)
        raise PeerError(f"the guest goes on here: {why}")


def words_of(error: BaseException) -> str:
    """What an error says; its name if it says nothing."""
    return str(error) or type(error).__name__


def migrate(
    qmp: str,
    to: str,
    *,
    trust: Trust | None = None,
    options: MigrateOptions = DEFAULTS,
    events: Callable[[dict[str, Any]], None] | None = None,
) -> MigrationReport:
    """Move a running guest to the machine where :func:`accept` waits.

    Args:
        qmp: Monitor of the guest's QEMU: path of a Unix socket, or ``HOST:PORT``.
        to: ``HOST:PORT`` or the pairing string of the other side.
        trust: As for :func:`~dwcp_fast.connect`.
        options: How to move it.
        events: Called with a dictionary for each event.

    Returns:
        What was done; the guest runs on the other side.

    Raises:
        DwcpError: As :meth:`Migration.run` says.
    """
    return Migration(qmp, to, trust=trust, options=options, events=events).run()


async def migrate_async(
    qmp: str,
    to: str,
    *,
    trust: Trust | None = None,
    options: MigrateOptions = DEFAULTS,
    events: Callable[[dict[str, Any]], None] | None = None,
) -> MigrationReport:
    """Move a running guest from a coroutine; cancelling the task cancels the move, and awaits its end.

    Args:
        qmp: As for :func:`migrate`.
        to: As for :func:`migrate`.
        trust: As for :func:`migrate`.
        options: As for :func:`migrate`.
        events: As for :func:`migrate`.

    Returns:
        What was done.

    Raises:
        DwcpError: As for :func:`migrate`.
    """
    migration = Migration(qmp, to, trust=trust, options=options, events=events)
    worker = Worker("dwcp-vm")
    try:
        return await worker.run(migration.run, migration.cancel)
    finally:
        worker.close()
