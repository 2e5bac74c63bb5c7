//! `Fetcher`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use dwcp_net::{Direction, FetchSession, TransferTally};
use dwcp_store::{MemorySink, Sink};
use pyo3::prelude::*;

use crate::buffer::Output;
use crate::cancel::Cancel;
use crate::counting::Counted;
use crate::error::Failure;
use crate::native;
use crate::observer;
use crate::owner::Owned;
use crate::receive::tree_sink;
use crate::report::{Progress, ReceiveReport};
use crate::security::DialSecurity;
use crate::settings::{FetchSettings, seconds};
use crate::target::{LentBuffers, ReceivedBuffer};

/// A session with a listener that sends what it is asked for.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Fetcher {
    session: Owned<FetchSession>,
    counted: Counted,
    cancel: dwcp_net::Cancel,
}

#[pymethods]
impl Fetcher {
    /// Connect to `address`.
    #[new]
    #[pyo3(signature = (address, security, settings, cancel, observer))]
    fn new(
        py: Python<'_>,
        address: &str,
        security: &DialSecurity,
        settings: FetchSettings,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Fetcher> {
        let options = settings.options()?;
        let observer = observer::of(observer);
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let connect =
            || FetchSession::connect(address, security, options, &cancel, observer).map_err(Failure::Connect);
        let session = native::run_interruptibly(py, || cancel.cancel(), connect)?;
        Ok(Fetcher { session: Owned::new(session), counted: Counted::new(Direction::Received), cancel })
    }

    /// What carries the lanes, and what was tried before that and why it does not.
    #[getter]
    fn link(&self, py: Python<'_>) -> PyResult<(String, Option<String>)> {
        let (link, passed_over) = self.session.object(py)?.link();
        Ok((link.to_string(), passed_over))
    }

    /// Ask, and take the answer into new buffers.
    #[pyo3(signature = (request, max_total_bytes, timeout_s))]
    fn fetch_buffers(
        &self,
        py: Python<'_>,
        request: Vec<u8>,
        max_total_bytes: u64,
        timeout_s: Option<f64>,
    ) -> PyResult<(Vec<(String, ReceivedBuffer)>, ReceiveReport)> {
        let sink = Arc::new(MemorySink::new(max_total_bytes));
        let report = self.fetch(py, &request, Arc::clone(&sink) as Arc<dyn Sink>, timeout_s)?;
        Ok((ReceivedBuffer::take(py, &sink)?, report))
    }

    /// Ask, and take the answer into the caller's buffers.
    #[pyo3(signature = (request, buffers, timeout_s))]
    fn fetch_into(
        &self,
        py: Python<'_>,
        request: Vec<u8>,
        buffers: HashMap<String, Output>,
        timeout_s: Option<f64>,
    ) -> PyResult<ReceiveReport> {
        let provider = Box::new(LentBuffers::new(buffers));
        self.fetch(py, &request, Arc::new(MemorySink::with_provider(u64::MAX, provider)), timeout_s)
    }

    /// Ask, and take the answer into a directory.
    #[pyo3(signature = (request, into, overwrite, keep_symlinks, sync, timeout_s))]
    #[allow(clippy::too_many_arguments)] // Each is one of Python's.
    fn fetch_tree(
        &self,
        py: Python<'_>,
        request: Vec<u8>,
        into: PathBuf,
        overwrite: bool,
        keep_symlinks: bool,
        sync: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<ReceiveReport> {
        self.fetch(py, &request, Arc::new(tree_sink(into, overwrite, keep_symlinks, sync)), timeout_s)
    }

    /// Where the transfer stands.
    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        let session = self.session.object(py)?;
        Ok(py.detach(|| session.progress()).into())
    }

    /// Count that a transfer failed, by a code; `is_idle` if it is no failure where nothing had begun.
    #[pyo3(signature = (code, is_idle))]
    fn count_failed(&self, code: &str, is_idle: bool) {
        self.counted.failed(code, is_idle);
    }

    /// Say goodbye; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.session.close_with(py, FetchSession::close);
    }
}

impl Fetcher {
    fn fetch(
        &self,
        py: Python<'_>,
        request: &[u8],
        sink: Arc<dyn Sink>,
        timeout_s: Option<f64>,
    ) -> PyResult<ReceiveReport> {
        let session = self.session.object(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        let fetch = || {
            let fetch = || Ok(session.fetch(request, &sink, timeout)?);
            native::run_interruptibly(py, || self.cancel.cancel(), fetch)
        };
        Ok(self.counted.transfer(py, &session, fetch, TransferTally::received)?.into())
    }
}
