//! Codec contexts kept per thread, so that a small call pays for no set-up.

use std::cell::RefCell;

use dwcp_codec::codec::{Compressor, Decompressor};

/// Scratch memory above this many bytes is given back after the call.
const KEPT_SCRATCH: usize = 32 << 20;

/// What a call on this thread may use and the next one uses again.
pub struct Contexts {
    /// Compression state of every codec.
    pub compressor: Compressor,
    /// Decompression state of every codec.
    pub decompressor: Decompressor,
    /// Output whose final size is not known before it is made.
    pub scratch: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::new(Contexts {
        compressor: Compressor::new(),
        decompressor: Decompressor::new(),
        scratch: Vec::new(),
    });
}

/// Run `work` with this thread's contexts. Not to be nested.
pub fn with<T>(work: impl FnOnce(&mut Contexts) -> T) -> T {
    CONTEXTS.with_borrow_mut(work)
}

/// Take the thread's scratch away, empty and with room for `capacity` bytes.
pub fn take_scratch(contexts: &mut Contexts, capacity: usize) -> Result<Vec<u8>, std::collections::TryReserveError> {
    let mut scratch = std::mem::take(&mut contexts.scratch);
    scratch.clear();
    scratch.try_reserve_exact(capacity)?;
    Ok(scratch)
}

/// Bring scratch memory back for the next call, unless it is large.
pub fn keep_scratch(scratch: Vec<u8>) {
    if scratch.capacity() <= KEPT_SCRATCH {
        with(|contexts| contexts.scratch = scratch);
    }
}
