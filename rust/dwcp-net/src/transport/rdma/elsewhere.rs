//! A system without the verbs of RDMA.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::super::{Closer, LinkKind, Transport};
use super::RdmaDevice;
use crate::cancel::Cancel;
use crate::error::NetError;

const REASON: &str = "this system has none";

fn missing() -> NetError {
    NetError::Link { link: LinkKind::Rdma, reason: REASON.to_owned() }
}

/// The RDMA devices that this process can use.
///
/// # Errors
/// Why there is none, in words.
pub fn rdma_devices() -> Result<Vec<RdmaDevice>, String> {
    Err(format!("rdma cannot be used: {REASON}"))
}

/// There is none.
pub(crate) enum RdmaListener {}

impl RdmaListener {
    pub(crate) fn bind(_address: SocketAddr) -> Result<RdmaListener, NetError> {
        Err(missing())
    }

    pub(crate) fn take(&self) -> Result<Option<RdmaIncoming>, NetError> {
        match *self {}
    }
}

impl AsFd for RdmaListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

/// There is none.
pub(crate) enum RdmaIncoming {}

impl RdmaIncoming {
    pub(crate) fn closer(&self) -> Closer {
        match *self {}
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        match *self {}
    }

    pub(crate) fn accept(self, _limit: Duration) -> Result<Box<dyn Transport>, NetError> {
        match self {}
    }
}

pub(crate) fn open_rdma(
    _address: &str,
    _from: Option<IpAddr>,
    _limit: Duration,
    _cancel: &Cancel,
) -> Result<Box<dyn Transport>, NetError> {
    Err(missing())
}
