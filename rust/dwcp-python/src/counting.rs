//! What this process has done so far: counted where it is done, and read by whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use dwcp_net::{Direction, FlowCounts, LivePath, Running, TransferTally, Watched};
use pyo3::prelude::*;

use crate::observer::{self, Events};
use crate::report::Share;

/// The transfers of this process.
static TRANSFERS: LazyLock<TransferTally> = LazyLock::new(TransferTally::default);

/// The code of a failure whose end nobody told, since something came between.
const INTERRUPTED: &str = "interrupted";

/// What counts the transfers of one session.
pub struct Counted {
    direction: Direction,
    /// One that failed and whose code is not known yet: what Python makes of a failure is told by [`Counted::failed`].
    failing: Mutex<Option<Running>>,
}

impl Counted {
    /// Counts what goes in one direction.
    pub fn new(direction: Direction) -> Counted {
        Counted { direction, failing: Mutex::new(None) }
    }

    /// Make a transfer, and have what comes of it counted by `end`.
    pub fn transfer<T, S: Watched + 'static>(
        &self,
        py: Python<'_>,
        session: &Arc<S>,
        make: impl FnOnce() -> PyResult<T>,
        end: impl FnOnce(&TransferTally, Running, &T),
    ) -> PyResult<T> {
        let watched: Weak<S> = Arc::downgrade(session);
        let Some(running) = TRANSFERS.begin(self.direction, watched) else { return make() };
        match make() {
            Ok(outcome) => {
                end(&TRANSFERS, running, &outcome);
                Ok(outcome)
            }
            Err(error) => {
                TRANSFERS.stands(&running, py.detach(|| session.progress()));
                self.note(Some(running));
                Err(error)
            }
        }
    }

    /// Count the transfer that failed last, by a code; `is_idle` if it is no failure where nothing had begun.
    pub fn failed(&self, code: &str, is_idle: bool) {
        let running = self.failing.lock().unwrap_or_else(PoisonError::into_inner).take();
        TRANSFERS.failed(running.as_ref(), self.direction, code, is_idle);
    }

    fn note(&self, running: Option<Running>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *failing, running) {
            TRANSFERS.failed(Some(&before), self.direction, INTERRUPTED, false);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.note(None);
    }
}

/// The transfers of one direction.
#[derive(IntoPyObject)]
struct Flow {
    active: u64,
    completed: u64,
    failed: u64,
    withdrawn: u64,
    state_bytes: u64,
    wire_bytes: u64,
    unfinished_wire_bytes: u64,
    held_bytes: u64,
    same_bytes: u64,
    blocks_resent: u64,
    nacks: u64,
    seconds: f64,
    cpu_seconds: f64,
    tcp_sent_bytes: u64,
    tcp_retransmitted_bytes: u64,
    tcp_retransmitted_segments: u64,
    shares: Vec<Share>,
}

impl From<FlowCounts> for Flow {
    fn from(flow: FlowCounts) -> Flow {
        Flow {
            active: flow.active,
            completed: flow.completed,
            failed: flow.failed,
            withdrawn: flow.withdrawn,
            state_bytes: flow.state_bytes,
            wire_bytes: flow.wire_bytes,
            unfinished_wire_bytes: flow.unfinished_wire_bytes,
            held_bytes: flow.held_bytes,
            same_bytes: flow.same_bytes,
            blocks_resent: flow.blocks_resent,
            nacks: flow.nacks,
            seconds: flow.seconds,
            cpu_seconds: flow.cpu_seconds,
            tcp_sent_bytes: flow.tcp_sent_bytes,
            tcp_retransmitted_bytes: flow.tcp_retransmitted_bytes,
            tcp_retransmitted_segments: flow.tcp_retransmitted_segments,
            shares: flow.shares.iter().map(Share::from).collect(),
        }
    }
}

/// What this process has done, at one moment.
#[derive(IntoPyObject)]
pub struct Totals {
    events: Events,
    sent: Flow,
    received: Flow,
    errors: BTreeMap<String, u64>,
    lanes: u64,
    /// The round trip in milliseconds and the bytes per second that arrive, of each transfer that sends.
    paths: Vec<(f64, u64)>,
}

/// Give what this process has done.
#[pyfunction]
pub fn totals(py: Python<'_>) -> Totals {
    // Sessions are asked where they stand, and one that was closed meanwhile ends here.
    let counts = py.detach(|| TRANSFERS.counts());
    let path = |path: &LivePath| (path.rtt.as_secs_f64() * 1e3, path.delivery_bytes_per_s);
    Totals {
        events: observer::events(),
        sent: counts.sent.into(),
        received: counts.received.into(),
        errors: counts.errors,
        lanes: counts.lanes,
        paths: counts.paths.iter().map(path).collect(),
    }
}

/// Count transfers from now on, or no more.
#[pyfunction]
pub fn set_counting(on: bool) {
    TRANSFERS.set_enabled(on);
}
