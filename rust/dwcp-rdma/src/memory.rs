//! Memory of callers that devices send from where it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use crate::domain;
use crate::error::RdmaError;
use crate::region::Region;

/// Whole pages of zeros, to be written by whoever has made them. Clones are the same memory.
///
/// Whatever is sent of it on a [`crate::Stream`] is not copied. It is registered with the device when it is first sent
/// there, once for all streams on the device, and stays so until the last of them, or the memory, is gone. It stays
/// where it is for as long as a device may read it, also when its owner has dropped it.
#[derive(Clone)]
pub struct Memory(Arc<Pages>);

struct Pages(Region);

/// How long each memory is, and what it is, by where it begins.
type Known = BTreeMap<usize, (usize, Weak<Pages>)>;

static KNOWN: RwLock<Known> = RwLock::new(BTreeMap::new());

/// How many there are: a stream has nothing to look for where there are none.
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Memory {
    /// Memory of `length` bytes, at least one.
    ///
    /// # Errors
    /// [`RdmaError::Call`] when there is not as much.
    pub fn new(length: usize) -> Result<Memory, RdmaError> {
        let memory = Memory(Arc::new(Pages(Region::shared(length)?)));
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(memory.start(), (length, Arc::downgrade(&memory.0)));
        COUNT.store(known.len(), Ordering::Relaxed);
        drop(known);
        Ok(memory)
    }

    /// Where it begins.
    #[must_use]
    pub fn pointer(&self) -> *mut u8 {
        self.0.0.start()
    }

    /// How many bytes there are.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.0.length()
    }

    /// With how many devices it is registered.
    #[must_use]
    pub fn registrations(&self) -> usize {
        domain::registrations(self.start())
    }

    /// The memory in which all of the `length` bytes at `at` lie, if there is one.
    pub(crate) fn around(at: usize, length: usize) -> Option<Memory> {
        if COUNT.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        let (start, (whole, pages)) = known.range(..=at).next_back()?;
        if (at - start).checked_add(length).is_none_or(|end| end > *whole) {
            return None;
        }
        pages.upgrade().map(Memory)
    }

    pub(crate) fn start(&self) -> usize {
        self.pointer() as usize
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let start = self.0.start() as usize;
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&start);
        COUNT.store(known.len(), Ordering::Relaxed);
        drop(known);
        // No request reads it any more: each that is under way has a clone.
        domain::forget(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_in_the_memory_that_they_lie_in_for_as_long_as_it_is_there() {
        const LENGTH: usize = 3 * 4096 + 1;
        let memory = Memory::new(LENGTH).unwrap();
        assert_eq!((memory.length(), memory.registrations()), (LENGTH, 0));
        let start = memory.start();
        for (at, length) in [(0, LENGTH), (4095, 2), (LENGTH - 1, 1), (LENGTH, 0)] {
            assert_eq!(Memory::around(start + at, length).unwrap().start(), start, "{at} {length}");
        }
        for (at, length) in [(0, LENGTH + 1), (LENGTH, 1), (1, usize::MAX)] {
            assert!(Memory::around(start + at, length).is_none(), "{at} {length}");
        }
        assert!(Memory::around(start - 1, 2).is_none());
        let clone = memory.clone();
        drop(memory);
        assert_eq!(Memory::around(start, 1).unwrap().start(), start);
        drop(clone);
        assert!(Memory::around(start, 1).is_none());
        assert!(Memory::new(0).is_err());
    }
}
