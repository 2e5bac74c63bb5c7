//! The side that dials: it listens at the Unix sockets of its channels.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{ErrorCode, ErrorFrame, Frame, Relay};
use dwcp_proto::limits::MIN_BLOCK;
use dwcp_vm::{BaseIndex, PAGE_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::base::BaseTold;
use super::report::RelayReport;
use super::shared::{Shared, Side};
use super::worker::{refused, unexpected, work};
use super::{RelayOptions, streams, watch};
use crate::cancel::{Cancel, lock};
use crate::congestion::ignores_losses;
use crate::dial::{DialOptions, Dialled, Plan, backoff, first_failure, open_lane};
use crate::error::{NetError, plain};
use crate::lane::Lane;
use crate::lanes::{Crew, Dialling, Flow, LaneChange, LaneRange, Losses, TICK};
use crate::report::{Event, Observer};
use crate::security::DialSecurity;
use crate::transport::{Closer, LinkKind, SOCKET_SLICE, wake_pair};

/// The side of a relay that dials, and that the machine leaves.
pub struct SourceRelay {
    shared: Arc<Shared>,
    crew: Arc<Crew<Relaying>>,
    sockets: Vec<PathBuf>,
}

impl SourceRelay {
    /// Opens a session with the relay at `address` (`HOST:PORT`), and then the sockets of the channels.
    ///
    /// # Errors
    /// [`NetError`]: nothing is retried here, so that a wrong address or token shows at once.
    pub fn connect(
        address: &str,
        security: &DialSecurity,
        options: RelayOptions,
        cancel: &Cancel,
        observer: Arc<dyn Observer>,
    ) -> Result<SourceRelay, NetError> {
        options.check()?;
        let dialling = DialOptions {
            idle_timeout: options.idle_timeout,
            connect_timeout: options.connect_timeout,
            socket_buffer_bytes: None,
            max_block: MIN_BLOCK,
            fetches: None,
            dictionaries: false,
            fills: false,
            relays: true,
            local_addresses: Vec::new(),
            links: vec![LinkKind::Tcp],
        };
        let plan = Arc::new(Plan::new(address, security, dialling, Arc::clone(&observer))?);
        let (cancel, halt) = (cancel.child(), Cancel::new());
        options.codec.prepare(address);
        let made = open_lane(&plan, 0, None, (&cancel, &halt));
        let mut first = made.map_err(|error| first_failure(error, &cancel))?;
        let index = {
            let _shut = cancel.register(first.lane.closer());
            agree(&mut first.lane, options.cache_bytes, options.max_base_bytes / PAGE_BYTES as u64)
                .map_err(|error| first_failure(error, &cancel))?
        };
        observer.event(Event::SessionOpened { peer: first.lane.transport().peer_addr() });
        let most = first.welcome.max_lanes;
        let range = options.adaptive.filter(|_| first.is_far());
        let range = range.map(|range| LaneRange { most: range.most.min(most), ..range });
        let cache_bytes = options.cache_bytes;
        let names = (first.welcome.session, first.welcome.join_key);
        let mut listeners = Vec::new();
        let mut relay_sockets = Vec::new();
        for (channel, path) in &options.channels {
            let bound = UnixListener::bind(path).and_then(|listener| {
                relay_sockets.push(path.clone());
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            match bound {
                Ok(listener) => listeners.push((channel.clone(), listener)),
                Err(source) => {
                    remove(&relay_sockets);
                    return Err(NetError::Io {
                        action: "listen at",
                        addr: path.display().to_string(),
                        source,
                    });
                }
            }
        }
        let shared = Shared::new(Side::Source, names, options, (cancel, halt), observer, None);
        let shared = Arc::new(shared);
        // Both are there before any stream is.
        let _ = shared.cache_bytes.set(cache_bytes);
        *lock(&shared.index) = index;
        lock(&shared.state).round_trip = Some(first.round_trip);
        if let Some(selector) = &shared.selector {
            selector.answered_after(first.answer_time);
        }
        let side = Relaying { shared: Arc::clone(&shared), plan, first: Mutex::new(Some(first)) };
        let crew = Crew::start(side, range).inspect_err(|_| remove(&relay_sockets))?;
        let relay = SourceRelay { shared, crew, sockets: relay_sockets };
        for (channel, listener) in listeners {
            let owner = Arc::clone(&relay.shared);
            relay.shared.spawn("dwcp-open", move || accept_all(&owner, &channel, &listener))?;
        }
        watch::start(&relay.shared)?;
        Ok(relay)
    }

    /// No further streams are opened: the relay is over once those that are there have ended.
    pub fn finish(&self) {
        let mut state = lock(&self.shared.state);
        state.finishing = true;
        state.wake_all();
    }

    /// Waits for the end of the relay.
    ///
    /// # Errors
    /// [`NetError::Deadline`] when it has not ended within `timeout`, and whatever has ended it otherwise.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<(), NetError> {
        self.shared.wait(timeout)
    }

    /// Where things stand.
    #[must_use]
    pub fn report(&self) -> RelayReport {
        self.shared.report(true)
    }

    /// The same without the time line, which costs the same however long it takes.
    #[must_use]
    pub fn present(&self) -> RelayReport {
        self.shared.report(false)
    }

    /// Ends the relay at once: the sockets of all streams are shut, and the peer is told.
    pub fn stop(&self, reason: &str) {
        self.shared.fail(stopped(reason));
    }

    /// Has all lanes together send so many bytes a second at most from now on; 0 is taken for 1.
    pub fn set_bandwidth_limit(&self, bytes_per_s: Option<u64>) {
        self.shared.limiter.set_rate(bytes_per_s);
        if let Some(selector) = &self.shared.selector {
            selector.allow(bytes_per_s);
        }
    }

    /// Ends the relay, if it has not ended, and every thread. Dropping it does the same.
    pub fn close(&self) {
        self.shared.close();
        self.crew.join();
        remove(&self.sockets);
    }
}

impl Drop for SourceRelay {
    fn drop(&mut self) {
        self.close();
    }
}

/// The failure of a relay that somebody has stopped.
pub(super) fn stopped(reason: &str) -> NetError {
    NetError::Relay { code: ErrorCode::Cancelled, reason: reason.to_owned() }
}

fn remove(sockets: &[PathBuf]) {
    for socket in sockets {
        if let Err(error) = std::fs::remove_file(socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} stays behind: {error}", socket.display());
        }
    }
}

/// Agrees with the other side on what both hold, and learns of its base.
fn agree(lane: &mut Lane, cache_bytes: u64, most_pages: u64) -> Result<Option<BaseIndex>, NetError> {
    lane.send(&Frame::Relay(Relay { ready: false, cache_bytes, base_pages: 0 }))?;
    let mut told = BaseTold::new(most_pages);
    loop {
        match lane.recv()?.0 {
            Frame::Base(part) => told.take(part)?,
            Frame::Relay(Relay { ready: true, cache_bytes: agreed, base_pages }) if agreed == cache_bytes => {
                let (pages, index) = told.end();
                if base_pages != pages {
                    return Err(refused("the pages of the base", base_pages, pages));
                }
                return Ok(index);
            }
            Frame::KeepAlive => {}
            Frame::Error(ErrorFrame { code, retryable, message }) => {
                return Err(NetError::Peer { code, retryable, message: plain(&message) });
            }
            other => return Err(unexpected(&other)),
        }
    }
}

/// Takes whoever connects to the socket of a channel.
fn accept_all(shared: &Arc<Shared>, channel: &str, listener: &UnixListener) -> Result<(), NetError> {
    let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(SOCKET_SLICE.subsec_nanos()) };
    loop {
        {
            let state = lock(&shared.state);
            if state.is_over() || state.finishing || shared.cancel.is_cancelled() {
                return Ok(());
            }
        }
        if !matches!(poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&slice)), Ok(1..)) {
            continue;
        }
        let accepted: io::Result<(UnixStream, _)> = listener.accept();
        match accepted {
            Ok((socket, _)) => streams::open(shared, channel, socket)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, for example: it may be better in a while.
                log::warn!("cannot accept a connection to channel {channel}: {error}");
                std::thread::sleep(SOCKET_SLICE);
            }
        }
    }
}

/// What the threads of lanes need.
struct Relaying {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    /// The lane that has opened the session, until its thread takes it.
    first: Mutex<Option<Dialled>>,
}

impl Relaying {
    fn is_unwanted(&self, number: u16) -> bool {
        let state = lock(&self.shared.state);
        state.is_over() || self.shared.cancel.is_cancelled() || number >= state.wanted
    }

    /// Makes a lane; none if that failed, or the session cannot go on.
    fn make(&self, number: u16, attempts: u32) -> Option<Dialled> {
        let shared = &self.shared;
        let join = Some((shared.id, shared.key));
        match open_lane(&self.plan, number, join, (&shared.cancel, &shared.halt)) {
            Ok(dialled) => Some(dialled),
            Err(NetError::Peer { code: ErrorCode::Auth, .. }) => {
                if lock(&shared.state).lanes.is_empty() {
                    let hint = Some("it does not know the session any more");
                    shared.fail(NetError::PeerClosed { phase: "relaying", hint });
                }
                None
            }
            Err(NetError::Cancelled) => None,
            Err(error) => {
                let after = backoff(attempts + 1);
                let reason = error.to_string();
                shared.observer.event(Event::Reconnecting { attempt: attempts + 1, after, reason });
                None
            }
        }
    }
}

impl Dialling for Relaying {
    const NAME: &'static str = "relay";
    const RECEIVES: bool = false;

    fn run(&self, number: u16) {
        let shared = &self.shared;
        let mut ready = if number == 0 { lock(&self.first).take() } else { None };
        let mut attempts = 0;
        while !self.is_unwanted(number) {
            let made = ready.take().or_else(|| self.make(number, attempts));
            let lived = made.is_some_and(|Dialled { lane, .. }| {
                let Ok((waker, wake)) = wake_pair() else { return false };
                let id = lock(&shared.state).attach(number, waker, lane.closer());
                work(shared, lane, id, wake)
            });
            attempts = if lived { 0 } else { attempts + 1 };
            if attempts > 0 && shared.cancel.sleep(backoff(attempts)).is_err() {
                return;
            }
        }
    }

    fn wanted(&self) -> u16 {
        lock(&self.shared.state).wanted
    }

    fn want(&self, lanes: u16) {
        let mut state = lock(&self.shared.state);
        state.wanted = lanes;
        state.wake_all();
    }

    fn losses(&self, lanes: &[(u32, Closer)]) -> Losses {
        if !lock(&self.shared.state).losses.are_random() {
            Losses::Fair
        } else if lanes.iter().any(|(_, lane)| ignores_losses(lane)) {
            Losses::Ignored
        } else if self.shared.ignores_losses.load(Ordering::Relaxed) {
            Losses::Minded
        } else {
            Losses::Fair
        }
    }

    fn hurry(&self, _lanes: &[(u32, Closer)], _on: bool) {}

    fn note(&self, changes: &[LaneChange]) {
        if let Some(change) = changes.last() {
            log::debug!("{} lanes are wanted: {}", change.lanes, change.reason.text());
        }
    }

    fn await_flow(&self) -> Option<Flow> {
        let shared = &self.shared;
        let started: Instant = shared.started;
        loop {
            {
                let state = lock(&shared.state);
                if state.is_over() {
                    return None;
                }
                // An idle link says nothing of how many lanes fill it.
                if state.outbox.wire_bytes() > 0 {
                    let lanes = state.lanes.iter().map(|(id, lane)| (*id, lane.closer.clone()));
                    return Some((started, lanes.collect()));
                }
            }
            if shared.cancel.sleep(TICK).is_err() {
                return None;
            }
        }
    }

    fn stop(&self) -> &Cancel {
        &self.shared.cancel
    }

    fn halt(&self) {
        self.shared.halt.cancel();
    }
}
