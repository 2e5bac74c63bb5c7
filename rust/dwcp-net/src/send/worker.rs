//! The thread of one lane: makes it, works on it, and makes it again when it was lost.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use dwcp_codec::Digest;
use dwcp_codec::block::{BlockEncoder, MAX_DICTIONARY_BLOCK_BYTES};
use dwcp_proto::frame::{ErrorCode, Frame};
use dwcp_proto::sender::{BlockTask, LaneId, Resolution, Step};
use dwcp_proto::{Manifest, SessionError};
use dwcp_store::StoreError;

use super::choice::Gauge;
use super::shared::{Link, MAX_INTEGRITY_FAILURES, Shared, State};
use super::turns::Turn;
use crate::cancel::{CANCEL_SLICE, lock, wait};
use crate::dial::{Dialled, Plan, WORTHWHILE, backoff, open_lane};
use crate::error::{NetError, plain};
use crate::lane::{Lane, guard};
use crate::report::{Event, thread_cpu};
use crate::transport::{LinkKind, WakeReceiver, wake_pair};

/// Runs lane `number` until the session is closed.
pub(super) fn run(shared: &Shared, plan: &Plan, number: u16, first: Option<Dialled>) {
    let mut ready = first.map(|dialled| (dialled, 0));
    let mut attempts = 0;
    while let Some((dialled, epoch)) = ready.take().or_else(|| make_lane(shared, plan, number, &mut attempts))
    {
        match live(shared, dialled, number, epoch) {
            Ok(true) => attempts = 0,
            Ok(false) => {
                attempts += 1;
                if shared.cancel.sleep(backoff(attempts)).is_err() {
                    return;
                }
            }
            Err(error) => {
                log::debug!("lane {number} could not start: {error}");
                return;
            }
        }
    }
}

/// Makes a lane once there is work; none when the session is closed, or this lane is not wanted any more.
fn make_lane(shared: &Shared, plan: &Plan, number: u16, attempts: &mut u32) -> Option<(Dialled, u64)> {
    loop {
        let (epoch, link) = await_need(shared, number)?;
        let join = link.as_ref().map(|link| (link.id, link.key));
        let made = open_lane(plan, number, join, (&shared.cancel, &shared.halt));
        let mut state = lock(&shared.state);
        if link.is_none() {
            state.opening = false;
            shared.changed.notify_all();
        }
        let error = match made {
            Ok(dialled) if link.is_some() => return Some((dialled, epoch)),
            Ok(dialled) => {
                state.open(&dialled.welcome);
                let epoch = state.epoch;
                drop(state);
                shared.observer.event(Event::SessionOpened { peer: dialled.lane.transport().peer_addr() });
                return Some((dialled, epoch));
            }
            Err(error) => error,
        };
        let alone = state.epoch == epoch && state.lanes.is_empty();
        let joining = link.is_some();
        match &error {
            // The receiver does not know the session any more: a new one is opened.
            NetError::Peer { code: ErrorCode::Auth, .. } if joining && alone => {
                state.renew(None);
                continue;
            }
            NetError::Peer { code: ErrorCode::Auth, message, .. } if !joining => {
                let reason = format!("the peer reports: {}", plain(message));
                state.fail(NetError::Auth { reason });
            }
            // The receiver still counts lanes that are lost, and will notice.
            NetError::Peer { code: ErrorCode::Limit, .. } if joining => {
                attempt_later(shared, state, error, attempts)?;
                continue;
            }
            NetError::Auth { .. } | NetError::Version { .. } | NetError::Peer { retryable: false, .. }
                if alone =>
            {
                state.fail(error);
            }
            _ => {
                attempt_later(shared, state, error, attempts)?;
                continue;
            }
        }
        shared.changed.notify_all();
    }
}

/// Waits before the next attempt to make a lane, after `error`; none when the session is closed meanwhile.
fn attempt_later(
    shared: &Shared,
    mut state: MutexGuard<'_, State>,
    error: NetError,
    attempts: &mut u32,
) -> Option<()> {
    let reason = error.to_string();
    state.last_failure = Some(error);
    drop(state);
    *attempts += 1;
    let after = backoff(*attempts);
    shared.observer.event(Event::Reconnecting { attempt: *attempts, after, reason });
    shared.cancel.sleep(after).ok()
}

/// Waits until a lane is needed. Tells the epoch and the session to join, or that this lane is to open one.
fn await_need(shared: &Shared, number: u16) -> Option<(u64, Option<Link>)> {
    let mut state = lock(&shared.state);
    loop {
        if state.closing || shared.cancel.is_cancelled() || number >= state.wanted {
            return None;
        }
        if state.needs_lane(number) {
            match &state.link {
                Some(link) if number < link.max_lanes => return Some((state.epoch, Some(link.clone()))),
                Some(_) => {}
                None if !state.opening => {
                    state.opening = true;
                    return Some((state.epoch, None));
                }
                None => {}
            }
        }
        state = wait(&shared.changed, state, CANCEL_SLICE * 4);
    }
}

/// Takes a lane that was made into the session, and works on it. Tells whether it was worth making.
fn live(shared: &Shared, dialled: Dialled, number: u16, epoch: u64) -> Result<bool, NetError> {
    let link = dialled.link();
    let Dialled { mut lane, round_trip, answer_time, passed_over, .. } = dialled;
    let (waker, wake) = wake_pair()?;
    let id = {
        let mut state = lock(&shared.state);
        if state.epoch != epoch {
            drop(state);
            lane.close();
            return Ok(true);
        }
        state.carried_by = (link, passed_over);
        if link == LinkKind::Tcp {
            state.round_trip = Some(state.round_trip.map_or(round_trip, |known| known.min(round_trip)));
        }
        state.attach(number, waker, lane.closer())
    };
    Ok(work(shared, lane, (id, epoch), wake, Some(answer_time)))
}

/// Works on a lane of the session until it ends, and takes it out. Tells whether it was worth making. `answer_time` is
/// how long the peer took to answer, where this side has dialled.
pub(crate) fn work(
    shared: &Shared,
    mut lane: Lane,
    (id, epoch): (LaneId, u64),
    wake: WakeReceiver,
    answer_time: Option<Duration>,
) -> bool {
    let start = Instant::now();
    let _seat = shared.limiter.seat();
    let (peer, local) = (lane.transport().peer_addr(), lane.transport().local_addr());
    shared.observer.event(Event::LaneUp { lane: id, peer });
    if let Some(selector) = &shared.selector {
        selector.settle(peer.ip() == local.ip(), answer_time);
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
    };
    let end = guard(|| {
        let (at_random, distance) = {
            let state = lock(&shared.state);
            (state.telemetry.losses_are_random(), state.distance)
        };
        let sized = shared.options.socket_buffer_bytes.is_some();
        lane.control(&shared.options.congestion, distance, at_random, sized)?;
        worker.serve(&mut lane).or_else(|error| worker.hear_out(&mut lane, error))
    });
    let end = match end {
        // The peer has not waited for the answer to its goodbye.
        Err(NetError::PeerClosed { .. } | NetError::Io { .. }) if worker.leaving => Ok(()),
        end => end,
    };
    let reason = end.as_ref().err().map(ToString::to_string);
    worker.worthwhile |= start.elapsed() >= WORTHWHILE;
    worker.part(&mut lane, end);
    shared.changed.notify_all();
    shared.observer.event(Event::LaneDown { lane: id, reason });
    worker.worthwhile
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
}

impl Worker<'_> {
    /// Does what there is to do until the lane ends.
    fn serve(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        let mut cpu = thread_cpu();
        loop {
            self.shared.halt.check()?;
            while lane.readable()? {
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
            let turn = lock(&self.shared.state).turn(self.id, self.epoch, spent, &self.shared.limiter);
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
                    lane.send(&frame)?;
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

    /// A peer that has closed a lane while this side was writing may have said why: gives that rather than `error`.
    fn hear_out(&mut self, lane: &mut Lane, error: NetError) -> Result<(), NetError> {
        if !matches!(error, NetError::PeerClosed { .. } | NetError::Io { .. }) {
            return Err(error);
        }
        while lane.readable().unwrap_or(false) {
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
                    session.resolve(self.id, task, outcome).map_err(|error| named(error, &job.manifest))?
                }
                _ => return Ok(()),
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        if let Some(gauge) = &mut self.gauge {
            gauge.prepared(u64::from(task.raw_len), body.len() as u64);
        }
        if matches!(frame, Frame::Block(_)) {
            lane.send_block(&frame, body, &self.shared.limiter, &self.shared.halt)?;
        } else {
            lane.send(&frame)?;
        }
        if let Some(gauge) = &mut self.gauge {
            let worth_waiting = gauge.written();
            if !worth_waiting.is_zero() {
                lane.listen(&self.wake, worth_waiting)?;
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

    use super::super::tests::sender;
    use super::*;
    use crate::cancel::Cancel;
    use crate::transport::{Patience, TcpTransport};

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
            };
            worker.part(&mut lane, Err(NetError::PeerClosed { phase: "sending", hint: None }));
            let state = lock(&shared.state);
            assert_eq!(state.job.as_ref().map(|job| job.tally.lanes_lost), Some(lost));
        }
    }
}
