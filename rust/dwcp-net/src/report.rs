//! What happened: events as they come, progress while it goes on, reports at the end.

use std::net::SocketAddr;
use std::time::Duration;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::frame::TransferId;
use rustix::time::{ClockId, clock_gettime};

use crate::lanes::LaneChange;
use crate::send::Selection;
use crate::transport::LinkKind;

/// Something worth telling that happened on a session or a listener.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A lane has joined its session.
    LaneUp {
        /// This side's number for the lane.
        lane: u32,
        /// The peer.
        peer: SocketAddr,
    },
    /// A lane has ended.
    LaneDown {
        /// This side's number for the lane.
        lane: u32,
        /// Why; nothing when it ended in peace.
        reason: Option<String>,
    },
    /// A lane could not be made and is tried again.
    Reconnecting {
        /// How often it was tried.
        attempt: u32,
        /// When the next attempt is made.
        after: Duration,
        /// Why the last one failed.
        reason: String,
    },
    /// What had carried the lanes of a session does not any more, and something else does from now on.
    LinkChanged {
        /// What carries them.
        link: LinkKind,
        /// What was tried before it, and why it does not.
        reason: String,
    },
    /// A session was opened: at the start, and again when all lanes were lost and the receiver had forgotten it.
    SessionOpened {
        /// The peer.
        peer: SocketAddr,
    },
    /// The receiver takes the transfer.
    Accepted {
        /// The transfer.
        transfer: TransferId,
        /// Bytes of the whole state.
        total_bytes: u64,
        /// Bytes that staging held already.
        staged_bytes: u64,
    },
    /// A block was sent again because the receiver's base is not what the sender takes it for.
    Nack {
        /// The entry.
        entry: u32,
        /// Where the block lies.
        offset: u64,
    },
    /// Bytes were altered on the way and refused.
    IntegrityFailure {
        /// What did not match.
        reason: String,
    },
    /// Everything is in place.
    Committed {
        /// The transfer.
        transfer: TransferId,
    },
    /// A connection was turned away.
    Refused {
        /// Who came.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A v1 peer, or something that speaks no known protocol, was turned away.
    V1Refused {
        /// Who came.
        peer: SocketAddr,
    },
    /// A v1 peer was handed over to the v1 engine.
    V1HandedOver {
        /// Who came.
        peer: SocketAddr,
    },
}

/// Is told events, from any thread; should return soon.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// An observer that does not care.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _event: Event) {}
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the state that the receiver has.
    pub state_bytes_done: u64,
    /// Bytes of the whole state; 0 while no transfer is under way.
    pub state_bytes_total: u64,
    /// Bytes of BLOCK bodies so far.
    pub wire_bytes: u64,
    /// Lanes that are up.
    pub lanes: u32,
    /// Blocks sent again after their lane was lost or a base differed.
    pub blocks_resent: u64,
    /// What TCP shows of the path at present, on the side that sends.
    pub path: Option<LivePath>,
}

/// What TCP shows of the lanes at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LivePath {
    /// The smoothed round trip, the mean of the lanes.
    pub rtt: Duration,
    /// Bytes that may be under way on all lanes together.
    pub cwnd_bytes: u64,
    /// Bytes a second that have last reached the peer, on all lanes together.
    pub delivery_bytes_per_s: u64,
    /// TCP segments sent again in this transfer.
    pub retransmitted_segments: u64,
    /// What was counted in this transfer.
    pub link: LinkCounts,
}

/// What TCP counted on the lanes at each look, added up since the transfer began. Times are those of all lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// The time of the lanes.
    pub lanes: Duration,
    /// Of that, what was for the path: there was something to send, and neither the receiver's window nor this side's
    /// buffer held it up.
    pub cwnd: Duration,
    /// In which bytes waited in the system for their first sending.
    pub waiting: Duration,
    /// In which round trips were so much longer than the shortest that they must have stood in a queue.
    pub queued: Duration,
    /// Payload bytes that have arrived, those behind a gap included.
    pub arrived_bytes: u64,
    /// Segments sent again.
    pub lost_segments: u64,
    /// The round trip at the last look, the median of the lanes that something was acknowledged on since the one before.
    pub rtt: Option<Duration>,
}

/// What held the lanes up while they sent, as shares of their time that add up to one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The path, as the congestion control has it.
    pub cwnd: f64,
    /// The window that the receiver grants.
    pub rwnd: f64,
    /// The socket's buffer on this side.
    pub sndbuf: f64,
    /// There was nothing to send.
    pub application: f64,
}

impl Limits {
    /// The name of the largest share.
    #[must_use]
    pub fn most(&self) -> &'static str {
        let Limits { cwnd, rwnd, sndbuf, application } = *self;
        let mut most = ("application", application);
        for share in [("cwnd", cwnd), ("rwnd", rwnd), ("sndbuf", sndbuf)] {
            if share.1 > most.1 {
                most = share;
            }
        }
        most.0
    }
}

/// What TCP has shown of the path in the course of a transfer, looked at ten times a second.
#[derive(Clone, Debug, PartialEq)]
pub struct PathReport {
    /// The smoothed round trip, on average.
    pub rtt_ms: f64,
    /// The shortest round trip of late.
    pub min_rtt_ms: Option<f64>,
    /// How far round trips were from the smoothed one, on average.
    pub jitter_ms: f64,
    /// Segments sent again.
    pub retransmitted_segments: u64,
    /// Bytes that TCP sent, those sent again and those of TLS included.
    pub sent_bytes: Option<u64>,
    /// Bytes that TCP sent again.
    pub retransmitted_bytes: Option<u64>,
    /// Bytes that could be under way on all lanes together, on average.
    pub cwnd_bytes: u64,
    /// Bytes a second that reached the peer on all lanes together, on average, as TCP measures bursts of it.
    pub delivery_bytes_per_s: Option<u64>,
    /// What held the lanes up.
    pub limits: Option<Limits>,
    /// The names of the congestion controls that were at work.
    pub congestion: Vec<String>,
}

/// The blocks that were represented and compressed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodecShare {
    /// How the blocks were represented.
    pub kind: BlockKind,
    /// How they were compressed.
    pub codec: CodecId,
    /// How many.
    pub blocks: u64,
    /// Their length.
    pub raw_bytes: u64,
    /// Their length as BLOCK bodies.
    pub wire_bytes: u64,
}

/// What a sender did for one transfer.
#[derive(Clone, Debug)]
pub struct SendReport {
    /// The transfer.
    pub transfer_id: TransferId,
    /// The digest of the whole state, the same at both ends.
    pub transfer_digest: Digest,
    /// Entries of the manifest.
    pub entries: u32,
    /// Bytes of the whole state.
    pub bytes_raw: u64,
    /// Bytes that the receiver's staging held, as of the last session.
    pub bytes_held: u64,
    /// Bytes that the receiver's base held, as of the last session.
    pub bytes_same: u64,
    /// Bytes of the state that went as BLOCKs, repetitions included.
    pub bytes_sent_raw: u64,
    /// Bytes of BLOCK bodies, repetitions included.
    pub bytes_wire: u64,
    /// Blocks that were sent, repetitions included.
    pub blocks_sent: u64,
    /// Blocks that the receiver's base held, as of the last session.
    pub blocks_same: u64,
    /// Blocks that the receiver's staging held, as of the last session.
    pub blocks_held: u64,
    /// Blocks that were sent again.
    pub blocks_resent: u64,
    /// Blocks that were sent a second time because their lane was slow.
    pub blocks_helped: u64,
    /// Blocks that the receiver asked for in full.
    pub nacks: u64,
    /// Lanes that carried frames.
    pub lanes_used: u32,
    /// Lanes that were lost.
    pub lanes_lost: u32,
    /// How the number of lanes was changed, and why; empty where it was fixed.
    pub lane_changes: Vec<LaneChange>,
    /// Sessions: 1, and one more for each time the receiver had to be met anew.
    pub sessions: u32,
    /// Times that altered bytes were found.
    pub integrity_failures: u32,
    /// From the call to COMMITTED.
    pub seconds: f64,
    /// How the blocks were represented and compressed.
    pub codec_mix: Vec<CodecShare>,
    /// The time of the fastest TCP handshake, about a round trip.
    pub rtt_ms: Option<f64>,
    /// What TCP has shown of the path; none where the system tells nothing.
    pub path: Option<PathReport>,
    /// Processor time of the lanes' threads.
    pub cpu_seconds: f64,
    /// What was chosen for the blocks, if that was not fixed.
    pub selection: Option<Selection>,
    /// What carried the lanes, as of the one that was made last.
    pub link: LinkKind,
    /// What was tried before that, and why it did not.
    pub passed_over: Option<String>,
}

/// What a receiver did for one transfer.
#[derive(Clone, Debug)]
pub struct ReceiveReport {
    /// The transfer.
    pub transfer_id: TransferId,
    /// The digest of the whole state, the same at both ends.
    pub transfer_digest: Digest,
    /// Entries of the manifest.
    pub entries: u32,
    /// Bytes of the whole state.
    pub bytes_raw: u64,
    /// Bytes that staging held when the transfer was offered.
    pub bytes_held: u64,
    /// Bytes that were copied from a base.
    pub bytes_same: u64,
    /// Bytes of the state that came as BLOCKs, repetitions included.
    pub bytes_received_raw: u64,
    /// Bytes of BLOCK bodies, repetitions included.
    pub bytes_wire: u64,
    /// Blocks that came, repetitions included.
    pub blocks_received: u64,
    /// Blocks that were copied from a base.
    pub blocks_same: u64,
    /// Blocks that were refused because a base differed.
    pub nacks: u64,
    /// Lanes that carried frames.
    pub lanes_used: u32,
    /// Lanes that were lost.
    pub lanes_lost: u32,
    /// How the number of lanes was changed, and why; empty where it was fixed.
    pub lane_changes: Vec<LaneChange>,
    /// Times that altered bytes were found.
    pub integrity_failures: u32,
    /// From the offer to COMMITTED.
    pub seconds: f64,
    /// How the blocks were represented and compressed.
    pub codec_mix: Vec<CodecShare>,
    /// Processor time of the lanes' threads.
    pub cpu_seconds: f64,
    /// The sender's address.
    pub peer: SocketAddr,
    /// What carried the lanes, as of the one that was made last.
    pub link: LinkKind,
}

/// Counts of a transfer that this crate keeps itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    shares: [[Share; 4]; 6],
    pub(crate) cpu: Duration,
    pub(crate) lanes_used: u32,
    pub(crate) lanes_lost: u32,
    pub(crate) integrity_failures: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    blocks: u64,
    raw_bytes: u64,
    wire_bytes: u64,
}

impl Tally {
    /// The counts at the start of a transfer on lanes that are up already.
    pub(crate) fn on_lanes(lanes: usize) -> Tally {
        Tally { lanes_used: lanes as u32, ..Tally::default() }
    }

    /// Counts a block.
    pub(crate) fn block(&mut self, kind: BlockKind, codec: CodecId, raw: u64, wire: u64) {
        let share = &mut self.shares[kind as usize][codec as usize];
        share.blocks += 1;
        share.raw_bytes += raw;
        share.wire_bytes += wire;
    }

    /// The counts that are not zero.
    pub(crate) fn codec_mix(&self) -> Vec<CodecShare> {
        let codecs = [CodecId::None, CodecId::Lz4, CodecId::Zstd, CodecId::ZstdDictionary];
        BlockKind::ALL
            .into_iter()
            .flat_map(|kind| codecs.map(|codec| (kind, codec)))
            .map(|(kind, codec)| {
                let Share { blocks, raw_bytes, wire_bytes } = self.shares[kind as usize][codec as usize];
                CodecShare { kind, codec, blocks, raw_bytes, wire_bytes }
            })
            .filter(|share| share.blocks > 0)
            .collect()
    }

    /// Blocks, their length, and their length as bodies.
    pub(crate) fn sums(&self) -> (u64, u64, u64) {
        let all = self.shares.iter().flatten();
        all.fold((0, 0, 0), |sum, share| {
            (sum.0 + share.blocks, sum.1 + share.raw_bytes, sum.2 + share.wire_bytes)
        })
    }
}

/// The processor time that this thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
