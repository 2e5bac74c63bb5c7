//! What a lane of a receiver has brought and is not done with.

use std::collections::VecDeque;

use dwcp_codec::Digest;

use crate::blocks::BlockIndex;

/// A BLOCK or SAME frame that is not done with.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) first: BlockIndex,
    pub(super) count: u32,
    pub(super) left: u32,
    pub(super) is_copy: bool,
    /// The digest of a BLOCK; those of a SAME are not kept.
    pub(super) digest: Option<Digest>,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) outstanding: VecDeque<Outstanding>,
    /// BLOCK and SAME frames done with, and how many of them the sender was told.
    pub(super) finished: u32,
    pub(super) told: u32,
    /// Tree digests told on this lane.
    pub(super) trees: u32,
    /// What is left to be read of it until its next OFFER is ignored: the sender has offered the transfer again on another,
    /// or is gone, or the transfer that it offers here is in place.
    pub(super) overtaken: bool,
}

impl Lane {
    /// Counts the frames at the front that are done with.
    pub(super) fn advance(&mut self) {
        while self.outstanding.front().is_some_and(|frame| frame.left == 0) {
            self.outstanding.pop_front();
            self.finished += 1;
        }
    }
}
