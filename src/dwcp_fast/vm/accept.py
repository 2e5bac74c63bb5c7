"""The side that a guest comes to."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from dwcp_fast.closing import Closing
from dwcp_fast.errors import (
    ConfigError,
    DeadlineError,
    DwcpError,
    FormatError,
    PeerClosedError,
    QmpError,
    TransportError,
)
from dwcp_fast.rollout.switch import SWITCH
from dwcp_fast.state import served_pairing
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.vm.carrying import TargetCarrier, socket_folder
from dwcp_fast.vm.control import CONTROL, DISKS, MIGRATION, Control, ControlDoor
from dwcp_fast.vm.machine import only
from dwcp_fast.vm.options import AcceptOptions
from dwcp_fast.vm.place import Channels, Monitored, Place
from dwcp_fast.vm.relay import RelayOptions, TargetRelay
from dwcp_fast.vm.report import AcceptReport

__all__ = ["Acceptance", "accept"]

LOG: Final = logging.getLogger(__name__)
DEFAULTS: Final = AcceptOptions()
LOOK_S: Final = 0.1
"""The longest time between two looks at the relay while the other side says nothing."""
HELLO_S: Final = 30.0
PARTING_S: Final = 10.0
ACCEPT_POLL_S: Final = 0.5
Listen = Callable[[str, Channels], TargetCarrier]


class Acceptance(Closing):
    """A QEMU that waits for a guest, and a listener that it comes through.

    The guest runs here only when the other side has said that it no longer runs there: QEMU is told not to
    start it by itself. When the link is lost before that was said, the listener waits for the other side to
    come back.
    """

    def __init__(
        self,
        qmp: str | None,
        address: str,
        *,
        to_unix: Path | None = None,
        trust: MutualTls | Insecure | None = None,
        options: AcceptOptions = DEFAULTS,
        events: Callable[[dict[str, Any]], None] | None = None,
        listen: Listen | None = None,
    ) -> None:
        """Listen.

        Args:
            qmp: Monitor of a QEMU that was started with ``-incoming defer``; None takes `to_unix`.
            address: ``HOST:PORT`` to listen on.
            to_unix: Socket of a QEMU whose monitor is not to be had, started with ``-incoming unix:SOCKET``.
            trust: As for :func:`~dwcp_fast.listen`.
            options: How to take the guest.
            events: Called with a dictionary for each event.
            listen: Makes the relay, from an address and its channels; None takes ours.

        Raises:
            ConfigError: Neither a monitor nor a socket is given, or both.
            QmpError: QEMU does not wait for a guest.
            OSError: The address cannot be listened on, or there is no such monitor.
        """
        self._options = options
        self._trust = trust
        self._events = events or (lambda _: None)
        self._listen = listen or self._listen_here
        self._stopped = threading.Event()
        self._stack = ExitStack()
        self._settled = self._told = False
        self._report: AcceptReport | None = None
        try:
            self._place: Place = place_of(qmp, to_unix)
            self._stack.callback(lambda: self._place.close())
            self._pairing_file = served_pairing(Path(qmp or str(to_unix)))
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
                    if self._report is None and (isinstance(error, QmpError) or not self._place.has_come()):
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

    def _await_peer(self, limit_s: float | None) -> None:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            try:
                self._relay.accept(ACCEPT_POLL_S)
                return
            except DeadlineError:
                self._check_stopped()
                if deadline is not None and time.monotonic() > deadline:
                    why = f"the other side did not come in {limit_s:g} s"
                    raise DeadlineError(why, hint=self._place.advice()) from None

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
                    control.send("ready", **self._prepare(first))
                elif first["type"] == "settle":
                    control.send("state", **self._place.settle(first)._asdict())
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

    def _prepare(self, told: dict[str, Any]) -> dict[str, Any]:
        why = SWITCH.refusal()
        if why is not None:
            raise QmpError(f"no guest is taken: {why}")
        ready = self._place.prepare(told, self._channels)
        self._events(
            {
                "type": "prepared",
                "memory_bytes": only(told, "memory_bytes", int),
                "disks": len(only(told, "disks", list)),
            }
        )
        return ready

    def _follow(self, control: Control, started: float) -> None:
        """Do what the other side says, until the guest runs here."""
        while True:
            self._check_stopped()
            message = control.receive(LOOK_S)
            if message is None:
                self._check_relay()
                continue
            match message["type"]:
                case "disks-done":
                    self._place.end_disks()
                    control.send("disks-closed")
                case "go":
                    try:
                        running = self._place.start(runs=only(message, "running", bool))
                    except PeerClosedError as error:
                        if self._place.is_lost():
                            # It can go on there if it never ran here.
                            control.send("lost", message=str(error), ran=self._place.may_have_run)
                        raise
                    self._note_running(running, started)
                    control.send("running", running=running)
                    return
                case "abort":
                    self._place.abandon()
                    raise PeerClosedError(f"the other side gave up: {message.get('message', 'cancelled')}")
                case other:
                    raise FormatError(f"the other side says {other!r}")

    def _check_relay(self) -> None:
        if self._relay.present().state == "failed":
            self._relay.wait(0.1)

    def _hear_bye(self, control: Control) -> bool:
        """Whether the other side heard that the guest runs."""
        try:
            message = control.receive(PARTING_S)
        except DwcpError as error:
            LOG.debug("the other side left: %s", error)
            return False
        return message is not None and message["type"] == "bye"

    def _end(self, report: AcceptReport) -> AcceptReport:
        """Nobody has to come back with the same pairing string, once both sides know where the guest runs."""
        if self._told:
            self._place.forget()
        if self._trust is None:
            self._pairing_file.unlink(missing_ok=True)
        return report


def place_of(qmp: str | None, to_unix: Path | None) -> Place:
    """Find the QEMU that a guest is to come to.

    Raises:
        ConfigError: Neither a monitor nor a socket is given, or both.
    """
    if qmp is not None and to_unix is None:
        return Monitored(qmp)
    if to_unix is not None and qmp is None:
        # Imported late: it asks Linux who listens at a socket.
        from dwcp_fast.vm.unmonitored import Unmonitored

        return Unmonitored(to_unix)
    raise ConfigError("either the monitor of a QEMU or the socket that it listens on is needed")


def accept(
    qmp: str | None,
    address: str,
    *,
    to_unix: Path | None = None,
    trust: MutualTls | Insecure | None = None,
    options: AcceptOptions = DEFAULTS,
    events: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = None,
) -> AcceptReport:
    """Take a guest; see :class:`Acceptance`, which gives the pairing string before it comes.

    Args:
        qmp: As for :class:`Acceptance`.
        address: ``HOST:PORT`` to listen on.
        to_unix: As for :class:`Acceptance`.
        trust: As for :func:`~dwcp_fast.listen`.
        options: How to take it.
        events: Called with a dictionary for each event.
        timeout_s: Most seconds to wait for the other side to come.

    Returns:
        What was done; the guest runs here.

    Raises:
        DwcpError: As :meth:`Acceptance.run` says.
    """
    with Acceptance(qmp, address, to_unix=to_unix, trust=trust, options=options, events=events) as acceptance:
        return acceptance.run(timeout_s)
