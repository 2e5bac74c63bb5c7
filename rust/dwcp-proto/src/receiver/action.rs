//! What a receiver asks of its driver, and what it counts.

use std::sync::Arc;

use crate::frame::{BlockHead, Frame, Same};
use crate::manifest::Manifest;

/// What the driver has to do about a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing. If the frame was a BLOCK, it is a late copy: its body is read and dropped.
    None,
    /// Look for what is there of this transfer, and call [`ReceiverSession::prepared`](super::ReceiverSession::prepared). It may come again for the
    /// same transfer when the first lane was lost; the second preparation begins when the first has ended.
    Prepare(Arc<Manifest>, bool),
    /// Read the body, decode, check the digest and write; then [`ReceiverSession::stored`](super::ReceiverSession::stored) or
    /// [`ReceiverSession::refused`](super::ReceiverSession::refused).
    Store(BlockHead),
    /// Copy these blocks from the base and check their digests; then `stored` or `refused` for each.
    Copy(Same),
    /// All digests are equal: put everything in place, send [`ReceiverSession::committed`](super::ReceiverSession::committed). It may come again on
    /// another lane while the first commit runs; the second then waits for the first.
    Commit,
    /// These entries have another tree digest than the sender's: throw their staging away, send ERROR 3.
    Mismatch {
        /// The entries.
        entries: Vec<u32>,
    },
    /// FINISH came again after the commit, or the offer of a state that had come with it: send this frame.
    Recommitted(Frame),
    /// Send this frame.
    Answer(Frame),
    /// The sender ends this lane in peace.
    Closed,
}

/// How far a receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverPhase {
    /// No transfer yet.
    Idle,
    /// The manifest comes in.
    Manifest,
    /// The driver looks for what is there.
    Preparing,
    /// Blocks come in.
    Blocks,
    /// The driver puts everything in place.
    Committing,
    /// Committed; another transfer may follow.
    Committed,
}

impl ReceiverPhase {
    pub(super) fn name(self) -> &'static str {
        match self {
            ReceiverPhase::Idle => "idle",
            ReceiverPhase::Manifest => "manifest",
            ReceiverPhase::Preparing => "preparing",
            ReceiverPhase::Blocks => "blocks",
            ReceiverPhase::Committing => "committing",
            ReceiverPhase::Committed => "committed",
        }
    }
}

/// Counts of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverProgress {
    /// The sum of all sizes; 0 before the manifest is told.
    pub total_bytes: u64,
    /// Bytes of the staged blocks that were announced.
    pub staged_bytes: u64,
    /// Bytes of stored blocks, copies that came twice included.
    pub stored_bytes: u64,
    /// Bytes of blocks copied from a base.
    pub copied_bytes: u64,
    /// Bytes of the stored BLOCK bodies of this session.
    pub body_bytes: u64,
    /// Stored blocks.
    pub blocks_stored: u64,
    /// Blocks copied from a base.
    pub blocks_copied: u64,
    /// NACK frames.
    pub nacks: u64,
    /// Blocks that are not there yet.
    pub missing_blocks: u64,
    /// How far the transfer is.
    pub phase: ReceiverPhase,
}
