//! The sessions of a listener, whichever way their states go.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{Secret, SessionId};
use dwcp_proto::{EntryKind, Manifest};

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::receive::{ReceiveSession, Session};
use crate::relay::{Relayed, TargetRelay};
use crate::security::Fingerprint;
use crate::serve::{ServeSession, Served};

/// A sender that is there says something every 5 s at least.
const MAX_SILENCE: Duration = Duration::from_secs(6);

/// A session that a listener knows.
#[derive(Clone)]
pub(crate) enum Known {
    /// The peer sends.
    Receives(Arc<Session>),
    /// The peer fetches.
    Serves(Arc<Served>),
    /// The peer is the other side of a relay.
    Relays(Arc<Relayed>),
}

/// A peer that was let in.
pub enum Arrival {
    /// It sends.
    Sender(ReceiveSession),
    /// It asks for something to be sent.
    Fetcher(ServeSession),
    /// It is the other side of a relay.
    Relay(TargetRelay),
}

impl Known {
    pub(crate) fn id(&self) -> SessionId {
        match self {
            Known::Receives(session) => session.id,
            Known::Serves(served) => served.id,
            Known::Relays(relayed) => relayed.id(),
        }
    }

    pub(crate) fn key(&self) -> Secret {
        match self {
            Known::Receives(session) => session.key,
            Known::Serves(served) => served.key,
            Known::Relays(relayed) => relayed.key(),
        }
    }

    pub(crate) fn owner(&self) -> Option<Fingerprint> {
        match self {
            Known::Receives(session) => session.owner,
            Known::Serves(served) => served.owner,
            Known::Relays(relayed) => relayed.owner,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        match self {
            Known::Receives(session) => lock(&session.state).is_over(),
            Known::Serves(served) => served.is_over(),
            Known::Relays(relayed) => relayed.is_over(),
        }
    }

    /// Whether there is something to do for whoever accepts it.
    fn is_ready(&self) -> bool {
        match self {
            Known::Receives(_) | Known::Relays(_) => true,
            Known::Serves(served) => served.is_asked(),
        }
    }

    /// Ends it if it has had no lane for too long; tells whether it is over and has none left.
    fn expire(&self) -> bool {
        match self {
            Known::Receives(session) => {
                let mut state = lock(&session.state);
                session.expire(&mut state);
                state.is_over() && !state.has_lanes()
            }
            Known::Serves(served) => served.expire(),
            Known::Relays(relayed) => relayed.has_ended(),
        }
    }

    fn arrive(self) -> Arrival {
        match self {
            Known::Receives(session) => Arrival::Sender(ReceiveSession::new(session)),
            Known::Serves(served) => Arrival::Fetcher(ServeSession::new(served)),
            Known::Relays(relayed) => Arrival::Relay(TargetRelay::new(relayed)),
        }
    }
}

/// All sessions of a listener, and those that nobody has accepted yet.
#[derive(Default)]
pub(crate) struct Registry {
    sessions: Mutex<Sessions>,
    arrived: Condvar,
}

#[derive(Default)]
struct Sessions {
    /// Nobody accepts any more.
    closed: bool,
    known: HashMap<SessionId, Known>,
    waiting: VecDeque<Known>,
}

impl Registry {
    /// Adds a session, unless there are `limit` already.
    pub(crate) fn add(&self, session: &Known, limit: usize) -> bool {
        let mut sessions = lock(&self.sessions);
        if sessions.known.len() >= limit {
            return false;
        }
        sessions.known.insert(session.id(), session.clone());
        true
    }

    /// What may be sent to all peers together is another from now on.
    pub(crate) fn allow(&self, bytes_per_s: Option<u64>) {
        for session in lock(&self.sessions).known.values() {
            if let Known::Serves(served) = session {
                served.allow(bytes_per_s);
            }
        }
    }

    /// Offers a session to whoever accepts; ends it if nobody does any more.
    pub(crate) fn announce(&self, session: &Known) {
        let mut sessions = lock(&self.sessions);
        if sessions.closed {
            sessions.known.remove(&session.id());
            drop(sessions);
            match session {
                Known::Receives(session) => lock(&session.state).end(None, false),
                Known::Serves(served) => served.end(),
                Known::Relays(relayed) => relayed.end(),
            }
            return;
        }
        sessions.waiting.push_back(session.clone());
        self.arrived.notify_all();
    }

    /// Has those who accept look again: a peer has asked for something.
    pub(crate) fn wake(&self) {
        let _sessions = lock(&self.sessions);
        self.arrived.notify_all();
    }

    pub(crate) fn find(&self, id: &SessionId) -> Option<Known> {
        lock(&self.sessions).known.get(id).cloned()
    }

    pub(crate) fn remove(&self, id: &SessionId) {
        let mut sessions = lock(&self.sessions);
        sessions.known.remove(id);
        sessions.waiting.retain(|waiting| waiting.id() != *id);
    }

    fn all(&self) -> Vec<Known> {
        lock(&self.sessions).known.values().cloned().collect()
    }

    /// The next session that is `wanted` and that nobody has accepted yet.
    pub(crate) fn accept(
        &self,
        timeout: Option<Duration>,
        cancel: &Cancel,
        wanted: impl Fn(&Known) -> bool,
    ) -> Result<Arrival, NetError> {
        let start = Instant::now();
        let mut sessions: MutexGuard<'_, Sessions> = lock(&self.sessions);
        loop {
            cancel.check()?;
            if sessions.closed {
                return Err(NetError::Closed);
            }
            let place = sessions.waiting.iter().position(|known| wanted(known) && known.is_ready());
            if let Some(session) = place.and_then(|place| sessions.waiting.remove(place)) {
                return Ok(session.arrive());
            }
            if let Some(after) = timeout.filter(|limit| start.elapsed() >= *limit) {
                return Err(NetError::Deadline { what: "a peer", after });
            }
            sessions = wait(&self.arrived, sessions, CANCEL_SLICE);
        }
    }

    /// Ends sessions without lanes, and forgets those that have ended and that nobody has accepted.
    pub(crate) fn sweep(&self) {
        for session in self.all() {
            if session.expire() {
                let mut sessions = lock(&self.sessions);
                let unaccepted = sessions.waiting.len();
                sessions.waiting.retain(|waiting| waiting.id() != session.id());
                if sessions.waiting.len() < unaccepted {
                    sessions.known.remove(&session.id());
                }
            }
        }
    }

    /// Ends the sessions that nobody has accepted, since nobody will any more.
    pub(crate) fn end_unaccepted(&self) {
        let waiting = {
            let mut sessions = lock(&self.sessions);
            sessions.closed = true;
            self.arrived.notify_all();
            std::mem::take(&mut sessions.waiting)
        };
        for session in waiting {
            // It says goodbye, as an accepted one would.
            drop(session.arrive());
        }
    }

    /// Ends every other session of the same sender that works on the same transfer: the sender has lost it.
    ///
    /// Buffers have no place that two sessions could not work on, and a state of several parts may come from several
    /// processes that name them alike; such a session is only ended when nothing has come from its sender for longer
    /// than a sender may be silent.
    pub(crate) fn take_over(&self, manifest: &Manifest, by: &Session) -> Vec<Arc<Session>> {
        let transfer = manifest.transfer_id();
        let buffers = manifest.entries().iter().any(|entry| entry.kind == EntryKind::Buffer);
        let receives = |known| match known {
            Known::Receives(session) => Some(session),
            Known::Serves(_) | Known::Relays(_) => None,
        };
        let mut others: Vec<Arc<Session>> = self.all().into_iter().filter_map(receives).collect();
        others.retain(|other| {
            if other.id == by.id || other.owner != by.owner {
                return false;
            }
            let mut state = lock(&other.state);
            let alive =
                buffers && (state.sink.is_none() || (state.has_lanes() && state.is_heard(MAX_SILENCE)));
            let same = state.transfer == Some(transfer) && !alive;
            if same {
                let hint = Some("the sender goes on in another session");
                state.end(Some(NetError::PeerClosed { phase: "sending", hint }), false);
                other.changed.notify_all();
            }
            same
        });
        others
    }
}
