//! Finds out what a connection is, and lets it in or turns it away.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use dwcp_proto::frame::{
    ErrorCode, FEATURE_DICTIONARY, FEATURE_FETCH, FEATURE_FILL, FEATURE_RELAY, Frame, Hello, Secret,
    Security, SessionId, Takes, Welcome,
};
use dwcp_proto::limits::PREFACE_BYTES;
use dwcp_proto::preface::{self, Opening};
use dwcp_proto::{LaneId, Limits, SessionError};
use subtle::ConstantTimeEq;

use super::waiting::Place;
use super::{Known, Shared, Stranger};
use crate::cancel::lock;
use crate::error::NetError;
use crate::lane::Lane;
use crate::receive::{self, Names, Refusal, Session};
use crate::relay::Relayed;
use crate::report::Event;
use crate::security::{Fingerprint, ListenSecurity, random_bytes};
use crate::send::max_dictionary;
use crate::serve::Served;
use crate::transport::{
    LocalStream, Patience, RdmaIncoming, SOCKET_SLICE, TcpTransport, TlsTransport, Transport, WakeReceiver,
    accept_shm, wake_pair,
};

/// Serves a connection from its first byte to its end.
pub(super) fn admit(shared: &Arc<Shared>, stranger: Stranger, place: Place) {
    let patience = Patience::for_time(shared.options.handshake_timeout);
    match stranger {
        Stranger::Tcp(stream, peer) => admit_tcp(shared, stream, peer, (patience, place)),
        Stranger::Local(stream) => {
            let peer = stream.peer_addr();
            if let Err(error) = serve_local(shared, stream, (patience, place)) {
                refuse(shared, peer, &error);
            }
        }
        Stranger::Rdma(incoming) => {
            let peer = incoming.peer_addr();
            if let Err(error) = serve_rdma(shared, incoming, (patience, place)) {
                refuse(shared, peer, &error);
            }
        }
    }
}

fn admit_tcp(
    shared: &Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    (patience, place): (Patience, Place),
) {
    let opening = match first_byte(shared, &stream, patience) {
        Ok(Some(first)) => preface::sniff(first),
        Ok(None) => return,
        Err(error) => return refuse(shared, peer, &error),
    };
    match opening {
        Opening::Other => {
            drop(place);
            serve_v1(shared, stream, peer);
        }
        Opening::Tls | Opening::V3Plaintext => {
            if let Err(error) = serve_tcp(shared, stream, opening, (patience, place)) {
                refuse(shared, peer, &error);
            }
        }
    }
}

fn refuse(shared: &Shared, peer: SocketAddr, error: &NetError) {
    match error {
        // A sender that is done closes the lanes it was still making.
        NetError::PeerClosed { .. } => log::debug!("{peer} left before it was let in"),
        _ if shared.cancel.is_cancelled() => {}
        error => {
            let reason = match error {
                // This side's own words, as the peer was told them.
                NetError::Peer { message, .. } => message.clone(),
                error => error.to_string(),
            };
            log::warn!("{peer} is turned away: {reason}");
            shared.observer.event(Event::Refused { peer, reason });
        }
    }
}

/// Looks at the first byte without taking it; none when the peer leaves again without a word.
fn first_byte(shared: &Shared, stream: &TcpStream, patience: Patience) -> Result<Option<u8>, NetError> {
    let failed =
        |source: io::Error| NetError::Io { action: "read from", addr: "a new connection".to_owned(), source };
    stream.set_nonblocking(false).map_err(failed)?;
    stream.set_read_timeout(Some(SOCKET_SLICE)).map_err(failed)?;
    let mut first = [0];
    loop {
        shared.cancel.check()?;
        match stream.peek(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(first[0])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                patience.check(Instant::now(), "the first byte of a connection")?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Hands a v1 peer over as it came, or turns it away.
fn serve_v1(shared: &Shared, stream: TcpStream, peer: SocketAddr) {
    let gate =
        shared.v1.as_ref().filter(|gate| gate.allowed.iter().any(|network| network.contains(peer.ip())));
    let Some(gate) = gate else {
        log::warn!("{peer} is turned away: it speaks neither v3 nor tls, and v1 is not allowed from there");
        shared.observer.event(Event::V1Refused { peer });
        return;
    };
    if let Err(source) = stream.set_read_timeout(None) {
        return refuse(shared, peer, &NetError::Io { action: "set up", addr: peer.to_string(), source });
    }
    log::info!("{peer} speaks v1 and is handed over");
    shared.observer.event(Event::V1HandedOver { peer });
    (gate.serve)(stream, peer);
}

/// Has a process on this host show who it is and share its memory, and serves its lane to its end.
fn serve_local(
    shared: &Arc<Shared>,
    stream: LocalStream,
    (patience, place): (Patience, Place),
) -> Result<(), NetError> {
    let registration = shared.cancel.register(stream.closer());
    let transport = accept_shm(stream, shared.tls.as_ref(), patience)?;
    drop(registration);
    let security = if shared.tls.is_some() { Security::Tls } else { Security::Plaintext };
    // Nothing encrypts what goes through memory.
    serve_lane(shared, Lane::new(transport, false, patience, &shared.cancel), security, place)
}

/// Makes the connection over RDMA that was asked for, and serves its lane to its end.
fn serve_rdma(
    shared: &Arc<Shared>,
    incoming: RdmaIncoming,
    (patience, place): (Patience, Place),
) -> Result<(), NetError> {
    let registration = shared.cancel.register(incoming.closer());
    let transport = incoming.accept(shared.options.handshake_timeout)?;
    drop(registration);
    serve_lane(shared, Lane::new(transport, false, patience, &shared.cancel), Security::Plaintext, place)
}

/// Makes a lane of a TCP connection, and serves it to its end.
fn serve_tcp(
    shared: &Arc<Shared>,
    stream: TcpStream,
    opening: Opening,
    (patience, place): (Patience, Place),
) -> Result<(), NetError> {
    let tcp = TcpTransport::new(stream)?;
    let registration = shared.cancel.register(tcp.closer());
    let (transport, security): (Box<dyn Transport>, _) = match (opening, &shared.tls) {
        (Opening::Tls, Some(config)) => {
            (Box::new(TlsTransport::accept(tcp, Arc::clone(config), patience)?), Security::Tls)
        }
        (Opening::Tls, None) => {
            let reason = "it wants tls, and this receiver was told to do without".to_owned();
            return Err(NetError::Auth { reason });
        }
        (_, _) => (Box::new(tcp), Security::Plaintext),
    };
    let lane = Lane::new(transport, security == Security::Tls, patience, &shared.cancel);
    drop(registration);
    serve_lane(shared, lane, security, place)
}

/// Serves a lane from its preface to its end.
fn serve_lane(
    shared: &Arc<Shared>,
    mut lane: Lane,
    security: Security,
    place: Place,
) -> Result<(), NetError> {
    let mut theirs = [0; PREFACE_BYTES];
    lane.recv_bytes(&mut theirs)?;
    let theirs = preface::decode(&theirs)?;
    let ours = preface::VERSIONS;
    lane.send_bytes(&preface::encode(ours.0, ours.1))?;
    let version = preface::agree(ours, theirs).map_err(|_| NetError::Version { ours, theirs })?;
    if security == Security::Plaintext && shared.tls.is_some() {
        let reason = "this receiver speaks tls only";
        lane.fail(ErrorCode::Auth, false, reason);
        return Err(NetError::Auth { reason: "it speaks plaintext, and this receiver tls only".to_owned() });
    }
    let (number, greeted, asked) = match lane.recv()?.0 {
        Frame::Hello(hello) => {
            (hello.lane, greet(shared, (&lane, &place), &hello, (version, security)), hello.features)
        }
        other => (0, Err(SessionError::Unexpected { frame: other.name(), phase: "handshake" }.into()), 0),
    };
    let (known, opens) = match greeted {
        Ok(Some(greeted)) => greeted,
        Ok(None) => {
            // Mostly a lane that comes after the end of its session; its peer opens a new one if it needs one.
            log::debug!("a lane from {} finds no session to join", lane.transport().peer_addr());
            lane.fail(ErrorCode::Auth, false, "no such session, or a wrong key");
            return Ok(());
        }
        Err(error) => {
            let (code, retryable, text) = match &error {
                // Another session may end in a moment.
                NetError::Peer { code, retryable, message } => (*code, *retryable, message.clone()),
                error => (error.code(), false, error.for_peer()),
            };
            lane.fail(code, retryable, &text);
            return Err(error);
        }
    };
    let entered = enter(shared, &known, &mut lane, number, (version, security, asked));
    if opens && !matches!(entered, Ok(Some(_))) {
        shared.registry.remove(&known.id());
    }
    let Some((id, wake)) = entered? else {
        lane.fail(ErrorCode::Limit, true, "the session has as many lanes as it may have");
        return Ok(());
    };
    let _let_in = place.let_in();
    if let (Known::Relays(relayed), true) = (&known, opens)
        && let Err(error) = relayed.agree(&mut lane)
    {
        shared.registry.remove(&known.id());
        lane.fail(error.code(), false, &error.for_peer());
        return Err(error);
    }
    if opens {
        shared.observer.event(Event::SessionOpened { peer: lane.transport().peer_addr() });
        shared.registry.announce(&known);
    }
    match known {
        Known::Receives(session) => receive::run(&session, lane, id, wake),
        Known::Serves(served) => served.run(lane, id, wake),
        Known::Relays(relayed) => relayed.run(lane, id, wake),
    }
    Ok(())
}

/// Takes a lane into its session and welcomes it; none when there is no room for it.
fn enter(
    shared: &Shared,
    known: &Known,
    lane: &mut Lane,
    number: u16,
    (version, security, asked): (u8, Security, u32),
) -> Result<Option<(LaneId, WakeReceiver)>, NetError> {
    let (admitted, limits, role) = match known {
        Known::Receives(session) => {
            let (waker, wake) = wake_pair()?;
            let limits = session.options.limits;
            let attached = {
                let mut state = lock(&session.state);
                state.carried_by = lane.transport().kind();
                state.attach(number, waker, lane.closer(), limits.max_lanes)
            };
            (attached.map(|id| (id, wake)), limits, asked & FEATURE_FILL)
        }
        Known::Serves(served) => (served.admit(number, lane)?, served.limits(), FEATURE_FETCH),
        Known::Relays(relayed) => {
            let limits = shared.options.limits;
            (relayed.admit(number, lane, limits.max_lanes)?, limits, FEATURE_RELAY)
        }
    };
    let Some((id, wake)) = admitted else { return Ok(None) };
    let dictionaries = if limits.max_dictionary > 0 { asked & FEATURE_DICTIONARY } else { 0 };
    let welcome = Welcome {
        version,
        security,
        max_lanes: shared.options.limits.max_lanes,
        features: role | dictionaries,
        session: known.id(),
        join_key: known.key(),
        max_block: limits.max_block,
        max_entries: limits.max_entries,
        max_object: limits.max_object,
    };
    let welcomed = lane.send(&Frame::Welcome(welcome));
    match known {
        Known::Receives(session) if welcomed.is_ok() => {
            lane.enter(&session.id, session.options.idle_timeout, &session.cancel);
        }
        Known::Receives(session) => lock(&session.state).withdraw(id),
        Known::Serves(served) if welcomed.is_ok() => served.enter(lane),
        Known::Serves(served) => served.withdraw(id),
        Known::Relays(relayed) if welcomed.is_ok() => relayed.enter(lane),
        Known::Relays(relayed) => relayed.withdraw(id),
    }
    welcomed.map(|()| Some((id, wake)))
}

/// Checks who the peer is, and finds or makes the session it wants. Tells whether it was made; none when there is
/// no such session or the key is wrong, which are told alike.
fn greet(
    shared: &Arc<Shared>,
    (lane, place): (&Lane, &Place),
    hello: &Hello,
    (version, security): (u8, Security),
) -> Result<Option<(Known, bool)>, NetError> {
    let auth = |reason: &str| NetError::Auth { reason: reason.to_owned() };
    if hello.version != version || hello.security != security {
        return Err(auth("the greeting contradicts the connection"));
    }
    let owner = lane.transport().peer_fingerprint();
    let serves = hello.fetches.is_some();
    let relays = hello.features & FEATURE_RELAY != 0;
    if let Some(id) = hello.session {
        return Ok(shared
            .registry
            .find(&id)
            .filter(|known| bool::from(known.key().0.ct_eq(&hello.secret.0)) && known.owner() == owner)
            .filter(|known| matches!(known, Known::Serves(_)) == serves && !known.is_over())
            .filter(|known| matches!(known, Known::Relays(_)) == relays)
            .map(|known| (known, false)));
    }
    match (&shared.security, &owner) {
        (ListenSecurity::Paired { tokens, .. }, Some(client)) => {
            let from = lane.transport().peer_addr().ip();
            if let Err((error, delay)) = tokens.admit(&hello.secret.0, client, from) {
                if !delay.is_zero() {
                    place.detain();
                    shared.cancel.sleep(delay)?;
                }
                return Err(error);
            }
        }
        (ListenSecurity::Paired { .. }, None) => return Err(auth("the peer showed no certificate")),
        (ListenSecurity::Mutual { .. } | ListenSecurity::Insecure, _) => {
            if hello.secret != Secret::NONE {
                return Err(auth("the peer was told to pair, and this side was not"));
            }
        }
    }
    let (options, registry) = (&shared.options, Arc::clone(&shared.registry));
    let refused =
        |retryable, message: String| NetError::Peer { code: ErrorCode::Refused, retryable, message };
    // Only who may come in at all is told.
    if let Some(why) = options.refusal.as_ref().and_then(Refusal::why) {
        return Err(refused(true, why));
    }
    let names = names(owner, lane.transport())?;
    let (cancel, observer) = (shared.cancel.child(), Arc::clone(&shared.observer));
    let known = match (&hello.fetches, &options.serve) {
        (None, _) if relays => {
            let Some(relay) = &options.relay else {
                return Err(refused(false, "this listener takes no relays".to_owned()));
            };
            let base = shared.base.clone();
            Known::Relays(Arc::new(Relayed::new(names, relay.clone(), base, cancel, observer, registry)))
        }
        (None, _) if options.senders => {
            Known::Receives(Arc::new(Session::new(names, options.clone(), None, cancel, observer, registry)))
        }
        (Some(Takes { max_entries, max_object }), Some(serve)) => {
            let limits = Limits {
                max_lanes: options.limits.max_lanes,
                max_block: hello.max_block,
                max_entries: *max_entries,
                max_object: *max_object,
                max_dictionary: max_dictionary(hello.features),
            };
            let limiter = Arc::clone(&shared.limiter);
            let served = Served::new(names, limits, serve.clone(), limiter, cancel, observer, registry);
            Known::Serves(Arc::new(served))
        }
        (None, _) => return Err(refused(false, "this listener sends, and takes nothing".to_owned())),
        (Some(_), None) => {
            return Err(refused(false, "this listener receives, and sends nothing".to_owned()));
        }
    };
    if shared.registry.add(&known, shared.options.max_sessions) {
        Ok(Some((known, true)))
    } else {
        let most = shared.options.max_sessions;
        Err(refused(true, format!("there are {most} sessions already, the most")))
    }
}

/// New names for a session of a peer.
fn names(owner: Option<Fingerprint>, transport: &dyn Transport) -> Result<Names, NetError> {
    let mut id = random_bytes()?;
    if id == [0; 16] {
        id[0] = 1;
    }
    Ok(Names {
        id: SessionId(id),
        key: Secret(random_bytes()?),
        owner,
        peer: transport.peer_addr(),
        link: transport.kind(),
    })
}
