//! A lane: frames in order over a transport.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use dwcp_proto::frame::{ErrorCode, ErrorFrame, Frame, SessionId};
use dwcp_proto::limits::HEADER_BYTES;
use dwcp_proto::{FrameDecoder, FrameEncoder};

use crate::cancel::{Cancel, Registration};
use crate::congestion::{Congestion, is_far};
use crate::distance::Distance;
use crate::error::NetError;
use crate::limiter::Limiter;
use crate::transport::{Closer, IO_BYTES, Patience, Transport, WakeReceiver};

/// The longest silence of a side that has nothing to say.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// How long the end of a session lets its lanes tell the peer.
pub(crate) const PARTING: Duration = Duration::from_millis(1_500);

/// How long the end of a lane may take, so that the peer still gets the last frame: at least this long, and up to
/// [`PARTING`] as long as TCP takes to send twice again what was lost, after its timeout and after twice as long. A peer
/// that is there ends it a round trip after that frame.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_TIMEOUTS: u32 = 3;

/// A transport with the framing of both directions.
pub(crate) struct Lane {
    transport: Box<dyn Transport>,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    patience: Patience,
    idle: Duration,
    out: Vec<u8>,
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
        self.transport.recv_exact(buffer, self.patience)?;
        self.last_received = Instant::now();
        Ok(())
    }

    /// Sends a frame without a body.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), NetError> {
        self.send_behind(&[], frame)
    }

    /// Sends bytes that are no frame, and a frame without a body right behind them.
    pub(crate) fn send_behind(&mut self, bytes: &[u8], frame: &Frame) -> Result<(), NetError> {
        self.out.clear();
        self.out.extend_from_slice(bytes);
        self.encoder.encode(frame, 0, &mut self.out)?;
        self.transport.send(&[&self.out], self.patience)?;
        self.last_sent = Instant::now();
        Ok(())
    }

    /// Sends a BLOCK and its body, at the rate of `limiter` if it has one.
    pub(crate) fn send_block(
        &mut self,
        frame: &Frame,
        body: &[u8],
        limiter: &Limiter,
        cancel: &Cancel,
    ) -> Result<(), NetError> {
        self.out.clear();
        self.encoder.encode(frame, body.len() as u32, &mut self.out)?;
        let pace = limiter.pace();
        if pace != self.pace {
            self.pace = pace;
            self.transport.set_pace(pace);
        }
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
        self.last_sent = Instant::now();
        // The peer has taken a body, which may have lasted; meanwhile it had no chance to say that it lives.
        self.last_received = self.last_sent;
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
        self.transport.recv_exact(&mut header, patience)?;
        let pending = self.decoder.header(&header)?;
        // The decoder has bounded the length by what the type can have.
        self.head.resize(pending.head_len, 0);
        self.transport.recv_exact(&mut self.head, patience)?;
        let body_len = pending.body_len;
        let frame = self.decoder.head(pending, &self.head)?;
        self.last_received = Instant::now();
        Ok((frame, body_len))
    }

    /// Whether a frame can be read now.
    pub(crate) fn readable(&mut self) -> Result<bool, NetError> {
        self.transport.poll_readable(Duration::ZERO, None)
    }

    /// Waits for a frame or a ring for at most `timeout`, and says nothing meanwhile.
    pub(crate) fn listen(&mut self, wake: &WakeReceiver, timeout: Duration) -> Result<(), NetError> {
        self.transport.poll_readable(timeout, Some(wake)).map(drop)
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
        if self.transport.poll_readable(timeout, Some(wake))? {
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
    use super::*;

    #[test]
    fn the_last_frame_may_be_lost_twice_on_a_long_path_and_holds_nobody_up_for_long() {
        let of = |ms| linger(Some(Duration::from_millis(ms)));
        assert_eq!(linger(None), LINGER);
        assert_eq!(of(10), LINGER);
        assert_eq!(of(450), Duration::from_millis(450 + 900));
        assert_eq!(of(60_000), PARTING);
    }
}
