//! Memory of patches, kept for the next ones: the first write to new memory takes longer than to fill it with most patches.

use std::sync::{Mutex, PoisonError};

/// The longest patch whose memory is kept, in bytes.
const MOST_BYTES: usize = 64 << 20;

static ROOM: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Nothing, with the memory of a patch that was [given back](give_back), if there is one.
#[must_use]
pub fn room() -> Vec<u8> {
    std::mem::take(&mut *ROOM.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps the memory of a patch that is not needed any more for a later one, unless that is more than 64 MiB.
pub fn give_back(mut patch: Vec<u8>) {
    let mut kept = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    // What has not been written of it is not there.
    if patch.len() <= MOST_BYTES && patch.capacity() > kept.capacity() {
        patch.clear();
        *kept = patch;
    }
}
