//! Makes one lane: TCP, TLS, prefaces, HELLO and WELCOME.

use std::sync::Arc;
use std::time::Duration;

use dwcp_proto::frame::{Frame, Hello, Secret, Security, SessionId, Welcome};
use dwcp_proto::limits::PREFACE_BYTES;
use dwcp_proto::{error::SessionError, preface};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::SendOptions;
use crate::cancel::Cancel;
use crate::error::{NetError, plain};
use crate::lane::Lane;
use crate::security::{DialSecurity, client_config};
use crate::transport::{Patience, TcpTransport, TlsTransport, Transport, dial};

/// Where to and how.
pub(super) struct Plan {
    pub(super) address: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    token: Secret,
}

impl Plan {
    pub(super) fn new(address: &str, security: &DialSecurity) -> Result<Plan, NetError> {
        let token = match security {
            DialSecurity::Paired { token, .. } => Secret(token.to_bytes()),
            DialSecurity::Mutual { .. } | DialSecurity::Insecure => Secret::NONE,
        };
        Ok(Plan { address: address.to_owned(), tls: client_config(security)?, token })
    }
}

/// A lane that was let in.
pub(super) struct Dialled {
    pub(super) lane: Lane,
    pub(super) welcome: Welcome,
    /// How long the TCP handshake took.
    pub(super) round_trip: Duration,
}

/// Makes lane `number`, which joins a session or opens one. `cancel` stops that, `halt` shuts the lane later.
pub(super) fn open_lane(
    plan: &Plan,
    options: &SendOptions,
    number: u16,
    join: Option<(SessionId, Secret)>,
    (cancel, halt): (&Cancel, &Cancel),
) -> Result<Dialled, NetError> {
    let limit = options.connect_timeout;
    let (stream, round_trip) = dial(&plan.address, options.socket_buffer_bytes, limit, cancel)?;
    let patience = Patience::for_time(limit);
    let tcp = TcpTransport::new(stream)?;
    let registration = cancel.register(tcp.closer());
    let (transport, security): (Box<dyn Transport>, _) = match &plan.tls {
        None => (Box::new(tcp), Security::Plaintext),
        Some((config, name)) => {
            let tls = TlsTransport::connect(tcp, Arc::clone(config), name.clone(), patience)?;
            (Box::new(tls), Security::Tls)
        }
    };
    let mut lane = Lane::new(transport, security == Security::Tls, patience, cancel);
    drop(registration);

    let ours = preface::VERSIONS;
    let (session, secret) = match join {
        Some((session, key)) => (Some(session), key),
        None => (None, plan.token),
    };
    let hello = Hello {
        version: ours.1,
        security,
        lane: number,
        features: 0,
        session,
        secret,
        max_block: options.block_bytes,
    };
    // HELLO does not wait for the answer to the preface: that would cost every lane a round trip.
    lane.send_behind(&preface::encode(ours.0, ours.1), &Frame::Hello(hello))?;
    let mut answer = [0; PREFACE_BYTES];
    lane.recv_bytes(&mut answer).map_err(|error| explain(error, security))?;
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
    if welcome.version != version
        || welcome.security != security
        || join.is_some_and(|(id, _)| id != welcome.session)
    {
        let reason = "the receiver's welcome does not fit what was asked for".to_owned();
        return Err(NetError::Auth { reason });
    }
    lane.enter(&welcome.session, options.idle_timeout, halt);
    Ok(Dialled { lane, welcome, round_trip })
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
