//! Work on one lane, the same on both sides.

use std::sync::Arc;
use std::time::Instant;

use dwcp_codec::block::{BlockDecoder, BlockEncoder, BlockKind};
use dwcp_codec::{Codec, CodecId, Digest};
use dwcp_proto::LaneId;
use dwcp_proto::frame::{ErrorFrame, Frame, RecordHead, RecordWord, Taken};
use dwcp_proto::relay::{Record, RecordId};
use dwcp_proto::{ProtoError, SessionError};

use super::pool::Buffer;
use super::shared::{Shared, Side, State};
use super::streams;
use crate::cancel::lock;
use crate::congestion::is_far;
use crate::dial::WORTHWHILE;
use crate::distance::Distance;
use crate::error::NetError;
use crate::lane::{Lane, guard};
use crate::report::{Event, thread_cpu};
use crate::send::Gauge;
use crate::transport::WakeReceiver;

/// What is shorter is not compressed: it is waited for.
const SMALL: usize = 1_024;

/// What the system may keep of a lane to a peer that is far, before it was able to send it: it is as late as that.
const MOST_UNSENT_BYTES: u32 = 32 << 10;

/// Frames that are read before it is looked what there is to tell.
const MOST_AT_ONCE: u32 = 4;

/// Bytes of header and head of a RECORD.
const HEAD_BYTES: u64 = 60;

/// What a lane does next.
enum Turn {
    /// The session has failed, and the peer is told.
    Part(ErrorFrame),
    /// It is over, or this lane is not wanted any more.
    Leave,
    Tell(Taken),
    Send(RecordId, Record<Arc<Buffer>>),
    Wait,
}

/// Works on a lane of the session until it ends, and takes it out. Tells whether it was worth making.
pub(super) fn work(shared: &Arc<Shared>, mut lane: Lane, id: LaneId, wake: WakeReceiver) -> bool {
    let start = Instant::now();
    let _seat = shared.limiter.seat();
    let (peer, local) = (lane.transport().peer_addr(), lane.transport().local_addr());
    shared.observer.event(Event::LaneUp { lane: id, peer });
    if let Some(selector) = &shared.selector {
        selector.settle(peer.ip() == local.ip());
    }
    let mut worker = Worker {
        shared,
        id,
        wake,
        encoder: BlockEncoder::new(),
        decoder: BlockDecoder::new(),
        gauge: shared.selector.as_ref().map(Gauge::new),
        body: Vec::new(),
        come: 0,
        come_told: 0,
        come_of: 0,
    };
    let end = guard(|| {
        let at_random = lock(&shared.state).losses.are_random();
        lane.control(&shared.options.congestion, Distance::Measured, at_random, false)?;
        if is_far(lane.transport()) {
            lane.closer().limit_unsent(MOST_UNSENT_BYTES);
        }
        worker.serve(&mut lane)
    });
    let altered = match &end {
        Err(NetError::Tls { .. } | NetError::Codec(_) | NetError::Integrity { .. }) => true,
        Err(NetError::Proto(_)) => !lane.encrypted(),
        _ => false,
    };
    let reason = end.as_ref().err().map(ToString::to_string);
    match end {
        Err(error) if altered => {
            shared.count_altered(&error);
            lane.fail(error.code(), true, &error.for_peer());
        }
        Err(
            error @ (NetError::Proto(_) | NetError::Session(_) | NetError::Peer { retryable: false, .. }),
        ) => {
            if !matches!(error, NetError::Peer { .. }) {
                lane.fail(error.code(), false, &error.for_peer());
            }
            shared.fail(error);
        }
        Err(error) => log::debug!("lane {id} was lost: {error}"),
        Ok(()) => {}
    }
    lock(&shared.state).detach(id, reason.is_some());
    shared.changed.notify_all();
    shared.observer.event(Event::LaneDown { lane: id, reason });
    start.elapsed() >= WORTHWHILE
}

struct Worker<'a> {
    shared: &'a Arc<Shared>,
    id: LaneId,
    wake: WakeReceiver,
    encoder: BlockEncoder,
    decoder: BlockDecoder,
    /// Measures for the choice among codecs, if there is one.
    gauge: Option<Gauge<'a>>,
    body: Vec<u8>,
    /// Records that have come over this lane, how many of them the peer was told of, and the stream of the last.
    come: u64,
    come_told: u64,
    come_of: u32,
}

impl Worker<'_> {
    fn serve(&mut self, lane: &mut Lane) -> Result<(), NetError> {
        let mut cpu = thread_cpu();
        loop {
            self.shared.halt.check()?;
            // The peer waits to hear of what has come, however much more does.
            for _ in 0..MOST_AT_ONCE {
                if !lane.readable()? {
                    break;
                }
                let (frame, body_len) = lane.recv()?;
                if frame == Frame::Close {
                    // The peer learns that everything it had sent before was read.
                    lane.close();
                    return Ok(());
                }
                self.take(lane, frame, body_len)?;
            }
            if let Some(gauge) = &mut self.gauge {
                gauge.looked(|| lane.transport().path().and_then(|path| path.unsent_bytes));
            }
            lane.keep_alive()?;
            let now = thread_cpu();
            let spent = now.saturating_sub(std::mem::replace(&mut cpu, now));
            let turn = {
                let mut state = lock(&self.shared.state);
                state.cpu += spent;
                self.turn(&mut state)
            };
            match turn {
                Turn::Part(error) => {
                    lane.fail(error.code, error.retryable, &error.message);
                    return Ok(());
                }
                Turn::Leave => {
                    lane.close();
                    return Ok(());
                }
                Turn::Tell(taken) => lane.send(&Frame::Taken(taken))?,
                Turn::Send(id, record) => self.send(lane, id, &record)?,
                Turn::Wait => {
                    lane.wait(&self.wake)?;
                    if let Some(gauge) = &mut self.gauge {
                        gauge.waited();
                    }
                }
            }
        }
    }

    fn turn(&mut self, state: &mut State) -> Turn {
        if let Some(parting) = state.parting() {
            return Turn::Part(parting.clone());
        }
        if !state.lanes.contains_key(&self.id) {
            // Another one has its place: what this one told would be lost, and nobody would tell it again.
            return Turn::Leave;
        }
        let told = if self.come_told < self.come {
            state.inbox.tell_of(self.come_of, self.come)
        } else {
            state.inbox.tell(self.come)
        };
        if let Some(taken) = told {
            self.come_told = self.come;
            return Turn::Tell(taken);
        }
        let is_source = self.shared.side == Side::Source;
        if is_source && !state.is_over() && state.finishing && state.is_quiet() {
            state.conclude();
            self.shared.changed.notify_all();
        }
        if state.is_over() {
            return Turn::Leave;
        }
        let (wanted, slow_rate) = (state.wanted, state.slow_rate());
        let Some(handle) = state.lanes.get_mut(&self.id) else { return Turn::Leave };
        handle.idle = false;
        let slow = is_source && handle.is_slow(slow_rate);
        let surplus = is_source && handle.number >= wanted;
        if surplus && !state.outbox.owes(self.id) {
            return Turn::Leave;
        }
        let (at_s, patience_s) = (self.shared.started.elapsed().as_secs_f64(), state.patience_s());
        let found = if surplus || slow {
            None
        } else {
            let late = state.outbox.help(self.id, at_s, patience_s);
            late.or_else(|| state.outbox.next(self.id, at_s))
        };
        match found {
            Some((id, record)) => {
                // Whoever reads a socket may have waited for room.
                self.shared.changed.notify_all();
                Turn::Send(id, record)
            }
            None => {
                if let Some(handle) = state.lanes.get_mut(&self.id) {
                    handle.idle = true;
                }
                Turn::Wait
            }
        }
    }

    fn take(&mut self, lane: &mut Lane, frame: Frame, body_len: usize) -> Result<(), NetError> {
        match frame {
            Frame::Record(head) => {
                // The format bounds the length.
                let raw_len = head.raw_len as usize;
                let mut bytes = self.shared.pool.any();
                bytes.resize(raw_len, 0);
                if head.kind == BlockKind::Plain && head.codec == CodecId::None && body_len == raw_len {
                    lane.recv_bytes(&mut bytes)?;
                } else {
                    self.body.resize(body_len, 0);
                    lane.recv_bytes(&mut self.body)?;
                    self.decoder.decode(head.kind, head.codec, &self.body, None, &mut bytes)?;
                }
                self.record(&head, body_len, bytes)
            }
            Frame::Taken(taken) => {
                let at_s = self.shared.started.elapsed().as_secs_f64();
                let mut state = lock(&self.shared.state);
                if !state.lanes.contains_key(&self.id) {
                    // It counts what went over a lane that is given up: it is told again over another.
                    return Ok(());
                }
                state.outbox.taken(self.id, taken, at_s)?;
                drop(state);
                if let Some(gauge) = &mut self.gauge {
                    gauge.acknowledged(taken.come as u32);
                }
                self.shared.changed.notify_all();
                Ok(())
            }
            Frame::Error(error) => Err(SessionError::Peer {
                code: error.code,
                retryable: error.retryable,
                message: error.message,
            }
            .into()),
            Frame::KeepAlive => Ok(()),
            other => Err(SessionError::Unexpected { frame: other.name(), phase: "relay" }.into()),
        }
    }

    /// Takes the record that has come in a body of so many bytes.
    fn record(&mut self, head: &RecordHead, body_len: usize, bytes: Buffer) -> Result<(), NetError> {
        if Digest::of(&bytes) != head.digest {
            let reason = "a record does not have its digest".to_owned();
            return Err(NetError::Integrity { times: 1, reason });
        }
        let record = Record { word: head.word, bytes, raw_len: head.raw_len };
        let mut state = lock(&self.shared.state);
        if state.is_over() {
            return Ok(());
        }
        let is_new = state.inbox.accept((head.stream, head.number), record)?;
        (self.come, self.come_of) = (self.come + 1, head.stream);
        if self.shared.side == Side::Target {
            state.report.wire_bytes += body_len as u64 + HEAD_BYTES;
        }
        if is_new && self.shared.side == Side::Target && !state.streams.contains_key(&head.stream) {
            streams::expect(self.shared, &mut state, head.stream)?;
        }
        // One that others have to come before wakes nobody.
        if is_new && state.inbox.is_ready(head.stream) {
            state.tell_writer(head.stream);
        }
        Ok(())
    }

    fn send(&mut self, lane: &mut Lane, id: RecordId, record: &Record<Arc<Buffer>>) -> Result<(), NetError> {
        let raw: &[u8] = record.bytes.as_slice();
        if let Some(gauge) = &mut self.gauge {
            gauge.read();
        }
        let digest = Digest::of(raw);
        let (kind, codec, body) = if raw.len() < SMALL {
            (BlockKind::Plain, CodecId::None, raw)
        } else {
            let encoded = match (&mut self.gauge, self.shared.side) {
                (Some(gauge), _) => gauge.encode(&mut self.encoder, raw, None, None)?,
                (None, Side::Source) => self.encoder.encode(self.shared.options.codec.fixed(), raw, None)?,
                (None, Side::Target) => self.encoder.encode(Codec::None, raw, None)?,
            };
            (encoded.kind, encoded.codec, encoded.wire)
        };
        let wire_len = body.len() as u64 + HEAD_BYTES;
        {
            let mut state = lock(&self.shared.state);
            state.outbox.sending(id, wire_len);
            if self.shared.side == Side::Source {
                state.report.wire_bytes += wire_len;
            }
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.prepared(raw.len() as u64, body.len() as u64);
        }
        let (stream, number) = id;
        let (word, raw_len) = (record.word, record.raw_len);
        let frame = Frame::Record(RecordHead { stream, word, kind, codec, number, raw_len, digest });
        lane.send_block(&frame, body, &self.shared.limiter, &self.shared.halt)?;
        if let Some(gauge) = &mut self.gauge {
            gauge.written();
            // A record is not waited for: the machine that moves is.
            if let Some(time) = gauge.worth_waiting()
                && record.word == RecordWord::Pages
            {
                lane.listen(&self.wake, time)?;
                gauge.waited();
            }
        }
        Ok(())
    }
}

/// A frame that comes while the relay is agreed on.
pub(super) fn unexpected(frame: &Frame) -> NetError {
    SessionError::Unexpected { frame: frame.name(), phase: "relay" }.into()
}

/// More than this side agrees to.
pub(super) fn refused(what: &'static str, value: u64, limit: u64) -> NetError {
    ProtoError::Limit { what, value, limit }.into()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::relay::shared::tests::alone;
    use crate::transport::{Closer, wake_pair};

    fn worker(shared: &Arc<Shared>, id: LaneId, wake: WakeReceiver) -> Worker<'_> {
        Worker {
            shared,
            id,
            wake,
            encoder: BlockEncoder::new(),
            decoder: BlockDecoder::new(),
            gauge: None,
            body: Vec::new(),
            come: 0,
            come_told: 0,
            come_of: 0,
        }
    }

    #[test]
    fn lane_that_was_given_up_takes_no_word_with_it() {
        let shared = Arc::new(alone(Side::Target));
        let (_waker, wake) = wake_pair().unwrap();
        let mut state = lock(&shared.state);
        state.inbox.open(0);
        state.inbox.tell_again();
        let mut worker = Worker { come: 1, ..worker(&shared, 0, wake) };
        assert!(matches!(worker.turn(&mut state), Turn::Leave));
        assert!(state.inbox.tell(0).is_some());
    }

    #[test]
    fn lane_that_is_far_behind_another_is_given_nothing_unless_it_brings_a_record_soon() {
        let shared = Arc::new(alone(Side::Source));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut state = lock(&shared.state);
        state.round_trip = Some(Duration::from_millis(100));
        let mut lane = |number| {
            let (waker, wake) = wake_pair().unwrap();
            let closer = Closer::of(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let id = state.attach(number, waker, closer);
            worker(&shared, id, wake)
        };
        let (mut fast, mut slow) = (lane(0), lane(1));
        // Bytes a second of both, before anything is known of the second, and then in 100 ms less and more than half of what
        // is read at once.
        for (rate, is_given) in [(None, true), (Some(1e5), false), (Some(1e6), true)] {
            for (id, rate) in [(fast.id, Some(1e8)), (slow.id, rate)] {
                state.lanes.get_mut(&id).unwrap().rate = rate;
            }
            let bytes = Arc::new(shared.pool.holding(vec![7; 10]));
            state.outbox.push(0, Record { word: RecordWord::Data, bytes, raw_len: 10 });
            assert_eq!(matches!(slow.turn(&mut state), Turn::Send(..)), is_given, "{rate:?}");
            assert_eq!(matches!(fast.turn(&mut state), Turn::Send(..)), !is_given, "{rate:?}");
        }
        // Nobody wakes it for what it is not given.
        state.lanes.values_mut().for_each(|lane| (lane.idle, lane.rate) = (true, Some(1e5)));
        state.lanes.get_mut(&fast.id).unwrap().rate = Some(1e8);
        state.wake_one();
        let idle = |id| state.lanes.get(&id).is_some_and(|lane| lane.idle);
        assert!(!idle(fast.id) && idle(slow.id));
        // Slow is only what another one is faster than.
        state.detach(fast.id, true);
        let bytes = Arc::new(shared.pool.holding(vec![7; 10]));
        state.outbox.push(0, Record { word: RecordWord::Data, bytes, raw_len: 10 });
        assert!(matches!(slow.turn(&mut state), Turn::Send(..)));
    }
}
