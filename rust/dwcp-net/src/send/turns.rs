//! What each lane is to do next, which lanes there are to be, and how they get on.

use std::time::{Duration, Instant};

use dwcp_proto::Manifest;
use dwcp_proto::frame::ErrorFrame;
use dwcp_proto::limits::MIN_BLOCK;
use dwcp_proto::sender::{LaneId, Pace, SenderSession, Step, Way};

use super::shared::State;
use crate::lanes::Flow;
use crate::limiter::Limiter;
use crate::transport::{Closer, Waker};

/// A lane that nothing is known of.
const STILL: Pace = Pace { bytes_per_s: 0.0, waited_s: 0.0, moves: false };

/// A lane of the session.
pub(super) struct LaneHandle {
    /// The number that the side that dials gave it.
    pub(super) number: u16,
    pub(super) waker: Waker,
    pub(super) closer: Closer,
    /// Its peer has made another in its place.
    pub(super) replaced: bool,
    /// Its peer has said goodbye on it, and waits for the answer.
    leaving: bool,
    /// It is in the middle of a block.
    pub(super) writing: bool,
    beat: Beat,
}

impl LaneHandle {
    pub(super) fn new(number: u16, waker: Waker, closer: Closer) -> LaneHandle {
        let beat = Beat::new(Instant::now());
        LaneHandle { number, waker, closer, replaced: false, leaving: false, writing: false, beat }
    }
}

/// How a lane gets on, by what is acknowledged on it.
struct Beat {
    bytes_per_s: f64,
    /// The last acknowledgement, or when there was something to acknowledge again.
    since: Instant,
    /// What was acknowledged since a moment and is not in the rate.
    recent: (u64, Instant),
}

impl Beat {
    fn new(now: Instant) -> Beat {
        Beat { bytes_per_s: 0.0, since: now, recent: (0, now) }
    }

    /// Nothing was under way until now.
    fn rest(&mut self, now: Instant) {
        self.since = now;
        self.recent = (0, now);
    }

    fn acknowledged(&mut self, bytes: u64, now: Instant) {
        /// Acknowledgements come in bunches.
        const LEAST: Duration = Duration::from_millis(50);
        /// The answer to less shows how long answers take, and not how fast a lane is.
        const LEAST_BYTES: u64 = MIN_BLOCK as u64;
        const WEIGHT: f64 = 0.4;
        self.since = now;
        self.recent.0 += bytes;
        let span = now.saturating_duration_since(self.recent.1);
        if self.recent.0 < LEAST_BYTES || (span < LEAST && self.bytes_per_s > 0.0) {
            return;
        }
        let rate = self.recent.0 as f64 / span.as_secs_f64().max(1e-4);
        self.bytes_per_s += if self.bytes_per_s > 0.0 { WEIGHT * (rate - self.bytes_per_s) } else { rate };
        self.recent = (0, now);
    }

    fn pace(&self, moves: bool, now: Instant) -> Pace {
        let waited_s = now.saturating_duration_since(self.since).as_secs_f64();
        Pace { bytes_per_s: self.bytes_per_s, waited_s, moves }
    }
}

/// What a lane is to do.
pub(super) enum Turn {
    /// What the session says.
    Step(Step),
    /// Say this, or goodbye, and end: the session is over.
    Stale(Option<ErrorFrame>),
    /// Nothing but to ask again soon: lanes that are behind may need help.
    Linger,
    /// Say goodbye and end: the session goes on without this lane, which it does not know any more.
    Leave,
}

impl State {
    /// What a lane is to do, which has used `spent` of processor time since it last asked.
    pub(super) fn turn(&mut self, lane: LaneId, epoch: u64, spent: Duration, limiter: &Limiter) -> Turn {
        if let Some(job) = &mut self.job {
            job.tally.cpu += spent;
        }
        if self.epoch != epoch {
            return Turn::Stale(self.parting.clone());
        }
        if self.closing {
            return Turn::Stale(None);
        }
        if self.lanes.get(&lane).is_some_and(|handle| handle.writing) {
            self.moves(lane, false);
        }
        let busy = self.busy();
        // At a low rate only the eldest send, and the others are there for when it rises.
        let room = limiter.room(self.lanes.len());
        let waits =
            room < self.lanes.len() && self.lanes.keys().filter(|other| **other < lane).count() >= room;
        let leaving = self.lanes.get(&lane).is_some_and(|handle| handle.leaving);
        let Some(session) = self.session.as_mut().filter(|_| busy) else {
            if leaving {
                self.detach(lane, epoch);
                return Turn::Leave;
            }
            return Turn::Step(Step::Done);
        };
        if session.bytes_under_way(lane) == 0
            && let Some(handle) = self.lanes.get_mut(&lane)
        {
            handle.beat.rest(Instant::now());
        }
        let rests = leaving || self.lanes.get(&lane).is_some_and(|handle| handle.number >= self.wanted);
        session.rest(lane, rests || waits);
        let step = session.next(lane);
        if let Some(teller) = session.teller().and_then(|teller| self.lanes.get(&teller)) {
            teller.waker.wake();
        }
        match step {
            Step::Wait if rests && session.may_leave(lane) && self.lanes.len() > 1 => {
                self.detach(lane, epoch);
                Turn::Leave
            }
            Step::Wait if session.is_tail(lane) => self.help(lane, Instant::now()),
            step => Turn::Step(step),
        }
    }

    /// Whether the session of an epoch goes on, and has no blocks to give out.
    pub(super) fn holds_back(&self, epoch: u64) -> bool {
        let left = || self.session.as_ref().map_or(0, SenderSession::blocks_left);
        self.epoch == epoch && !self.closing && left() == 0
    }

    /// Has an idle lane send again what a slow one would still need long for.
    fn help(&mut self, lane: LaneId, now: Instant) -> Turn {
        /// A copy that may come after everything else costs the session, and that a few round trips.
        const TRIPS: u32 = 4;
        const LEAST_GAIN: Duration = Duration::from_millis(200);
        let gain = self.round_trip.map_or(LEAST_GAIN, |trip| LEAST_GAIN.max(trip * TRIPS));
        let (lanes, telemetry) = (&self.lanes, &self.telemetry);
        let is_short = !self.distance.is_far(!telemetry.is_short());
        let way = match telemetry.is_queued(now) {
            // A queue does not show where something near takes bytes sooner than it passes them on.
            _ if is_short => Way::Short,
            true => Way::Full,
            false => Way::Open,
        };
        let pace = |lane: LaneId| {
            lanes.get(&lane).map_or(STILL, |handle| handle.beat.pace(telemetry.moves(lane, now), now))
        };
        let Some(session) = &mut self.session else { return Turn::Linger };
        if let Some(task) = session.help(lane, pace, gain.as_secs_f64(), way) {
            return Turn::Step(Step::Block(task));
        }
        if session.tell_for(lane, pace) { Turn::Step(session.next(lane)) } else { Turn::Linger }
    }

    /// Notes that so many bytes of blocks were acknowledged on a lane.
    pub(super) fn acknowledged(&mut self, lane: LaneId, bytes: u64, now: Instant) {
        if let Some(handle) = self.lanes.get_mut(&lane) {
            handle.beat.acknowledged(bytes, now);
            if let Some(session) = &mut self.session {
                session.keep_pace(lane, handle.beat.bytes_per_s);
            }
        }
    }

    /// The peer has said goodbye on a lane. Tells whether the answer has to wait until nothing is under way on it.
    pub(super) fn part_with(&mut self, lane: LaneId, epoch: u64) -> bool {
        // Only a peer that has dialled ends lanes in peace for good; the other makes them as it needs them.
        if self.asked.is_none() || self.epoch != epoch {
            return false;
        }
        self.goodbye = true;
        if let Some(handle) = self.lanes.get_mut(&lane) {
            handle.leaving = true;
        }
        self.busy()
    }

    /// Changes how many lanes there are to be.
    pub(super) fn want(&mut self, lanes: u16) {
        self.wanted = lanes;
        self.wake_all();
    }

    /// Is told what is to be sent, before that begins.
    pub(super) fn expect(&mut self, manifest: &Manifest) {
        self.most_blocks = self.most_blocks.max(manifest.total_blocks());
    }

    /// How many of them have had a block to send, or are about to: [`State::needs_lane`] never holds for others.
    pub(super) fn useful(&self) -> u16 {
        let blocks = u16::try_from(self.most_blocks).unwrap_or(u16::MAX);
        self.wanted.min(blocks.max(1))
    }

    /// The transfer whose blocks flow, by the moment of its beginning, and the lanes; none when so few blocks are
    /// left that more lanes would not help.
    pub(super) fn flow(&self) -> Option<Flow> {
        let job = self.job.as_ref().filter(|job| job.ended.is_none())?;
        let left = self.session.as_ref().map_or(0, SenderSession::blocks_left);
        let lanes = || self.lanes.iter().map(|(id, lane)| (*id, lane.closer.clone())).collect();
        (left > 2 * u64::from(self.wanted)).then(|| (job.started, lanes()))
    }
}

#[cfg(test)]
mod tests {
    use dwcp_codec::block::BlockKind;
    use dwcp_codec::{CodecId, Digest};
    use dwcp_proto::frame::{Accept, Committed, Frame};
    use dwcp_proto::sender::Resolution;

    use super::super::shared::Shared;
    use super::super::tests::sender;
    use super::*;
    use crate::cancel::lock;
    use crate::distance::Distance;

    /// A lane on which so many bytes were acknowledged, each after so long, with nothing under way between them.
    fn answered(times: &[(u64, Duration)]) -> Beat {
        let mut now = Instant::now();
        let mut beat = Beat::new(now);
        for (bytes, after) in times {
            beat.rest(now);
            now += *after;
            beat.acknowledged(*bytes, now);
        }
        beat
    }

    /// A sender of which lane 0 has nothing left to do, and lanes 1 to 3 have five blocks each under way.
    #[cfg(target_os = "linux")]
    fn tail() -> Shared {
        let (shared, manifest) = sender();
        let mut state = lock(&shared.state);
        for lane in 0..4 {
            state.watch(lane, 0);
        }
        let turn = |state: &mut State, lane| state.turn(lane, 0, Duration::ZERO, &shared.limiter);
        while !matches!(turn(&mut state, 0), Turn::Step(Step::Wait)) {}
        let accept = Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 };
        state.receive(0, 0, Frame::Accept(accept)).unwrap();
        for block in 0..16 {
            // One block on the first lane, and five on each other.
            let lane = block % 3 + u32::from(block > 0);
            let Turn::Step(Step::Block(task)) = turn(&mut state, lane) else { panic!("block {block}") };
            let (kind, codec) = (BlockKind::Plain, CodecId::None);
            let digest = Digest::of(&block.to_le_bytes());
            let outcome =
                Resolution::Block { digest, base_digest: None, kind, codec, wire_len: task.raw_len };
            state.session.as_mut().unwrap().resolve(lane, &task, outcome).unwrap();
        }
        state.receive(0, 0, Frame::Ack(1)).unwrap();
        drop(state);
        shared
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn blocks_of_lanes_that_move_go_twice_only_over_a_long_way() {
        for (distance, is_relayed, copies) in [
            (Distance::Measured, false, false),
            (Distance::Near, true, false),
            (Distance::Far, false, true),
            // A round trip to what answers for the peer says nothing of the way.
            (Distance::Measured, true, true),
        ] {
            // Lanes as fast as the one that is idle, and much slower.
            for slowness in [1.0, 20.0] {
                let shared = tail();
                let mut state = lock(&shared.state);
                (state.distance, state.telemetry.is_relayed) = (distance, is_relayed);
                let now = Instant::now();
                for (lane, handle) in &mut state.lanes {
                    handle.beat.rest(now);
                    handle.beat.bytes_per_s = f64::from(MIN_BLOCK) / if *lane == 0 { 1.0 } else { slowness };
                }
                let help = state.help(0, now);
                let case = format!("{distance:?}, relayed: {is_relayed}, {slowness} times as slow");
                assert_eq!(matches!(help, Turn::Step(Step::Block(_))), copies, "{case}");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_next_transfer_waits_for_answers_to_copies_and_no_longer_than_it_is_let() {
        let shared = tail();
        let mut state = lock(&shared.state);
        state.distance = Distance::Far;
        let now = Instant::now();
        for (lane, handle) in &mut state.lanes {
            handle.beat.rest(now);
            handle.beat.bytes_per_s = f64::from(MIN_BLOCK) / if *lane == 0 { 1.0 } else { 20.0 };
        }
        let Turn::Step(Step::Block(task)) = state.help(0, now) else { panic!("nobody is helped") };
        let digest = Digest::of(&((task.offset / u64::from(MIN_BLOCK)) as u32).to_le_bytes());
        let (kind, codec, wire_len) = (BlockKind::Plain, CodecId::None, task.raw_len);
        let outcome = Resolution::Block { digest, base_digest: None, kind, codec, wire_len };
        state.session.as_mut().unwrap().resolve(0, &task, outcome).unwrap();
        let finish = loop {
            match state.turn(0, 0, Duration::ZERO, &shared.limiter) {
                Turn::Step(Step::Send(Frame::Finish(finish))) => break finish,
                Turn::Step(Step::Send(_)) => {}
                _ => panic!("the end is not told"),
            }
        };
        let (transfer_id, transfer_digest) = (finish.transfer_id, finish.transfer_digest);
        let committed = Committed { transfer_id, transfer_digest, body_bytes: 0 };
        state.receive(0, 0, Frame::Committed(committed)).unwrap();
        assert!(!state.is_reusable());
        drop(state);
        let waits = |limit| shared.await_copies(limit, &mut || false).unwrap();
        waits(Duration::ZERO);
        assert!(!lock(&shared.state).is_reusable());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waits(Duration::MAX));
            lock(&shared.state).receive(0, 0, Frame::Ack(2)).unwrap();
            assert!(!waiting.is_finished(), "the block may still be read where it was first");
            for lane in 1..4 {
                lock(&shared.state).receive(lane, 0, Frame::Ack(5)).unwrap();
            }
            waiting.join().unwrap();
        });
        assert!(lock(&shared.state).is_reusable());
    }

    #[test]
    fn the_answer_to_a_short_state_does_not_tell_how_fast_a_lane_is() {
        let trip = Duration::from_millis(10);
        let block = u64::from(MIN_BLOCK);
        assert_eq!(answered(&[(5, trip), (block / 2, trip)]).bytes_per_s.to_bits(), 0.0_f64.to_bits());
        let known = answered(&[(block, trip)]).bytes_per_s;
        assert!(known > 0.0);
        let later = answered(&[(block, trip), (5, trip), (7, 10 * trip)]).bytes_per_s;
        assert_eq!(later.to_bits(), known.to_bits());
    }
}
