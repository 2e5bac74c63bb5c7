"""A QEMU process as the two sides of a move see it: what its guest does, and where its migration stands."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dwcp_fast.closing import Closing
from dwcp_fast.errors import DeadlineError, FormatError, QmpError
from dwcp_fast.vm.qmp import Qmp

__all__ = [
    "CAME",
    "ENDED",
    "LEFT",
    "Disk",
    "Machine",
    "MigrationState",
    "Settings",
    "capabilities_of_a_move",
    "check_move",
    "only",
    "pauses",
]

ENDED: Final = frozenset({"none", "completed", "failed", "cancelled"})
"""The states in which QEMU has no migration under way."""
PAUSES_S: Final = (0.001, 0.02)
"""Between looks at what QEMU does not tell of by itself: at first, and at most."""
MIB: Final = 1 << 20
PAUSED: Final = "dwcp-paused"
"""A note that is there if the guest was paused before it left."""
LEFT: Final = "dwcp-left-"
CAME: Final = "dwcp-came-"
"""What the note of a move begins with, in the QEMU that the guest leaves and in the one that it comes to."""
MOVE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class MigrationState:
    """What QEMU says of its migration.

    Attributes:
        status: ``"none"`` before the first one, else QEMU's word.
        round: How often memory was gone through.
        total_bytes: Memory of the guest.
        remaining_bytes: Memory still to be sent.
        sent_bytes: Bytes that QEMU wrote.
        dirty_bytes_per_s: How fast the guest writes memory.
        downtime_s: For how long the guest stood still, as the side it left measures it; None before the end.
        error: What QEMU gives as the reason of a failure.
    """

    status: str
    round: int = 0
    total_bytes: int = 0
    remaining_bytes: int = 0
    sent_bytes: int = 0
    dirty_bytes_per_s: float = 0.0
    downtime_s: float | None = None
    error: str | None = None

    @property
    def came(self) -> bool:
        """Whether it brought the guest here; of one that went from here QEMU tells the memory too."""
        return self.status == "completed" and not self.total_bytes

    @property
    def has_ended(self) -> bool:
        """Whether there is none under way."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that a guest may write to.

    Attributes:
        name: By which both sides know it.
        node: QEMU's name of its top node.
        length_bytes: What the guest sees of it.
    """

    name: str
    node: str
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What migrations of a QEMU do, and how.

    Attributes:
        capabilities: By name, whether they are on.
        parameters: Of those that a move changes.
    """

    capabilities: dict[str, bool]
    parameters: dict[str, int]


class Machine(Closing):
    """A QEMU process behind its monitor."""

    def __init__(self, monitor: str) -> None:
        """Connect.

        Args:
            monitor: Path of the monitor's Unix socket, or ``HOST:PORT``.

        Raises:
            DeadlineError: QEMU does not greet.
            OSError: There is no such socket.
        """
        self.qmp = Qmp(monitor)

    def close(self) -> None:
        """Leave the monitor."""
        self.qmp.close()

    def status(self) -> str:
        """Give QEMU's word for what the guest does, such as ``"running"``."""
        return str(self.qmp.execute("query-status")["status"])

    def migration(self) -> MigrationState:
        """Give the state of the migration."""
        told = self.qmp.execute("query-migrate")
        ram = told.get("ram", {})
        downtime_ms = told.get("downtime")
        return MigrationState(
            status=str(told.get("status", "none")),
            round=int(ram.get("dirty-sync-count", 0)),
            total_bytes=int(ram.get("total", 0)),
            remaining_bytes=int(ram.get("remaining", 0)),
            sent_bytes=int(ram.get("transferred", 0)),
            dirty_bytes_per_s=float(ram.get("dirty-pages-rate", 0)) * int(ram.get("page-size", 4096)),
            downtime_s=None if downtime_ms is None else downtime_ms / 1000,
            error=told.get("error-desc"),
        )

    def capabilities(self) -> dict[str, bool]:
        """Give what migrations may do, and whether they do."""
        told = self.qmp.execute("query-migrate-capabilities")
        return {one["capability"]: one["state"] for one in told}

    def set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        """Set what migrations do; what is not known here and not wanted is left alone.

        Raises:
            QmpError: This QEMU does not have one that is wanted.
        """
        known = self.capabilities()
        for name, state in wanted.items():
            if state and name not in known:
                raise QmpError(f"QEMU {self.version} has no capability {name}")
        changed = [
            {"capability": name, "state": state}
            for name, state in wanted.items()
            if known.get(name, state) != state
        ]
        if changed:
            self.qmp.execute("migrate-set-capabilities", {"capabilities": changed})

    @property
    def version(self) -> str:
        """QEMU's version."""
        return ".".join(map(str, self.qmp.version))

    def memory_bytes(self) -> int:
        """Give the memory of the guest."""
        told = self.qmp.execute("query-memory-size-summary")
        return int(told["base-memory"]) + int(told.get("plugged-memory", 0))

    def disks(self) -> list[Disk]:
        """Give the disks that the guest may write to."""
        return list(self._disks())

    def _disks(self) -> Iterator[Disk]:
        for device in self.qmp.execute("query-block"):
            inserted = device.get("inserted")
            if inserted is None or inserted.get("ro", False):
                continue
            node = str(inserted.get("node-name", ""))
            # Names that QEMU makes up are not the same on the other side.
            name = str(device.get("device") or "") if not node or node.startswith("#") else node
            if not name:
                raise QmpError(
                    f"a disk of {self.qmp.address} has no name by which the other side could know it"
                )
            yield Disk(name, node or name, int(inserted["image"]["virtual-size"]))

    def is_noted_paused(self) -> bool:
        """Whether a guest that has left is known to have been paused."""
        return PAUSED in self._notes()

    def note_paused(self, *, paused: bool) -> None:
        """Have QEMU itself hold whether the guest is paused: of one that has left it does not say so."""
        self._keep_notes(PAUSED, {PAUSED} if paused else set())

    def noted_move(self, side: str) -> str | None:
        """Give the move by which the guest left, or was to come; None without one.

        Args:
            side: :data:`LEFT` or :data:`CAME`.
        """
        return next((name.removeprefix(side) for name in self._notes() if name.startswith(side)), None)

    def note_move(self, side: str, move: str | None) -> None:
        """Have QEMU itself hold by which move its guest leaves or comes: one in its place does not."""
        self._keep_notes(side, set() if move is None else {side + check_move(move)})

    def _notes(self) -> set[str]:
        """Objects of QEMU's that do nothing, and last as long as its process."""
        return {str(one["name"]) for one in self.qmp.execute("qom-list", {"path": "/objects"})}

    def _keep_notes(self, beginning: str, wanted: set[str]) -> None:
        """Have QEMU hold these notes, and no others that begin so."""
        held = {name for name in self._notes() if name.startswith(beginning)}
        for name in sorted(held - wanted):
            self.qmp.execute("object-del", {"id": name})
        for name in sorted(wanted - held):
            self.qmp.execute("object-add", {"qom-type": "secret", "id": name, "data": name})

    def wait_for(self, statuses: frozenset[str], timeout_s: float) -> str:
        """Wait until the guest is in one of the states.

        Raises:
            DeadlineError: It is not in time.
        """
        deadline = time.monotonic() + timeout_s
        waiting = pauses()
        while (status := self.status()) not in statuses:
            if time.monotonic() > deadline:
                raise DeadlineError(f"the guest is {status} and not {' or '.join(sorted(statuses))} in time")
            time.sleep(next(waiting))
        return status

    def settings(self) -> Settings:
        """Give what migrations do and how, to put it back."""
        parameters = self.qmp.execute("query-migrate-parameters")
        kept = {name: parameters[name] for name in ("downtime-limit", "max-bandwidth") if name in parameters}
        return Settings(self.capabilities(), kept)

    def put_back(self, settings: Settings) -> None:
        """Have migrations do what they did before; none may be under way."""
        self.set_capabilities(settings.capabilities)
        self.qmp.execute("migrate-set-parameters", settings.parameters)


def pauses() -> Iterator[float]:
    """Give how long to pause before each further look.

    Most of what is waited for comes at once, and the guest stands still meanwhile.
    """
    pause_s, most_s = PAUSES_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, most_s)


def capabilities_of_a_move(*, multifd: bool, pause: bool = False, answers: bool = True) -> dict[str, bool]:
    """Give what QEMU is to do, on either side.

    Args:
        multifd: Whether QEMU spreads memory over several connections.
        pause: Whether it waits, with the guest stopped, until the disks are done.
        answers: Whether QEMU counts a move as done only when the other QEMU has told it so; a guest that
            would run by then must not be waited for.
    """
    return {
        "events": True,
        "return-path": answers,
        "pause-before-switchover": pause,
        "multifd": multifd,
        # What is compressed already cannot be looked into, and not be compressed again.
        "xbzrle": False,
        "compress": False,
        "postcopy-ram": False,
    }


def check_move(told: object) -> str:
    """Take the name of a move from the other side, of which a note is made.

    Raises:
        FormatError: It is none.
    """
    if not isinstance(told, str) or not MOVE.fullmatch(told):
        raise FormatError(f"a move is called {told!r:.60}: 32 hexadecimal digits are needed")
    return told


def only(told: Any, name: str, kind: type) -> Any:
    """Take one field of a message, and check what it is.

    Raises:
        QmpError: The message has no such field, or is none.
    """
    if not isinstance(told, dict):
        raise QmpError(f"{name} is looked for in {told!r:.60}: an object is needed")
    value = told.get(name)
    if not isinstance(value, kind):
        raise QmpError(f"{name} is {value!r:.60}: {kind.__name__} is needed")
    return value
