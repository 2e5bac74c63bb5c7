//! Reports of transfers as dictionaries.

use std::collections::BTreeMap;

use dwcp_codec::CodecId;
use dwcp_codec::block::BlockKind;
use dwcp_codec::select::{Action, Reason};
use dwcp_net::{
    CodecShare, LaneChange as NetLaneChange, Limits as NetLimits, LinkCounts as NetLinkCounts, LivePath,
    PathReport, Progress as NetProgress, ReceiveReport as NetReceiveReport, Selection as NetSelection,
    SendReport as NetSendReport,
};
use pyo3::prelude::*;

/// The blocks that were represented and compressed in one way.
#[derive(IntoPyObject)]
pub struct Share {
    kind: &'static str,
    codec: &'static str,
    blocks: u64,
    raw_bytes: u64,
    wire_bytes: u64,
}

impl From<&CodecShare> for Share {
    fn from(share: &CodecShare) -> Share {
        let kind = match share.kind {
            BlockKind::Plain => "plain",
            BlockKind::Fill => "fill",
            BlockKind::Planes => "planes",
            BlockKind::Difference => "difference",
            BlockKind::Sparse => "sparse",
            BlockKind::Runs => "runs",
        };
        let codec = match share.codec {
            CodecId::None => "none",
            CodecId::Lz4 => "lz4",
            CodecId::Zstd => "zstd",
            CodecId::ZstdDictionary => "zstd+dict",
        };
        let CodecShare { blocks, raw_bytes, wire_bytes, .. } = *share;
        Share { kind, codec, blocks, raw_bytes, wire_bytes }
    }
}

/// The blocks that one action was chosen for.
#[derive(IntoPyObject)]
struct ActionShare {
    action: String,
    blocks: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    cpu_seconds: f64,
}

/// What was chosen for the blocks, and why.
#[derive(IntoPyObject)]
pub struct Selection {
    has_model: bool,
    actions: Vec<ActionShare>,
    reasons: BTreeMap<&'static str, u64>,
    price: f64,
    link_bytes_per_s: Option<f64>,
    link_was_limit: bool,
    known_bytes_per_s: Option<f64>,
    processors: f64,
    blocked_share: f64,
    trials: u32,
    guard_trips: u32,
}

impl From<NetSelection> for Selection {
    fn from(selection: NetSelection) -> Selection {
        let NetSelection { has_model, summary } = selection;
        let shares = Action::ALL.into_iter().zip(&summary.actions).filter(|(_, share)| share.blocks > 0);
        let actions = shares.map(|(action, share)| ActionShare {
            action: action.to_string(),
            blocks: share.blocks,
            raw_bytes: share.raw_bytes,
            wire_bytes: share.wire_bytes,
            cpu_seconds: share.cpu_s,
        });
        let reasons = Reason::ALL.into_iter().zip(summary.reasons).filter(|(_, blocks)| *blocks > 0);
        Selection {
            has_model,
            actions: actions.collect(),
            reasons: reasons.map(|(reason, blocks)| (reason.name(), blocks)).collect(),
            price: summary.price,
            link_bytes_per_s: summary.link_bytes_per_s,
            link_was_limit: summary.link_was_limit,
            known_bytes_per_s: summary.known_bytes_per_s,
            processors: summary.processors,
            blocked_share: summary.blocked_share,
            trials: summary.trials,
            guard_trips: summary.guard_trips,
        }
    }
}

/// A change of the number of lanes.
#[derive(IntoPyObject)]
struct LaneChange {
    seconds: f64,
    lanes: u16,
    bytes_per_s: f64,
    why: &'static str,
}

impl From<&NetLaneChange> for LaneChange {
    fn from(change: &NetLaneChange) -> LaneChange {
        let NetLaneChange { at_s, lanes, bytes_per_s, reason } = *change;
        LaneChange { seconds: at_s, lanes, bytes_per_s, why: reason.text() }
    }
}

/// What held the lanes up, as shares of their time.
#[derive(IntoPyObject)]
struct Limits {
    cwnd: f64,
    rwnd: f64,
    sndbuf: f64,
    application: f64,
}

/// What TCP showed of the path of a transfer.
#[derive(IntoPyObject)]
pub struct Path {
    rtt_ms: f64,
    min_rtt_ms: Option<f64>,
    jitter_ms: f64,
    retransmitted_segments: u64,
    sent_bytes: Option<u64>,
    retransmitted_bytes: Option<u64>,
    retransmitted_share: Option<f64>,
    cwnd_bytes: u64,
    delivery_bytes_per_s: Option<u64>,
    congestion: Vec<String>,
    limited_by: Option<&'static str>,
    limits: Option<Limits>,
}

impl From<PathReport> for Path {
    fn from(path: PathReport) -> Path {
        let share = path.sent_bytes.zip(path.retransmitted_bytes).filter(|(sent, _)| *sent > 0);
        Path {
            rtt_ms: path.rtt_ms,
            min_rtt_ms: path.min_rtt_ms,
            jitter_ms: path.jitter_ms,
            retransmitted_segments: path.retransmitted_segments,
            sent_bytes: path.sent_bytes,
            retransmitted_bytes: path.retransmitted_bytes,
            retransmitted_share: share.map(|(sent, again)| again as f64 / sent as f64),
            cwnd_bytes: path.cwnd_bytes,
            delivery_bytes_per_s: path.delivery_bytes_per_s,
            congestion: path.congestion,
            limited_by: path.limits.map(|limits| limits.most()),
            limits: path.limits.map(|limits| {
                let NetLimits { cwnd, rwnd, sndbuf, application } = limits;
                Limits { cwnd, rwnd, sndbuf, application }
            }),
        }
    }
}

/// What TCP counted in the transfer so far.
#[derive(IntoPyObject)]
pub struct LinkCounts {
    lane_seconds: f64,
    cwnd_seconds: f64,
    waiting_seconds: f64,
    queued_seconds: f64,
    arrived_bytes: u64,
    lost_segments: u64,
    rtt_ms: Option<f64>,
}

impl From<NetLinkCounts> for LinkCounts {
    fn from(link: NetLinkCounts) -> LinkCounts {
        let NetLinkCounts { lanes, cwnd, waiting, queued, arrived_bytes, lost_segments, rtt } = link;
        LinkCounts {
            lane_seconds: lanes.as_secs_f64(),
            cwnd_seconds: cwnd.as_secs_f64(),
            waiting_seconds: waiting.as_secs_f64(),
            queued_seconds: queued.as_secs_f64(),
            arrived_bytes,
            lost_segments,
            rtt_ms: rtt.map(|time| time.as_secs_f64() * 1e3),
        }
    }
}

/// What TCP shows of the path at present.
#[derive(IntoPyObject)]
struct Live {
    rtt_ms: f64,
    cwnd_bytes: u64,
    delivery_bytes_per_s: u64,
    retransmitted_segments: u64,
    link: LinkCounts,
}

impl From<LivePath> for Live {
    fn from(path: LivePath) -> Live {
        let LivePath { rtt, cwnd_bytes, delivery_bytes_per_s, retransmitted_segments, link } = path;
        let rtt_ms = rtt.as_secs_f64() * 1e3;
        Live { rtt_ms, cwnd_bytes, delivery_bytes_per_s, retransmitted_segments, link: link.into() }
    }
}

/// What a sender did for one transfer.
#[derive(IntoPyObject)]
pub struct SendReport {
    transfer_id: String,
    transfer_digest: String,
    entries: u32,
    bytes_raw: u64,
    bytes_wire: u64,
    bytes_sent_raw: u64,
    bytes_held: u64,
    bytes_same: u64,
    blocks_sent: u64,
    blocks_same: u64,
    blocks_held: u64,
    blocks_resent: u64,
    blocks_helped: u64,
    nacks: u64,
    lanes_used: u32,
    lanes_lost: u32,
    lane_changes: Vec<LaneChange>,
    sessions: u32,
    integrity_failures: u32,
    seconds: f64,
    cpu_seconds: f64,
    rtt_ms: Option<f64>,
    path: Option<Path>,
    codec_mix: Vec<Share>,
    selection: Option<Selection>,
    link: String,
    passed_over: Option<String>,
}

impl From<NetSendReport> for SendReport {
    fn from(report: NetSendReport) -> SendReport {
        SendReport {
            transfer_id: report.transfer_id.to_string(),
            transfer_digest: report.transfer_digest.to_string(),
            entries: report.entries,
            bytes_raw: report.bytes_raw,
            bytes_wire: report.bytes_wire,
            bytes_sent_raw: report.bytes_sent_raw,
            bytes_held: report.bytes_held,
            bytes_same: report.bytes_same,
            blocks_sent: report.blocks_sent,
            blocks_same: report.blocks_same,
            blocks_held: report.blocks_held,
            blocks_resent: report.blocks_resent,
            blocks_helped: report.blocks_helped,
            nacks: report.nacks,
            lanes_used: report.lanes_used,
            lanes_lost: report.lanes_lost,
            lane_changes: report.lane_changes.iter().map(LaneChange::from).collect(),
            sessions: report.sessions,
            integrity_failures: report.integrity_failures,
            seconds: report.seconds,
            cpu_seconds: report.cpu_seconds,
            rtt_ms: report.path.as_ref().map(|path| path.rtt_ms).or(report.rtt_ms),
            path: report.path.map(Path::from),
            codec_mix: report.codec_mix.iter().map(Share::from).collect(),
            selection: report.selection.map(Selection::from),
            link: report.link.to_string(),
            passed_over: report.passed_over,
        }
    }
}

/// What a receiver did for one transfer.
#[derive(IntoPyObject)]
pub struct ReceiveReport {
    transfer_id: String,
    transfer_digest: String,
    entries: u32,
    bytes_raw: u64,
    bytes_wire: u64,
    bytes_received_raw: u64,
    bytes_held: u64,
    bytes_same: u64,
    blocks_received: u64,
    blocks_same: u64,
    nacks: u64,
    lanes_used: u32,
    lanes_lost: u32,
    lane_changes: Vec<LaneChange>,
    integrity_failures: u32,
    seconds: f64,
    cpu_seconds: f64,
    codec_mix: Vec<Share>,
    peer: String,
    link: String,
}

impl From<NetReceiveReport> for ReceiveReport {
    fn from(report: NetReceiveReport) -> ReceiveReport {
        ReceiveReport {
            transfer_id: report.transfer_id.to_string(),
            transfer_digest: report.transfer_digest.to_string(),
            entries: report.entries,
            bytes_raw: report.bytes_raw,
            bytes_wire: report.bytes_wire,
            bytes_received_raw: report.bytes_received_raw,
            bytes_held: report.bytes_held,
            bytes_same: report.bytes_same,
            blocks_received: report.blocks_received,
            blocks_same: report.blocks_same,
            nacks: report.nacks,
            lanes_used: report.lanes_used,
            lanes_lost: report.lanes_lost,
            lane_changes: report.lane_changes.iter().map(LaneChange::from).collect(),
            integrity_failures: report.integrity_failures,
            seconds: report.seconds,
            cpu_seconds: report.cpu_seconds,
            codec_mix: report.codec_mix.iter().map(Share::from).collect(),
            peer: report.peer.to_string(),
            link: report.link.to_string(),
        }
    }
}

/// Where a transfer stands.
#[derive(IntoPyObject)]
pub struct Progress {
    state_bytes_done: u64,
    state_bytes_total: u64,
    wire_bytes: u64,
    lanes: u32,
    blocks_resent: u64,
    path: Option<Live>,
}

impl From<NetProgress> for Progress {
    fn from(progress: NetProgress) -> Progress {
        let NetProgress { state_bytes_done, state_bytes_total, wire_bytes, lanes, blocks_resent, path } =
            progress;
        let path = path.map(Live::from);
        Progress { state_bytes_done, state_bytes_total, wire_bytes, lanes, blocks_resent, path }
    }
}
