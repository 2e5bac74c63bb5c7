//! `probe_link`.

use dwcp_net::{ProbeOptions, probe};
use pyo3::prelude::*;

use crate::cancel::Cancel;
use crate::error::Failure;
use crate::native;
use crate::report::{LinkCounts, Path};
use crate::security::DialSecurity;
use crate::settings::{addresses, links, seconds};

/// What a probe has seen.
#[derive(IntoPyObject)]
pub struct ProbeReport {
    peer: String,
    link: String,
    passed_over: Option<String>,
    lanes: u16,
    handshake_ms: f64,
    relayed: bool,
    calm: Option<Path>,
    burst: Option<Path>,
    counts: Vec<(f64, LinkCounts)>,
}

/// How to probe.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct ProbeSettings {
    lanes: u16,
    burst_s: f64,
    burst_bytes: u64,
    connect_timeout_s: f64,
    local_addresses: Vec<String>,
    links: Vec<String>,
}

/// Look at the way to the receiver at `address`.
#[pyfunction]
#[pyo3(signature = (address, security, settings, cancel))]
pub fn probe_link(
    py: Python<'_>,
    address: &str,
    security: &DialSecurity,
    settings: ProbeSettings,
    cancel: &Cancel,
) -> PyResult<ProbeReport> {
    let options = ProbeOptions {
        lanes: settings.lanes,
        burst_for: seconds(settings.burst_s)?,
        burst_bytes: settings.burst_bytes,
        connect_timeout: seconds(settings.connect_timeout_s)?,
        local_addresses: addresses(&settings.local_addresses)?,
        links: links(&settings.links)?,
    };
    let (security, cancel) = (security.0.clone(), cancel.0.clone());
    let look = || probe(address, &security, &options, &cancel).map_err(Failure::Connect);
    let seen = native::run_interruptibly(py, || cancel.cancel(), look)?;
    Ok(ProbeReport {
        peer: seen.peer.to_string(),
        link: seen.link.to_string(),
        passed_over: seen.passed_over,
        lanes: seen.lanes,
        handshake_ms: seen.handshake.as_secs_f64() * 1e3,
        relayed: seen.is_relayed,
        calm: seen.calm.map(Path::from),
        burst: seen.burst.map(Path::from),
        counts: seen.counts.into_iter().map(|(at_s, link)| (at_s, link.into())).collect(),
    })
}
