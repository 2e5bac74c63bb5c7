//! Which block goes on which lane.

use super::lane::{Carried, InFlight};
use super::{BlockTask, LaneId, Pace, Phase, SenderSession, Step, Way};
use crate::blocks::{Base, BlockIndex, DONE, HELD, HELPED, PLAIN, REPLACES, STAGED};

/// A lane without an acknowledgement for so long stands still, if it should have had one by its rate.
const STILL_S: f64 = 1.0;

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

    /// Whether a block is to be sent again on `lane`, since nothing else is to do and the lane that it is under way on
    /// would take much longer: then it gives the task. Of such blocks it is the one that would be there last; each is
    /// sent again at most once. `pace` tells how lanes get on, `least_gain_s` what is to be gained at least, and `way` what
    /// is known of the way that lanes share.
    ///
    /// To be asked after [`Step::Wait`], and again after a while, since lanes may come to a standstill.
    pub fn help(
        &mut self,
        lane: LaneId,
        pace: impl Fn(LaneId) -> Pace,
        least_gain_s: f64,
        way: Way,
    ) -> Option<BlockTask> {
        /// A lane is so many times as slow, or it is let alone.
        const SLOWER: f64 = 1.5;
        /// What keeps shorter blocks is not the way.
        const LEAST_BYTES: u32 = 16_384;
        /// Lanes that share a way are as fast as each other within this. On it a copy takes the place of what brings more.
        const ALIKE: f64 = 4.0;
        /// One block in so many may be sent again of those under way on lanes that are alike, and of others, and a few in any
        /// case, but of lanes that are alike only while the link has room: a full one may be shared by hundreds of sessions of
        /// a few blocks. Where many share a way that is full, lanes stand still for a second, too; those that do for longer may
        /// never move again, and all that is under way on them goes over others.
        const COPIES: [u64; 2] = [32, 16];
        const LEAST_COPIES: u64 = 2;
        let (own, before) = (pace(lane).bytes_per_s, self.bytes_under_way(lane) as f64);
        if !self.is_tail(lane) || own <= 0.0 {
            return None;
        }
        let blocks = self.table.manifest().total_blocks();
        let least = [if way == Way::Open { LEAST_COPIES } else { 0 }, LEAST_COPIES];
        let may_copy =
            [0, 1].map(|kind| self.progress.helped_blocks < (blocks / COPIES[kind]).max(least[kind]));
        let mut last: Option<(f64, LaneId, usize)> = None;
        for (other, state) in &self.lanes {
            let mut ahead = 0.0;
            let Pace { bytes_per_s, waited_s, moves } = pace(*other);
            let is_alike = own <= ALIKE * bytes_per_s || (bytes_per_s == 0.0 && moves);
            for (place, frame) in state.in_flight.iter().enumerate() {
                ahead += f64::from(frame.raw_len);
                let open = !frame.settled
                    && frame.carried != Carried::Same
                    && frame.raw_len >= LEAST_BYTES
                    && !self.table.has(frame.block, DONE | HELPED);
                if *other == lane || !open {
                    continue;
                }
                let front = state.in_flight.front().map_or(0.0, |frame| f64::from(frame.raw_len));
                let left_s = if waited_s >= STILL_S && bytes_per_s * waited_s >= SLOWER * front {
                    ahead / front.max(1.0) * waited_s
                } else if bytes_per_s > 0.0 {
                    ahead / bytes_per_s - waited_s
                } else if waited_s >= STILL_S {
                    waited_s
                } else {
                    continue;
                };
                let here_s = (before + f64::from(frame.raw_len)) / own;
                let stands_s = if moves { 0.0 } else { waited_s };
                let is_other = stands_s >= STILL_S || !is_alike;
                let may_gain = way != Way::Short || stands_s >= STILL_S;
                if may_gain
                    && (may_copy[usize::from(is_other)] || stands_s >= 2.0 * STILL_S)
                    && left_s > SLOWER * here_s
                    && left_s - here_s > least_gain_s
                    && last.is_none_or(|(most_s, ..)| left_s > most_s)
                {
                    last = Some((left_s, *other, place));
                }
            }
        }
        let (_, other, place) = last?;
        let frame = self.lanes.get_mut(&other)?.in_flight.get_mut(place)?;
        // Whichever copy comes first, the other may come after everything else.
        frame.repeated = true;
        let block = frame.block;
        self.table.set(block, HELPED);
        self.progress.helped_blocks += 1;
        self.task(lane, block)
    }

    /// Has `lane` tell the end again if everything is there, but what told it stands still. To be asked when
    /// [`help`](SenderSession::help) has nothing.
    pub fn tell_for(&mut self, lane: LaneId, pace: impl Fn(LaneId) -> Pace) -> bool {
        let Phase::Committing { lane: told } = self.phase else { return false };
        let stands_still = self.bytes_under_way(told) > 0 && pace(told).waited_s >= STILL_S;
        if told == lane || !stands_still || !self.progress.is_all_there() {
            return false;
        }
        self.tell_again();
        self.phase = Phase::Telling { lane: Some(lane), next_entry: 0 };
        true
    }

    /// Whether `lane` is given nothing to do, since no block is left, while others have blocks under way.
    #[must_use]
    pub fn is_tail(&self, lane: LaneId) -> bool {
        let waits = |(other, state): (&LaneId, &super::Lane)| {
            *other != lane && state.in_flight.iter().any(|frame| !frame.settled)
        };
        matches!(self.phase, Phase::Blocks | Phase::Telling { .. } | Phase::Committing { .. })
            && self.early.is_none()
            && self.cursor >= self.table.manifest().total_blocks()
            && self.again.is_empty()
            && !self.is_at_rest(lane)
            && self.lanes.iter().any(waits)
    }

    /// The lane that is to tell the end of the transfer: the one that is soonest done with what it has under way,
    /// which that comes behind. None while there is nothing to tell, or some lane tells it.
    #[must_use]
    pub fn teller(&self) -> Option<LaneId> {
        match self.phase {
            Phase::Telling { lane: None, .. } if self.early.is_some() => self.awaits_accept_on(),
            Phase::Telling { lane: None, .. } => {
                let awake = self.lanes.keys().filter(|lane| !self.is_at_rest(**lane));
                awake.copied().min_by(|one, other| self.behind(*one).total_cmp(&self.behind(*other)))
            }
            _ => None,
        }
    }

    /// Whether no other lane is better for telling the end.
    pub(super) fn may_tell(&self, lane: LaneId) -> bool {
        self.teller().is_none_or(|best| best == lane || self.behind(lane) <= self.behind(best))
    }

    /// Notes how many bytes of blocks are acknowledged on a lane in a second.
    pub fn keep_pace(&mut self, lane: LaneId, bytes_per_s: f64) {
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.bytes_per_s = bytes_per_s;
        }
    }

    /// About how long what is sent on a lane now comes behind what is under way there.
    fn behind(&self, lane: LaneId) -> f64 {
        /// A lane of which nothing is known.
        const UNKNOWN: f64 = 1e6;
        let rate = self.lanes.get(&lane).map_or(0.0, |state| state.bytes_per_s);
        self.bytes_under_way(lane) as f64 / if rate > 0.0 { rate } else { UNKNOWN }
    }

    /// Bytes of the blocks that are under way on a lane.
    #[must_use]
    pub fn bytes_under_way(&self, lane: LaneId) -> u64 {
        let bytes = |state: &super::Lane| state.in_flight.iter().map(|frame| u64::from(frame.raw_len)).sum();
        self.lanes.get(&lane).map_or(0, bytes)
    }

    /// Whether a block that was sent a second time is still under way, or about to be.
    pub(super) fn is_under_way(&self, block: BlockIndex) -> bool {
        let carries = |state: &super::Lane| {
            let flies = |frame: &InFlight| frame.block == block && !frame.settled;
            state.tasks.contains(&block) || state.in_flight.iter().any(flies)
        };
        self.table.has(block, HELPED) && self.lanes.values().any(carries)
    }

    fn is_at_rest(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|state| state.rests)
            && self.early.is_none()
            && self.lanes.values().any(|state| !state.rests)
    }

    /// Every block was given out and looked at, so that all digests are known; some may still be under way, but none
    /// that replaces a staged one, since the receiver would not wait for that.
    pub(super) fn all_resolved(&mut self) -> bool {
        self.drop_done();
        self.cursor >= self.table.manifest().total_blocks()
            && self.again.is_empty()
            && self.lanes.values().all(|state| state.tasks.is_empty())
            && !self.is_replacing()
    }

    /// Whether a block that replaces a staged one is under way, or has to be sent again.
    pub(super) fn is_replacing(&self) -> bool {
        // A settled frame may be one of the last transfer.
        let under_way = self.lanes.values().flat_map(|state| &state.in_flight).filter(|frame| !frame.settled);
        let mut blocks = under_way.map(|frame| frame.block).chain(self.again.iter().copied());
        blocks.any(|block| self.table.has(block, REPLACES) && !self.table.has(block, DONE))
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
        let raw_len = self.table.place(block).2;
        if under_way > 0 && state.raw_bytes + u64::from(raw_len) > self.options.max_unacked_bytes {
            return None;
        }
        match queued {
            Some(_) => drop(self.again.pop_front()),
            None => self.cursor += 1,
        }
        self.task(lane, block).map(Step::Block)
    }

    /// Gives a block to a lane.
    fn task(&mut self, lane: LaneId, block: BlockIndex) -> Option<BlockTask> {
        let (entry, offset, raw_len) = self.table.place(block);
        let state = self.lanes.get_mut(&lane)?;
        state.tasks.push(block);
        state.raw_bytes += u64::from(raw_len);
        let plain = self.table.has(block, PLAIN);
        let candidate = match self.announced.bases[entry as usize] {
            Base::Candidate(number) if !plain && self.early.is_none() => Some(number),
            _ => None,
        };
        Some(BlockTask {
            entry,
            offset,
            raw_len,
            held: self.table.has(block, HELD).then(|| self.table.digest(block)),
            held_is_staged: self.table.has(block, STAGED),
            candidate,
            plain,
            dictionary: self.dictionary.is_agreed(),
        })
    }
}
