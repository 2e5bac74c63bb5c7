"""What is known of a link: only what was measured on it, and None for what was not."""

from dataclasses import dataclass
from typing import Final

__all__ = ["LinkCounts", "LinkSample", "sample_between"]

MOST: Final = 0.5
"""The share of the lanes' time from which on something counts as what held them up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCounts:
    """What TCP counted on the lanes of a sender, added up since the transfer began.

    Attributes:
        lane_seconds: Seconds, those of several lanes added up.
        cwnd_seconds: Those in which a lane had something to send and neither the receiver's window nor the
            buffer on this side held it up: it was for the path.
        waiting_seconds: Those in which bytes waited in the system for their first sending.
        queued_seconds: Those in which round trips were longer than the shortest by so much that packets
            must have stood in a queue.
        arrived_bytes: Bytes that have arrived, those behind a gap included.
        lost_segments: Segments that were sent again.
        rtt_ms: Milliseconds of a round trip at present: the median of the lanes that something was
            acknowledged on at the last look, None if there was no such lane.
    """

    lane_seconds: float
    cwnd_seconds: float
    waiting_seconds: float
    queued_seconds: float
    arrived_bytes: int
    lost_segments: int
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class LinkSample:
    """What a link showed in a short time.

    Attributes:
        at_s: Seconds at the end of that time, by a clock that only goes forward.
        rtt_ms: Milliseconds of a round trip, None if none was seen.
        carried_bits_per_s: Bits per second that arrived, None if that is not known. The link carries at least
            as much.
        limited: Whether the link was what limited that: then it carries no more.
    """

    at_s: float
    rtt_ms: float | None
    carried_bits_per_s: float | None
    limited: bool


def sample_between(
    before: LinkCounts, after: LinkCounts, *, seconds: float, at_s: float
) -> LinkSample | None:
    """Make a sample of what was counted at two moments.

    The link is taken to have been the limit only if for most of the time bytes waited on the lanes and it
    was for the path to take them, and if besides a queue stood or packets were lost. Else it may have been
    the application, a cap, a receiver, or a connection that was still growing.
    While nothing is acknowledged the link stands still, which is no rate of it.

    Args:
        before: What was counted at first.
        after: What was counted then.
        seconds: The time between.
        at_s: When that ended.

    Returns:
        The sample; None if the counts are of two transfers, or nothing was measured.
    """
    lanes_s = after.lane_seconds - before.lane_seconds
    arrived = after.arrived_bytes - before.arrived_bytes
    if seconds <= 0 or lanes_s <= 0 or arrived < 0:
        return None
    if after.rtt_ms is None and not arrived:
        return None
    shares = [
        (after.cwnd_seconds - before.cwnd_seconds) / lanes_s,
        (after.waiting_seconds - before.waiting_seconds) / lanes_s,
    ]
    is_full = (after.queued_seconds - before.queued_seconds) / lanes_s >= MOST
    is_lossy = after.lost_segments > before.lost_segments
    held_up = all(share >= MOST for share in shares) and (is_full or is_lossy)
    limited = held_up and after.rtt_ms is not None
    return LinkSample(at_s, after.rtt_ms, arrived * 8 / seconds, limited)
