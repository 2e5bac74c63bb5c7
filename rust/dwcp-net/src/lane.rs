//! A lane: frames in order over a transport.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use dwcp_codec::digest::BlockHasher;
use dwcp_proto::frame::{ErrorCode, ErrorFrame, Frame, SessionId};
use dwcp_proto::limits::HEADER_BYTES;
use dwcp_proto::{FrameDecoder, FrameEncoder};

use crate::cancel::{Cancel, Registration};
use crate::congestion::{Congestion, is_far};
use crate::distance::Distance;
use crate::error::NetError;
use crate::inbox::{AHEAD_BYTES, Inbox};
use crate::limiter::Limiter;
use crate::transport::{Closer, IO_BYTES, Patience, SOCKET_SLICE, Transport, WakeReceiver};

/// The longest silence of a side that has nothing to say.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// How long the end of a session lets its lanes tell the peer.
pub(crate) const PARTING: Duration = Duration::from_millis(1_500);

/// How long the end of a lane may take, so that the peer still gets the last frame: at least this long, and up to
/// [`PARTING`] as long as TCP takes to send twice again what was lost, after its timeout and after twice as long. A peer
/// that is there ends it a round trip after that frame.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_TIMEOUTS: u32 = 3;

/// No body that is longer waits for other frames to go out with.
const SHORT_BODY_BYTES: usize = 32 * 1024;

/// A transport with the framing of both directions.
pub(crate) struct Lane {
    transport: Box<dyn Transport>,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    patience: Patience,
    idle: Duration,
    /// Frames that are about to go out. Whatever waits for the peer sends them first.
    out: Vec<u8>,
    inbox: Inbox,
    /// Whether more is read than is asked for. Behind a long body another is likely: it is read to where it belongs, which is
    /// faster than to go on in the middle of it.
    reads_ahead: bool,
    head: Vec<u8>,
    last_sent: Instant,
    last_received: Instant,
    encrypted: bool,
    /// What the system was told to pace the lane at.
    pace: Option<u64>,
    /// Keeps the socket known to whoever may shut it.
    registration: Registration,
}

/// Does the work of a lane's thread; a panic becomes an error, so that nobody waits for the lane for ever.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), NetError>) -> Result<(), NetError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or(Err(NetError::Internal { what: "the thread of a lane panicked" }))
}

impl Lane {
    /// A lane in its handshake, which has `patience`.
    pub(crate) fn new(
        transport: Box<dyn Transport>,
        encrypted: bool,
        patience: Patience,
        cancel: &Cancel,
    ) -> Lane {
        let registration = cancel.register(transport.closer());
        Lane {
            transport,
            encoder: FrameEncoder::new(),
            decoder: FrameDecoder::new(),
            patience,
            idle: MAX_SILENCE,
            out: Vec::new(),
            inbox: Inbox::new(),
            reads_ahead: true,
            head: Vec::new(),
            last_sent: Instant::now(),
            last_received: Instant::now(),
            encrypted,
            pace: None,
            registration,
        }
    }

    /// The handshake is over: checks are seeded, and from now on the lane has the `idle` deadline and is shut by
    /// `cancel`.
    pub(crate) fn enter(&mut self, session: &SessionId, idle: Duration, cancel: &Cancel) {
        self.speak(session, idle, cancel);
        self.hear(session);
    }

    /// The same for what this side says, before the peer has answered.
    pub(crate) fn speak(&mut self, session: &SessionId, idle: Duration, cancel: &Cancel) {
        self.registration = cancel.register(self.transport.closer());
        self.encoder.set_session(session);
        self.idle = idle;
        self.patience = Patience::Idle(idle);
    }

    /// The peer has let the lane into the session.
    pub(crate) fn hear(&mut self, session: &SessionId) {
        self.decoder.set_session(session);
    }

    /// Whether altered bytes are found by TLS, so that a malformed frame is the doing of the peer.
    pub(crate) fn encrypted(&self) -> bool {
        self.encrypted
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    /// Has the system use `congestion` for what the lane sends to a peer that is taken to be at a `distance`, where losses
    /// are known to be `at_random` or not, and fill a long path unless the size of its buffers was `sized` by the caller.
    pub(crate) fn control(
        &mut self,
        congestion: &Congestion,
        distance: Distance,
        at_random: bool,
        sized: bool,
    ) -> Result<(), NetError> {
        let is_far = distance.is_far(is_far(&*self.transport));
        if is_far && !sized {
            self.transport.widen();
        }
        congestion.apply(&mut *self.transport, is_far, at_random)
    }

    pub(crate) fn closer(&self) -> Closer {
        self.transport.closer()
    }

    /// Sends bytes that are no frame: the preface.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), NetError> {
        self.transport.send(&[bytes], self.patience)
    }

    /// Fills `buffer` with bytes that are no frame: the preface, or a body.
    pub(crate) fn recv_bytes(&mut self, buffer: &mut [u8]) -> Result<(), NetError> {
        self.fill(buffer, self.patience)?;
        self.last_received = Instant::now();
        Ok(())
    }

    /// Waits until something of a body has come.
    pub(crate) fn await_some(&mut self) -> Result<(), NetError> {
        self.flush()?;
        let began = Instant::now();
        while self.inbox.is_empty() && !self.transport.gather(SOCKET_SLICE)? {
            self.patience.check(began, "waiting for the peer")?;
        }
        Ok(())
    }

    /// Takes what of a body has come to its place, hashes it, and tells how much it is. That may be none after all.
    pub(crate) fn take_some(
        &mut self,
        place: &mut [u8],
        hasher: &mut BlockHasher,
    ) -> Result<usize, NetError> {
        let ahead = self.inbox.take(place);
        hasher.update(&place[..ahead]);
        let count =
            if ahead > 0 { ahead } else { self.transport.take_hashing(place, hasher, self.patience)? };
        self.last_received = Instant::now();
        Ok(count)
    }

    fn fill(&mut self, buffer: &mut [u8], patience: Patience) -> Result<(), NetError> {
        let done = self.inbox.take(buffer);
        let rest = &mut buffer[done..];
        if rest.is_empty() {
            return Ok(());
        }
        if rest.len() >= AHEAD_BYTES || !self.reads_ahead {
            return self.transport.recv_exact(rest, patience);
        }
        self.inbox.fill(|room| self.transport.recv_at_least(room, rest.len(), patience))?;
        self.inbox.take(rest);
        Ok(())
    }

    /// Sends a frame without a body.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), NetError> {
        self.queue(frame)?;
        self.flush()
    }

    /// Sends bytes that are no frame, and a frame without a body right behind them.
    pub(crate) fn send_behind(&mut self, bytes: &[u8], frame: &Frame) -> Result<(), NetError> {
        self.out.extend_from_slice(bytes);
        self.send(frame)
    }

    /// Has a frame without a body go out with the next one that is sent, or before anything is waited for.
    pub(crate) fn queue(&mut self, frame: &Frame) -> Result<(), NetError> {
        Ok(self.encoder.encode(frame, 0, &mut self.out)?)
    }

    /// Whether something is queued that more may go out with.
    pub(crate) fn is_queueing(&self) -> bool {
        (1..=SHORT_BODY_BYTES).contains(&self.out.len())
    }

    /// Sends what was queued.
    pub(crate) fn flush(&mut self) -> Result<(), NetError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let sent = self.transport.send(&[&self.out], self.patience);
        self.out.clear();
        sent?;
        self.last_sent = Instant::now();
        Ok(())
    }

    /// Queues a BLOCK and its body, if that is short and nothing says how fast it is to go. Tells whether it did.
    pub(crate) fn queue_block(
        &mut self,
        frame: &Frame,
        body: &[u8],
        limiter: &Limiter,
    ) -> Result<bool, NetError> {
        if body.len() > SHORT_BODY_BYTES || self.out.len() > SHORT_BODY_BYTES || limiter.rate().is_some() {
            return Ok(false);
        }
        self.encoder.encode(frame, body.len() as u32, &mut self.out)?;
        self.out.extend_from_slice(body);
        Ok(true)
    }

    /// Sends a BLOCK and its body, at the rate of `limiter` if it has one.
    pub(crate) fn send_block(
        &mut self,
        frame: &Frame,
        body: &[u8],
        limiter: &Limiter,
        cancel: &Cancel,
    ) -> Result<(), NetError> {
        self.encoder.encode(frame, body.len() as u32, &mut self.out)?;
        let pace = limiter.pace();
        if pace != self.pace {
            self.pace = pace;
            self.transport.set_pace(pace);
        }
        let sent = self.send_pieces(body, limiter, cancel);
        // A lane on which nothing can be sent any more may still have to hear why.
        self.out.clear();
        sent?;
        self.last_sent = Instant::now();
        // The peer has taken a body, which may have lasted; meanwhile it had no chance to say that it lives.
        self.last_received = self.last_sent;
        Ok(())
    }

    /// Sends what was queued, and `body` behind it.
    fn send_pieces(&mut self, body: &[u8], limiter: &Limiter, cancel: &Cancel) -> Result<(), NetError> {
        let mut first: &[u8] = &self.out;
        let mut rest = body;
        while !first.is_empty() || !rest.is_empty() {
            // The rate may have become another since the last piece.
            let piece = match limiter.piece() {
                None => std::mem::take(&mut rest),
                Some(most) => {
                    let (piece, tail) = rest.split_at(rest.len().min(most.min(IO_BYTES)));
                    rest = tail;
                    limiter.pass(first.len() + piece.len(), cancel)?;
                    piece
                }
            };
            self.transport.send(&[std::mem::take(&mut first), piece], self.patience)?;
        }
        Ok(())
    }

    /// The next frame and the length of the body that follows it.
    pub(crate) fn recv(&mut self) -> Result<(Frame, usize), NetError> {
        // A head whose length was altered would otherwise be waited for as long as anything comes.
        let patience = match self.patience {
            Patience::Idle(idle) => Patience::for_time(idle),
            until @ Patience::Until(..) => until,
        };
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, patience)?;
        let pending = self.decoder.header(&header)?;
        // The decoder has bounded the length by what the type can have.
        let mut head = std::mem::take(&mut self.head);
        head.resize(pending.head_len, 0);
        self.fill(&mut head, patience)?;
        self.head = head;
        let body_len = pending.body_len;
        self.reads_ahead = body_len < AHEAD_BYTES;
        let frame = self.decoder.head(pending, &self.head)?;
        self.last_received = Instant::now();
        Ok((frame, body_len))
    }

    /// Whether a frame can be read now.
    pub(crate) fn readable(&mut self) -> Result<bool, NetError> {
        self.poll(Duration::ZERO, None)
    }

    /// Whether something has come, or does within `timeout`; also comes back when `wake` is rung.
    fn poll(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        self.flush()?;
        Ok(!self.inbox.is_empty() || self.transport.poll_readable(timeout, wake)?)
    }

    /// Waits for a frame or a ring for at most `timeout`, and says nothing meanwhile.
    pub(crate) fn listen(&mut self, wake: &WakeReceiver, timeout: Duration) -> Result<(), NetError> {
        self.poll(timeout, Some(wake)).map(drop)
    }

    /// Waits for a frame or a ring, but no longer than until a KEEPALIVE is due, which it sends then.
    ///
    /// # Errors
    /// [`NetError::Deadline`] when the peer has been silent for the idle deadline, or whatever the transport says.
    pub(crate) fn wait(&mut self, wake: &WakeReceiver) -> Result<(), NetError> {
        self.wait_at_most(wake, MAX_SILENCE)
    }

    /// The same, for `most` at most.
    ///
    /// # Errors
    /// As for [`Lane::wait`].
    pub(crate) fn wait_at_most(&mut self, wake: &WakeReceiver, most: Duration) -> Result<(), NetError> {
        let silence = self.silence();
        let until_keepalive = silence.saturating_sub(self.last_sent.elapsed());
        let until_idle = self.idle.saturating_sub(self.last_received.elapsed());
        let timeout = until_keepalive.min(until_idle).min(most);
        if self.poll(timeout, Some(wake))? {
            return Ok(());
        }
        if self.last_received.elapsed() >= self.idle {
            return Err(NetError::Deadline { what: "a sign of life of the peer", after: self.idle });
        }
        self.keep_alive()
    }

    /// Sends KEEPALIVE if nothing was sent for long enough.
    pub(crate) fn keep_alive(&mut self) -> Result<(), NetError> {
        if self.last_sent.elapsed() >= self.silence() { self.send(&Frame::KeepAlive) } else { Ok(()) }
    }

    fn silence(&self) -> Duration {
        (self.idle / 3).min(MAX_SILENCE)
    }

    /// Tells the peer what went wrong and ends the lane.
    pub(crate) fn fail(&mut self, code: ErrorCode, retryable: bool, text: &str) {
        self.end(&Frame::Error(ErrorFrame::new(code, retryable, text)));
    }

    /// Ends the lane in peace.
    pub(crate) fn close(&mut self) {
        self.end(&Frame::Close);
    }

    fn end(&mut self, last: &Frame) {
        let timeout = self.transport.path().and_then(|path| path.retransmit_after);
        let most = linger(timeout);
        self.patience = Patience::for_time(most);
        // The lane ends whether or not the peer can still be told.
        if self.send(last).is_ok() {
            self.transport.finish(most);
        }
    }
}

/// How long a lane may take to end where TCP sends again what was lost after `timeout`.
fn linger(timeout: Option<Duration>) -> Duration {
    timeout.map_or(LINGER, |timeout| (timeout * LINGER_TIMEOUTS).clamp(LINGER, PARTING))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use dwcp_codec::block::BlockKind;
    use dwcp_codec::{CodecId, Digest};
    use dwcp_proto::frame::BlockHead;

    use super::*;
    use crate::transport::{TcpTransport, wake_pair};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn lane(stream: TcpStream) -> Lane {
        let transport = Box::new(TcpTransport::new(stream).unwrap());
        let mut lane = Lane::new(transport, false, Patience::Idle(PATIENCE), &Cancel::new());
        lane.enter(&SessionId([1; 16]), PATIENCE, &Cancel::new());
        lane
    }

    fn streams() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (stream, listener.accept().unwrap().0)
    }

    fn block(body: &[u8]) -> Frame {
        Frame::Block(BlockHead {
            entry: 0,
            raw_len: body.len() as u32,
            offset: 0,
            kind: BlockKind::Plain,
            codec: CodecId::None,
            digest: Digest::of(body),
            base_digest: None,
        })
    }

    #[test]
    fn frames_and_bodies_of_any_length_arrive_in_order_however_they_are_sent() {
        let (here, there) = streams();
        let (mut sending, mut receiving) = (lane(here), lane(there));
        let lengths = [1, AHEAD_BYTES - 100, AHEAD_BYTES, SHORT_BODY_BYTES, SHORT_BODY_BYTES + 1, 300_000, 7];
        let (limiter, cancel) = (Limiter::new(None), Cancel::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (number, length) in lengths.into_iter().enumerate() {
                    let body = vec![number as u8; length];
                    sending.queue(&Frame::Ack(number as u32)).unwrap();
                    let queued = sending.queue_block(&block(&body), &body, &limiter).unwrap();
                    if !queued {
                        sending.send_block(&block(&body), &body, &limiter, &cancel).unwrap();
                    }
                }
                // Nothing is kept back from whoever waits for the answer.
                sending.readable().unwrap();
            });
            for (number, length) in lengths.into_iter().enumerate() {
                assert_eq!(receiving.recv().unwrap(), (Frame::Ack(number as u32), 0));
                let mut body = vec![0; length];
                let (frame, body_len) = receiving.recv().unwrap();
                receiving.recv_bytes(&mut body).unwrap();
                assert_eq!((frame, body_len), (block(&body), length));
                assert!(body.iter().all(|byte| usize::from(*byte) == number));
            }
        });
    }

    #[test]
    fn what_was_read_ahead_is_there_to_be_read() {
        let (here, there) = streams();
        let (mut sending, mut receiving) = (lane(here), lane(there));
        sending.queue(&Frame::Ack(1)).unwrap();
        sending.send(&Frame::Ack(2)).unwrap();
        let (_waker, wake) = wake_pair().unwrap();
        for count in 1..=2 {
            receiving.listen(&wake, PATIENCE).unwrap();
            assert!(receiving.readable().unwrap());
            assert_eq!(receiving.recv().unwrap().0, Frame::Ack(count));
        }
        assert!(!receiving.readable().unwrap());
    }

    #[test]
    fn peer_that_takes_no_more_blocks_is_still_heard() {
        let (stream, mut peer) = streams();
        let writing = stream.try_clone().unwrap();
        let mut lane = lane(stream);
        peer.write_all(b"why").unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
        let body = [7; 100];
        assert!(lane.send_block(&block(&body), &body, &Limiter::new(None), &Cancel::new()).is_err());
        assert!(lane.poll(PATIENCE, None).unwrap());
        let mut told = [0; 3];
        lane.recv_bytes(&mut told).unwrap();
        assert_eq!(&told, b"why");
    }

    #[test]
    fn the_last_frame_may_be_lost_twice_on_a_long_path_and_holds_nobody_up_for_long() {
        let of = |ms| linger(Some(Duration::from_millis(ms)));
        assert_eq!(linger(None), LINGER);
        assert_eq!(of(10), LINGER);
        assert_eq!(of(450), Duration::from_millis(450 + 900));
        assert_eq!(of(60_000), PARTING);
    }
}
