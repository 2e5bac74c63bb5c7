"""What a move did."""

from dataclasses import asdict, dataclass
from typing import Any

from dwcp_fast.policy.precopy import Round

__all__ = ["AcceptReport", "MigrationReport", "Moment"]


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of a move at one time.

    Attributes:
        at_s: Seconds since the start.
        phase: QEMU's word for it, such as ``"active"``; ``"disks"`` while only disks are mirrored.
        round: How often memory was gone through.
        remaining_bytes: Memory still to be sent.
        sent_bytes: Bytes that QEMU wrote.
        wire_bytes: Bytes on the link.
        dirty_bytes_per_s: How fast the guest writes memory.
        lanes: Lanes that are up.
        backlog_bytes: Bytes under way that the other side's QEMU has not taken.
    """

    at_s: float
    phase: str
    round: int
    remaining_bytes: int
    sent_bytes: int
    wire_bytes: int
    dirty_bytes_per_s: float
    lanes: int
    backlog_bytes: int


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What the side that a guest left did.

    Attributes:
        seconds: Until the guest ran on the other side.
        downtime_s: From its stop here until the other side told that it runs; one way of the link included.
        qemu_downtime_s: What QEMU here counts of it.
        memory_bytes: Memory of the guest.
        sent_bytes: Bytes that QEMU wrote for it.
        disk_bytes: Length of the disks that were mirrored.
        wire_bytes: Bytes on the link, for memory and disks.
        rounds: How each round ended.
        pages: Pages by how they were sent.
        opaque: Why pages were not understood; None if they were.
        lanes: Lanes at the end.
        lanes_lost: Lanes that were lost.
        rtt_ms: Round trip in milliseconds, where known.
        stopped_at_s: When the guest stopped here, in seconds since the start.
        settled: Whether the link was lost after the guest had stopped here, and found again.
        timeline: How it went.
    """

    seconds: float
    downtime_s: float
    qemu_downtime_s: float | None
    memory_bytes: int
    sent_bytes: int
    disk_bytes: int
    wire_bytes: int
    rounds: tuple[Round, ...]
    pages: dict[str, int]
    opaque: str | None
    lanes: int
    lanes_lost: int
    rtt_ms: float | None
    stopped_at_s: float
    settled: bool
    timeline: tuple[Moment, ...]

    @property
    def ratio(self) -> float:
        """Bytes of memory and disks for each byte on the link."""
        return (self.memory_bytes + self.disk_bytes) / self.wire_bytes if self.wire_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """What the side that a guest came to did.

    Attributes:
        seconds: From the first word of the other side until the guest ran.
        stream_bytes: Bytes that QEMU was given.
        wire_bytes: Bytes on the link.
        pages: Pages by how they came.
        running: Whether the guest runs; one that was paused when it left is paused here.
        settled: Whether the link was lost before the guest could be started, and found again.
    """

    seconds: float
    stream_bytes: int
    wire_bytes: int
    pages: dict[str, int]
    running: bool
    settled: bool

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return asdict(self)
