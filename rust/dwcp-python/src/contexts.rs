//! Codec contexts kept per thread, so that a small call pays for no set-up.

use std::cell::RefCell;

use dwcp_codec::codec::{Compressor, Decompressor};

/// What a call on this thread may use and the next one uses again.
pub struct Contexts {
    /// Compression state of every codec.
    pub compressor: Compressor,
    /// Decompression state of every codec.
    pub decompressor: Decompressor,
    /// Room for a result whose length is not known before.
    pub scratch: Vec<u8>,
    /// Room for pages brought together.
    pub pages: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::new(Contexts {
        compressor: Compressor::new(),
        decompressor: Decompressor::new(),
        scratch: Vec::new(),
        pages: Vec::new(),
    });
}

/// Run `work` with this thread's contexts. Not to be nested.
pub fn with<T>(work: impl FnOnce(&mut Contexts) -> T) -> T {
    CONTEXTS.with_borrow_mut(work)
}
