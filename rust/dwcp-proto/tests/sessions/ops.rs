//! Sequences of operations on both sessions, driven by bytes: nothing panics, and nothing is committed too early.

use std::sync::{Arc, LazyLock};

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Dictionary, Digest};
use dwcp_proto::SessionError;
use dwcp_proto::frame::{
    Accept, BlockHead, Committed, DictionaryNote, DictionaryWord, Digests, ErrorCode, ErrorFrame, Finish,
    Frame, Have, HaveSource, ManifestPart, Nack, NackReason, Offer, Same, TransferId,
};
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Candidate, Entry, EntryKind, Manifest};
use dwcp_proto::receiver::{Action, ReceiverSession};
use dwcp_proto::sender::{BlockTask, Resolution, SenderOptions, SenderSession, Step};

const BLOCK: u32 = 65_536;

/// The dictionary that the sender offers.
static OFFERED: LazyLock<Arc<Dictionary>> = LazyLock::new(|| {
    Arc::new(Dictionary::new(b"what they have in common".to_vec()).expect("any content will do"))
});

/// Small numbers from bytes; zeros at their end.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, bound: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % bound)
    }

    /// One of few digests, so that equal ones are common.
    fn digest(&mut self) -> Digest {
        Digest([self.below(2); 16])
    }

    fn digests(&mut self) -> Vec<Digest> {
        (0..=self.below(4)).map(|_| self.digest()).collect()
    }
}

/// Two files of three blocks and of one, the first with a candidate, and a directory between them.
fn manifest() -> Arc<Manifest> {
    let entry = |kind, path: &[u8], size| Entry {
        kind,
        path: path.to_vec(),
        mode: 0,
        mtime_ns: 0,
        size,
        target: vec![],
        candidates: vec![],
    };
    let candidate = Candidate { size: 1, digest: Digest([0; 16]) };
    let entries = vec![
        Entry { candidates: vec![candidate], ..entry(EntryKind::File, b"a", 2 * u64::from(BLOCK) + 1) },
        entry(EntryKind::Directory, b"b", 0),
        entry(EntryKind::File, b"c", 10),
    ];
    Arc::new(Manifest::new(BLOCK, entries, &Limits::default()).expect("it follows the rules"))
}

/// A frame that may or may not fit the manifest.
fn frame(choices: &mut Choices<'_>, manifest: &Manifest) -> Frame {
    let id = if choices.below(8) == 0 { TransferId([0; 16]) } else { manifest.transfer_id() };
    let entry = u32::from(choices.below(4));
    let first_block = u32::from(choices.below(5));
    match choices.below(15) {
        0 => Frame::Offer(Offer {
            transfer_id: id,
            block_bytes: BLOCK,
            entries: 3,
            total_bytes: manifest.total_bytes(),
            base_allowed: choices.below(2) == 0,
            repeats: choices.below(3),
            number: u32::from(choices.below(20)),
        }),
        1 => Frame::Manifest(ManifestPart { first_entry: 0, entries: manifest.entries().to_vec() }),
        2 => {
            let source = match choices.below(3) {
                0 => HaveSource::Staged,
                1 => HaveSource::SamePath,
                _ => HaveSource::Candidate(choices.below(3)),
            };
            Frame::Have(Have { entry, source, first_block, digests: choices.digests() })
        }
        3 => Frame::Accept(Accept {
            transfer_id: id,
            staged_bytes: u64::from(choices.below(3)) * u64::from(BLOCK),
        }),
        4 | 5 => {
            let raw_len = manifest.block_len(entry, first_block).max(1) - u32::from(choices.below(9) == 1);
            Frame::Block(BlockHead {
                entry,
                raw_len,
                offset: u64::from(first_block) * u64::from(BLOCK) + u64::from(choices.below(9) / 8),
                kind: if choices.below(2) == 0 { BlockKind::Fill } else { BlockKind::Plain },
                codec: if choices.below(2) == 0 { CodecId::None } else { CodecId::ZstdDictionary },
                digest: choices.digest(),
                base_digest: None,
            })
        }
        6 => Frame::Same(Same { entry, first_block, digests: choices.digests() }),
        7 => Frame::Ack(u32::from(choices.below(8))),
        8 => Frame::Nack(Nack {
            entry,
            reason: NackReason::NoBase,
            offset: u64::from(first_block) * u64::from(BLOCK),
        }),
        9 => Frame::Digests(Digests { first_entry: entry, digests: choices.digests() }),
        10 => Frame::Finish(Finish { transfer_id: id, transfer_digest: choices.digest() }),
        11 => {
            Frame::Committed(Committed { transfer_id: id, transfer_digest: choices.digest(), body_bytes: 0 })
        }
        12 => Frame::Error(ErrorFrame::new(ErrorCode::Internal, false, "\u{1b}[31m")),
        13 => {
            let (bytes, digest) = (OFFERED.bytes().to_vec(), OFFERED.digest());
            let word = match choices.below(4) {
                0 => DictionaryWord::Announced,
                1 => DictionaryWord::Wanted,
                2 => DictionaryWord::Given(bytes),
                _ => DictionaryWord::Declined,
            };
            let digest = if choices.below(8) == 0 { Digest([0; 16]) } else { digest };
            Frame::Dictionary(DictionaryNote { digest, length: OFFERED.bytes().len() as u32, word })
        }
        _ => Frame::KeepAlive,
    }
}

/// The two sessions and what is open between them.
struct Pair {
    /// A bit for each lane that was ever attached.
    lanes: u8,
    manifest: Arc<Manifest>,
    sender: SenderSession,
    receiver: ReceiverSession,
    tasks: Vec<(u32, BlockTask)>,
    open: Vec<(u32, u32, u64, Digest)>,
    /// Frames that one side gave out and the other may be given.
    forth: Vec<(u32, Frame)>,
    back: Vec<(u32, Frame)>,
}

impl Pair {
    fn give_sender(&mut self, lane: u32, frame: Frame) {
        let _ = self.sender.receive(lane, frame);
        let progress = self.sender.progress();
        let done = progress.held_bytes + progress.same_bytes + progress.sent_raw_bytes;
        assert!(done <= progress.total_bytes);
        assert!(self.sender.outcome().is_none() || done == progress.total_bytes);
    }

    fn give_receiver(&mut self, lane: u32, frame: Frame) {
        match self.receiver.receive(lane, frame) {
            Ok(Action::Answer(frame)) => self.back.push((lane, frame)),
            Ok(Action::Store(head)) => {
                assert!(head.codec != CodecId::ZstdDictionary || self.receiver.dictionary().is_some());
                self.open.push((lane, head.entry, head.offset, head.digest));
            }
            Ok(Action::Copy(same)) => {
                for (block, digest) in (same.first_block..).zip(same.digests) {
                    self.open.push((lane, same.entry, u64::from(block) * u64::from(BLOCK), digest));
                }
            }
            Ok(action) => self.commit(lane, &action),
            Err(_) => {}
        }
    }

    fn commit(&mut self, lane: u32, action: &Action) {
        if *action == Action::Commit {
            assert_eq!(self.receiver.missing_blocks(), 0);
            self.back.push((lane, self.receiver.committed().expect("it was asked for")));
        }
    }

    fn resolve(&mut self, choices: &mut Choices<'_>) {
        if self.tasks.is_empty() {
            return;
        }
        let (lane, task) = self.tasks.swap_remove(usize::from(choices.below(255)) % self.tasks.len());
        let digest = choices.digest();
        let outcome = match choices.below(5) {
            4 => Resolution::Block {
                digest,
                base_digest: None,
                kind: BlockKind::Plain,
                codec: CodecId::ZstdDictionary,
                wire_len: 1,
            },
            0 => Resolution::Held { digest },
            1 => Resolution::Same { digest },
            2 => Resolution::Block {
                digest,
                base_digest: Some(digest),
                kind: BlockKind::Difference,
                codec: CodecId::None,
                wire_len: 1,
            },
            _ => Resolution::Block {
                digest,
                base_digest: None,
                kind: BlockKind::Fill,
                codec: CodecId::None,
                wire_len: 1,
            },
        };
        let with_dictionary = matches!(outcome, Resolution::Block { codec: CodecId::ZstdDictionary, .. });
        match self.sender.resolve(lane, &task, outcome) {
            Ok(frame) if with_dictionary && !task.dictionary => panic!("{frame:?} was not agreed on"),
            Ok(Some(frame)) => self.forth.push((lane, frame)),
            Ok(None) => {}
            Err(SessionError::UnknownLane { .. }) => {}
            // Something else may do.
            Err(_) => self.tasks.push((lane, task)),
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        let lane = u32::from(choices.below(3));
        match choices.below(16) {
            0 if self.lanes & 1 << lane == 0 || choices.below(32) == 31 => {
                self.lanes |= 1 << lane;
                self.sender.attach(lane);
                self.receiver.attach(lane);
            }
            1 if choices.below(32) == 31 => self.sender.detach(lane),
            2 if choices.below(32) == 31 => self.receiver.detach(lane),
            3 if choices.below(16) == 15 => {
                let frame = frame(choices, &self.manifest);
                self.give_sender(lane, frame);
            }
            4 if choices.below(16) == 15 => {
                let frame = frame(choices, &self.manifest);
                self.give_receiver(lane, frame);
            }
            5 => {
                let haves = (0..choices.below(3)).map(|_| frame(choices, &self.manifest));
                let haves: Vec<Have> = haves
                    .filter_map(|frame| if let Frame::Have(have) = frame { Some(have) } else { None })
                    .collect();
                let staged = u64::from(choices.below(3)) * u64::from(BLOCK);
                let frames = self.receiver.prepared(lane, haves, staged).unwrap_or_default();
                self.back.extend(frames.into_iter().map(|frame| (lane, frame)));
            }
            6 => {
                if let Some(frame) = self.receiver.acknowledge(lane) {
                    self.back.push((lane, frame));
                }
            }
            7 if !self.open.is_empty() => {
                let (lane, entry, offset, digest) = self.open.remove(0);
                if choices.below(4) == 0 {
                    let frame = self.receiver.refused(lane, entry, offset, NackReason::BaseDiffers);
                    self.back.push((lane, frame));
                } else {
                    self.receiver.stored(lane, entry, offset, digest, 1);
                    let action = self.receiver.settle();
                    self.commit(lane, &action);
                }
            }
            8 => self.resolve(choices),
            9 | 10 if !self.forth.is_empty() => {
                let (lane, frame) = self.forth.remove(0);
                self.give_receiver(lane, frame);
            }
            11 | 12 if !self.back.is_empty() => {
                let (lane, frame) = self.back.remove(0);
                self.give_sender(lane, frame);
            }
            13 => {
                let _ = self.sender.begin(Arc::clone(&self.manifest), choices.below(2) == 0);
            }
            _ => match self.sender.next(lane) {
                Step::Send(frame) => self.forth.push((lane, frame)),
                Step::Block(task) => self.tasks.push((lane, task)),
                Step::Wait | Step::Done => {}
            },
        }
    }
}

/// Does what `bytes` say; tells whether the sender saw a commit.
pub fn run(bytes: &[u8]) -> bool {
    let manifest = manifest();
    let options = SenderOptions { max_unacked_frames: 3, max_unacked_bytes: 2 * u64::from(BLOCK) };
    let mut pair = Pair {
        lanes: 0,
        sender: SenderSession::new(Arc::clone(&manifest), true, options)
            .offering((bytes.first().is_some_and(|byte| byte % 2 == 1)).then(|| Arc::clone(&OFFERED))),
        receiver: ReceiverSession::new(Limits::default()),
        manifest,
        tasks: vec![],
        open: vec![],
        forth: vec![],
        back: vec![],
    };
    let mut choices = Choices(bytes.iter());
    let mut committed = false;
    while choices.0.len() > 0 {
        pair.step(&mut choices);
        committed |= pair.sender.outcome().is_some();
    }
    committed
}
