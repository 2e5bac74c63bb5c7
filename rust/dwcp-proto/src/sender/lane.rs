//! What is under way on a lane of a sender.

use std::collections::VecDeque;

use super::SenderProgress;
use crate::blocks::BlockIndex;

/// What a frame under way carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Same,
    Full,
    Difference,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) block: BlockIndex,
    pub(super) raw_len: u32,
    pub(super) carried: Carried,
    /// It was refused, or the transfer was committed: what is left is to hear of it once more.
    pub(super) settled: bool,
    /// The block was under way before, so that the receiver may commit without having read this frame.
    pub(super) repeated: bool,
}

impl InFlight {
    /// Could the receiver still read it, after everything else of its transfer?
    pub(super) fn may_come_late(&self) -> bool {
        !self.settled || self.repeated
    }
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Blocks that the driver works on.
    pub(super) tasks: Vec<BlockIndex>,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Bytes of the blocks of both.
    pub(super) raw_bytes: u64,
    /// BLOCK and SAME frames, since the lane was attached.
    pub(super) sent: u32,
    pub(super) acked: u32,
    /// It is given no more blocks, while others are.
    pub(super) rests: bool,
    /// Bytes of blocks that are acknowledged on it in a second, as the driver has measured.
    pub(super) bytes_per_s: f64,
}

/// Counts what the receiver has taken.
pub(super) fn count_done(progress: &mut SenderProgress, frame: &InFlight) {
    let raw = u64::from(frame.raw_len);
    if frame.carried == Carried::Same {
        progress.same_bytes += raw;
        progress.blocks_same += 1;
    } else {
        progress.sent_raw_bytes += raw;
        progress.blocks_sent += 1;
    }
}
