//! Which block goes on which lane.

use super::lane::InFlight;
use super::{BlockTask, LaneId, Phase, SenderSession, Step};
use crate::blocks::{Base, DONE, HELD, PLAIN, REPLACES, STAGED};

impl SenderSession {
    /// Whether `lane` is given no more blocks, for as long as there is another that is. It goes on to be told of what
    /// it has under way.
    pub fn rest(&mut self, lane: LaneId, rests: bool) {
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.rests = rests;
        }
    }

    /// Whether a lane can be taken away at no cost: blocks flow, and it has none under way.
    #[must_use]
    pub fn may_leave(&self, lane: LaneId) -> bool {
        let idle = |state: &super::Lane| state.tasks.is_empty() && state.in_flight.is_empty();
        self.phase == Phase::Blocks && self.lanes.get(&lane).is_none_or(idle)
    }

    /// How many blocks no lane was given yet; 0 before blocks flow, and after.
    #[must_use]
    pub fn blocks_left(&self) -> u64 {
        match self.phase {
            Phase::Blocks => self.table.manifest().total_blocks() - self.cursor + self.again.len() as u64,
            _ => 0,
        }
    }

    fn is_at_rest(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|state| state.rests)
            && self.lanes.values().any(|state| !state.rests)
    }

    /// Every block was given out and looked at, so that all digests are known; some may still be under way, but none
    /// that replaces a staged one, since the receiver would not wait for that.
    pub(super) fn all_resolved(&mut self) -> bool {
        self.drop_done();
        // A settled frame may be one of the last transfer.
        let replaces = |frame: &InFlight| {
            !frame.settled && self.table.has(frame.block, REPLACES) && !self.table.has(frame.block, DONE)
        };
        self.cursor >= self.table.manifest().total_blocks()
            && self.again.is_empty()
            && self.lanes.values().all(|state| state.tasks.is_empty())
            && !self.lanes.values().any(|state| state.in_flight.iter().any(replaces))
    }

    pub(super) fn drop_done(&mut self) {
        while self.again.front().is_some_and(|block| self.table.has(*block, DONE)) {
            self.again.pop_front();
        }
    }

    /// The next block for a lane, if there is one and the lane has room.
    pub(super) fn next_block(&mut self, lane: LaneId) -> Option<Step> {
        self.drop_done();
        if self.is_at_rest(lane) {
            return None;
        }
        let state = self.lanes.get_mut(&lane)?;
        let under_way = state.tasks.len() + state.in_flight.len();
        if under_way >= self.options.max_unacked_frames as usize {
            return None;
        }
        let queued = self.again.front().copied();
        let block = queued.unwrap_or(self.cursor);
        if block >= self.table.manifest().total_blocks() {
            return None;
        }
        let (entry, offset, raw_len) = self.table.place(block);
        if under_way > 0 && state.raw_bytes + u64::from(raw_len) > self.options.max_unacked_bytes {
            return None;
        }
        match queued {
            Some(_) => drop(self.again.pop_front()),
            None => self.cursor += 1,
        }
        state.tasks.push(block);
        state.raw_bytes += u64::from(raw_len);
        let plain = self.table.has(block, PLAIN);
        let candidate = match self.announced.bases[entry as usize] {
            Base::Candidate(number) if !plain => Some(number),
            _ => None,
        };
        Some(Step::Block(BlockTask {
            entry,
            offset,
            raw_len,
            held: self.table.has(block, HELD).then(|| self.table.digest(block)),
            held_is_staged: self.table.has(block, STAGED),
            candidate,
            plain,
            dictionary: self.dictionary.is_agreed(),
        }))
    }
}
