//! Buffers of records, used again: the system hands out fresh memory page by page, which takes longer than to fill it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use crate::cancel::lock;

/// Buffers that are kept: over a long way so many are under way at times, and few a moment later.
const MOST_KEPT: usize = 512;

/// What is shorter is not worth keeping, and what is longer not worth holding.
const KEPT_BYTES: std::ops::RangeInclusive<usize> = 4_096..=512 << 10;

/// Buffers that wait to be used again.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// A buffer of any content.
    pub(super) fn any(self: &Arc<Pool>) -> Buffer {
        let bytes = lock(&self.0).pop().unwrap_or_default();
        Buffer { bytes, pool: Arc::clone(self) }
    }

    /// An empty buffer.
    pub(super) fn empty(self: &Arc<Pool>) -> Buffer {
        let mut buffer = self.any();
        buffer.bytes.clear();
        buffer
    }

    /// A buffer with these bytes.
    pub(super) fn holding(self: &Arc<Pool>, bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, pool: Arc::clone(self) }
    }
}

/// A buffer that goes back to its pool.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if KEPT_BYTES.contains(&self.bytes.capacity()) {
            let mut kept = lock(&self.pool.0);
            if kept.len() < MOST_KEPT {
                kept.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_up_to_a_number_and_a_length() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.empty();
        buffer.resize(5_000, 7);
        let at = buffer.as_ptr();
        drop(buffer);
        let again = pool.empty();
        assert!(again.is_empty() && again.as_ptr() == at);
        drop((pool.holding(vec![0; 100]), pool.holding(vec![0; 1 << 20]), again));
        assert_eq!(lock(&pool.0).len(), 1);
        let many: Vec<_> = (0..2 * MOST_KEPT).map(|_| pool.holding(vec![0; 8_192])).collect();
        drop(many);
        assert_eq!(lock(&pool.0).len(), MOST_KEPT);
    }
}
