//! Makes one lane: TCP, TLS, prefaces, HELLO and WELCOME.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{
    ErrorCode, FEATURE_DICTIONARY, FEATURE_FETCH, FEATURE_FILL, FEATURE_RELAY, Frame, Hello, Secret,
    Security, SessionId, Takes, Welcome,
};
use dwcp_proto::limits::PREFACE_BYTES;
use dwcp_proto::{error::SessionError, preface};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::breaker::Breaker;
use crate::cancel::{Cancel, lock};
use crate::error::{NetError, plain};
use crate::lane::Lane;
use crate::lanes::Slots;
use crate::local::{LocalAddresses, MAX_LOCAL};
use crate::report::{Event, Observer};
use crate::security::{DialSecurity, client_config, random_bytes};
use crate::transport::{
    LinkKind, Patience, TcpTransport, TlsTransport, Transport, dial, open_rdma, open_shm, resolve,
};

/// The range of the delays between attempts to make a lane.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A lane that was up for this long was worth making, even if it brought nothing.
pub(crate) const WORTHWHILE: Duration = Duration::from_secs(1);

/// A random delay that grows with the attempts, so that many lanes do not come back all at once.
pub(crate) fn backoff(attempts: u32) -> Duration {
    jittered(attempts, random_bytes::<2>().map_or(1 << 15, u16::from_le_bytes))
}

/// Full jitter: any delay up to the most of these attempts is as likely as any other.
fn jittered(attempts: u32, chance: u16) -> Duration {
    let most = BACKOFF.0.saturating_mul(1 << attempts.min(10)).min(BACKOFF.1);
    most.mul_f64(f64::from(chance) / 65_536.0).max(Duration::from_millis(10))
}

/// How lanes are made, whichever way the state goes.
#[derive(Clone, Debug)]
pub(crate) struct DialOptions {
    pub(crate) idle_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) socket_buffer_bytes: Option<u32>,
    pub(crate) max_block: u32,
    /// This side is the receiver, and takes this.
    pub(crate) fetches: Option<Takes>,
    /// This side has a dictionary to offer, or takes those that it is offered.
    pub(crate) dictionaries: bool,
    /// This side would like to send FILL.
    pub(crate) fills: bool,
    /// The session is one of a relay.
    pub(crate) relays: bool,
    /// Where lanes come from, in turn; the system chooses if there is none.
    pub(crate) local_addresses: Vec<IpAddr>,
    /// What may carry a lane, in the order in which it is tried; TCP if there is nothing.
    pub(crate) links: Vec<LinkKind>,
}

/// Where to and how.
pub(crate) struct Plan {
    address: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    token: Secret,
    options: DialOptions,
    breaker: Breaker,
    slots: Slots,
    local: LocalAddresses,
    route: Mutex<Route>,
    observer: Arc<dyn Observer>,
}

/// How lanes are made at present. What does not carry one where something behind it does is not tried for others: the
/// lanes of a session do not come and go over a link that fails.
#[derive(Clone, Default)]
struct Route {
    /// Which of the links carries them, or is the first to be tried.
    index: usize,
    /// Whether a lane was made.
    carries: bool,
    /// What was tried before it, and why it does not.
    passed_over: Option<String>,
}

impl Plan {
    /// Whether lanes need not wait to be let in: the peer was there when it was last tried.
    pub(crate) fn trusts_peer(&self) -> bool {
        self.breaker.is_closed()
    }

    /// What may carry lanes, in the order in which it is tried.
    fn links(&self) -> &[LinkKind] {
        if self.options.links.is_empty() { &[LinkKind::Tcp] } else { &self.options.links }
    }

    /// What carries the lane that was made last, and what was tried before that and why it does not.
    pub(crate) fn carried_by(&self) -> (LinkKind, Option<String>) {
        let route = lock(&self.route).clone();
        (self.links().get(route.index).copied().unwrap_or_default(), route.passed_over)
    }

    /// A lane was made over the link of this number, after others had failed. Says so if lanes had another before.
    fn settle(&self, index: usize, passed_over: &Option<String>) {
        let mut route = lock(&self.route);
        let carried = route.carries;
        if carried && index <= route.index {
            return;
        }
        *route = Route { index, carries: true, passed_over: passed_over.clone() };
        drop(route);
        if let Some(reason) = passed_over.as_ref().filter(|_| carried) {
            let link = self.links()[index];
            log::warn!("lanes to {} go over {link} from now on: {reason}", self.address);
            self.observer.event(Event::LinkChanged { link, reason: reason.clone() });
        }
    }

    /// A lane that did not wait was not let in.
    pub(crate) fn note_refusal(&self, refusal: &NetError) {
        if refusal.tells_of_absence() {
            self.breaker.miss();
        }
    }

    pub(crate) fn new(
        address: &str,
        security: &DialSecurity,
        options: DialOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Plan, NetError> {
        let token = match security {
            DialSecurity::Paired { token, .. } => Secret(token.to_bytes()),
            DialSecurity::Mutual { .. } | DialSecurity::Insecure => Secret::NONE,
        };
        let value = options.local_addresses.len();
        if value > MAX_LOCAL {
            return Err(NetError::Option {
                name: "local_addresses",
                value: value as u64,
                range: "0 to 16 addresses",
            });
        }
        if options.links.contains(&LinkKind::Rdma) && !matches!(security, DialSecurity::Insecure) {
            let reason = "it is neither encrypted nor authenticated, and the peer is to be known".to_owned();
            return Err(NetError::Link { link: LinkKind::Rdma, reason });
        }
        let local = LocalAddresses::new(&options.local_addresses);
        let (tls, breaker) = (client_config(security)?, Breaker::new(backoff));
        let (address, slots, route) = (address.to_owned(), Slots::default(), Mutex::default());
        Ok(Plan { address, tls, token, options, breaker, slots, local, route, observer })
    }
}

/// A peer that takes so long to answer TCP is far. One that is behind something on this machine is as far as it takes to
/// answer by itself, and it may be busy.
const FAR: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(25)];

/// A lane that was let in.
pub(crate) struct Dialled {
    pub(crate) lane: Lane,
    pub(crate) welcome: Welcome,
    /// How long connecting took, which is about a round trip through TCP.
    pub(crate) round_trip: Duration,
    /// How long the peer itself took to answer: more, where something on the way has answered for it before.
    pub(crate) answer_time: Duration,
    /// What was tried before what carries the lane, and why that does not.
    pub(crate) passed_over: Option<String>,
}

impl Dialled {
    /// Whether the way to the peer is so long that the number of lanes may matter.
    pub(crate) fn is_far(&self) -> bool {
        self.link() == LinkKind::Tcp && (self.round_trip >= FAR[0] || self.answer_time >= FAR[1])
    }

    /// Whether the peer seems to be behind something near, which answers for it: then TCP tells nothing of the way.
    pub(crate) fn is_relayed(&self) -> bool {
        self.link() == LinkKind::Tcp && self.round_trip < FAR[0] && self.answer_time >= FAR[1]
    }

    /// What carries the lane.
    pub(crate) fn link(&self) -> LinkKind {
        self.lane.transport().kind()
    }
}

/// A lane that has asked to join a session, and may speak before it is let in.
pub(crate) struct Hailed {
    pub(crate) lane: Lane,
    pub(crate) greeting: Greeting,
    /// How long the TCP handshake took.
    pub(crate) round_trip: Duration,
    /// Why something that was tried before carries nothing.
    pub(crate) passed_over: Option<String>,
}

/// A HELLO that was said, and has to be answered.
pub(crate) struct Greeting {
    security: Security,
    session: Option<SessionId>,
    fetches: bool,
    relays: bool,
    said: Instant,
    limit: Duration,
    /// The preface of the peer has come, after so long.
    answer_time: Option<Duration>,
}

impl Greeting {
    /// Takes the answer, and tells how long the peer has taken to begin with it.
    fn hear(mut self, lane: &mut Lane) -> Result<(Welcome, Duration), NetError> {
        loop {
            if let Some(welcome) = self.hear_next(lane)? {
                return Ok((welcome, self.answer_time.unwrap_or_default()));
            }
        }
    }

    /// Takes what comes next of the answer, which is the preface or the welcome.
    pub(crate) fn hear_next(&mut self, lane: &mut Lane) -> Result<Option<Welcome>, NetError> {
        let ours = preface::VERSIONS;
        if self.answer_time.is_none() {
            let mut answer = [0; PREFACE_BYTES];
            lane.recv_bytes(&mut answer).map_err(|error| explain(error, self.security))?;
            self.answer_time = Some(self.said.elapsed());
            let theirs = preface::decode(&answer)?;
            let agreed = preface::agree(ours, theirs).ok().filter(|version| *version == ours.1);
            return agreed.map(|_| None).ok_or(NetError::Version { ours, theirs });
        }
        let welcome = match lane.recv().map_err(|error| explain(error, self.security))?.0 {
            Frame::Welcome(welcome) => welcome,
            Frame::Error(error) => {
                let message = plain(&error.message);
                return Err(NetError::Peer { code: error.code, retryable: error.retryable, message });
            }
            other => {
                return Err(SessionError::Unexpected { frame: other.name(), phase: "handshake" }.into());
            }
        };
        if self.relays && welcome.features & FEATURE_RELAY == 0 {
            let message = "it knows of no relays".to_owned();
            return Err(NetError::Peer { code: ErrorCode::Unsupported, retryable: false, message });
        }
        if welcome.version != ours.1
            || welcome.security != self.security
            || self.session.is_some_and(|id| id != welcome.session)
            || self.fetches != (welcome.features & FEATURE_FETCH != 0)
        {
            let reason = "the welcome does not fit what was asked for".to_owned();
            return Err(NetError::Auth { reason });
        }
        lane.hear(&welcome.session);
        Ok(Some(welcome))
    }

    /// An error once the answer is overdue.
    pub(crate) fn check(&self) -> Result<(), NetError> {
        Patience::Until(self.said + self.limit, self.limit).check(self.said, "waiting for the peer")
    }
}

/// What a failure of the first lane of all means.
pub(crate) fn first_failure(error: NetError, cancel: &Cancel) -> NetError {
    match error {
        _ if cancel.is_cancelled() => NetError::Cancelled,
        NetError::Peer { code: ErrorCode::Auth, message, .. } => {
            NetError::Auth { reason: format!("the peer reports: {message}") }
        }
        error => error,
    }
}

/// Makes lane `number`, which joins a session or opens one. `cancel` stops that, `halt` shuts the lane later. While the
/// peer is known to be away, one lane at a time tries, and the others wait here for what comes of it.
pub(crate) fn open_lane(
    plan: &Plan,
    number: u16,
    join: Option<(SessionId, Secret)>,
    halts: (&Cancel, &Cancel),
) -> Result<Dialled, NetError> {
    let leave = plan.breaker.enter(halts.0)?;
    let made = make_from_some(plan, number, |(from, limit)| {
        let Hailed { mut lane, greeting, round_trip, passed_over } =
            hail(plan, number, join, (from, limit), halts.0)?;
        let (welcome, answer_time) = greeting.hear(&mut lane)?;
        lane.enter(&welcome.session, plan.options.idle_timeout, halts.1);
        Ok(Dialled { lane, welcome, round_trip, answer_time, passed_over })
    });
    match &made {
        Err(NetError::Cancelled) => {}
        Err(error) if error.tells_of_absence() => leave.missed(),
        _ => leave.found(),
    }
    made
}

/// Makes lane `number`, which joins a session that has others, and does not wait until it is let in: that would cost a
/// round trip in which nothing flows. Whether the peer is there shows only when it answers.
pub(crate) fn hail_lane(
    plan: &Plan,
    number: u16,
    (session, key): (SessionId, Secret),
    halts: (&Cancel, &Cancel),
) -> Result<Hailed, NetError> {
    let leave = plan.breaker.enter(halts.0)?;
    let made = make_from_some(plan, number, |attempt| {
        let mut hailed = hail(plan, number, Some((session, key)), attempt, halts.0)?;
        hailed.lane.speak(&session, plan.options.idle_timeout, halts.1);
        Ok(hailed)
    });
    if made.as_ref().is_err_and(NetError::tells_of_absence) {
        leave.missed();
    }
    made
}

/// Makes the lane from the first of the local addresses from which that works.
fn make_from_some<T>(
    plan: &Plan,
    number: u16,
    make: impl Fn((Option<IpAddr>, Duration)) -> Result<T, NetError>,
) -> Result<T, NetError> {
    /// An address behind which nothing answers is not waited for as long as one that is the last hope.
    const IMPATIENCE: Duration = Duration::from_secs(3);
    let order = plan.local.order(number, Instant::now());
    let mut failed = None;
    for (index, from) in order.iter().enumerate() {
        let whole = plan.options.connect_timeout;
        let limit = if index + 1 < order.len() { whole.min(IMPATIENCE) } else { whole };
        match make((*from, limit)) {
            Ok(made) => {
                plan.local.made(*from, &order[..index], Instant::now());
                return Ok(made);
            }
            Err(error) if error.tells_of_absence() => {
                log::debug!("lane {number} cannot be made from {from:?}: {error}");
                // That an address is not of this machine tells less than why another does not do.
                if failed.is_none() || !matches!(error, NetError::LocalAddress { .. }) {
                    failed = Some(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(failed.unwrap_or(NetError::Internal { what: "the order of local addresses" }))
}

/// Makes a connection, and says HELLO on it.
fn hail(
    plan: &Plan,
    number: u16,
    join: Option<(SessionId, Secret)>,
    (from, limit): (Option<IpAddr>, Duration),
    cancel: &Cancel,
) -> Result<Hailed, NetError> {
    let options = &plan.options;
    let slot = plan.slots.take(cancel)?;
    let patience = Patience::for_time(limit);
    let Carrier { transport, round_trip, passed_over } = carry(plan, from, limit, cancel)?;
    let security = if plan.tls.is_some() { Security::Tls } else { Security::Plaintext };
    // Without TCP nothing encrypts what was authenticated.
    let encrypted = plan.tls.is_some() && transport.kind() == LinkKind::Tcp;
    let mut lane = Lane::new(transport, encrypted, patience, cancel);

    let ours = preface::VERSIONS;
    let (session, secret) = match join {
        Some((session, key)) => (Some(session), key),
        None => (None, plan.token),
    };
    let hello = Hello {
        version: ours.1,
        security,
        lane: number,
        features: (if options.dictionaries { FEATURE_DICTIONARY } else { 0 })
            | (if options.fills { FEATURE_FILL } else { 0 })
            | if options.relays { FEATURE_RELAY } else { 0 },
        session,
        secret,
        max_block: options.max_block,
        fetches: options.fetches,
    };
    // HELLO does not wait for the answer to the preface: that would cost every lane a round trip.
    let greeting = Greeting {
        security,
        session,
        fetches: options.fetches.is_some(),
        relays: options.relays,
        said: Instant::now(),
        limit,
        answer_time: None,
    };
    lane.send_behind(&preface::encode(ours.0, ours.1), &Frame::Hello(hello))?;
    // Whoever connects next comes to the listener after this.
    drop(slot);
    Ok(Hailed { lane, greeting, round_trip, passed_over })
}

/// How long connecting over RDMA may take where there is something else to try: a firewall on the way may drop what it does
/// not know, without a word.
const TRIAL: Duration = Duration::from_secs(3);

/// What carries a lane.
struct Carrier {
    transport: Box<dyn Transport>,
    round_trip: Duration,
    passed_over: Option<String>,
}

/// Makes what carries the lane: the first of what may that works.
fn carry(plan: &Plan, from: Option<IpAddr>, limit: Duration, cancel: &Cancel) -> Result<Carrier, NetError> {
    let links = plan.links();
    let Route { index: first, mut passed_over, .. } = lock(&plan.route).clone();
    for (index, link) in links.iter().enumerate().skip(first) {
        let began = Instant::now();
        let made = match link {
            LinkKind::Tcp => connect_tcp(plan, from, limit, cancel),
            LinkKind::Shm => share_memory(plan, limit, cancel).map(|made| (made, began.elapsed())),
            LinkKind::Rdma => {
                let limit = if index + 1 < links.len() { limit.min(TRIAL) } else { limit };
                open_rdma(&plan.address, from, limit, cancel).map(|made| (made, began.elapsed()))
            }
        };
        match made {
            Ok((transport, round_trip)) => {
                plan.settle(index, &passed_over);
                return Ok(Carrier { transport, round_trip, passed_over });
            }
            Err(NetError::Cancelled) => return Err(NetError::Cancelled),
            Err(error) if index + 1 == links.len() => return Err(error),
            Err(error) => {
                log::debug!("{link} to {} is passed over: {error}", plan.address);
                let why = passed_over.take().map_or_else(String::new, |before| format!("{before}; "));
                passed_over = Some(format!("{why}{link}: {error}"));
            }
        }
    }
    Err(NetError::Internal { what: "the order of links" })
}

/// Connects through TCP, with TLS if that is to be. Tells how long a round trip takes.
fn connect_tcp(
    plan: &Plan,
    from: Option<IpAddr>,
    limit: Duration,
    cancel: &Cancel,
) -> Result<(Box<dyn Transport>, Duration), NetError> {
    let (stream, round_trip) = dial(&plan.address, from, plan.options.socket_buffer_bytes, limit, cancel)?;
    let patience = Patience::for_time(limit);
    let tcp = TcpTransport::new(stream)?;
    let _registration = cancel.register(tcp.closer());
    let transport: Box<dyn Transport> = match &plan.tls {
        None => Box::new(tcp),
        Some((config, name)) => {
            Box::new(TlsTransport::connect(tcp, Arc::clone(config), name.clone(), patience)?)
        }
    };
    Ok((transport, round_trip))
}

/// Shares memory with a listener on this host. Both sides prove who they are as they do through TCP.
fn share_memory(plan: &Plan, limit: Duration, cancel: &Cancel) -> Result<Box<dyn Transport>, NetError> {
    let addresses = resolve(&plan.address, Instant::now() + limit, limit, cancel)?;
    open_shm(&addresses, plan.tls.as_ref(), Patience::for_time(limit), cancel)
}

/// Says what a connection that ends in the handshake is likely to mean.
fn explain(error: NetError, security: Security) -> NetError {
    match error {
        NetError::PeerClosed { .. } => {
            let hint = match security {
                Security::Plaintext => "does it expect tls, or another protocol?",
                Security::Tls => "it may not trust this side",
            };
            NetError::PeerClosed { phase: "being greeted", hint: Some(hint) }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How far the delays of `attempts` are from an even spread over all that they may be, by Kolmogorov and Smirnov.
    fn unevenness(attempts: u32, most: Duration, mut draw: impl FnMut(u32) -> Duration) -> f64 {
        const DRAWS: u32 = 4_000;
        let mut shares: Vec<f64> =
            (0..DRAWS).map(|_| draw(attempts).as_secs_f64() / most.as_secs_f64()).collect();
        shares.sort_by(f64::total_cmp);
        // What would be shorter than the least is the least.
        let least = 0.01 / most.as_secs_f64();
        shares
            .iter()
            .enumerate()
            .filter(|(_, share)| **share > least)
            .map(|(index, share)| (f64::from(index as u32) / f64::from(DRAWS) - share).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn delays_are_spread_over_all_that_they_may_be_and_grow_to_their_limit() {
        // Of 4,000 even draws the distance is above 0.04 once in 300,000 times.
        const FAR: f64 = 0.04;
        let most = [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis);
        let mut state = 0x9e37_79b9_u32;
        for (attempts, most) in most.into_iter().enumerate() {
            let attempts = attempts as u32;
            let seeded = unevenness(attempts, most, |attempts| {
                // xorshift32
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                jittered(attempts, (state >> 16) as u16)
            });
            assert!(seeded < FAR, "{seeded} after {attempts} attempts");
            let real = unevenness(attempts, most, backoff);
            assert!(real < FAR, "{real} after {attempts} attempts");
            assert!(
                jittered(attempts, u16::MAX) <= most && jittered(attempts, u16::MAX) > most.mul_f64(0.99)
            );
            assert_eq!(jittered(attempts, 0), Duration::from_millis(10));
        }
        assert_eq!(jittered(u32::MAX, u16::MAX), jittered(10, u16::MAX));
    }
}
