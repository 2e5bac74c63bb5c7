//! The thread of one lane of a receiver.

mod in_place;

use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::{Duration, Instant};

use dwcp_codec::block::{BlockDecoder, BlockKind};
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::frame::{BlockHead, ErrorCode, Frame, NackReason, Same};
use dwcp_proto::receiver::{Action, LaneId, ReceiverPhase};
use dwcp_proto::{Manifest, SessionError};
use dwcp_store::{Sink, StoreError};

use super::shared::Session;
use crate::cancel::{CANCEL_SLICE, lock, wait};
use crate::dial::WORTHWHILE;
use crate::error::NetError;
use crate::lane::{Lane, guard};
use crate::report::{Event, thread_cpu};
use crate::transport::WakeReceiver;

/// An ACK is sent after this many frames or bytes of blocks, or as soon as no more data is there. What a lost lane had
/// no ACK for is sent again, and an ACK costs little beside a block.
const ACK_EVERY: u32 = 16;
const ACK_EVERY_BYTES: u64 = 1 << 20;

/// This many times altered bytes are taken again; then the path is not fit for use.
const MAX_INTEGRITY_FAILURES: u32 = 3;

/// How long a session waits for an earlier one to let go of the staging.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// How often a lane that waits for the sink looks again.
const GATE_SLICE: Duration = Duration::from_millis(20);

/// Serves a lane that has joined `session` until it ends, and takes it out of the session.
pub(crate) fn run(session: &Session, mut lane: Lane, id: LaneId, wake: WakeReceiver) {
    session.observer.event(Event::LaneUp { lane: id, peer: lane.transport().peer_addr() });
    let (started, cpu) = (Instant::now(), thread_cpu());
    let mut worker = Worker {
        session,
        id,
        wake,
        decoder: BlockDecoder::new(),
        raw: Vec::new(),
        wire: Vec::new(),
        base: Vec::new(),
        unacknowledged: 0,
        unacknowledged_bytes: 0,
        cpu,
        parted: false,
    };
    let end = guard(|| worker.serve(&mut lane));
    let reason = end.as_ref().err().map(ToString::to_string);
    lock(&session.state).progressed |= started.elapsed() >= WORTHWHILE;
    worker.count_cpu();
    worker.part(lane, end);
    session.changed.notify_all();
    session.observer.event(Event::LaneDown { lane: id, reason });
}

struct Worker<'a> {
    session: &'a Session,
    id: LaneId,
    wake: WakeReceiver,
    decoder: BlockDecoder,
    raw: Vec<u8>,
    wire: Vec<u8>,
    base: Vec<u8>,
    unacknowledged: u32,
    unacknowledged_bytes: u64,
    cpu: Duration,
    /// CLOSE was sent.
    parted: bool,
}

impl<'a> Worker<'a> {
    /// Takes frames until the lane ends in peace or with an error.
    fn serve(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        loop {
            self.session.cancel.check()?;
            if self.over() {
                return Ok(());
            }
            if self.is_to_confirm() {
                return self.await_confirmation(lane);
            }
            self.ask(lane)?;
            if !self.parted && lock(&self.session.state).is_surplus(self.id) {
                // What is under way still comes, until the sender answers.
                self.parted = true;
                lane.send(&Frame::Close)?;
            }
            if !lane.readable()? {
                self.acknowledge(lane)?;
                lane.wait(&self.wake)?;
                continue;
            }
            let (frame, body_len) = lane.recv()?;
            let action = {
                let mut state = lock(&self.session.state);
                state.heard = Instant::now();
                // Whoever leaves says goodbye on each lane, and nothing after it. Copies of blocks that are in place by now
                // were sent before.
                let late = state.transfer.is_none() && matches!(frame, Frame::Block(_) | Frame::Same(_));
                state.goodbye &= late || frame == Frame::KeepAlive;
                state.session.receive(self.id, frame)?
            };
            match action {
                Action::None => self.drop_body(lane, body_len)?,
                Action::Store(head) => {
                    self.store(lane, &head, body_len)?;
                    self.settle(lane)?;
                }
                Action::Copy(same) => {
                    self.copy(lane, &same)?;
                    self.settle(lane)?;
                }
                Action::Prepare(manifest, base_allowed) => self.prepare(lane, &manifest, base_allowed)?,
                Action::Commit => self.commit(lane)?,
                Action::Mismatch { entries } => return Err(self.discard(lane, &entries)),
                Action::Answer(frame) => lane.send(&frame)?,
                Action::Recommitted(frame) => {
                    lock(&self.session.state).unconfirmed = Some(self.id);
                    lane.send(&frame)?;
                }
                Action::Closed => {
                    self.closed();
                    return Ok(());
                }
            }
            if self.unacknowledged >= ACK_EVERY || self.unacknowledged_bytes >= ACK_EVERY_BYTES {
                self.acknowledge(lane)?;
            }
            lane.keep_alive()?;
        }
    }

    /// Asks for a transfer, if this side is the one to do so and no other lane has done it.
    fn ask(&self, lane: &mut Lane) -> Result<(), NetError> {
        let frame = lock(&self.session.state).asking.as_mut().and_then(|asking| asking.next(self.id));
        frame.map_or(Ok(()), |frame| lane.send(&frame))
    }

    fn over(&self) -> bool {
        lock(&self.session.state).ended.is_some()
    }

    /// Whether the session is to end once the sender has read what went out on this lane.
    fn is_to_confirm(&self) -> bool {
        let state = lock(&self.session.state);
        state.leaving && state.unconfirmed == Some(self.id)
    }

    /// Says goodbye, and waits for the sender to answer that it has read so far, or to go on to another transfer. What it
    /// may have sent before it has read COMMITTED shows nothing: copies of blocks, and FINISH because another lane was
    /// lost.
    fn await_confirmation(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        self.parted = true;
        lane.send(&Frame::Close)?;
        while !self.over() {
            self.session.cancel.check()?;
            if !lane.readable()? {
                self.acknowledge(lane)?;
                lane.listen(&self.wake, CANCEL_SLICE)?;
                continue;
            }
            let (frame, body_len) = lane.recv()?;
            if matches!(frame, Frame::Close | Frame::Offer(_)) {
                self.confirm();
                break;
            }
            // COMMITTED went out on this lane before the goodbye: a FINISH that comes now has its answer.
            lock(&self.session.state).session.receive(self.id, frame)?;
            self.drop_body(lane, body_len)?;
        }
        Ok(())
    }

    /// Notes that the sender knows that its transfer is in place.
    fn confirm(&self) {
        lock(&self.session.state).unconfirmed = None;
        self.session.changed.notify_all();
    }

    fn acknowledge(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        self.queue_acknowledgement(lane)?;
        lane.flush()
    }

    fn queue_acknowledgement(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        (self.unacknowledged, self.unacknowledged_bytes) = (0, 0);
        let frame = lock(&self.session.state).session.acknowledge(self.id);
        frame.map_or(Ok(()), |frame| lane.queue(&frame))
    }

    /// Where the transfer under way goes; none when it, or the session, has ended.
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        lock(&self.session.state).sink.clone()
    }

    fn drop_body(&mut self, lane: &mut Lane, body_len: usize) -> Result<(), NetError> {
        self.wire.resize(body_len, 0);
        take_body(self.session, lane, &mut self.wire)
    }

    /// Takes the body of a block, proves it, and stores it.
    fn store(&mut self, lane: &mut Lane, head: &BlockHead, body_len: usize) -> Result<(), NetError> {
        // Both lengths were checked: by the block size of the transfer, and by the frame's own limits, which leave a plain
        // body without a codec no other length than that of the block.
        let as_it_is = head.kind == BlockKind::Plain && head.codec == CodecId::None;
        if as_it_is && let Some((sink, claim)) = self.claim(head) {
            return self.store_in_place(lane, head, &sink, claim);
        }
        self.raw.resize(head.raw_len as usize, 0);
        if as_it_is {
            take_body(self.session, lane, &mut self.raw)?;
        } else {
            self.wire.resize(body_len, 0);
            take_body(self.session, lane, &mut self.wire)?;
        }
        self.unacknowledged += 1;
        self.unacknowledged_bytes += u64::from(head.raw_len);
        let (sink, dictionary) = {
            let mut state = lock(&self.session.state);
            // While its body was under way, another lane may have brought the same block, and the transfer may even be
            // in place: there is no sink then, but the sender still waits to hear of this copy.
            if state.session.came_before(self.id, head) {
                return Ok(());
            }
            let with_dictionary = head.codec == CodecId::ZstdDictionary;
            (state.sink.clone(), state.session.dictionary().filter(|_| with_dictionary))
        };
        let Some(sink) = sink else { return Ok(()) };
        if let Some(base_digest) = &head.base_digest {
            self.base.resize(head.raw_len as usize, 0);
            let refused = if !sink.base(head.entry, head.offset, &mut self.base)? {
                Some(NackReason::NoBase)
            } else if Digest::of(&self.base) != *base_digest {
                Some(NackReason::BaseDiffers)
            } else {
                None
            };
            if let Some(reason) = refused {
                return self.refuse(lane, head.entry, head.offset, reason);
            }
        }
        if !as_it_is {
            let base = head.base_digest.is_some().then_some(self.base.as_slice());
            let decoded = match &dictionary {
                Some(dictionary) => self.decoder.decode_with(dictionary, &self.wire, &mut self.raw),
                None => self.decoder.decode(head.kind, head.codec, &self.wire, base, &mut self.raw),
            };
            decoded.map_err(|error| altered(format!("a block cannot be decoded: {error}")))?;
        }
        if Digest::of(&self.raw) != head.digest {
            return Err(another_digest(head));
        }
        self.put(&*sink, head.entry, head.offset, head.digest)?;
        self.note_stored(head, body_len as u32);
        Ok(())
    }

    fn note_stored(&self, head: &BlockHead, body_len: u32) {
        let mut state = lock(&self.session.state);
        state.stored(self.id, head.entry, head.offset, head.digest, body_len);
        state.tally.block(head.kind, head.codec, u64::from(head.raw_len), u64::from(body_len));
    }

    /// Keeps others from being alone with the sink.
    fn share(&self) -> RwLockReadGuard<'a, ()> {
        self.session.gate.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Copies blocks from the announced base, after having proven each.
    fn copy(&mut self, lane: &mut Lane, same: &Same) -> Result<(), NetError> {
        let (sink, manifest) = {
            let state = lock(&self.session.state);
            (state.sink.clone(), state.session.manifest())
        };
        // The sink is gone when the transfer is in place.
        let (Some(sink), Some(manifest)) = (sink, manifest) else { return Ok(()) };
        self.unacknowledged += 1;
        for (index, digest) in same.digests.iter().enumerate() {
            self.session.cancel.check()?;
            if self.over() {
                break;
            }
            let block = same.first_block + index as u32;
            let offset = u64::from(block) * u64::from(manifest.block_bytes());
            self.raw.resize(manifest.block_len(same.entry, block) as usize, 0);
            if !sink.base(same.entry, offset, &mut self.raw)? {
                self.refuse(lane, same.entry, offset, NackReason::NoBase)?;
            } else if Digest::of(&self.raw) != *digest {
                self.refuse(lane, same.entry, offset, NackReason::BaseDiffers)?;
            } else {
                self.put(&*sink, same.entry, offset, *digest)?;
                lock(&self.session.state).stored(self.id, same.entry, offset, *digest, 0);
            }
            lane.keep_alive()?;
        }
        Ok(())
    }

    fn put(&self, sink: &dyn Sink, entry: u32, offset: u64, digest: Digest) -> Result<(), NetError> {
        let _share = self.share();
        Ok(sink.store(entry, offset, &self.raw, digest)?)
    }

    fn refuse(&self, lane: &mut Lane, entry: u32, offset: u64, reason: NackReason) -> Result<(), NetError> {
        let frame = lock(&self.session.state).session.refused(self.id, entry, offset, reason);
        self.session.observer.event(Event::Nack { entry, offset });
        lane.send(&frame)
    }

    /// Waits for a sink, has it look for what it holds, and tells the sender.
    fn prepare(&self, lane: &mut Lane, manifest: &Arc<Manifest>, base_allowed: bool) -> Result<(), NetError> {
        let transfer = manifest.transfer_id();
        let is_awaited = {
            let mut state = lock(&self.session.state);
            state.begin(transfer)?;
            state.is_start_awaited()
        };
        if is_awaited {
            self.session.changed.notify_all();
        }
        let others = self.session.registry.take_over(manifest, self.session);
        let patience = Instant::now() + TAKE_OVER;
        while Instant::now() < patience
            && others.iter().any(|other| {
                let state = lock(&other.state);
                state.sink.is_some() || state.has_lanes()
            })
        {
            self.pause(lane, GATE_SLICE)?;
        }
        let sink = loop {
            if let Some(sink) = self.sink() {
                break sink;
            }
            // Whoever is to take it may still wait for the session that this one follows.
            self.session.registry.take_over(manifest, self.session);
            self.pause(lane, CANCEL_SLICE)?;
        };
        let gate = self.enter_alone(lane)?;
        let again = {
            let mut state = lock(&self.session.state);
            if !state.session.is_preparing(self.id) {
                // The offer came again on another lane meanwhile, and what it is of may even be in place.
                return Ok(());
            }
            std::mem::replace(&mut state.prepared, true)
        };
        if again {
            // The offer is repeated, since its lane was lost.
            sink.abort();
        }
        let prepared = self.ticking(lane, |tick| sink.prepare(manifest, base_allowed, tick))?;
        if lane.closer().has_left() {
            // All of a short state may have come. Its sender counts it as failed, and may have others by now.
            lock(&self.session.state).session.give_up(self.id);
            return Ok(());
        }
        let staged_bytes = prepared.staged_bytes;
        let frames = lock(&self.session.state).session.prepared(self.id, prepared.haves, staged_bytes)?;
        drop(gate);
        frames.iter().try_for_each(|frame| lane.queue(frame))?;
        lane.flush()?;
        let total_bytes = manifest.total_bytes();
        self.session.observer.event(Event::Accepted { transfer, total_bytes, staged_bytes });
        Ok(())
    }

    /// Has everything put in place, and tells the sender.
    fn commit(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        let gate = self.enter_alone(lane)?;
        // Another lane may have done it while this one waited: there is no sink then, or that of the next transfer.
        let sink = {
            let state = lock(&self.session.state);
            state.sink.clone().filter(|_| state.session.progress().phase == ReceiverPhase::Committing)
        };
        if let Some(sink) = &sink {
            self.ticking(lane, |tick| sink.commit(tick))?;
        }
        self.count_cpu();
        self.queue_acknowledgement(lane)?;
        let (frame, report) = {
            let mut state = lock(&self.session.state);
            let frame = state.session.committed()?;
            let report = match &frame {
                Frame::Committed(committed) if sink.is_some() && state.sink.is_some() => {
                    // From here on the next offer may come: it waits for a sink of its own.
                    Some(state.finish(committed, self.session.peer))
                }
                _ => None,
            };
            state.unconfirmed = Some(self.id);
            (frame, report)
        };
        drop(gate);
        // The sender hears of it first: the caller may end the process as soon as it knows.
        let sent = lane.send(&frame);
        if let Some(report) = report {
            let transfer = report.transfer_id;
            lock(&self.session.state).tell(report);
            self.session.changed.notify_all();
            self.session.observer.event(Event::Committed { transfer });
        }
        sent
    }

    /// Does what FINISH asks for, if it has come before the block that was missing.
    fn settle(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        let action = lock(&self.session.state).session.settle();
        match action {
            Action::Commit => {
                self.acknowledge(lane)?;
                self.commit(lane)
            }
            Action::Mismatch { entries } => Err(self.discard(lane, &entries)),
            _ => Ok(()),
        }
    }

    /// Throws away what is not what the sender meant; gives the failure that ends the session.
    fn discard(&self, lane: &mut Lane, entries: &[u32]) -> NetError {
        let discarded = self.enter_alone(lane).and_then(|_gate| match self.sink() {
            Some(sink) => Ok(sink.discard(entries)?),
            None => Ok(()),
        });
        if let Err(error) = discarded {
            log::warn!("cannot discard what was staged of {} entries: {error}", entries.len());
        }
        SessionError::TransferDigest.into()
    }

    /// Lets time pass with signs of life for the sender.
    fn pause(&self, lane: &mut Lane, time: Duration) -> Result<(), NetError> {
        self.session.cancel.check()?;
        lane.keep_alive()?;
        let state = lock(&self.session.state);
        if state.ended.is_some() {
            return Err(NetError::Cancelled);
        }
        drop(wait(&self.session.changed, state, time));
        Ok(())
    }

    /// Waits until no other lane uses the sink.
    fn enter_alone(&self, lane: &mut Lane) -> Result<RwLockWriteGuard<'a, ()>, NetError> {
        let session = self.session;
        loop {
            match session.gate.try_write() {
                Ok(gate) => return Ok(gate),
                Err(TryLockError::Poisoned(gate)) => return Ok(gate.into_inner()),
                Err(TryLockError::WouldBlock) => self.pause(lane, GATE_SLICE)?,
            }
        }
    }

    /// Does long work of the sink with signs of life for the sender.
    fn ticking<T>(
        &self,
        lane: &mut Lane,
        work: impl FnOnce(&mut dwcp_store::Tick<'_>) -> Result<T, StoreError>,
    ) -> Result<T, NetError> {
        let mut lost = None;
        let result = work(&mut || {
            let alive = self.session.cancel.check().and_then(|()| lane.keep_alive());
            if alive.is_err() || self.over() {
                lost = alive.err();
                return Err(StoreError::Cancelled);
            }
            Ok(())
        });
        match (result, lost) {
            (Err(StoreError::Cancelled), Some(error)) => Err(error),
            (Err(StoreError::Cancelled), None) => Err(NetError::Cancelled),
            (result, _) => Ok(result?),
        }
    }

    /// The sender has ended this lane in peace. The end of the last one ends the session.
    fn closed(&self) {
        lock(&self.session.state).part_with(self.id, self.parted);
    }

    fn count_cpu(&mut self) {
        let now = thread_cpu();
        lock(&self.session.state).tally.cpu += now.saturating_sub(self.cpu);
        self.cpu = now;
    }

    /// Decides what the end of the lane means for the session.
    fn part(&self, mut lane: Lane, end: Result<(), NetError>) {
        let mut state = lock(&self.session.state);
        if self.session.cancel.is_cancelled() {
            state.end(Some(NetError::Cancelled), false);
            state.detach(self.id);
            return;
        }
        if let Some(parting) = state.ended.as_ref().map(|_| state.parting.clone()) {
            drop(state);
            match parting {
                _ if self.parted => {}
                Some(error) => lane.fail(error.code, error.retryable, &error.message),
                None => lane.close(),
            }
            lock(&self.session.state).detach(self.id);
            return;
        }
        let Err(error) = end else {
            state.detach(self.id);
            return;
        };
        state.tally.lanes_lost += 1;
        let altered = match &error {
            NetError::Tls { .. } => true,
            NetError::Proto(_) => !lane.encrypted(),
            NetError::Integrity { .. } => true,
            NetError::Peer { code: ErrorCode::Integrity | ErrorCode::Format, retryable, .. } => *retryable,
            _ => false,
        };
        let told = matches!(error, NetError::Peer { .. } | NetError::Tls { .. });
        let (text, for_peer) = (error.to_string(), error.for_peer());
        if altered {
            state.tally.integrity_failures += 1;
            let times = state.tally.integrity_failures;
            let tolerable = times < MAX_INTEGRITY_FAILURES;
            let code = error.code();
            if tolerable {
                state.last_failure = Some(error);
            } else {
                state.end(Some(NetError::Integrity { times, reason: text.clone() }), true);
            }
            drop(state);
            log::warn!("altered bytes on lane {}: {text}", self.id);
            if !told && !self.parted {
                lane.fail(code, tolerable, &for_peer);
            }
            lock(&self.session.state).detach(self.id);
            self.session.observer.event(Event::IntegrityFailure { reason: text });
            return;
        }
        match error {
            NetError::Io { .. } | NetError::PeerClosed { .. } | NetError::Deadline { .. } => {
                log::debug!("lane {} was lost: {text}", self.id);
                state.last_failure = Some(error);
                state.detach(self.id);
            }
            error => {
                let (code, retryable) = (error.code(), error.resumable());
                state.end(Some(error), !told);
                drop(state);
                if !told && !self.parted {
                    lane.fail(code, retryable, &for_peer);
                }
                lock(&self.session.state).detach(self.id);
            }
        }
    }
}

/// Takes a body. Over a link that many share that may last; meanwhile each piece shows that the sender is there.
pub(super) fn take_body(session: &Session, lane: &mut Lane, body: &mut [u8]) -> Result<(), NetError> {
    const PIECE: usize = 128 << 10;
    for (number, piece) in body.chunks_mut(PIECE).enumerate() {
        if number > 0 {
            lock(&session.state).heard = Instant::now();
        }
        lane.recv_bytes(piece)?;
    }
    Ok(())
}

fn another_digest(head: &BlockHead) -> NetError {
    altered(format!("the block at offset {} of entry {} has another digest", head.offset, head.entry))
}

/// Bytes that are not what their digest says.
fn altered(reason: String) -> NetError {
    NetError::Integrity { times: 1, reason }
}
