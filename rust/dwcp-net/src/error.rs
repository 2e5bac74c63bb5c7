//! The errors of the network layer.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_codec::CodecError;
use dwcp_proto::error::{ProtoError, SessionError};
use dwcp_proto::frame::ErrorCode;
use dwcp_store::StoreError;
use dwcp_vm::VmError;

use crate::transport::LinkKind;

/// What went wrong between two peers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// A socket call failed.
    #[error("cannot {action} {addr}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The peer, or the address to listen on.
        addr: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No connection could be made.
    #[error("cannot reach {addr}: {source}")]
    Unreachable {
        /// Where the receiver should be.
        addr: String,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// There is no connecting from an address.
    #[error("cannot connect from {address}: {source}")]
    LocalAddress {
        /// What should be an address of this machine.
        address: IpAddr,
        /// Why it is of no use.
        source: io::Error,
    },
    /// The TLS layer refused something.
    #[error("tls with {addr} failed while {action}: {source}")]
    Tls {
        /// What was going on.
        action: &'static str,
        /// The peer.
        addr: String,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The peers do not trust each other.
    #[error("authentication failed: {reason}")]
    Auth {
        /// Which proof was missing or wrong.
        reason: String,
    },
    /// Bytes were altered on their way; a transfer ends with it when that has happened too often.
    #[error("bytes were altered on the way: {reason} (time {times} in this transfer)")]
    Integrity {
        /// How often in this transfer.
        times: u32,
        /// What did not match.
        reason: String,
    },
    /// The peer's bytes break the wire format.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// The peer's frames break the rules of a transfer.
    #[error(transparent)]
    Session(SessionError),
    /// Reading the source or writing the target failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block could not be coded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The pages of a machine could not be made of what came.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A relay has failed.
    #[error("{reason}")]
    Relay {
        /// The kind of failure.
        code: ErrorCode,
        /// What has failed.
        reason: String,
    },
    /// The peer is gone without having said so.
    #[error("the peer closed the connection while {phase}{}", hint.map(|hint| format!(" ({hint})")).unwrap_or_default())]
    PeerClosed {
        /// What was going on.
        phase: &'static str,
        /// What the reason may be.
        hint: Option<&'static str>,
    },
    /// Something took too long.
    #[error("{what} took longer than {} s", after.as_secs_f64())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// This side was told to stop.
    #[error("cancelled")]
    Cancelled,
    /// What was waited on has been closed, by this side.
    #[error("closed while it was waited on")]
    Closed,
    /// The peer reported a failure of its own.
    #[error("the peer reports: {message}")]
    Peer {
        /// The kind of failure.
        code: ErrorCode,
        /// Whether the peer thinks that trying again can help.
        retryable: bool,
        /// The peer's words, without control characters.
        message: String,
    },
    /// The two sides speak no common version.
    #[error("no common version: this side speaks {}-{}, the peer {}-{}", ours.0, ours.1, theirs.0, theirs.1)]
    Version {
        /// The lowest and the highest version of this side.
        ours: (u8, u8),
        /// The lowest and the highest version of the peer.
        theirs: (u8, u8),
    },
    /// Text that should be `HOST:PORT` is not.
    #[error("invalid address {address:?}: {reason}")]
    Address {
        /// The text.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Text that should be a pairing string is not. The text is a secret and not repeated.
    #[error("invalid pairing string: {reason}")]
    Pairing {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Text that should be a network such as `192.0.2.0/24` is not.
    #[error("invalid network {text:?}: {reason}")]
    Network {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A certificate or key cannot be used.
    #[error("unusable identity: {reason}")]
    Identity {
        /// What is wrong with it.
        reason: String,
    },
    /// A PEM file cannot be used.
    #[error("cannot read {}: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system does not let this process have a congestion control.
    #[error("congestion control {name:?} is not to be had, the system offers {}", if offered.is_empty() { "none" } else { offered })]
    Congestion {
        /// What was asked for.
        name: String,
        /// What there is, with commas between.
        offered: String,
    },
    /// What lanes were to be carried by is not to be had, or has failed.
    #[error("{link} cannot be used: {reason}")]
    Link {
        /// What was asked for.
        link: LinkKind,
        /// What is missing, or has failed.
        reason: String,
    },
    /// The machine gave no random bytes.
    #[error("no random bytes: {reason}")]
    Random {
        /// What the operating system says.
        reason: String,
    },
    /// An answer to nobody.
    #[error("the peer has asked for nothing that was not answered")]
    NotAsked,
    /// A call in the middle of another of the same thread, as a signal handler may make it.
    #[error("this thread is in the middle of another transfer of the session")]
    Nested,
    /// A thread of this process failed; that is a bug.
    #[error("internal error: {what}")]
    Internal {
        /// What failed.
        what: &'static str,
    },
    /// An option has a value that cannot work.
    #[error("option {name} is {value}, which is not in {range}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
}

impl NetError {
    /// Whether the receiver keeps what it has, so that the same transfer can go on later.
    #[must_use]
    pub fn resumable(&self) -> bool {
        match self {
            NetError::Io { .. }
            | NetError::Unreachable { .. }
            | NetError::LocalAddress { .. }
            | NetError::Link { .. }
            | NetError::Tls { .. }
            | NetError::Integrity { .. }
            | NetError::PeerClosed { .. }
            | NetError::Deadline { .. }
            | NetError::Cancelled => true,
            NetError::Store(error) => matches!(
                error,
                StoreError::Io { .. }
                    | StoreError::NoSpace { .. }
                    | StoreError::Busy { .. }
                    | StoreError::Cancelled
            ),
            // The peer knows whether it can go on: a source that has changed, for example, cannot.
            NetError::Peer { retryable, .. } => *retryable,
            _ => false,
        }
    }

    /// Whether a peer that was dialled gave no sign of being able to take a lane.
    pub(crate) fn tells_of_absence(&self) -> bool {
        matches!(
            self,
            NetError::Io { .. }
                | NetError::Unreachable { .. }
                | NetError::LocalAddress { .. }
                | NetError::Link { .. }
                | NetError::PeerClosed { .. }
                | NetError::Deadline { .. }
        )
    }

    /// What the peer is told of this failure: where things lie on this machine is not its business.
    pub(crate) fn for_peer(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            NetError::Store(StoreError::Io { action, path, source }) => {
                format!("cannot {action} {:?}: {source}", name(path))
            }
            NetError::Store(StoreError::SourceChanged { path }) => {
                format!("{:?} changed while it was being sent", name(path))
            }
            NetError::Store(StoreError::Exists { path }) => {
                format!("{:?} exists and is not to be overwritten", name(path))
            }
            NetError::Store(StoreError::Refused { path, reason }) => {
                format!("{:?} is refused: {reason}", name(path))
            }
            NetError::Store(StoreError::Busy { path }) => {
                format!("another receiver is using {:?}", name(path))
            }
            // What kind of failure it is the code says.
            NetError::Auth { reason } | NetError::Pem { reason, .. } => reason.clone(),
            error => error.to_string(),
        }
    }

    /// What this failure is called on the wire, whichever side it happened on.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            NetError::Auth { .. } => ErrorCode::Auth,
            NetError::Integrity { .. } => ErrorCode::Integrity,
            NetError::Proto(error) => error.code(),
            NetError::Session(error) => error.code(),
            NetError::Store(error) => match error {
                StoreError::Refused { .. } | StoreError::Exists { .. } | StoreError::Busy { .. } => {
                    ErrorCode::Refused
                }
                StoreError::Limit { .. } => ErrorCode::Limit,
                StoreError::Cancelled => ErrorCode::Cancelled,
                _ => ErrorCode::Storage,
            },
            NetError::Codec(_) | NetError::Vm(_) => ErrorCode::Integrity,
            NetError::Relay { code, .. } => *code,
            NetError::Cancelled => ErrorCode::Cancelled,
            NetError::Deadline { .. } => ErrorCode::Deadline,
            NetError::Peer { code, .. } => *code,
            NetError::Version { .. } => ErrorCode::Unsupported,
            _ => ErrorCode::Internal,
        }
    }
}

impl From<SessionError> for NetError {
    fn from(error: SessionError) -> NetError {
        match error {
            SessionError::Proto(error) => NetError::Proto(error),
            SessionError::Peer { code, retryable, message } => {
                NetError::Peer { code, retryable, message: plain(&message) }
            }
            error => NetError::Session(error),
        }
    }
}

/// The text of a peer without what could steer a terminal or forge a line of a log.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(kind: io::ErrorKind) -> NetError {
        StoreError::Io { action: "write", path: PathBuf::from("/srv/secret/data"), source: kind.into() }
            .into()
    }

    #[test]
    fn a_peer_does_not_learn_where_things_lie_here() {
        let path = PathBuf::from("/srv/secret/data");
        let errors = [
            storage(io::ErrorKind::StorageFull),
            StoreError::SourceChanged { path: path.clone() }.into(),
            StoreError::Exists { path: path.clone() }.into(),
            StoreError::Refused { path: path.clone(), reason: dwcp_store::Refusal::IsADirectory }.into(),
            StoreError::Busy { path: path.clone() }.into(),
            NetError::Pem { path, reason: "it is empty".to_owned() },
        ];
        for error in errors {
            let (here, told) = (error.to_string(), error.for_peer());
            assert!(here.contains("/srv/secret"), "{here}");
            assert!(!told.contains("secret") && told.len() > 5, "{told}");
        }
    }

    #[test]
    fn only_what_can_go_on_is_resumable() {
        let peer = |code, retryable| NetError::Peer { code, retryable, message: String::new() };
        assert!(storage(io::ErrorKind::StorageFull).resumable());
        assert!(NetError::from(StoreError::NoSpace { needed: 2, free: 1 }).resumable());
        assert!(!NetError::from(StoreError::SourceChanged { path: PathBuf::new() }).resumable());
        assert!(peer(ErrorCode::Storage, true).resumable());
        assert!(!peer(ErrorCode::Storage, false).resumable());
    }
}
