//! `Server`.

use std::sync::Arc;

use dwcp_net::{NetError, ServeSession};
use dwcp_proto::Manifest;
use dwcp_store::Source;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::error::Failure;
use crate::native;
use crate::owner::{Held, Owned};
use crate::report::{Progress, SendReport};
use crate::send::{Scan, memory_source};
use crate::settings::seconds;

/// A peer that was let in and asks to be sent something.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Server {
    session: Owned<ServeSession>,
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

    /// What the session's first lane is made of.
    #[getter]
    fn carrier(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.session.object(py)?.carrier().to_string())
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

    /// End the session; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.session.close_with(py, ServeSession::close);
    }
}

impl Server {
    /// Take over a session of a listener.
    pub fn new(session: ServeSession, cancel: dwcp_net::Cancel) -> Server {
        let peer = session.peer_addr().to_string();
        Server { session: Owned::new(session), peer, cancel }
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
        let send = || Ok(session.send(manifest, source)?);
        Ok(native::run_interruptibly(py, || session.close(), send)?.into())
    }
}
