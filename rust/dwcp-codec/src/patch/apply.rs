//! Applying patches to objects in memory.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::compare::hash_and_copy;
use super::contents::{Contents, segment_kind, segments_of};
use super::decode::{EntryDecoder, expect_digest, expect_length};
use super::error::PatchError;
use super::format::{Entry, EntryKind};
use super::parallel::{self, Failure, Kept};
use super::parts::append;
use super::source::{Source, read_range, slice};
use crate::dictionary::Dictionary;
use crate::digest::Digest;
use crate::matcher::Origin;
use crate::raw;
use crate::segments::SegmentCoder;

/// A patch in memory, checked. Dereferences to its [`Contents`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch<'a> {
    contents: Contents,
    bytes: &'a [u8],
}

impl Deref for Patch<'_> {
    type Target = Contents;

    fn deref(&self) -> &Contents {
        &self.contents
    }
}

impl<'a> Patch<'a> {
    /// Reads a patch that is all of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`Contents::scan`], or [`PatchError::TrailingBytes`].
    pub fn parse(bytes: &'a [u8]) -> Result<Patch<'a>, PatchError> {
        let (patch, rest) = Patch::parse_next(bytes)?;
        if rest.is_empty() {
            return Ok(patch);
        }
        let length = bytes.len() as u64;
        Err(PatchError::TrailingBytes { length, expected: patch.contents.range().end })
    }

    /// Reads the first patch of a chain and gives the bytes behind it.
    ///
    /// # Errors
    ///
    /// As [`Contents::scan`].
    pub fn parse_next(bytes: &'a [u8]) -> Result<(Patch<'a>, &'a [u8]), PatchError> {
        let contents = Contents::scan(bytes, 0)?;
        // The patch was found to end within the bytes.
        let (bytes, rest) = bytes.split_at(contents.range().end as usize);
        Ok((Patch { contents, bytes }, rest))
    }

    /// The same, for decoding with `dictionary`, if there is one and a block is made with it.
    ///
    /// # Errors
    ///
    /// As [`Contents::with_dictionary`].
    pub fn with_dictionary(self, dictionary: Option<&Arc<Dictionary>>) -> Result<Patch<'a>, PatchError> {
        Ok(Patch { contents: self.contents.with_dictionary(dictionary)?, bytes: self.bytes })
    }

    /// Writes the target to `dst`, proves that `old` is the base, and proves what it writes.
    ///
    /// Every block of the base is read once: it is hashed, and what the target has of it is made of it, while it is at
    /// hand. On an error the contents of `dst` are unspecified. Threads beside this one are started if `threads` is
    /// more than 1.
    ///
    /// # Errors
    ///
    /// Those of [`Contents::verify_base`] before all others, [`PatchError::Length`] if `dst` has not the target's size,
    /// [`PatchError::Codec`], [`PatchError::BlockMismatch`], and those of `old`.
    pub fn apply<B: Source + ?Sized>(&self, old: &B, dst: &mut [u8], threads: usize) -> Result<(), B::Error> {
        expect_length("target buffer", self.target_size(), dst.len())?;
        self.expect_base_size(old.size())?;
        let places = dst.chunks_mut(self.block_bytes() as usize).map(Place::Written);
        self.fill_and_prove(old, places, threads)?;
        self.decode_dependent(old, dst, &mut parallel::states(threads))
    }

    /// [`Patch::apply`] to memory that was not written before; if there is no error, all of it was.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply`].
    pub fn apply_to_new<B: Source + ?Sized>(
        &self,
        old: &B,
        dst: &mut [MaybeUninit<u8>],
        threads: usize,
    ) -> Result<(), B::Error> {
        if self.dependent().next().is_some() {
            // Blocks are read back while others are not written yet.
            return self.apply(old, raw::zeroed(dst), threads);
        }
        expect_length("target buffer", self.target_size(), dst.len())?;
        self.expect_base_size(old.size())?;
        let places = dst.chunks_mut(self.block_bytes() as usize).map(Place::New);
        self.fill_and_prove(old, places, threads)
    }

    /// Fills the places of all blocks but those that are made of others, and proves the base on the way.
    fn fill_and_prove<'d, B: Source + ?Sized>(
        &self,
        old: &B,
        places: impl Iterator<Item = Place<'d>> + Send,
        threads: usize,
    ) -> Result<(), B::Error> {
        let mut leaves = vec![Digest([0; 16]); self.base_blocks()];
        let count = leaves.len().max(self.block_count() as usize) as u64;
        let mut dependent = self.dependent().map(|entry| entry.first).peekable();
        let targets = places.zip(self.blocks()).map(|(place, (index, entry))| {
            let is_dependent = dependent.next_if_eq(&index).is_some();
            (!is_dependent).then_some((place, index, entry))
        });
        let hashed = leaves.iter_mut().map(Some).chain(std::iter::repeat_with(|| None));
        let jobs = (0..count).zip(hashed).zip(targets.chain(std::iter::repeat_with(|| None)));
        let failure = Failure::new();
        let mut workers = WORKERS.take(threads);
        parallel::for_each(&mut workers, jobs, |(decoder, buffer), ((number, leaf), target)| {
            let block = read_range(old, self.base_range(number), buffer)?;
            let Some((place, index, entry)) = target else {
                if let Some(leaf) = leaf {
                    *leaf = Digest::of(block);
                }
                return Ok(());
            };
            let (digest, filled) = self.fill(decoder, old, block, place, index, entry);
            if let (Some(leaf), Some(digest)) = (leaf, digest) {
                *leaf = digest;
            }
            failure.keep(index, filled);
            Ok::<(), B::Error>(())
        })?;
        WORKERS.put_back(workers, self.block_bytes());
        // A base that is another is what is to blame for the rest.
        let shorter = self.shortened_digest(old)?;
        self.prove(&leaves, shorter)?;
        failure.into_result()
    }

    /// Fills the place of a block, whose base block is `base`, empty if there is none. Also gives the digest of that.
    fn fill<B: Source + ?Sized>(
        &self,
        decoder: &mut EntryDecoder,
        old: &B,
        base: &[u8],
        mut place: Place<'_>,
        index: u32,
        entry: &Entry,
    ) -> (Option<Digest>, Result<(), B::Error>) {
        let is_made_of_it = match entry.kind {
            EntryKind::Same => true,
            EntryKind::Block(kind) => kind.needs_base(),
            EntryKind::Copy | EntryKind::Splice => false,
        };
        if !is_made_of_it || base.len() < place.length() {
            let leaf = (!base.is_empty()).then(|| Digest::of(base));
            let (patch, target) = (&Slice::new(self.bytes), &Slice::new(&[]));
            return (leaf, decoder.decode(self, entry, patch, old, target, place.bytes()));
        }
        let (leaf, copied) = hash_and_copy(base, place.output());
        let decoded = copied.map_err(|source| PatchError::Codec { index, source }).and_then(|block| {
            if entry.kind == EntryKind::Same {
                return Ok(());
            }
            expect_digest(entry, decoder.decode_onto_and_hash(self.bytes, entry, block)?)
        });
        (Some(leaf), decoded.map_err(B::Error::from))
    }

    /// [`Patch::apply`] for a base that [`Contents::verify_base`] has proven: it is not hashed again.
    ///
    /// # Errors
    ///
    /// As [`Patch::apply`].
    pub fn apply_proven<B: Source + ?Sized>(
        &self,
        old: &B,
        dst: &mut [u8],
        threads: usize,
    ) -> Result<(), B::Error> {
        expect_length("target buffer", self.target_size(), dst.len())?;
        self.expect_base_size(old.size())?;
        let same = dst.chunks_mut(self.block_bytes() as usize).zip(self.blocks());
        let same = same.filter(|(_, (_, entry))| entry.kind == EntryKind::Same);
        parallel::for_each(&mut parallel::states(threads), same, |buffer, (target, (index, _))| {
            let at = self.target_range(index.into()).start;
            target.copy_from_slice(old.read(at, target.len(), buffer)?);
            Ok::<(), B::Error>(())
        })?;
        self.decode_changed(old, dst, threads)
    }

    /// Decodes block `index` of the target alone into `dst`. The caller has proven the base, or lets the digest of the
    /// block be proof enough; a block that is as in the base is copied without.
    ///
    /// # Errors
    ///
    /// [`PatchError::NoSuchBlock`], [`PatchError::BaseSize`], [`PatchError::Length`], [`PatchError::Codec`],
    /// [`PatchError::BlockMismatch`], and those of `old`.
    pub fn decode_block<B: Source + ?Sized>(
        &self,
        decoder: &mut EntryDecoder,
        index: u32,
        old: &B,
        dst: &mut [u8],
    ) -> Result<(), B::Error> {
        self.expect_base_size(old.size())?;
        let entry = self.entry_of(index)?;
        let parts = Parts::decode(self, decoder, entry, old)?;
        self.decode_with(decoder, entry, index, old, &parts, dst)
    }

    fn decode_with<B, T>(
        &self,
        decoder: &mut EntryDecoder,
        entry: &Entry,
        index: u32,
        old: &B,
        target: &T,
        dst: &mut [u8],
    ) -> Result<(), B::Error>
    where
        B: Source + ?Sized,
        T: Source<Error = B::Error> + ?Sized,
    {
        if entry.kind != EntryKind::Same {
            return decoder.decode(self, entry, &Slice::new(self.bytes), old, target, dst);
        }
        expect_length("block buffer", self.block_length(index) as u64, dst.len())?;
        let at = self.target_range(index.into()).start;
        dst.copy_from_slice(old.read(at, dst.len(), &mut Vec::new())?);
        Ok(())
    }

    /// Decodes what is not as in the base, all of which is in `dst` already.
    pub(super) fn decode_changed<B: Source + ?Sized>(
        &self,
        old: &B,
        dst: &mut [u8],
        threads: usize,
    ) -> Result<(), B::Error> {
        let mut decoders = parallel::states::<EntryDecoder>(threads);
        let patch = Slice::new(self.bytes);
        let mut chunks = (0..).zip(dst.chunks_mut(self.block_bytes() as usize));
        let jobs = self.independent().filter_map(|entry| {
            chunks.by_ref().find(|(index, _)| *index == entry.first).map(|(_, block)| (entry, block))
        });
        parallel::for_each(&mut decoders, jobs, |decoder, (entry, block)| {
            decoder.decode(self, entry, &patch, old, &Slice::new(&[]), block)
        })?;
        self.decode_dependent(old, dst, &mut decoders)
    }

    /// Decodes what is made of blocks before its own, which are all in `dst` already.
    fn decode_dependent<B: Source + ?Sized>(
        &self,
        old: &B,
        dst: &mut [u8],
        decoders: &mut [EntryDecoder],
    ) -> Result<(), B::Error> {
        let patch = Slice::new(self.bytes);
        let mut dependent = self.dependent().peekable();
        while dependent.peek().is_some() {
            let mut made: Vec<(&Entry, Vec<u8>)> =
                dependent.by_ref().take(decoders.len()).map(|entry| (entry, Vec::new())).collect();
            let target = Slice::new(dst);
            parallel::for_each(decoders, made.iter_mut(), |decoder, (entry, block)| {
                zeroed(block, self.block_length(entry.first))?;
                decoder.decode(self, entry, &patch, old, &target, block)
            })?;
            for (entry, block) in made {
                let range = self.target_range(entry.first.into());
                // The buffer has the target's size.
                dst[range.start as usize..range.end as usize].copy_from_slice(&block);
            }
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Decoders, and room for blocks of the base.
static WORKERS: Kept<(EntryDecoder, Vec<u8>)> = Kept::new();

/// Where a block of a target is to be written.
enum Place<'d> {
    Written(&'d mut [u8]),
    /// Memory that was not written before.
    New(&'d mut [MaybeUninit<u8>]),
}

impl<'d> Place<'d> {
    fn length(&self) -> usize {
        match self {
            Place::Written(bytes) => bytes.len(),
            Place::New(memory) => memory.len(),
        }
    }

    /// For writers that read nothing of it.
    fn output(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            Place::Written(bytes) => raw::as_output(bytes),
            Place::New(memory) => memory,
        }
    }

    fn bytes(self) -> &'d mut [u8] {
        match self {
            Place::Written(bytes) => bytes,
            Place::New(memory) => raw::zeroed(memory),
        }
    }
}

/// Memory as a source whose errors are those of another.
pub(super) struct Slice<'a, E> {
    bytes: &'a [u8],
    error: PhantomData<fn() -> E>,
}

impl<'a, E> Slice<'a, E> {
    pub(super) fn new(bytes: &'a [u8]) -> Slice<'a, E> {
        Slice { bytes, error: PhantomData }
    }
}

impl<E: From<PatchError> + Send> Source for Slice<'_, E> {
    type Error = E;

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], E> {
        slice(self.bytes, offset, length).map_err(E::from)
    }
}

/// Parts of a target, decoded for a block that is made of them.
struct Parts<E> {
    /// Where each part is in the target, in order, and where it begins in `bytes`.
    ranges: Vec<(Range<u64>, usize)>,
    bytes: Vec<u8>,
    size: u64,
    error: PhantomData<fn() -> E>,
}

impl<E: From<PatchError> + Send> Parts<E> {
    /// Decodes each block that `entry` uses once, and keeps what it uses of it.
    fn decode<B>(patch: &Patch<'_>, decoder: &mut EntryDecoder, entry: &Entry, old: &B) -> Result<Parts<E>, E>
    where
        B: Source<Error = E> + ?Sized,
    {
        let mut parts =
            Parts { ranges: Vec::new(), bytes: Vec::new(), size: patch.target_size(), error: PhantomData };
        let Some(kind) = segment_kind(entry.kind) else { return Ok(parts) };
        let payload = slice(patch.bytes, entry.offset, entry.length as usize)?;
        let mut wanted: Vec<Range<u64>> =
            segments_of(&mut SegmentCoder::new(), patch.head(), entry, kind, payload)?
                .iter()
                .filter(|segment| segment.origin == Origin::Target)
                .map(|segment| segment.offset..segment.end())
                .collect();
        wanted.sort_unstable_by_key(|range| (range.start, range.end));
        wanted.dedup_by(|next, range| {
            let joins = next.start <= range.end;
            range.end = if joins { range.end.max(next.end) } else { range.end };
            joins
        });
        let mut block = Vec::new();
        let mut held = None;
        for range in wanted {
            let start = parts.bytes.len();
            let mut at = range.start;
            while at < range.end {
                // Segments lie before a block of the target, whose number fits.
                let index = (at / u64::from(patch.block_bytes())) as u32;
                if held != Some(index) {
                    zeroed(&mut block, patch.block_length(index))?;
                    // The patch is refused where this block is made of others.
                    patch.decode_with(
                        decoder,
                        patch.entry_of(index)?,
                        index,
                        old,
                        &Slice::new(&[]),
                        &mut block,
                    )?;
                    held = Some(index);
                }
                let here = patch.target_range(index.into());
                let end = range.end.min(here.end);
                append(&mut parts.bytes, &block[(at - here.start) as usize..(end - here.start) as usize])?;
                at = end;
            }
            parts.ranges.push((range, start));
        }
        Ok(parts)
    }
}

impl<E: From<PatchError> + Send> Source for Parts<E> {
    type Error = E;

    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], E> {
        let after = self.ranges.partition_point(|(range, _)| range.start <= offset);
        let part = after.checked_sub(1).map(|number| &self.ranges[number]);
        match part {
            Some((range, start)) if offset + length as u64 <= range.end => {
                Ok(slice(&self.bytes, *start as u64 + (offset - range.start), length)?)
            }
            _ => Err(PatchError::Truncated { length: self.size, at: offset, needed: offset + length as u64 }
                .into()),
        }
    }
}

/// Makes `block` have `length` bytes.
pub(super) fn zeroed(block: &mut Vec<u8>, length: usize) -> Result<(), PatchError> {
    let missing = length.saturating_sub(block.len());
    block.try_reserve_exact(missing).map_err(|_| PatchError::OutOfMemory { bytes: length as u64 })?;
    block.resize(length, 0);
    Ok(())
}
