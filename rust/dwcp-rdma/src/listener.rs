//! Takes connections.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::cm::{Id, Kind};
use crate::device::{device_names, limits_of};
use crate::error::RdmaError;
use crate::geometry::Geometry;
use crate::queue::Queue;
use crate::stream::Stream;
use crate::waiting::Shutter;

/// Connections that the system may hold until they are taken.
const BACKLOG: i32 = 256;

/// An address at which peers may connect. It is readable when there is something to take.
pub struct Listener(Id);

impl Listener {
    /// Listens at an address of this machine, which may stand for all that it has.
    ///
    /// # Errors
    /// [`RdmaError`]: there is no device or library, or the address cannot be had.
    pub fn bind(address: SocketAddr) -> Result<Listener, RdmaError> {
        if device_names().is_empty() {
            return Err(RdmaError::NoDevice);
        }
        let mut id = Id::new()?;
        id.bind(address)?;
        id.listen(BACKLOG)?;
        Ok(Listener(id))
    }

    /// Takes the next connection, if one was asked for.
    ///
    /// # Errors
    /// [`RdmaError`]; more may be taken later.
    pub fn take(&self) -> Result<Option<Incoming>, RdmaError> {
        while let Some(event) = self.0.channel().next()? {
            match event.kind {
                Kind::ConnectRequest => {
                    let id = Id::adopt(event.id)?;
                    let theirs = Geometry::read(&event.greeting);
                    return Ok(Some(Incoming { id: Some(id), theirs: Some(theirs) }));
                }
                Kind::DeviceRemoval => return Err(RdmaError::DeviceRemoved),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.channel().fd()
    }
}

/// A connection that was asked for; dropping it refuses it.
pub struct Incoming {
    /// None once it was accepted.
    id: Option<Id>,
    theirs: Option<Result<Geometry, RdmaError>>,
}

impl Incoming {
    /// Who asks, as far as that is known.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.id.as_ref().and_then(|id| id.addresses().1)
    }

    /// Makes the connection, within `limit`.
    ///
    /// # Errors
    /// [`RdmaError`]; the peer is refused then.
    pub fn accept(mut self, ours: Geometry, limit: Duration, shutter: Shutter) -> Result<Stream, RdmaError> {
        let end = Instant::now() + limit;
        let theirs = self.theirs.take().ok_or(RdmaError::Disconnected)??;
        let (verbs, ours) = match &self.id {
            Some(id) => (id.verbs(), ours),
            None => return Err(RdmaError::Disconnected),
        };
        let ours = ours.fit(&limits_of(verbs)?)?;
        let id = self.id.take().ok_or(RdmaError::Disconnected)?;
        let mut queue = Queue::new(id, ours)?;
        queue.id_mut().accept(&ours.greeting())?;
        queue.id().expect(Kind::Established, (end, limit), &shutter, "accepting an rdma connection")?;
        Ok(Stream::new(queue, theirs, shutter))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(id) = &mut self.id {
            id.reject();
        }
    }
}
