//! `Server`.

use std::sync::Arc;

use dwcp_net::{Direction, NetError, ServeSession, TransferTally};
use dwcp_proto::Manifest;
use dwcp_store::Source;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::counting::Counted;
use crate::error::Failure;
use crate::native;
use crate::owner::{Held, Owned};
use crate::report::{Progress, SendReport};
use crate::send::{Scan, memory_source};
use crate::settings::{distance, seconds};

/// A peer that was let in and asks to be sent something.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Server {
    session: Owned<ServeSession>,
    counted: Counted,
    peer: String,
    cancel: dwcp_net::Cancel,
}

#[pymethods]
impl Server {
    /// The peer's address.
    #[getter]
    fn peer(&self) -> &str {
        &self.peer
    }

    /// What the peer asks for and was not sent yet, or None.
    #[getter]
    fn request<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let session = self.session(py)?;
        let request = py.detach(|| session.request());
        Ok(request.map(|request| PyBytes::new(py, &request)))
    }

    /// Wait for the next request; None when the peer has closed.
    #[pyo3(signature = (timeout_s))]
    fn next_request<'py>(
        &self,
        py: Python<'py>,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let session = self.session(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        let wait = || Ok(session.next_request(timeout)?);
        let request = native::run_interruptibly(py, || session.close(), wait)?;
        Ok(request.map(|request| PyBytes::new(py, &request)))
    }

    /// Answer with named buffers.
    #[pyo3(signature = (buffers, block_bytes))]
    fn send_buffers(
        &self,
        py: Python<'_>,
        buffers: Vec<(String, Input)>,
        block_bytes: u32,
    ) -> PyResult<SendReport> {
        let (manifest, source) = memory_source(py, buffers, block_bytes)?;
        self.send(py, manifest, source)
    }

    /// Answer with what was scanned.
    fn send_scan(&self, py: Python<'_>, scan: &Scan) -> PyResult<SendReport> {
        let (manifest, source) = scan.state();
        self.send(py, manifest, source)
    }

    /// Refuse what the peer asks for; it is told the reason, and the session ends.
    fn refuse(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let session = self.session(py)?;
        py.detach(|| session.refuse(reason));
        Ok(())
    }

    /// Where the transfer stands.
    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        let session = self.session(py)?;
        Ok(py.detach(|| session.progress()).into())
    }

    /// Whether the peer is far, as far as TCP has seen by now.
    #[getter]
    fn is_far(&self, py: Python<'_>) -> PyResult<bool> {
        let session = self.session(py)?;
        Ok(py.detach(|| session.is_far()))
    }

    /// Go by another way from now on, far or near, and a round trip of so many seconds.
    fn relocate(&self, py: Python<'_>, far: bool, round_trip_s: f64) -> PyResult<()> {
        let (session, round_trip) = (self.session(py)?, seconds(round_trip_s)?);
        py.detach(|| session.relocate(distance(Some(far)), round_trip));
        Ok(())
    }

    /// Count that a transfer failed, by a code; `is_idle` if it is no failure where nothing had begun.
    #[pyo3(signature = (code, is_idle))]
    fn count_failed(&self, code: &str, is_idle: bool) {
        self.counted.failed(code, is_idle);
    }

    /// End the session; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.session.close_with(py, ServeSession::close);
    }
}

impl Server {
    /// Take over a session of a listener.
    pub fn new(session: ServeSession, cancel: dwcp_net::Cancel) -> Server {
        let peer = session.peer_addr().to_string();
        Server { session: Owned::new(session), counted: Counted::new(Direction::Sent), peer, cancel }
    }

    fn session(&self, py: Python<'_>) -> PyResult<Held<ServeSession>> {
        let session = self.session.object(py)?;
        if self.cancel.is_cancelled() {
            return Err(Failure::Net(NetError::Cancelled).raise(py));
        }
        Ok(session)
    }

    fn send(&self, py: Python<'_>, manifest: Arc<Manifest>, source: Arc<dyn Source>) -> PyResult<SendReport> {
        let session = self.session(py)?;
        let send =
            || native::run_interruptibly(py, || session.close(), || Ok(session.send(manifest, source)?));
        Ok(self.counted.transfer(py, &session, send, TransferTally::sent)?.into())
    }
}
