//! The listening side that sends: a peer has dialled and asks, and is sent what the application gives for an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{ErrorCode, ErrorFrame, Secret, SessionId};
use dwcp_proto::sender::LaneId;
use dwcp_proto::{Limits, Manifest};
use dwcp_store::Source;

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::distance::Distance;
use crate::error::NetError;
use crate::lane::Lane;
use crate::limiter::Limiter;
use crate::listen::Registry;
use crate::receive::Names;
use crate::report::{Observer, Progress, SendReport};
use crate::security::Fingerprint;
use crate::send::{Link, SendOptions, Shared, work};
use crate::transfers::Watched;
use crate::transport::{LinkKind, WakeReceiver, wake_pair};

/// How often the end of a session looks for lanes that are still there.
const PARTING_SLICE: Duration = Duration::from_millis(5);

/// A session in which this listener sends. Its lanes run on the threads of their connections.
pub(crate) struct Served {
    pub(crate) id: SessionId,
    pub(crate) key: Secret,
    /// The certificate of the peer that opened it; only the same may join.
    pub(crate) owner: Option<Fingerprint>,
    peer: SocketAddr,
    limits: Limits,
    shared: Shared,
    registry: Arc<Registry>,
    threads: AtomicUsize,
}

impl Served {
    /// A session for a peer that has shown who it is and takes what `limits` say.
    pub(crate) fn new(
        names: Names,
        limits: Limits,
        options: SendOptions,
        limiter: Arc<Limiter>,
        cancel: Cancel,
        observer: Arc<dyn Observer>,
        registry: Arc<Registry>,
    ) -> Served {
        let Names { id, key, owner, peer, link: carried_by } = names;
        let link = Link { id, key, max_lanes: limits.max_lanes, limits };
        let halts = (cancel, Cancel::new());
        let shared = Shared::new(options, limiter, halts, observer, link, Some(Arc::clone(&registry)));
        lock(&shared.state).carried_by = (carried_by, None);
        Served { id, key, owner, peer, limits, shared, registry, threads: AtomicUsize::new(0) }
    }

    pub(crate) fn is_over(&self) -> bool {
        lock(&self.shared.state).is_over()
    }

    /// What the peer takes.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether a request waits for an answer.
    pub(crate) fn is_asked(&self) -> bool {
        lock(&self.shared.state).request().is_some()
    }

    /// Ends the session if it has had no lane for too long; tells whether it is over.
    pub(crate) fn expire(&self) -> bool {
        let mut state = lock(&self.shared.state);
        if !state.is_over() && !state.busy() && state.is_lonely(self.shared.options.reconnect_for) {
            // Who leaves without having asked for anything misses nothing.
            state.broken = state.request().is_some().then(|| state.gone());
            state.renew(None);
            self.shared.changed.notify_all();
        }
        state.is_over()
    }

    /// What may be sent to all peers together is another from now on.
    pub(crate) fn allow(&self, bytes_per_s: Option<u64>) {
        self.shared.allow(bytes_per_s);
    }

    /// Ends the session: lanes say goodbye.
    pub(crate) fn end(&self) {
        self.shared.say_goodbye();
    }

    /// Takes a lane into the session that the peer calls `number`, if there is room.
    pub(crate) fn admit(&self, number: u16, lane: &Lane) -> Result<Option<(LaneId, WakeReceiver)>, NetError> {
        let (waker, wake) = wake_pair()?;
        let admitted = {
            let mut state = lock(&self.shared.state);
            state.carried_by = (lane.transport().kind(), None);
            state.admit(number, waker, lane.closer())
        };
        Ok(admitted.map(|id| (id, wake)))
    }

    /// Takes a lane away that the peer was never told of.
    pub(crate) fn withdraw(&self, id: LaneId) {
        lock(&self.shared.state).detach(id, 0);
    }

    /// The lane has left its handshake.
    pub(crate) fn enter(&self, lane: &mut Lane) {
        lane.enter(&self.id, self.shared.options.idle_timeout, &self.shared.halt);
    }

    /// Works on a lane until it ends.
    pub(crate) fn run(&self, lane: Lane, id: LaneId, wake: WakeReceiver) {
        self.threads.fetch_add(1, Ordering::SeqCst);
        // A session of a peer that dials has one epoch. What was let in is not kept out.
        let _ = work(&self.shared, lane, (id, 0), wake, None);
        self.threads.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A peer that was let in and asks for transfers, one after the other.
pub struct ServeSession {
    served: Arc<Served>,
}

impl ServeSession {
    pub(crate) fn new(served: Arc<Served>) -> ServeSession {
        ServeSession { served }
    }

    /// What the peer asks for and was not sent yet; none while it asks for nothing.
    #[must_use]
    pub fn request(&self) -> Option<Vec<u8>> {
        lock(&self.served.shared.state).request().map(<[u8]>::to_vec)
    }

    /// Waits for the next request; `None` when the peer has left with nothing to ask for, or when it has to come back
    /// with a new session since frames of the last transfer may still be under way.
    ///
    /// # Errors
    /// [`NetError::Deadline`] when none came within `timeout`, after which the session can still be used, and
    /// [`NetError`] when the peer is gone with a request, or reports a failure.
    pub fn next_request(&self, timeout: Option<Duration>) -> Result<Option<Vec<u8>>, NetError> {
        let shared = &self.served.shared;
        let started = Instant::now();
        let mut state = lock(&shared.state);
        loop {
            if state.is_over() {
                return state.broken.take().map_or(Ok(None), Err);
            }
            shared.cancel.check()?;
            if !state.is_reusable() && state.request().is_some() {
                state.renew(None);
                return Ok(None);
            }
            if let Some(request) = state.request() {
                return Ok(Some(request.to_vec()));
            }
            if state.is_lonely(shared.options.reconnect_for) {
                state.renew(None);
                return Ok(None);
            }
            if let Some(after) = timeout.filter(|limit| started.elapsed() >= *limit) {
                return Err(NetError::Deadline { what: "a request of the peer", after });
            }
            state = wait(&shared.changed, state, CANCEL_SLICE);
        }
    }

    /// Answers the request with the state that `manifest` describes and `source` holds; comes back when the peer has
    /// it in place.
    ///
    /// # Errors
    /// [`NetError::NotAsked`], or any other [`NetError`]; where [`NetError::resumable`] holds, the peer keeps what it
    /// has, and sending the same state again goes on where this ended. A failure ends the session.
    pub fn send(&self, manifest: Arc<Manifest>, source: Arc<dyn Source>) -> Result<SendReport, NetError> {
        self.served.shared.send(manifest, source, &mut || false)
    }

    /// Refuses what the peer asks for, and ends the session.
    pub fn refuse(&self, reason: &str) {
        let mut state = lock(&self.served.shared.state);
        if !state.is_over() {
            state.renew(Some(ErrorFrame::new(ErrorCode::Refused, false, reason)));
        }
        self.served.shared.changed.notify_all();
    }

    /// Where the transfer stands that is under way.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.served.shared.state).progress()
    }

    /// Whether the peer is far, as far as TCP has seen by now.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.served.shared.is_far()
    }

    /// Has the session go by another way to the peer from now on, also in a transfer that is under way. How many lanes
    /// there are is the peer's matter, who dials them.
    pub fn relocate(&self, distance: Distance, round_trip: Duration) {
        self.served.shared.relocate(distance, round_trip);
    }

    /// What carries the lane that was made last.
    #[must_use]
    pub fn link(&self) -> LinkKind {
        lock(&self.served.shared.state).carried_by.0
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.served.peer
    }

    /// Ends the session: lanes say goodbye. Dropping the session does the same.
    pub fn close(&self) {
        let served = &*self.served;
        served.registry.remove(&served.id);
        let parting = served.shared.say_goodbye();
        for stage in [parting, parting] {
            let end = Instant::now() + stage;
            while Instant::now() < end && served.threads.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(PARTING_SLICE);
            }
            // Lanes that have not said goodbye by now are shut.
            served.shared.halt.cancel();
        }
    }
}

impl Watched for ServeSession {
    fn progress(&self) -> Progress {
        ServeSession::progress(self)
    }
}

impl Drop for ServeSession {
    fn drop(&mut self) {
        self.close();
    }
}
