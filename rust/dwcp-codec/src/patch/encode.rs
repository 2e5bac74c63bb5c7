//! Making patches.

use std::collections::BTreeSet;

use super::compare::FillDigests;
use super::contents::used_blocks;
use super::error::PatchError;
use super::format::{EntryKind, PatchHead, expect_width};
use super::parallel::{self, Kept};
use super::parts::{Encoded, Part, append};
use super::scout::{self, ALL_SHARES, Scout, share_elsewhere};
use super::slot::{Coded, Slot};
use super::source::{Between, Source, Usable, read_range};
use super::write::Writer;
use crate::block::{Base, BlockEncoder, BlockKind, DirtyLines};
use crate::codec::{Codec, CodecId};
use crate::dictionary::Dictionary;
use crate::digest::Digest;
use crate::kernel::{LINE_BYTES, Level, pair};
use crate::matcher::{Found, Index, Origin};
use crate::segments::{SegmentCoder, SegmentKind};
use crate::{page, probe};

/// How a patch is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatchOptions<'a> {
    /// Size of a block in bytes: a power of two from 64 KiB to 4 MiB. `None` for 4 MiB where much has moved or is
    /// new, and 1 MiB otherwise.
    pub block_bytes: Option<u32>,
    /// Bytes per element of the data (1, 2, 4 or 8); `None` to find out block by block.
    pub width: Option<u8>,
    /// The codec of blocks that are told in full.
    pub codec: Codec,
    /// What short blocks are made with, where nothing else is smaller.
    pub dictionary: Option<&'a Dictionary>,
    /// How many threads work on the patch, which does not depend on it. 0 counts as 1.
    pub threads: usize,
    /// Whether the content of blocks that the base does not explain where they are is looked for elsewhere.
    pub search: bool,
}

impl Default for PatchOptions<'_> {
    /// Blocks and elements found out, zstd level 1, one thread, with search.
    fn default() -> Self {
        PatchOptions {
            block_bytes: None,
            width: None,
            codec: Codec::Zstd { level: 1 },
            dictionary: None,
            threads: 1,
            search: true,
        }
    }
}

/// How many bytes of the target are worked on before their entries are written. What is found depends on it, so that
/// it does not depend on the number of threads.
const WINDOW_BYTES: u32 = 32 << 20;
/// Payloads whose memory a worker keeps for the next ones.
const MOST_SPARE: usize = 4;
/// A block that the base at its place was of no use to is looked for elsewhere if its payload is more than this share.
const UNUSED_BASE_SHARE: usize = 64;
/// A block told by runs is looked for elsewhere if its payload is more than this share: much of it is new.
const NEW_RUNS_SHARE: usize = 10;
/// What is made of parts of the base is looked for in the target, too, if its payload is more than this share.
const MISSING_IN_BASE_SHARE: usize = 16;
/// What was found elsewhere is also coded without, for comparison, if its payload is more than this share.
const FOUND_LITTLE_SHARE: usize = 8;
/// Where less than one line in this many differs from the base, the block is at its place.
pub(super) const NEAR_SHARE: usize = 8;
/// Of base and target that have no more together, there is always an index if there is anything to look for.
const INDEXED_AT_ONCE_BYTES: u64 = 8 << 20;
/// What is looked for near its place first if there is less than so many times as much as is worth an index.
const NEAR_SAVES: u64 = 4;
/// To see whether anything has moved near its place, of every so many bytes there
const NEAR_SPAN_BYTES: usize = 64 << 10;
/// one part in so many is looked up, and
const NEAR_SAMPLE_SHARE: u64 = 16;
/// one part in so many of the block must be found there.
const MOVED_SHARE: u64 = 128;
/// Parts of the target are used if they are one part in this many of a block: no other block may use that block then.
const LEAST_TARGET_SHARE: usize = 8;

/// The patch that turns `old` into `new`.
///
/// # Errors
///
/// [`PatchError::BlockBytes`], [`PatchError::Width`], [`PatchError::TooManyBlocks`], [`PatchError::OutOfMemory`] or
/// [`PatchError::Codec`].
pub fn encode(old: &[u8], new: &[u8], options: &PatchOptions<'_>) -> Result<Vec<u8>, PatchError> {
    let mut patch = Vec::new();
    encode_into(old, new, None, options, |part| append(&mut patch, part.bytes()))?;
    Ok(patch)
}

/// [`encode()`] for objects that need not be in memory, to a patch that need not be either: `emit` is given its parts
/// in order. Takes memory for 32 MiB of both objects and for what is looked up, whatever their size.
///
/// `leaves`, if they are known, are the digests of the blocks of `old`, and are taken for them.
///
/// # Errors
///
/// Those of [`encode()`], of reading and of `emit`.
pub fn encode_into<O, N>(
    old: &O,
    new: &N,
    leaves: Option<&[Digest]>,
    options: &PatchOptions<'_>,
    emit: impl FnMut(Part<'_>) -> Result<(), O::Error>,
) -> Result<Encoded, O::Error>
where
    O: Source + ?Sized,
    N: Source<Error = O::Error> + ?Sized,
{
    expect_width(options.width)?;
    let block_bytes = match options.block_bytes {
        Some(block_bytes) => block_bytes,
        None => scout::choose_block_bytes(old, new, options.width)?,
    };
    let mut head = PatchHead::new(block_bytes, old.size(), new.size())?;
    if let Some(dictionary) = options.dictionary.filter(|_| head.has_short_block()) {
        head = head.naming(dictionary.digest());
    }
    let mut maker = Maker {
        head,
        options,
        old,
        new,
        leaves,
        index: None,
        scout: None,
        unscouted_bytes: 0,
        left_out: Vec::new(),
        target_indexed: false,
        nested: BTreeSet::new(),
    };
    let mut workers = WORKERS.take(options.threads);
    let mut writer = Writer::new(head, emit)?;
    let count = head.base_size().div_ceil(head.block_bytes().into()).max(head.block_count().into());
    let step = u64::from(WINDOW_BYTES / head.block_bytes());
    // One thread writes what it has made at once, as long as it need not look for anything.
    let batch = if workers.len() == 1 { 1 } else { step };
    let mut slots = Vec::new();
    let mut held: Vec<Slot> = Vec::new();
    for start in (0..count).step_by(step as usize) {
        let end = count.min(start + step);
        for start in (start..end).step_by(batch as usize) {
            slots.extend((start..end.min(start + batch)).map(Slot::new));
            parallel::for_each(&mut workers, slots.iter_mut(), |worker, slot| maker.compare(worker, slot))?;
            for slot in slots.drain(..) {
                if held.is_empty() && !slot.pending {
                    maker.write(slot, &mut workers, &mut writer)?;
                } else {
                    held.push(slot);
                }
            }
        }
        if !held.is_empty() {
            maker.search(&mut workers, &mut held)?;
        }
        for slot in held.drain(..) {
            maker.write(slot, &mut workers, &mut writer)?;
        }
    }
    WORKERS.put_back(workers, head.block_bytes());
    writer.finish()
}

static WORKERS: Kept<Worker> = Kept::new();

/// What one thread keeps.
#[derive(Default)]
struct Worker {
    blocks: BlockEncoder,
    segments: SegmentCoder,
    found: Found,
    old: Vec<u8>,
    new: Vec<u8>,
    gathered: Vec<u8>,
    dirty: Vec<u64>,
    /// Memory of payloads that were written.
    spare: Vec<Vec<u8>>,
    fills: FillDigests,
}

struct Maker<'a, O: ?Sized, N: ?Sized> {
    head: PatchHead,
    options: &'a PatchOptions<'a>,
    old: &'a O,
    new: &'a N,
    leaves: Option<&'a [Digest]>,
    index: Option<Index>,
    /// What tells whether there is to be an index.
    scout: Option<Scout>,
    /// Length of the payloads of blocks that were not worth a scout.
    unscouted_bytes: u64,
    /// The blocks that an index would have.
    left_out: Vec<u64>,
    /// Whether the index has something of the target.
    target_indexed: bool,
    /// The blocks that are made of parts of the target, which no other block may use.
    nested: BTreeSet<u32>,
}

impl<O, N> Maker<'_, O, N>
where
    O: Source + ?Sized,
    N: Source<Error = O::Error> + ?Sized,
{
    /// Compares a block with the base at the same place, and codes it if it differs.
    fn compare(&self, worker: &mut Worker, slot: &mut Slot) -> Result<(), O::Error> {
        let old = read_range(self.old, self.head.base_range(slot.index), &mut worker.old)?;
        let new = read_range(self.new, self.head.target_range(slot.index), &mut worker.new)?;
        let known = self.leaves.and_then(|leaves| leaves.get(slot.index as usize).copied());
        if new.is_empty() {
            slot.base_leaf = known.or_else(|| Some(Digest::of(old)));
            return Ok(());
        }
        if known.is_some() && std::ptr::eq(old, new) {
            // Memory that holds both versions of what did not change.
            (slot.base_leaf, slot.digest) = (known, known);
            return Ok(());
        }
        let (mut base, mut is_near) = (None, false);
        let fill;
        if old.is_empty() {
            fill = page::fill_byte(new);
            if let Some(byte) = fill {
                slot.digest = Some(worker.fills.digest(byte, new));
            } else if self.options.width.is_none_or(|width| width == 1) {
                let (digest, count) = pair::hash_and_mark(Level::detected(), new, &mut worker.dirty);
                slot.digest = Some(digest);
                base = Some(Base::nothing(DirtyLines { words: &worker.dirty, count }));
            } else {
                slot.digest = Some(Digest::of(new));
            }
        } else {
            let pair = pair::hash_and_compare(Level::detected(), old, new, &mut worker.dirty);
            (slot.base_leaf, slot.digest) = (Some(known.unwrap_or(pair.old)), Some(pair.new));
            if pair.dirty == 0 && old.len() >= new.len() {
                return Ok(());
            }
            fill = page::fill_byte(new);
            is_near = old.len() >= new.len() && pair.dirty * LINE_BYTES < new.len() / NEAR_SHARE;
            base = Some(Base {
                bytes: old,
                dirty: Some(DirtyLines { words: &worker.dirty, count: pair.dirty }),
                is_partial: false,
            });
        }
        if let Some(byte) = fill {
            slot.coded = Coded::fill(byte);
            return Ok(());
        }
        let searched = self.options.search && !old.is_empty() && !is_near;
        let elsewhere = if searched { share_elsewhere(old, new, self.options.width) } else { 0 };
        if elsewhere == ALL_SHARES {
            // Coding it against the base here would be for nothing.
            (slot.coded, slot.pending, slot.untried) = (Coded::Raw, true, true);
            slot.is_noise = !probe::compressible(new);
            return Ok(());
        }
        let kind = self.code_block(&mut worker.blocks, &mut worker.spare, slot, new, base)?;
        let Some(kind) = kind else { return Ok(()) };
        let payload_bytes = slot.payload_length(new.len());
        slot.pending = self.options.search
            && may_be_elsewhere(kind, payload_bytes, new.len(), elsewhere, self.options.width);
        Ok(())
    }

    /// Codes a block in full or against the base block, if that makes it smaller than it is; the kind, if it does.
    fn code_block(
        &self,
        encoder: &mut BlockEncoder,
        spare: &mut Vec<Vec<u8>>,
        slot: &mut Slot,
        new: &[u8],
        base: Option<Base<'_>>,
    ) -> Result<Option<BlockKind>, PatchError> {
        let PatchOptions { codec, width, dictionary, .. } = *self.options;
        let made = encoder.encode_compared(dictionary, codec, new, base, width);
        // The blocks of a target can be counted.
        let made = made.map_err(|source| PatchError::Codec { index: slot.index as u32, source })?;
        let is_first = matches!(slot.coded, Coded::Same);
        if !is_first && made.wire.len() >= slot.payload_length(new.len()) {
            return Ok(None);
        }
        // Memory that was not there before costs more than to write it.
        slot.coded = Coded::of(made, || spare.pop().unwrap_or_default());
        Ok(Some(made.kind))
    }

    /// Looks for the content of pending blocks elsewhere: in the base, then in the target before them.
    fn search(&mut self, workers: &mut [Worker], slots: &mut [Slot]) -> Result<(), O::Error> {
        let index = match self.index.take() {
            Some(index) => Some(index),
            None => self.index_if_worth(workers, slots)?,
        };
        if let Some(mut index) = index {
            let pending = slots.iter_mut().filter(|slot| slot.pending);
            if self.head.base_size() > 0 {
                parallel::for_each(workers, pending, |worker, slot| self.search_base(&index, worker, slot))?;
            }
            // What a block may use depends on the blocks before it.
            for slot in slots.iter_mut().filter(|slot| slot.pending) {
                self.search_target(&mut index, &mut workers[0], slot)?;
            }
            self.index = Some(index);
        }
        let rest = slots.iter_mut().filter(|slot| slot.found.is_some() || (slot.untried && !slot.is_noise));
        parallel::for_each(workers, rest, |worker, slot| {
            let covered = slot.found.as_ref().map_or(0, Found::covered_bytes);
            self.code_found(worker, slot)?;
            let length = self.block_length(slot);
            let little = length / FOUND_LITTLE_SHARE;
            if slot.untried && !slot.is_noise && covered < little && slot.is_over(little, length) {
                let old = read_range(self.old, self.head.base_range(slot.index), &mut worker.old)?;
                let new = read_range(self.new, self.head.target_range(slot.index), &mut worker.new)?;
                self.code_block(&mut worker.blocks, &mut worker.spare, slot, new, Some(old.into()))?;
            }
            Ok::<(), O::Error>(())
        })
    }

    /// The index of the base and of what of the target was left out so far, if it is worth its time. If not, pending
    /// blocks are looked for near their place.
    fn index_if_worth(
        &mut self,
        workers: &mut [Worker],
        slots: &mut [Slot],
    ) -> Result<Option<Index>, O::Error> {
        if self.head.base_size().saturating_add(self.head.target_size()) <= INDEXED_AT_ONCE_BYTES {
            return self.index_base(workers).map(Some);
        }
        let to_index =
            self.head.base_size() + self.left_out.len() as u64 * u64::from(self.head.block_bytes());
        let payload_bytes = |slots: &[Slot]| -> u64 {
            let pending = slots.iter().filter(|slot| slot.pending);
            pending.map(|slot| slot.payload_length(self.block_length(slot)) as u64).sum()
        };
        if !scout::is_worth(payload_bytes(slots) / NEAR_SAVES, to_index) {
            let pending = slots.iter_mut().filter(|slot| slot.pending && !slot.is_noise);
            parallel::for_each(workers, pending, |worker, slot| self.search_near(worker, slot))?;
        }
        let left = self.unscouted_bytes + payload_bytes(slots);
        let pending = slots.iter().filter(|slot| slot.pending);
        if self.scout.is_none() && !scout::is_worth(left, to_index) {
            self.unscouted_bytes = left;
            self.left_out.extend(pending.map(|slot| slot.index));
            return Ok(None);
        }
        let buffer = &mut workers[0].old;
        let mut scout = match self.scout.take() {
            Some(scout) => scout,
            None => {
                let mut scout = Scout::new(self.head.base_size(), self.head.target_size());
                scout.remember(Origin::Base, self.old, 0..self.head.base_size(), buffer)?;
                scout
            }
        };
        let left_out = self.left_out.len();
        for slot in pending {
            let range = self.head.target_range(slot.index);
            let length = self.block_length(slot);
            scout.ask(self.new, range.clone(), slot.payload_length(length), buffer)?;
            scout.remember(Origin::Target, self.new, range, buffer)?;
            self.left_out.push(slot.index);
        }
        if !scout.finds_worth(to_index) {
            self.scout = Some(scout);
            return Ok(None);
        }
        let mut index = self.index_base(workers)?;
        for block in self.left_out.drain(..).take(left_out) {
            let range = self.head.target_range(block);
            index.add(Origin::Target, range.start, read_range(self.new, range, &mut workers[0].new)?);
            self.target_indexed = true;
        }
        Ok(Some(index))
    }

    fn block_length(&self, slot: &Slot) -> usize {
        // The blocks of a target can be counted.
        self.head.block_length(slot.index as u32)
    }

    /// Looks for a block in the base around its place.
    fn search_near(&self, worker: &mut Worker, slot: &mut Slot) -> Result<(), O::Error> {
        let range = self.head.target_range(slot.index);
        let reach = u64::from(self.head.block_bytes());
        let start = range.start.saturating_sub(reach);
        let end = range.end.saturating_add(reach).min(self.head.base_size());
        if start >= end {
            return Ok(());
        }
        let around = read_range(self.old, start..end, &mut worker.old)?;
        let length = self.block_length(slot);
        let new_index = |expected| Index::for_part(self.head.base_size(), self.head.target_size(), expected);
        // Most of what is new is not near its place either: that is found out with a little of what is there.
        let mut few = new_index(around.len() as u64 / NEAR_SAMPLE_SHARE);
        for (at, span) in (start..).step_by(NEAR_SPAN_BYTES).zip(around.chunks(NEAR_SPAN_BYTES)) {
            few.add(Origin::Base, at, &span[..span.len().min(NEAR_SPAN_BYTES / NEAR_SAMPLE_SHARE as usize)]);
        }
        if self.has_moved(&few, worker, slot)? {
            let mut index = new_index(end - start);
            index.add(Origin::Base, start, read_range(self.old, start..end, &mut worker.old)?);
            self.search_base(&index, worker, slot)?;
            self.code_found(worker, slot)?;
        }
        slot.pending = slot.is_over(length / MISSING_IN_BASE_SHARE, length);
        Ok(())
    }

    /// Whether an index has enough of a block that is not at its place in the base.
    fn has_moved(&self, index: &Index, worker: &mut Worker, slot: &Slot) -> Result<bool, O::Error> {
        let start = self.find_in_base(index, worker, slot)?;
        let pieces = worker.found.pieces().iter();
        let moved = pieces.filter(|piece| piece.segment.offset != start + u64::from(piece.at));
        let moved: u64 = moved.map(|piece| u64::from(piece.segment.length)).sum();
        Ok(moved * MOVED_SHARE > self.block_length(slot) as u64)
    }

    /// Finds the parts of a block that an index of the base has; gives where the block starts.
    fn find_in_base(&self, index: &Index, worker: &mut Worker, slot: &Slot) -> Result<u64, O::Error> {
        let range = self.head.target_range(slot.index);
        let new = read_range(self.new, range.clone(), &mut worker.new)?;
        let (usable, buffer) = (Usable::Nothing, &mut worker.gathered);
        let origins = &mut Between { base: self.old, target: self.new, usable, buffer };
        let number = slot.index as u32;
        index.find(range.start, new, origins, &mut worker.found).map_err(|error| error.of_block(number))?;
        Ok(range.start)
    }

    /// Codes a block by what was found, if that makes it smaller than it is.
    fn code_found(&self, worker: &mut Worker, slot: &mut Slot) -> Result<(), O::Error> {
        let Some(found) = slot.found.take() else { return Ok(()) };
        let new = read_range(self.new, self.head.target_range(slot.index), &mut worker.new)?;
        let (usable, buffer) = (Usable::Except(self.head.block_bytes(), &self.nested), &mut worker.gathered);
        let origins = &mut Between { base: self.old, target: self.new, usable, buffer };
        self.code_segments(&mut worker.segments, slot, new, &found, origins)
    }

    fn index_base(&self, workers: &mut [Worker]) -> Result<Index, O::Error> {
        let mut index = Index::new(self.head.base_size(), self.head.target_size());
        let blocks = self.head.base_size().div_ceil(self.head.block_bytes().into());
        let step = u64::from(WINDOW_BYTES / self.head.block_bytes());
        let mut samples = vec![Vec::new(); step.min(blocks) as usize];
        for start in (0..blocks).step_by(step as usize) {
            let jobs = (start..blocks).zip(&mut samples);
            parallel::for_each(workers, jobs, |worker, (block, samples)| {
                let bytes = read_range(self.old, self.head.base_range(block), &mut worker.old)?;
                index.sample(bytes, samples);
                Ok::<(), O::Error>(())
            })?;
            // Of equal content the order says which places are kept.
            for (block, samples) in (start..blocks).zip(&samples) {
                let range = self.head.base_range(block);
                index.add_samples(Origin::Base, range.start, (range.end - range.start) as usize, samples);
            }
        }
        Ok(index)
    }

    fn search_base(&self, index: &Index, worker: &mut Worker, slot: &mut Slot) -> Result<(), O::Error> {
        self.find_in_base(index, worker, slot)?;
        let length = self.block_length(slot);
        let missing = length - worker.found.covered_bytes();
        // Compression halves it at least, if it is worth looking for.
        let left = slot.payload_length(length).min(missing / 2);
        slot.pending = left > length / MISSING_IN_BASE_SHARE;
        if worker.found.covered_bytes() > 0 {
            slot.found = Some(std::mem::take(&mut worker.found));
        }
        Ok(())
    }

    /// Decides what a block is made of if parts of the target help, and lets later blocks use it if they do not.
    fn search_target(
        &mut self,
        index: &mut Index,
        worker: &mut Worker,
        slot: &mut Slot,
    ) -> Result<(), O::Error> {
        let range = self.head.target_range(slot.index);
        let new = read_range(self.new, range.clone(), &mut worker.new)?;
        let usable = Usable::Except(self.head.block_bytes(), &self.nested);
        let origins = &mut Between { base: self.old, target: self.new, usable, buffer: &mut worker.gathered };
        let number = slot.index as u32;
        if !self.target_indexed {
            self.target_indexed = true;
            index.add(Origin::Target, range.start, new);
            return Ok(());
        }
        index.find(range.start, new, origins, &mut worker.found).map_err(|error| error.of_block(number))?;
        let share = worker.found.target_bytes();
        if share >= new.len() / LEAST_TARGET_SHARE && share > 0 {
            slot.found = Some(std::mem::take(&mut worker.found));
            self.nested.insert(number);
        } else {
            index.add(Origin::Target, range.start, new);
        }
        Ok(())
    }

    /// Codes a block by segments if that makes it smaller than it is.
    fn code_segments(
        &self,
        coder: &mut SegmentCoder,
        slot: &mut Slot,
        new: &[u8],
        found: &Found,
        origins: &mut Between<'_, O, N>,
    ) -> Result<(), O::Error> {
        let level = match self.options.codec {
            Codec::Zstd { level } => level,
            Codec::None | Codec::Lz4 | Codec::Lz4Fast { .. } => 1,
        };
        let limit = slot.payload_length(new.len());
        let offset = self.head.target_range(slot.index).start;
        let made = coder.encode(level, offset, new, found, limit, origins);
        if let Some((kind, payload)) = made.map_err(|error| error.of_block(slot.index as u32))? {
            let segments: Vec<_> = found.pieces().iter().map(|piece| piece.segment).collect();
            // No reader takes it otherwise.
            if used_blocks(&segments, self.head.block_bytes()).len() > payload.len() {
                return Ok(());
            }
            let kind = match kind {
                SegmentKind::Copy => EntryKind::Copy,
                SegmentKind::Splice => EntryKind::Splice,
            };
            slot.coded = Coded::Payload(kind, CodecId::None, payload.to_vec());
        }
        Ok(())
    }

    fn write<F>(&self, slot: Slot, workers: &mut [Worker], writer: &mut Writer<F>) -> Result<(), O::Error>
    where
        F: FnMut(Part<'_>) -> Result<(), O::Error>,
    {
        if let Some(leaf) = slot.base_leaf {
            writer.push_base(leaf);
        }
        let Some(digest) = slot.digest else { return Ok(()) };
        match slot.coded {
            Coded::Same => {
                writer.push_same(digest);
                Ok(())
            }
            Coded::Raw => {
                let range = self.head.target_range(slot.index);
                let part = Part::Target(range.start, read_range(self.new, range, &mut workers[0].new)?);
                writer.push_block(EntryKind::Block(BlockKind::Plain), CodecId::None, digest, part)
            }
            Coded::Payload(kind, codec, payload) => {
                writer.push_block(kind, codec, digest, Part::Made(&payload))?;
                let worker = slot.index as usize % workers.len();
                // Not every payload was made in memory from here, so that it would become more and more.
                if workers[worker].spare.len() < MOST_SPARE {
                    workers[worker].spare.push(payload);
                }
                Ok(())
            }
        }
    }
}

/// Whether a block of `length` bytes that was told by `kind` is to be looked for elsewhere; `elsewhere` is the share of it
/// that seems to have nothing to do with the base at its place.
pub(super) fn may_be_elsewhere(
    kind: BlockKind,
    payload_bytes: usize,
    length: usize,
    elsewhere: usize,
    width: Option<u8>,
) -> bool {
    let share = match kind {
        BlockKind::Plain | BlockKind::Planes => UNUSED_BASE_SHARE,
        BlockKind::Runs => NEW_RUNS_SHARE,
        // Elements that are given do not shift.
        BlockKind::Sparse | BlockKind::Difference if width.is_none() && elsewhere > 0 => NEW_RUNS_SHARE,
        _ => return false,
    };
    payload_bytes > length / share
}
