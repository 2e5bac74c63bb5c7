//! The sending side: dials lanes, feeds them blocks, and replaces what breaks.

mod choice;
mod shared;
mod worker;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_codec::{Codec, Dictionary};
use dwcp_proto::error::ProtoError;
use dwcp_proto::frame::Committed;
use dwcp_proto::limits::{MAX_BLOCK, MAX_DICTIONARY, MAX_LANES, MIN_BLOCK};
use dwcp_proto::{Limits, Manifest};
use dwcp_store::Source;

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::dial::{DialOptions, Plan, first_failure, open_lane};
use crate::error::NetError;
use crate::limiter::Limiter;
use crate::report::{Event, Observer, Progress, SendReport};
use crate::security::DialSecurity;
use choice::Selector;
pub use choice::{CodecChoice, Selection};
use shared::Job;
pub(crate) use shared::{Link, Shared, max_dictionary};
pub(crate) use worker::work;

/// How long [`SendSession::close`] lets lanes part in peace.
const PARTING: Duration = Duration::from_millis(1_500);

/// How a sender works.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// Connections to use, as far as the receiver allows.
    pub lanes: u16,
    /// The largest block that will be offered; a power of two from 64 KiB to 4 MiB.
    pub block_bytes: u32,
    /// How blocks are compressed where it helps.
    pub codec: CodecChoice,
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
    /// Whether the receiver may use what it has as a base.
    pub base_allowed: bool,
    /// The most that all lanes together send, in bytes a second.
    pub bandwidth_limit: Option<u64>,
    /// The size of the sockets' buffers; the system tunes them itself otherwise.
    pub socket_buffer_bytes: Option<u32>,
}

impl Default for SendOptions {
    fn default() -> SendOptions {
        SendOptions {
            lanes: 4,
            block_bytes: 1 << 20,
            codec: CodecChoice::Fixed(Codec::None),
            dictionary: None,
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect_for: Duration::from_secs(30),
            total_timeout: None,
            base_allowed: true,
            bandwidth_limit: None,
            socket_buffer_bytes: None,
        }
    }
}

impl SendOptions {
    pub(crate) fn check(&self) -> Result<(), NetError> {
        if self.lanes == 0 || self.lanes > MAX_LANES {
            return Err(NetError::Option { name: "lanes", value: self.lanes.into(), range: "1 to 256" });
        }
        if !self.block_bytes.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block_bytes) {
            let range = "the powers of two from 65536 to 4194304";
            return Err(NetError::Option { name: "block_bytes", value: self.block_bytes.into(), range });
        }
        let length = self.dictionary.as_ref().map_or(1, |dictionary| dictionary.bytes().len());
        if length > MAX_DICTIONARY {
            let (name, range) = ("dictionary", "1 to 1048552 bytes");
            return Err(NetError::Option { name, value: length as u64, range });
        }
        Ok(())
    }
}

/// A connection to a receiver that carries transfers, one after the other.
///
/// It survives the loss of lanes, and of the receiver's process if it comes back within the time that
/// [`SendOptions::reconnect_for`] gives.
pub struct SendSession {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
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
        };
        let plan = Arc::new(Plan::new(address, &security, dialling)?);
        let (cancel, halt) = (cancel.child(), Cancel::new());
        options.codec.prepare(address);
        let first =
            open_lane(&plan, 0, None, (&cancel, &halt)).map_err(|error| first_failure(error, &cancel))?;
        observer.event(Event::SessionOpened { peer: first.lane.transport().peer_addr() });
        let lanes = options.lanes;
        let limiter = options.bandwidth_limit.map(|rate| Arc::new(Limiter::new(rate)));
        let link = Link::new(&first.welcome);
        let shared = Arc::new(Shared::new(options, limiter, (cancel, halt), observer, link, None));
        let session = SendSession { shared: Arc::clone(&shared), workers: Mutex::default() };
        let mut first = Some(first);
        for number in 0..lanes {
            let (shared, plan, first) = (Arc::clone(&shared), Arc::clone(&plan), first.take());
            let worker = std::thread::Builder::new()
                .name(format!("dwcp-send-{number}"))
                .spawn(move || worker::run(&shared, &plan, number, first))
                .map_err(|source| NetError::Io {
                    action: "start a thread for",
                    addr: address.to_owned(),
                    source,
                })?;
            lock(&session.workers).push(worker);
        }
        Ok(session)
    }

    /// Sends the state that `manifest` describes and `source` holds; comes back when the receiver has it in place.
    ///
    /// # Errors
    /// [`NetError`]; where [`NetError::resumable`] holds, sending the same state again goes on where this ended.
    pub fn send(&self, manifest: Arc<Manifest>, source: Arc<dyn Source>) -> Result<SendReport, NetError> {
        self.shared.send(manifest, source)
    }

    /// Where the transfer stands that is under way.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.shared.state).progress()
    }

    /// Says goodbye and ends every lane. Dropping the session does the same.
    pub fn close(&self) {
        let end = Instant::now() + self.shared.say_goodbye();
        let workers = std::mem::take(&mut *lock(&self.workers));
        while Instant::now() < end && !workers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shared.halt.cancel();
        for worker in workers {
            // A worker that panicked has nothing more to say.
            let _ = worker.join();
        }
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
    ) -> Result<SendReport, NetError> {
        let _one_at_a_time = lock(&self.sending);
        let started = Instant::now();
        self.cancel.check()?;
        {
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
            self.changed.notify_all();
        }
        let (committed, job) = self.await_end(started)?;
        if let Err(error) = job.source.remember(job.tree_digests()) {
            // The transfer is good; only a later one has one base less to choose from.
            log::warn!("cannot remember what was sent: {error}");
        }
        let round_trip = lock(&self.state).round_trip;
        Ok(job.report(&committed, round_trip, self.selector.as_ref()))
    }

    fn await_end(&self, started: Instant) -> Result<(Committed, Job), NetError> {
        let mut state = lock(&self.state);
        loop {
            let lonely = state.is_lonely(self.options.reconnect_for);
            let late = self.options.total_timeout.filter(|limit| started.elapsed() >= *limit);
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
            } else {
                state = wait(&self.changed, state, CANCEL_SLICE);
                continue;
            };
            let failure = if self.cancel.is_cancelled() { NetError::Cancelled } else { failure };
            state.part(&failure);
            self.changed.notify_all();
            return Err(failure);
        }
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
