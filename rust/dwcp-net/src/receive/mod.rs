//! The receiving side of a session: takes blocks from lanes, proves them, and puts them where they belong.

mod shared;
#[cfg(test)]
mod tests;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_codec::Dictionary;
use dwcp_proto::Limits;
use dwcp_store::Sink;

pub(crate) use shared::{Names, Session};
pub(crate) use worker::run;

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::lane::PARTING;
use crate::relay::RelayOptions;
use crate::report::{Progress, ReceiveReport};
use crate::security::Fingerprint;
use crate::send::SendOptions;
use crate::transfers::Watched;
use crate::transport::LinkKind;

/// The longest time for which the end of a session waits for the sender to learn that its transfer is in place.
const CONFIRMATION: Duration = Duration::from_secs(10);

/// Says why no session is let in at present, if none is; asked when one is to be opened.
#[derive(Clone)]
pub struct Refusal(Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl Refusal {
    /// Asks `why`, from any thread; it should return soon.
    pub fn new(why: impl Fn() -> Option<String> + Send + Sync + 'static) -> Refusal {
        Refusal(Arc::new(why))
    }

    pub(crate) fn why(&self) -> Option<String> {
        (self.0)()
    }
}

impl std::fmt::Debug for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refusal")
    }
}

/// How a receiver works.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// What a sender may ask for.
    pub limits: Limits,
    /// Dictionaries that a sender need not send.
    pub dictionaries: Arc<[Arc<Dictionary>]>,
    /// Whether senders are let in.
    pub senders: bool,
    /// How peers are sent what they ask for, if such peers are let in.
    pub serve: Option<SendOptions>,
    /// How relays work, if they are let in.
    pub relay: Option<RelayOptions>,
    /// Sessions at once.
    pub max_sessions: usize,
    /// A lane on which the peer is silent for this long is lost, and so is a session that has no lane for this long.
    pub idle_timeout: Duration,
    /// How long a connection may take to show who it is.
    pub handshake_timeout: Duration,
    /// The size of the sockets' buffers; the system tunes them itself otherwise.
    pub socket_buffer_bytes: Option<u32>,
    /// Whether processes of the same user on this host may share memory with this one, instead of TCP.
    pub shares_memory: bool,
    /// Whether connections over RDMA are taken too, at the same address. Only without TLS.
    pub rdma: bool,
    /// Who may say that no session is let in; those that are open go on.
    pub refusal: Option<Refusal>,
}

impl Default for ReceiveOptions {
    fn default() -> ReceiveOptions {
        ReceiveOptions {
            limits: Limits::default(),
            dictionaries: Arc::default(),
            senders: true,
            serve: None,
            relay: None,
            max_sessions: 64,
            idle_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            socket_buffer_bytes: None,
            shares_memory: false,
            rdma: false,
            refusal: None,
        }
    }
}

/// A sender that was let in, and what it sends.
pub struct ReceiveSession {
    session: Arc<Session>,
}

impl ReceiveSession {
    pub(crate) fn new(session: Arc<Session>) -> ReceiveSession {
        ReceiveSession { session }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Takes the next transfer into `sink`; `None` when the sender has closed the session in peace instead.
    ///
    /// `timeout` bounds the wait for the sender's offer; the session can still be used when it has passed.
    ///
    /// # Errors
    /// [`NetError`]; what the sink has staged is kept for the next attempt wherever [`NetError::resumable`] holds.
    pub fn receive(
        &self,
        sink: Arc<dyn Sink>,
        timeout: Option<Duration>,
    ) -> Result<Option<ReceiveReport>, NetError> {
        self.receive_before(sink, timeout, None, &self.session.cancel, &mut || false)
    }

    /// The same, asking every 50 ms at least whether to stop; then, as after [`ReceiveSession::close`], the session is over.
    ///
    /// # Errors
    /// As for [`ReceiveSession::receive`].
    pub fn receive_unless(
        &self,
        sink: Arc<dyn Sink>,
        timeout: Option<Duration>,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<Option<ReceiveReport>, NetError> {
        self.receive_before(sink, timeout, None, &self.session.cancel, stops)
    }

    /// Takes the next transfer, which has to be in place at a moment; the duration is what a report says. The sender
    /// hears of it when `stop` is asked for.
    pub(crate) fn receive_before(
        &self,
        sink: Arc<dyn Sink>,
        timeout: Option<Duration>,
        end: Option<(Instant, Duration)>,
        stop: &Cancel,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<Option<ReceiveReport>, NetError> {
        let session = &*self.session;
        let started = Instant::now();
        let mut state = lock(&session.state);
        if state.ended.is_none() {
            state.sink = Some(Arc::clone(&sink));
            session.changed.notify_all();
        }
        while state.ended.is_none() {
            if let Some(report) = state.done.take() {
                return Ok(Some(report));
            }
            if session.cancel.is_cancelled() || stop.is_cancelled() {
                state.end(Some(NetError::Cancelled), true);
                break;
            }
            let idle = state.transfer.is_none() && !state.telling;
            if let Some(after) = timeout.filter(|limit| idle && started.elapsed() >= *limit) {
                state.sink = None;
                return Err(NetError::Deadline { what: "an offer of the sender", after });
            }
            if let Some((_, after)) = end.filter(|(end, _)| !state.telling && Instant::now() >= *end) {
                state.end(Some(NetError::Deadline { what: "the transfer", after }), true);
                break;
            }
            session.expire(&mut state);
            state = wait(&session.changed, state, CANCEL_SLICE);
            if state.done.is_none() {
                // Whoever is asked may call this session.
                drop(state);
                if stops() {
                    self.close();
                }
                state = lock(&session.state);
            }
        }
        let failure = state.take_failure();
        drop(state);
        // Whoever has cancelled does not want to wait long for the peer to hear of it.
        session.await_lanes(if stop.is_cancelled() { PARTING / 5 } else { PARTING });
        sink.abort();
        // A transfer may have been committed in the same moment in which the session ended.
        let report = {
            let mut state = lock(&session.state);
            state.sink = None;
            state.done.take()
        };
        session.registry.remove(&session.id);
        session.changed.notify_all();
        match (report, failure) {
            (Some(report), _) => Ok(Some(report)),
            (None, None) => Ok(None),
            (None, Some(_)) if session.cancel.is_cancelled() => Err(NetError::Cancelled),
            (None, Some(error)) => Err(error),
        }
    }

    /// Ends the session and tells the sender why; whoever receives gets [`NetError::Cancelled`], and what is staged stays.
    pub fn dismiss(&self, reason: &str) {
        lock(&self.session.state).dismiss(reason);
        self.session.changed.notify_all();
    }

    /// Where the transfer stands that is under way.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.session.state).progress()
    }

    /// The sender's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.session.peer
    }

    /// What carries the lane that was made last.
    #[must_use]
    pub fn link(&self) -> LinkKind {
        lock(&self.session.state).carried_by
    }

    /// The SHA-256 of the sender's certificate; none without TLS.
    #[must_use]
    pub fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.session.owner
    }

    /// Ends the session: lanes say goodbye. Dropping the session does the same.
    ///
    /// If the sender is not known to have read that its last transfer is in place, this asks it, and waits until 10 s
    /// after the commit for a sender that has lost the connection to come back.
    pub fn close(&self) {
        self.session.linger(CONFIRMATION.min(self.session.options.idle_timeout));
        lock(&self.session.state).end(None, false);
        self.session.changed.notify_all();
        self.session.await_lanes(PARTING);
        self.session.registry.remove(&self.session.id);
    }
}

impl Watched for ReceiveSession {
    fn progress(&self) -> Progress {
        ReceiveSession::progress(self)
    }
}

impl Drop for ReceiveSession {
    fn drop(&mut self) {
        self.close();
    }
}
