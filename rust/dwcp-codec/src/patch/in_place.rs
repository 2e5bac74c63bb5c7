//! Applying a patch to memory that holds its base.

use std::marker::PhantomData;

use super::apply::{Patch, Slice, zeroed};
use super::contents::Contents;
use super::decode::{EntryDecoder, expect_digest};
use super::error::PatchError;
use super::format::{Entry, EntryKind};
use super::parallel::{self, Failure, Kept};
use super::source::{Source, slice};
use crate::block::BlockKind;
use crate::codec::CodecId;
use crate::digest::Digest;

/// What can be undone is done in place at once if blocks are whole elements of any width.
const WHOLE_BYTES: usize = 8;
/// Payloads shorter than one part in this many of their block change little of it.
const LITTLE_SHARE: usize = 16;

impl Patch<'_> {
    /// Turns `buf` from the base into the target.
    ///
    /// On an error `buf` is the base: blocks that are told by the differences of elements are changed in place, and
    /// changed back by the same differences if one of them, or the base, turns out wrong; all others are decoded and
    /// proven, and written last. Takes as much memory as these others have bytes, but for those that are told by
    /// few runs, or by one byte: they are decoded a second time, into place.
    ///
    /// # Errors
    ///
    /// [`PatchError::SizeChanged`] if base and target differ in size, [`PatchError::BaseSize`],
    /// [`PatchError::BaseMismatch`], [`PatchError::TargetDigest`], [`PatchError::OutOfMemory`],
    /// [`PatchError::Codec`] or [`PatchError::BlockMismatch`].
    pub fn apply_in_place(&self, buf: &mut [u8], threads: usize) -> Result<(), PatchError> {
        self.apply_in_place_while(buf, threads, || Ok(()))
    }

    /// [`Patch::apply_in_place`] with a `check` that is called before every block, and may refuse to go on.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply_in_place`], and those of `check`.
    pub fn apply_in_place_while<E: From<PatchError> + Send>(
        &self,
        buf: &mut [u8],
        threads: usize,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let mut workers = WORKERS.take(threads);
        let mut begun = self.begin(&mut workers, buf, None, check)?;
        self.finish(&mut workers, &mut begun, buf)?;
        WORKERS.put_back(workers, self.block_bytes());
        Ok(())
    }

    /// The first part of [`Patch::apply_in_place_while`]: everything is decoded and proven. What this gives is to be
    /// [finished](Patch::finish) or [undone](Patch::undo). On an error `buf` is as it was.
    ///
    /// A base whose blocks have the digests `known` is not hashed again, and what is as in the base is not read.
    pub(super) fn begin<E: From<PatchError> + Send>(
        &self,
        workers: &mut [Worker],
        buf: &mut [u8],
        known: Option<&[Digest]>,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<Begun<'_>, E> {
        let (base_size, target_size) = (self.base_size(), self.target_size());
        if base_size != target_size {
            return Err(PatchError::SizeChanged { base_size, target_size }.into());
        }
        self.expect_base_size(buf.len() as u64)?;
        if let Some(leaves) = known {
            self.prove(leaves, None)?;
        }
        let mut changed: Vec<Changed<'_>> = self.independent().map(Changed::new).collect();
        let independent = changed.len();
        changed.extend(self.dependent().map(Changed::new));
        let (first, second) = changed.split_at_mut(independent);
        first.iter_mut().for_each(|change| change.way = self.way_of(change.entry));
        let failure = Failure::new();
        let (patch, old) = (&Slice::new(self.bytes()), &Slice::new(buf));
        let elsewhere = first.iter_mut().filter(|change| change.way == Way::Elsewhere);
        parallel::for_each(workers, elsewhere, |worker, change| {
            check()?;
            failure.keep(change.entry.first, self.decode_aside(worker, change, patch, old, &Slice::new(&[])));
            Ok::<(), E>(())
        })?;
        let target = &Decoded { contents: self, changed: first, old: buf, error: PhantomData };
        parallel::for_each(workers, second.iter_mut(), |worker, change| {
            check()?;
            if !failure.is_some() {
                failure.keep(change.entry.first, self.decode_aside(worker, change, patch, old, target));
            }
            Ok::<(), E>(())
        })?;
        changed.sort_unstable_by_key(|change| change.entry.first);

        let done = match known {
            Some(_) => {
                let jobs = self.with_blocks(&mut changed, buf, |change| change.way != Way::Elsewhere);
                parallel::for_each(workers, jobs, |worker, (change, block)| {
                    check()?;
                    self.change_block(worker, change, block, &failure);
                    Ok(())
                })
            }
            None => self.change_while_proving(workers, &mut changed, buf, &failure, check),
        };
        let mut begun = Begun { changed };
        if let Err(error) = done.and_then(|()| failure.into_result()) {
            self.undo(workers, &mut begun, buf)?;
            return Err(error);
        }
        Ok(begun)
    }

    /// Makes of `buf` what it was before [`Patch::begin`].
    pub(super) fn undo(
        &self,
        workers: &mut [Worker],
        begun: &mut Begun<'_>,
        buf: &mut [u8],
    ) -> Result<(), PatchError> {
        let jobs = self.with_blocks(&mut begun.changed, buf, |change| change.is_done);
        parallel::for_each(workers, jobs, |worker, (change, block)| {
            worker.decoder.undo_onto(self.bytes(), change.entry, block)
        })
    }

    /// Writes to `buf` what [`Patch::begin`] did not.
    pub(super) fn finish(
        &self,
        workers: &mut [Worker],
        begun: &mut Begun<'_>,
        buf: &mut [u8],
    ) -> Result<(), PatchError> {
        let jobs = self.with_blocks(&mut begun.changed, buf, |change| !change.is_done);
        parallel::for_each(workers, jobs, |worker, (change, block)| match &change.decoded {
            Some(decoded) => {
                block.copy_from_slice(decoded);
                Ok(())
            }
            None => worker.decoder.decode_onto(self.bytes(), change.entry, block),
        })
    }

    /// Hashes every block, and does to it what needs nothing but the block while it is at hand; then proves the base.
    fn change_while_proving<E: From<PatchError> + Send>(
        &self,
        workers: &mut [Worker],
        changed: &mut [Changed<'_>],
        buf: &mut [u8],
        failure: &Failure<E>,
        check: impl Fn() -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let mut leaves = vec![Digest([0; 16]); self.base_blocks()];
        let mut changed = changed.iter_mut().peekable();
        let blocks = (0..).zip(buf.chunks_mut(self.block_bytes() as usize)).zip(&mut leaves);
        let jobs = blocks.map(|((index, block), leaf)| {
            (block, leaf, changed.next_if(|change| change.entry.first == index))
        });
        parallel::for_each(workers, jobs, |worker, (block, leaf, change)| {
            check()?;
            *leaf = Digest::of(block);
            if let Some(change) = change.filter(|change| change.way != Way::Elsewhere) {
                self.change_block(worker, change, block, failure);
            }
            Ok::<(), E>(())
        })?;
        // A base that is another is what is to blame for the rest.
        self.prove(&leaves, None)?;
        Ok(())
    }

    /// Decodes a block that needs nothing but its base block: there, or aside.
    fn change_block<E: From<PatchError>>(
        &self,
        worker: &mut Worker,
        change: &mut Changed<'_>,
        block: &mut [u8],
        failure: &Failure<E>,
    ) {
        if failure.is_some() {
            return;
        }
        let (entry, decoder) = (change.entry, &mut worker.decoder);
        let changed = if change.way == Way::InPlace {
            let done = decoder.decode_onto_and_hash(self.bytes(), entry, block);
            change.is_done = done.is_ok();
            done.and_then(|made| expect_digest(entry, made))
        } else {
            let keep = !self.tells_little(entry);
            let aside = if keep { change.decoded.insert(Vec::new()) } else { &mut worker.block };
            zeroed(aside, block.len())
                .and_then(|()| decoder.decode_against(self.bytes(), entry, block, aside))
        };
        failure.keep(entry.first, changed.map_err(E::from));
    }

    /// Decodes a block that others are made of, or that is made of more than its base block.
    fn decode_aside<E: From<PatchError> + Send>(
        &self,
        worker: &mut Worker,
        change: &mut Changed<'_>,
        patch: &Slice<'_, E>,
        old: &Slice<'_, E>,
        target: &impl Source<Error = E>,
    ) -> Result<(), E> {
        let block = change.decoded.insert(Vec::new());
        zeroed(block, self.block_length(change.entry.first))?;
        worker.decoder.decode(self, change.entry, patch, old, target, block)
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

    /// What is done with a block that is not made of others.
    fn way_of(&self, entry: &Entry) -> Way {
        let EntryKind::Block(kind) = entry.kind else { return Way::Elsewhere };
        // What a dictionary made is decoded with all that is known of the patch.
        if self.is_used(entry.first) || entry.codec == CodecId::ZstdDictionary {
            return Way::Elsewhere;
        }
        if is_undone_in_place(kind, self.block_length(entry.first)) { Way::InPlace } else { Way::Aside }
    }

    /// Whether to decode a block onto its base block costs less than to copy it there: it touches little of that.
    fn tells_little(&self, entry: &Entry) -> bool {
        let EntryKind::Block(kind) = entry.kind else { return false };
        let is_short = (entry.length as usize) < self.block_length(entry.first) / LITTLE_SHARE;
        kind == BlockKind::Fill || (matches!(kind, BlockKind::Sparse | BlockKind::Runs) && is_short)
    }
}

/// Whether a block of a kind and length is made again of its base block what it was, by the same payload.
pub(super) fn is_undone_in_place(kind: BlockKind, length: usize) -> bool {
    kind.is_undoable() && length.is_multiple_of(WHOLE_BYTES)
}

/// What those have who change memory in place.
pub(super) static WORKERS: Kept<Worker> = Kept::new();

/// What one thread keeps.
#[derive(Default)]
pub(super) struct Worker {
    decoder: EntryDecoder,
    block: Vec<u8>,
}

/// A change in place that is decoded and proven, but not complete.
#[must_use]
pub(super) struct Begun<'a> {
    changed: Vec<Changed<'a>>,
}

/// What is done with a block until all are proven.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is decoded and kept before the others: it is made of other blocks or others are made of it.
    Elsewhere,
    /// It is decoded beside its base block.
    Aside,
    /// It is changed where it is: that can be undone.
    InPlace,
}

/// A block that is to be written, and what it will be if that was kept.
struct Changed<'a> {
    entry: &'a Entry,
    way: Way,
    decoded: Option<Vec<u8>>,
    /// It has been changed where it is.
    is_done: bool,
}

impl<'a> Changed<'a> {
    fn new(entry: &'a Entry) -> Changed<'a> {
        Changed { entry, way: Way::Elsewhere, decoded: None, is_done: false }
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
