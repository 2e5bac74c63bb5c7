//! Rings a thread that waits on a socket.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::error::NetError;

/// Rings the thread that holds the [`WakeReceiver`]. Clones ring the same thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<PipeWriter>);

impl Waker {
    /// Ends the wait of the other thread, or its next one.
    pub fn wake(&self) {
        // A full pipe means that it was rung already, a closed one that nobody waits.
        let _ = (&*self.0).write(&[1]);
    }
}

/// What a thread waits on together with its socket.
#[derive(Debug)]
pub struct WakeReceiver(PipeReader);

impl WakeReceiver {
    /// Forgets the rings so far.
    pub(crate) fn clear(&self) {
        let mut rings = [0; 64];
        while matches!((&self.0).read(&mut rings), Ok(count) if count == rings.len()) {}
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A bell and its handle.
pub(crate) fn wake_pair() -> Result<(Waker, WakeReceiver), NetError> {
    let make = || -> io::Result<_> {
        let (reader, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        Ok((Waker(Arc::new(writer)), WakeReceiver(reader)))
    };
    make().map_err(|source| NetError::Io { action: "make", addr: "a pipe".to_owned(), source })
}
