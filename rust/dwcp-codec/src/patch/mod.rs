//! Patches: what turns a base into a target, block by block, each block at the offset it has in both.
//!
//! A patch names its base by size and tree digest and is of no use with any other: [`Patch::apply`] proves the base
//! before it applies a difference, and every block it writes afterwards. `docs/format-files.md` has the bytes.
//!
//! [`encode()`] and [`Patch`] work on whole objects in memory; [`PatchEncoder`] and [`PatchHead`] on one block at a time,
//! for objects that need not be held.

mod apply;
mod encode;
mod error;
mod head;

pub use apply::Patch;
pub use encode::{PatchEncoder, PatchOptions, encode};
pub use error::PatchError;
pub use head::{
    FIXED_BYTES, MAGIC, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES, PatchHead, Record, RecordKind, VERSION,
};

#[cfg(test)]
mod tests;
