"""What a transfer did, and the record from which models are trained."""

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from dwcp_fast.paths import LivePath, PathReport
from dwcp_fast.policy.lanes import LaneChange
from dwcp_fast.policy.link import LinkCounts
from dwcp_fast.policy.mode import ModeSwitch
from dwcp_fast.policy.selection import Selection
from dwcp_fast.told import ProgressTold

__all__ = ["RECORD_FIELDS", "CodecShare", "Progress", "ReceiveReport", "SendReport", "make_progress"]

RECORD_FIELDS: Final = (
    "timestamp",
    "region",
    "az",
    "link_type",
    "node_id",
    "peer_id",
    "rtt_ms",
    "jitter_ms",
    "throughput_mbps",
    "bytes_tx",
    "bytes_rx",
    "packet_loss",
    "retransmits",
    "congestion_window",
    "queue_depth",
    "dwcp_mode",
    "network_tier",
    "transport_type",
    "hde_compression_ratio",
    "hde_delta_hit_rate",
    "amst_streams",
    "amst_transfer_rate",
    "error_budget_burn_rate",
)
"""The fields of a record, in the order of the shared schema."""


KINDS_AGAINST_BASE: Final = ("difference", "sparse", "runs")
"""The kinds of blocks that are coded against a base."""


@dataclass(frozen=True, slots=True)
class CodecShare:
    """The blocks that were represented and compressed in one way.

    Attributes:
        kind: ``"plain"``, ``"fill"`` (one repeated byte), ``"planes"`` (bytes grouped by element), or one of
            :data:`KINDS_AGAINST_BASE`.
        codec: ``"none"``, ``"lz4"``, ``"zstd"`` or ``"zstd+dict"``.
        blocks: How many.
        raw_bytes: Their length.
        wire_bytes: Their length on the wire.
    """

    kind: str
    codec: str
    blocks: int
    raw_bytes: int
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a transfer stands.

    Attributes:
        state_bytes_done: Bytes of the state that the receiver has.
        state_bytes_total: Bytes of the whole state; 0 while no transfer is under way.
        wire_bytes: Bytes of coded blocks so far.
        lanes: Lanes that are up.
        blocks_resent: Blocks that were sent again.
        path: What TCP shows at present; None on the side that receives, and where the system tells nothing.
    """

    state_bytes_done: int
    state_bytes_total: int
    wire_bytes: int
    lanes: int
    blocks_resent: int
    path: LivePath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """What a sender did for one transfer. None stands for what is not known.

    Attributes:
        protocol: ``"v3"`` or ``"v1"``.
        verified: Whether the receiver proved that it holds exactly this state; always False with v1.
        peer: The receiver, as ``HOST:PORT``.
        transport: ``"tls"``, ``"tcp"``, ``"shm"`` (shared memory) or ``"rdma"``.
        why: What was chosen and the reason, by the name of the choice.
        transfer_id: Name of the transfer, in hex.
        transfer_digest: Digest of the whole state, in hex, the same on both sides.
        entries: Files, directories, links or buffers.
        bytes_raw: Bytes of the whole state.
        bytes_wire: Bytes of coded blocks that were sent, repetitions included.
        bytes_sent_raw: Bytes of the state that those stand for.
        bytes_held: Bytes that an earlier, interrupted transfer had left with the receiver.
        bytes_same: Bytes that the receiver had in a base.
        blocks_sent: Blocks sent, repetitions included.
        blocks_same: Blocks that the receiver had in a base.
        blocks_held: Blocks that an interrupted transfer had left.
        blocks_resent: Blocks that were sent again.
        blocks_helped: Blocks that were sent a second time, since their lane was slow and another had nothing
            to do.
        nacks: Blocks that the receiver's base did not fit.
        lanes_used: Lanes that carried blocks.
        lanes_lost: Lanes that were lost.
        lane_changes: How the number of lanes was found, empty if it was fixed.
        sessions: 1, and one more for each time the receiver had to be found again.
        integrity_failures: Times that altered bytes were found and refused.
        seconds: From the call to the receiver's word that all is in place.
        cpu_seconds: Processor time of the lanes.
        rtt_ms: A round trip, as TCP has measured it during the transfer, or else the fastest TCP handshake.
        codec_mix: How blocks were represented.
        selection: What ``codec="auto"`` chose, None if the codec was asked for.
        retransmits: TCP segments sent again.
        path: What TCP showed of the way to the receiver.
        mode: The mode at the end: ``"datacenter"``, ``"hybrid"``, ``"internet"``, or ``"unknown"``; None with
            v1.
        mode_switches: How the mode was changed during the transfer, with seconds from the beginning of the
            session on.
    """

    protocol: str
    verified: bool
    peer: str
    transport: str
    why: Mapping[str, str]
    transfer_id: str | None
    transfer_digest: str | None
    entries: int
    bytes_raw: int
    bytes_wire: int
    bytes_sent_raw: int
    seconds: float
    bytes_held: int = 0
    bytes_same: int = 0
    blocks_sent: int = 0
    blocks_same: int = 0
    blocks_held: int = 0
    blocks_resent: int = 0
    blocks_helped: int = 0
    nacks: int = 0
    lanes_used: int = 0
    lanes_lost: int = 0
    lane_changes: tuple[LaneChange, ...] = ()
    sessions: int = 1
    integrity_failures: int = 0
    cpu_seconds: float | None = None
    rtt_ms: float | None = None
    retransmits: int | None = None
    codec_mix: tuple[CodecShare, ...] = ()
    selection: Selection | None = None
    path: PathReport | None = None
    mode: str | None = None
    mode_switches: tuple[ModeSwitch, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return {
            **asdict(self),
            "why": dict(self.why),
            "mode_switches": [{**asdict(switch), "why": switch.why} for switch in self.mode_switches],
            "codec_mix": [asdict(share) for share in self.codec_mix],
            "lane_changes": [asdict(change) for change in self.lane_changes],
        }

    def record(self) -> dict[str, Any]:
        """Give the record of this transfer in the shared schema; None for what was not measured."""
        return make_record(
            peer=self.peer,
            rtt_ms=self.rtt_ms,
            bytes_tx=self.bytes_wire,
            bytes_rx=None,
            retransmits=self.retransmits,
            path=self.path,
            transport=self.transport,
            seconds=self.seconds,
            bytes_raw=self.bytes_raw,
            coded_raw=self.bytes_sent_raw,
            coded_wire=self.bytes_wire,
            lanes=self.lanes_used,
            hit_rate=delta_hit_rate(self.codec_mix, self.blocks_same) if self.protocol == "v3" else None,
            mode=None if self.mode == "unknown" else self.mode,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveReport:
    """What a receiver did for one transfer.

    Attributes:
        peer: The sender's address.
        transport: ``"tls"``, ``"tcp"``, ``"shm"`` (shared memory) or ``"rdma"``.
        transfer_id: Name of the transfer, in hex.
        transfer_digest: Digest of the whole state, in hex, the same on both sides.
        entries: Files, directories, links or buffers.
        bytes_raw: Bytes of the whole state.
        bytes_wire: Bytes of coded blocks that came, repetitions included.
        bytes_received_raw: Bytes of the state that those stand for.
        bytes_held: Bytes that an interrupted transfer had left.
        bytes_same: Bytes copied from a base.
        blocks_received: Blocks that came, repetitions included.
        blocks_same: Blocks copied from a base.
        nacks: Blocks that a base did not fit.
        lanes_used: Lanes that carried blocks.
        lanes_lost: Lanes that were lost.
        lane_changes: How the number of lanes was found, empty if it was fixed.
        integrity_failures: Times that altered bytes were found and refused.
        seconds: From the offer to the moment all was in place.
        cpu_seconds: Processor time of the lanes.
        codec_mix: How blocks were represented.
        verified: Always True: nothing is put in place before its digest is proven.
    """

    peer: str
    transport: str
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
    integrity_failures: int
    seconds: float
    cpu_seconds: float
    codec_mix: tuple[CodecShare, ...]
    lane_changes: tuple[LaneChange, ...] = ()
    verified: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return {
            **asdict(self),
            "codec_mix": [asdict(share) for share in self.codec_mix],
            "lane_changes": [asdict(change) for change in self.lane_changes],
        }

    def record(self) -> dict[str, Any]:
        """Give the record of this transfer in the shared schema; None for what was not measured."""
        return make_record(
            peer=self.peer,
            rtt_ms=None,
            bytes_tx=None,
            bytes_rx=self.bytes_wire,
            retransmits=None,
            transport=self.transport,
            seconds=self.seconds,
            bytes_raw=self.bytes_raw,
            coded_raw=self.bytes_received_raw,
            coded_wire=self.bytes_wire,
            lanes=self.lanes_used,
            hit_rate=delta_hit_rate(self.codec_mix, self.blocks_same),
        )


def make_progress(told: ProgressTold) -> Progress:
    """Make of what the native side tells what callers get."""
    path = told["path"]
    live: dict[str, Any] = {**path, "link": LinkCounts(**path["link"])} if path else {}
    plain: dict[str, Any] = {**told, "path": LivePath(**live) if path else None}
    return Progress(**plain)


def delta_hit_rate(mix: tuple[CodecShare, ...], same: int) -> float | None:
    """Give the share of blocks, of those not held by staging, that a base saved all or part of."""
    blocks = same + sum(share.blocks for share in mix)
    hits = same + sum(share.blocks for share in mix if share.kind in KINDS_AGAINST_BASE)
    return hits / blocks if blocks else None


def make_record(
    *,
    peer: str,
    rtt_ms: float | None,
    bytes_tx: int | None,
    bytes_rx: int | None,
    retransmits: int | None,
    transport: str,
    seconds: float,
    bytes_raw: int,
    coded_raw: int,
    coded_wire: int,
    lanes: int,
    hit_rate: float | None,
    path: PathReport | None = None,
    mode: str | None = None,
) -> dict[str, Any]:
    """Fill in the shared schema with what is known."""
    known: dict[str, Any] = {
        "timestamp": datetime.now(UTC).isoformat(),
        "node_id": socket.gethostname(),
        "peer_id": peer,
        "rtt_ms": rtt_ms,
        "jitter_ms": path.jitter_ms if path else None,
        "packet_loss": path.retransmitted_share if path else None,
        "congestion_window": path.cwnd_bytes if path else None,
        "throughput_mbps": coded_wire * 8 / seconds / 1e6 if seconds > 0 else None,
        "bytes_tx": bytes_tx,
        "bytes_rx": bytes_rx,
        "retransmits": retransmits,
        "dwcp_mode": mode,
        "transport_type": transport,
        "hde_compression_ratio": coded_raw / coded_wire if coded_wire else None,
        "hde_delta_hit_rate": hit_rate,
        "amst_streams": lanes,
        "amst_transfer_rate": bytes_raw / seconds if seconds > 0 else None,
    }
    return {field: known.get(field) for field in RECORD_FIELDS}
