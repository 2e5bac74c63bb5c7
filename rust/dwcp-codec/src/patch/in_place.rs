//! Applying a patch to memory that holds its base.

use std::marker::PhantomData;

use super::apply::{Patch, Slice, zeroed};
use super::contents::Contents;
use super::decode::{EntryDecoder, expect_digest, expect_length};
use super::error::PatchError;
use super::format::{Entry, EntryKind};
use super::parallel;
use super::source::{Source, slice};
use crate::block::BlockKind;
use crate::digest::Digest;

/// What can be undone is done in place at once if blocks are whole elements of any width.
const WHOLE_BYTES: usize = 8;
/// Payloads shorter than one part in this many of their block change little of it.
const LITTLE_SHARE: usize = 16;

impl Patch<'_> {
    /// Turns `buf` from the base into the target.
    ///
    /// On an error `buf` is the base: blocks that are told by the differences of elements are changed in place, and
    /// changed back by the same differences if one of them turns out wrong; before that, all others are decoded and
    /// proven, and written last. Takes as much memory as these others have bytes, but for those that are told by
    /// few runs, or by one byte: they are decoded a second time, into place.
    ///
    /// # Errors
    ///
    /// [`PatchError::SizeChanged`] if base and target differ in size, [`PatchError::BaseSize`],
    /// [`PatchError::BaseMismatch`], [`PatchError::TargetDigest`], [`PatchError::OutOfMemory`],
    /// [`PatchError::Codec`] or [`PatchError::BlockMismatch`].
    pub fn apply_in_place(&self, buf: &mut [u8], threads: usize) -> Result<(), PatchError> {
        self.expect_same_size()?;
        self.verify_base(&*buf, threads)?;
        self.overwrite(buf, threads, || Ok::<(), PatchError>(()))
    }

    /// [`Patch::apply_in_place`] for a base whose blocks are known to have the digests `leaves`: it is not hashed
    /// again. `check` is called before every block is decoded for the first time, and may refuse to go on.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply_in_place`], and those of `check`.
    pub fn apply_in_place_onto<E: From<PatchError> + Send>(
        &self,
        leaves: &[Digest],
        buf: &mut [u8],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.expect_same_size()?;
        self.expect_base_size(buf.len() as u64)?;
        self.prove(leaves, None)?;
        self.overwrite(buf, threads, check)
    }

    fn expect_same_size(&self) -> Result<(), PatchError> {
        let (base_size, target_size) = (self.base_size(), self.target_size());
        if base_size == target_size {
            Ok(())
        } else {
            Err(PatchError::SizeChanged { base_size, target_size })
        }
    }

    fn overwrite<E: From<PatchError> + Send>(
        &self,
        buf: &mut [u8],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        expect_length("buffer", self.base_size(), buf.len())?;
        let mut workers = parallel::states::<Worker>(threads);
        let mut changed: Vec<Changed<'_>> = self.independent().map(Changed::new).collect();
        let independent = changed.len();
        changed.extend(self.dependent().map(Changed::new));
        let (first, second) = changed.split_at_mut(independent);
        first.iter_mut().for_each(|change| change.is_in_place = self.is_done_in_place(change.entry));
        let (patch, old) = (&Slice::new(self.bytes()), &Slice::new(buf));
        let aside = first.iter_mut().filter(|change| !change.is_in_place);
        parallel::for_each(&mut workers, aside, |worker, change| -> Result<(), E> {
            check()?;
            let entry = change.entry;
            let aside = self.is_used(entry.first) || !self.tells_little(entry);
            let block = if aside { change.decoded.insert(Vec::new()) } else { &mut worker.block };
            zeroed(block, self.block_length(entry.first))?;
            worker.decoder.decode(self, entry, patch, old, &Slice::new(&[]), block)
        })?;
        let target = &Decoded { contents: self, changed: first, old: buf, error: PhantomData };
        parallel::for_each(&mut workers, second.iter_mut(), |worker, change| -> Result<(), E> {
            check()?;
            let block = change.decoded.insert(Vec::new());
            zeroed(block, self.block_length(change.entry.first))?;
            worker.decoder.decode(self, change.entry, patch, old, target, block)
        })?;
        changed.sort_unstable_by_key(|change| change.entry.first);

        let jobs = self.with_blocks(&mut changed, buf, |change| change.is_in_place);
        let done = parallel::for_each(&mut workers, jobs, |worker, (change, block)| -> Result<(), E> {
            check()?;
            worker.decoder.decode_onto(self.bytes(), change.entry, block)?;
            change.is_done = true;
            let actual = Digest::of(block);
            change.entry.digest.map_or(Ok(()), |expected| {
                expect_digest(change.entry.first, expected, actual).map_err(E::from)
            })
        });
        if let Err(error) = done {
            let jobs = self.with_blocks(&mut changed, buf, |change| change.is_done);
            parallel::for_each(&mut workers, jobs, |worker, (change, block)| {
                worker.decoder.undo_onto(self.bytes(), change.entry, block)
            })?;
            return Err(error);
        }
        let jobs = self.with_blocks(&mut changed, buf, |change| !change.is_in_place);
        parallel::for_each(&mut workers, jobs, |worker, (change, block)| match &change.decoded {
            Some(decoded) => {
                block.copy_from_slice(decoded);
                Ok(())
            }
            None => worker.decoder.decode_onto(self.bytes(), change.entry, block).map_err(E::from),
        })
    }

    /// Those of `changed`, which are in the order of their blocks, that are `wanted`, and their blocks in `buf`.
    fn with_blocks<'b, 'e>(
        &self,
        changed: &'b mut [Changed<'e>],
        buf: &'b mut [u8],
        wanted: impl Fn(&Changed<'_>) -> bool + Send,
    ) -> impl Iterator<Item = (&'b mut Changed<'e>, &'b mut [u8])> + Send {
        let mut chunks = (0..).zip(buf.chunks_mut(self.block_bytes() as usize));
        changed.iter_mut().filter(move |change| wanted(change)).filter_map(move |change| {
            let found = chunks.by_ref().find(|(index, _)| *index == change.entry.first);
            found.map(|(_, block)| (change, block))
        })
    }

    /// Whether to change a block where it is: that can be undone, and no other block needs it before.
    fn is_done_in_place(&self, entry: &Entry) -> bool {
        let EntryKind::Block(kind) = entry.kind else { return false };
        let is_whole = self.block_length(entry.first).is_multiple_of(WHOLE_BYTES);
        kind.is_undoable() && is_whole && !self.is_used(entry.first)
    }

    /// Whether to decode a block onto its base block costs less than to copy it there: it touches little of that.
    fn tells_little(&self, entry: &Entry) -> bool {
        let EntryKind::Block(kind) = entry.kind else { return false };
        let is_short = (entry.length as usize) < self.block_length(entry.first) / LITTLE_SHARE;
        kind == BlockKind::Fill || (matches!(kind, BlockKind::Sparse | BlockKind::Runs) && is_short)
    }
}

#[derive(Default)]
struct Worker {
    decoder: EntryDecoder,
    block: Vec<u8>,
}

/// A block that is to be written, and what it will be if that was kept.
struct Changed<'a> {
    entry: &'a Entry,
    decoded: Option<Vec<u8>>,
    /// It is changed where it is, and it has been.
    is_in_place: bool,
    is_done: bool,
}

impl<'a> Changed<'a> {
    fn new(entry: &'a Entry) -> Changed<'a> {
        Changed { entry, decoded: None, is_in_place: false, is_done: false }
    }
}

/// The target, where it is as in the base or was decoded and kept.
struct Decoded<'a, E> {
    contents: &'a Contents,
    /// In the order of their blocks.
    changed: &'a [Changed<'a>],
    old: &'a [u8],
    error: PhantomData<fn() -> E>,
}

impl<E: From<PatchError> + Send> Source for Decoded<'_, E> {
    type Error = E;

    fn size(&self) -> u64 {
        self.contents.target_size()
    }

    fn read<'a>(&'a self, offset: u64, length: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], E> {
        buffer.clear();
        let (mut at, end) = (offset, offset.saturating_add(length as u64));
        while at < end {
            // Segments lie before a block of the target, whose number fits.
            let index = (at / u64::from(self.contents.block_bytes())) as u32;
            let range = self.contents.target_range(index.into());
            let part = (end.min(range.end) - at) as usize;
            let found = self.changed.binary_search_by_key(&index, |change| change.entry.first);
            let bytes = match found.ok().and_then(|place| self.changed[place].decoded.as_deref()) {
                Some(block) => slice(block, at - range.start, part)?,
                None => slice(self.old, at, part)?,
            };
            if part == 0 {
                return Err(PatchError::Truncated { length: self.size(), at, needed: end }.into());
            }
            buffer.extend_from_slice(bytes);
            at += part as u64;
        }
        Ok(buffer)
    }
}
