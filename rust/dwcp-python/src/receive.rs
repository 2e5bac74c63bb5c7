//! `Listener` and `Receiver`.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dwcp_net::{
    Cidr, Listener as NetListener, NetError, Observer, ReceiveOptions, ReceiveSession, ServeV1, Unobserved,
    V1Gate,
};
use dwcp_proto::Limits;
use dwcp_store::{MemorySink, Sink, SymlinkPolicy, TreeSink, TreeSinkOptions, staged_transfers as staged};
use pyo3::prelude::*;

use crate::buffer::Output;
use crate::cancel::Cancel;
use crate::error::Failure;
use crate::native;
use crate::observer::Callback;
use crate::owner::Owner;
use crate::report::{Progress, ReceiveReport};
use crate::security::ListenSecurity;
use crate::settings::{ReceiveSettings, seconds};
use crate::target::{LentBuffers, ReceivedBuffer};

/// A socket that senders connect to.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Listener {
    listener: Mutex<Option<Arc<NetListener>>>,
    cancel: dwcp_net::Cancel,
    address: SocketAddr,
    owner: Owner,
}

#[pymethods]
impl Listener {
    /// Listen on `address`. A v1 peer's connection is given to `v1` as a descriptor, which it owns, and an address.
    #[new]
    #[pyo3(signature = (address, security, settings, cancel, observer, v1))]
    fn new(
        py: Python<'_>,
        address: &str,
        security: &ListenSecurity,
        settings: ReceiveSettings,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
        v1: Option<Py<PyAny>>,
    ) -> PyResult<Listener> {
        let observer: Arc<dyn Observer> = match observer {
            Some(callable) => Arc::new(Callback(callable)),
            None => Arc::new(Unobserved),
        };
        let networks =
            parse_networks(&settings.v1_networks).map_err(|error| Failure::Connect(error).raise(py))?;
        let v1 = v1.map(|callable| V1Gate { allowed: networks, serve: hand_over(callable) });
        let options = options(settings)?;
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let bind =
            || NetListener::bind(address, security, options, &cancel, observer, v1).map_err(Failure::Connect);
        let listener = native::run(py, bind)?;
        let address = listener.local_addr();
        let listener = Mutex::new(Some(Arc::new(listener)));
        Ok(Listener { listener, cancel, address, owner: Owner::new() })
    }

    /// Where it listens: host and port.
    #[getter]
    fn address(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }

    /// Wait for a sender; None when `timeout_s` passes first.
    #[pyo3(signature = (timeout_s))]
    fn accept(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Option<Receiver>> {
        self.owner.check(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let listener = listener.ok_or_else(|| Failure::Closed.raise(py))?;
        let accept = || match listener.accept(timeout) {
            Err(NetError::Deadline { .. }) => Ok(None),
            outcome => Ok(Some(outcome?)),
        };
        let session = native::run_interruptibly(py, || self.cancel.cancel(), accept)?;
        Ok(session.map(|session| {
            let peer = session.peer_addr().to_string();
            let session = Mutex::new(Some(Arc::new(session)));
            Receiver { session, peer, owner: self.owner }
        }))
    }

    /// Stop listening; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        part(py, self.owner, listener);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let listener = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        part_from_drop(self.owner, listener);
    }
}

/// A sender that was let in.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Receiver {
    session: Mutex<Option<Arc<ReceiveSession>>>,
    peer: String,
    owner: Owner,
}

#[pymethods]
impl Receiver {
    /// The sender's address.
    #[getter]
    fn peer(&self) -> &str {
        &self.peer
    }

    /// Take the next transfer into new buffers; None when the sender has closed.
    #[pyo3(signature = (max_total_bytes, timeout_s))]
    #[allow(clippy::type_complexity)] // Named in the stub, which is where it is read.
    fn receive_buffers(
        &self,
        py: Python<'_>,
        max_total_bytes: u64,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<(Vec<(String, ReceivedBuffer)>, ReceiveReport)>> {
        let sink = Arc::new(MemorySink::new(max_total_bytes));
        let Some(report) = self.receive(py, Arc::clone(&sink) as Arc<dyn Sink>, timeout_s)? else {
            return Ok(None);
        };
        let buffers = native::run(py, || Ok(sink.take_buffers().map_err(NetError::from)?))?;
        let buffers = buffers
            .into_iter()
            .filter_map(|(name, buffer)| Some((name, ReceivedBuffer::new(buffer.into_vec()?))));
        Ok(Some((buffers.collect(), report)))
    }

    /// Take the next transfer into the caller's buffers; None when the sender has closed.
    #[pyo3(signature = (buffers, timeout_s))]
    fn receive_into(
        &self,
        py: Python<'_>,
        buffers: HashMap<String, Output>,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<ReceiveReport>> {
        let provider = Box::new(LentBuffers::new(buffers));
        self.receive(py, Arc::new(MemorySink::with_provider(u64::MAX, provider)), timeout_s)
    }

    /// Take the next transfer into a directory; None when the sender has closed.
    #[pyo3(signature = (into, overwrite, keep_symlinks, sync, timeout_s))]
    fn receive_tree(
        &self,
        py: Python<'_>,
        into: PathBuf,
        overwrite: bool,
        keep_symlinks: bool,
        sync: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<ReceiveReport>> {
        let symlinks = if keep_symlinks { SymlinkPolicy::Keep } else { SymlinkPolicy::Refuse };
        let options = TreeSinkOptions { overwrite, symlinks, sync, ..TreeSinkOptions::default() };
        self.receive(py, Arc::new(TreeSink::new(into, options)), timeout_s)
    }

    /// Where the transfer stands.
    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        let session = self.session(py)?;
        Ok(py.detach(|| session.progress()).into())
    }

    /// End the session; a second time does nothing. What is staged stays.
    fn close(&self, py: Python<'_>) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = session.as_ref().filter(|_| self.owner.is_here()) {
            // A receive that is under way on another thread holds it too, and is to end.
            py.detach(|| session.close());
        }
        part(py, self.owner, session);
    }
}

impl Receiver {
    fn session(&self, py: Python<'_>) -> PyResult<Arc<ReceiveSession>> {
        self.owner.check(py)?;
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        session.ok_or_else(|| Failure::Closed.raise(py))
    }

    fn receive(
        &self,
        py: Python<'_>,
        sink: Arc<dyn Sink>,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<ReceiveReport>> {
        let session = self.session(py)?;
        let timeout: Option<Duration> = timeout_s.map(seconds).transpose()?;
        let report =
            native::run_interruptibly(py, || session.close(), || Ok(session.receive(sink, timeout)?))?;
        Ok(report.map(ReceiveReport::from))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        part_from_drop(self.owner, session);
    }
}

/// What unfinished transfers a directory holds: their ids and the bytes staged.
#[pyfunction]
pub fn staged_transfers(py: Python<'_>, into: PathBuf) -> PyResult<Vec<(String, u64)>> {
    let found = native::run(py, || Ok(staged(&into).map_err(NetError::from)?))?;
    Ok(found.into_iter().map(|transfer| (transfer.transfer_id.to_string(), transfer.bytes)).collect())
}

/// Let go of a native object whose threads may be waiting for the interpreter.
fn part<T: Send>(py: Python<'_>, owner: Owner, object: Option<Arc<T>>)
where
    Arc<T>: Send,
{
    if owner.is_here() {
        py.detach(|| drop(object));
    } else {
        // The threads to join are the parent's.
        std::mem::forget(object);
    }
}

fn part_from_drop<T: Send + Sync>(owner: Owner, object: Option<Arc<T>>) {
    if object.is_some() {
        Python::try_attach(|py| part(py, owner, object));
    }
}

fn hand_over(callable: Py<PyAny>) -> ServeV1 {
    Box::new(move |stream: TcpStream, peer| {
        Python::try_attach(|py| {
            let (host, port) = (peer.ip().to_string(), peer.port());
            // The callable owns the descriptor from the moment it is called.
            if let Err(error) = callable.call1(py, (stream.into_raw_fd(), host, port)) {
                error.write_unraisable(py, None);
            }
        });
    })
}

fn parse_networks(networks: &[String]) -> Result<Vec<Cidr>, NetError> {
    networks.iter().map(|network| network.parse()).collect()
}

fn options(settings: ReceiveSettings) -> PyResult<ReceiveOptions> {
    let limits = Limits {
        max_lanes: settings.max_lanes,
        max_block: settings.max_block_bytes,
        max_entries: settings.max_entries,
        max_object: settings.max_object_bytes,
    };
    Ok(ReceiveOptions {
        limits,
        idle_timeout: seconds(settings.idle_timeout_s)?,
        handshake_timeout: seconds(settings.handshake_timeout_s)?,
        ..ReceiveOptions::default()
    })
}
