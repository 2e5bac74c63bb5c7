//! `Scan` and `Sender`.

use std::path::PathBuf;
use std::sync::Arc;

use dwcp_net::{Direction, Relocation, SendSession, TransferTally};
use dwcp_proto::Manifest;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::EntryKind;
use dwcp_store::{
    BaseChoice, MemorySource, NamedBuffer, ScanOptions, Source, StoreError, SymlinkPolicy, TreeSource,
    scan_with,
};
use pyo3::prelude::*;

use crate::buffer::Input;
use crate::cancel::Cancel;
use crate::counting::Counted;
use crate::error::Failure;
use crate::native;
use crate::observer;
use crate::owner::Owned;
use crate::report::{Progress, SendReport};
use crate::security::DialSecurity;
use crate::settings::{SendSettings, distance, range, seconds};

/// What is to be sent of a file system, read once.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Scan {
    manifest: Arc<Manifest>,
    source: Arc<TreeSource>,
}

#[pymethods]
impl Scan {
    /// Walk `paths`.
    #[new]
    #[pyo3(signature = (paths, block_bytes, keep_symlinks, index, bases, cancel))]
    fn new(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        block_bytes: u32,
        keep_symlinks: bool,
        index: PathBuf,
        bases: Option<Vec<PathBuf>>,
        cancel: &Cancel,
    ) -> PyResult<Scan> {
        let bases = match bases {
            None => BaseChoice::Auto,
            Some(paths) if paths.is_empty() => BaseChoice::None,
            Some(paths) => BaseChoice::Paths(paths),
        };
        let symlinks = if keep_symlinks { SymlinkPolicy::Keep } else { SymlinkPolicy::Refuse };
        let options = ScanOptions { symlinks, block_bytes, bases, index: Some(index) };
        let cancel = &cancel.0;
        let mut tick = || if cancel.is_cancelled() { Err(StoreError::Cancelled) } else { Ok(()) };
        let work = || scan_with(&paths, &options, &Limits::default(), &mut tick).map_err(Failure::Source);
        let (manifest, source) = native::run_interruptibly(py, || cancel.cancel(), work)?;
        Ok(Scan { manifest: Arc::new(manifest), source: Arc::new(source) })
    }

    /// How many files, directories and links there are.
    #[getter]
    fn entries(&self) -> usize {
        self.manifest.entries().len()
    }

    /// How many of them are files.
    #[getter]
    fn files(&self) -> usize {
        self.manifest.entries().iter().filter(|entry| entry.kind == EntryKind::File).count()
    }

    /// Bytes of all files.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.manifest.total_bytes()
    }

    /// Whether there is a base to offer for any file.
    #[getter]
    fn has_base(&self) -> bool {
        self.manifest.entries().iter().any(|entry| !entry.candidates.is_empty())
    }
}

impl Scan {
    /// What is to be sent.
    pub fn state(&self) -> (Arc<Manifest>, Arc<dyn Source>) {
        (Arc::clone(&self.manifest), Arc::clone(&self.source) as Arc<dyn Source>)
    }
}

/// Named buffers that are to be sent.
pub fn memory_source(
    py: Python<'_>,
    buffers: Vec<(String, Input)>,
    block_bytes: u32,
) -> PyResult<(Arc<Manifest>, Arc<dyn Source>)> {
    let buffers = buffers.into_iter().map(|(name, buffer)| {
        let width = buffer.width();
        NamedBuffer { name, bytes: Arc::new(buffer), width }
    });
    let (manifest, source) = MemorySource::with_widths(buffers.collect(), block_bytes, &Limits::default())
        .map_err(|error| Failure::Source(error).raise(py))?;
    Ok((Arc::new(manifest), Arc::new(source)))
}

/// A session with a receiver.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Sender {
    session: Owned<SendSession>,
    counted: Counted,
}

#[pymethods]
impl Sender {
    /// Connect to `address`.
    #[new]
    #[pyo3(signature = (address, security, settings, cancel, observer))]
    fn new(
        py: Python<'_>,
        address: &str,
        security: &DialSecurity,
        settings: SendSettings,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
    ) -> PyResult<Sender> {
        let options = settings.options(py)?;
        let observer = observer::of(observer);
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let connect =
            || SendSession::connect(address, security, options, &cancel, observer).map_err(Failure::Connect);
        let session = native::run_interruptibly(py, || cancel.cancel(), connect)?;
        Ok(Sender { session: Owned::new(session), counted: Counted::new(Direction::Sent) })
    }

    /// Send named buffers.
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

    /// Send what was scanned.
    fn send_scan(&self, py: Python<'_>, scan: &Scan) -> PyResult<SendReport> {
        let (manifest, source) = scan.state();
        self.send(py, manifest, source)
    }

    /// Where the transfer stands.
    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        let session = self.session.object(py)?;
        Ok(py.detach(|| session.progress()).into())
    }

    /// Have all lanes together send so many bytes a second at most from now on, or as many as there can be.
    #[pyo3(signature = (bytes_per_s))]
    fn set_bandwidth_limit(&self, py: Python<'_>, bytes_per_s: Option<u64>) -> PyResult<()> {
        let session = self.session.object(py)?;
        py.detach(|| session.set_bandwidth_limit(bytes_per_s));
        Ok(())
    }

    /// What carries the lanes, and what was tried before that and why it does not.
    #[getter]
    fn link(&self, py: Python<'_>) -> PyResult<(String, Option<String>)> {
        let (link, passed_over) = self.session.object(py)?.link();
        Ok((link.to_string(), passed_over))
    }

    /// Whether the receiver was taken to be far when the session was opened.
    #[getter]
    fn is_far(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.session.object(py)?.is_far())
    }

    /// Go by another way from now on, with lanes between these numbers, far or near, and a round trip of so many seconds.
    fn relocate(&self, py: Python<'_>, lanes: (u16, u16, u16), far: bool, round_trip_s: f64) -> PyResult<()> {
        let session = self.session.object(py)?;
        let relocation = Relocation {
            lanes: range(lanes),
            distance: distance(Some(far)),
            round_trip: seconds(round_trip_s)?,
        };
        py.detach(|| session.relocate(relocation)).map_err(|error| Failure::Connect(error).raise(py))
    }

    /// Count that a transfer failed, by a code; `is_idle` if it is no failure where nothing had begun.
    #[pyo3(signature = (code, is_idle))]
    fn count_failed(&self, code: &str, is_idle: bool) {
        self.counted.failed(code, is_idle);
    }

    /// Say goodbye; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.session.close(py);
    }
}

impl Sender {
    fn send(&self, py: Python<'_>, manifest: Arc<Manifest>, source: Arc<dyn Source>) -> PyResult<SendReport> {
        let session = self.session.object(py)?;
        // A thread for the call alone would take longer than a short state.
        let send = || native::run_here(py, |stops| Ok(session.send_unless(manifest, source, stops)?));
        Ok(self.counted.transfer(py, &session, send, TransferTally::sent)?.into())
    }
}
