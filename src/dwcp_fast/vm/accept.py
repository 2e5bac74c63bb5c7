"""The side that a guest comes to."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from dwcp_fast.closing import Closing
from dwcp_fast.errors import DeadlineError, DwcpError, FormatError, PeerClosedError, QmpError, TransportError
from dwcp_fast.rollout.switch import SWITCH
from dwcp_fast.state import served_pairing
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.vm.carrying import TargetCarrier, socket_folder
from dwcp_fast.vm.control import CONTROL, DISKS, MIGRATION, Control, ControlDoor
from dwcp_fast.vm.machine import Machine, capabilities_of_a_move, only
from dwcp_fast.vm.mirrors import Exports
from dwcp_fast.vm.options import AcceptOptions
from dwcp_fast.vm.relay import RelayOptions, TargetRelay
from dwcp_fast.vm.report import AcceptReport

__all__ = ["Acceptance", "accept"]

LOG: Final = logging.getLogger(__name__)
DEFAULTS: Final = AcceptOptions()
LOADED: Final = frozenset({"paused", "prelaunch", "inmigrate", "running"})
POLL_S: Final = 0.01
HELLO_S: Final = 30.0
START_S: Final = 30.0
PARTING_S: Final = 10.0
ACCEPT_POLL_S: Final = 0.5
Channels = Mapping[str, Path]
Listen = Callable[[str, Channels], TargetCarrier]


class Acceptance(Closing):
    """A QEMU that waits for a guest, and a listener that it comes through.

    The guest runs here only when the other side has said that it no longer runs there: QEMU is told not to
    start it by itself. When the link is lost before that was said, the listener waits for the other side to
    come back.
    """

    def __init__(
        self,
        qmp: str,
        address: str,
        *,
        trust: MutualTls | Insecure | None = None,
        options: AcceptOptions = DEFAULTS,
        events: Callable[[dict[str, Any]], None] | None = None,
        listen: Listen | None = None,
    ) -> None:
        """Listen.

        Args:
            qmp: Monitor of a QEMU that was started with ``-incoming defer``.
            address: ``HOST:PORT`` to listen on.
            trust: As for :func:`~dwcp_fast.listen`.
            options: How to take the guest.
            events: Called with a dictionary for each event.
            listen: Makes the relay, from an address and its channels; None takes ours.

        Raises:
            QmpError: QEMU does not wait for a guest.
            OSError: The address cannot be listened on, or there is no such monitor.
        """
        self._options = options
        self._trust = trust
        self._events = events or (lambda _: None)
        self._listen = listen or self._listen_here
        self._stopped = threading.Event()
        self._pairing_file = served_pairing(Path(qmp))
        self._stack = ExitStack()
        self._settled = self._told = self._continued = self._given_up = False
        self._report: AcceptReport | None = None
        try:
            self._machine = Machine(qmp)
            self._stack.callback(self._machine.close)
            self._exports = Exports(self._machine)
            self._loaded = self._check_state()
            self._folder = self._stack.enter_context(socket_folder(options.socket_dir))
            self._channels = {
                CONTROL: self._folder / "control.sock",
                MIGRATION: self._folder / "migration.sock",
                DISKS: self._folder / "disks.sock",
            }
            self._relay = self._listen(address, self._channels)
            self._stack.callback(lambda: self._relay.close())
        except BaseException:
            self._stack.close()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT`` that is listened on."""
        return self._relay.address

    @property
    def pairing(self) -> str | None:
        """The string for the other side; a secret. None without pairing."""
        return self._relay.pairing

    def close(self) -> None:
        """Listen no longer; a guest that is not here yet goes on where it was."""
        self._stack.close()

    def cancel(self) -> None:
        """Have :meth:`run` raise soon, from another thread; a guest that came already is kept as it is."""
        self._stopped.set()

    def run(self, timeout_s: float | None = None) -> AcceptReport:
        """Take the guest.

        Args:
            timeout_s: Most seconds to wait for the other side to come.

        Returns:
            What was done; the guest runs here.

        Raises:
            QmpError: The QEMU here failed, or refused what the other side needs.
            TransportError: The link failed; the guest is on the other side, or it is not known whether it may
                run here, and it does not.
            DeadlineError: The other side did not come, or not back, in time.
        """
        limit_s = timeout_s
        while True:
            # Made anew each time: nothing of a conversation that broke is to be taken for one that begins.
            with ControlDoor(self._channels[CONTROL]) as door:
                try:
                    self._await_peer(limit_s)
                except DeadlineError:
                    if self._report is None:
                        raise
                    return self._end(self._report)
                try:
                    self._converse(door)
                except (TransportError, DeadlineError, FormatError) as error:
                    if self._report is None and (isinstance(error, QmpError) or not self._has_come()):
                        raise
                    LOG.warning("the link was lost before both sides knew where the guest runs: %s", error)
                    self._events({"type": "in-doubt", "message": str(error)})
                if self._told and self._report is not None:
                    return self._end(self._report)
            self._settled = True
            limit_s = self._options.settle_s
            address = self._relay.address
            self._relay.close()
            self._relay = self._listen(address, self._channels)

    def _listen_here(self, address: str, channels: Channels) -> TargetCarrier:
        options = RelayOptions(
            base=self._options.base,
            keep=self._options.keep,
            max_page_cache_bytes=self._options.max_page_cache_bytes,
            idle_timeout_s=self._options.idle_timeout_s,
        )
        pairing_file = self._pairing_file if self._trust is None else None
        return TargetRelay(
            address,
            channels,
            trust=self._trust,
            options=options,
            events=self._events,
            pairing_file=pairing_file,
        )

    def _check_state(self) -> bool:
        """Tell whether a guest is here already, of which it is not known whether it may run."""
        status, migration = self._machine.status(), self._machine.migration()
        if status == "inmigrate" and migration.status in {"none", "setup"}:
            # Not to be started by QEMU: it cannot know whether the guest still runs on the other side.
            self._machine.qmp.execute("stop")
            return False
        if status in LOADED and migration.came:
            # The other side may have been lost before it knew: it will ask.
            return True
        raise QmpError(
            f"the guest of {self._machine.qmp.address} is {status}: a QEMU that waits for a guest is needed",
            hint="start it with -incoming defer",
        )

    def _await_peer(self, limit_s: float | None) -> None:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            try:
                self._relay.accept(ACCEPT_POLL_S)
                return
            except DeadlineError:
                self._check_stopped()
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineError(
                        f"the other side did not come in {limit_s:g} s",
                        hint=IN_DOUBT_HINT if self._stands_still() else None,
                    ) from None

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt

    def _converse(self, door: ControlDoor) -> None:
        """Do what the other side wants, until both know that the guest runs here."""
        started = time.monotonic()
        with door.accept(HELLO_S) as control:
            first = control.receive(HELLO_S)
            if first is None:
                raise DeadlineError(f"the other side says nothing in {HELLO_S:g} s")
            try:
                if first["type"] == "prepare":
                    self._prepare(first)
                    control.send("ready", qemu=self._machine.version)
                elif first["type"] == "settle":
                    has = self._loaded or self._has_loaded()
                    control.send("state", loaded=has, running=self._is_running())
                else:
                    raise FormatError(f"the other side begins with {first['type']!r}")
            except QmpError as error:
                control.send("refused", message=str(error))
                raise
            self._follow(control, started)
            self._told = self._hear_bye(control)

    def _note_running(self, running: bool, started: float) -> None:
        if self._report is None:
            stats = self._relay.present()
            self._report = AcceptReport(
                seconds=time.monotonic() - started,
                stream_bytes=stats.stream_bytes,
                wire_bytes=stats.wire_bytes,
                pages=stats.pages,
                running=running,
                settled=self._settled,
            )
            self._events({"type": "running", "running": running})

    def _prepare(self, told: dict[str, Any]) -> None:
        if self._loaded:
            raise QmpError("a guest is here already, and another one is to come")
        why = SWITCH.refusal()
        if why is not None:
            raise QmpError(f"no guest is taken: {why}")
        memory, here = only(told, "memory_bytes", int), self._machine.memory_bytes()
        if memory != here:
            raise QmpError(f"the guest has {memory} bytes of memory, and here it would have {here}")
        channels = only(told, "multifd", int)
        self._machine.set_capabilities(capabilities_of_a_move(multifd=channels > 0))
        if channels:
            parameters = {"multifd-channels": channels, "multifd-compression": "none"}
            self._machine.qmp.execute("migrate-set-parameters", parameters)
        disks = [
            (only(one, "name", str), only(one, "length_bytes", int)) for one in only(told, "disks", list)
        ]
        if disks:
            self._exports.start(self._channels[DISKS], disks)
        uri = f"unix:{self._channels[MIGRATION]}"
        self._machine.qmp.execute("migrate-incoming", {"uri": uri})
        self._events({"type": "prepared", "memory_bytes": memory, "disks": len(disks)})

    def _follow(self, control: Control, started: float) -> None:
        """Do what the other side says, until the guest runs here."""
        while True:
            self._check_stopped()
            message = control.receive(POLL_S)
            if message is None:
                self._check_relay()
                continue
            match message["type"]:
                case "disks-done":
                    self._exports.stop()
                    control.send("disks-closed")
                case "go":
                    try:
                        running = self._start(runs=only(message, "running", bool))
                    except PeerClosedError as error:
                        if self._machine.qmp.is_gone():
                            # QEMU has ended, and its guest with it: it can go on there if it never ran here.
                            control.send("lost", message=str(error), ran=self._continued)
                        raise
                    self._note_running(running, started)
                    control.send("running", running=running)
                    return
                case "abort":
                    self._abandon()
                    raise PeerClosedError(f"the other side gave up: {message.get('message', 'cancelled')}")
                case other:
                    raise FormatError(f"the other side says {other!r}")

    def _check_relay(self) -> None:
        if self._relay.present().state == "failed":
            self._relay.wait(0.1)

    def _start(self, *, runs: bool) -> bool:
        """Let the guest do what it did on the other side, where it no longer does it."""
        if self._is_running():
            return True
        deadline = time.monotonic() + START_S
        while not self._has_loaded():
            if time.monotonic() > deadline:
                raise QmpError(f"the guest is not here after {START_S:g} s: {self._machine.migration()}")
            time.sleep(POLL_S)
        self._loaded = True
        if not runs:
            return False
        self._continued = True
        self._machine.qmp.execute("cont")
        self._machine.wait_for(frozenset({"running"}), START_S)
        return True

    def _hear_bye(self, control: Control) -> bool:
        """Whether the other side heard that the guest runs."""
        try:
            message = control.receive(PARTING_S)
        except DwcpError as error:
            LOG.debug("the other side left: %s", error)
            return False
        return message is not None and message["type"] == "bye"

    def _end(self, report: AcceptReport) -> AcceptReport:
        """Nobody has to come back with the same pairing string."""
        if self._trust is None:
            self._pairing_file.unlink(missing_ok=True)
        return report

    def _abandon(self) -> None:
        """Let go of a guest that runs on the other side."""
        self._given_up = True
        if self._stands_still():
            # A copy of a guest that runs elsewhere must never be started.
            LOG.warning("the guest goes on on the other side; the QEMU here is ended")
            self._machine.qmp.execute("quit")

    def _has_loaded(self) -> bool:
        return self._machine.migration().came

    def _is_running(self) -> bool:
        return self._machine.status() == "running"

    def _has_come(self) -> bool:
        """Whether the guest is here, so that the other side cannot know by itself where it runs."""
        try:
            return self._has_loaded() and not self._given_up
        except (DwcpError, OSError):
            return False

    def _stands_still(self) -> bool:
        """Whether the guest is here and does not run."""
        try:
            return self._has_loaded() and not self._is_running()
        except (DwcpError, OSError):
            return False


IN_DOUBT_HINT: Final = (
    "the guest is here, and does not run: run both commands again to settle where it runs; only if the "
    "other side is gone for good, start it by hand with `cont`"
)


def accept(
    qmp: str,
    address: str,
    *,
    trust: MutualTls | Insecure | None = None,
    options: AcceptOptions = DEFAULTS,
    events: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = None,
) -> AcceptReport:
    """Take a guest; see :class:`Acceptance`, which gives the pairing string before it comes.

    Args:
        qmp: Monitor of a QEMU that was started with ``-incoming defer``.
        address: ``HOST:PORT`` to listen on.
        trust: As for :func:`~dwcp_fast.listen`.
        options: How to take it.
        events: Called with a dictionary for each event.
        timeout_s: Most seconds to wait for the other side to come.

    Returns:
        What was done; the guest runs here.

    Raises:
        DwcpError: As :meth:`Acceptance.run` says.
    """
    with Acceptance(qmp, address, trust=trust, options=options, events=events) as acceptance:
        return acceptance.run(timeout_s)
