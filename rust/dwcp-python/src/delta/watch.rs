//! Long work on memory that a signal can end.

use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_codec::patch::{PatchError, Source};
use pyo3::prelude::*;

use crate::error::Failure;
use crate::native;

/// Work on fewer bytes is over before anybody could want to stop it, and a thread for it would take longer to start.
const WATCHED_BYTES: usize = 32 << 20;

/// Runs `work`, which stops when the flag says so, away from the interpreter; on a thread of its own, while this one
/// looks for signals, if it goes over many `bytes`.
pub fn run<T: Send>(
    py: Python<'_>,
    bytes: usize,
    work: impl FnOnce(&AtomicBool) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    if bytes < WATCHED_BYTES {
        return native::run(py, || work(&stop));
    }
    native::run_interruptibly(py, || stop.store(true, Ordering::Relaxed), || work(&stop))
}

/// The end of work that was to stop.
pub fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::Cancelled) } else { Ok(()) }
}

/// Memory that is not read any more when the flag says so.
pub struct Watched<'a> {
    pub bytes: &'a [u8],
    pub stop: &'a AtomicBool,
}

impl Source for Watched<'_> {
    type Error = Failure;

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, length: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], Failure> {
        check(self.stop)?;
        let read: Result<&[u8], PatchError> = self.bytes.read(offset, length, buffer);
        Ok(read?)
    }
}
