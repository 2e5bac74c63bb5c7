//! How a transfer begins: its offer, which may be repeated on another lane, and its manifest.

use std::sync::Arc;

use super::{Action, LaneId, Phase, ReceiverProgress, ReceiverSession, Transfer};
use crate::blocks::{Announced, BlockTable};
use crate::error::SessionError;
use crate::frame::{Frame, Offer};
use crate::manifest::{Manifest, ManifestAssembly, ManifestPart};

impl ReceiverSession {
    pub(super) fn offered(&mut self, lane: LaneId, offer: Offer) -> Result<Action, SessionError> {
        let number = u64::from(offer.number);
        if number < self.next_offer {
            // It was under way on a lane that the sender gave up.
            self.overtake(lane);
            return Ok(Action::None);
        }
        if self.is_taken(&offer) {
            self.next_offer = number + 1;
            self.overtake(lane);
            return Ok(match &self.phase {
                Phase::Committed(committed) => Action::Recommitted(Frame::Committed(committed.clone())),
                _ => Action::Commit,
            });
        }
        let repeated = match &self.phase {
            Phase::Idle | Phase::Committed(_) => None,
            Phase::Manifest { assembly, .. } => Some(assembly.offer().transfer_id),
            Phase::Preparing { .. } | Phase::Blocks => self.manifest().map(|manifest| manifest.transfer_id()),
            Phase::Committing => return Err(self.unexpected("OFFER")),
        };
        // The sender repeats its offer when the lane was lost before it saw ACCEPT, but never changes it.
        if let Some(expected) = repeated.filter(|expected| *expected != offer.transfer_id) {
            return Err(SessionError::TransferMismatch { expected, actual: offer.transfer_id });
        }
        let assembly = Box::new(ManifestAssembly::new(offer, &self.limits)?);
        if let Some(used) = self.offered_on.replace(lane).filter(|_| repeated.is_some()) {
            self.overtake(used);
        }
        for (used, state) in &mut self.lanes {
            state.finished += state.outstanding.len() as u32;
            state.outstanding.clear();
            state.trees = 0;
            state.overtaken &= *used != lane;
        }
        self.next_offer = number + 1;
        self.transfer = None;
        self.dictionary.begin();
        self.phase = Phase::Manifest { lane, assembly };
        Ok(Action::None)
    }

    /// Whether the transfer that is put in place, or is there, is the one that the sender offers again: its state came
    /// right behind an offer before, and the answer did not get through.
    fn is_taken(&self, offer: &Offer) -> bool {
        let taken = self.next_offer + u64::from(offer.repeats) > u64::from(offer.number);
        let is_same = |manifest: Arc<Manifest>| manifest.transfer_id() == offer.transfer_id;
        matches!(self.phase, Phase::Committing | Phase::Committed(_))
            && taken
            && self.manifest().is_some_and(is_same)
    }

    /// Whether nothing is taken of what is left to be read of a lane, see [`Lane`](super::Lane).
    pub(super) fn is_overtaken(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|state| state.overtaken)
    }

    /// Whether what is there of the transfer is to be looked for on behalf of `lane`: its offer may have come again on
    /// another since.
    #[must_use]
    pub fn is_preparing(&self, lane: LaneId) -> bool {
        matches!(self.phase, Phase::Preparing { lane: used } if used == lane)
    }

    /// The sender is gone from the lane of its offer, which it had not waited to be accepted: nothing that it may have sent
    /// behind that is taken any more, but for the reason.
    pub fn give_up(&mut self, lane: LaneId) {
        self.overtake(lane);
    }

    fn overtake(&mut self, lane: LaneId) {
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.overtaken = true;
        }
    }

    pub(super) fn told_entries(&mut self, lane: LaneId, part: ManifestPart) -> Result<Action, SessionError> {
        if self.is_overtaken(lane) {
            return Ok(Action::None);
        }
        let Phase::Manifest { lane: used, assembly } = &mut self.phase else {
            return Err(self.unexpected("MANIFEST"));
        };
        if *used != lane {
            return Err(SessionError::WrongLane { frame: "MANIFEST", lane });
        }
        if !assembly.push(part)? {
            return Ok(Action::None);
        }
        let base_allowed = assembly.offer().base_allowed;
        let Phase::Manifest { assembly, .. } = std::mem::replace(&mut self.phase, Phase::Preparing { lane })
        else {
            return Ok(Action::None);
        };
        let manifest = Arc::new(assembly.finish()?);
        self.progress = ReceiverProgress {
            total_bytes: manifest.total_bytes(),
            body_bytes: self.progress.body_bytes,
            ..ReceiverSession::new(self.limits).progress
        };
        self.transfer = Some(Transfer {
            announced: Announced::new(&manifest, base_allowed),
            base_allowed,
            missing: manifest.total_blocks(),
            table: BlockTable::new(Arc::clone(&manifest)),
            told: Vec::new(),
            transfer_digest: None,
            due: None,
        });
        Ok(Action::Prepare(manifest, base_allowed))
    }
}
