//! The parts of a patch, given away in order as it is made.

use super::error::PatchError;
use crate::digest::Digest;
use crate::error::CodecError;
use crate::raw::PastCache;

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

/// From this length on, what a patch is written to is not in the cache when somebody reads it,
const LONG_BYTES: usize = 16 << 20;
/// and parts from this length on are written past it.
const LONG_PART_BYTES: usize = 64 << 10;

/// Memory that a patch is written to, part by part.
pub struct Buffer<'a> {
    memory: &'a mut [u8],
    length: usize,
    past_cache: PastCache,
}

impl<'a> Buffer<'a> {
    /// Memory in which there is nothing of the patch yet.
    #[must_use]
    pub fn new(memory: &'a mut [u8]) -> Buffer<'a> {
        Buffer { memory, length: 0, past_cache: PastCache::new() }
    }

    /// Writes the next part.
    ///
    /// # Errors
    ///
    /// [`CodecError::OutputTooSmall`].
    pub fn put(&mut self, part: Part<'_>) -> Result<(), CodecError> {
        let (capacity, bytes) = (self.memory.len(), part.bytes());
        let rest = &mut self.memory[self.length..];
        let place = rest.get_mut(..bytes.len()).ok_or(CodecError::OutputTooSmall { capacity })?;
        if capacity >= LONG_BYTES && bytes.len() >= LONG_PART_BYTES {
            self.past_cache.copy(bytes, place);
        } else {
            place.copy_from_slice(bytes);
        }
        self.length += bytes.len();
        Ok(())
    }

    /// Length of what was written.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}
