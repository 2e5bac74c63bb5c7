"""The QEMU that a guest comes to, as the side that accepts uses it."""

import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from dwcp_fast.errors import DwcpError, QmpError
from dwcp_fast.vm.control import DISKS, MIGRATION
from dwcp_fast.vm.machine import CAME, ENDED, Machine, capabilities_of_a_move, check_move, only, pauses
from dwcp_fast.vm.mirrors import Exports

__all__ = ["Channels", "Monitored", "Place", "Presence", "refuse_another", "wished_disks"]

LOG: Final = logging.getLogger(__name__)
LOADED: Final = frozenset({"paused", "prelaunch", "inmigrate", "running"})
UNDER_WAY_S: Final = 30.0
START_S: Final = 30.0
POLL_S: Final = 0.01
IN_DOUBT: Final = (
    "the guest is here, and does not run: run both commands again to settle where it runs; only if the "
    "other side is gone for good, start it by hand with `cont`"
)
Channels = Mapping[str, Path]


class Presence(NamedTuple):
    """What is known of a guest at the place that it was to come to.

    Attributes:
        loaded: Whether it is there, so that it can be started.
        running: Whether it runs.
    """

    loaded: bool
    running: bool


class Place(Protocol):
    """Where a guest comes to. It runs there only when that is asked for."""

    may_have_run: bool
    """Whether the guest was let go, or may have been."""

    def prepare(self, told: dict[str, Any], channels: Channels) -> dict[str, Any]:
        """Get ready for the guest that is told of, and say what the other side has to know.

        Raises:
            QmpError: It cannot come here.
        """

    def end_disks(self) -> None:
        """Let nobody write to the disks any more but the guest."""

    def settle(self, told: dict[str, Any]) -> Presence:
        """Tell of the guest of a move that broke.

        Raises:
            QmpError: It is not this place that it was to come to.
        """

    def start(self, *, runs: bool) -> bool:
        """Let the guest do what it did on the other side, where it no longer does it; tell if it runs.

        Raises:
            PeerClosedError: QEMU is gone.
        """

    def is_lost(self) -> bool:
        """Whether the guest can surely never run here any more."""

    def has_come(self) -> bool:
        """Whether the guest is here, so that the other side cannot know by itself where it runs."""

    def advice(self) -> str | None:
        """What whoever looks after this place can do when nobody came back to settle where the guest runs."""

    def abandon(self) -> None:
        """Let go of a guest that runs on the other side."""

    def forget(self) -> None:
        """Keep nothing for a process that settles the move later: both sides know where the guest runs."""

    def close(self) -> None:
        """Leave it."""


class Monitored:
    """A QEMU behind its monitor, started with ``-incoming defer``."""

    def __init__(self, qmp: str) -> None:
        """Connect, and see to it that QEMU does not start a guest by itself.

        Args:
            qmp: Path of the monitor's Unix socket, or ``HOST:PORT``.

        Raises:
            QmpError: QEMU does not wait for a guest.
            OSError: There is no such monitor.
        """
        self.may_have_run = False
        self._given_up = False
        self._machine = Machine(qmp)
        try:
            self._exports = Exports(self._machine)
            self._loaded = self._check_state()
        except BaseException:
            self._machine.close()
            raise

    def prepare(self, told: dict[str, Any], channels: Channels) -> dict[str, Any]:
        """Have QEMU listen for the guest; see :meth:`Place.prepare`."""
        if self._loaded:
            raise QmpError("a guest is here already, and another one is to come")
        memory, here = only(told, "memory_bytes", int), self._machine.memory_bytes()
        if memory != here:
            raise QmpError(f"the guest has {memory} bytes of memory, and here it would have {here}")
        connections = only(told, "multifd", int)
        self._machine.set_capabilities(capabilities_of_a_move(multifd=connections > 0))
        if connections:
            parameters = {"multifd-channels": connections, "multifd-compression": "none"}
            self._machine.qmp.execute("migrate-set-parameters", parameters)
        disks = wished_disks(told)
        if disks:
            self._exports.start(channels[DISKS], disks)
        # Before there is a way for the guest to come: whoever settles this move later asks for it.
        move = secrets.token_hex(16)
        self._machine.note_move(CAME, move)
        self._machine.qmp.execute("migrate-incoming", {"uri": f"unix:{channels[MIGRATION]}"})
        return {"qemu": self._machine.version, "move": move, "answers": True}

    def end_disks(self) -> None:
        """See :meth:`Place.end_disks`."""
        self._exports.stop()

    def settle(self, told: dict[str, Any]) -> Presence:
        """See :meth:`Place.settle`: QEMU itself holds by which move its guest was to come."""
        refuse_another(check_move(told.get("move")), self._machine.noted_move(CAME))
        deadline = time.monotonic() + UNDER_WAY_S
        # What the other side counts as done may be about to be done here.
        while (status := self._machine.migration().status) not in ENDED | {"setup"}:
            if time.monotonic() > deadline:
                raise QmpError(f"the guest's way here is still {status} after {UNDER_WAY_S:g} s")
            time.sleep(POLL_S)
        return Presence(loaded=self._loaded or self._has_loaded(), running=self._is_running())

    def start(self, *, runs: bool) -> bool:
        """See :meth:`Place.start`."""
        if self._is_running():
            return True
        deadline = time.monotonic() + START_S
        waiting = pauses()
        while not self._has_loaded():
            if time.monotonic() > deadline:
                raise QmpError(f"the guest is not here after {START_S:g} s: {self._machine.migration()}")
            time.sleep(next(waiting))
        self._loaded = True
        if not runs:
            return False
        self.may_have_run = True
        self._machine.qmp.execute("cont")
        self._machine.wait_for(frozenset({"running"}), START_S)
        return True

    def is_lost(self) -> bool:
        """See :meth:`Place.is_lost`: QEMU has ended, and its guest with it."""
        return self._machine.qmp.is_gone()

    def has_come(self) -> bool:
        """See :meth:`Place.has_come`."""
        try:
            return self._has_loaded() and not self._given_up
        except (DwcpError, OSError):
            return False

    def advice(self) -> str | None:
        """See :meth:`Place.advice`."""
        return IN_DOUBT if self._stands_still() else None

    def abandon(self) -> None:
        """See :meth:`Place.abandon`."""
        self._given_up = True
        if self._stands_still():
            # A copy of a guest that runs elsewhere must never be started.
            LOG.warning("the guest goes on on the other side; the QEMU here is ended")
            self._machine.qmp.execute("quit")

    def forget(self) -> None:
        """QEMU keeps the note of the move for as long as it has the guest: the other side may ask again."""

    def close(self) -> None:
        """Leave the monitor."""
        self._machine.close()

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

    def _has_loaded(self) -> bool:
        return self._machine.migration().came

    def _is_running(self) -> bool:
        return self._machine.status() == "running"

    def _stands_still(self) -> bool:
        """Whether the guest is here and does not run."""
        try:
            return self._has_loaded() and not self._is_running()
        except (DwcpError, OSError):
            return False


def wished_disks(told: dict[str, Any]) -> list[tuple[str, int]]:
    """Read which disks are to be mirrored: their names and lengths."""
    return [(only(one, "name", str), only(one, "length_bytes", int)) for one in only(told, "disks", list)]


def refuse_another(asked: str, held: str | None) -> None:
    """Refuse to tell of the guest of another move.

    What is known of this place says nothing of where that guest runs: it may have run in a QEMU that was here
    before, and have written its disks since.

    Raises:
        QmpError: It is another one.
    """
    if asked != held:
        what = "for no guest yet" if held is None else "for the guest of another move"
        raise QmpError(f"the QEMU here is not the one that the guest left for: it was made ready {what}")
