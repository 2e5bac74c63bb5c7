//! The two drivers, their lanes and the trouble they meet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dwcp_codec::block::{BlockDecoder, BlockEncoder};
use dwcp_codec::{Codec, CodecId, Dictionary, Digest};
use dwcp_proto::error::SessionError;
use dwcp_proto::frame::{BlockHead, DictionaryWord, Frame, NackReason, Same, SessionId};
use dwcp_proto::limits::{Limits, MAX_EARLY_BYTES};
use dwcp_proto::manifest::Manifest;
use dwcp_proto::receiver::{Action, ReceiverSession};
use dwcp_proto::sender::{BlockTask, Pace, Resolution, SenderOptions, SenderSession, Step, Way};

use crate::disk::{Disk, padded};
use crate::link::{Pipe, Random};
use crate::met::{Met, Trouble};
use crate::sources::{BLOCK, Source, content, sources};

/// Far more than any run takes; one that gets here makes no progress any more.
const MAX_STEPS: u64 = 60_000;

/// What a receiver's lane is busy with; it reads nothing meanwhile.
enum Job {
    Prepare(Arc<Manifest>, bool),
    Store(BlockHead, Vec<u8>),
    Copy(Same),
    Commit,
}

struct Lane {
    forth: Pipe,
    back: Pipe,
    sender_attached: bool,
    receiver_attached: bool,
    job: Option<(u64, Job)>,
}

pub struct World {
    random: Random,
    now: u64,
    trouble: Trouble,
    source: Source,
    next_sources: VecDeque<Source>,
    sender: SenderSession,
    receiver: ReceiverSession,
    session: SessionId,
    disk: Disk,
    lanes: BTreeMap<u32, Lane>,
    next_lane: u32,
    lane_count: u64,
    /// Blocks that were announced as staged in this session.
    announced: BTreeSet<(u32, u64, Digest)>,
    /// How many transfers were put in place, and how many of them are others.
    commits: usize,
    transfers: usize,
    /// What the sender offers, if it offers any.
    dictionary: Option<Arc<Dictionary>>,
    encoder: BlockEncoder,
    decoder: BlockDecoder,
    /// Blocks that were written down, by session.
    stored: BTreeSet<(SessionId, u32, u64, Digest)>,
    is_disturbed: bool,
    restarted: bool,
    met: Met,
}

/// A receiver that may know the dictionary, learn it, or find it too long.
fn receiver(random: &mut Random, dictionary: Option<&Arc<Dictionary>>) -> ReceiverSession {
    let max_dictionary = if random.once_in(3) { 99 } else { 100 };
    let known: Vec<_> = dictionary.filter(|_| random.once_in(3)).cloned().into_iter().collect();
    ReceiverSession::new(Limits { max_dictionary, ..Limits::default() }).knowing(known.into())
}

fn options(random: &mut Random) -> SenderOptions {
    let max_unacked_frames = 1 + random.below(6) as u32;
    SenderOptions { max_unacked_frames, max_unacked_bytes: random.below(8) * u64::from(BLOCK) }
}

impl World {
    pub fn new(seed: u64, trouble: Trouble) -> World {
        let mut random = Random(seed);
        let mut disk = Disk::default();
        let salt = random.below(1 << 30) + 1;
        let [source, second, small] = sources(salt, trouble.stale_base, &mut disk);
        let options = options(&mut random);
        let dictionary = Arc::new(Dictionary::new(content(salt, 0, 100)).unwrap());
        let dictionary = Some(dictionary).filter(|_| random.once_in(2));
        World {
            now: 0,
            trouble,
            sender: SenderSession::new(Arc::clone(&source.manifest), true, options)
                .offering(dictionary.clone()),
            source,
            next_sources: VecDeque::from([second, small]),
            receiver: receiver(&mut random, dictionary.as_ref()),
            dictionary,
            session: SessionId(seed_id(seed, 0)),
            disk,
            lanes: BTreeMap::new(),
            next_lane: 0,
            lane_count: 1 + random.below(4),
            announced: BTreeSet::new(),
            commits: 0,
            transfers: 0,
            encoder: BlockEncoder::new(),
            decoder: BlockDecoder::new(),
            stored: BTreeSet::new(),
            is_disturbed: trouble.lost_lanes + trouble.flipped_bits + trouble.restarts > 0,
            restarted: false,
            met: Met::default(),
            random,
        }
    }

    /// The same world with nothing but the small state, and no dictionary that it would have to wait for.
    pub fn small(mut self) -> World {
        self.source = self.next_sources.pop_back().expect("it is the last");
        self.next_sources.clear();
        self.dictionary = None;
        self.new_session();
        self
    }

    /// Runs until all transfers are committed.
    pub fn run(mut self) -> Met {
        loop {
            self.transfer();
            self.check_committed();
            self.transfers += 1;
            // A receiver that starts anew does not know what it has put in place.
            let once = self.restarted || self.commits == self.transfers;
            assert!(once, "{} transfers were put in place {} times", self.transfers, self.commits);
            let progress = self.sender.progress();
            self.met.held += progress.blocks_held;
            self.met.same += progress.blocks_same;
            self.met.sent += progress.blocks_sent;
            self.met.resent += progress.resent_blocks;
            self.met.helped += progress.helped_blocks;
            let all = progress.held_bytes + progress.same_bytes + progress.sent_raw_bytes;
            assert_eq!(all, progress.total_bytes, "every byte is accounted for once: {progress:?}");
            let Some(next) = self.next_sources.pop_front() else { return self.met };
            self.source = next;
            self.announced.clear();
            match self.sender.begin(Arc::clone(&self.source.manifest), true) {
                Ok(()) => self.met.later_transfers += 1,
                Err(error) => {
                    assert_eq!(error, SessionError::NotReusable);
                    self.new_session();
                }
            }
        }
    }

    fn transfer(&mut self) {
        let start = self.now;
        while self.sender.outcome().is_none() {
            assert!(self.now - start < MAX_STEPS, "no end in sight: {:?}", self.sender.progress());
            self.now += 1;
            self.keep_lanes();
            self.make_trouble();
            self.keep_lanes();
            let lanes: Vec<u32> = self.lanes.keys().copied().collect();
            let lane = lanes[self.random.below(lanes.len() as u64) as usize];
            if self.random.once_in(2) {
                self.sender_turn(lane)
            } else {
                self.receiver_turn(lane)
            }
            self.lanes.retain(|_, lane| lane.sender_attached || lane.receiver_attached);
        }
    }

    fn check_committed(&self) {
        let id = self.source.manifest.transfer_id();
        let committed = self.disk.committed.get(&id).expect("the sender saw COMMITTED, so it is");
        for (entry, object) in &self.source.objects {
            assert!(committed[entry] == *object, "entry {entry} differs");
        }
    }

    /// Dials new lanes for those that were lost.
    fn keep_lanes(&mut self) {
        let attached = self.lanes.values().filter(|lane| lane.sender_attached).count() as u64;
        if attached < self.lane_count && (attached == 0 || self.random.once_in(50)) {
            let latency = 1 + self.random.below(40);
            let lane = Lane {
                forth: Pipe::new(latency, &self.session),
                back: Pipe::new(1 + self.random.below(40), &self.session),
                sender_attached: true,
                receiver_attached: true,
                job: None,
            };
            self.lanes.insert(self.next_lane, lane);
            self.sender.attach(self.next_lane);
            self.receiver.attach(self.next_lane);
            self.next_lane += 1;
        }
    }

    fn make_trouble(&mut self) {
        if self.trouble.lost_lanes > 0 && self.random.once_in(self.trouble.loss_every) {
            self.trouble.lost_lanes -= 1;
            let lanes: Vec<u32> = self.lanes.keys().copied().collect();
            let lane = lanes[self.random.below(lanes.len() as u64) as usize];
            // The sides notice at different times: what is under way may still arrive.
            if self.random.once_in(3) {
                self.drop_receiver_lane(lane);
            } else {
                self.drop_sender_lane(lane);
            }
        }
        if self.trouble.flipped_bits > 0 && self.random.once_in(100) {
            let lanes: Vec<u32> = self.lanes.keys().copied().collect();
            let lane = lanes[self.random.below(lanes.len() as u64) as usize];
            let back = self.random.once_in(4);
            let Some(lane) = self.lanes.get_mut(&lane) else { return };
            let pipe = if back { &mut lane.back } else { &mut lane.forth };
            pipe.flip(&mut self.random);
            self.trouble.flipped_bits -= u64::from(pipe.flipped_at.is_some());
        }
        if self.trouble.restarts > 0 && self.random.once_in(400) {
            self.trouble.restarts -= 1;
            self.restarted = true;
            self.met.spoiled += u64::from(self.disk.crash(&self.source.manifest, &mut self.random));
            self.met.held += self.sender.progress().blocks_held;
            self.new_session();
        }
    }

    /// Both sides begin anew; only the disk stays.
    fn new_session(&mut self) {
        self.lanes.clear();
        self.announced.clear();
        self.session = SessionId(seed_id(self.random.draw(), 1));
        self.receiver = receiver(&mut self.random, self.dictionary.as_ref());
        let options = options(&mut self.random);
        self.sender = SenderSession::new(Arc::clone(&self.source.manifest), true, options)
            .offering(self.dictionary.clone());
    }

    fn drop_sender_lane(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if std::mem::take(&mut lane.sender_attached) {
            self.met.lanes_lost += 1;
            lane.forth.cut(&mut self.random);
            lane.back.closed = true;
            self.sender.detach(number);
        }
    }

    fn drop_receiver_lane(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if std::mem::take(&mut lane.receiver_attached) {
            lane.back.cut(&mut self.random);
            lane.forth.closed = true;
            self.receiver.detach(number);
        }
    }

    fn sender_turn(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(&number).filter(|lane| lane.sender_attached) else { return };
        match lane.back.read(self.now) {
            Err(_) => {
                assert!(lane.back.flipped_at.is_some());
                self.met.flips_in_frames += 1;
                return self.drop_sender_lane(number);
            }
            Ok(Some(arrival)) => {
                self.met.nacks += u64::from(matches!(arrival.frame, Frame::Nack(_)));
                self.sender.receive(number, arrival.frame).unwrap();
            }
            Ok(None) if lane.back.is_drained() || lane.back.is_stalled(self.now) => {
                return self.drop_sender_lane(number);
            }
            Ok(None) => {}
        }
        match self.sender.next(number) {
            Step::Send(frame) => {
                let Some(lane) = self.lanes.get_mut(&number) else { return };
                match &frame {
                    Frame::Offer(offer) => self.met.reoffered += u64::from(offer.number > 0),
                    Frame::Dictionary(note) => {
                        self.met.dictionaries_given +=
                            u64::from(matches!(note.word, DictionaryWord::Given(_)));
                    }
                    _ => {}
                }
                lane.forth.write(self.now, &frame, &[]);
            }
            Step::Block(task) => self.send_block(number, &task),
            Step::Wait => self.help(number),
            Step::Done => {}
        }
    }

    /// Has a lane that waits send again what another would need long for.
    fn help(&mut self, number: u32) {
        if !self.trouble.slow_lanes || self.random.once_in(2) {
            return;
        }
        let draws: BTreeMap<u32, u64> =
            self.lanes.keys().map(|lane| (*lane, self.random.below(100))).collect();
        let pace = |lane| Pace {
            bytes_per_s: draws.get(&lane).map_or(0.0, |draw| *draw as f64 * 1e4),
            waited_s: draws.get(&lane).map_or(0.0, |draw| *draw as f64 / 50.0),
            moves: draws.get(&lane).is_some_and(|draw| *draw % 2 == 0),
        };
        if let Some(task) = self.sender.help(number, pace, 0.01, Way::Open) {
            self.send_block(number, &task);
        }
    }

    fn send_block(&mut self, number: u32, task: &BlockTask) {
        let block = padded(&self.source.objects[&task.entry], task.offset, task.raw_len);
        let digest = Digest::of(&block);
        let base =
            task.candidate.map(|_| padded(&self.source.candidates[&task.entry], task.offset, task.raw_len));
        let (outcome, body) = if task.held == Some(digest) {
            (
                if task.held_is_staged { Resolution::Held { digest } } else { Resolution::Same { digest } },
                vec![],
            )
        } else if base.as_ref() == Some(&block) {
            (Resolution::Same { digest }, vec![])
        } else {
            let dictionary = self.dictionary.as_ref().filter(|_| task.dictionary);
            let encoded = match dictionary {
                Some(dictionary) => {
                    self.encoder.encode_with(dictionary, Codec::Lz4, &block, base.as_deref(), None)
                }
                None => self.encoder.encode(Codec::Lz4, &block, base.as_deref()),
            };
            let encoded = encoded.unwrap();
            self.met.with_dictionary += u64::from(encoded.codec == CodecId::ZstdDictionary);
            let (kind, codec, body) = (encoded.kind, encoded.codec, encoded.wire.to_vec());
            let base_digest = base.filter(|_| kind.needs_base()).map(|base| Digest::of(&base));
            self.met.differences += u64::from(base_digest.is_some());
            let is_staged = self.announced.contains(&(task.entry, task.offset, digest));
            let is_small = self.source.manifest.total_bytes() <= MAX_EARLY_BYTES;
            assert!(is_small || !is_staged, "a staged block is sent again");
            (Resolution::Block { digest, base_digest, kind, codec, wire_len: body.len() as u32 }, body)
        };
        let frame = self.sender.resolve(number, task, outcome).unwrap();
        if let (Some(frame), Some(lane)) = (frame, self.lanes.get_mut(&number)) {
            lane.forth.write(self.now, &frame, &body);
        }
    }

    fn receiver_turn(&mut self, number: u32) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if let Some((time, job)) = lane.job.take() {
            if time > self.now {
                lane.job = Some((time, job));
            } else {
                self.finish_job(number, job);
            }
            return;
        }
        if !lane.receiver_attached {
            return;
        }
        let arrival = match lane.forth.read(self.now) {
            Err(_) => {
                assert!(lane.forth.flipped_at.is_some());
                self.met.flips_in_frames += 1;
                return self.drop_receiver_lane(number);
            }
            Ok(Some(arrival)) => arrival,
            Ok(None) if lane.forth.is_drained() || lane.forth.is_stalled(self.now) => {
                return self.drop_receiver_lane(number);
            }
            Ok(None) => {
                if self.random.once_in(3) {
                    self.acknowledge(number);
                }
                return;
            }
        };
        let name = arrival.frame.name();
        let action = self.receiver.receive(number, arrival.frame).unwrap();
        let job = match action {
            Action::None => {
                self.met.late +=
                    u64::from(matches!(name, "BLOCK" | "SAME" | "OFFER") && !lane.sender_attached);
                return;
            }
            Action::Prepare(manifest, base_allowed) => Job::Prepare(manifest, base_allowed),
            Action::Store(head) => {
                let base = head.base_digest.and_then(|_| {
                    self.disk.base(&self.source.manifest, head.entry, head.offset, head.raw_len)
                });
                if head.base_digest.is_some() && base.as_deref().map(Digest::of) != head.base_digest {
                    return self.refuse(number, head.entry, head.offset);
                }
                let mut block = vec![0; head.raw_len as usize];
                let dictionary = self.receiver.dictionary().filter(|_| head.codec == CodecId::ZstdDictionary);
                let decoded = match dictionary {
                    Some(dictionary) => self.decoder.decode_with(&dictionary, &arrival.body, &mut block),
                    None => {
                        self.decoder.decode(head.kind, head.codec, &arrival.body, base.as_deref(), &mut block)
                    }
                };
                if decoded.is_err() || Digest::of(&block) != head.digest {
                    assert!(arrival.altered);
                    self.met.flips_in_bodies += 1;
                    return self.drop_receiver_lane(number);
                }
                Job::Store(head, block)
            }
            Action::Copy(same) => Job::Copy(same),
            Action::Commit => {
                self.met.answered_offers += u64::from(name == "OFFER");
                Job::Commit
            }
            Action::Recommitted(frame) => {
                self.met.recommitted += 1;
                self.met.answered_offers += u64::from(name == "OFFER");
                lane.back.write(self.now, &frame, &[]);
                return;
            }
            Action::Answer(frame) => {
                if let Frame::Dictionary(note) = &frame {
                    self.met.dictionaries_declined += u64::from(note.word == DictionaryWord::Declined);
                }
                lane.back.write(self.now, &frame, &[]);
                return;
            }
            other => panic!("{other:?}"),
        };
        lane.job = Some((self.now + self.random.below(60), job));
    }

    fn finish_job(&mut self, number: u32, job: Job) {
        match job {
            Job::Prepare(manifest, base_allowed) => {
                let found = self.disk.prepare(&manifest, base_allowed);
                self.met.torn_ledgers += u64::from(found.torn);
                let frames = self.receiver.prepared(number, found.haves, found.staged_bytes).unwrap();
                for frame in frames {
                    if let Frame::Have(have) = &frame
                        && have.source == dwcp_proto::frame::HaveSource::Staged
                    {
                        let offset = u64::from(have.first_block) * u64::from(BLOCK);
                        self.announced.insert((have.entry, offset, have.digests[0]));
                    }
                    self.answer(number, &frame);
                }
            }
            Job::Store(head, _) if self.receiver.came_before(number, &head) => {
                self.met.came_before += 1;
                self.settle(number);
            }
            Job::Store(head, block) => {
                let whole = (self.session, head.entry, head.offset, head.digest);
                let again = !self.stored.insert(whole);
                // What a lost lane was about to write when it was lost is not known to be there.
                assert!(self.is_disturbed || !again, "a block is written twice");
                self.disk.store(&self.source.manifest, head.entry, head.offset, &block);
                self.receiver.stored(number, head.entry, head.offset, head.digest, 1);
                self.settle(number);
                if self.random.once_in(3) {
                    self.acknowledge(number);
                }
            }
            Job::Copy(same) => {
                for (block, digest) in (same.first_block..).zip(same.digests) {
                    let offset = u64::from(block) * u64::from(BLOCK);
                    let length = self.source.manifest.block_len(same.entry, block);
                    let base = self.disk.base(&self.source.manifest, same.entry, offset, length);
                    match base.filter(|base| Digest::of(base) == digest) {
                        Some(base) => {
                            self.disk.store(&self.source.manifest, same.entry, offset, &base);
                            self.receiver.stored(number, same.entry, offset, digest, 0);
                        }
                        None => self.refuse(number, same.entry, offset),
                    }
                }
                self.settle(number);
            }
            Job::Commit => {
                self.commits += usize::from(self.disk.commit(&self.source.manifest));
                let frame = self.receiver.committed().unwrap();
                self.check_committed();
                self.answer(number, &frame);
            }
        }
    }

    /// Was this the last block, and FINISH there before it?
    fn settle(&mut self, number: u32) {
        match self.receiver.settle() {
            Action::None => {}
            Action::Commit => {
                self.met.settled += 1;
                let due = self.now + self.random.below(60);
                if let Some(lane) = self.lanes.get_mut(&number) {
                    lane.job = Some((due, Job::Commit));
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn refuse(&mut self, number: u32, entry: u32, offset: u64) {
        assert!(self.trouble.stale_base, "only a stale base is refused");
        let frame = self.receiver.refused(number, entry, offset, NackReason::BaseDiffers);
        self.answer(number, &frame);
    }

    fn acknowledge(&mut self, number: u32) {
        if let Some(frame) = self.receiver.acknowledge(number) {
            self.answer(number, &frame);
        }
    }

    fn answer(&mut self, number: u32, frame: &Frame) {
        if let Some(lane) = self.lanes.get_mut(&number).filter(|lane| lane.receiver_attached) {
            lane.back.write(self.now, frame, &[]);
        }
    }
}

fn seed_id(seed: u64, salt: u64) -> [u8; 16] {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&Random(seed ^ salt).draw().to_le_bytes());
    id
}
