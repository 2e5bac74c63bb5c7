//! The side that dials and receives: asks a listener for a state, and goes on until it is in place.

mod crew;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use dwcp_codec::Dictionary;
use dwcp_proto::Limits;
use dwcp_proto::frame::Takes;
use dwcp_proto::limits::MAX_REQUEST;
use dwcp_store::Sink;

use crate::cancel::{Cancel, lock};
use crate::dial::{DialOptions, Dialled, Plan, WORTHWHILE, backoff, first_failure, open_lane};
use crate::distance::Distance;
use crate::error::NetError;
use crate::lanes::LaneRange;
use crate::report::{Event, Observer, Progress, ReceiveReport};
use crate::security::DialSecurity;
use crate::send::check_lanes;
use crate::transfers::Watched;
use crate::transport::LinkKind;
use crew::Crew;

/// So many sessions in a row may last and bring nothing before the patience for a lost listener is not renewed any more:
/// one that never answers is not asked for ever.
const FRUITLESS: u32 = 3;

/// How a side that fetches works.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Connections to use, as far as the listener allows and there are blocks for them.
    pub lanes: u16,
    /// With this, and a listener that is far, the number is found while data flows, between these.
    pub adaptive: Option<LaneRange>,
    /// How far the listener is taken to be.
    pub distance: Distance,
    /// What the listener may send.
    pub limits: Limits,
    /// Dictionaries that the listener need not send.
    pub dictionaries: Arc<[Arc<Dictionary>]>,
    /// A lane on which the listener is silent for this long is lost.
    pub idle_timeout: Duration,
    /// How long TCP, and then TLS and the greeting, may take.
    pub connect_timeout: Duration,
    /// How long a fetch waits for a listener of which no lane is left; lanes that bring nothing and do not last do not
    /// count, and sessions that last and bring nothing only a few times.
    pub reconnect_for: Duration,
    /// How long a fetch may take altogether.
    pub total_timeout: Option<Duration>,
    /// Addresses of this machine that lanes come from, as [`crate::SendOptions::local_addresses`].
    pub local_addresses: Vec<IpAddr>,
    /// What may carry lanes, as [`crate::SendOptions::links`].
    pub links: Vec<LinkKind>,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            lanes: 4,
            adaptive: None,
            distance: Distance::Measured,
            limits: Limits::default(),
            dictionaries: Arc::default(),
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect_for: Duration::from_secs(30),
            total_timeout: None,
            local_addresses: Vec::new(),
            links: vec![LinkKind::Tcp],
        }
    }
}

/// A connection to a listener that sends what it is asked for, one transfer after the other.
///
/// It survives the loss of lanes, and of the listener's process if that comes back within the time that
/// [`FetchOptions::reconnect_for`] gives: what was asked for is asked for again then.
pub struct FetchSession {
    plan: Arc<Plan>,
    options: FetchOptions,
    cancel: Cancel,
    observer: Arc<dyn Observer>,
    crew: Mutex<Option<Arc<Crew>>>,
    /// Held by the fetch that is under way.
    fetching: Mutex<()>,
    closed: AtomicBool,
}

impl FetchSession {
    /// Opens a session with the listener at `address` (`HOST:PORT`) on one lane; others follow when blocks do.
    ///
    /// # Errors
    /// [`NetError`]: nothing is retried here, so that a wrong address or token shows at once.
    pub fn connect(
        address: &str,
        security: DialSecurity,
        options: FetchOptions,
        cancel: &Cancel,
        observer: Arc<dyn Observer>,
    ) -> Result<FetchSession, NetError> {
        check_lanes(options.lanes, options.adaptive)?;
        let Limits { max_block, max_entries, max_object, max_dictionary, .. } = options.limits;
        let dialling = DialOptions {
            idle_timeout: options.idle_timeout,
            connect_timeout: options.connect_timeout,
            socket_buffer_bytes: None,
            max_block,
            fetches: Some(Takes { max_entries, max_object }),
            dictionaries: max_dictionary > 0,
            fills: false,
            relays: false,
            local_addresses: options.local_addresses.clone(),
            links: options.links.clone(),
        };
        let plan = Arc::new(Plan::new(address, &security, dialling, Arc::clone(&observer))?);
        let cancel = cancel.child();
        let halt = Cancel::new();
        let first =
            open_lane(&plan, 0, None, (&cancel, &halt)).map_err(|error| first_failure(error, &cancel))?;
        let session = FetchSession {
            plan,
            options,
            cancel,
            observer,
            crew: Mutex::default(),
            fetching: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        session.man(first, halt)?;
        Ok(session)
    }

    /// What carries the lane that was made last, and what was tried before that and why it does not.
    #[must_use]
    pub fn link(&self) -> (LinkKind, Option<String>) {
        self.plan.carried_by()
    }

    /// Asks for what `request` means to the application at the other end, and takes it into `sink`.
    ///
    /// `timeout` bounds the wait for an offer; the listener may take its time as long as it shows signs of life.
    ///
    /// # Errors
    /// [`NetError`]; what the sink has staged is kept for the next attempt wherever [`NetError::resumable`] holds.
    pub fn fetch(
        &self,
        request: &[u8],
        sink: &Arc<dyn Sink>,
        timeout: Option<Duration>,
    ) -> Result<ReceiveReport, NetError> {
        if request.len() > MAX_REQUEST {
            let value = request.len() as u64;
            return Err(NetError::Option { name: "request", value, range: "0 to 65536 bytes" });
        }
        let request: Arc<[u8]> = request.into();
        let _one_at_a_time = lock(&self.fetching);
        let mut asked = Instant::now();
        let end = self.options.total_timeout.map(|limit| (asked + limit, limit));
        let mut patient = asked + self.options.reconnect_for;
        let (mut attempts, mut fruitless) = (0, 0);
        loop {
            self.check()?;
            if let Some((_, after)) = end.filter(|(end, _)| Instant::now() >= *end) {
                return Err(NetError::Deadline { what: "the fetch", after });
            }
            let present = lock(&self.crew).clone().filter(|crew| !crew.is_over());
            let fresh = present.is_none();
            let crew = match present {
                Some(crew) => crew,
                None => self.reopen(end.map_or(patient, |(end, _)| end.min(patient)), &mut attempts)?,
            };
            let began = Instant::now();
            crew.session().ask(Arc::clone(&request));
            let left = timeout.map(|limit| limit.saturating_sub(asked.elapsed()));
            let outcome =
                crew.receiver.receive_before(Arc::clone(sink), left, end, &self.cancel, &mut || false);
            if let Ok(Some(report)) = outcome {
                return Ok(report);
            }
            self.check()?;
            let progressed = crew.has_progress();
            // A listener may be silent for long before it answers; only then it is lost.
            let lasted = progressed || began.elapsed() >= WORTHWHILE;
            if progressed {
                asked = Instant::now();
                fruitless = 0;
            } else if lasted {
                fruitless += 1;
            }
            let worthwhile = lasted && fruitless <= FRUITLESS;
            if worthwhile {
                patient = Instant::now() + self.options.reconnect_for;
                attempts = 0;
            }
            let (error, again) = match outcome {
                Err(error) => {
                    let again = crew.is_worth_another(&error) && Instant::now() < patient;
                    (error, again)
                }
                // The listener ends a session in peace that cannot carry another transfer.
                Ok(_) if !fresh => continue,
                Ok(_) => {
                    let hint = Some("it ended the session without an answer");
                    (NetError::PeerClosed { phase: "being asked", hint }, worthwhile)
                }
            };
            crew.give_up(&error);
            if !again {
                return Err(error);
            }
            attempts += 1;
            self.pause(attempts, &error)?;
        }
    }

    /// Where the transfer stands that is under way.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let crew = lock(&self.crew).clone();
        crew.map_or_else(Progress::default, |crew| crew.receiver.progress())
    }

    #[cfg(test)]
    pub(crate) fn want(&self, lanes: u16) {
        let crew = lock(&self.crew).clone();
        crew.unwrap().threads.want(lanes);
    }

    /// Says goodbye and ends every lane; a fetch that is under way fails. Dropping the session does the same.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let idle = !matches!(self.fetching.try_lock(), Err(TryLockError::WouldBlock));
        let crew = lock(&self.crew).take();
        if let Some(crew) = crew.filter(|_| idle) {
            if self.cancel.is_cancelled() {
                crew.halt();
            }
            // The listener may not have read yet that the last transfer is in place.
            crew.receiver.close();
        }
        self.cancel.cancel();
    }

    fn check(&self) -> Result<(), NetError> {
        if self.closed.load(Ordering::SeqCst) { Err(NetError::Cancelled) } else { self.cancel.check() }
    }

    /// Puts the lanes of a session that was just opened to work.
    fn man(&self, first: Dialled, halt: Cancel) -> Result<Arc<Crew>, NetError> {
        self.observer.event(Event::SessionOpened { peer: first.lane.transport().peer_addr() });
        let halts = (self.cancel.child(), halt);
        let crew = Crew::start(&self.plan, &self.options, first, halts, &self.observer)?;
        let crew = Arc::new(crew);
        // The threads of the last session are joined here.
        let last = lock(&self.crew).replace(Arc::clone(&crew));
        drop(last);
        self.check()?;
        Ok(crew)
    }

    /// Opens a session anew, for as long as there is patience.
    fn reopen(&self, patient: Instant, attempts: &mut u32) -> Result<Arc<Crew>, NetError> {
        loop {
            let halt = Cancel::new();
            let error = match open_lane(&self.plan, 0, None, (&self.cancel, &halt)) {
                Ok(first) => return self.man(first, halt),
                Err(error) => first_failure(error, &self.cancel),
            };
            let hopeless = matches!(
                error,
                NetError::Auth { .. } | NetError::Version { .. } | NetError::Peer { retryable: false, .. }
            );
            if hopeless || Instant::now() >= patient {
                return Err(error);
            }
            *attempts += 1;
            self.pause(*attempts, &error)?;
        }
    }

    fn pause(&self, attempts: u32, error: &NetError) -> Result<(), NetError> {
        let after = backoff(attempts);
        self.observer.event(Event::Reconnecting { attempt: attempts, after, reason: error.to_string() });
        self.cancel.sleep(after)
    }
}

impl Watched for FetchSession {
    fn progress(&self) -> Progress {
        FetchSession::progress(self)
    }
}

impl Drop for FetchSession {
    fn drop(&mut self) {
        self.close();
    }
}
