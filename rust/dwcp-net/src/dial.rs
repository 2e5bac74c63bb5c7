//! Makes one lane: TCP, TLS, prefaces, HELLO and WELCOME.

use std::net::IpAddr;
use std::sync::Arc;
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
use crate::cancel::Cancel;
use crate::carrier::Carrier;
use crate::error::{NetError, plain};
use crate::lane::Lane;
use crate::lanes::Slots;
use crate::local::{LocalAddresses, MAX_LOCAL};
use crate::security::{DialSecurity, client_config, random_bytes};
use crate::transport::{Patience, RdmaTransport, TcpTransport, TlsTransport, Transport, dial};

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
    /// What lanes are made of.
    pub(crate) carrier: Carrier,
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
}

impl Plan {
    pub(crate) fn new(
        address: &str,
        security: &DialSecurity,
        options: DialOptions,
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
        if options.carrier == Carrier::Rdma && !matches!(security, DialSecurity::Insecure) {
            let reason = "it is neither encrypted nor authenticated, and the peer is to be known".to_owned();
            return Err(NetError::Carrier { carrier: Carrier::Rdma, reason });
        }
        let local = LocalAddresses::new(&options.local_addresses);
        let (tls, breaker) = (client_config(security)?, Breaker::default());
        Ok(Plan { address: address.to_owned(), tls, token, options, breaker, slots: Slots::default(), local })
    }
}

/// A peer that takes so long to answer TCP is far. One that is behind something on this machine is as far as it takes to
/// answer by itself, and it may be busy.
const FAR: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(25)];

/// A lane that was let in.
pub(crate) struct Dialled {
    pub(crate) lane: Lane,
    pub(crate) welcome: Welcome,
    /// How long the TCP handshake took.
    pub(crate) round_trip: Duration,
    /// How long the peer itself took to answer: more, where something on the way has answered for it before.
    pub(crate) answer_time: Duration,
}

impl Dialled {
    /// Whether the way to the peer is so long that the number of lanes may matter.
    pub(crate) fn is_far(&self) -> bool {
        self.round_trip >= FAR[0] || self.answer_time >= FAR[1]
    }

    /// Whether the peer seems to be behind something near, which answers for it: then TCP tells nothing of the way.
    pub(crate) fn is_relayed(&self) -> bool {
        self.round_trip < FAR[0] && self.answer_time >= FAR[1]
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
    let made = make_from_some(plan, number, join, halts);
    match &made {
        Err(NetError::Cancelled) => {}
        Err(error) if error.tells_of_absence() => leave.missed(),
        _ => leave.found(),
    }
    made
}

/// Makes the lane from the first of the local addresses from which that works.
fn make_from_some(
    plan: &Plan,
    number: u16,
    join: Option<(SessionId, Secret)>,
    halts: (&Cancel, &Cancel),
) -> Result<Dialled, NetError> {
    /// An address behind which nothing answers is not waited for as long as one that is the last hope.
    const IMPATIENCE: Duration = Duration::from_secs(3);
    let order = plan.local.order(number, Instant::now());
    let mut failed = None;
    for (index, from) in order.iter().enumerate() {
        let whole = plan.options.connect_timeout;
        let limit = if index + 1 < order.len() { whole.min(IMPATIENCE) } else { whole };
        match make_lane(plan, number, join, (*from, limit), halts) {
            Ok(dialled) => {
                plan.local.made(*from, &order[..index], Instant::now());
                return Ok(dialled);
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

fn make_lane(
    plan: &Plan,
    number: u16,
    join: Option<(SessionId, Secret)>,
    (from, limit): (Option<IpAddr>, Duration),
    (cancel, halt): (&Cancel, &Cancel),
) -> Result<Dialled, NetError> {
    let options = &plan.options;
    let slot = plan.slots.take(cancel)?;
    let patience = Patience::for_time(limit);
    let (transport, security, round_trip) = match options.carrier {
        Carrier::Tcp => connect_tcp(plan, from, (limit, patience), cancel)?,
        Carrier::Rdma => {
            let rdma = RdmaTransport::dial(&plan.address, from, limit, cancel)?;
            (Box::new(rdma) as Box<dyn Transport>, Security::Plaintext, Duration::ZERO)
        }
    };
    let mut lane = Lane::new(transport, security == Security::Tls, patience, cancel);
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
    let greeted = Instant::now();
    lane.send_behind(&preface::encode(ours.0, ours.1), &Frame::Hello(hello))?;
    // Whoever connects next comes to the listener after this.
    drop(slot);
    let mut answer = [0; PREFACE_BYTES];
    lane.recv_bytes(&mut answer).map_err(|error| explain(error, security))?;
    // RDMA is for near links: how long it takes to make a connection tells nothing of the way.
    let answer_time = if options.carrier == Carrier::Rdma { Duration::ZERO } else { greeted.elapsed() };
    let theirs = preface::decode(&answer)?;
    let version = preface::agree(ours, theirs).ok().filter(|version| *version == ours.1);
    let version = version.ok_or(NetError::Version { ours, theirs })?;
    let welcome = match lane.recv().map_err(|error| explain(error, security))?.0 {
        Frame::Welcome(welcome) => welcome,
        Frame::Error(error) => {
            let message = plain(&error.message);
            return Err(NetError::Peer { code: error.code, retryable: error.retryable, message });
        }
        other => return Err(SessionError::Unexpected { frame: other.name(), phase: "handshake" }.into()),
    };
    if options.relays && welcome.features & FEATURE_RELAY == 0 {
        let message = "it knows of no relays".to_owned();
        return Err(NetError::Peer { code: ErrorCode::Unsupported, retryable: false, message });
    }
    if welcome.version != version
        || welcome.security != security
        || join.is_some_and(|(id, _)| id != welcome.session)
        || options.fetches.is_some() != (welcome.features & FEATURE_FETCH != 0)
    {
        let reason = "the welcome does not fit what was asked for".to_owned();
        return Err(NetError::Auth { reason });
    }
    lane.enter(&welcome.session, options.idle_timeout, halt);
    Ok(Dialled { lane, welcome, round_trip, answer_time })
}

/// A connection over TCP, with TLS where that is asked for, and how long the handshake of TCP took.
fn connect_tcp(
    plan: &Plan,
    from: Option<IpAddr>,
    (limit, patience): (Duration, Patience),
    cancel: &Cancel,
) -> Result<(Box<dyn Transport>, Security, Duration), NetError> {
    let (stream, round_trip) = dial(&plan.address, from, plan.options.socket_buffer_bytes, limit, cancel)?;
    let tcp = TcpTransport::new(stream)?;
    let Some((config, name)) = &plan.tls else {
        return Ok((Box::new(tcp), Security::Plaintext, round_trip));
    };
    let _registration = cancel.register(tcp.closer());
    let tls = TlsTransport::connect(tcp, Arc::clone(config), name.clone(), patience)?;
    Ok((Box::new(tls), Security::Tls, round_trip))
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
