//! Connections over RDMA, taken beside those of TCP, at the same address and port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{ACCEPT_SLICE, Shared, Stranger, take};
use crate::transport::RdmaListener;

/// How long a listener whose device was taken away waits before it looks for another.
const REST: Duration = Duration::from_secs(1);

/// Takes connections until the listener is dropped or cancelled.
pub(super) fn accept_all(shared: &Arc<Shared>, listener: RdmaListener, address: SocketAddr) {
    let mut listener = Some(listener);
    let mut rests_until = Instant::now();
    while !shared.is_over() {
        let spec = Timespec { tv_sec: 0, tv_nsec: i64::from(ACCEPT_SLICE.subsec_nanos()) };
        let Some(present) = &listener else {
            std::thread::sleep(ACCEPT_SLICE);
            if Instant::now() >= rests_until {
                rests_until = Instant::now() + REST;
                listener = RdmaListener::bind(address).ok();
            }
            continue;
        };
        if !matches!(poll(&mut [PollFd::new(present, PollFlags::IN)], Some(&spec)), Ok(1..)) {
            continue;
        }
        match present.take() {
            Ok(Some(incoming)) => take(shared, Stranger::Rdma(incoming)),
            Ok(None) => {}
            Err(error) => {
                log::warn!("rdma connections cannot be taken at {address}: {error}");
                listener = None;
            }
        }
    }
}
