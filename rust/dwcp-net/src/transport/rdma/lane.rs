//! A connection over RDMA, as a transport.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_rdma::{Geometry, Interest, RdmaError, Shutter, Stream};

use super::super::connect::{resolve, try_in_turn};
use super::super::{Closer, Ending, LinkKind, Patience, SOCKET_SLICE, Transport, WakeReceiver};
use super::RdmaDevice;
use crate::cancel::Cancel;
use crate::error::NetError;
use crate::security::Fingerprint;

/// A connection over RDMA whose calls block for at most a slice at a time.
pub(super) struct RdmaTransport {
    stream: Stream,
}

impl Ending for Shutter {
    fn close(&self) {
        self.shut();
    }
}

/// The RDMA devices that this process can use.
///
/// # Errors
/// Why there is none, in words.
pub fn rdma_devices() -> Result<Vec<RdmaDevice>, String> {
    let found = dwcp_rdma::devices().map_err(|error| error.to_string())?;
    Ok(found.into_iter().map(told).collect())
}

fn told(device: dwcp_rdma::Device) -> RdmaDevice {
    let limits = device.limits;
    RdmaDevice {
        name: device.name,
        max_qp: limits.max_qp,
        max_qp_wr: limits.max_qp_wr,
        max_sge: limits.max_sge,
        max_cqe: limits.max_cqe,
        max_mr: limits.max_mr,
        max_mr_bytes: limits.max_mr_size,
    }
}

/// What ends a connection that is still being made, and the same for the cancellation to call.
pub(super) fn shutter() -> Result<(Shutter, Closer), NetError> {
    let shutter = Shutter::new().map_err(|error| failed(error, ""))?;
    Ok((shutter.clone(), Closer(Arc::new(shutter))))
}

/// What an error of RDMA is to a lane; `peer` says whom it was about.
pub(super) fn failed(error: RdmaError, peer: &str) -> NetError {
    match error {
        RdmaError::Disconnected | RdmaError::Shut => {
            NetError::PeerClosed { phase: "exchanging data", hint: None }
        }
        RdmaError::Deadline { what, after } => NetError::Deadline { what, after },
        // Whoever dials hears of them as of what TCP says in their place.
        RdmaError::Refused { .. } | RdmaError::Greeting { .. } => {
            NetError::Unreachable { addr: peer.to_owned(), source: io::Error::other(error.to_string()) }
        }
        error => NetError::Link { link: LinkKind::Rdma, reason: error.to_string() },
    }
}

/// Connects to `address` (`HOST:PORT`), trying every address that the name has, within `limit` altogether, from the local
/// address `from`, if one is given.
pub(crate) fn open_rdma(
    address: &str,
    from: Option<IpAddr>,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Box<dyn Transport>, NetError> {
    let end = Instant::now() + limit;
    let mut addresses = resolve(address, end, limit, cancel)?;
    addresses.retain(|target| from.is_none_or(|from| from.is_ipv4() == target.is_ipv4()));
    let made = try_in_turn(&addresses, end, cancel, |target, end| {
        let (shutter, closer) = shutter()?;
        let _registration = cancel.register(closer);
        let left = end.saturating_duration_since(Instant::now());
        Stream::connect(target, from, Geometry::default(), left, shutter).map_err(|error| match error {
            RdmaError::Deadline { what, .. } => NetError::Deadline { what, after: limit },
            error => failed(error, address),
        })
    })?;
    let stream = made.ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address of that kind");
        NetError::Unreachable { addr: address.to_owned(), source }
    })?;
    Ok(Box::new(RdmaTransport::new(stream)))
}

impl RdmaTransport {
    /// Takes over a stream.
    pub(super) fn new(stream: Stream) -> RdmaTransport {
        RdmaTransport { stream }
    }

    /// What an error of a connection that was made is to a lane: it is lost, and another may do.
    fn failed(&self, error: RdmaError) -> NetError {
        match error {
            RdmaError::Disconnected | RdmaError::Shut | RdmaError::Deadline { .. } => failed(error, ""),
            error => NetError::Io {
                action: "exchange data with",
                addr: self.peer_addr().to_string(),
                source: io::Error::new(io::ErrorKind::ConnectionReset, error.to_string()),
            },
        }
    }

    /// Waits for a slice, unless `patience` is over.
    fn wait(&mut self, interest: Interest, patience: Patience, last: Instant) -> Result<(), NetError> {
        patience.check(last, "waiting for the peer")?;
        self.stream.wait(interest, SOCKET_SLICE, None).map(drop).map_err(|error| self.failed(error))
    }
}

impl Transport for RdmaTransport {
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        let mut last = Instant::now();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => self.wait(Interest::Writing, patience, last)?,
                Ok(count) => {
                    IoSlice::advance_slices(&mut rest, count);
                    last = Instant::now();
                    if let Patience::Until(..) = patience {
                        patience.check(last, "sending")?;
                    }
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError> {
        let mut done = 0;
        let mut last = Instant::now();
        while done < least {
            match self.stream.read(&mut buffer[done..]) {
                Ok(None) => self.wait(Interest::Reading, patience, last)?,
                Ok(Some(0)) => return Err(NetError::PeerClosed { phase: "exchanging data", hint: None }),
                Ok(Some(count)) => {
                    done += count;
                    last = Instant::now();
                    if let Patience::Until(..) = patience {
                        patience.check(last, "waiting for the peer")?;
                    }
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(done)
    }

    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        let waited = self.stream.wait(Interest::Reading, timeout, wake.map(WakeReceiver::as_fd));
        let (readable, rung) = waited.map_err(|error| self.failed(error))?;
        if let (true, Some(wake)) = (rung, wake) {
            wake.clear();
        }
        Ok(readable)
    }

    fn finish(&mut self, linger: Duration) {
        self.stream.finish(linger);
    }

    fn closer(&self) -> Closer {
        Closer(Arc::new(self.stream.shutter()))
    }

    fn peer_fingerprint(&self) -> Option<Fingerprint> {
        None
    }

    fn kind(&self) -> LinkKind {
        LinkKind::Rdma
    }

    fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.stream.peer_addr()
    }
}
