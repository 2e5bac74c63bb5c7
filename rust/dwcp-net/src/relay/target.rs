//! The side that is dialled: it connects to the Unix sockets of its channels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dwcp_proto::LaneId;
use dwcp_proto::frame::{BasePart, Frame, Relay, Secret, SessionId};
use dwcp_proto::limits::WRITTEN_RUN;

use super::base::Base;
use super::report::RelayReport;
use super::shared::{Shared, Side};
use super::source::stopped;
use super::worker::{refused, unexpected, work};
use super::{RelayOptions, watch};
use crate::cancel::{Cancel, lock};
use crate::error::NetError;
use crate::lane::Lane;
use crate::listen::Registry;
use crate::receive::Names;
use crate::report::Observer;
use crate::security::Fingerprint;
use crate::transport::{WakeReceiver, wake_pair};

/// A session of a relay that a listener knows.
pub(crate) struct Relayed {
    /// The certificate of the peer that opened it; only the same may join.
    pub(crate) owner: Option<Fingerprint>,
    peer: SocketAddr,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
}

impl Relayed {
    /// A session for a peer that has shown who it is.
    pub(crate) fn new(
        names: Names,
        options: RelayOptions,
        base: Option<Arc<Base>>,
        cancel: Cancel,
        observer: Arc<dyn Observer>,
        registry: Arc<Registry>,
    ) -> Relayed {
        let Names { id, key, owner, peer, .. } = names;
        let halts = (cancel, Cancel::new());
        let shared = Shared::new(Side::Target, (id, key), options, halts, observer, base);
        Relayed { owner, peer, shared: Arc::new(shared), registry }
    }

    pub(crate) fn id(&self) -> SessionId {
        self.shared.id
    }

    pub(crate) fn key(&self) -> Secret {
        self.shared.key
    }

    pub(crate) fn is_over(&self) -> bool {
        lock(&self.shared.state).is_over()
    }

    /// Whether it is over and has no lane left.
    pub(crate) fn has_ended(&self) -> bool {
        let state = lock(&self.shared.state);
        state.is_over() && state.lanes.is_empty()
    }

    /// Ends it: lanes tell the peer.
    pub(crate) fn end(&self) {
        self.shared.fail(NetError::Cancelled);
    }

    /// Takes a lane into the session that the peer calls `number`, if there is room.
    pub(crate) fn admit(
        &self,
        number: u16,
        lane: &Lane,
        most: u16,
    ) -> Result<Option<(LaneId, WakeReceiver)>, NetError> {
        let (waker, wake) = wake_pair()?;
        let mut state = lock(&self.shared.state);
        // A lane that the peer makes again may be lost to it and not yet here.
        let stale: Vec<LaneId> =
            state.lanes.iter().filter(|(_, lane)| lane.number == number).map(|(id, _)| *id).collect();
        for id in stale {
            if let Some(lane) = state.lanes.get(&id) {
                lane.closer.close();
            }
            state.detach(id, true);
        }
        if state.lanes.len() >= usize::from(most) {
            return Ok(None);
        }
        Ok(Some((state.attach(number, waker, lane.closer()), wake)))
    }

    /// Takes a lane away that the peer was never told of.
    pub(crate) fn withdraw(&self, id: LaneId) {
        lock(&self.shared.state).detach(id, true);
    }

    /// The lane has left its handshake.
    pub(crate) fn enter(&self, lane: &mut Lane) {
        lane.enter(&self.shared.id, self.shared.options.idle_timeout, &self.shared.halt);
    }

    /// Agrees with the peer on what both hold, and tells it of the base, on the first lane.
    pub(crate) fn agree(&self, lane: &mut Lane) -> Result<(), NetError> {
        let cache_bytes = match lane.recv()?.0 {
            Frame::Relay(Relay { ready: false, cache_bytes, .. }) => cache_bytes,
            other => return Err(unexpected(&other)),
        };
        let limit = self.shared.options.max_cache_bytes;
        if cache_bytes > limit {
            return Err(refused("the bytes of pages that are held", cache_bytes, limit));
        }
        let blocks = self.shared.base.as_ref().map_or(&[][..], |base| &base.blocks);
        for block in blocks {
            for (index, digests) in block.digests.chunks(WRITTEN_RUN).enumerate() {
                let (name, first_page) = (block.name.clone(), (index * WRITTEN_RUN) as u32);
                lane.send(&Frame::Base(BasePart { first_page, name, digests: digests.to_vec() }))?;
            }
        }
        let base_pages = self.shared.base.as_ref().map_or(0, |base| base.pages());
        // It is set once, before there are streams.
        let _ = self.shared.cache_bytes.set(cache_bytes);
        lane.send(&Frame::Relay(Relay { ready: true, cache_bytes, base_pages }))?;
        watch::start(&self.shared)
    }

    /// Works on a lane until it ends.
    pub(crate) fn run(&self, lane: Lane, id: LaneId, wake: WakeReceiver) {
        work(&self.shared, lane, id, wake);
    }
}

/// The side of a relay that was dialled, and to which the machine comes.
pub struct TargetRelay {
    relayed: Arc<Relayed>,
}

impl TargetRelay {
    pub(crate) fn new(relayed: Arc<Relayed>) -> TargetRelay {
        TargetRelay { relayed }
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.relayed.peer
    }

    /// Waits for the end of the relay.
    ///
    /// # Errors
    /// [`NetError::Deadline`] when it has not ended within `timeout`, and whatever has ended it otherwise.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<(), NetError> {
        self.relayed.shared.wait(timeout)
    }

    /// Where things stand.
    #[must_use]
    pub fn report(&self) -> RelayReport {
        self.relayed.shared.report(true)
    }

    /// The same without the time line, which costs the same however long it takes.
    #[must_use]
    pub fn present(&self) -> RelayReport {
        self.relayed.shared.report(false)
    }

    /// Ends the relay at once: the sockets of all streams are shut, and the peer is told.
    pub fn stop(&self, reason: &str) {
        self.relayed.shared.fail(stopped(reason));
    }

    /// Ends the relay, if it has not ended, and every thread. Dropping it does the same.
    pub fn close(&self) {
        self.relayed.registry.remove(&self.relayed.id());
        self.relayed.shared.close();
    }
}

impl Drop for TargetRelay {
    fn drop(&mut self) {
        self.close();
    }
}
