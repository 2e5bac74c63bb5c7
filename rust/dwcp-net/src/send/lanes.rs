//! The lanes of a sender that dials.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::making;
use super::shared::Shared;
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::congestion::{ignore_losses, ignores_losses};
use crate::dial::{Dialled, Plan};
use crate::lanes::{Dialling, Flow, LaneChange, Losses, TICK};
use crate::transport::Closer;

/// What the threads of lanes need.
pub(super) struct Sending {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    /// The lane that has opened the session, until its thread takes it.
    first: Mutex<Option<Dialled>>,
}

impl Sending {
    pub(super) fn new(shared: Arc<Shared>, plan: Arc<Plan>, first: Dialled) -> Sending {
        Sending { shared, plan, first: Mutex::new(Some(first)) }
    }
}

impl Dialling for Sending {
    const NAME: &'static str = "send";
    const RECEIVES: bool = false;

    fn run(&self, number: u16) {
        let first = if number == 0 { lock(&self.first).take() } else { None };
        making::run(&self.shared, &self.plan, number, first);
    }

    fn wanted(&self) -> u16 {
        lock(&self.shared.state).wanted
    }

    fn want(&self, lanes: u16) {
        lock(&self.shared.state).want(lanes);
    }

    fn useful(&self) -> u16 {
        lock(&self.shared.state).useful()
    }

    fn losses(&self, lanes: &[(u32, Closer)]) -> Losses {
        let asked =
            self.shared.asked_to_ignore_losses.load(Ordering::Relaxed) || !self.shared.may_ignore_losses();
        if !asked || !lock(&self.shared.state).telemetry.losses_are_random() {
            Losses::Fair
        } else if lanes.iter().any(|(_, lane)| ignores_losses(lane)) {
            Losses::Ignored
        } else {
            // A route, for one, may have another congestion control for all that goes over it.
            Losses::Minded
        }
    }

    fn hurry(&self, lanes: &[(u32, Closer)], on: bool) {
        if self.shared.may_ignore_losses() && self.losses(lanes) == Losses::Fair {
            lanes.iter().for_each(|(_, lane)| ignore_losses(lane, on));
        }
    }

    fn note(&self, changes: &[LaneChange]) {
        if let Some(job) = &mut lock(&self.shared.state).job {
            job.lane_changes = changes.to_vec();
        }
    }

    fn await_flow(&self) -> Option<Flow> {
        let mut state = lock(&self.shared.state);
        loop {
            if state.closing || self.shared.cancel.is_cancelled() {
                return None;
            }
            if let Some(flow) = state.flow() {
                return Some(flow);
            }
            let patience = if state.busy() { TICK } else { CANCEL_SLICE * 4 };
            state = wait(&self.shared.changed, state, patience);
        }
    }

    fn stop(&self) -> &Cancel {
        &self.shared.cancel
    }

    fn halt(&self) {
        self.shared.halt.cancel();
    }
}
