//! A system on which memory is not shared.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::super::{Closer, Patience, Transport};
use crate::cancel::Cancel;
use crate::error::NetError;

/// There is none.
pub(crate) enum LocalListener {}

impl LocalListener {
    pub(crate) fn bind(_tied: SocketAddr) -> io::Result<LocalListener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn accept(&self) -> io::Result<LocalStream> {
        match *self {}
    }
}

impl AsFd for LocalListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

/// There is none.
pub(crate) enum LocalStream {}

impl LocalStream {
    pub(crate) fn closer(&self) -> Closer {
        match *self {}
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        match *self {}
    }
}

pub(crate) fn accept_shm(
    stream: LocalStream,
    _tls: Option<&Arc<ServerConfig>>,
    _patience: Patience,
) -> Result<Box<dyn Transport>, NetError> {
    match stream {}
}

pub(crate) fn open_shm(
    addresses: &[SocketAddr],
    _tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    _patience: Patience,
    _cancel: &Cancel,
) -> Result<Box<dyn Transport>, NetError> {
    let addr = format!("{addresses:?} through shared memory");
    Err(NetError::Unreachable { addr, source: io::ErrorKind::Unsupported.into() })
}
