//! Files, trees and memory as the two ends of a transfer: where blocks are read from and where they are put.
//!
//! A [`Source`] yields the blocks of the entries of a manifest: [`TreeSource`] (made by [`scan`]) reads files,
//! [`MemorySource`] lends slices. A [`Sink`] takes verified blocks and puts whole objects in place: [`TreeSink`]
//! stages files under `.dwcp` in the target directory and renames them, [`MemorySink`] fills buffers.
//! Nothing here knows of sockets, frames or threads; every method may be called from many threads at once unless it
//! says otherwise.

#![deny(unsafe_code)]

mod error;
mod index;
mod leaves;
mod memory;
mod open_files;
pub mod patching;
mod platform;
mod scan;
mod sink;
mod source;
mod stripes;
mod tree;

pub use error::{Refusal, StoreError};
pub use index::{BaseIndex, BaseRecord};
pub use leaves::file_leaves;
pub use memory::{
    BufferProvider, MemorySink, MemorySource, NamedBuffer, NamedBuffers, OwnedBuffer, SharedBytes,
    TargetBuffer,
};
pub use scan::{BaseChoice, ScanOptions, TreeSource, scan, scan_with};
pub use sink::{Claim, Prepared, Proof, Sink};
pub use source::Source;
pub use tree::{StagedTransfer, TreeSink, TreeSinkOptions, remove_staging, staged_transfers};

/// What is called between pieces of long work, at least once a block: an error aborts the work and is passed on.
///
/// Return [`StoreError::Cancelled`] to abort.
pub type Tick<'a> = dyn FnMut() -> Result<(), StoreError> + 'a;

/// What happens to symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SymlinkPolicy {
    /// They are carried as links, never followed.
    #[default]
    Keep,
    /// A tree that holds one is refused.
    Refuse,
}
