//! The lanes of one session of a side that fetches, and the threads that make them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_proto::frame::ErrorCode;

use super::FetchOptions;
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::dial::{Dialled, Plan, WORTHWHILE, backoff, open_lane};
use crate::error::NetError;
use crate::lanes::{self, Dialling, Flow, LaneChange, LaneRange, Losses, TICK};
use crate::receive::{self, Names, ReceiveOptions, ReceiveSession, Session};
use crate::report::{Event, Observer};
use crate::transport::{Closer, wake_pair};

/// How often a thread without a lane looks around if nobody calls it.
const SLICE: Duration = CANCEL_SLICE.saturating_mul(4);

/// What the threads of lanes need.
pub(super) struct Fetching {
    plan: Arc<Plan>,
    session: Arc<Session>,
    /// Stops the making of lanes.
    stop: Cancel,
    /// The lane that has opened the session, until its thread takes it.
    first: Mutex<Option<Dialled>>,
}

/// A session, and a thread for each of its lanes.
pub(super) struct Crew {
    pub(super) receiver: ReceiveSession,
    pub(super) threads: Arc<lanes::Crew<Fetching>>,
}

impl Crew {
    /// Puts the lanes of the session to work that `first` has opened. `stop` ends the making of lanes, and `halt` shuts
    /// them, which may still have a last word to say when they are stopped.
    pub(super) fn start(
        plan: &Arc<Plan>,
        options: &FetchOptions,
        first: Dialled,
        (stop, halt): (Cancel, Cancel),
        observer: &Arc<dyn Observer>,
    ) -> Result<Crew, NetError> {
        let transport = first.lane.transport();
        let (peer, owner) = (transport.peer_addr(), transport.peer_fingerprint());
        let link = transport.kind();
        let names = Names { id: first.welcome.session, key: first.welcome.join_key, owner, peer, link };
        let most = first.welcome.max_lanes;
        let range = options.adaptive.filter(|_| options.distance.is_far(first.is_far()));
        let range = range.map(|range| LaneRange { most: range.most.min(most), ..range });
        let receiving = ReceiveOptions {
            limits: options.limits,
            dictionaries: Arc::clone(&options.dictionaries),
            idle_timeout: options.idle_timeout,
            ..ReceiveOptions::default()
        };
        let patience = Some(options.reconnect_for);
        let session = Session::new(names, receiving, patience, halt, Arc::clone(observer), Arc::default());
        let session = Arc::new(session);
        lock(&session.state).want(options.lanes.min(most));
        // Ends the session if there are no threads to be had; its lanes were shut then.
        let receiver = ReceiveSession::new(Arc::clone(&session));
        let side = Fetching { plan: Arc::clone(plan), session, stop, first: Mutex::new(Some(first)) };
        Ok(Crew { receiver, threads: lanes::Crew::start(side, range)? })
    }

    pub(super) fn session(&self) -> &Session {
        self.receiver.session()
    }

    /// Shuts all lanes at once.
    pub(super) fn halt(&self) {
        self.session().cancel.cancel();
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.session().state).is_over()
    }

    /// Whether blocks came for the transfer under way.
    pub(super) fn has_progress(&self) -> bool {
        lock(&self.session().state).has_progress()
    }

    /// Whether the listener may well answer in another session what it did not in this one.
    pub(super) fn is_worth_another(&self, error: &NetError) -> bool {
        lock(&self.session().state).forgotten || matches!(error, NetError::Peer { retryable: true, .. })
    }

    /// Ends the session: an answer that comes late has nobody to go to.
    pub(super) fn give_up(&self, error: &NetError) {
        let mut state = lock(&self.session().state);
        if let NetError::Deadline { what, after } = error {
            state.end(Some(NetError::Deadline { what, after: *after }), true);
        } else {
            state.end(None, false);
        }
        self.session().changed.notify_all();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.receiver.close();
        // Whoever makes a lane still, or waits in order to, is not needed any more.
        self.threads.side.stop.cancel();
        self.halt();
        self.threads.join();
    }
}

impl Dialling for Fetching {
    const NAME: &'static str = "fetch";
    const RECEIVES: bool = true;

    fn run(&self, number: u16) {
        let first = if number == 0 { lock(&self.first).take() } else { None };
        run(&self.plan, &self.session, &self.stop, number, first);
    }

    fn wanted(&self) -> u16 {
        lock(&self.session.state).wanted
    }

    fn want(&self, lanes: u16) {
        lock(&self.session.state).want(lanes);
    }

    /// It is for the side that sends to mind them.
    fn losses(&self, _lanes: &[(u32, Closer)]) -> Losses {
        Losses::Fair
    }

    fn hurry(&self, _lanes: &[(u32, Closer)], _on: bool) {}

    fn note(&self, changes: &[LaneChange]) {
        lock(&self.session.state).lane_changes = changes.to_vec();
    }

    fn await_flow(&self) -> Option<Flow> {
        let mut state = lock(&self.session.state);
        loop {
            if state.is_over() || self.stop.is_cancelled() {
                return None;
            }
            if let Some(flow) = state.flow() {
                return Some(flow);
            }
            let patience = if state.transfer.is_some() { TICK } else { SLICE };
            state = wait(&self.session.changed, state, patience);
        }
    }

    fn stop(&self) -> &Cancel {
        &self.stop
    }

    fn halt(&self) {
        self.session.cancel.cancel();
    }
}

/// Runs lane `number` until the session is over, or the lane is not wanted any more.
fn run(plan: &Plan, session: &Session, stop: &Cancel, number: u16, first: Option<Dialled>) {
    let mut ready = first;
    let mut attempts = 0;
    while let Some(Dialled { mut lane, .. }) =
        ready.take().or_else(|| make_lane(plan, session, stop, number, &mut attempts))
    {
        let (waker, wake) = match wake_pair() {
            Ok(pair) => pair,
            Err(error) => {
                log::debug!("lane {number} could not start: {error}");
                return;
            }
        };
        let attached = {
            let mut state = lock(&session.state);
            state.carried_by = lane.transport().kind();
            state.attach(number, waker, lane.closer(), u16::MAX)
        };
        let Some(id) = attached else {
            lane.close();
            return;
        };
        let started = Instant::now();
        receive::run(session, lane, id, wake);
        if started.elapsed() >= WORTHWHILE {
            attempts = 0;
        } else {
            attempts += 1;
            if stop.sleep(backoff(attempts)).is_err() {
                return;
            }
        }
    }
}

/// Makes a lane once it is needed; none when the session is over, or it is not wanted any more.
fn make_lane(
    plan: &Plan,
    session: &Session,
    stop: &Cancel,
    number: u16,
    attempts: &mut u32,
) -> Option<Dialled> {
    loop {
        await_need(session, stop, number)?;
        let join = Some((session.id, session.key));
        let error = match open_lane(plan, number, join, (stop, &session.cancel)) {
            Ok(dialled) => return Some(dialled),
            Err(error) => error,
        };
        let reason = error.to_string();
        let mut state = lock(&session.state);
        let alone = !state.has_lanes();
        match &error {
            NetError::Peer { code: ErrorCode::Auth, .. } if alone => {
                state.forgotten = true;
                let hint = Some("it does not know the session any more");
                state.end(Some(NetError::PeerClosed { phase: "being met again", hint }), false);
            }
            NetError::Auth { .. } | NetError::Version { .. } | NetError::Peer { retryable: false, .. }
                if alone =>
            {
                state.end(Some(error), false);
            }
            _ => state.last_failure = Some(error),
        }
        drop(state);
        session.changed.notify_all();
        *attempts += 1;
        let after = backoff(*attempts);
        session.observer.event(Event::Reconnecting { attempt: *attempts, after, reason });
        stop.sleep(after).ok()?;
    }
}

fn await_need(session: &Session, stop: &Cancel, number: u16) -> Option<()> {
    let mut state = lock(&session.state);
    loop {
        if state.is_over() || stop.is_cancelled() || number >= state.wanted {
            return None;
        }
        if state.needs_lane(number) {
            return Some(());
        }
        state = wait(&session.changed, state, SLICE);
    }
}
