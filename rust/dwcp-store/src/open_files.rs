//! A bounded set of open files.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::StoreError;

/// Open files kept at once, for each of the sets a source or sink has.
const CAPACITY: usize = 64;

/// The most recently used open files; the least recently used is closed when one more is opened.
pub(crate) struct OpenFiles<K> {
    held: Mutex<Held<K>>,
}

struct Held<K> {
    files: HashMap<K, (Arc<File>, u64)>,
    clock: u64,
}

impl<K: Copy + Eq + Hash> OpenFiles<K> {
    pub(crate) fn new() -> Self {
        OpenFiles { held: Mutex::new(Held { files: HashMap::new(), clock: 0 }) }
    }

    /// The open file for `key`, opened by `open` if need be. Two threads may open it at once; one of the two is kept.
    pub(crate) fn open(
        &self,
        key: K,
        open: impl FnOnce() -> Result<File, StoreError>,
    ) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.held().touch(key) {
            return Ok(file);
        }
        let opened = Arc::new(open()?);
        let mut held = self.held();
        if let Some(file) = held.touch(key) {
            return Ok(file);
        }
        if held.files.len() >= CAPACITY {
            let oldest = held.files.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.map(|key| held.files.remove(&key));
        }
        let now = held.clock;
        held.files.insert(key, (Arc::clone(&opened), now));
        Ok(opened)
    }

    /// Closes the file for `key` as soon as nobody uses it.
    pub(crate) fn close(&self, key: K) {
        self.held().files.remove(&key);
    }

    fn held(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Held<K> {
    fn touch(&mut self, key: K) -> Option<Arc<File>> {
        self.clock += 1;
        let (file, used) = self.files.get_mut(&key)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_file_is_closed_first() {
        let files = OpenFiles::new();
        let open = |key: usize| files.open(key, || Ok(tempfile::tempfile().unwrap())).unwrap();
        let first = Arc::downgrade(&open(0));
        let second = Arc::downgrade(&open(1));
        for key in 2..CAPACITY {
            open(key);
        }
        open(0);
        open(CAPACITY);
        assert!(first.upgrade().is_some());
        assert!(second.upgrade().is_none());
        files.close(0);
        assert!(first.upgrade().is_none());
    }
}
