//! Connections over RDMA, taken beside those of TCP, at the same address and port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_proto::frame::Security;
use dwcp_rdma::{Geometry, Incoming, Listener, Shutter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::admit::{refuse, serve_lane};
use super::waiting::{Place, WaitingRoom};
use super::{ACCEPT_SLICE, Shared, turn_away};
use crate::error::NetError;
use crate::transport::{Patience, RdmaTransport, rdma_failed, rdma_shutter};

/// How long a listener whose device was taken away waits before it looks for another.
const REST: Duration = Duration::from_secs(1);

/// Listens for RDMA at the address at which TCP does.
pub(super) fn bind(address: SocketAddr) -> Result<Listener, NetError> {
    Listener::bind(address).map_err(|error| rdma_failed(error, &address.to_string()))
}

/// Takes connections until the listener is dropped or cancelled.
pub(super) fn accept_all(shared: &Arc<Shared>, listener: Listener, address: SocketAddr) {
    let mut listener = Some(listener);
    let mut rests_until = Instant::now();
    while !shared.is_over() {
        let spec = Timespec { tv_sec: 0, tv_nsec: i64::from(ACCEPT_SLICE.subsec_nanos()) };
        let Some(present) = &listener else {
            std::thread::sleep(ACCEPT_SLICE);
            if Instant::now() >= rests_until {
                rests_until = Instant::now() + REST;
                listener = bind(address).ok();
            }
            continue;
        };
        if !matches!(poll(&mut [PollFd::new(present, PollFlags::IN)], Some(&spec)), Ok(1..)) {
            continue;
        }
        match present.take() {
            Ok(Some(incoming)) => take(shared, incoming),
            Ok(None) => {}
            Err(error) => {
                log::warn!("rdma connections cannot be taken at {address}: {error}");
                listener = None;
            }
        }
    }
}

/// Gives a connection a thread of its own, if there is room for it.
fn take(shared: &Arc<Shared>, incoming: Incoming) {
    let Some(peer) = incoming.peer_addr() else { return };
    let (shutter, closer) = match rdma_shutter() {
        Ok(made) => made,
        Err(error) => return refuse(shared, peer, &error),
    };
    let Some(place) = WaitingRoom::enter(&shared.waiting, Some(closer), peer) else {
        return turn_away(shared, peer);
    };
    let started = std::thread::Builder::new().name("dwcp-receive".to_owned()).spawn({
        let shared = Arc::clone(shared);
        move || {
            if let Err(error) = serve(&shared, incoming, shutter, peer, place) {
                refuse(&shared, peer, &error);
            }
        }
    });
    if let Err(error) = started {
        log::warn!("cannot start a thread for {peer}: {error}");
    }
}

fn serve(
    shared: &Arc<Shared>,
    incoming: Incoming,
    shutter: Shutter,
    peer: SocketAddr,
    place: Place,
) -> Result<(), NetError> {
    let limit = shared.options.handshake_timeout;
    let patience = Patience::for_time(limit);
    let made = incoming.accept(Geometry::default(), limit, shutter);
    let transport = RdmaTransport::new(made.map_err(|error| rdma_failed(error, &peer.to_string()))?);
    serve_lane(shared, Box::new(transport), Security::Plaintext, patience, place)
}
