//! Locks for many blocks with few mutexes.

use std::sync::{Mutex, MutexGuard, PoisonError};

const STRIPES: usize = 64;

/// A mutex for each number, shared with others: the holder of one never takes another.
pub(crate) struct Stripes([Mutex<()>; STRIPES]);

impl Stripes {
    pub(crate) fn new() -> Stripes {
        Stripes(std::array::from_fn(|_| Mutex::default()))
    }

    /// Waits until nobody holds this number.
    pub(crate) fn lock(&self, number: u64) -> MutexGuard<'_, ()> {
        self.0[(number % STRIPES as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
