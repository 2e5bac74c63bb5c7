//! `Listener` and `Receiver`.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwcp_net::{
    Arrival, Cidr, Direction, Listener as NetListener, NetError, ReceiveOptions, ReceiveSession, Refusal,
    SendOptions, ServeV1, V1Gate,
};
use dwcp_proto::Limits;
use dwcp_store::{MemorySink, Sink, SymlinkPolicy, TreeSink, TreeSinkOptions, staged_transfers as staged};
use pyo3::prelude::*;

use crate::buffer::Output;
use crate::cancel::Cancel;
use crate::counting::Counted;
use crate::error::Failure;
use crate::native;
use crate::observer;
use crate::owner::Owned;
use crate::report::{Progress, ReceiveReport};
use crate::security::ListenSecurity;
use crate::serve::Server;
use crate::settings::{ReceiveSettings, SendSettings, seconds, shared};
use crate::target::{LentBuffers, ReceivedBuffer};

/// A socket that peers connect to: senders, and those that ask to be sent something.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Listener {
    listener: Owned<NetListener>,
    cancel: dwcp_net::Cancel,
    address: SocketAddr,
}

#[pymethods]
impl Listener {
    /// Listen on `address`. A v1 peer's connection is given to `v1` as a descriptor, which it owns, and an address.
    /// `refusal` is asked for each v3 session that is to be opened, and says why it is not, or None.
    #[new]
    #[pyo3(signature = (address, security, settings, serve, cancel, observer, v1, refusal))]
    #[allow(clippy::too_many_arguments)] // Each is one of Python's.
    fn new(
        py: Python<'_>,
        address: &str,
        security: &ListenSecurity,
        settings: ReceiveSettings,
        serve: Option<SendSettings>,
        cancel: &Cancel,
        observer: Option<Py<PyAny>>,
        v1: Option<Py<PyAny>>,
        refusal: Py<PyAny>,
    ) -> PyResult<Listener> {
        let observer = observer::of(observer);
        let networks =
            parse_networks(&settings.v1_networks).map_err(|error| Failure::Connect(error).raise(py))?;
        let v1 = v1.map(|callable| V1Gate { allowed: networks, serve: hand_over(callable) });
        let serve = serve.map(|settings| settings.options(py)).transpose()?;
        let options = ReceiveOptions { refusal: Some(refusal_of(refusal)), ..options(settings, serve)? };
        let (security, cancel) = (security.0.clone(), cancel.0.clone());
        let bind =
            || NetListener::bind(address, security, options, &cancel, observer, v1).map_err(Failure::Connect);
        let listener = native::run(py, bind)?;
        let address = listener.local_addr();
        Ok(Listener { listener: Owned::new(listener), cancel, address })
    }

    /// Where it listens: host and port.
    #[getter]
    fn address(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }

    /// Wait for a peer; None when `timeout_s` passes first.
    #[pyo3(signature = (timeout_s))]
    fn accept(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Option<Accepted>> {
        let listener = self.listener.object(py)?;
        let timeout = timeout_s.map(seconds).transpose()?;
        let accept = || match listener.accept_any(timeout) {
            Err(NetError::Deadline { .. }) => Ok(None),
            outcome => Ok(Some(outcome?)),
        };
        let session = native::run_interruptibly(py, || self.cancel.cancel(), accept)?;
        Ok(session.and_then(|session| match session {
            Arrival::Sender(session) => {
                let peer = session.peer_addr().to_string();
                let counted = Counted::new(Direction::Received);
                Some(Accepted::Sender(Receiver { session: Owned::new(session), counted, peer }))
            }
            Arrival::Fetcher(session) => Some(Accepted::Fetcher(Server::new(session, self.cancel.clone()))),
            // Such a listener lets none in.
            Arrival::Relay(_) => None,
        }))
    }

    /// Have all peers together be sent so many bytes a second at most from now on, or as many as there can be.
    #[pyo3(signature = (bytes_per_s))]
    fn set_bandwidth_limit(&self, py: Python<'_>, bytes_per_s: Option<u64>) -> PyResult<()> {
        let listener = self.listener.object(py)?;
        py.detach(|| listener.set_bandwidth_limit(bytes_per_s));
        Ok(())
    }

    /// Stop listening; a second time does nothing.
    fn close(&self, py: Python<'_>) {
        self.listener.close_with(py, NetListener::close);
    }
}

/// A peer that was let in.
#[derive(IntoPyObject)]
pub enum Accepted {
    /// It sends.
    Sender(Receiver),
    /// It asks for something to be sent.
    Fetcher(Server),
}

/// A sender that was let in.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Receiver {
    session: Owned<ReceiveSession>,
    counted: Counted,
    peer: String,
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
        Ok(Some((ReceivedBuffer::take(py, &sink)?, report)))
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
        self.receive(py, Arc::new(tree_sink(into, overwrite, keep_symlinks, sync)), timeout_s)
    }

    /// Where the transfer stands.
    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        let session = self.session.object(py)?;
        Ok(py.detach(|| session.progress()).into())
    }

    /// End the session and tell the sender why; a call that waits raises that it was cancelled.
    fn dismiss(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let session = self.session.object(py)?;
        py.detach(|| session.dismiss(reason));
        Ok(())
    }

    /// Count that a transfer failed, by a code; `is_idle` if it is no failure where nothing had begun.
    #[pyo3(signature = (code, is_idle))]
    fn count_failed(&self, code: &str, is_idle: bool) {
        self.counted.failed(code, is_idle);
    }

    /// End the session; a second time does nothing. What is staged stays.
    fn close(&self, py: Python<'_>) {
        self.session.close_with(py, ReceiveSession::close);
    }
}

impl Receiver {
    fn receive(
        &self,
        py: Python<'_>,
        sink: Arc<dyn Sink>,
        timeout_s: Option<f64>,
    ) -> PyResult<Option<ReceiveReport>> {
        let session = self.session.object(py)?;
        let timeout: Option<Duration> = timeout_s.map(seconds).transpose()?;
        let receive = || native::run_here(py, |stops| Ok(session.receive_unless(sink, timeout, stops)?));
        let report = self.counted.transfer(py, &session, receive, |tally, running, report| match report {
            Some(report) => tally.received(running, report),
            None => tally.withdrawn(&running),
        })?;
        Ok(report.map(ReceiveReport::from))
    }
}

/// What unfinished transfers a directory holds: their ids and the bytes staged.
#[pyfunction]
pub fn staged_transfers(py: Python<'_>, into: PathBuf) -> PyResult<Vec<(String, u64)>> {
    let found = native::run(py, || Ok(staged(&into).map_err(NetError::from)?))?;
    Ok(found.into_iter().map(|transfer| (transfer.transfer_id.to_string(), transfer.bytes)).collect())
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

/// What asks a callable; one that fails refuses nobody.
fn refusal_of(callable: Py<PyAny>) -> Refusal {
    Refusal::new(move || {
        Python::try_attach(|py| {
            let why = callable.call0(py).and_then(|why| why.extract::<Option<String>>(py));
            why.unwrap_or_else(|error| {
                error.write_unraisable(py, None);
                None
            })
        })
        .flatten()
    })
}

fn parse_networks(networks: &[String]) -> Result<Vec<Cidr>, NetError> {
    networks.iter().map(|network| network.parse()).collect()
}

/// Where files are received.
pub fn tree_sink(into: PathBuf, overwrite: bool, keep_symlinks: bool, sync: bool) -> TreeSink {
    let symlinks = if keep_symlinks { SymlinkPolicy::Keep } else { SymlinkPolicy::Refuse };
    TreeSink::new(into, TreeSinkOptions { overwrite, symlinks, sync, ..TreeSinkOptions::default() })
}

fn options(settings: ReceiveSettings, serve: Option<SendOptions>) -> PyResult<ReceiveOptions> {
    let limits = Limits {
        max_lanes: settings.max_lanes,
        max_block: settings.max_block_bytes,
        max_entries: settings.max_entries,
        max_object: settings.max_object_bytes,
        max_dictionary: settings.max_dictionary_bytes,
    };
    Ok(ReceiveOptions {
        limits,
        dictionaries: shared(&settings.dictionaries),
        senders: settings.senders,
        serve,
        max_sessions: settings.max_sessions,
        idle_timeout: seconds(settings.idle_timeout_s)?,
        handshake_timeout: seconds(settings.handshake_timeout_s)?,
        shares_memory: settings.shares_memory,
        rdma: settings.rdma,
        ..ReceiveOptions::default()
    })
}
