//! Applying patches to objects in memory.

use std::ops::{Deref, Range};

use super::error::PatchError;
use super::head::{PatchHead, RecordKind, expect_digest, expect_length};
use crate::block::BlockDecoder;
use crate::digest::{self, Digest};

/// A patch in memory whose head has been checked. Dereferences to its [`PatchHead`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch<'a> {
    head: PatchHead,
    bytes: &'a [u8],
}

impl Deref for Patch<'_> {
    type Target = PatchHead;

    fn deref(&self) -> &PatchHead {
        &self.head
    }
}

impl<'a> Patch<'a> {
    /// Reads a whole patch.
    ///
    /// # Errors
    ///
    /// As [`PatchHead::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Patch<'a>, PatchError> {
        PatchHead::parse(bytes, bytes.len() as u64).map(|head| Patch { head, bytes })
    }

    /// Proves that `old` is the base this patch was made for.
    ///
    /// # Errors
    ///
    /// [`PatchError::BaseMismatch`].
    pub fn verify_base(&self, old: &[u8]) -> Result<(), PatchError> {
        self.verified_leaves(old).map(|_| ())
    }

    /// Writes the target to `dst`, after proving that `old` is the base, and proves what it has written.
    ///
    /// On an error the contents of `dst` are unspecified.
    ///
    /// # Errors
    ///
    /// [`PatchError::Length`] if `dst` has not the target's size, [`PatchError::BaseMismatch`],
    /// [`PatchError::Codec`] or [`PatchError::BlockMismatch`].
    pub fn apply(&self, old: &[u8], dst: &mut [u8]) -> Result<(), PatchError> {
        expect_length("target buffer", self.target_size(), dst.len())?;
        let leaves = self.verified_leaves(old)?;
        let mut decoder = BlockDecoder::new();
        for (index, dst) in (0..).zip(dst.chunks_mut(self.block_bytes() as usize)) {
            let base = self.base_block(index, old);
            if self.is_proven_same(index, base, dst.len(), &leaves)? {
                dst.copy_from_slice(base);
            } else {
                self.decode_block(&mut decoder, index, self.payload(index), base, dst)?;
            }
        }
        Ok(())
    }

    /// Turns `buf` from the base into the target.
    ///
    /// Every changed block is decoded and proven before the first byte of `buf` is written, so on an error `buf` is
    /// the base still. Takes as much memory as the changed blocks have bytes.
    ///
    /// # Errors
    ///
    /// [`PatchError::SizeChanged`] if base and target differ in size, [`PatchError::BaseMismatch`],
    /// [`PatchError::OutOfMemory`], [`PatchError::Codec`] or [`PatchError::BlockMismatch`].
    pub fn apply_in_place(&self, buf: &mut [u8]) -> Result<(), PatchError> {
        let (base_size, target_size) = (self.base_size(), self.target_size());
        if base_size != target_size {
            return Err(PatchError::SizeChanged { base_size, target_size });
        }
        expect_length("buffer", base_size, buf.len())?;
        let leaves = self.verified_leaves(buf)?;
        let mut decoder = BlockDecoder::new();
        let mut decoded: Vec<u8> = Vec::new();
        let mut changed: Vec<Range<usize>> = Vec::new();
        for (index, base) in (0..).zip(buf.chunks(self.block_bytes() as usize)) {
            if self.is_proven_same(index, base, base.len(), &leaves)? {
                continue;
            }
            let start = decoded.len();
            let bytes = base.len();
            decoded.try_reserve(bytes).map_err(|_| PatchError::OutOfMemory { bytes: bytes as u64 })?;
            decoded.resize(start + bytes, 0);
            self.decode_block(&mut decoder, index, self.payload(index), base, &mut decoded[start..])?;
            let at = index as usize * self.block_bytes() as usize;
            changed.push(at..at + bytes);
        }
        let mut decoded = decoded.as_slice();
        for range in changed {
            let (block, rest) = decoded.split_at(range.len());
            buf[range].copy_from_slice(block);
            decoded = rest;
        }
        Ok(())
    }

    /// The digests of the blocks of `old`, once they have been found to make the digest of the base.
    fn verified_leaves(&self, old: &[u8]) -> Result<Vec<Digest>, PatchError> {
        let leaves = digest::leaves_of(old, self.block_bytes());
        let actual = digest::tree(old.len() as u64, self.block_bytes(), &leaves);
        let expected = self.base_digest();
        // The size is part of the digest, but a patch may lie about it.
        if actual != expected || old.len() as u64 != self.base_size() {
            return Err(PatchError::BaseMismatch { expected, actual });
        }
        Ok(leaves)
    }

    /// Whether block `index` is all of `base`, by a digest that is known already.
    fn is_proven_same(
        &self,
        index: u32,
        base: &[u8],
        length: usize,
        leaves: &[Digest],
    ) -> Result<bool, PatchError> {
        let record = &self.records()[index as usize];
        if record.kind != RecordKind::Same || base.len() != length {
            return Ok(false);
        }
        expect_digest(index, record.digest, leaves[index as usize]).map(|()| true)
    }

    /// The part of `old`, which has the size of the base, at block `index`.
    fn base_block<'o>(&self, index: u32, old: &'o [u8]) -> &'o [u8] {
        let range = self.base_range(index.into());
        &old[range.start as usize..range.end as usize]
    }

    fn payload(&self, index: u32) -> &'a [u8] {
        let record = &self.records()[index as usize];
        // The head was refused unless all payloads lie within the patch.
        &self.bytes[record.offset as usize..][..record.length as usize]
    }
}
