//! Waits on descriptors, with an end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::RdmaError;

/// Ends a wait of a connection, and the connection, from any thread. Clones end the same one.
#[derive(Clone, Debug)]
pub struct Shutter(Arc<Bell>);

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    descriptor: OwnedFd,
}

impl Shutter {
    /// A handle for a connection that is still to be made.
    ///
    /// # Errors
    /// [`RdmaError::Call`] when the system has no descriptor for it.
    pub fn new() -> Result<Shutter, RdmaError> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| RdmaError::errno("eventfd", errno))?;
        Ok(Shutter(Arc::new(Bell { rung: AtomicBool::new(false), descriptor })))
    }

    /// Ends it; whatever blocks on it returns at once.
    pub fn shut(&self) {
        self.0.rung.store(true, Ordering::SeqCst);
        // The counter can be full only if nobody has looked for 2^64 rings.
        let _ = rustix::io::write(&self.0.descriptor, &1_u64.to_ne_bytes());
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.0.rung.load(Ordering::SeqCst)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.descriptor.as_fd()
    }
}

/// Waits until one of `descriptors` can be read, for at most `timeout`; tells which can.
pub(crate) fn wait_for<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    timeout: Duration,
) -> Result<[bool; N], RdmaError> {
    let end = Instant::now() + timeout;
    let there: Vec<usize> = (0..N).filter(|index| descriptors[*index].is_some()).collect();
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // A Duration of hours is far below what fits.
        let spec = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut polled, Some(&spec)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(RdmaError::errno("poll", errno)),
            Ok(_) => break,
        }
    }
    let mut ready = [false; N];
    for (index, fd) in there.into_iter().zip(&polled) {
        ready[index] = !fd.revents().is_empty();
    }
    Ok(ready)
}
