//! Events of native threads: counted for the whole process, and told to a Python callable as dictionaries.

use std::sync::{Arc, LazyLock};

use dwcp_net::{Event, EventCounts, Observer, Tally};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What has happened on all sessions and listeners of this process.
static TALLY: LazyLock<Tally> = LazyLock::new(Tally::default);

/// A Python callable that is given each event, if there is one.
struct Callback(Option<Py<PyAny>>);

/// The observer for a callable, or for nobody.
pub fn of(callable: Option<Py<PyAny>>) -> Arc<dyn Observer> {
    Arc::new(Callback(callable))
}

/// How often what has happened in this process.
#[derive(IntoPyObject)]
pub struct Events {
    lanes_opened: u64,
    lanes_lost: u64,
    reconnects: u64,
    integrity_failures: u64,
    peers_refused: u64,
}

/// The counts of events at one moment.
pub fn events() -> Events {
    let EventCounts { lanes_opened, lanes_lost, reconnects, integrity_failures, peers_refused } =
        TALLY.counts();
    Events { lanes_opened, lanes_lost, reconnects, integrity_failures, peers_refused }
}

impl Observer for Callback {
    fn event(&self, event: Event) {
        TALLY.count(&event);
        let Some(callable) = &self.0 else { return };
        // At the end of the process there is nobody left to tell.
        Python::try_attach(|py| {
            let told = describe(py, event).and_then(|event| callable.call1(py, (event,)));
            if let Err(error) = told {
                error.write_unraisable(py, None);
            }
        });
    }
}

fn describe(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyDict>> {
    let told = PyDict::new(py);
    let set = |name: &str, value: &str| told.set_item(name, value);
    match event {
        Event::LaneUp { lane, peer } => {
            set("type", "lane-up")?;
            told.set_item("lane", lane)?;
            set("peer", &peer.to_string())?;
        }
        Event::LaneDown { lane, reason } => {
            set("type", "lane-down")?;
            told.set_item("lane", lane)?;
            told.set_item("reason", reason)?;
        }
        Event::Reconnecting { attempt, after, reason } => {
            set("type", "reconnecting")?;
            told.set_item("attempt", attempt)?;
            told.set_item("after_s", after.as_secs_f64())?;
            set("reason", &reason)?;
        }
        Event::LinkChanged { link, reason } => {
            set("type", "link-changed")?;
            set("link", &link.to_string())?;
            set("reason", &reason)?;
        }
        Event::SessionOpened { peer } => {
            set("type", "session-opened")?;
            set("peer", &peer.to_string())?;
        }
        Event::Accepted { transfer, total_bytes, staged_bytes } => {
            set("type", "accepted")?;
            set("transfer_id", &transfer.to_string())?;
            told.set_item("total_bytes", total_bytes)?;
            told.set_item("staged_bytes", staged_bytes)?;
        }
        Event::Nack { entry, offset } => {
            set("type", "base-differs")?;
            told.set_item("entry", entry)?;
            told.set_item("offset", offset)?;
        }
        Event::IntegrityFailure { reason } => {
            set("type", "integrity-failure")?;
            set("reason", &reason)?;
        }
        Event::Committed { transfer } => {
            set("type", "committed")?;
            set("transfer_id", &transfer.to_string())?;
        }
        Event::Refused { peer, reason } => {
            set("type", "refused")?;
            set("peer", &peer.to_string())?;
            set("reason", &reason)?;
        }
        Event::V1Refused { peer } => {
            set("type", "v1-refused")?;
            set("peer", &peer.to_string())?;
        }
        Event::V1HandedOver { peer } => {
            set("type", "v1-accepted")?;
            set("peer", &peer.to_string())?;
        }
        _ => set("type", "other")?,
    }
    Ok(told)
}
