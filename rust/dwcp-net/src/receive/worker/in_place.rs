//! Blocks that a lane receives right into their places.

use std::sync::{Arc, Weak};
use std::time::Instant;

use dwcp_codec::digest::BlockHasher;
use dwcp_proto::frame::BlockHead;
use dwcp_store::{Claim, Proof, Sink};

use super::{Worker, another_digest, take_body};
use crate::cancel::lock;
use crate::error::NetError;
use crate::lane::Lane;

/// Shorter blocks are received with what comes behind them, and copied.
const IN_PLACE_BYTES: u32 = 64 << 10;

impl Worker<'_> {
    /// The place of a block that comes as it is, if it can be received into there. Whoever receives it does not keep the
    /// sink: the memory is the caller's again when the transfer is in place, though a copy may still be under way.
    pub(super) fn claim(&self, head: &BlockHead) -> Option<(Weak<dyn Sink>, Claim)> {
        let sink = self.sink().filter(|_| head.raw_len >= IN_PLACE_BYTES)?;
        let _share = self.share();
        let claim = sink.claim(head.entry, head.offset, head.raw_len)?;
        Some((Arc::downgrade(&sink), claim))
    }

    /// Takes the body of a block into its place, and proves it there.
    pub(super) fn store_in_place(
        &mut self,
        lane: &mut Lane,
        head: &BlockHead,
        sink: &Weak<dyn Sink>,
        claim: Claim,
    ) -> Result<(), NetError> {
        let length = head.raw_len as usize;
        let (mut done, mut lent) = (0, true);
        let mut hasher = BlockHasher::new();
        while done < length && lent {
            // Nothing is waited for with a place in hand.
            lane.await_some()?;
            let _share = self.share();
            let mut taken = Ok(0);
            let mut fill = |place: &mut [u8]| taken = lane.take_some(place, &mut hasher);
            lent = sink.upgrade().is_some_and(|sink| sink.fill(&claim, done, &mut fill));
            done += taken?;
            lock(&self.session.state).heard = Instant::now();
        }
        // Another lane has brought it meanwhile.
        self.wire.resize(length - done, 0);
        take_body(self.session, lane, &mut self.wire)?;
        self.unacknowledged += 1;
        self.unacknowledged_bytes += u64::from(head.raw_len);
        if lock(&self.session.state).session.came_before(self.id, head) {
            return Ok(());
        }
        let proof = {
            let _share = self.share();
            sink.upgrade().map_or(Proof::Lost, |sink| sink.prove(claim, hasher.digest(), head.digest))
        };
        match proof {
            Proof::Stored => {
                self.note_stored(head, head.raw_len);
                Ok(())
            }
            Proof::Lost => {
                let mut state = lock(&self.session.state);
                // Another lane may have brought it, and put the transfer in place, since this one last asked.
                let came = state.session.came_before(self.id, head);
                let is_open = state.sink.as_ref().is_some_and(|now| Weak::ptr_eq(&Arc::downgrade(now), sink));
                if came || !is_open { Ok(()) } else { Err(another_digest(head)) }
            }
            Proof::Differs => Err(another_digest(head)),
        }
    }
}
