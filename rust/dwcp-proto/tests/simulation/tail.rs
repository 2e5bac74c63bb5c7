//! The end of a transfer over lanes of unequal rate, in virtual time.

use std::collections::VecDeque;
use std::sync::Arc;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::frame::{BlockHead, Frame};
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, EntryKind, Manifest};
use dwcp_proto::receiver::{Action, ReceiverSession};
use dwcp_proto::sender::{BlockTask, Pace, Resolution, SenderOptions, SenderSession, Step, Way};

const BLOCK: u32 = 1 << 20;
const BLOCKS: u32 = 128;
/// What a lane takes before it makes its sender wait: what the system holds of a connection.
const BUFFER: f64 = 6e6;
const TRIP_S: f64 = 0.05;
const STEP_S: f64 = 0.001;

/// A frame, and how many bytes of it are still to go; frames without a body are small.
struct Flying {
    frame: Frame,
    left: f64,
}

struct Lane {
    bytes_per_s: f64,
    dies_s: f64,
    forth: VecDeque<Flying>,
    /// Answers, and when they arrive.
    back: VecDeque<(f64, Frame)>,
    /// When something was acknowledged last.
    since_s: f64,
}

struct Link {
    sender: SenderSession,
    receiver: ReceiverSession,
    lanes: Vec<Lane>,
    helps: bool,
    now_s: f64,
    arrived: Vec<u32>,
}

fn digest(offset: u64) -> Digest {
    Digest::of(&offset.to_le_bytes())
}

impl Link {
    fn new(megabits: &[f64], dies_s: f64, helps: bool) -> Link {
        let entry = Entry {
            kind: EntryKind::Buffer,
            path: b"a".to_vec(),
            mode: 0,
            mtime_ns: 0,
            size: u64::from(BLOCKS) * u64::from(BLOCK),
            target: vec![],
            candidates: vec![],
        };
        let manifest = Arc::new(Manifest::new(BLOCK, vec![entry], &Limits::default()).unwrap());
        let mut sender = SenderSession::new(manifest, false, SenderOptions::default());
        let mut receiver = ReceiverSession::new(Limits::default());
        let lane = |(number, megabits): (usize, &f64)| {
            sender.attach(number as u32);
            receiver.attach(number as u32);
            Lane {
                bytes_per_s: megabits * 1e6 / 8.0,
                dies_s: if number == 0 { f64::INFINITY } else { dies_s },
                forth: VecDeque::new(),
                back: VecDeque::new(),
                since_s: 0.0,
            }
        };
        let lanes = megabits.iter().enumerate().map(lane).collect();
        Link { sender, receiver, lanes, helps, now_s: 0.0, arrived: vec![0; BLOCKS as usize] }
    }

    /// Gives the seconds until the sender knows of the commit.
    fn run(mut self) -> (f64, u64) {
        while self.sender.outcome().is_none() {
            self.now_s += STEP_S;
            assert!(self.now_s < 600.0, "no end in sight: {:?}", self.sender.progress());
            for number in 0..self.lanes.len() {
                if self.lanes[number].dies_s <= self.now_s {
                    if self.lanes[number].dies_s > 0.0 {
                        self.sender.detach(number as u32);
                        self.receiver.detach(number as u32);
                        self.lanes[number].dies_s = 0.0;
                    }
                    continue;
                }
                self.send(number);
                self.carry(number);
                self.hear(number);
            }
        }
        let progress = self.sender.progress();
        assert_eq!(progress.sent_raw_bytes, progress.total_bytes);
        assert!(self.arrived.iter().all(|count| *count == 1), "every block is written once");
        (self.now_s, progress.helped_blocks)
    }

    fn send(&mut self, number: usize) {
        let waiting = |lane: &Lane| lane.forth.iter().map(|flying| flying.left).sum::<f64>();
        while waiting(&self.lanes[number]) < BUFFER {
            let id = number as u32;
            if self.sender.bytes_under_way(id) == 0 {
                self.lanes[number].since_s = self.now_s;
            }
            match self.sender.next(id) {
                Step::Send(frame) => self.lanes[number].forth.push_back(Flying { frame, left: 100.0 }),
                Step::Block(task) => self.send_block(number, &task),
                Step::Wait if self.helps => {
                    let (lanes, now_s) = (&self.lanes, self.now_s);
                    let pace = |lane: u32| {
                        let lane = &lanes[lane as usize];
                        Pace { bytes_per_s: lane.bytes_per_s, waited_s: now_s - lane.since_s, moves: true }
                    };
                    let Some(task) = self.sender.help(id, pace, TRIP_S, Way::Open) else { return };
                    self.send_block(number, &task);
                }
                _ => return,
            }
        }
    }

    fn send_block(&mut self, number: usize, task: &BlockTask) {
        let (kind, codec) = (BlockKind::Plain, CodecId::None);
        let digest = digest(task.offset);
        let outcome = Resolution::Block { digest, base_digest: None, kind, codec, wire_len: task.raw_len };
        if let Some(frame) = self.sender.resolve(number as u32, task, outcome).unwrap() {
            self.lanes[number].forth.push_back(Flying { frame, left: f64::from(task.raw_len) });
        }
    }

    fn carry(&mut self, number: usize) {
        let mut room = self.lanes[number].bytes_per_s * STEP_S;
        while let Some(flying) = self.lanes[number].forth.front_mut().filter(|_| room > 0.0) {
            let taken = room.min(flying.left);
            flying.left -= taken;
            room -= taken;
            if flying.left <= 0.0 {
                let frame = self.lanes[number].forth.pop_front().unwrap().frame;
                self.arrive(number, frame);
            }
        }
    }

    fn arrive(&mut self, number: usize, frame: Frame) {
        let id = number as u32;
        match self.receiver.receive(id, frame).unwrap() {
            Action::None => {}
            Action::Prepare(..) => {
                let frames = self.receiver.prepared(id, vec![], 0).unwrap();
                frames.into_iter().for_each(|frame| self.answer(number, frame));
            }
            Action::Store(BlockHead { entry, offset, digest, raw_len, .. }) => {
                self.arrived[(offset / u64::from(BLOCK)) as usize] += 1;
                self.receiver.stored(id, entry, offset, digest, raw_len);
                if self.receiver.settle() == Action::Commit {
                    self.commit(number);
                }
            }
            Action::Commit => self.commit(number),
            Action::Recommitted(frame) => self.answer(number, frame),
            other => panic!("{other:?}"),
        }
        if let Some(frame) = self.receiver.acknowledge(id) {
            self.answer(number, frame);
        }
    }

    fn commit(&mut self, number: usize) {
        let frame = self.receiver.committed().unwrap();
        self.answer(number, frame);
    }

    fn answer(&mut self, number: usize, frame: Frame) {
        self.lanes[number].back.push_back((self.now_s + TRIP_S, frame));
    }

    fn hear(&mut self, number: usize) {
        while self.lanes[number].back.front().is_some_and(|(at_s, _)| *at_s <= self.now_s) {
            let Some((_, frame)) = self.lanes[number].back.pop_front() else { return };
            self.sender.keep_pace(number as u32, self.lanes[number].bytes_per_s);
            let before = self.sender.bytes_under_way(number as u32);
            self.sender.receive(number as u32, frame).unwrap();
            if self.sender.bytes_under_way(number as u32) < before {
                self.lanes[number].since_s = self.now_s;
            }
        }
    }
}

/// What a liquid would take, which is never in lumps.
fn fluid_s(megabits: &[f64]) -> f64 {
    f64::from(BLOCKS) * f64::from(BLOCK) * 8e-6 / megabits.iter().sum::<f64>()
}

#[test]
fn last_block_does_not_wait_for_the_slower_lane() {
    let lanes = [400.0, 100.0];
    let (helped_s, helped) = Link::new(&lanes, f64::INFINITY, true).run();
    let (alone_s, _) = Link::new(&lanes, f64::INFINITY, false).run();
    // Offer, answer and commit, and a block of the slower lane.
    let bound_s = fluid_s(&lanes) + 4.0 * TRIP_S + 8e-6 * f64::from(BLOCK) / 100.0;
    assert!(helped > 0 && helped_s < bound_s, "{helped} helped, {helped_s} s of {bound_s}, alone {alone_s}");
    assert!(alone_s > bound_s, "without help the end is as soon: {alone_s} s of {bound_s}");
}

#[test]
fn much_slower_lane_costs_no_more_than_it_brings() {
    for slow in [1.0, 5.0, 20.0] {
        let lanes = [400.0, slow];
        let (helped_s, _) = Link::new(&lanes, f64::INFINITY, true).run();
        let alone_s = fluid_s(&lanes[..1]) + 4.0 * TRIP_S;
        assert!(helped_s < alone_s * 1.06, "{slow} Mbps beside: {helped_s} s, alone {alone_s}");
    }
}

#[test]
fn slower_lane_that_dies_at_any_moment_of_the_end_loses_nothing() {
    let lanes = [400.0, 100.0];
    let whole_s = fluid_s(&lanes);
    for step in 0..20 {
        let dies_s = whole_s * (0.8 + 0.02 * f64::from(step));
        let (ended_s, _) = Link::new(&lanes, dies_s, true).run();
        assert!(ended_s < whole_s * 1.3, "dead at {dies_s}: {ended_s} s of {whole_s}");
    }
}
