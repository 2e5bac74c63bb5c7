//! What the lanes of a receiver's session share.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{Committed, ErrorFrame, Secret, SessionId, TransferId};
use dwcp_proto::receiver::{LaneId, ReceiverSession};
use dwcp_proto::{EntryKind, Manifest};
use dwcp_store::Sink;

use super::{ReceiveOptions, ReceiveSession};
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::report::{Observer, Progress, ReceiveReport, Tally};
use crate::security::{Fingerprint, random_bytes};
use crate::transport::{Closer, Waker};

/// A sender that is there says something every 5 s at least.
const MAX_SILENCE: Duration = Duration::from_secs(6);

/// A session that this receiver knows.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) key: Secret,
    /// The certificate of the sender that opened it; only the same may join.
    pub(crate) owner: Option<Fingerprint>,
    pub(crate) peer: SocketAddr,
    pub(crate) options: ReceiveOptions,
    pub(crate) cancel: Cancel,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    /// Lanes store blocks with a share of it; preparing, committing and discarding need it alone.
    pub(super) gate: RwLock<()>,
}

/// A lane of the session.
struct LaneHandle {
    /// The sender's number for it.
    number: u16,
    waker: Waker,
    closer: Closer,
    /// Its sender has made another in its place.
    replaced: bool,
}

/// What changes.
pub(crate) struct State {
    pub(super) session: ReceiverSession,
    lanes: HashMap<LaneId, LaneHandle>,
    next_lane: LaneId,
    lonely_since: Instant,
    /// When the last frame came.
    pub(super) heard: Instant,
    /// Where the transfer goes; there while somebody waits for it.
    pub(super) sink: Option<Arc<dyn Sink>>,
    /// The transfer that is under way.
    pub(super) transfer: Option<TransferId>,
    pub(super) prepared: bool,
    started: Instant,
    pub(super) tally: Tally,
    /// A transfer that is in place and that nobody was told of yet.
    pub(super) done: Option<ReceiveReport>,
    /// The session is over: in peace, or with a failure that is told once.
    pub(super) ended: Option<Option<NetError>>,
    /// What the lanes tell the sender then; they part in peace without it.
    pub(super) parting: Option<ErrorFrame>,
    /// Why the last lane was lost.
    pub(super) last_failure: Option<NetError>,
    /// The lane that the last COMMITTED went on and when, until it is known that the sender has read it.
    pub(super) unconfirmed: Option<(LaneId, Instant)>,
    /// The session ends as soon as that is known.
    pub(super) leaving: bool,
}

impl Session {
    /// A session for a sender that has shown who it is.
    pub(crate) fn new(
        owner: Option<Fingerprint>,
        peer: SocketAddr,
        options: ReceiveOptions,
        cancel: Cancel,
        observer: Arc<dyn Observer>,
        registry: Arc<Registry>,
    ) -> Result<Session, NetError> {
        let mut id = random_bytes()?;
        if id == [0; 16] {
            id[0] = 1;
        }
        Ok(Session {
            id: SessionId(id),
            key: Secret(random_bytes()?),
            owner,
            peer,
            state: Mutex::new(State {
                session: ReceiverSession::new(options.limits),
                lanes: HashMap::new(),
                next_lane: 0,
                lonely_since: Instant::now(),
                heard: Instant::now(),
                sink: None,
                transfer: None,
                prepared: false,
                started: Instant::now(),
                tally: Tally::default(),
                done: None,
                ended: None,
                parting: None,
                last_failure: None,
                unconfirmed: None,
                leaving: false,
            }),
            options,
            cancel,
            observer,
            registry,
            changed: Condvar::new(),
            gate: RwLock::new(()),
        })
    }

    /// Ends the session if it has had no lane for too long.
    pub(crate) fn expire(&self, state: &mut State) {
        let limit = self.options.idle_timeout;
        if state.ended.is_none() && state.lanes.is_empty() && state.lonely_since.elapsed() >= limit {
            let phase = if state.transfer.is_some() { "sending" } else { "idle" };
            let gone = NetError::PeerClosed { phase, hint: Some("it did not come back") };
            let failure = state.last_failure.take().unwrap_or(gone);
            state.end(Some(failure), false);
            self.changed.notify_all();
        }
    }

    /// Lets the sender learn of a commit before the session ends: it is asked to read everything on the lane that
    /// COMMITTED went on, and if that is lost, the session is there for the sender to ask again until `patience` has
    /// passed since the commit.
    pub(super) fn linger(&self, patience: Duration) {
        let mut state = lock(&self.state);
        while state.ended.is_none() && !self.cancel.is_cancelled() {
            match state.unconfirmed {
                Some((_, since)) if since.elapsed() < patience => {}
                _ => return,
            }
            if !std::mem::replace(&mut state.leaving, true) {
                state.wake_all();
            }
            state = wait(&self.changed, state, CANCEL_SLICE);
        }
    }

    /// Waits until all lanes have ended, and shuts those that have not by then.
    pub(super) fn await_lanes(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = lock(&self.state);
        while !state.lanes.is_empty() {
            if Instant::now() >= end || self.cancel.is_cancelled() {
                state.lanes.values().for_each(|lane| lane.closer.close());
            }
            // A lane that is inside the sink comes back when the disk does; the sink must not be used after that.
            state = wait(&self.changed, state, CANCEL_SLICE);
        }
    }
}

impl State {
    /// Adds the lane that the sender calls `number`, unless the session is over or has as many as it may. If it has,
    /// but the sender has lost one of them that is not yet known to be lost here, the new one takes its place.
    pub(crate) fn attach(&mut self, number: u16, waker: Waker, closer: Closer, limit: u16) -> Option<LaneId> {
        let limit = usize::from(limit);
        // One that is replaced is there until its thread has noticed.
        if self.ended.is_some() || self.lanes.len() >= 2 * limit {
            return None;
        }
        if self.lanes.values().filter(|lane| !lane.replaced).count() >= limit {
            let lost = self.lanes.values_mut().find(|lane| lane.number == number && !lane.replaced)?;
            lost.replaced = true;
            lost.closer.close();
        }
        let lane = self.next_lane;
        self.next_lane += 1;
        self.lanes.insert(lane, LaneHandle { number, waker, closer, replaced: false });
        self.session.attach(lane);
        self.tally.lanes_used += 1;
        Some(lane)
    }

    /// Takes a lane away.
    pub(super) fn detach(&mut self, lane: LaneId) {
        self.session.detach(lane);
        self.lanes.remove(&lane);
        if self.lanes.is_empty() {
            self.lonely_since = Instant::now();
        }
    }

    /// Takes a lane away that the sender was never told of.
    pub(crate) fn withdraw(&mut self, lane: LaneId) {
        self.detach(lane);
        self.tally.lanes_used -= 1;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn has_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Ends the session, if it has not ended before; `tell` has the lanes tell the sender why.
    pub(crate) fn end(&mut self, failure: Option<NetError>, tell: bool) {
        if self.ended.is_some() {
            return;
        }
        self.parting = failure
            .as_ref()
            .filter(|_| tell)
            .map(|error| ErrorFrame::new(error.code(), error.resumable(), &error.for_peer()));
        self.ended = Some(failure);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.lanes.values().for_each(|lane| lane.waker.wake());
    }

    /// The failure that ended the session, the first time; later only that it is over.
    pub(super) fn take_failure(&mut self) -> Option<NetError> {
        let over = NetError::PeerClosed { phase: "closed", hint: Some("this session is over") };
        match &mut self.ended {
            Some(failure @ Some(_)) => failure.replace(over),
            _ => None,
        }
    }

    /// Notes that a transfer has begun, or goes on after its offer was repeated.
    pub(super) fn begin(&mut self, transfer: TransferId) {
        if self.transfer != Some(transfer) {
            self.transfer = Some(transfer);
            // Whoever goes on to the next transfer has read that the last one is in place.
            self.unconfirmed = None;
            self.started = Instant::now();
            self.tally = Tally::on_lanes(self.lanes.len());
        }
    }

    /// Notes that the transfer is in place, and makes room for the next.
    pub(super) fn finish(&mut self, committed: &Committed, peer: SocketAddr) -> ReceiveReport {
        let progress = self.session.progress();
        let (blocks_received, bytes_received_raw, bytes_wire) = self.tally.sums();
        let entries = self.session.manifest().map_or(0, |manifest| manifest.entries().len() as u32);
        let report = ReceiveReport {
            transfer_id: committed.transfer_id,
            transfer_digest: committed.transfer_digest,
            entries,
            bytes_raw: progress.total_bytes,
            bytes_held: progress.staged_bytes,
            bytes_same: progress.copied_bytes,
            bytes_received_raw,
            bytes_wire,
            blocks_received,
            blocks_same: progress.blocks_copied,
            nacks: progress.nacks,
            lanes_used: self.tally.lanes_used,
            lanes_lost: self.tally.lanes_lost,
            integrity_failures: self.tally.integrity_failures,
            seconds: self.started.elapsed().as_secs_f64(),
            codec_mix: self.tally.codec_mix(),
            cpu_seconds: self.tally.cpu.as_secs_f64(),
            peer,
        };
        self.sink = None;
        self.transfer = None;
        self.prepared = false;
        self.last_failure = None;
        report
    }

    pub(super) fn progress(&self) -> Progress {
        let progress = self.session.progress();
        Progress {
            state_bytes_done: progress
                .total_bytes
                .min(progress.staged_bytes + progress.stored_bytes + progress.copied_bytes),
            state_bytes_total: if self.transfer.is_some() { progress.total_bytes } else { 0 },
            wire_bytes: progress.body_bytes,
            lanes: self.lanes.len() as u32,
            blocks_resent: 0,
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
    known: HashMap<SessionId, Arc<Session>>,
    waiting: VecDeque<Arc<Session>>,
}

impl Registry {
    /// Adds a session, unless there are `limit` already.
    pub(crate) fn add(&self, session: &Arc<Session>, limit: usize) -> bool {
        let mut sessions = lock(&self.sessions);
        if sessions.known.len() >= limit {
            return false;
        }
        sessions.known.insert(session.id, Arc::clone(session));
        true
    }

    /// Offers a session to whoever accepts; ends it if nobody does any more.
    pub(crate) fn announce(&self, session: &Arc<Session>) {
        let mut sessions = lock(&self.sessions);
        if sessions.closed {
            sessions.known.remove(&session.id);
            drop(sessions);
            lock(&session.state).end(None, false);
            return;
        }
        sessions.waiting.push_back(Arc::clone(session));
        self.arrived.notify_one();
    }

    pub(crate) fn find(&self, id: &SessionId) -> Option<Arc<Session>> {
        lock(&self.sessions).known.get(id).cloned()
    }

    pub(crate) fn remove(&self, session: &Session) {
        let mut sessions = lock(&self.sessions);
        sessions.known.remove(&session.id);
        sessions.waiting.retain(|waiting| waiting.id != session.id);
    }

    fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.sessions).known.values().cloned().collect()
    }

    /// The next session that nobody has accepted yet.
    pub(crate) fn accept(
        &self,
        timeout: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<ReceiveSession, NetError> {
        let start = Instant::now();
        let mut sessions: MutexGuard<'_, Sessions> = lock(&self.sessions);
        loop {
            cancel.check()?;
            if let Some(session) = sessions.waiting.pop_front() {
                return Ok(ReceiveSession::new(session));
            }
            if let Some(after) = timeout.filter(|limit| start.elapsed() >= *limit) {
                return Err(NetError::Deadline { what: "a sender", after });
            }
            sessions = wait(&self.arrived, sessions, CANCEL_SLICE);
        }
    }

    /// Ends sessions without lanes, and forgets those that have ended and that nobody has accepted.
    pub(crate) fn sweep(&self) {
        for session in self.all() {
            let mut state = lock(&session.state);
            session.expire(&mut state);
            let over = state.ended.is_some() && !state.has_lanes();
            drop(state);
            if over {
                let mut sessions = lock(&self.sessions);
                let unaccepted = sessions.waiting.len();
                sessions.waiting.retain(|waiting| waiting.id != session.id);
                if sessions.waiting.len() < unaccepted {
                    sessions.known.remove(&session.id);
                }
            }
        }
    }

    /// Ends the sessions that nobody has accepted, since nobody will any more.
    pub(crate) fn end_unaccepted(&self) {
        let waiting = {
            let mut sessions = lock(&self.sessions);
            sessions.closed = true;
            std::mem::take(&mut sessions.waiting)
        };
        for session in waiting {
            // It says goodbye, as an accepted one would.
            drop(ReceiveSession::new(session));
        }
    }

    /// Ends every other session of the same sender that works on `transfer`: the sender has lost it.
    ///
    /// Buffers have no place that two sessions could not work on, and a state of several parts may come from several
    /// processes that name them alike; such a session is only ended when nothing has come from its sender for longer
    /// than a sender may be silent.
    pub(super) fn take_over(&self, manifest: &Manifest, by: &Session) -> Vec<Arc<Session>> {
        let transfer = manifest.transfer_id();
        let buffers = manifest.entries().iter().any(|entry| entry.kind == EntryKind::Buffer);
        let mut others = self.all();
        others.retain(|other| {
            if other.id == by.id || other.owner != by.owner {
                return false;
            }
            let mut state = lock(&other.state);
            let alive = buffers
                && (state.sink.is_none() || (state.has_lanes() && state.heard.elapsed() < MAX_SILENCE));
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
