"""What Python and the native side hand each other, field by field."""

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

    from dwcp_fast import _core

__all__ = [
    "ActionTold",
    "CountsTold",
    "EventsTold",
    "FetchSettings",
    "FlowTold",
    "LaneChangeTold",
    "LinkTold",
    "LivePathTold",
    "PatchTold",
    "PathTold",
    "ProbeSettings",
    "ProbeTold",
    "ProgressTold",
    "RdmaDeviceTold",
    "ReceiveSettings",
    "ReceiveTold",
    "RelaySettings",
    "RelayTickTold",
    "RelayTold",
    "SelectionTold",
    "SendSettings",
    "SendTold",
    "ShareTold",
    "TotalsTold",
]


class PatchTold(TypedDict):
    """What a patch says of itself."""

    patches: int
    base_bytes: int
    base_digest: str
    target_bytes: int
    target_digest: str
    block_bytes: int
    blocks: int
    blocks_same: int
    blocks_plain: int
    blocks_fill: int
    blocks_planes: int
    blocks_difference: int
    blocks_sparse: int
    blocks_runs: int
    blocks_copy: int
    blocks_splice: int
    patch_bytes: int
    dictionary: str | None


class ShareTold(TypedDict):
    """The blocks that were represented and compressed in one way."""

    kind: str
    codec: str
    blocks: int
    raw_bytes: int
    wire_bytes: int


class ActionTold(TypedDict):
    """The blocks that one action was chosen for."""

    action: str
    blocks: int
    raw_bytes: int
    wire_bytes: int
    cpu_seconds: float


class SelectionTold(TypedDict):
    """What was chosen for the blocks of a transfer, and why."""

    has_model: bool
    actions: list[ActionTold]
    reasons: dict[str, int]
    price: float
    link_bytes_per_s: float | None
    link_was_limit: bool
    known_bytes_per_s: float | None
    processors: float
    blocked_share: float
    trials: int
    guard_trips: int


class LaneChangeTold(TypedDict):
    """A change of the number of lanes."""

    seconds: float
    lanes: int
    bytes_per_s: float
    why: str


class PathTold(TypedDict):
    """What TCP showed of the path of a transfer."""

    rtt_ms: float
    min_rtt_ms: float | None
    jitter_ms: float
    retransmitted_segments: int
    sent_bytes: int | None
    retransmitted_bytes: int | None
    retransmitted_share: float | None
    cwnd_bytes: int
    delivery_bytes_per_s: int | None
    congestion: list[str]
    limited_by: str | None
    limits: dict[str, float] | None


class LinkTold(TypedDict):
    """What TCP counted in the transfer so far."""

    lane_seconds: float
    cwnd_seconds: float
    waiting_seconds: float
    queued_seconds: float
    arrived_bytes: int
    lost_segments: int
    rtt_ms: float | None


class LivePathTold(TypedDict):
    """What TCP shows of the path at present."""

    rtt_ms: float
    cwnd_bytes: int
    delivery_bytes_per_s: int
    retransmitted_segments: int
    link: LinkTold


class ProbeSettings(TypedDict):
    """How to probe."""

    lanes: int
    burst_s: float
    burst_bytes: int
    connect_timeout_s: float
    local_addresses: list[str]
    links: list[str]


CountsTold = tuple[float, LinkTold]
"""What was counted, and when."""


class RdmaDeviceTold(TypedDict):
    """An RDMA device and its limits."""

    name: str
    max_qp: int
    max_qp_wr: int
    max_sge: int
    max_cqe: int
    max_mr: int
    max_mr_bytes: int


class ProbeTold(TypedDict):
    """What a probe has seen."""

    peer: str
    link: str
    passed_over: str | None
    lanes: int
    handshake_ms: float
    relayed: bool
    calm: PathTold | None
    burst: PathTold | None
    counts: list[CountsTold]


class SendTold(TypedDict):
    """What a sender did for one transfer."""

    transfer_id: str
    transfer_digest: str
    entries: int
    bytes_raw: int
    bytes_wire: int
    bytes_sent_raw: int
    bytes_held: int
    bytes_same: int
    blocks_sent: int
    blocks_same: int
    blocks_held: int
    blocks_resent: int
    blocks_helped: int
    nacks: int
    lanes_used: int
    lanes_lost: int
    lane_changes: list[LaneChangeTold]
    sessions: int
    integrity_failures: int
    seconds: float
    cpu_seconds: float
    rtt_ms: float | None
    path: PathTold | None
    codec_mix: list[ShareTold]
    selection: SelectionTold | None
    link: str
    passed_over: str | None


class ReceiveTold(TypedDict):
    """What a receiver did for one transfer."""

    transfer_id: str
    transfer_digest: str
    entries: int
    bytes_raw: int
    bytes_wire: int
    bytes_received_raw: int
    bytes_held: int
    bytes_same: int
    blocks_received: int
    blocks_same: int
    nacks: int
    lanes_used: int
    lanes_lost: int
    lane_changes: list[LaneChangeTold]
    integrity_failures: int
    seconds: float
    cpu_seconds: float
    codec_mix: list[ShareTold]
    peer: str
    link: str


class EventsTold(TypedDict):
    """What has happened on all sessions and listeners of this process."""

    lanes_opened: int
    lanes_lost: int
    reconnects: int
    integrity_failures: int
    peers_refused: int


class FlowTold(TypedDict):
    """The v3 transfers of one direction."""

    active: int
    completed: int
    failed: int
    withdrawn: int
    state_bytes: int
    wire_bytes: int
    unfinished_wire_bytes: int
    held_bytes: int
    same_bytes: int
    blocks_resent: int
    nacks: int
    seconds: float
    cpu_seconds: float
    tcp_sent_bytes: int
    tcp_retransmitted_bytes: int
    tcp_retransmitted_segments: int
    shares: list[ShareTold]


class TotalsTold(TypedDict):
    """What the native side of this process has counted, at one moment."""

    events: EventsTold
    sent: FlowTold
    received: FlowTold
    errors: dict[str, int]
    lanes: int
    paths: list[tuple[float, int]]


class ProgressTold(TypedDict):
    """Where a transfer stands."""

    state_bytes_done: int
    state_bytes_total: int
    wire_bytes: int
    lanes: int
    blocks_resent: int
    path: LivePathTold | None


class SendSettings(TypedDict):
    """How to send."""

    lanes: int
    adaptive: tuple[int, int, int] | None
    far: bool | None
    block_bytes: int
    codec: str
    dictionary: "_core.Dictionary | None"
    codec_model: "_core.SelectorModel | None"
    known_link: tuple[float, bool] | None
    idle_timeout_s: float
    connect_timeout_s: float
    reconnect_s: float
    timeout_s: float | None
    stall_timeout_s: float | None
    base_allowed: bool
    bandwidth_bytes_per_s: int | None
    socket_buffer_bytes: int | None
    congestion: str
    local_addresses: list[str]
    links: list[str]


class FetchSettings(TypedDict):
    """How to fetch."""

    lanes: int
    adaptive: tuple[int, int, int] | None
    far: bool | None
    max_block_bytes: int
    max_entries: int
    max_object_bytes: int
    max_dictionary_bytes: int
    dictionaries: "list[_core.Dictionary]"
    idle_timeout_s: float
    connect_timeout_s: float
    reconnect_s: float
    timeout_s: float | None
    local_addresses: list[str]
    links: list[str]


class ReceiveSettings(TypedDict):
    """How to receive."""

    max_lanes: int
    max_block_bytes: int
    max_entries: int
    max_object_bytes: int
    max_dictionary_bytes: int
    dictionaries: "list[_core.Dictionary]"
    idle_timeout_s: float
    handshake_timeout_s: float
    senders: bool
    max_sessions: int
    v1_networks: list[str]
    shares_memory: bool
    rdma: bool


class RelayTickTold(TypedDict):
    """Where a relay stood at a moment."""

    at_s: float
    stream_bytes: int
    wire_bytes: int
    lanes: int
    rtt_ms: float | None
    unacknowledged_bytes: int


class RelayTold(TypedDict):
    """Where a relay stands."""

    finished: bool
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
    opaque: str | None
    compressed_by_qemu: bool
    cpu_seconds: float
    selection: SelectionTold | None
    timeline: list[RelayTickTold]


class RelaySettings(TypedDict):
    """How a relay works."""

    channels: "list[tuple[str, Path]]"
    lanes: int
    adaptive: tuple[int, int, int] | None
    codec: str
    codec_model: "_core.SelectorModel | None"
    page_cache_bytes: int
    max_page_cache_bytes: int
    base: "Path | None"
    max_base_bytes: int | None
    keep: "Path | None"
    bandwidth_bytes_per_s: int | None
    congestion: str
    idle_timeout_s: float
    connect_timeout_s: float
    reconnect_s: float
