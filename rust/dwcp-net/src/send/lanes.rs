//! The lanes of a sender that dials.

use std::sync::{Arc, Mutex};

use super::shared::Shared;
use super::worker;
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::dial::{Dialled, Plan};
use crate::lanes::{Dialling, Flow, LaneChange, TICK};

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
        worker::run(&self.shared, &self.plan, number, first);
    }

    fn wanted(&self) -> u16 {
        lock(&self.shared.state).wanted
    }

    fn want(&self, lanes: u16) {
        lock(&self.shared.state).want(lanes);
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
