//! A held version of an object, from which patches of the next version are made, or to which they are applied.

use std::convert::Infallible;

use super::apply::{Patch, Slice, zeroed};
use super::encode::{Encoded, PatchOptions, append, encode_into};
use super::error::PatchError;
use super::format::{PatchHead, expect_width};
use super::overlay::{Assigned, Checked, Mask, Masked, Overlaid, Overlay};
use super::parallel;
use super::scout::BLOCK_BYTES;
use super::source::Source;
use crate::codec::Codec;
use crate::digest::{self, Digest};

/// How the patches of a snapshot are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotOptions {
    /// Size of a block in bytes: a power of two from 64 KiB to 4 MiB.
    pub block_bytes: u32,
    /// As in [`PatchOptions`]. Masked and sparse changes take it as the size of their elements, 1 if there is none.
    pub width: Option<u8>,
    /// As in [`PatchOptions`].
    pub codec: Codec,
    /// As in [`PatchOptions`].
    pub search: bool,
}

impl Default for SnapshotOptions {
    /// Blocks of 1 MiB, and otherwise those of [`PatchOptions`].
    fn default() -> SnapshotOptions {
        let PatchOptions { width, codec, search, .. } = PatchOptions::default();
        SnapshotOptions { block_bytes: BLOCK_BYTES, width, codec, search }
    }
}

/// A version and the digests of its blocks, so that it is hashed once and not for every patch.
///
/// Each method that changes the version either does all of it or, on an error, nothing.
pub struct Snapshot {
    bytes: Vec<u8>,
    leaves: Vec<Digest>,
    options: SnapshotOptions,
}

impl Snapshot {
    /// Holds `bytes`, which are hashed by as many threads as stated.
    ///
    /// # Errors
    ///
    /// [`PatchError::BlockBytes`], [`PatchError::Width`] or [`PatchError::TooManyBlocks`].
    pub fn new(bytes: Vec<u8>, options: SnapshotOptions, threads: usize) -> Result<Snapshot, PatchError> {
        let size = bytes.len() as u64;
        expect_width(options.width)?;
        let head = PatchHead::new(options.block_bytes, size, size)?;
        let mut leaves = vec![Digest([0; 16]); head.block_count() as usize];
        let blocks = bytes.chunks(options.block_bytes as usize).zip(&mut leaves);
        parallel::for_each(&mut parallel::states::<()>(threads), blocks, |(), (block, leaf)| {
            *leaf = Digest::of(block);
            Ok::<(), PatchError>(())
        })?;
        Ok(Snapshot { bytes, leaves, options })
    }

    /// The version.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The memory of the version, for views that outlive a borrow. Only the methods of the snapshot may write to it.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// How its patches are made.
    #[must_use]
    pub fn options(&self) -> &SnapshotOptions {
        &self.options
    }

    /// Tree digest of the version, in blocks of [`SnapshotOptions::block_bytes`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest::tree(self.bytes.len() as u64, self.options.block_bytes, &self.leaves)
    }

    /// Makes the patch to `new`, and holds `new` from then on.
    ///
    /// One pass compares, codes and hashes `new`; the held version is not hashed again. A longer version may be held
    /// elsewhere in memory. `check` is called before every block is read, and may refuse to go on.
    ///
    /// # Errors
    ///
    /// As [`encode_into`], and those of `check`.
    pub fn advance<E: From<PatchError> + Send>(
        &mut self,
        new: &[u8],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Vec<u8>, E> {
        let (patch, made) = self.encode(&Checked { bytes: new, check }, threads)?;
        if new.len() == self.bytes.len() {
            self.write(made, threads, |at, block| block.copy_from_slice(&new[at..at + block.len()]));
        } else {
            let more = new.len().saturating_sub(self.bytes.len());
            let out_of_memory = PatchError::OutOfMemory { bytes: new.len() as u64 };
            self.bytes.try_reserve_exact(more).map_err(|_| out_of_memory)?;
            self.bytes.clear();
            self.bytes.extend_from_slice(new);
            self.leaves = made.leaves;
        }
        Ok(patch)
    }

    /// [`Snapshot::advance`] to a version of the same length that differs only in elements that `mask` names; the
    /// others are not read.
    ///
    /// # Errors
    ///
    /// [`PatchError::Length`] if `new` or the mask is not as long as the version, and as [`Snapshot::advance`].
    pub fn advance_masked<E: From<PatchError> + Send>(
        &mut self,
        new: &[u8],
        mask: Mask<'_>,
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Vec<u8>, E> {
        let masked = Masked::new(&self.bytes, new, mask, self.element_bytes())?;
        self.advance_by(&masked, threads, check)
    }

    /// [`Snapshot::advance`] to a version in which the elements number `index` have other values, told one behind the
    /// other in `values`.
    ///
    /// # Errors
    ///
    /// [`PatchError::Length`] if there are not as many values as indices, [`PatchError::NoSuchElement`],
    /// [`PatchError::DuplicateElement`], and as [`Snapshot::advance`].
    pub fn advance_sparse<E: From<PatchError> + Send>(
        &mut self,
        index: &[u64],
        values: &[u8],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Vec<u8>, E> {
        let assigned = Assigned::new(&self.bytes, index, values, self.element_bytes())?;
        self.advance_by(&assigned, threads, check)
    }

    fn advance_by<O: Overlay, E: From<PatchError> + Send>(
        &mut self,
        overlay: &O,
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Vec<u8>, E> {
        let new = Overlaid { held: &self.bytes, overlay, check };
        let (patch, made) = self.encode(&new, threads)?;
        let width = self.element_bytes();
        self.write(made, threads, |at, block| {
            // Blocks begin with an element, and only the last may end with a part of one.
            let whole = block.len() / width * width;
            overlay.put(at / width, &mut block[..whole]);
        });
        Ok(patch)
    }

    /// Applies a patch made for the held version, in place if it keeps the length. `check` is called before every
    /// block is decoded, and may refuse to go on. If the held version is the patch's target already, and not its base,
    /// there is nothing to be done.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply_in_place`], [`PatchError::BlockBytes`] if the patch has other blocks than the snapshot, and
    /// those of `check`.
    pub fn apply<E: From<PatchError> + Send>(
        &mut self,
        patch: &Patch<'_>,
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let block_bytes = patch.block_bytes();
        if block_bytes != self.options.block_bytes {
            let only = self.options.block_bytes;
            return Err(PatchError::BlockBytes { block_bytes, min: only, max: only }.into());
        }
        let (size, digest) = (self.bytes.len() as u64, self.digest());
        let is_base = (patch.base_size(), patch.base_digest()) == (size, digest);
        if !is_base && (patch.target_size(), patch.target_digest()) == (size, digest) {
            return Ok(());
        }
        patch.expect_base_size(size)?;
        let shorter = patch.shortened_digest(&self.bytes[..])?;
        if patch.target_size() == patch.base_size() {
            patch.apply_in_place_onto(&self.leaves, &mut self.bytes, threads, check)?;
        } else {
            patch.prove(&self.leaves, shorter)?;
            check()?;
            let out_of_memory = PatchError::OutOfMemory { bytes: patch.target_size() };
            let length = usize::try_from(patch.target_size()).map_err(|_| out_of_memory)?;
            let mut bytes = Vec::new();
            zeroed(&mut bytes, length)?;
            patch.apply_proven::<Slice<'_, E>>(&Slice::new(&self.bytes), &mut bytes, threads)?;
            self.bytes = bytes;
        }
        self.leaves = patch.target_leaves(&self.leaves, shorter).collect();
        Ok(())
    }

    fn element_bytes(&self) -> usize {
        self.options.width.unwrap_or(1).into()
    }

    fn encode<N: Source + ?Sized>(&self, new: &N, threads: usize) -> Result<(Vec<u8>, Encoded), N::Error> {
        let SnapshotOptions { block_bytes, width, codec, search } = self.options;
        let options =
            PatchOptions { block_bytes: Some(block_bytes), width, codec, threads, search, dictionary: None };
        let mut patch = Vec::new();
        let made = encode_into(&Slice::new(&self.bytes), new, Some(&self.leaves), &options, |part| {
            append(&mut patch, part.bytes()).map_err(N::Error::from)
        })?;
        Ok((patch, made))
    }

    /// Lets `write` change the blocks that differ, given where each begins, and keeps the new digests.
    fn write(&mut self, made: Encoded, threads: usize, write: impl Fn(usize, &mut [u8]) + Sync) {
        let block_bytes = self.options.block_bytes as usize;
        let mut changed = made.changed.iter().peekable();
        let blocks = (0..).zip(self.bytes.chunks_mut(block_bytes));
        let jobs = blocks.filter(|(index, _)| changed.next_if(|next| *next == index).is_some());
        let done = parallel::for_each(&mut parallel::states::<()>(threads), jobs, |(), (index, block)| {
            write(index as usize * block_bytes, block);
            Ok::<(), Infallible>(())
        });
        match done {
            Ok(()) => self.leaves = made.leaves,
            Err(never) => match never {},
        }
    }
}
