//! A state so small that it goes right behind its OFFER: to ask first what the receiver holds of it would take a round
//! trip, and save less than one.
//!
//! Blocks, digests and FINISH follow the manifest on the lane of the offer, so that the receiver reads them when it has
//! accepted; what it announces comes when everything is under way, and only matters if that lane is lost.

use super::{LaneId, Phase, SenderSession};
use crate::blocks::{Announced, BlockTable, HELD, KNOWN, REPLACES, STAGED};
use crate::error::SessionError;
use crate::frame::Have;
use crate::limits::{MAX_EARLY_BYTES, MAX_EARLY_ENTRIES};
use crate::manifest::Entry;

/// A transfer of which the blocks go before it is accepted.
#[derive(Debug)]
pub(super) struct Early {
    /// The lane of its offer, which all of it goes on until then.
    pub(super) lane: LaneId,
    /// What the receiver has announced: the digests of the transfer's own table are those of blocks under way.
    held: BlockTable,
}

impl SenderSession {
    /// What follows once `lane` has told the manifest.
    pub(super) fn told(&mut self, lane: LaneId) -> Phase {
        let manifest = self.table.manifest();
        let entries = manifest.entries();
        // Of as many as there may be the lengths are not even added up.
        let told = || entries.iter().map(Entry::wire_bytes).sum::<usize>() as u64;
        let is_small = entries.len() <= MAX_EARLY_ENTRIES
            && manifest.total_bytes().saturating_add(told()) <= MAX_EARLY_BYTES;
        // A lane that was lost once may be again.
        if !is_small || self.offered > 1 || !self.dictionary.is_none() {
            return Phase::Preparing { lane };
        }
        self.early = Some(Early { lane, held: BlockTable::new(manifest.clone()) });
        Phase::Blocks
    }

    /// The lane that ACCEPT is to come on, where it is due.
    pub(super) fn awaits_accept_on(&self) -> Option<LaneId> {
        match (&self.early, self.phase) {
            (Some(early), _) => Some(early.lane),
            (None, Phase::Preparing { lane }) => Some(lane),
            _ => None,
        }
    }

    /// Whether everything has to go on another lane than this, as it is not accepted yet.
    pub(super) fn goes_elsewhere(&self, lane: LaneId) -> bool {
        self.early.as_ref().is_some_and(|early| early.lane != lane)
    }

    pub(super) fn take_have(&mut self, have: &Have) -> Result<(), SessionError> {
        let table = self.early.as_mut().map_or(&mut self.table, |early| &mut early.held);
        self.announced.take(table, have)
    }

    /// The receiver has accepted the transfer.
    pub(super) fn accepted(&mut self) {
        let Some(Early { held, .. }) = self.early.take() else {
            self.phase = Phase::Blocks;
            return;
        };
        for block in 0..self.table.manifest().total_blocks() {
            let (is_held, is_staged) = (held.has(block, HELD), held.has(block, STAGED));
            if !self.table.has(block, KNOWN) && is_held {
                self.table.set(block, if is_staged { HELD | STAGED } else { HELD });
                self.table.set_digest(block, held.digest(block));
            } else if is_staged && held.digest(block) != self.table.digest(block) {
                self.table.set(block, REPLACES);
            }
        }
    }

    /// Has the transfer offered anew, since the lane of its offer was lost before ACCEPT.
    pub(super) fn offer_again(&mut self) {
        self.lost_frames = true;
        self.phase = Phase::Offering { lane: None, next_entry: None };
        self.early = None;
        self.cursor = 0;
        self.again.clear();
        self.table.clear_all();
        self.dictionary = self.dictionary.again();
        self.announced = Announced::new(self.table.manifest(), self.base_allowed);
    }

    /// Has the end told anew. What replaces a staged block goes before that, which it did on the lane that was lost.
    pub(super) fn tell_again(&mut self) {
        self.lost_frames = true;
        self.phase =
            if self.is_replacing() { Phase::Blocks } else { Phase::Telling { lane: None, next_entry: 0 } };
    }
}
