//! The parts of a patch, given away in order as it is made.

use super::error::PatchError;
use crate::digest::Digest;

/// A part of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part<'a> {
    /// Bytes that were made for it.
    Made(&'a [u8]),
    /// The target's bytes at an offset, as they are.
    Target(u64, &'a [u8]),
}

impl<'a> Part<'a> {
    /// The bytes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Part::Made(bytes) | Part::Target(_, bytes) => bytes,
        }
    }
}

/// What is known of a patch that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// Tree digest of the target.
    pub target_digest: Digest,
    /// The digests of the blocks of the target.
    pub leaves: Vec<Digest>,
    /// The blocks of the target that are not as in the base, in order.
    pub changed: Vec<u32>,
    /// Length of the patch in bytes.
    pub length: u64,
}

/// Adds to a patch in memory.
pub(super) fn append(patch: &mut Vec<u8>, part: &[u8]) -> Result<(), PatchError> {
    let bytes = part.len();
    patch.try_reserve(bytes).map_err(|_| PatchError::OutOfMemory { bytes: bytes as u64 })?;
    patch.extend_from_slice(part);
    Ok(())
}
