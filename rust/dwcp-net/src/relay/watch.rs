//! Looks at a relay from time to time: what TCP tells, the time line, and whether the peer is gone for good.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dwcp_proto::LaneId;

use super::shared::Shared;
use crate::cancel::lock;
use crate::congestion::{FIRM, ignore_losses};
use crate::error::NetError;
use crate::transport::{Closer, PathInfo, try_congestion};

/// How often lanes are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often the time line goes on, and how long it may become: four hours.
const TICK: Duration = Duration::from_millis(250);
pub(super) const MOST_TICKS: usize = 57_600;

/// Starts the thread that watches.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), NetError> {
    let owner = Arc::clone(shared);
    shared.spawn("dwcp-watch", move || {
        watch(&owner);
        Ok(())
    })
}

fn watch(shared: &Shared) {
    let mut seen = HashMap::new();
    let mut ticked = Instant::now();
    let can_ignore = shared.options.congestion.may_ignore_losses() && try_congestion(FIRM);
    loop {
        if shared.cancel.sleep(INTERVAL).is_err() {
            shared.fail(NetError::Cancelled);
        }
        let closers: Vec<(LaneId, Closer)> =
            lock(&shared.state).lanes.iter().map(|(id, lane)| (*id, lane.closer.clone())).collect();
        // The system is asked while nobody waits for the state.
        let paths: Vec<(LaneId, PathInfo)> =
            closers.iter().filter_map(|(id, closer)| closer.path().map(|path| (*id, path))).collect();
        let mut state = lock(&shared.state);
        let known = paths.iter().filter_map(|(id, path)| seen.get(id).map(|before| (before, path)));
        state.losses.see(known, Instant::now());
        for (id, path) in &paths {
            if let (Some(lane), Some(rtt)) = (state.lanes.get_mut(id), path.rtt) {
                lane.rate = Some(path.cwnd_bytes as f64 / rtt.as_secs_f64().max(1e-6));
            }
        }
        let rtt = paths.iter().filter_map(|(_, path)| path.rtt).min();
        state.round_trip = rtt.or(state.round_trip);
        let timeout = paths.iter().filter_map(|(_, path)| path.retransmit_after).max();
        state.timeout = timeout.or(state.timeout);
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            state.tick(shared.started);
        }
        if !state.outbox.is_empty() {
            // A record may be late by now that others wait for.
            state.wake_one();
        }
        let random = can_ignore && state.losses.are_random();
        let failure = state.expire(shared.options.reconnect_for);
        let over = state.is_over();
        drop(state);
        if let Some(error) = failure {
            shared.fail(error);
        }
        if over {
            shared.changed.notify_all();
            return;
        }
        if random {
            closers.iter().for_each(|(_, closer)| ignore_losses(closer, true));
            shared.ignores_losses.store(true, Ordering::Relaxed);
        }
        seen = paths.into_iter().collect();
    }
}
