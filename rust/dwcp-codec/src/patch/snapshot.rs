//! A held version of an object, from which patches of the next version are made, or to which they are applied.

use std::borrow::Cow;
use std::convert::Infallible;

use super::apply::{Patch, Slice, zeroed};
use super::compare::hash_and_copy;
use super::encode::{PatchOptions, encode_into};
use super::error::PatchError;
use super::format::{EntryKind, PatchHead, expect_width};
use super::in_place::{Begun, WORKERS, Worker};
use super::overlay::{Assigned, Checked, ElementNumber, Mask, Masked, Onto, Overlaid, Overlay};
use super::parallel;
use super::parts::{Encoded, append};
use super::room::room;
use super::scout::{BLOCK_BYTES, changes_some_elements};
use super::source::{Source, read_range};
use super::step::{Next, Step, step};
use crate::codec::Codec;
use crate::digest::{self, Digest};
use crate::raw;

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
        PatchHead::new(options.block_bytes, size, size)?;
        let leaves = hash(&bytes, options.block_bytes, threads);
        Ok(Snapshot { bytes, leaves, options })
    }

    /// The version.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version, to be altered behind the back of what is known of it.
    #[cfg(test)]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
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

    /// Gives the memory of the version up; an empty version is held from then on.
    #[must_use]
    pub fn take_bytes(&mut self) -> Vec<u8> {
        self.leaves.clear();
        std::mem::take(&mut self.bytes)
    }

    /// Makes the patch to `new`, and holds `new` from then on.
    ///
    /// One pass compares, codes and hashes `new`; the held version is not hashed again. Where the length stays, and nothing
    /// is looked for elsewhere or some elements of a stated width change at their places, it is changed in the same pass. A longer version may be held elsewhere in memory.
    /// `check` is called before every block is read, and may refuse to go on.
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
        let next = Checked { bytes: new, check };
        if new.len() == self.bytes.len() {
            let copy = |at, block: &mut [u8]| block.copy_from_slice(&new[at..at + block.len()]);
            let is_stepwise = !self.options.search
                || self.options.width.is_some_and(|width| changes_some_elements(&self.bytes, new, width));
            if is_stepwise && let Some(patch) = self.step(&next, threads, copy)? {
                return Ok(patch);
            }
            let (patch, made) = self.encode(&next, threads)?;
            self.write(&made.changed, made.leaves, threads, copy);
            return Ok(patch);
        }
        let (patch, made) = self.encode(&next, threads)?;
        let more = new.len().saturating_sub(self.bytes.len());
        let out_of_memory = PatchError::OutOfMemory { bytes: new.len() as u64 };
        self.bytes.try_reserve_exact(more).map_err(|_| out_of_memory)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(new);
        self.leaves = made.leaves;
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
    pub fn advance_sparse<I: ElementNumber, E: From<PatchError> + Send>(
        &mut self,
        index: &[I],
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
        let width = self.element_bytes();
        let put = |at, block: &mut [u8]| {
            // Blocks begin with an element, and only the last may end with a part of one.
            let whole = block.len() / width * width;
            overlay.put(at / width, &mut block[..whole]);
        };
        let next = Onto { overlay, check };
        let names_some = || overlay.names_some(self.bytes.len() / width);
        let is_stepwise = !self.options.search || (self.options.width.is_some() && names_some());
        if is_stepwise && let Some(patch) = self.step(&next, threads, put)? {
            return Ok(patch);
        }
        let new = Overlaid { held: &self.bytes, overlay, check: next.check };
        let (patch, made) = self.encode(&new, threads)?;
        self.write(&made.changed, made.leaves, threads, put);
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
        Snapshot::apply_together(&mut [(self, patch)], threads, check)
    }

    /// [`Snapshot::apply`] for several snapshots: all of them become what their patches make of them or, on an error,
    /// none does.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::apply`].
    pub fn apply_together<E: From<PatchError> + Send>(
        parts: &mut [(&mut Snapshot, &Patch<'_>)],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let mut workers = WORKERS.take(threads);
        let mut begun = Vec::with_capacity(parts.len());
        for number in 0..parts.len() {
            let (snapshot, patch) = &mut parts[number];
            match snapshot.begin(patch, &mut workers, &check) {
                Ok(change) => begun.push(change),
                Err(error) => {
                    for ((snapshot, patch), change) in parts.iter_mut().zip(&mut begun) {
                        if let Change::Here(begun, _) = change {
                            patch.undo(&mut workers, begun, &mut snapshot.bytes)?;
                        }
                    }
                    return Err(error);
                }
            }
        }
        for ((snapshot, patch), change) in parts.iter_mut().zip(begun) {
            match change {
                Change::Nothing => {}
                Change::Here(mut begun, leaves) => {
                    patch.finish(&mut workers, &mut begun, &mut snapshot.bytes)?;
                    snapshot.leaves = leaves;
                }
                Change::Elsewhere(bytes, leaves) => (snapshot.bytes, snapshot.leaves) = (bytes, leaves),
            }
        }
        let longest = parts.iter().map(|(snapshot, _)| snapshot.options.block_bytes).max();
        WORKERS.put_back(workers, longest.unwrap_or(0));
        Ok(())
    }

    /// Holds the version that a patch makes of this one in other memory, which `memory` gives for so many bytes, of any
    /// content. `check` is called before every block is decoded, and may refuse to go on.
    ///
    /// The blocks of the new snapshot are those of the patch. This version is not hashed again if its blocks are like
    /// them, and every block of the new one is proven, also if it is as in this one.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply`], and those of `check`.
    pub fn fork<E: From<PatchError> + Send>(
        &self,
        patch: &Patch<'_>,
        memory: impl FnOnce(usize) -> Vec<u8>,
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Snapshot, E> {
        let block_bytes = patch.block_bytes();
        patch.expect_base_size(self.bytes.len() as u64)?;
        let known = if block_bytes == self.options.block_bytes {
            Cow::Borrowed(&self.leaves[..])
        } else {
            Cow::Owned(hash(&self.bytes, block_bytes, threads))
        };
        let forked = self.make(patch, &known, memory, threads, &check);
        let (bytes, leaves) = forked.map_err(|error| self.blame(patch, error, threads))?;
        let options = SnapshotOptions { block_bytes, ..self.options };
        Ok(Snapshot { bytes, leaves, options })
    }

    /// What a patch makes of the version, whose blocks have the digests `known`.
    fn make<E: From<PatchError> + Send>(
        &self,
        patch: &Patch<'_>,
        known: &[Digest],
        memory: impl FnOnce(usize) -> Vec<u8>,
        threads: usize,
        check: &(impl Fn() -> Result<(), E> + Sync),
    ) -> Result<(Vec<u8>, Vec<Digest>), E> {
        let shorter = patch.shortened_digest(&self.bytes[..])?;
        patch.prove(known, shorter)?;
        let leaves: Vec<Digest> = patch.target_leaves(known, shorter).collect();
        let out_of_memory = PatchError::OutOfMemory { bytes: patch.target_size() };
        let length = usize::try_from(patch.target_size()).map_err(|_| out_of_memory)?;
        let mut bytes = memory(length);
        zeroed(&mut bytes, length)?;
        let old = &Checked { bytes: &self.bytes, check };
        let blocks = bytes.chunks_mut(patch.block_bytes() as usize).zip(patch.blocks()).zip(&leaves);
        let same = blocks.filter(|((_, (_, entry)), _)| entry.kind == EntryKind::Same);
        parallel::for_each(&mut parallel::states(threads), same, |buffer, ((block, (index, _)), leaf)| {
            let held = read_range(old, patch.target_range(index.into()), buffer)?;
            let (actual, copied) = hash_and_copy(held, raw::as_output(block));
            copied.map_err(|source| PatchError::Codec { index, source })?;
            let expected = *leaf;
            if actual == expected {
                return Ok(());
            }
            Err(E::from(PatchError::BlockMismatch { index, expected, actual }))
        })?;
        patch.decode_changed(old, &mut bytes, threads)?;
        Ok((bytes, leaves))
    }

    /// Decodes and proves all that a patch tells, but may leave some of it to be written by the caller. On an error the
    /// version is what it was.
    fn begin<'p, E: From<PatchError> + Send>(
        &mut self,
        patch: &'p Patch<'_>,
        workers: &mut [Worker],
        check: &(impl Fn() -> Result<(), E> + Sync),
    ) -> Result<Change<'p>, E> {
        let block_bytes = patch.block_bytes();
        if block_bytes != self.options.block_bytes {
            let only = self.options.block_bytes;
            return Err(PatchError::BlockBytes { block_bytes, min: only, max: only }.into());
        }
        let (size, digest) = (self.bytes.len() as u64, self.digest());
        let is_base = (patch.base_size(), patch.base_digest()) == (size, digest);
        if !is_base && (patch.target_size(), patch.target_digest()) == (size, digest) {
            return Ok(Change::Nothing);
        }
        patch.expect_base_size(size)?;
        if patch.target_size() != patch.base_size() {
            let Snapshot { bytes, leaves, .. } = self.fork(patch, |_| Vec::new(), workers.len(), check)?;
            return Ok(Change::Elsewhere(bytes, leaves));
        }
        let begun = patch.begin(workers, &mut self.bytes, Some(&self.leaves), check);
        let begun = begun.map_err(|error| self.blame(patch, error, workers.len()))?;
        Ok(Change::Here(begun, patch.target_leaves(&self.leaves, None).collect()))
    }

    /// What to say of a patch that went wrong, if the version has been altered by somebody else.
    fn blame<E: From<PatchError>>(&self, patch: &Patch<'_>, error: E, threads: usize) -> E {
        let block_bytes = self.options.block_bytes;
        let leaves = hash(&self.bytes, block_bytes, threads);
        if leaves == self.leaves {
            return error;
        }
        let actual = digest::tree(self.bytes.len() as u64, block_bytes, &leaves);
        PatchError::BaseMismatch { expected: patch.base_digest(), actual }.into()
    }

    fn element_bytes(&self) -> usize {
        self.options.width.unwrap_or(1).into()
    }

    fn encode<N: Source + ?Sized>(&self, new: &N, threads: usize) -> Result<(Vec<u8>, Encoded), N::Error> {
        let SnapshotOptions { block_bytes, width, codec, search } = self.options;
        let options =
            PatchOptions { block_bytes: Some(block_bytes), width, codec, threads, search, dictionary: None };
        let mut patch = room();
        let made = encode_into(&Slice::new(&self.bytes), new, Some(&self.leaves), &options, |part| {
            append(&mut patch, part.bytes()).map_err(N::Error::from)
        })?;
        Ok((patch, made))
    }

    /// Makes the patch to `next`, and holds it: what is not changed on the way by `write`, given where a block begins.
    /// `None`, and the version as it was, if content is to be looked for elsewhere.
    fn step<N: Next>(
        &mut self,
        next: &N,
        threads: usize,
        write: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Option<Vec<u8>>, N::Error> {
        let stepped = step(&mut self.bytes, next, &self.leaves, &self.options, threads)?;
        let Some(Step { patch, made, left }) = stepped else { return Ok(None) };
        self.write(&left, made.leaves, threads, write);
        let block_bytes = self.options.block_bytes as usize;
        for index in left {
            let start = index as usize * block_bytes;
            let end = self.bytes.len().min(start + block_bytes);
            // As for the others: the digest is that of what is held.
            self.leaves[index as usize] = Digest::of(&self.bytes[start..end]);
        }
        Ok(Some(patch))
    }

    /// Lets `write` change the blocks `changed`, given where each begins, and keeps the new digests.
    fn write(
        &mut self,
        changed: &[u32],
        leaves: Vec<Digest>,
        threads: usize,
        write: impl Fn(usize, &mut [u8]) + Sync,
    ) {
        let block_bytes = self.options.block_bytes as usize;
        let mut changed = changed.iter().peekable();
        let blocks = (0..).zip(self.bytes.chunks_mut(block_bytes));
        let jobs = blocks.filter(|(index, _)| changed.next_if(|next| *next == index).is_some());
        let done = parallel::for_each(&mut parallel::states::<()>(threads), jobs, |(), (index, block)| {
            write(index as usize * block_bytes, block);
            Ok::<(), Infallible>(())
        });
        match done {
            Ok(()) => self.leaves = leaves,
            Err(never) => match never {},
        }
    }
}

/// What is left to do to a snapshot when all that a patch tells is proven.
enum Change<'p> {
    /// It is the patch's target already.
    Nothing,
    /// To finish the change of its memory; these are the digests of its blocks then.
    Here(Begun<'p>, Vec<Digest>),
    /// To hold other memory, whose blocks have these digests.
    Elsewhere(Vec<u8>, Vec<Digest>),
}

/// The digests of blocks.
fn hash(bytes: &[u8], block_bytes: u32, threads: usize) -> Vec<Digest> {
    let blocks = bytes.chunks(block_bytes as usize);
    let mut leaves = vec![Digest([0; 16]); blocks.len()];
    let jobs = blocks.zip(&mut leaves);
    let done = parallel::for_each(&mut parallel::states::<()>(threads), jobs, |(), (block, leaf)| {
        *leaf = Digest::of(block);
        Ok::<(), Infallible>(())
    });
    match done {
        Ok(()) => leaves,
        Err(never) => match never {},
    }
}
