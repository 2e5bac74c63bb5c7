//! `SourceRelay` and `TargetRelay`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dwcp_net::relay::{self as net, RelayOptions};
use dwcp_net::{Arrival, Listener, NetError, ReceiveOptions};
use pyo3::prelude::*;

use crate::cancel::Cancel;
use crate::error::Failure;
use crate::native;
use crate::observer;
use crate::owner::{Held, Owned};
use crate::report::Selection;
use crate::security::{DialSecurity, ListenSecurity};
use crate::select::SelectorModel;
use crate::settings::{codec_choice, range, seconds};

/// How a relay works.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct RelaySettings {
    /// Name and Unix socket of each channel.
    channels: Vec<(String, PathBuf)>,
    /// Connections to use.
    lanes: u16,
    /// Fewest, first and most connections to a peer that is far, if their number is to be found.
    adaptive: Option<(u16, u16, u16)>,
    /// Codec by name, or `auto`.
    codec: String,
    /// What predicts for `auto`.
    codec_model: Option<Py<SelectorModel>>,
    /// Bytes of pages that each side holds.
    page_cache_bytes: u64,
    /// The most of those that a target agrees to.
    max_page_cache_bytes: u64,
    /// Directory with an earlier copy.
    base: Option<PathBuf>,
    /// The most of a target's base that a source looks at.
    max_base_bytes: Option<u64>,
    /// Directory for a copy.
    keep: Option<PathBuf>,
    /// Most bytes per second.
    bandwidth_bytes_per_s: Option<u64>,
    /// Congestion control by name, `auto` or `system`.
    congestion: String,
    /// Silence that a lane may last, in seconds.
    idle_timeout_s: f64,
    /// Time for a handshake, in seconds.
    connect_timeout_s: f64,
    /// Time to look for a lost peer, in seconds.
    reconnect_s: f64,
}

impl RelaySettings {
    fn options(self, py: Python<'_>) -> PyResult<RelayOptions> {
        Ok(RelayOptions {
            channels: self.channels,
            lanes: self.lanes,
            adaptive: self.adaptive.map(range),
            codec: codec_choice(py, &self.codec, self.codec_model)?,
            cache_bytes: self.page_cache_bytes,
            max_cache_bytes: self.max_page_cache_bytes,
            base: self.base,
            max_base_bytes: self.max_base_bytes.unwrap_or(u64::MAX),
            keep: self.keep,
            idle_timeout: seconds(self.idle_timeout_s)?,
            connect_timeout: seconds(self.connect_timeout_s)?,
            reconnect_for: seconds(self.reconnect_s)?,
            bandwidth_limit: self.bandwidth_bytes_per_s,
            congestion: self.congestion.parse().map_err(|error| Failure::Connect(error).raise(py))?,
        })
    }
}

/// Guest pages by how they were told.
#[derive(IntoPyObject)]
struct Pages {
    zero: u64,
    same: u64,
    copy: u64,
    delta: u64,
    base: u64,
    full: u64,
}

/// What there was at a moment.
#[derive(IntoPyObject)]
struct Tick {
    at_s: f64,
    stream_bytes: u64,
    wire_bytes: u64,
    lanes: u32,
    rtt_ms: Option<f64>,
    unacknowledged_bytes: u64,
}

/// Where a relay stands.
#[derive(IntoPyObject)]
pub struct RelayReport {
    finished: bool,
    error: Option<String>,
    seconds: f64,
    stream_bytes: u64,
    migration_bytes: u64,
    wire_bytes: u64,
    return_bytes: u64,
    unacknowledged_bytes: u64,
    behind_s: f64,
    streams: u32,
    streams_open: u32,
    lanes: u32,
    lanes_lost: u32,
    records_resent: u64,
    rtt_ms: Option<f64>,
    pages: Pages,
    opaque: Option<&'static str>,
    compressed_by_qemu: bool,
    cpu_seconds: f64,
    selection: Option<Selection>,
    timeline: Vec<Tick>,
}

impl From<net::RelayReport> for RelayReport {
    fn from(report: net::RelayReport) -> RelayReport {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let dwcp_vm::PageCounts { zero, same, copy, delta, base, full } = report.pages;
        let tick = |tick: &net::RelayTick| Tick {
            at_s: tick.at.as_secs_f64(),
            stream_bytes: tick.stream_bytes,
            wire_bytes: tick.wire_bytes,
            lanes: tick.lanes,
            rtt_ms: tick.rtt.map(ms),
            unacknowledged_bytes: tick.unacknowledged_bytes,
        };
        RelayReport {
            finished: report.finished,
            error: report.error,
            seconds: report.elapsed.as_secs_f64(),
            stream_bytes: report.stream_bytes,
            migration_bytes: report.migration_bytes,
            wire_bytes: report.wire_bytes,
            return_bytes: report.return_bytes,
            unacknowledged_bytes: report.unacknowledged_bytes,
            behind_s: report.behind.as_secs_f64(),
            streams: report.streams,
            streams_open: report.streams_open,
            lanes: report.lanes,
            lanes_lost: report.lanes_lost,
            records_resent: report.records_resent,
            rtt_ms: report.rtt.map(ms),
            pages: Pages { zero, same, copy, delta, base, full },
            opaque: report.opaque,
            compressed_by_qemu: report.compressed_by_qemu,
            cpu_seconds: report.cpu.as_secs_f64(),
            selection: report.selection.map(Selection::from),
            timeline: report.timeline.iter().map(tick).collect(),
        }
    }
}

/// The side of a relay that dials.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct SourceRelay {
    relay: Owned<net::SourceRelay>,
}

#[pymethods]
impl SourceRelay {
    /// Connect to `address`, and listen at the sockets of the channels.
    #[new]
    #[pyo3(signature = (address, security, settings, cancel, observer))]
    fn new(
        py: Python<'_>,
        address: &str,
        security: &DialSecurity,
        settings: RelaySettings,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<SourceRelay> {
        let options = settings.options(py)?;
        let observer = observer::of(observer);
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let connect = || {
            net::SourceRelay::connect(address, &security, options, &cancel, observer)
                .map_err(Failure::Connect)
        };
        let relay = native::run_interruptibly(py, || cancel.cancel(), connect)?;
        Ok(SourceRelay { relay: Owned::new(relay) })
    }

    /// Open no further streams.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let relay = self.relay.object(py)?;
        py.detach(|| relay.finish());
        Ok(())
    }

    /// Wait for the end; False when `timeout_s` passes first.
    #[pyo3(signature = (timeout_s))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<bool> {
        let relay = self.relay.object(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        native::run_interruptibly(py, || relay.stop("interrupted"), || ended(relay.wait(timeout)))
    }

    /// Where things stand.
    fn report(&self, py: Python<'_>) -> PyResult<RelayReport> {
        let relay = self.relay.object(py)?;
        Ok(py.detach(|| relay.report()).into())
    }

    /// The same without the time line.
    fn present(&self, py: Python<'_>) -> PyResult<RelayReport> {
        let relay = self.relay.object(py)?;
        Ok(py.detach(|| relay.present()).into())
    }

    /// End it at once.
    fn stop(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let relay = self.relay.object(py)?;
        py.detach(|| relay.stop(reason));
        Ok(())
    }

    /// Have all lanes together send so many bytes a second at most from now on, or as many as there can be.
    #[pyo3(signature = (bytes_per_s))]
    fn set_bandwidth_limit(&self, py: Python<'_>, bytes_per_s: Option<u64>) -> PyResult<()> {
        let relay = self.relay.object(py)?;
        py.detach(|| relay.set_bandwidth_limit(bytes_per_s));
        Ok(())
    }

    /// End it and its threads; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.relay.close_with(py, net::SourceRelay::close);
    }
}

/// The end of a relay, or none when the time to wait has passed.
fn ended(waited: Result<(), NetError>) -> Result<bool, Failure> {
    match waited {
        Ok(()) => Ok(true),
        Err(NetError::Deadline { what: "the end of the relay", .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The side of a relay that is dialled.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct TargetRelay {
    listener: Owned<Listener>,
    cancel: dwcp_net::Cancel,
    address: SocketAddr,
    relay: Mutex<Option<Arc<Owned<net::TargetRelay>>>>,
}

#[pymethods]
impl TargetRelay {
    /// Listen at `address`.
    #[new]
    #[pyo3(signature = (address, security, settings, max_lanes, cancel, observer))]
    fn new(
        py: Python<'_>,
        address: &str,
        security: &ListenSecurity,
        settings: RelaySettings,
        max_lanes: u16,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<TargetRelay> {
        let relay = settings.options(py)?;
        let mut options = ReceiveOptions {
            senders: false,
            max_sessions: 1,
            idle_timeout: relay.idle_timeout,
            handshake_timeout: relay.connect_timeout,
            ..ReceiveOptions::default()
        };
        options.limits.max_lanes = max_lanes;
        options.relay = Some(relay);
        let observer = observer::of(observer);
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let bind =
            || Listener::bind(address, security, options, &cancel, observer, None).map_err(Failure::Connect);
        let listener = native::run_interruptibly(py, || cancel.cancel(), bind)?;
        let address = listener.local_addr();
        Ok(TargetRelay { listener: Owned::new(listener), cancel, address, relay: Mutex::default() })
    }

    /// Where it listens: host and port.
    #[getter]
    fn address(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }

    /// Wait for the other side; None when `timeout_s` passes first, else its address.
    #[pyo3(signature = (timeout_s))]
    fn accept(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Option<String>> {
        let listener = self.listener.object(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        let accept = || match listener.accept_any(timeout) {
            Err(NetError::Deadline { .. }) => Ok(None),
            outcome => Ok(Some(outcome?)),
        };
        match native::run_interruptibly(py, || self.cancel.cancel(), accept)? {
            Some(Arrival::Relay(relay)) => {
                let peer = relay.peer_addr().to_string();
                *self.relay.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Arc::new(Owned::new(relay)));
                Ok(Some(peer))
            }
            _ => Ok(None),
        }
    }

    /// Wait for the end; False when `timeout_s` passes first.
    #[pyo3(signature = (timeout_s))]
    fn wait(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<bool> {
        let relay = self.accepted(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        native::run_interruptibly(py, || relay.stop("interrupted"), || ended(relay.wait(timeout)))
    }

    /// Where things stand.
    fn report(&self, py: Python<'_>) -> PyResult<RelayReport> {
        let relay = self.accepted(py)?;
        Ok(py.detach(|| relay.report()).into())
    }

    /// The same without the time line.
    fn present(&self, py: Python<'_>) -> PyResult<RelayReport> {
        let relay = self.accepted(py)?;
        Ok(py.detach(|| relay.present()).into())
    }

    /// End it at once.
    fn stop(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let relay = self.accepted(py)?;
        py.detach(|| relay.stop(reason));
        Ok(())
    }

    /// End it and its threads, and stop listening; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        if let Some(relay) = self.held() {
            relay.close_with(py, net::TargetRelay::close);
        }
        self.listener.close_with(py, Listener::close);
    }
}

impl TargetRelay {
    fn held(&self) -> Option<Arc<Owned<net::TargetRelay>>> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn accepted(&self, py: Python<'_>) -> PyResult<Held<net::TargetRelay>> {
        self.held().ok_or_else(|| Failure::Closed.raise(py))?.object(py)
    }
}
