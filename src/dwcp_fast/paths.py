"""What TCP showed of the way to a peer. Only systems with TCP_INFO, such as Linux, tell."""

from collections.abc import Mapping
from dataclasses import dataclass

from dwcp_fast.policy.link import LinkCounts

__all__ = ["LivePath", "PathReport"]


@dataclass(frozen=True, slots=True)
class LivePath:
    """What TCP shows of the lanes of a sender at present.

    Attributes:
        rtt_ms: Milliseconds of a round trip, smoothed, the mean of the lanes.
        cwnd_bytes: Bytes that may be under way on all lanes together.
        delivery_bytes_per_s: Bytes per second that have last reached the peer, all lanes together.
        retransmitted_segments: TCP segments sent again in this transfer.
        link: What was counted in this transfer, from which the mode is found.
    """

    rtt_ms: float
    cwnd_bytes: int
    delivery_bytes_per_s: int
    retransmitted_segments: int
    link: LinkCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReport:
    """What TCP showed in the course of a transfer, looked at ten times a second.

    None stands for what an older kernel does not tell.

    Attributes:
        rtt_ms: Milliseconds of a round trip, smoothed, on average.
        min_rtt_ms: Milliseconds of the shortest round trip.
        jitter_ms: Milliseconds by which round trips differed from the smoothed one, on average.
        retransmitted_segments: TCP segments sent again.
        sent_bytes: Bytes that TCP sent, those sent again included.
        retransmitted_bytes: Bytes that TCP sent again.
        retransmitted_share: The share of the bytes sent again, 0 to 1: about what the path has lost.
        cwnd_bytes: Bytes that could be under way on all lanes together, on average.
        delivery_bytes_per_s: Bytes per second that reached the peer, all lanes together, as TCP measures it
            from one acknowledgement to the next, on average.
        congestion: The congestion controls that were at work, as the system names them.
        limited_by: What held the lanes up most: ``"cwnd"`` (the path, as congestion control has it),
            ``"rwnd"`` (the receiver's window), ``"sndbuf"`` (the socket's buffer on this side) or
            ``"application"`` (there was nothing to send).
        limits: The shares of the lanes' time of all four, by these names.
    """

    rtt_ms: float
    min_rtt_ms: float | None
    jitter_ms: float
    retransmitted_segments: int
    sent_bytes: int | None
    retransmitted_bytes: int | None
    retransmitted_share: float | None
    cwnd_bytes: int
    delivery_bytes_per_s: int | None
    congestion: tuple[str, ...]
    limited_by: str | None
    limits: Mapping[str, float] | None
