//! Connections over RDMA that peers ask for.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use dwcp_rdma::{Geometry, Incoming, Listener, RdmaError, Shutter};

use super::super::{Closer, Transport};
use super::lane::{RdmaTransport, failed, shutter};
use crate::error::NetError;

/// An address at which peers may connect over RDMA. It is readable when there is something to take.
pub(crate) struct RdmaListener {
    listener: Listener,
    address: SocketAddr,
}

impl RdmaListener {
    /// Listens for RDMA at the address at which TCP does.
    pub(crate) fn bind(address: SocketAddr) -> Result<RdmaListener, NetError> {
        let bound = Listener::bind(address);
        let listener = bound.map_err(|error| failed(error, &address.to_string()))?;
        Ok(RdmaListener { listener, address })
    }

    /// Takes the next connection, if one was asked for.
    pub(crate) fn take(&self) -> Result<Option<RdmaIncoming>, NetError> {
        let failed = |error: RdmaError| failed(error, &self.address.to_string());
        let Some(incoming) = self.listener.take().map_err(failed)? else { return Ok(None) };
        // Who has no address has left.
        let Some(peer) = incoming.peer_addr() else { return Ok(None) };
        match shutter() {
            Ok((shutter, closer)) => Ok(Some(RdmaIncoming { incoming, shutter, closer, peer })),
            Err(error) => {
                // Dropped, it is refused; the listener goes on.
                log::warn!("{peer} is turned away: {error}");
                Ok(None)
            }
        }
    }
}

impl AsFd for RdmaListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A connection that was asked for; dropping it refuses it.
pub(crate) struct RdmaIncoming {
    incoming: Incoming,
    shutter: Shutter,
    closer: Closer,
    peer: SocketAddr,
}

impl RdmaIncoming {
    /// A handle that ends it, from any thread.
    pub(crate) fn closer(&self) -> Closer {
        self.closer.clone()
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Makes the connection, within `limit`.
    pub(crate) fn accept(self, limit: Duration) -> Result<Box<dyn Transport>, NetError> {
        let made = self.incoming.accept(Geometry::default(), limit, self.shutter);
        let stream = made.map_err(|error| failed(error, &self.peer.to_string()))?;
        Ok(Box::new(RdmaTransport::new(stream)))
    }
}
