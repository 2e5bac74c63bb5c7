//! The sending side: dials lanes, feeds them blocks, and replaces what breaks.

mod calibration;
mod choice;
mod lanes;
mod losses;
mod making;
mod probe;
mod pulse;
mod queue;
mod shared;
mod stall;
mod telemetry;
#[cfg(test)]
mod tests;
mod turns;
mod worker;

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use dwcp_codec::select::KnownLink;
use dwcp_codec::{Codec, Dictionary};
use dwcp_proto::error::ProtoError;
use dwcp_proto::frame::Committed;
use dwcp_proto::limits::{MAX_BLOCK, MAX_DICTIONARY, MAX_LANES, MIN_BLOCK};
use dwcp_proto::{Limits, Manifest};
use dwcp_store::Source;

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::congestion::{Congestion, FAR, FIRM, ignore_losses, minds_losses};
use crate::dial::{DialOptions, Plan, first_failure, open_lane};
use crate::distance::{Distance, Relocation};
use crate::error::NetError;
use crate::lane::PARTING;
use crate::lanes::{Crew, LaneRange};
use crate::limiter::Limiter;
use crate::report::{Event, Observer, Progress, SendReport};
use crate::security::DialSecurity;
use crate::transfers::Watched;
use crate::transport::{Closer, LinkKind, Waker, try_congestion};
pub use choice::{CodecChoice, Selection};
pub(crate) use choice::{Gauge, Selector};
use lanes::Sending;
pub(crate) use losses::LossWatch;
pub use probe::{ProbeOptions, ProbeReport, probe};
use shared::Job;
use shared::State;
pub(crate) use shared::{Link, Shared, max_dictionary};
pub use stall::STALL_READ_BYTES_PER_S;
use telemetry::look;
pub(crate) use worker::work;

/// How long the next transfer waits for answers to copies: about what a new session takes over the longest of links.
const COPIES_WAIT: Duration = Duration::from_secs(1);

/// How a sender works.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// Connections to use, as far as the receiver allows.
    pub lanes: u16,
    /// With this, and a receiver that is far, the number is found while data flows, between these.
    pub adaptive: Option<LaneRange>,
    /// The largest block that will be offered; a power of two from 64 KiB to 4 MiB.
    pub block_bytes: u32,
    /// How blocks are compressed where it helps.
    pub codec: CodecChoice,
    /// What an earlier session has found out about the link, for [`CodecChoice::Auto`].
    pub known_link: Option<KnownLink>,
    /// What short blocks have in common; offered to the receiver, and used if that knows of dictionaries and does not
    /// decline it. At most 1,048,552 bytes.
    pub dictionary: Option<Arc<Dictionary>>,
    /// A lane on which the peer is silent for this long is lost.
    pub idle_timeout: Duration,
    /// How long TCP, and then TLS and the greeting, may take.
    pub connect_timeout: Duration,
    /// How long a transfer waits for a receiver of which no lane is left.
    pub reconnect_for: Duration,
    /// How long a transfer may take altogether.
    pub total_timeout: Option<Duration>,
    /// How long nothing of a transfer may move though the receiver is there; see [`STALL_READ_BYTES_PER_S`].
    pub stall_timeout: Option<Duration>,
    /// Whether the receiver may use what it has as a base.
    pub base_allowed: bool,
    /// The most that all lanes together send, in bytes a second, to begin with.
    pub bandwidth_limit: Option<u64>,
    /// The size of the sockets' buffers; the system tunes them itself otherwise.
    pub socket_buffer_bytes: Option<u32>,
    /// Which congestion control the lanes use.
    pub congestion: Congestion,
    /// How far the receiver is taken to be, to begin with.
    pub distance: Distance,
    /// Addresses of this machine that lanes come from, in turn, at most 16; the system chooses if there is none. From an
    /// address that does not work, others take its lanes over.
    pub local_addresses: Vec<IpAddr>,
    /// What may carry lanes, in the order in which it is tried.
    pub links: Vec<LinkKind>,
}

impl Default for SendOptions {
    fn default() -> SendOptions {
        SendOptions {
            lanes: 4,
            adaptive: None,
            block_bytes: 1 << 20,
            codec: CodecChoice::Fixed(Codec::None),
            known_link: None,
            dictionary: None,
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect_for: Duration::from_secs(30),
            total_timeout: None,
            stall_timeout: Some(Duration::from_secs(600)),
            base_allowed: true,
            bandwidth_limit: None,
            socket_buffer_bytes: None,
            congestion: Congestion::Auto,
            distance: Distance::Measured,
            local_addresses: Vec::new(),
            links: vec![LinkKind::Tcp],
        }
    }
}

impl SendOptions {
    pub(crate) fn check(&self) -> Result<(), NetError> {
        check_lanes(self.lanes, self.adaptive)?;
        if !self.block_bytes.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block_bytes) {
            let range = "the powers of two from 65536 to 4194304";
            return Err(NetError::Option { name: "block_bytes", value: self.block_bytes.into(), range });
        }
        self.congestion.check()?;
        let length = self.dictionary.as_ref().map_or(1, |dictionary| dictionary.bytes().len());
        if length > MAX_DICTIONARY {
            let (name, range) = ("dictionary", "1 to 1048552 bytes");
            return Err(NetError::Option { name, value: length as u64, range });
        }
        Ok(())
    }
}

/// Whether there can be so many lanes.
pub(crate) fn check_lanes(lanes: u16, adaptive: Option<LaneRange>) -> Result<(), NetError> {
    let range = adaptive.unwrap_or(LaneRange { least: lanes, start: lanes, most: lanes });
    for (name, value) in [("lanes", lanes), ("fewest lanes", range.least), ("most lanes", range.most)] {
        if value == 0 || value > MAX_LANES {
            return Err(NetError::Option { name, value: value.into(), range: "1 to 256" });
        }
    }
    Ok(())
}

/// A connection to a receiver that carries transfers, one after the other.
///
/// It survives the loss of lanes, and of the receiver's process if it comes back within the time that
/// [`SendOptions::reconnect_for`] gives.
pub struct SendSession {
    shared: Arc<Shared>,
    crew: Arc<Crew<Sending>>,
    is_far: bool,
}

impl SendSession {
    /// Opens a session with the receiver at `address` (`HOST:PORT`) on one lane; the others follow by themselves.
    ///
    /// # Errors
    /// [`NetError`]: nothing is retried here, so that a wrong address or token shows at once.
    pub fn connect(
        address: &str,
        security: DialSecurity,
        options: SendOptions,
        cancel: &Cancel,
        observer: Arc<dyn Observer>,
    ) -> Result<SendSession, NetError> {
        options.check()?;
        let dialling = DialOptions {
            idle_timeout: options.idle_timeout,
            connect_timeout: options.connect_timeout,
            socket_buffer_bytes: options.socket_buffer_bytes,
            max_block: options.block_bytes,
            fetches: None,
            dictionaries: options.dictionary.is_some(),
            fills: false,
            relays: false,
            local_addresses: options.local_addresses.clone(),
            links: options.links.clone(),
        };
        let plan = Arc::new(Plan::new(address, &security, dialling, Arc::clone(&observer))?);
        let (cancel, halt) = (cancel.child(), Cancel::new());
        options.codec.prepare(address);
        let first =
            open_lane(&plan, 0, None, (&cancel, &halt)).map_err(|error| first_failure(error, &cancel))?;
        observer.event(Event::SessionOpened { peer: first.lane.transport().peer_addr() });
        let most = first.welcome.max_lanes;
        let is_far = options.distance.is_far(first.is_far());
        let range = options.adaptive.filter(|_| is_far);
        let range = range.map(|range| LaneRange { most: range.most.min(most), ..range });
        let limiter = Arc::new(Limiter::new(options.bandwidth_limit));
        let link = Link::new(&first.welcome);
        let shared = Arc::new(Shared::new(options, limiter, (cancel, halt), observer, link, None));
        if let Some(selector) = &shared.selector {
            selector.answered_after(first.answer_time);
        }
        {
            let mut state = lock(&shared.state);
            state.telemetry.is_relayed = first.is_relayed();
            state.carried_by = (first.link(), first.passed_over.clone());
            state.is_first_due = true;
        }
        let crew = Crew::start(Sending::new(Arc::clone(&shared), plan, first), range)?;
        Ok(SendSession { shared, crew, is_far })
    }

    /// Whether the receiver was taken to be far when the session was opened.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.is_far
    }

    /// What carries the lanes, as of the one that was made last, and what was tried before that and why it does not.
    #[must_use]
    pub fn link(&self) -> (LinkKind, Option<String>) {
        lock(&self.shared.state).carried_by.clone()
    }

    /// Sends the state that `manifest` describes and `source` holds; comes back when the receiver has it in place.
    ///
    /// # Errors
    /// [`NetError`]; where [`NetError::resumable`] holds, sending the same state again goes on where this ended.
    pub fn send(&self, manifest: Arc<Manifest>, source: Arc<dyn Source>) -> Result<SendReport, NetError> {
        self.send_unless(manifest, source, &mut || false)
    }

    /// The same, asking every 50 ms at least whether to stop; then, as after a [`Cancel`], the session is of no more use.
    ///
    /// # Errors
    /// As for [`SendSession::send`]; [`NetError::Cancelled`] after a stop.
    pub fn send_unless(
        &self,
        manifest: Arc<Manifest>,
        source: Arc<dyn Source>,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<SendReport, NetError> {
        lock(&self.shared.state).expect(&manifest);
        self.crew.man_more();
        self.shared.send(manifest, source, stops)
    }

    /// Where the transfer stands that is under way.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.shared.state).progress()
    }

    #[cfg(test)]
    pub(crate) fn want(&self, lanes: u16) {
        self.crew.want(lanes);
    }

    /// Has all lanes together send so many bytes a second at most from now on; 0 is taken for 1.
    pub fn set_bandwidth_limit(&self, bytes_per_s: Option<u64>) {
        self.shared.limiter.set_rate(bytes_per_s);
        self.shared.allow(bytes_per_s);
    }

    /// Has the session go by another way to the receiver from now on, also in a transfer that is under way.
    ///
    /// Lanes come and go, and those that are there go on with another congestion control: no block is lost or sent again
    /// for that.
    ///
    /// # Errors
    /// [`NetError::Option`] for a number of lanes that there cannot be, and [`NetError::Io`] where no thread is to be had.
    pub fn relocate(&self, relocation: Relocation) -> Result<(), NetError> {
        check_lanes(relocation.lanes.start, Some(relocation.lanes))?;
        let most = self.shared.relocate(relocation.distance, relocation.round_trip);
        let lanes = LaneRange { most: relocation.lanes.most.min(most), ..relocation.lanes };
        self.crew.relocate(lanes)
    }

    /// Says goodbye and ends every lane. Dropping the session does the same.
    pub fn close(&self) {
        let end = Instant::now() + self.shared.say_goodbye();
        while Instant::now() < end && !self.crew.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shared.halt.cancel();
        self.crew.join();
    }
}

impl Watched for SendSession {
    fn progress(&self) -> Progress {
        SendSession::progress(self)
    }
}

impl Drop for SendSession {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Sends a state; comes back when the receiver has it in place.
    pub(crate) fn send(
        &self,
        manifest: Arc<Manifest>,
        source: Arc<dyn Source>,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<SendReport, NetError> {
        let _one_at_a_time = self.queue.enter(&mut || self.check(stops))?;
        let started = Instant::now();
        self.cancel.check()?;
        self.await_copies(COPIES_WAIT, stops)?;
        let lanes = {
            let mut state = lock(&self.state);
            if state.closing {
                return Err(NetError::PeerClosed { phase: "closed", hint: Some("this session was closed") });
            }
            let fits = state.link.as_ref().map_or(Ok(()), |link| check_limits(&manifest, &link.limits));
            state.answer()?;
            if let Err(error) = fits {
                if state.asked.is_some() {
                    // Nothing is under way, but the peer waits.
                    state.part(&error);
                }
                return Err(error);
            }
            let before = self.selector.as_ref().map(Selector::begin);
            state.begin(Job::new(manifest, source, self.options.base_allowed, (started, before)));
            state.wakers()
        };
        // They look at the state at once, which has to be free by then.
        lanes.iter().for_each(Waker::wake);
        self.changed.notify_all();
        let (committed, job) = self.await_end(started, stops)?;
        if let Err(error) = job.source.remember(job.tree_digests()) {
            // The transfer is good; only a later one has one base less to choose from.
            log::warn!("cannot remember what was sent: {error}");
        }
        let (round_trip, path, (link, passed_over)) = {
            let mut state = lock(&self.state);
            (state.round_trip, state.telemetry.conclude(), state.carried_by.clone())
        };
        let report = job.report(&committed, round_trip, self.selector.as_ref());
        Ok(SendReport { path, link, passed_over, ..report })
    }

    /// An error once the session was cancelled, or is to be.
    fn check(&self, stops: &mut dyn FnMut() -> bool) -> Result<(), NetError> {
        if stops() {
            self.cancel.cancel();
        }
        self.cancel.check()
    }

    /// Waits a while for answers to blocks of the last transfer that went twice. Without them the next one would need a
    /// session of its own, which takes as long, and to a receiver looks as if nothing more came in this one.
    fn await_copies(&self, limit: Duration, stops: &mut dyn FnMut() -> bool) -> Result<(), NetError> {
        let started = Instant::now();
        let mut state = lock(&self.state);
        while state.awaits_copies() && started.elapsed() < limit {
            drop(wait(&self.changed, state, CANCEL_SLICE));
            self.check(stops)?;
            state = lock(&self.state);
        }
        Ok(())
    }

    fn await_end(
        &self,
        started: Instant,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<(Committed, Job), NetError> {
        let mut state = lock(&self.state);
        loop {
            state = self.look_at_lanes(state);
            let lonely = state.is_lonely(self.options.reconnect_for);
            let late = self.options.total_timeout.filter(|limit| started.elapsed() >= *limit);
            let stalled =
                state.stalls_after(self.options.stall_timeout).filter(|limit| state.is_still(*limit));
            let failure = if let Some((ended, job)) = state.take_ended() {
                match ended {
                    Ok(committed) => return Ok((committed, job)),
                    Err(error) => error,
                }
            } else if self.cancel.is_cancelled() {
                NetError::Cancelled
            } else if state.has_parted() {
                NetError::PeerClosed { phase: "sending", hint: Some("it gave the transfer up") }
            } else if lonely {
                state.gone()
            } else if let Some(after) = late {
                NetError::Deadline { what: "the transfer", after }
            } else if let Some(after) = stalled {
                NetError::Deadline { what: "a step of the transfer", after }
            } else {
                state = wait(&self.changed, state, CANCEL_SLICE);
                if state.busy() {
                    // Whoever is asked may call this session.
                    drop(state);
                    if stops() {
                        self.cancel.cancel();
                    }
                    state = lock(&self.state);
                }
                continue;
            };
            let failure = if self.cancel.is_cancelled() { NetError::Cancelled } else { failure };
            state.part(&failure);
            self.changed.notify_all();
            return Err(failure);
        }
    }

    /// What may be sent is another from now on, as whoever chooses how to compress has to know.
    pub(crate) fn allow(&self, bytes_per_s: Option<u64>) {
        if let Some(selector) = &self.selector {
            selector.allow(bytes_per_s);
        }
        // More lanes may have blocks to send at a higher rate.
        lock(&self.state).wake_all();
    }

    /// Whether the receiver is far, as far as TCP has seen by now.
    pub(crate) fn is_far(&self) -> bool {
        let lanes: Vec<Closer> = lock(&self.state).lanes.values().map(|lane| lane.closer.clone()).collect();
        lanes.iter().any(|lane| lane.path().and_then(|path| path.min_rtt).is_none_or(|time| time >= FAR))
    }

    /// The way to the receiver is another. Tells how many lanes it takes.
    pub(crate) fn relocate(&self, distance: Distance, round_trip: Duration) -> u16 {
        let is_far = distance.is_far(round_trip >= FAR);
        if let Some(selector) = &self.selector {
            selector.relocate(round_trip);
        }
        self.asked_to_ignore_losses.store(false, Ordering::Relaxed);
        let mut state = lock(&self.state);
        state.distance = distance;
        state.telemetry.relocate();
        let lanes: Vec<Closer> = state.lanes.values().map(|lane| lane.closer.clone()).collect();
        let most = state.link.as_ref().map_or(MAX_LANES, |link| link.max_lanes);
        drop(state);
        lanes.iter().for_each(|lane| self.options.congestion.refit(lane, is_far));
        most
    }

    /// Takes note of what TCP tells of the lanes, if it is time to.
    fn look_at_lanes<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let due = state.telemetry.due(Instant::now());
        if due.is_empty() {
            return state;
        }
        drop(state);
        let mut sights = look(&due);
        lock(&self.state).telemetry.correct(&mut sights, Instant::now());
        let minding: Vec<&Closer> = sights
            .iter()
            .zip(&due)
            .filter(|((_, path, present), _)| minds_losses(present.as_deref(), path.as_ref()))
            .map(|(_, (_, lane))| lane)
            .collect();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let session = state.session.as_ref();
        let owes = |lane| session.is_some_and(|session| session.bytes_under_way(lane) > 0);
        for (lane, closer) in state.telemetry.take(sights, owes, Instant::now()) {
            log::debug!("lane {lane} is given up: it is stalled while others are not");
            closer.close();
        }
        if minding.is_empty() || !state.telemetry.losses_are_random() || !self.may_ignore_losses() {
            return guard;
        }
        drop(guard);
        minding.into_iter().for_each(|lane| ignore_losses(lane, true));
        if !self.asked_to_ignore_losses.swap(true, Ordering::Relaxed) {
            log::debug!("losses are random: {FIRM} was asked for");
        }
        lock(&self.state)
    }

    /// Whether random losses need not be minded, since there is a congestion control for that.
    fn may_ignore_losses(&self) -> bool {
        self.options.congestion.may_ignore_losses()
            && *self.can_ignore_losses.get_or_init(|| try_congestion(FIRM))
    }

    /// Has every lane say goodbye, and tells how long to wait for that.
    pub(crate) fn say_goodbye(&self) -> Duration {
        // Whoever has cancelled does not want to wait long for the peer to hear of it.
        let parting = if self.cancel.is_cancelled() { PARTING / 5 } else { PARTING };
        self.cancel.cancel();
        let mut state = lock(&self.state);
        state.closing = true;
        state.wake_all();
        self.changed.notify_all();
        parting
    }
}

/// Whether the receiver takes such a transfer at all.
fn check_limits(manifest: &Manifest, limits: &Limits) -> Result<(), NetError> {
    let largest = manifest.entries().iter().map(|entry| entry.size).max().unwrap_or(0);
    for (what, value, limit) in [
        ("the block size", u64::from(manifest.block_bytes()), u64::from(limits.max_block)),
        ("the number of entries", manifest.entries().len() as u64, u64::from(limits.max_entries)),
        ("the largest object", largest, limits.max_object),
    ] {
        if value > limit {
            return Err(ProtoError::Limit { what, value, limit }.into());
        }
    }
    Ok(())
}
