//! What a lane of a sender does while it is up.

use std::sync::MutexGuard;
use std::time::Instant;

use dwcp_codec::Digest;
use dwcp_codec::block::{BlockEncoder, MAX_DICTIONARY_BLOCK_BYTES};
use dwcp_proto::frame::{ErrorCode, Frame};
use dwcp_proto::sender::{BlockTask, LaneId, Resolution, Step};
use dwcp_proto::{Manifest, SessionError};
use dwcp_store::StoreError;

use super::choice::Gauge;
use super::shared::{MAX_INTEGRITY_FAILURES, Shared, State};
use super::turns::Turn;
use crate::cancel::{CANCEL_SLICE, lock};
use crate::dial::{Greeting, WORTHWHILE};
use crate::error::NetError;
use crate::lane::{Lane, guard};
use crate::report::{Event, thread_cpu};
use crate::transport::WakeReceiver;

/// Works on a lane of the session until it ends, and takes it out. Tells whether it was worth making. It was let in, or
/// has a greeting that is yet to be answered.
///
/// # Errors
/// What kept a lane out that had asked to be let in.
pub(crate) fn work(
    shared: &Shared,
    mut lane: Lane,
    (id, epoch): (LaneId, u64),
    wake: WakeReceiver,
    greeting: Option<Greeting>,
) -> Result<bool, NetError> {
    let start = Instant::now();
    let _seat = shared.limiter.seat();
    let (peer, local) = (lane.transport().peer_addr(), lane.transport().local_addr());
    if greeting.is_none() {
        shared.observer.event(Event::LaneUp { lane: id, peer });
    }
    if let Some(selector) = &shared.selector {
        selector.settle(peer.ip() == local.ip());
    }
    let mut worker = Worker {
        shared,
        id,
        epoch,
        wake,
        encoder: BlockEncoder::new(),
        gauge: shared.selector.as_ref().map(Gauge::new),
        block: Vec::new(),
        base: Vec::new(),
        worthwhile: false,
        leaving: false,
        greeting,
        kept_out: false,
    };
    let end = guard(|| {
        let (at_random, distance) = {
            let state = lock(&shared.state);
            (state.telemetry.losses_are_random(), state.distance)
        };
        let sized = shared.options.socket_buffer_bytes.is_some();
        lane.control(&shared.options.congestion, distance, at_random, sized)?;
        lock(&shared.state).watch(id, epoch);
        worker.serve(&mut lane).or_else(|error| worker.hear_out(&mut lane, error))
    });
    let end = match end {
        // The peer has not waited for the answer to its goodbye.
        Err(NetError::PeerClosed { .. } | NetError::Io { .. }) if worker.leaving => Ok(()),
        end => end,
    };
    if worker.kept_out
        && let Err(error) = end
    {
        lock(&shared.state).turn_back(id, epoch);
        shared.changed.notify_all();
        return Err(error);
    }
    let reason = end.as_ref().err().map(ToString::to_string);
    worker.worthwhile |= start.elapsed() >= WORTHWHILE;
    worker.part(&mut lane, end);
    shared.changed.notify_all();
    if worker.greeting.is_none() {
        shared.observer.event(Event::LaneDown { lane: id, reason });
    }
    Ok(worker.worthwhile)
}

struct Worker<'a> {
    shared: &'a Shared,
    id: LaneId,
    epoch: u64,
    wake: WakeReceiver,
    encoder: BlockEncoder,
    /// Measures for the choice among codecs, if there is one.
    gauge: Option<Gauge<'a>>,
    block: Vec<u8>,
    base: Vec<u8>,
    /// The receiver has taken blocks, or this side ended the lane.
    worthwhile: bool,
    /// The peer has said goodbye on this lane.
    leaving: bool,
    /// What the peer has not answered yet.
    greeting: Option<Greeting>,
    /// It has answered otherwise than was hoped for, or not at all.
    kept_out: bool,
}

impl Worker<'_> {
    /// Does what there is to do until the lane ends.
    fn serve(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        let mut cpu = thread_cpu();
        loop {
            self.shared.halt.check()?;
            self.check_greeting()?;
            while !lane.is_queueing() && lane.readable()? {
                if self.hear_greeting(lane)? {
                    continue;
                }
                let (frame, _) = lane.recv()?;
                if frame == Frame::Close {
                    if lock(&self.shared.state).part_with(self.id, self.epoch) {
                        self.leaving = true;
                        continue;
                    }
                    // The receiver learns that everything it had sent before was read.
                    lane.close();
                    return Ok(());
                }
                self.take(frame)?;
            }
            if let Some(gauge) = &mut self.gauge {
                gauge.looked(|| lane.transport().path().and_then(|path| path.unsent_bytes));
            }
            lane.keep_alive()?;
            let now = thread_cpu();
            let spent = now.saturating_sub(std::mem::replace(&mut cpu, now));
            let turn = {
                let mut state = lock(&self.shared.state);
                // Nothing but blocks is entrusted to a lane that may not be let in.
                if self.greeting.is_some() && state.holds_back(self.epoch) {
                    Turn::Step(Step::Wait)
                } else {
                    state.turn(self.id, self.epoch, spent, &self.shared.limiter)
                }
            };
            match turn {
                Turn::Stale(None) => {
                    self.worthwhile = true;
                    lane.close();
                    return Ok(());
                }
                Turn::Linger => {
                    lane.wait_at_most(&self.wake, CANCEL_SLICE)?;
                    if let Some(gauge) = &mut self.gauge {
                        gauge.waited();
                    }
                }
                Turn::Leave => {
                    self.worthwhile = true;
                    lane.close();
                    return Ok(());
                }
                Turn::Stale(Some(error)) => {
                    self.worthwhile = true;
                    lane.fail(error.code, error.retryable, &error.message);
                    return Ok(());
                }
                Turn::Step(Step::Send(frame)) => {
                    if matches!(frame, Frame::Finish(_)) {
                        self.confirm()?;
                    }
                    lane.queue(&frame)?;
                }
                Turn::Step(Step::Block(task)) => self.send_block(lane, &task)?,
                Turn::Step(Step::Wait | Step::Done) => {
                    lane.wait(&self.wake)?;
                    if let Some(gauge) = &mut self.gauge {
                        gauge.waited();
                    }
                }
            }
        }
    }

    /// Takes a part of the answer to the greeting, if that is what comes next.
    fn hear_greeting(&mut self, lane: &mut Lane) -> Result<bool, NetError> {
        let Some(greeting) = &mut self.greeting else { return Ok(false) };
        let heard = greeting.hear_next(lane);
        self.kept_out = heard.is_err();
        if heard?.is_some() {
            self.greeting = None;
            self.shared.observer.event(Event::LaneUp { lane: self.id, peer: lane.transport().peer_addr() });
        }
        Ok(true)
    }

    /// An error if the peer takes too long to answer the greeting.
    fn check_greeting(&mut self) -> Result<(), NetError> {
        let overdue = self.greeting.as_ref().map_or(Ok(()), Greeting::check);
        self.kept_out = overdue.is_err();
        overdue
    }

    /// A peer that has closed a lane while this side was writing may have said why: gives that rather than `error`.
    fn hear_out(&mut self, lane: &mut Lane, error: NetError) -> Result<(), NetError> {
        if !matches!(error, NetError::PeerClosed { .. } | NetError::Io { .. }) {
            return Err(error);
        }
        while lane.readable().unwrap_or(false) {
            if self.hear_greeting(lane)? {
                continue;
            }
            let Ok((frame, _)) = lane.recv() else { break };
            self.take(frame)?;
        }
        Err(error)
    }

    fn take(&mut self, frame: Frame) -> Result<(), NetError> {
        self.worthwhile |= matches!(frame, Frame::Ack(_) | Frame::Committed(_));
        if let (Frame::Ack(count), Some(gauge)) = (&frame, &mut self.gauge) {
            gauge.acknowledged(*count);
        }
        let event = match &frame {
            Frame::Accept(accept) => {
                let progress = lock(&self.shared.state).progress();
                Some(Event::Accepted {
                    transfer: accept.transfer_id,
                    total_bytes: progress.state_bytes_total,
                    staged_bytes: accept.staged_bytes,
                })
            }
            Frame::Nack(nack) => Some(Event::Nack { entry: nack.entry, offset: nack.offset }),
            Frame::Committed(committed) => Some(Event::Committed { transfer: committed.transfer_id }),
            _ => None,
        };
        let asks = matches!(frame, Frame::Fetch(_));
        let mut state = lock(&self.shared.state);
        state.receive(self.id, self.epoch, frame)?;
        let ended = !state.busy();
        drop(state);
        if ended {
            self.shared.changed.notify_all();
        }
        if asks && let Some(registry) = &self.shared.registry {
            registry.wake();
        }
        if let Some(event) = event {
            self.shared.observer.event(event);
        }
        Ok(())
    }

    /// The source has to be at the end what it was at the beginning.
    fn confirm(&self) -> Result<(), NetError> {
        let source = lock(&self.shared.state).job.as_ref().map(|job| std::sync::Arc::clone(&job.source));
        source.map_or(Ok(()), |source| source.confirm().map_err(NetError::from))
    }

    /// Reads a block, finds out what the receiver has of it, and sends the rest.
    fn send_block(&mut self, lane: &mut Lane, task: &BlockTask) -> Result<(), NetError> {
        let source = {
            let state = lock(&self.shared.state);
            match &state.job {
                Some(job) if state.epoch == self.epoch => std::sync::Arc::clone(&job.source),
                _ => return Ok(()),
            }
        };
        let raw = source.block(task.entry, task.offset, task.raw_len, &mut self.block)?;
        if let Some(gauge) = &mut self.gauge {
            gauge.read();
        }
        let digest = Digest::of(raw);
        let mut body: &[u8] = &[];
        let outcome = if task.held == Some(digest) {
            if task.held_is_staged { Resolution::Held { digest } } else { Resolution::Same { digest } }
        } else {
            let base = match task.candidate {
                Some(candidate) if !task.plain => {
                    match source.base(task.entry, candidate, task.offset, task.raw_len, &mut self.base) {
                        Ok(base) => Some(base),
                        Err(error) => {
                            log::debug!("a base cannot be used and the block is sent in full: {error}");
                            None
                        }
                    }
                }
                _ => None,
            };
            if base.is_some_and(|base| same_with_padding(raw, base)) {
                Resolution::Same { digest }
            } else {
                let options = &self.shared.options;
                let dictionary = options
                    .dictionary
                    .as_ref()
                    .filter(|_| task.dictionary && raw.len() <= MAX_DICTIONARY_BLOCK_BYTES);
                let encoded = match (dictionary, &mut self.gauge) {
                    (Some(dictionary), _) => {
                        let width = source.width(task.entry);
                        self.encoder.encode_with(dictionary, options.codec.fixed(), raw, base, width)?
                    }
                    (None, Some(gauge)) => {
                        gauge.encode(&mut self.encoder, raw, base, source.width(task.entry))?
                    }
                    (None, None) => self.encoder.encode(options.codec.fixed(), raw, base)?,
                };
                let base_digest =
                    base.filter(|_| encoded.kind.needs_base()).map(|base| padded_digest(base, raw.len()));
                body = encoded.wire;
                let wire_len = body.len() as u32;
                Resolution::Block { digest, base_digest, kind: encoded.kind, codec: encoded.codec, wire_len }
            }
        };
        let frame = {
            let mut state = lock(&self.shared.state);
            let state = &mut *state;
            match (&mut state.session, &mut state.job) {
                (Some(session), Some(job)) if state.epoch == self.epoch => {
                    if let Resolution::Block { kind, codec, .. } = &outcome {
                        job.tally.block(*kind, *codec, u64::from(task.raw_len), body.len() as u64);
                    }
                    let frame = session
                        .resolve(self.id, task, outcome)
                        .map_err(|error| named(error, &job.manifest))?;
                    state.moves(self.id, matches!(frame, Some(Frame::Block(_))));
                    frame
                }
                _ => return Ok(()),
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        if let Some(gauge) = &mut self.gauge {
            gauge.prepared(u64::from(task.raw_len), body.len() as u64);
        }
        let is_block = matches!(frame, Frame::Block(_));
        // What measures how blocks go has to see them go.
        if is_block && self.gauge.is_none() && lane.queue_block(&frame, body, &self.shared.limiter)? {
            return Ok(());
        }
        if is_block {
            lane.send_block(&frame, body, &self.shared.limiter, &self.shared.halt)?;
        } else {
            lane.send(&frame)?;
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.written();
            // A ring may tell of what was before, and is no answer.
            while let Some(time) = gauge.worth_waiting()
                && !lane.readable()?
            {
                self.shared.halt.check()?;
                lane.listen(&self.wake, time)?;
                gauge.waited();
            }
        }
        Ok(())
    }

    /// Decides what the end of the lane means for the transfer.
    fn part(&self, lane: &mut Lane, end: Result<(), NetError>) {
        let mut state = lock(&self.shared.state);
        state.progressed |= self.worthwhile && state.epoch == self.epoch;
        // The end of a lane of an earlier session says nothing of the present job.
        if state.epoch != self.epoch || self.shared.halt.is_cancelled() {
            return;
        }
        if let Some(job) = &mut state.job {
            job.tally.lanes_lost += u32::from(end.is_err());
        }
        let Err(error) = end else {
            state.detach(self.id, self.epoch);
            return;
        };
        let altered = match &error {
            NetError::Tls { .. } => true,
            NetError::Proto(_) => !lane.encrypted(),
            NetError::Peer { code: ErrorCode::Integrity | ErrorCode::Format, retryable, .. } => *retryable,
            _ => false,
        };
        if altered {
            self.count_altered(lane, state, error);
            return;
        }
        match error {
            NetError::Io { .. } | NetError::PeerClosed { .. } | NetError::Deadline { .. } => {
                log::debug!("lane {} was lost: {error}", self.id);
                state.detach(self.id, self.epoch);
                if state.lanes.is_empty() {
                    state.last_failure = Some(error);
                }
            }
            error => {
                let told = matches!(error, NetError::Peer { .. });
                let (code, retryable, text) = (error.code(), error.resumable(), error.for_peer());
                state.detach(self.id, self.epoch);
                if state.busy() {
                    state.fail(error);
                } else {
                    state.renew(None);
                    state.broken = Some(error);
                }
                drop(state);
                if !told {
                    lane.fail(code, retryable, &text);
                }
            }
        }
    }

    /// Altered bytes cost the lane; too many of them cost the transfer.
    fn count_altered(&self, lane: &mut Lane, mut state: MutexGuard<'_, State>, error: NetError) {
        let reason = error.to_string();
        state.detach(self.id, self.epoch);
        if let Some(job) = &mut state.job {
            job.tally.integrity_failures += 1;
            let times = job.tally.integrity_failures;
            if times >= MAX_INTEGRITY_FAILURES {
                state.fail(NetError::Integrity { times, reason: reason.clone() });
            }
        }
        drop(state);
        log::warn!("bytes were altered on the way, the lane is replaced: {reason}");
        if matches!(error, NetError::Proto(_)) {
            lane.fail(error.code(), true, &reason);
        }
        self.shared.observer.event(Event::IntegrityFailure { reason });
    }
}

/// Names the file that is not what it was when a block of it was read before.
fn named(error: SessionError, manifest: &Manifest) -> NetError {
    let entry = match error {
        SessionError::SourceChanged { entry, .. } => manifest.entry(entry),
        _ => None,
    };
    entry.map_or_else(
        || error.into(),
        |entry| {
            StoreError::SourceChanged { path: String::from_utf8_lossy(&entry.path).into_owned().into() }
                .into()
        },
    )
}

/// Whether `raw` is `base` with zero bytes behind its end.
fn same_with_padding(raw: &[u8], base: &[u8]) -> bool {
    let (same, rest) = raw.split_at(base.len().min(raw.len()));
    same == &base[..same.len()] && rest.iter().all(|byte| *byte == 0)
}

/// The digest of the base block: as long as the block, with zero bytes where the base has none.
fn padded_digest(base: &[u8], length: usize) -> Digest {
    if base.len() >= length {
        return Digest::of(&base[..length]);
    }
    let mut padded = base.to_vec();
    padded.resize(length, 0);
    Digest::of(&padded)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::super::tests::sender;
    use super::*;
    use crate::cancel::Cancel;
    use crate::transport::{Patience, TcpTransport, wake_pair};

    #[test]
    fn only_the_lanes_of_its_own_session_are_lost_to_a_transfer() {
        let (shared, _) = sender();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let patience = Patience::for_time(Duration::from_secs(10));
        let transport = Box::new(TcpTransport::new(stream).unwrap());
        let mut lane = Lane::new(transport, false, patience, &Cancel::new());
        // The present session comes after that of one of them.
        lock(&shared.state).epoch = 1;
        for (epoch, lost) in [(0, 0), (1, 1)] {
            let worker = Worker {
                shared: &shared,
                id: 0,
                epoch,
                wake: wake_pair().unwrap().1,
                encoder: BlockEncoder::new(),
                gauge: None,
                block: Vec::new(),
                base: Vec::new(),
                worthwhile: false,
                leaving: false,
                greeting: None,
                kept_out: false,
            };
            worker.part(&mut lane, Err(NetError::PeerClosed { phase: "sending", hint: None }));
            let state = lock(&shared.state);
            assert_eq!(state.job.as_ref().map(|job| job.tally.lanes_lost), Some(lost));
        }
    }
}
