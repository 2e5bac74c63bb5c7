//! What a sender asks of its driver, what it is answered, and what it counts.

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};

use crate::frame::Frame;
use crate::manifest::Manifest;

/// How much may be under way on one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderOptions {
    /// Most BLOCK and SAME frames that are not acknowledged; 1 to 4,096, other values are moved there.
    pub max_unacked_frames: u32,
    /// Most bytes of the blocks in those frames; one block is always allowed.
    pub max_unacked_bytes: u64,
}

impl Default for SenderOptions {
    fn default() -> SenderOptions {
        SenderOptions { max_unacked_frames: 1_024, max_unacked_bytes: 64 << 20 }
    }
}

/// How a lane gets on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Bytes of blocks that are acknowledged on it in a second; 0 where nothing was yet.
    pub bytes_per_s: f64,
    /// For how many seconds it has had blocks under way without an acknowledgement.
    pub waited_s: f64,
    /// Of what is under way on it something was acknowledged in the last second, be it a part of a block.
    pub moves: bool,
}

/// What is known of the way that the lanes of a session share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing that speaks against room for more.
    Open,
    /// A queue stands in front of it.
    Full,
    /// It is short: what moves on it waits for the link, which a copy would keep busy as well, and not for TCP.
    Short,
}

/// What a lane should do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this frame.
    Send(Frame),
    /// Read this block, and tell [`SenderSession::resolve`](super::SenderSession::resolve) what came of it.
    Block(BlockTask),
    /// Nothing before the next frame or change of lanes.
    Wait,
    /// The transfer is committed.
    Done,
}

/// One block to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTask {
    /// The entry.
    pub entry: u32,
    /// Where the block lies in the object.
    pub offset: u64,
    /// Length of the block.
    pub raw_len: u32,
    /// The digest of the receiver's block at this place, staged or in its base at the same path.
    pub held: Option<Digest>,
    /// Whether `held` is of a staged block.
    pub held_is_staged: bool,
    /// The candidate of the entry that both sides hold.
    pub candidate: Option<u8>,
    /// The receiver refused the block once: it is sent in full.
    pub plain: bool,
    /// It may be made with the dictionary that was offered.
    pub dictionary: bool,
}

/// What a block turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It equals the staged block: there is nothing to send.
    Held {
        /// The digest of the block.
        digest: Digest,
    },
    /// It equals the base block.
    Same {
        /// The digest of the block.
        digest: Digest,
    },
    /// It is sent.
    Block {
        /// The digest of the block.
        digest: Digest,
        /// The digest of the candidate's block; for kinds that [need a base](BlockKind::needs_base) only.
        base_digest: Option<Digest>,
        /// How the body represents it.
        kind: BlockKind,
        /// How the body is compressed.
        codec: CodecId,
        /// Length of the body.
        wire_len: u32,
    },
}

/// How far a sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderPhase {
    /// Telling the manifest.
    Offering,
    /// The receiver looks for what it holds.
    Preparing,
    /// Blocks flow.
    Blocks,
    /// Telling the digests, then waiting for the commit.
    Finishing,
    /// Committed.
    Done,
}

impl SenderPhase {
    pub(super) fn name(self) -> &'static str {
        match self {
            SenderPhase::Offering => "offering",
            SenderPhase::Preparing => "preparing",
            SenderPhase::Blocks => "blocks",
            SenderPhase::Finishing => "finishing",
            SenderPhase::Done => "done",
        }
    }
}

/// Counts of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderProgress {
    /// The sum of all sizes.
    pub total_bytes: u64,
    /// Bytes of staged blocks that were found equal.
    pub held_bytes: u64,
    /// Bytes of blocks told by SAME and acknowledged.
    pub same_bytes: u64,
    /// Bytes of blocks sent by BLOCK and acknowledged.
    pub sent_raw_bytes: u64,
    /// Bytes of all BLOCK bodies handed out, those sent again included.
    pub sent_wire_bytes: u64,
    /// Blocks that have to be sent again, for a NACK or a lost lane.
    pub resent_blocks: u64,
    /// Blocks sent a second time, on a faster lane.
    pub helped_blocks: u64,
    /// Blocks sent by BLOCK and acknowledged.
    pub blocks_sent: u64,
    /// Blocks told by SAME and acknowledged.
    pub blocks_same: u64,
    /// Staged blocks that were found equal.
    pub blocks_held: u64,
    /// NACK frames.
    pub nacks: u64,
    /// How far the transfer is.
    pub phase: SenderPhase,
}

impl SenderProgress {
    pub(super) fn new(manifest: &Manifest) -> SenderProgress {
        SenderProgress {
            total_bytes: manifest.total_bytes(),
            held_bytes: 0,
            same_bytes: 0,
            sent_raw_bytes: 0,
            sent_wire_bytes: 0,
            resent_blocks: 0,
            helped_blocks: 0,
            blocks_sent: 0,
            blocks_same: 0,
            blocks_held: 0,
            nacks: 0,
            phase: SenderPhase::Offering,
        }
    }

    /// Whether the receiver is known to have every block.
    pub(super) fn is_all_there(&self) -> bool {
        self.held_bytes + self.same_bytes + self.sent_raw_bytes == self.total_bytes
    }
}
