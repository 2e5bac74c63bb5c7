//! Bytes in, bytes out: digests, block codecs, deltas and the file formats built from them.
//!
//! Nothing here does I/O, reads a clock or knows about Python. Every decoder treats its input as hostile: lengths
//! are bounded before memory is taken, and bad bytes end in a [`CodecError`] or a [`PatchError`], never a panic.
#![deny(unsafe_code)]

pub mod block;
pub mod codec;
pub mod container;
pub mod dictionary;
pub mod digest;
mod error;
mod kernel;
pub mod matcher;
pub mod page;
pub mod pages;
pub mod patch;
pub mod probe;
#[allow(unsafe_code)] // The bindings to the C libraries, and the few casts to and from uninitialised memory.
mod raw;
#[allow(unsafe_code)] // A vector kernel.
mod sampling;
pub mod segments;
pub mod select;
mod stream;

pub use codec::{Codec, CodecId, Compressor, Decompressor};
pub use dictionary::Dictionary;
pub use digest::Digest;
pub use error::CodecError;
pub use patch::PatchError;
pub use raw::PastCache;
