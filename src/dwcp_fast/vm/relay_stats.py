"""Where a relay stands, as it tells it."""

from dataclasses import dataclass
from typing import Final, Literal

from dwcp_fast.told import ActionTold, RelayTold

__all__ = ["RelayStats", "RelayTick", "make_stats"]

PAGE_BYTES: Final = 4_096
UNTOLD: Final[RelayTold] = {
    "finished": False,
    "error": None,
    "seconds": 0.0,
    "stream_bytes": 0,
    "migration_bytes": 0,
    "wire_bytes": 0,
    "return_bytes": 0,
    "unacknowledged_bytes": 0,
    "behind_s": 0.0,
    "streams": 0,
    "streams_open": 0,
    "lanes": 0,
    "lanes_lost": 0,
    "records_resent": 0,
    "rtt_ms": None,
    "pages": dict.fromkeys(("zero", "same", "copy", "delta", "base", "full"), 0),
    "opaque": None,
    "compressed_by_qemu": False,
    "cpu_seconds": 0.0,
    "selection": None,
    "timeline": [],
}


@dataclass(frozen=True, slots=True)
class RelayTick:
    """Where a relay stood at a moment.

    Attributes:
        at_s: Seconds since the session was opened.
        stream_bytes: As in :class:`RelayStats`.
        wire_bytes: As in :class:`RelayStats`.
        lanes: As in :class:`RelayStats`.
        rtt_ms: As in :class:`RelayStats`.
        unacknowledged_bytes: As in :class:`RelayStats`.
    """

    at_s: float
    stream_bytes: int
    wire_bytes: int
    lanes: int
    rtt_ms: float | None
    unacknowledged_bytes: int


@dataclass(frozen=True, slots=True)
class RelayStats:
    """Where a relay stands.

    Attributes:
        state: ``"waiting"`` for the other side, ``"running"``, ``"finished"`` or ``"failed"``.
        error: Why it failed.
        seconds: Since the session was opened.
        stream_bytes: Bytes from the source to the target, as they are read from or written to the sockets.
        migration_bytes: Of these, those of the migration.
        wire_bytes: Bytes that took on the wire, with what was sent again.
        return_bytes: Bytes from the target to the source.
        unacknowledged_bytes: Bytes on the wire that the target's sockets have not taken yet.
        behind_s: Seconds since a lane was given what the target is to take next of the migration; 0 at the
            target.
        streams: Streams that were opened.
        streams_open: Streams that have not ended in both directions.
        lanes: Lanes that are up, or were at the end.
        lanes_lost: Lanes that were lost.
        records_resent: Records that were sent again since their lane was lost.
        rtt_ms: Milliseconds of a round trip.
        pages: Guest pages by how they were told: ``zero``, ``same`` as sent before, a ``copy`` of another,
            the ``delta`` from what was sent before, of the ``base``, or in ``full``.
        page_bytes: Bytes of all these pages.
        opaque: Why the migration is passed on as it is, None where it is not.
        compressed_by_qemu: Whether QEMU compresses pages itself, which keeps the relay from doing better.
        cpu_seconds: Processor time of the lanes.
        codec_mix: What was chosen to compress with, where that was a choice.
        timeline: Where things stood, four times a second.
    """

    state: Literal["waiting", "running", "finished", "failed"]
    error: str | None
    seconds: float
    stream_bytes: int
    migration_bytes: int
    wire_bytes: int
    return_bytes: int
    unacknowledged_bytes: int
    behind_s: float
    streams: int
    streams_open: int
    lanes: int
    lanes_lost: int
    records_resent: int
    rtt_ms: float | None
    pages: dict[str, int]
    page_bytes: int
    opaque: str | None
    compressed_by_qemu: bool
    cpu_seconds: float
    codec_mix: tuple[ActionTold, ...]
    timeline: tuple[RelayTick, ...]


def make_stats(reported: RelayTold | None) -> RelayStats:
    """Make stats of what the native side tells, None where there is no other side yet."""
    told = UNTOLD if reported is None else reported
    selection = told["selection"]
    state: Literal["waiting", "running", "finished", "failed"]
    state = "failed" if told["error"] else "finished" if told["finished"] else "running"
    return RelayStats(
        state="waiting" if reported is None else state,
        error=told["error"],
        seconds=told["seconds"],
        stream_bytes=told["stream_bytes"],
        migration_bytes=told["migration_bytes"],
        wire_bytes=told["wire_bytes"],
        return_bytes=told["return_bytes"],
        unacknowledged_bytes=told["unacknowledged_bytes"],
        behind_s=told["behind_s"],
        streams=told["streams"],
        streams_open=told["streams_open"],
        lanes=told["lanes"],
        lanes_lost=told["lanes_lost"],
        records_resent=told["records_resent"],
        rtt_ms=told["rtt_ms"],
        pages=dict(told["pages"]),
        page_bytes=sum(told["pages"].values()) * PAGE_BYTES,
        opaque=told["opaque"],
        compressed_by_qemu=told["compressed_by_qemu"],
        cpu_seconds=told["cpu_seconds"],
        codec_mix=tuple(selection["actions"]) if selection else (),
        timeline=tuple(RelayTick(**tick) for tick in told["timeline"]),
    )
