//! What the threads of one side of a relay share.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_codec::select::Summary;
use dwcp_proto::LaneId;
use dwcp_proto::frame::{ErrorCode, ErrorFrame, Secret, SessionId};
use dwcp_proto::relay::{Inbox, MAX_PENDING_BYTES, Outbox};
use dwcp_vm::{BaseIndex, PageCounts};

use super::RelayOptions;
use super::base::Base;
use super::pool::{Buffer, Pool};
use super::report::{RelayReport, RelayTick, again};
use super::streams::READ_BYTES;
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::lane::{PARTING, guard};
use crate::limiter::Limiter;
use crate::report::Observer;
use crate::send::{LossWatch, Selector};
use crate::transport::{Closer, Waker};

/// This many times altered bytes are sent again; then the path is not fit for use.
const MAX_INTEGRITY_FAILURES: u32 = 3;

/// What goes back to the side that dials is under way in no larger amount: the buffers of one connection hold it, so
/// that neither side can wait for the other to read while both write.
const MOST_RETURNING: u64 = 128 << 10;

/// What is not taken is no more than this and what a link of so many bytes a second has under way in a round trip: to a
/// near peer, what waits at the other side's socket is added to the time for which the machine stands still.
const LEAST_PENDING: f64 = 2e6;
const FASTEST_LINK: f64 = 1.25e9;

/// A stream may have this many times as much under way as there is room left: the one that is alone four fifths of all of
/// it, and any other something still (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
/// switches", 1998).
const SHARE: u64 = 4;

/// What has come is taken within so much more than the time that records take to come, or nothing is added to it: few bytes
/// on the wire may be many to the machine there, and what it is late by when the other one is stopped, that one stands still
/// for longer. In the time that records take, the word that it is less late has come, and what is sent then.
const MOST_LATE_S: f64 = 0.05;

/// A lane that is this many times as slow as the fastest, and needs so many round trips for a record, is given none: TCP that
/// loses one of its first bytes stays far behind the others for the whole time of a move.
const SLOW: f64 = 8.0;
const SLOW_TRIPS: f64 = 2.0;

/// Records that wait for a lane: what waits when a machine is stopped is added to the time for which it stands still.
const MOST_WAITING: usize = 2;

/// What others wait for is late after this many times as long as a record takes, and as often as TCP would have sent it
/// again: while there is something else to send, and while there is not. A second copy that is sent before TCP had its
/// chance comes after what TCP sends again. It has it once after its timeout, and again after twice as long.
const LATE: (f64, f64) = (2.0, 1.2);
const LATE_TIMEOUTS: (f64, f64) = (3.0, 1.0);

/// The timeout of TCP where the system does not tell it: the least there is.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It has dialled, and opens streams.
    Source,
    /// It has let the other in.
    Target,
}

pub(super) struct LaneHandle {
    pub(super) number: u16,
    pub(super) waker: Waker,
    pub(super) closer: Closer,
    /// It waits for something to do.
    pub(super) idle: bool,
    /// Bytes a second that its congestion control lets it send, once the system was asked.
    pub(super) rate: Option<f64>,
}

impl LaneHandle {
    pub(super) fn is_slow(&self, slow_rate: f64) -> bool {
        self.rate.is_some_and(|rate| rate < slow_rate)
    }
}

/// A stream, and what is left of it.
pub(super) struct Stream {
    pub(super) socket: Option<Arc<UnixStream>>,
    pub(super) is_migration: bool,
    pub(super) read_over: bool,
    pub(super) write_over: bool,
    /// Whoever writes to its socket waits here: for the next record, or the end of the relay.
    pub(super) came: Arc<Condvar>,
}

impl Stream {
    pub(super) fn new(socket: Option<Arc<UnixStream>>, is_migration: bool) -> Stream {
        Stream { socket, is_migration, read_over: false, write_over: false, came: Arc::default() }
    }
}

pub(super) struct State {
    pub(super) outbox: Outbox<Arc<Buffer>>,
    pub(super) inbox: Inbox<Buffer>,
    pub(super) lanes: HashMap<LaneId, LaneHandle>,
    next_lane: LaneId,
    pub(super) wanted: u16,
    lonely_since: Instant,
    pub(super) streams: HashMap<u32, Stream>,
    pub(super) next_stream: u32,
    /// Streams below this one are connected, or never will be.
    pub(super) connected: u32,
    /// No further streams: the session is over once those that are there have ended.
    pub(super) finishing: bool,
    finished: bool,
    /// When it ended, and how many lanes were up then.
    ended: Option<(Instant, u32)>,
    failure: Option<NetError>,
    parting: Option<ErrorFrame>,
    /// All of it but the time line.
    pub(super) report: RelayReport,
    timeline: Vec<RelayTick>,
    pub(super) round_trip: Option<Duration>,
    /// After how long TCP sends again what nobody has acknowledged, on the lane where that takes longest.
    pub(super) timeout: Option<Duration>,
    /// Processor time of lanes.
    pub(super) cpu: Duration,
    /// The stream whose pages are looked into, as far as is known.
    paged: Option<u32>,
    pub(super) losses: LossWatch,
    integrity_failures: u32,
    threads: Vec<JoinHandle<()>>,
}

/// Everything that does not change, and the state that does.
pub(crate) struct Shared {
    pub(super) side: Side,
    pub(super) id: SessionId,
    pub(super) key: Secret,
    pub(super) options: RelayOptions,
    /// Stops everything but lanes, which may have a last word to say.
    pub(super) cancel: Cancel,
    /// Shuts the lanes.
    pub(super) halt: Cancel,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) selector: Option<Selector>,
    selected_before: Option<Summary>,
    pub(super) started: Instant,
    /// What both sides hold of each stream, once it was agreed.
    pub(super) cache_bytes: OnceLock<u64>,
    pub(super) index: Mutex<Option<BaseIndex>>,
    pub(super) base: Option<Arc<Base>>,
    pub(super) pool: Arc<Pool>,
    pub(super) ignores_losses: AtomicBool,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn new(
        side: Side,
        (id, key): (SessionId, Secret),
        options: RelayOptions,
        (cancel, halt): (Cancel, Cancel),
        observer: Arc<dyn Observer>,
        base: Option<Arc<Base>>,
    ) -> Shared {
        let limiter = Arc::new(Limiter::new(options.bandwidth_limit));
        // What goes back is little, and waited for.
        let selector = match side {
            Side::Source => Selector::new(&options.codec, options.lanes, None, options.bandwidth_limit),
            Side::Target => None,
        };
        let selected_before = selector.as_ref().map(Selector::begin);
        let now = Instant::now();
        Shared {
            side,
            id,
            key,
            cancel,
            halt,
            observer,
            limiter,
            selector,
            selected_before,
            started: now,
            cache_bytes: OnceLock::new(),
            index: Mutex::default(),
            base,
            pool: Arc::default(),
            ignores_losses: AtomicBool::new(false),
            state: Mutex::new(State {
                outbox: Outbox::default(),
                inbox: Inbox::new(side == Side::Target),
                lanes: HashMap::new(),
                next_lane: 0,
                wanted: options.lanes,
                lonely_since: now,
                streams: HashMap::new(),
                next_stream: 0,
                connected: 0,
                finishing: false,
                finished: false,
                ended: None,
                failure: None,
                parting: None,
                report: RelayReport::default(),
                timeline: Vec::new(),
                round_trip: None,
                timeout: None,
                cpu: Duration::ZERO,
                paged: None,
                losses: LossWatch::default(),
                integrity_failures: 0,
                threads: Vec::new(),
            }),
            options,
            changed: Condvar::new(),
        }
    }

    /// Starts a thread that is waited for at the end; its failure is that of the session.
    pub(super) fn spawn(
        self: &Arc<Shared>,
        name: &str,
        work: impl FnOnce() -> Result<(), NetError> + Send + 'static,
    ) -> Result<(), NetError> {
        lock(&self.state).spawn(name, work, self)
    }

    /// Ends the session with a failure; every socket is shut.
    pub(super) fn fail(&self, error: NetError) {
        let mut state = lock(&self.state);
        if state.is_over() {
            return;
        }
        match &error {
            // Somebody wanted it.
            NetError::Cancelled | NetError::Relay { code: ErrorCode::Cancelled, .. } => {
                log::info!("the relay is ended: {error}");
            }
            error => log::warn!("the relay fails: {error}"),
        }
        state.parting = match &error {
            NetError::Peer { .. } => None,
            error => {
                let code = match error.code() {
                    ErrorCode::Internal => ErrorCode::Cancelled,
                    code => code,
                };
                Some(ErrorFrame::new(code, false, &error.for_peer()))
            }
        };
        state.report.error = Some(error.to_string());
        state.failure = Some(error);
        state.ended = Some((Instant::now(), state.lanes.len() as u32));
        state.shut_streams();
        state.wake_all();
        drop(state);
        self.changed.notify_all();
    }

    /// Altered bytes cost the lane; too many of them cost the session.
    pub(super) fn count_altered(&self, error: &NetError) {
        log::warn!("bytes were altered on the way, the lane is replaced: {error}");
        let times = {
            let mut state = lock(&self.state);
            state.integrity_failures += 1;
            state.integrity_failures
        };
        if times >= MAX_INTEGRITY_FAILURES {
            self.fail(NetError::Integrity { times, reason: error.to_string() });
        }
    }

    /// Waits for the end of the session.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Result<(), NetError> {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        loop {
            if let Some(error) = &state.failure {
                return Err(again(error));
            }
            if state.finished {
                return Ok(());
            }
            if let Some(after) = timeout.filter(|limit| begun.elapsed() >= *limit) {
                return Err(NetError::Deadline { what: "the end of the relay", after });
            }
            state = wait(&self.changed, state, CANCEL_SLICE);
        }
    }

    /// Ends every thread, once lanes had a moment to tell the peer.
    pub(super) fn close(&self) {
        self.fail(NetError::Cancelled);
        let end = Instant::now() + PARTING;
        while Instant::now() < end && !lock(&self.state).lanes.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.cancel.cancel();
        self.halt.cancel();
        let threads = std::mem::take(&mut lock(&self.state).threads);
        for thread in threads {
            // A thread that panicked has nothing more to say.
            let _ = thread.join();
        }
    }

    pub(super) fn report(&self, with_timeline: bool) -> RelayReport {
        let mut report = lock(&self.state).snapshot(self.started, with_timeline);
        report.selection =
            self.selector.as_ref().zip(self.selected_before.as_ref()).map(|(it, before)| it.summary(before));
        report
    }
}

impl State {
    /// [`Shared::spawn`] for whoever holds the state.
    pub(super) fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(), NetError> + Send + 'static,
        shared: &Arc<Shared>,
    ) -> Result<(), NetError> {
        let owner = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = guard(work) {
                owner.fail(error);
            }
        });
        let thread = thread.map_err(|source| NetError::Io {
            action: "start the thread",
            addr: name.to_owned(),
            source,
        })?;
        self.threads.retain(|thread| !thread.is_finished());
        self.threads.push(thread);
        Ok(())
    }

    /// Whether nothing more is to be done.
    pub(super) fn is_over(&self) -> bool {
        self.finished || self.failure.is_some()
    }

    /// The session has ended in peace.
    pub(super) fn conclude(&mut self) {
        self.finished = true;
        self.ended = Some((Instant::now(), self.lanes.len() as u32));
        self.streams.values().for_each(|stream| stream.came.notify_all());
        self.wake_all();
    }

    pub(super) fn parting(&self) -> Option<&ErrorFrame> {
        self.parting.as_ref()
    }

    pub(super) fn attach(&mut self, number: u16, waker: Waker, closer: Closer) -> LaneId {
        let id = self.next_lane;
        self.next_lane += 1;
        self.lanes.insert(id, LaneHandle { number, waker, closer, idle: false, rate: None });
        // What the lanes before have told may have been lost.
        self.inbox.tell_again();
        id
    }

    pub(super) fn detach(&mut self, id: LaneId, lost: bool) {
        if self.lanes.remove(&id).is_none() {
            return;
        }
        self.outbox.lose(id);
        self.inbox.tell_again();
        self.report.lanes_lost += u32::from(lost && !self.is_over());
        if self.lanes.is_empty() {
            self.lonely_since = Instant::now();
            if !lost && !self.is_over() && self.is_settled() {
                self.conclude();
            }
        }
        self.wake_all();
    }

    /// Gives the session up if no lane has been there for `limit`; gives why, if that is a failure.
    pub(super) fn expire(&mut self, limit: Duration) -> Option<NetError> {
        if self.is_over() || !self.lanes.is_empty() || self.lonely_since.elapsed() < limit {
            return None;
        }
        if self.next_stream > 0 && self.is_settled() {
            // All that was to come has come; only the goodbye was lost.
            self.conclude();
            return None;
        }
        Some(NetError::PeerClosed { phase: "relaying", hint: Some("it did not come back") })
    }

    pub(super) fn wake_all(&self) {
        self.lanes.values().for_each(|lane| lane.waker.wake());
    }

    /// Has one lane look for work.
    pub(super) fn wake_one(&mut self) {
        let slow_rate = self.slow_rate();
        // One that has something to do looks when it has done that.
        if let Some(lane) = self.lanes.values_mut().find(|lane| lane.idle && !lane.is_slow(slow_rate)) {
            lane.idle = false;
            lane.waker.wake();
        }
    }

    /// Below so many bytes a second a lane is too slow: what the others have brought meanwhile waits for what it brings.
    pub(super) fn slow_rate(&self) -> f64 {
        let fastest = self.lanes.values().filter_map(|lane| lane.rate).fold(0.0, f64::max);
        let trip_s = self.round_trip.unwrap_or_default().as_secs_f64();
        (fastest / SLOW).min(READ_BYTES as f64 / (trip_s * SLOW_TRIPS))
    }

    /// Whether all streams have ended, and the peer knows of it.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_settled() && self.inbox.is_told()
    }

    /// Whether all streams have ended, and the peer has taken all of them.
    fn is_settled(&self) -> bool {
        self.open_streams() == 0 && self.outbox.is_empty()
    }

    fn open_streams(&self) -> u32 {
        self.streams.values().filter(|stream| !(stream.read_over && stream.write_over)).count() as u32
    }

    pub(super) fn shut_streams(&self) {
        for stream in self.streams.values() {
            stream.came.notify_all();
            if let Some(socket) = &stream.socket {
                // It fails only on a socket that is closed already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// There is a record to write to the socket of a stream.
    pub(super) fn tell_writer(&self, stream: u32) {
        if let Some(stream) = self.streams.get(&stream) {
            stream.came.notify_all();
        }
    }

    /// After how long a record is late that others wait for.
    pub(super) fn patience_s(&self) -> f64 {
        // Whoever ends TCP on the way makes the round trip that the system tells as short as it likes.
        let trip_s = self.round_trip.unwrap_or_default().as_secs_f64();
        let usual_s = self.outbox.way().map_or(trip_s, |way| way.usual_s);
        let timeout_s = self.timeout.unwrap_or(LEAST_TIMEOUT).as_secs_f64();
        let (times, timeouts) =
            if self.outbox.waiting() > 0 { (LATE.0, LATE_TIMEOUTS.0) } else { (LATE.1, LATE_TIMEOUTS.1) };
        times * usual_s + timeouts * timeout_s
    }

    /// Whether another record of so many bytes may be added to a stream at a moment.
    pub(super) fn has_room(&self, side: Side, stream: u32, raw_len: u64, at_s: f64) -> bool {
        if self.outbox.is_full(raw_len) {
            return false;
        }
        match side {
            Side::Source => {
                let trip_s = self.outbox.way().map_or(0.0, |way| way.least_s);
                // What a lane has no room for waits here, and in nobody else's buffers.
                self.outbox.waiting() < MOST_WAITING
                    && self.outbox.pending_of(stream) < self.most_pending()
                    && self.outbox.late_s(stream, at_s) < trip_s + MOST_LATE_S
                    && self.outbox.load_s(stream, at_s) < 2.0 * trip_s + MOST_LATE_S
            }
            Side::Target => self.outbox.pending_bytes() + raw_len <= MOST_RETURNING,
        }
    }

    fn most_pending(&self) -> u64 {
        // Before any record has come, nothing has to wait for it.
        let trip_s = self.outbox.way().map_or(1.0, |way| way.least_s);
        // A stream that its socket does not take keeps not all of the room from the others.
        let share = SHARE * MAX_PENDING_BYTES.saturating_sub(self.outbox.pending_bytes());
        ((LEAST_PENDING + FASTEST_LINK * trip_s) as u64).min(share)
    }

    /// Whether a stream of the migration is the one whose pages are looked into. That is the first that was opened: the
    /// other connections have none, and may be heard of before it.
    pub(super) fn has_pages(&mut self, number: u32) -> bool {
        let first = self.paged.map_or(number, |paged| paged.min(number));
        self.paged = Some(first);
        first == number
    }

    pub(super) fn count_pages(&mut self, counts: PageCounts, opaque: Option<&'static str>, compressed: bool) {
        self.report.pages = counts;
        self.report.opaque = opaque;
        self.report.compressed_by_qemu |= compressed;
    }

    fn snapshot(&self, started: Instant, with_timeline: bool) -> RelayReport {
        let mut report = self.report.clone();
        report.finished = self.finished;
        let now = self.present(started);
        report.elapsed = now.at;
        report.unacknowledged_bytes = self.outbox.wire_bytes();
        report.behind = self.behind(started);
        report.streams = self.next_stream;
        report.streams_open = self.open_streams();
        report.lanes = now.lanes;
        report.records_resent = self.outbox.resent();
        report.rtt = self.round_trip;
        report.cpu = self.cpu;
        if with_timeline {
            report.timeline.clone_from(&self.timeline);
            if report.timeline.last() != Some(&now) {
                report.timeline.push(now);
            }
        }
        report
    }

    fn behind(&self, started: Instant) -> Duration {
        let at_s = started.elapsed().as_secs_f64();
        let migrating = self.streams.iter().filter(|(_, stream)| stream.is_migration);
        Duration::from_secs_f64(migrating.map(|(id, _)| self.outbox.behind_s(*id, at_s)).fold(0.0, f64::max))
    }

    /// Where things stand now, or stood at the end.
    fn present(&self, started: Instant) -> RelayTick {
        let (at, lanes) = self.ended.unwrap_or_else(|| (Instant::now(), self.lanes.len() as u32));
        RelayTick {
            at: at.saturating_duration_since(started),
            stream_bytes: self.report.stream_bytes,
            wire_bytes: self.report.wire_bytes,
            lanes,
            rtt: self.round_trip,
            unacknowledged_bytes: self.outbox.wire_bytes(),
        }
    }

    /// Notes where things stand.
    pub(super) fn tick(&mut self, started: Instant) {
        if self.timeline.len() < super::watch::MOST_TICKS && !self.is_over() {
            let now = self.present(started);
            self.timeline.push(now);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
