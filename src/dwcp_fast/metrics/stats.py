"""What a process has done so far: one immutable snapshot, and the rates between two of them."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from dwcp_fast.reports import CodecShare

__all__ = [
    "DIRECTIONS",
    "PROTOCOLS",
    "ROLES",
    "Direction",
    "ErrorCount",
    "FlowRates",
    "FlowStats",
    "LaneStats",
    "Phase",
    "Protocol",
    "Role",
    "SessionStats",
    "Stats",
    "rates_between",
]

Direction = Literal["sent", "received"]
Protocol = Literal["v3", "v1"]
Role = Literal["send", "fetch", "receive", "serve", "probe", "relay"]
Phase = Literal["connect", "transfer"]

DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """The sessions of one role.

    Attributes:
        role: ``"send"`` and ``"fetch"`` were dialled, ``"receive"`` and ``"serve"`` let in; ``"probe"``
            looked at a link, and ``"relay"`` carries a machine, at either end.
        opened: How many were opened.
        closed: How many of these have ended.
    """

    role: Role
    opened: int
    closed: int

    @property
    def open(self) -> int:
        """How many are open."""
        return self.opened - self.closed


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStats:
    """All transfers of one direction over one protocol.

    Attributes:
        direction: Whether this process sent or received.
        protocol: The engine.
        started: Transfers begun. That of a receiver which waits for an offer has begun.
        completed: Transfers that ended well.
        failed: Transfers that ended with an exception.
        withdrawn: Waits of a receiver that ended without an offer.
        state_bytes: Bytes of the states of completed transfers.
        wire_bytes: Bytes of coded blocks, those of unfinished transfers included.
        unfinished_wire_bytes: The part of these that belongs to transfers which failed or are under way.
        held_bytes: Bytes that an interrupted transfer had left, and that were not sent again.
        same_bytes: Bytes that the receiver had in a base.
        blocks_resent: Blocks that were sent again.
        nacks: Blocks that a base did not fit.
        seconds: Time that completed transfers took, added up.
        cpu_seconds: Processor time of their lanes.
        tcp_sent_bytes: Bytes that TCP sent for completed transfers, those of TLS and those sent again
            included; of the side that sends, where the kernel tells it.
        tcp_retransmitted_bytes: The part of these that was sent again.
        tcp_retransmitted_segments: Segments sent again.
        codecs: How the blocks of completed transfers were represented; empty with v1.
    """

    direction: Direction
    protocol: Protocol
    started: int = 0
    completed: int = 0
    failed: int = 0
    withdrawn: int = 0
    state_bytes: int = 0
    wire_bytes: int = 0
    unfinished_wire_bytes: int = 0
    held_bytes: int = 0
    same_bytes: int = 0
    blocks_resent: int = 0
    nacks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tcp_sent_bytes: int = 0
    tcp_retransmitted_bytes: int = 0
    tcp_retransmitted_segments: int = 0
    codecs: tuple[CodecShare, ...] = ()

    @property
    def active(self) -> int:
        """Transfers under way."""
        return self.started - self.completed - self.failed - self.withdrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStats:
    """Lanes, and what TCP shows of those that send.

    Attributes:
        opened: Lanes that came up.
        lost: Lanes that ended with a failure.
        reconnects: Attempts to make a lane again.
        open: Lanes of the transfers under way.
        rtt_s: Seconds of a round trip, the mean of the transfers that send; None while there is none.
        delivery_bytes_per_s: Bytes per second that reach their peers, as TCP measures it, added up.
    """

    opened: int
    lost: int
    reconnects: int
    open: int
    rtt_s: float | None
    delivery_bytes_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCount:
    """How often one thing went wrong.

    Attributes:
        phase: Whether a session could not be opened, or a transfer failed.
        code: The ``code`` of the exception; ``"system"`` for what the operating system reports,
            ``"interrupted"``, ``"internal"`` for what is neither, ``"other"`` for a code not known here.
        count: How often.
    """

    phase: Phase
    code: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What this process has done since it was started, at one moment.

    Nothing in it changes any more, and its numbers fit together: none was taken before another had changed.

    Attributes:
        taken_s: Seconds of the monotonic clock.
        sessions: The sessions, by role.
        flows: The transfers, by direction and protocol.
        lanes: The lanes.
        errors: What went wrong.
        integrity_failures: Times that altered bytes were found and refused.
        peers_refused: Connections that listeners turned away, those of v1 peers included.
    """

    taken_s: float
    sessions: tuple[SessionStats, ...]
    flows: tuple[FlowStats, ...]
    lanes: LaneStats
    errors: tuple[ErrorCount, ...]
    integrity_failures: int
    peers_refused: int

    def flow(self, direction: Direction, protocol: Protocol = "v3") -> FlowStats:
        """Give the transfers of one direction over one protocol."""
        return next(flow for flow in self.flows if (flow.direction, flow.protocol) == (direction, protocol))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRates:
    """What happened between two snapshots to the transfers of one direction over one protocol.

    Attributes:
        direction: Whether this process sent or received.
        protocol: The engine.
        transfers_per_s: Transfers that ended, per second.
        state_bytes_per_s: Bytes of states completed, per second.
        wire_bytes_per_s: Bytes of coded blocks, per second.
        failed_share: The share of the transfers ended that failed; None if none ended.
        mean_s: Seconds that a completed one took on average; None if none was completed.
    """

    direction: Direction
    protocol: Protocol
    transfers_per_s: float
    state_bytes_per_s: float
    wire_bytes_per_s: float
    failed_share: float | None
    mean_s: float | None


def rates_between(before: Stats, after: Stats) -> tuple[FlowRates, ...]:
    """Compare two snapshots of one process.

    Args:
        before: The earlier one.
        after: The later one.

    Returns:
        The rates by direction and protocol, all zero if no time has passed.
    """
    seconds = after.taken_s - before.taken_s
    found = []
    for old, new in zip(before.flows, after.flows, strict=True):
        completed, failed = new.completed - old.completed, new.failed - old.failed
        ended = completed + failed

        def rate(amount: float) -> float:
            return amount / seconds if seconds > 0 else 0.0

        found.append(
            FlowRates(
                direction=new.direction,
                protocol=new.protocol,
                transfers_per_s=rate(ended),
                state_bytes_per_s=rate(new.state_bytes - old.state_bytes),
                wire_bytes_per_s=rate(new.wire_bytes - old.wire_bytes),
                failed_share=failed / ended if ended else None,
                mean_s=(new.seconds - old.seconds) / completed if completed else None,
            )
        )
    return tuple(found)
