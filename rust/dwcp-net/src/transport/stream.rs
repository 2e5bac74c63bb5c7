//! What TLS needs of what is under it, and how a socket is used that blocks for a slice at a time.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Failure, Patience, sort};
use crate::error::NetError;

/// A connected socket that blocks for at most a slice at a time.
pub trait Stream: Send {
    /// Reads what is there, at least a byte; 0 at the end of the stream.
    fn recv_some(&self, buffer: &mut [u8], patience: Patience) -> Result<usize, NetError>;

    /// Writes all of `bytes`.
    fn send_all(&self, bytes: &[u8], patience: Patience) -> Result<(), NetError>;

    /// Tells the peer that nothing follows.
    fn shut_writing(&self) -> io::Result<()>;

    /// The address of the peer.
    fn peer(&self) -> SocketAddr;

    /// Half-closes the socket and reads what still comes, so that the peer sees an end and not a reset.
    fn half_close(&self, linger: Duration) {
        if self.shut_writing().is_err() {
            return;
        }
        let patience = Patience::for_time(linger);
        let mut rest = [0; 4096];
        while matches!(self.recv_some(&mut rest, patience), Ok(count) if count > 0)
            && patience.check(Instant::now(), "closing").is_ok()
        {}
    }
}

/// Reads what is there, at least a byte; 0 at the end of the stream.
pub(super) fn read_some(
    mut socket: impl Read,
    peer: SocketAddr,
    buffer: &mut [u8],
    patience: Patience,
) -> Result<usize, NetError> {
    let start = Instant::now();
    loop {
        match socket.read(buffer) {
            Ok(count) => return Ok(count),
            Err(error) => again("read from", peer, error, patience, start)?,
        }
    }
}

/// Whether a failed call is to be tried again.
pub(super) fn again(
    action: &'static str,
    peer: SocketAddr,
    error: io::Error,
    patience: Patience,
    last: Instant,
) -> Result<(), NetError> {
    match sort(error) {
        Failure::Retry => patience.check(last, "waiting for the peer"),
        Failure::Closed => Err(NetError::PeerClosed { phase: "exchanging data", hint: None }),
        Failure::Other(source) => Err(NetError::Io { action, addr: peer.to_string(), source }),
    }
}
