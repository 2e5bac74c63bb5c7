//! The receiving side of a session.
//!
//! A driver attaches lanes, gives every frame that arrives to [`ReceiverSession::receive`] and does the [`Action`]
//! it answers, then tells what came of it: [`ReceiverSession::stored`] or [`ReceiverSession::refused`] for each
//! block, [`ReceiverSession::prepared`] and [`ReceiverSession::committed`].

mod action;
mod lane;
mod offer;

use std::collections::BTreeMap;
use std::sync::Arc;

use dwcp_codec::{CodecId, Dictionary, Digest};

pub use crate::LaneId;
pub use action::{Action, ReceiverPhase, ReceiverProgress};
use lane::{Lane, Outstanding};

use crate::blocks::{Announced, BlockIndex, BlockTable, KNOWN, STAGED, out_of_range};
use crate::dictionary::Taken;
use crate::error::SessionError;
use crate::frame::{
    Accept, BlockHead, Committed, DictionaryNote, DictionaryWord, Digests, Finish, Frame, Have, Nack,
    NackReason, Same,
};
use crate::limits::{Limits, MAX_UNACKED};
use crate::manifest::{Manifest, ManifestAssembly};
use crate::sender::peer_error;

#[derive(Debug)]
struct Transfer {
    table: BlockTable,
    announced: Announced,
    base_allowed: bool,
    missing: u64,
    /// The tree digests that the sender told, as far as it did.
    told: Vec<Digest>,
    /// The transfer digest of its FINISH, which may come before the last blocks do.
    transfer_digest: Option<Digest>,
    /// The ACCEPT that waits for a dictionary.
    due: Option<Accept>,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Manifest { lane: LaneId, assembly: Box<ManifestAssembly> },
    Preparing { lane: LaneId },
    Blocks,
    Committing,
    Committed(Committed),
}

/// The state of a receiver between frames.
#[derive(Debug)]
pub struct ReceiverSession {
    limits: Limits,
    lanes: BTreeMap<LaneId, Lane>,
    phase: Phase,
    transfer: Option<Transfer>,
    progress: ReceiverProgress,
    /// The lowest number that the next OFFER can have, and the lane of the last.
    next_offer: u64,
    offered_on: Option<LaneId>,
    dictionary: Taken,
}

impl ReceiverSession {
    /// A session without lanes or transfer.
    #[must_use]
    pub fn new(limits: Limits) -> ReceiverSession {
        ReceiverSession {
            limits,
            lanes: BTreeMap::new(),
            phase: Phase::Idle,
            transfer: None,
            progress: ReceiverProgress {
                total_bytes: 0,
                staged_bytes: 0,
                stored_bytes: 0,
                copied_bytes: 0,
                body_bytes: 0,
                blocks_stored: 0,
                blocks_copied: 0,
                nacks: 0,
                missing_blocks: 0,
                phase: ReceiverPhase::Idle,
            },
            next_offer: 0,
            offered_on: None,
            dictionary: Taken::default(),
        }
    }

    /// The same session, which knows these dictionaries already.
    #[must_use]
    pub fn knowing(self, dictionaries: Arc<[Arc<Dictionary>]>) -> ReceiverSession {
        ReceiverSession { dictionary: Taken::new(dictionaries), ..self }
    }

    /// Adds a lane after its WELCOME.
    pub fn attach(&mut self, lane: LaneId) {
        self.lanes.insert(lane, Lane::default());
    }

    /// Takes a lane away. Blocks of it that are stored later do not count; the sender sends them again.
    pub fn detach(&mut self, lane: LaneId) {
        self.lanes.remove(&lane);
    }

    /// Takes a frame that arrived on a lane.
    ///
    /// # Errors
    /// [`SessionError::Peer`] for an ERROR of the sender; others when the frame must not come here and now. The
    /// driver tells the sender by [`SessionError::code`] and ends the session.
    pub fn receive(&mut self, lane: LaneId, frame: Frame) -> Result<Action, SessionError> {
        if !self.lanes.contains_key(&lane) {
            return Err(SessionError::UnknownLane { lane });
        }
        match frame {
            Frame::KeepAlive | Frame::Fill(_) => Ok(Action::None),
            Frame::Close => Ok(Action::Closed),
            Frame::Error(error) => Err(peer_error(&error)),
            Frame::Offer(offer) => self.offered(lane, offer),
            Frame::Manifest(part) => self.told_entries(lane, part),
            Frame::Dictionary(note) => self.told_dictionary(lane, note),
            Frame::Block(_) | Frame::Same(_) if self.is_overtaken(lane) => self.late(lane),
            Frame::Digests(_) | Frame::Finish(_) if self.is_overtaken(lane) => Ok(Action::None),
            Frame::Block(head) => self.block(lane, head),
            Frame::Same(same) => self.same(lane, same),
            Frame::Digests(digests) => self.told_digests(lane, digests),
            Frame::Finish(finish) => self.finish(lane, &finish),
            other => Err(self.unexpected(other.name())),
        }
    }

    fn told_dictionary(&mut self, lane: LaneId, note: DictionaryNote) -> Result<Action, SessionError> {
        if self.is_overtaken(lane) {
            return Ok(Action::None);
        }
        let announced = note.word == DictionaryWord::Announced;
        let used = match self.phase {
            Phase::Manifest { lane: used, .. } => used,
            Phase::Preparing { lane: used } if !announced => used,
            _ => return Err(self.unexpected("DICTIONARY")),
        };
        if used != lane {
            return Err(SessionError::WrongLane { frame: "DICTIONARY", lane });
        }
        if let Some(answer) = self.dictionary.hear(note, self.limits.max_dictionary)? {
            return Ok(Action::Answer(answer));
        }
        let Some(accept) = self.transfer.as_mut().and_then(|transfer| transfer.due.take()) else {
            return Ok(Action::None);
        };
        self.phase = Phase::Blocks;
        Ok(Action::Answer(Frame::Accept(accept)))
    }

    /// The dictionary that blocks of the transfer may be made with, if there is one.
    #[must_use]
    pub fn dictionary(&self) -> Option<Arc<Dictionary>> {
        self.dictionary.ready().cloned()
    }

    /// Takes what the driver found, and gives the HAVE and ACCEPT frames to send on this lane. There are none when
    /// the lane was lost meanwhile, or the transfer was offered again on another; and ACCEPT is an
    /// [`Action::Answer`] to the dictionary, if the sender has yet to give that.
    ///
    /// # Errors
    /// [`SessionError::OutOfRange`] when a HAVE does not fit the manifest or `staged_bytes` is not the sum of the
    /// staged blocks.
    pub fn prepared(
        &mut self,
        lane: LaneId,
        haves: Vec<Have>,
        staged_bytes: u64,
    ) -> Result<Vec<Frame>, SessionError> {
        let awaited = self.is_preparing(lane);
        let Some(transfer) = self.transfer.as_mut().filter(|_| awaited && self.lanes.contains_key(&lane))
        else {
            return Ok(Vec::new());
        };
        transfer.table.clear_all();
        transfer.announced = Announced::new(transfer.table.manifest(), transfer.base_allowed);
        for have in &haves {
            transfer.announced.take(&mut transfer.table, have)?;
        }
        if transfer.announced.staged_bytes != staged_bytes {
            return out_of_range("staged bytes", staged_bytes, transfer.announced.staged_bytes);
        }
        let blocks = transfer.table.manifest().total_blocks();
        let staged: Vec<BlockIndex> =
            (0..blocks).filter(|index| transfer.table.has(*index, STAGED)).collect();
        transfer.missing = blocks - staged.len() as u64;
        staged.into_iter().for_each(|index| transfer.table.set(index, KNOWN));
        let transfer_id = transfer.table.manifest().transfer_id();
        self.progress.staged_bytes = staged_bytes;
        let mut frames: Vec<Frame> = haves.into_iter().map(Frame::Have).collect();
        let accept = Accept { transfer_id, staged_bytes };
        if self.dictionary.is_due() {
            transfer.due = Some(accept);
        } else {
            self.phase = Phase::Blocks;
            frames.push(Frame::Accept(accept));
        }
        Ok(frames)
    }

    fn block(&mut self, lane: LaneId, head: BlockHead) -> Result<Action, SessionError> {
        let (count, digest) = (1, Some(head.digest));
        let block_bytes = self.block_bytes();
        let first = match self.locate("BLOCK", head.entry, head.offset / block_bytes, count)? {
            _ if !head.offset.is_multiple_of(block_bytes) => {
                return out_of_range(
                    "offset of a BLOCK",
                    head.offset,
                    head.offset - head.offset % block_bytes,
                );
            }
            None => return self.late(lane),
            Some(first) => first,
        };
        let Some(transfer) = &self.transfer else { return Err(self.unexpected("BLOCK")) };
        let raw_len = transfer.table.place(first).2;
        if head.raw_len != raw_len {
            return out_of_range("raw length of a BLOCK", u64::from(head.raw_len), u64::from(raw_len));
        }
        if head.codec == CodecId::ZstdDictionary && self.dictionary.ready().is_none() {
            return Err(SessionError::NoDictionary { entry: head.entry, offset: head.offset });
        }
        // Another copy may be on its way to the disk from a lane that the sender gave up; it has to be the same.
        let differs = |other: &Outstanding| {
            !other.is_copy && other.first == first && other.digest.is_some_and(|digest| digest != head.digest)
        };
        if self.lanes.values().any(|state| state.outstanding.iter().any(differs)) {
            return Err(SessionError::DigestMismatch { entry: head.entry, offset: head.offset });
        }
        if transfer.table.has(first, KNOWN) && transfer.table.digest(first) == head.digest {
            // It was sent on two lanes, and has come on the faster.
            return self.late(lane);
        }
        self.open(lane, Outstanding { first, count, left: count, is_copy: false, digest })?;
        Ok(Action::Store(head))
    }

    fn same(&mut self, lane: LaneId, same: Same) -> Result<Action, SessionError> {
        let count = same.digests.len() as u32;
        let Some(first) = self.locate("SAME", same.entry, u64::from(same.first_block), count)? else {
            return self.late(lane);
        };
        self.open(lane, Outstanding { first, count, left: count, is_copy: true, digest: None })?;
        Ok(Action::Copy(same))
    }

    fn block_bytes(&self) -> u64 {
        self.transfer.as_ref().map_or(1, |transfer| u64::from(transfer.table.manifest().block_bytes()))
    }

    /// The number of the first of `count` blocks; none when they come too late to matter.
    fn locate(
        &self,
        frame: &'static str,
        entry: u32,
        block: u64,
        count: u32,
    ) -> Result<Option<BlockIndex>, SessionError> {
        match (&self.phase, &self.transfer) {
            (Phase::Committing | Phase::Committed(_), _) => Ok(None),
            (Phase::Blocks, Some(transfer)) => {
                let manifest = transfer.table.manifest();
                if manifest.entry(entry).is_none_or(|entry| !entry.kind.has_object()) {
                    return out_of_range(
                        "entry of a block",
                        u64::from(entry),
                        manifest.entries().len() as u64,
                    );
                }
                let (end, blocks) = (block + u64::from(count), u64::from(manifest.blocks_of(entry)));
                if end > blocks {
                    return out_of_range("end of a run of blocks", end, blocks);
                }
                Ok(Some(manifest.start_of(entry) + block))
            }
            _ => Err(self.unexpected(frame)),
        }
    }

    /// A frame of a lane that the sender gave up, read after everything else was done.
    fn late(&mut self, lane: LaneId) -> Result<Action, SessionError> {
        // It is done with, but only once those before it are.
        self.open(lane, Outstanding { first: 0, count: 0, left: 0, is_copy: false, digest: None })?;
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.advance();
        }
        Ok(Action::None)
    }

    fn open(&mut self, lane: LaneId, frame: Outstanding) -> Result<(), SessionError> {
        let Some(state) = self.lanes.get_mut(&lane) else { return Err(SessionError::UnknownLane { lane }) };
        if state.outstanding.len() >= MAX_UNACKED as usize {
            let count = state.outstanding.len() as u64 + 1;
            return out_of_range("number of unacknowledged frames", count, u64::from(MAX_UNACKED));
        }
        state.outstanding.push_back(frame);
        Ok(())
    }

    /// A block of an [`Action::Store`] or [`Action::Copy`] is verified and written. `wire_len` is the length of the
    /// body, 0 for a copy. To be called once for each block of a frame.
    pub fn stored(&mut self, lane: LaneId, entry: u32, offset: u64, digest: Digest, wire_len: u32) {
        let Some((index, is_copy)) = self.close(lane, entry, offset) else { return };
        let Some(transfer) = &mut self.transfer else { return };
        let raw = u64::from(transfer.table.place(index).2);
        transfer.table.set_digest(index, digest);
        if !transfer.table.has(index, KNOWN) {
            transfer.table.set(index, KNOWN);
            transfer.missing -= 1;
        }
        self.progress.body_bytes += u64::from(wire_len);
        if is_copy {
            self.progress.copied_bytes += raw;
            self.progress.blocks_copied += 1;
        } else {
            self.progress.stored_bytes += raw;
            self.progress.blocks_stored += 1;
        }
    }

    /// Whether a block of an [`Action::Store`] has come on another lane meanwhile. Then it is done with, and not to be
    /// stored.
    pub fn came_before(&mut self, lane: LaneId, head: &BlockHead) -> bool {
        let Some(transfer) = &self.transfer else { return false };
        let Some(index) = transfer.table.at(head.entry, head.offset) else { return false };
        let known = transfer.table.has(index, KNOWN) && transfer.table.digest(index) == head.digest;
        known && self.close(lane, head.entry, head.offset).is_some()
    }

    /// A block cannot be made from the base: gives the NACK to send on its lane, before the next ACK there.
    pub fn refused(&mut self, lane: LaneId, entry: u32, offset: u64, reason: NackReason) -> Frame {
        if self.close(lane, entry, offset).is_some() {
            self.progress.nacks += 1;
        }
        Frame::Nack(Nack { entry, reason, offset })
    }

    /// Strikes a block off the frames of its lane; none when it is in none of them.
    fn close(&mut self, lane: LaneId, entry: u32, offset: u64) -> Option<(BlockIndex, bool)> {
        let index = self.transfer.as_ref()?.table.at(entry, offset)?;
        let state = self.lanes.get_mut(&lane)?;
        let frame = state.outstanding.iter_mut().find(|frame| {
            frame.left > 0 && (frame.first..frame.first + u64::from(frame.count)).contains(&index)
        })?;
        frame.left -= 1;
        let is_copy = frame.is_copy;
        state.advance();
        Some((index, is_copy))
    }

    /// The ACK to send on this lane, if there is something new to say.
    pub fn acknowledge(&mut self, lane: LaneId) -> Option<Frame> {
        let state = self.lanes.get_mut(&lane)?;
        if state.finished == state.told {
            return None;
        }
        state.told = state.finished;
        Some(Frame::Ack(state.finished))
    }

    fn told_digests(&mut self, lane: LaneId, digests: Digests) -> Result<Action, SessionError> {
        self.expect_accepted("DIGESTS")?;
        let (Some(transfer), Some(state)) = (&mut self.transfer, self.lanes.get_mut(&lane)) else {
            return Err(self.unexpected("DIGESTS"));
        };
        let (first, told) = (digests.first_entry, state.trees);
        if first != 0 && first != told {
            return out_of_range("first entry of DIGESTS", u64::from(first), u64::from(told));
        }
        let count = transfer.table.manifest().entries().len() as u64;
        let end = u64::from(first) + digests.digests.len() as u64;
        if end > count {
            return out_of_range("end of DIGESTS", end, count);
        }
        state.trees = end as u32;
        // They are the same on whichever lane they are told, and a lane that was given up may still be read.
        if transfer.told.len() < end as usize {
            transfer.told.resize(end as usize, Digest([0; 16]));
        }
        transfer.told[first as usize..end as usize].copy_from_slice(&digests.digests);
        Ok(Action::None)
    }

    fn expect_accepted(&self, frame: &'static str) -> Result<(), SessionError> {
        match &self.phase {
            Phase::Blocks | Phase::Committing | Phase::Committed(_) => Ok(()),
            _ => Err(self.unexpected(frame)),
        }
    }

    fn finish(&mut self, lane: LaneId, finish: &Finish) -> Result<Action, SessionError> {
        self.expect_accepted("FINISH")?;
        let unexpected = self.unexpected("FINISH");
        let Some(transfer) = &mut self.transfer else { return Err(unexpected) };
        let manifest = transfer.table.manifest();
        let (expected, count) = (manifest.transfer_id(), manifest.entries().len() as u32);
        if finish.transfer_id != expected {
            return Err(SessionError::TransferMismatch { expected, actual: finish.transfer_id });
        }
        let told = self.lanes.get(&lane).map_or(0, |state| state.trees);
        if told != count {
            return out_of_range("number of digests told before FINISH", u64::from(told), u64::from(count));
        }
        if manifest.transfer_digest(&transfer.told) != finish.transfer_digest {
            return Err(SessionError::TransferDigest);
        }
        let repeated = transfer.transfer_digest.replace(finish.transfer_digest);
        match &self.phase {
            Phase::Blocks => Ok(self.settle()),
            _ if repeated != Some(finish.transfer_digest) => Err(SessionError::TransferDigest),
            Phase::Committed(committed) => Ok(Action::Recommitted(Frame::Committed(committed.clone()))),
            _ => Ok(Action::Commit),
        }
    }

    /// What to do once FINISH has come and no block is missing: to be asked after blocks were [`stored`](Self::stored),
    /// since FINISH does not wait for those under way on other lanes. COMMITTED then goes on the lane that asks.
    pub fn settle(&mut self) -> Action {
        let (Phase::Blocks, Some(transfer)) = (&self.phase, &mut self.transfer) else {
            return Action::None;
        };
        if transfer.missing > 0 || transfer.transfer_digest.is_none() {
            return Action::None;
        }
        let manifest = transfer.table.manifest();
        let ours = transfer.table.trees(0..manifest.entries().len() as u32);
        let pairs = (0..).zip(ours.iter().zip(&transfer.told));
        let entries: Vec<u32> =
            pairs.filter(|(_, (ours, theirs))| ours != theirs).map(|(entry, _)| entry).collect();
        if !entries.is_empty() {
            // The driver ends the session; until it has, nobody else is to come here.
            transfer.transfer_digest = None;
            return Action::Mismatch { entries };
        }
        self.phase = Phase::Committing;
        Action::Commit
    }

    /// Everything is in place: gives the COMMITTED to send on the lane of the [`Action::Commit`].
    ///
    /// # Errors
    /// [`SessionError::Unexpected`] when there was none.
    pub fn committed(&mut self) -> Result<Frame, SessionError> {
        if let Phase::Committed(committed) = &self.phase {
            return Ok(Frame::Committed(committed.clone()));
        }
        let digest = self.transfer.as_ref().and_then(|transfer| transfer.transfer_digest);
        let (Phase::Committing, Some(manifest), Some(transfer_digest)) =
            (&self.phase, self.manifest(), digest)
        else {
            return Err(self.unexpected("COMMITTED"));
        };
        let transfer_id = manifest.transfer_id();
        let committed = Committed { transfer_id, transfer_digest, body_bytes: self.progress.body_bytes };
        self.phase = Phase::Committed(committed.clone());
        Ok(Frame::Committed(committed))
    }

    /// The manifest of the transfer, once it is told.
    #[must_use]
    pub fn manifest(&self) -> Option<Arc<Manifest>> {
        self.transfer.as_ref().map(|transfer| Arc::clone(transfer.table.manifest()))
    }

    /// How many blocks are neither staged nor stored; 0 without a transfer.
    #[must_use]
    pub fn missing_blocks(&self) -> u64 {
        self.transfer.as_ref().map_or(0, |transfer| transfer.missing)
    }

    /// The tree digest of an entry whose blocks are all there; none without an object.
    #[must_use]
    pub fn tree_digest(&self, entry: u32) -> Option<Digest> {
        self.transfer.as_ref()?.table.tree(entry)
    }

    /// Counts of the transfer.
    #[must_use]
    pub fn progress(&self) -> ReceiverProgress {
        ReceiverProgress {
            missing_blocks: self.missing_blocks(),
            phase: self.receiver_phase(),
            ..self.progress
        }
    }

    fn receiver_phase(&self) -> ReceiverPhase {
        match self.phase {
            Phase::Idle => ReceiverPhase::Idle,
            Phase::Manifest { .. } => ReceiverPhase::Manifest,
            Phase::Preparing { .. } => ReceiverPhase::Preparing,
            Phase::Blocks => ReceiverPhase::Blocks,
            Phase::Committing => ReceiverPhase::Committing,
            Phase::Committed(_) => ReceiverPhase::Committed,
        }
    }

    fn unexpected(&self, frame: &'static str) -> SessionError {
        SessionError::Unexpected { frame, phase: self.receiver_phase().name() }
    }
}
