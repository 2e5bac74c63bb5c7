//! Patches: what turns a base into a target, block by block. `docs/format-files.md` has the bytes.
//!
//! A patch names its base by size and tree digest and is of no use with any other: [`Patch::apply`] proves the base
//! before it decodes a block, and every block it writes afterwards. A block is told by the cheapest of: the base's
//! bytes at the same place; what differs from them ([`crate::block`]); parts of the base and of the target elsewhere
//! ([`crate::segments`]).
//!
//! [`encode()`] and [`Patch`] work in memory, [`Snapshot`] keeps a version to make and apply patches of the next one.
//! [`encode_into`], [`Contents`] and [`EntryDecoder`] work on any [`Source`], for objects that need not be in memory.

mod apply;
mod compare;
mod contents;
mod decode;
mod encode;
mod error;
mod format;
mod in_place;
mod overlay;
mod parallel;
mod parts;
mod room;
mod scout;
mod slot;
mod snapshot;
mod source;
mod step;
mod write;

pub use apply::Patch;
pub use contents::{BlockCounts, Contents};
pub use decode::{EntryDecoder, decode_each};
pub use encode::{PatchOptions, encode, encode_into};
pub use error::PatchError;
pub use format::{
    Entry, EntryKind, MAGIC, MAX_BLOCK_BYTES, MAX_OBJECT_BYTES, MIN_BLOCK_BYTES, PatchHead, VERSION,
    max_length,
};
pub use overlay::{ElementNumber, Mask};
pub use parts::{Buffer, Encoded, Part};
pub use room::{give_back, room};
pub use snapshot::{Snapshot, SnapshotOptions};
pub use source::Source;

#[cfg(test)]
mod tests;
