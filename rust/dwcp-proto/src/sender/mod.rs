//! The sending side of a session.
//!
//! A driver attaches lanes, asks [`SenderSession::next`] on each what to do and gives every frame that arrives to
//! [`SenderSession::receive`]. Blocks are pulled: whichever lane asks gets the next one. Every SAME tells one block.

mod early;
mod lane;
mod schedule;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Dictionary, Digest};

pub use crate::LaneId;
use early::Early;
use lane::{Carried, InFlight, Lane, count_done};
pub use step::{BlockTask, Pace, Resolution, SenderOptions, SenderPhase, SenderProgress, Step, Way};

use crate::blocks::{
    Announced, BlockIndex, BlockTable, DONE, HELD, KNOWN, PLAIN, REPLACES, STAGED, out_of_range,
};
use crate::dictionary::Offered;
use crate::error::SessionError;
use crate::frame::{
    BlockHead, Committed, DictionaryNote, Digests, ErrorFrame, Finish, Frame, Nack, Offer, Same,
};
use crate::limits::{MAX_UNACKED, WRITTEN_RUN};
use crate::manifest::Manifest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One lane, once it asks, sends OFFER (`next_entry` none) and then the parts of the manifest.
    Offering {
        lane: Option<LaneId>,
        next_entry: Option<u32>,
    },
    Preparing {
        lane: LaneId,
    },
    Blocks,
    /// One lane, once it asks, tells the digests.
    Telling {
        lane: Option<LaneId>,
        next_entry: u32,
    },
    /// FINISH is sent on a lane. Blocks may still be under way, or have to be sent again.
    Committing {
        lane: LaneId,
    },
    Done,
}

/// The state of a sender between frames.
#[derive(Debug)]
pub struct SenderSession {
    options: SenderOptions,
    base_allowed: bool,
    table: BlockTable,
    announced: Announced,
    phase: Phase,
    lanes: BTreeMap<LaneId, Lane>,
    /// The first block that no lane was given yet.
    cursor: BlockIndex,
    /// Blocks before the cursor that have to be given out again.
    again: VecDeque<BlockIndex>,
    transfer_digest: Option<Digest>,
    outcome: Option<Committed>,
    progress: SenderProgress,
    /// OFFER frames of this session so far, and of this transfer.
    offers: u32,
    offered: u8,
    /// Where blocks go before the receiver has accepted.
    early: Option<Early>,
    lost_frames: bool,
    dictionary: Offered,
}

impl SenderSession {
    /// A session for a first transfer, without lanes.
    #[must_use]
    pub fn new(manifest: Arc<Manifest>, base_allowed: bool, options: SenderOptions) -> SenderSession {
        let options =
            SenderOptions { max_unacked_frames: options.max_unacked_frames.clamp(1, MAX_UNACKED), ..options };
        SenderSession {
            options,
            base_allowed,
            announced: Announced::new(&manifest, base_allowed),
            phase: Phase::Offering { lane: None, next_entry: None },
            lanes: BTreeMap::new(),
            cursor: 0,
            again: VecDeque::new(),
            transfer_digest: None,
            outcome: None,
            progress: SenderProgress::new(&manifest),
            offers: 0,
            offered: 0,
            early: None,
            lost_frames: false,
            dictionary: Offered::default(),
            table: BlockTable::new(manifest),
        }
    }

    /// The same session before its first step, with a dictionary that it offers for each of its transfers. The
    /// receiver has to know of dictionaries ([`FEATURE_DICTIONARY`](crate::frame::FEATURE_DICTIONARY)).
    #[must_use]
    pub fn offering(self, dictionary: Option<Arc<Dictionary>>) -> SenderSession {
        SenderSession { dictionary: Offered::new(dictionary), ..self }
    }

    /// Begins the next transfer on the same lanes.
    ///
    /// # Errors
    /// [`SessionError::Unexpected`] before the last one is committed, and [`SessionError::NotReusable`] if frames of
    /// it could still arrive, which would be taken for blocks of the new transfer.
    pub fn begin(&mut self, manifest: Arc<Manifest>, base_allowed: bool) -> Result<(), SessionError> {
        if self.phase != Phase::Done {
            return Err(self.unexpected("OFFER"));
        }
        if !self.is_reusable() {
            return Err(SessionError::NotReusable);
        }
        let (lanes, offers) = (std::mem::take(&mut self.lanes), self.offers);
        let dictionary = self.dictionary.again();
        *self = SenderSession {
            lanes,
            offers,
            dictionary,
            ..SenderSession::new(manifest, base_allowed, self.options)
        };
        Ok(())
    }

    /// Whether no frame of this transfer could still arrive and be taken for one of the next.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        let late = |lane: &Lane| !lane.tasks.is_empty() || lane.in_flight.iter().any(InFlight::may_come_late);
        !self.lost_frames && !self.lanes.values().any(late)
    }

    /// Whether answers are all that keeps it from being used again: blocks of a committed transfer went twice, or are about
    /// to, on lanes that are all there.
    #[must_use]
    pub fn awaits_copies(&self) -> bool {
        self.phase == Phase::Done && !self.lost_frames && !self.is_reusable()
    }

    /// Adds a lane after its WELCOME.
    pub fn attach(&mut self, lane: LaneId) {
        self.detach(lane);
        self.lanes.insert(lane, Lane::default());
    }

    /// Takes a lane away: what was under way on it is done again by others.
    pub fn detach(&mut self, lane: LaneId) {
        let Some(lost) = self.lanes.remove(&lane) else { return };
        self.lost_frames |= lost.in_flight.iter().any(InFlight::may_come_late);
        for block in lost.tasks {
            if !self.is_under_way(block) {
                self.again.push_back(block);
            }
        }
        for frame in lost.in_flight {
            // A refused block is in the queue since its NACK.
            if !frame.settled && !self.table.has(frame.block, DONE) && !self.is_under_way(frame.block) {
                self.progress.resent_blocks += 1;
                self.again.push_back(frame.block);
            }
        }
        match self.phase {
            _ if self.awaits_accept_on() == Some(lane) => self.offer_again(),
            Phase::Offering { lane: Some(used), .. } if used == lane => self.offer_again(),
            // Nothing of the transfer was on it.
            _ if self.early.is_some() => {}
            // COMMITTED comes on the lane of the last block, whichever that is.
            Phase::Committing { .. } => self.tell_again(),
            Phase::Telling { lane: Some(used), .. } if used == lane => self.tell_again(),
            _ => {}
        }
    }

    /// Takes a frame that arrived on a lane.
    ///
    /// # Errors
    /// [`SessionError::Peer`] for an ERROR of the receiver; others when the frame must not come here and now. After
    /// [`SessionError::Peer`] the session is over; after another error at least the lane is.
    pub fn receive(&mut self, lane: LaneId, frame: Frame) -> Result<(), SessionError> {
        if !self.lanes.contains_key(&lane) {
            return Err(SessionError::UnknownLane { lane });
        }
        match frame {
            Frame::KeepAlive | Frame::Close => Ok(()),
            Frame::Error(error) => Err(peer_error(&error)),
            Frame::Have(have) => {
                self.expect_awaited(lane, "HAVE")?;
                self.take_have(&have)
            }
            Frame::Dictionary(note) => self.heard_of_dictionary(lane, &note),
            Frame::Accept(accept) => {
                self.expect_awaited(lane, "ACCEPT")?;
                if self.dictionary.is_due() {
                    return Err(self.unexpected("ACCEPT"));
                }
                let expected = self.table.manifest().transfer_id();
                if accept.transfer_id != expected {
                    return Err(SessionError::TransferMismatch { expected, actual: accept.transfer_id });
                }
                if accept.staged_bytes != self.announced.staged_bytes {
                    return out_of_range("staged bytes", accept.staged_bytes, self.announced.staged_bytes);
                }
                self.accepted();
                Ok(())
            }
            Frame::Ack(count) => self.acknowledged(lane, count),
            Frame::Nack(nack) => self.refused(lane, &nack),
            Frame::Committed(committed) => self.committed(committed),
            other => Err(self.unexpected(other.name())),
        }
    }

    /// Whether what comes before the answer to an offer may come on this lane.
    fn expect_awaited(&self, lane: LaneId, frame: &'static str) -> Result<(), SessionError> {
        match self.awaits_accept_on() {
            Some(used) if used == lane => Ok(()),
            Some(_) => Err(SessionError::WrongLane { frame, lane }),
            None => Err(self.unexpected(frame)),
        }
    }

    fn heard_of_dictionary(&mut self, lane: LaneId, note: &DictionaryNote) -> Result<(), SessionError> {
        match self.phase {
            Phase::Offering { lane: Some(used), .. } | Phase::Preparing { lane: used } if used != lane => {
                Err(SessionError::WrongLane { frame: "DICTIONARY", lane })
            }
            Phase::Offering { lane: Some(_), .. } | Phase::Preparing { .. } if self.dictionary.hear(note) => {
                Ok(())
            }
            _ => Err(SessionError::DictionaryOrder { digest: note.digest }),
        }
    }

    fn acknowledged(&mut self, lane: LaneId, count: u32) -> Result<(), SessionError> {
        let Some(state) = self.lanes.get_mut(&lane) else { return Err(SessionError::UnknownLane { lane }) };
        if count < state.acked || count > state.sent {
            return out_of_range("ACK", u64::from(count), u64::from(state.sent));
        }
        let newly = (count - state.acked) as usize;
        state.acked = count;
        let frames: Vec<InFlight> = state.in_flight.drain(..newly).collect();
        let before = self.progress;
        for frame in frames {
            state.raw_bytes -= u64::from(frame.raw_len);
            if !frame.settled && !self.table.has(frame.block, DONE) {
                self.table.set(frame.block, DONE);
                count_done(&mut self.progress, &frame);
            }
        }
        let committing = matches!(self.phase, Phase::Committing { .. });
        if committing && self.lost_frames && !before.is_all_there() && self.progress.is_all_there() {
            // What a lost lane had brought may have been the last, and COMMITTED have gone on that lane.
            self.tell_again();
        }
        Ok(())
    }

    fn refused(&mut self, lane: LaneId, nack: &Nack) -> Result<(), SessionError> {
        let Some(state) = self.lanes.get_mut(&lane) else { return Err(SessionError::UnknownLane { lane }) };
        let block = self.table.at(nack.entry, nack.offset);
        // A block in full needs no base, so refusing it makes no sense and could go on for ever.
        let frame = state
            .in_flight
            .iter_mut()
            .find(|frame| Some(frame.block) == block && !frame.settled && frame.carried != Carried::Full);
        let Some(frame) = frame else {
            let size = self.table.manifest().entry(nack.entry).map_or(0, |entry| entry.size);
            return out_of_range("offset of a NACK", nack.offset, size);
        };
        frame.settled = true;
        let block = frame.block;
        self.progress.nacks += 1;
        if !self.table.has(block, DONE) {
            self.table.set(block, PLAIN);
            self.table.clear(block, HELD | STAGED);
            self.progress.resent_blocks += 1;
            self.again.push_back(block);
        }
        Ok(())
    }

    fn committed(&mut self, committed: Committed) -> Result<(), SessionError> {
        match self.phase {
            // FINISH was repeated, and the answer to the first one came after all.
            Phase::Done if self.outcome.as_ref() == Some(&committed) => return Ok(()),
            Phase::Done => return Err(self.unexpected("COMMITTED")),
            // FINISH was sent, if only with an offer that was lost and is repeated now.
            _ if self.transfer_digest.is_some() && self.early.is_none() => {}
            _ => return Err(self.unexpected("COMMITTED")),
        }
        let expected = self.table.manifest().transfer_id();
        if committed.transfer_id != expected {
            return Err(SessionError::TransferMismatch { expected, actual: committed.transfer_id });
        }
        if Some(committed.transfer_digest) != self.transfer_digest {
            return Err(SessionError::TransferDigest);
        }
        // Whatever has no ACK yet was stored all the same.
        for frame in self.lanes.values_mut().flat_map(|state| &mut state.in_flight) {
            if !std::mem::replace(&mut frame.settled, true) && !self.table.has(frame.block, DONE) {
                self.table.set(frame.block, DONE);
                count_done(&mut self.progress, frame);
            }
        }
        // So was what was about to be sent, for the first time after the offer was repeated, or again.
        let tasks = self.lanes.values().flat_map(|state| &state.tasks);
        let left = std::mem::replace(&mut self.cursor, self.table.manifest().total_blocks());
        // Of those that are offered again the digests are as they were sent.
        (left..self.cursor).for_each(|block| self.table.set(block, KNOWN));
        for block in self.again.drain(..).chain(tasks.copied()).chain(left..self.cursor) {
            if !self.table.has(block, DONE) {
                self.table.set(block, DONE);
                self.progress.sent_raw_bytes += u64::from(self.table.place(block).2);
                self.progress.blocks_sent += 1;
            }
        }
        self.outcome = Some(committed);
        self.phase = Phase::Done;
        Ok(())
    }

    /// What `lane` should do now. To be asked again after each [`Step::Send`] and each resolved block, and after
    /// [`Step::Wait`] when a frame arrived on any lane or a lane was detached.
    pub fn next(&mut self, lane: LaneId) -> Step {
        if !self.lanes.contains_key(&lane) || self.goes_elsewhere(lane) {
            return Step::Wait;
        }
        if self.phase == Phase::Blocks && self.all_resolved() {
            self.phase = Phase::Telling { lane: None, next_entry: 0 };
        }
        match self.phase {
            Phase::Offering { lane: used, next_entry } if used.is_none_or(|used| used == lane) => {
                self.next_offer(lane, next_entry)
            }
            Phase::Blocks => self.next_block(lane).unwrap_or(Step::Wait),
            Phase::Telling { lane: used, next_entry } => match self.next_block(lane) {
                Some(step) => step,
                None if used == Some(lane) || (used.is_none() && self.may_tell(lane)) => {
                    self.next_telling(lane, next_entry)
                }
                None => Step::Wait,
            },
            Phase::Committing { .. } => self.next_block(lane).unwrap_or(Step::Wait),
            Phase::Done => Step::Done,
            Phase::Preparing { lane: used } if used == lane => {
                self.dictionary.next().map_or(Step::Wait, Step::Send)
            }
            Phase::Offering { .. } | Phase::Preparing { .. } => Step::Wait,
        }
    }

    fn next_offer(&mut self, lane: LaneId, next_entry: Option<u32>) -> Step {
        let manifest = self.table.manifest();
        let count = manifest.entries().len() as u32;
        let Some(first) = next_entry else {
            self.phase = Phase::Offering { lane: Some(lane), next_entry: Some(0) };
            let (number, repeats) = (self.offers, self.offered);
            self.offers = number.saturating_add(1);
            self.offered = repeats.saturating_add(1);
            return Step::Send(Frame::Offer(Offer {
                transfer_id: manifest.transfer_id(),
                block_bytes: manifest.block_bytes(),
                entries: count,
                total_bytes: manifest.total_bytes(),
                base_allowed: self.base_allowed,
                repeats,
                number,
            }));
        };
        if let Some(frame) = self.dictionary.next() {
            return Step::Send(frame);
        }
        let Some(part) = manifest.part_at(first) else { return Step::Wait };
        let next = first + part.entries.len() as u32;
        self.phase = if next == count {
            self.told(lane)
        } else {
            Phase::Offering { lane: Some(lane), next_entry: Some(next) }
        };
        Step::Send(Frame::Manifest(part))
    }

    fn next_telling(&mut self, lane: LaneId, first: u32) -> Step {
        let count = self.table.manifest().entries().len() as u32;
        if first < count {
            let next = count.min(first + WRITTEN_RUN as u32);
            self.phase = Phase::Telling { lane: Some(lane), next_entry: next };
            return Step::Send(Frame::Digests(Digests {
                first_entry: first,
                digests: self.table.trees(first..next),
            }));
        }
        let transfer_digest = match self.transfer_digest {
            Some(digest) => digest,
            None => self.table.manifest().transfer_digest(&self.table.trees(0..count)),
        };
        self.transfer_digest = Some(transfer_digest);
        self.phase = Phase::Committing { lane };
        Step::Send(Frame::Finish(Finish {
            transfer_id: self.table.manifest().transfer_id(),
            transfer_digest,
        }))
    }

    /// Takes what came of a block and gives the frame to send for it, if there is one; a BLOCK is followed by its
    /// body.
    ///
    /// # Errors
    /// [`SessionError::SourceChanged`] when the block is not what it was the last time,
    /// [`SessionError::Resolution`] when the task does not allow this one, and [`SessionError::UnknownLane`] when the
    /// lane was detached meanwhile.
    pub fn resolve(
        &mut self,
        lane: LaneId,
        task: &BlockTask,
        outcome: Resolution,
    ) -> Result<Option<Frame>, SessionError> {
        let (entry, offset) = (task.entry, task.offset);
        let wrong = SessionError::Resolution { entry, offset };
        let Some(state) = self.lanes.get_mut(&lane) else { return Err(SessionError::UnknownLane { lane }) };
        let Some(block) = self.table.at(entry, offset) else { return Err(wrong) };
        let Some(place) = state.tasks.iter().position(|task| *task == block) else { return Err(wrong) };
        let held = self.table.has(block, HELD).then(|| self.table.digest(block));
        let staged = self.table.has(block, STAGED);
        let (digest, allowed) = match &outcome {
            Resolution::Held { digest } => (*digest, staged && held == Some(*digest)),
            Resolution::Same { digest } => {
                (*digest, task.candidate.is_some() || (!staged && held == Some(*digest)))
            }
            Resolution::Block { digest, base_digest, kind, codec, wire_len } => {
                let (needs_base, plain) = (kind.needs_base(), *kind == BlockKind::Plain);
                let fill = *kind != BlockKind::Fill || *wire_len == 1;
                let length = (1..=task.raw_len).contains(wire_len) && (plain || *codec == CodecId::None);
                let base = needs_base == base_digest.is_some() && (!needs_base || task.candidate.is_some());
                let dictionary = *codec != CodecId::ZstdDictionary || self.dictionary.is_agreed();
                (*digest, fill && length && base && dictionary)
            }
        };
        if !allowed {
            return Err(wrong);
        }
        if self.table.has(block, KNOWN) && self.table.digest(block) != digest {
            return Err(SessionError::SourceChanged { entry, offset });
        }
        state.tasks.swap_remove(place);
        if self.phase == Phase::Done || self.table.has(block, DONE) {
            // It was to be sent again, and the receiver turned out to have it.
            state.raw_bytes -= u64::from(task.raw_len);
            return Ok(None);
        }
        let repeated = self.table.has(block, KNOWN);
        let replaces = staged && !matches!(outcome, Resolution::Held { .. });
        self.table.set(block, if replaces { KNOWN | REPLACES } else { KNOWN });
        self.table.set_digest(block, digest);
        let fly = |state: &mut Lane, carried| {
            state.sent += 1;
            state.in_flight.push_back(InFlight {
                block,
                raw_len: task.raw_len,
                carried,
                settled: false,
                repeated,
            });
        };
        Ok(match outcome {
            Resolution::Held { .. } => {
                state.raw_bytes -= u64::from(task.raw_len);
                self.table.set(block, DONE);
                self.progress.held_bytes += u64::from(task.raw_len);
                self.progress.blocks_held += 1;
                None
            }
            Resolution::Same { .. } => {
                fly(state, Carried::Same);
                let first_block = (offset / u64::from(self.table.manifest().block_bytes())) as u32;
                Some(Frame::Same(Same { entry, first_block, digests: vec![digest] }))
            }
            Resolution::Block { base_digest, kind, codec, wire_len, .. } => {
                fly(state, if kind.needs_base() { Carried::Difference } else { Carried::Full });
                self.table.clear(block, HELD | STAGED);
                self.progress.sent_wire_bytes += u64::from(wire_len);
                Some(Frame::Block(BlockHead {
                    entry,
                    raw_len: task.raw_len,
                    offset,
                    kind,
                    codec,
                    digest,
                    base_digest,
                }))
            }
        })
    }

    /// The answer of the receiver, once the transfer is committed.
    #[must_use]
    pub fn outcome(&self) -> Option<Committed> {
        self.outcome.clone()
    }

    /// The manifest of the transfer.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        self.table.manifest()
    }

    /// The tree digest of an entry whose blocks were all looked at; none without an object.
    #[must_use]
    pub fn tree_digest(&self, entry: u32) -> Option<Digest> {
        self.table.tree(entry)
    }

    /// Counts of the transfer.
    #[must_use]
    pub fn progress(&self) -> SenderProgress {
        SenderProgress { phase: self.sender_phase(), ..self.progress }
    }

    fn sender_phase(&self) -> SenderPhase {
        match self.phase {
            Phase::Offering { .. } => SenderPhase::Offering,
            Phase::Preparing { .. } => SenderPhase::Preparing,
            Phase::Blocks => SenderPhase::Blocks,
            Phase::Telling { .. } | Phase::Committing { .. } => SenderPhase::Finishing,
            Phase::Done => SenderPhase::Done,
        }
    }

    fn unexpected(&self, frame: &'static str) -> SessionError {
        SessionError::Unexpected { frame, phase: self.sender_phase().name() }
    }
}

/// What an ERROR of the peer is on this side.
pub(crate) fn peer_error(error: &ErrorFrame) -> SessionError {
    let message = error.message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    SessionError::Peer { code: error.code, retryable: error.retryable, message }
}
