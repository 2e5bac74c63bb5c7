//! What is in a patch: everything but the payloads, checked.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::error::PatchError;
use super::format::{
    Check, DICTIONARY_BYTES, ENTRY_BYTES, Entry, EntryKind, HEAD_BYTES, KIND_TAIL, MAGIC, PatchHead,
    SAME_BYTES, TAIL_BYTES, Tail,
};
use super::parallel;
use super::source::{Source, read_range};
use crate::codec::CodecId;
use crate::dictionary::Dictionary;
use crate::digest::{self, Digest, TreeHasher};
use crate::error::CodecError;
use crate::matcher::{Origin, Segment};
use crate::segments::{Bounds, SegmentCoder, SegmentKind};

/// How many patches have what: the number of blocks of every kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockCounts {
    /// Blocks that are as in the base.
    pub same: u64,
    /// Blocks told in full.
    pub plain: u64,
    /// Blocks of one repeated byte.
    pub fill: u64,
    /// Blocks told in full, by byte planes.
    pub planes: u64,
    /// Blocks told by the byte planes of their difference to the base.
    pub difference: u64,
    /// Blocks told by the elements that changed.
    pub sparse: u64,
    /// Blocks told by the runs of bytes that changed.
    pub runs: u64,
    /// Blocks made of parts of base and target.
    pub copy: u64,
    /// Blocks made of parts of base and target and of fresh bytes.
    pub splice: u64,
}

/// What is in a patch, checked: the entries tell of each block of the target exactly once, every payload lies within
/// the patch and is plausible for its block, and the check is right. Dereferences to its [`PatchHead`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    head: PatchHead,
    entries: Vec<Entry>,
    /// Entries, by number, whose blocks are made of parts of the target.
    nested: Vec<u32>,
    /// Blocks that others are made of, in order.
    used: Vec<u32>,
    base_digest: Digest,
    target_digest: Digest,
    range: Range<u64>,
    /// The one that blocks are made with, once it is there.
    dictionary: Option<Arc<Dictionary>>,
}

impl Deref for Contents {
    type Target = PatchHead;

    fn deref(&self) -> &PatchHead {
        &self.head
    }
}

impl Contents {
    /// Reads what is in the patch that begins at byte `at` of `source`.
    ///
    /// The memory taken is proportional to the length of the patch that is there.
    ///
    /// # Errors
    ///
    /// Every [`PatchError`] that names a field of a patch, [`PatchError::OutOfMemory`], and those of the source.
    pub fn scan<S: Source + ?Sized>(source: &S, at: u64) -> Result<Contents, S::Error> {
        let (start, mut at, size) = (at, at, source.size());
        let mut buffer = Vec::new();
        let mut check = Check::new();
        let bytes = array::<HEAD_BYTES, S>(source, at, &mut buffer)?;
        let (mut head, names_dictionary) = PatchHead::read(&bytes, at)?;
        check.update(&bytes);
        at += HEAD_BYTES as u64;
        if names_dictionary {
            let name = array::<DICTIONARY_BYTES, S>(source, at, &mut buffer)?;
            check.update(&name);
            at += DICTIONARY_BYTES as u64;
            head = head.naming(Digest(name));
        }
        let mut entries = Vec::new();
        let mut uses = Uses::default();
        let mut told = 0;
        loop {
            // No more than fits an entry, which is less than a tail.
            let most = (ENTRY_BYTES as u64).min(size.saturating_sub(at)) as usize;
            let bytes = source.read(at, most, &mut buffer)?;
            if bytes.first() == Some(&KIND_TAIL) {
                break;
            }
            // Every entry takes up bytes of the patch: their number fits for every patch below 32 GiB.
            let number = u32::try_from(entries.len())
                .map_err(|_| PatchError::EntryCount { count: u32::MAX, entries: u32::MAX })?;
            let entry = Entry::read(&head, number, told, bytes, at)?;
            let fields = if entry.digest.is_some() { ENTRY_BYTES } else { SAME_BYTES };
            check.update(&bytes[..fields]);
            at = entry.offset + u64::from(entry.length);
            if at > size {
                return Err(PatchError::Truncated { length: size, at: entry.offset, needed: at }.into());
            }
            if let Some(kind) = segment_kind(entry.kind) {
                let payload = source.read(entry.offset, entry.length as usize, &mut buffer)?;
                uses.add(&head, number, &entry, kind, payload)?;
            }
            told += entry.blocks;
            entries.try_reserve(1).map_err(|_| out_of_memory::<Entry>(entries.len() + 1))?;
            entries.push(entry);
        }
        let tail = Tail::read(&array::<TAIL_BYTES, S>(source, at, &mut buffer)?, at, check)?;
        let (found, count) = (entries.len() as u32, head.block_count());
        if tail.entries != found {
            return Err(PatchError::EntryCount { count: tail.entries, entries: found }.into());
        }
        if told != count {
            return Err(PatchError::MissingBlocks { told, count }.into());
        }
        let (base_digest, target_digest) = (tail.base_digest, tail.target_digest);
        let range = start..at + TAIL_BYTES as u64;
        let mut contents = Contents {
            head,
            entries,
            nested: uses.entries,
            used: uses.blocks,
            base_digest,
            target_digest,
            range,
            dictionary: None,
        };
        contents.used.sort_unstable();
        contents.used.dedup();
        contents.refuse_nesting()?;
        Ok(contents)
    }

    /// Refuses blocks made of blocks that are themselves made of parts of the target.
    fn refuse_nesting(&self) -> Result<(), PatchError> {
        let nested = self.nested.iter().map(|number| self.entries[*number as usize].first);
        for used in nested {
            if self.used.binary_search(&used).is_ok() {
                return Err(PatchError::NestedSegment { used });
            }
        }
        Ok(())
    }

    /// The dictionary that some block is made with.
    #[must_use]
    pub fn needed_dictionary(&self) -> Option<Digest> {
        let is_needed = self.entries.iter().any(|entry| entry.codec == CodecId::ZstdDictionary);
        self.head.dictionary().filter(|_| is_needed)
    }

    /// The same, for decoding with `dictionary`, if there is one and a block is made with it.
    ///
    /// # Errors
    ///
    /// [`PatchError::DictionaryMissing`] or [`PatchError::DictionaryMismatch`] if another is needed.
    pub fn with_dictionary(self, dictionary: Option<&Arc<Dictionary>>) -> Result<Contents, PatchError> {
        match (self.needed_dictionary(), dictionary) {
            (None, _) => Ok(self),
            (Some(needed), None) => Err(PatchError::DictionaryMissing { needed }),
            (Some(needed), Some(given)) if given.digest() != needed => {
                Err(PatchError::DictionaryMismatch { needed, given: given.digest() })
            }
            (Some(_), Some(given)) => Ok(Contents { dictionary: Some(Arc::clone(given)), ..self }),
        }
    }

    /// The dictionary for a block that is made with it.
    pub(super) fn dictionary(&self) -> Result<&Dictionary, PatchError> {
        let needed = self.head.dictionary().unwrap_or(Digest([0; 16]));
        self.dictionary.as_deref().ok_or(PatchError::DictionaryMissing { needed })
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &PatchHead {
        &self.head
    }

    /// The entries, in the order of their blocks.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Tree digest of the base, in blocks of [`PatchHead::block_bytes`].
    #[must_use]
    pub fn base_digest(&self) -> Digest {
        self.base_digest
    }

    /// Tree digest of the target, in blocks of [`PatchHead::block_bytes`].
    #[must_use]
    pub fn target_digest(&self) -> Digest {
        self.target_digest
    }

    /// Where the patch is in what holds it.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// How many blocks there are of every kind.
    #[must_use]
    pub fn counts(&self) -> BlockCounts {
        use crate::block::BlockKind;
        let mut counts = BlockCounts::default();
        for entry in &self.entries {
            let count = match entry.kind {
                EntryKind::Same => &mut counts.same,
                EntryKind::Copy => &mut counts.copy,
                EntryKind::Splice => &mut counts.splice,
                EntryKind::Block(BlockKind::Plain) => &mut counts.plain,
                EntryKind::Block(BlockKind::Fill) => &mut counts.fill,
                EntryKind::Block(BlockKind::Planes) => &mut counts.planes,
                EntryKind::Block(BlockKind::Difference) => &mut counts.difference,
                EntryKind::Block(BlockKind::Sparse) => &mut counts.sparse,
                EntryKind::Block(BlockKind::Runs) => &mut counts.runs,
            };
            *count += u64::from(entry.blocks);
        }
        counts
    }

    /// The entry that tells of block `index`.
    ///
    /// # Errors
    ///
    /// [`PatchError::NoSuchBlock`].
    pub fn entry_of(&self, index: u32) -> Result<&Entry, PatchError> {
        let after = self.entries.partition_point(|entry| entry.first <= index);
        match after.checked_sub(1) {
            Some(number) if index < self.block_count() => Ok(&self.entries[number]),
            _ => Err(PatchError::NoSuchBlock { index, count: self.block_count() }),
        }
    }

    /// Every block of the target with its entry.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, &Entry)> + Send {
        self.entries.iter().flat_map(|entry| (0..entry.blocks).map(move |i| (entry.first + i, entry)))
    }

    /// The entries of blocks that are not as in the base and not made of other blocks, which can be decoded in any
    /// order.
    pub fn independent(&self) -> impl Iterator<Item = &Entry> + Send {
        let mut nested = self.nested.iter().peekable();
        self.entries.iter().zip(0..).filter_map(move |(entry, number)| {
            let skip = nested.next_if(|next| **next == number).is_some();
            (!skip && entry.kind != EntryKind::Same).then_some(entry)
        })
    }

    /// The entries of blocks that are made of other blocks, all of which are as in the base or
    /// [`Contents::independent`].
    pub fn dependent(&self) -> impl Iterator<Item = &Entry> + Send {
        self.nested.iter().map(|number| &self.entries[*number as usize])
    }

    /// Whether other blocks are made of block `index`.
    #[must_use]
    pub fn is_used(&self, index: u32) -> bool {
        self.used.binary_search(&index).is_ok()
    }

    /// Refuses a base of another size.
    ///
    /// # Errors
    ///
    /// [`PatchError::BaseSize`].
    pub fn expect_base_size(&self, actual: u64) -> Result<(), PatchError> {
        let expected = self.base_size();
        if actual == expected { Ok(()) } else { Err(PatchError::BaseSize { expected, actual }) }
    }

    /// Proves that `base` is the one the patch was made for, and gives the digests of its blocks.
    ///
    /// Threads beside this one are started if `threads` is more than 1.
    ///
    /// # Errors
    ///
    /// [`PatchError::BaseSize`], those of [`Contents::prove`] and those of `base`.
    pub fn verify_base<B: Source + ?Sized>(&self, base: &B, threads: usize) -> Result<Vec<Digest>, B::Error> {
        self.verify_base_with(base, threads, |_, _| Ok(()))
    }

    /// [`Contents::verify_base`], which shows every block to `visit` while it is at hand, in no order: its number and
    /// its bytes. What is done with them has to be undone if the base turns out to be another.
    ///
    /// # Errors
    ///
    /// Those of [`Contents::verify_base`] and of `visit`.
    pub fn verify_base_with<B: Source + ?Sized>(
        &self,
        base: &B,
        threads: usize,
        visit: impl Fn(u64, &[u8]) -> Result<(), B::Error> + Sync,
    ) -> Result<Vec<Digest>, B::Error> {
        self.expect_base_size(base.size())?;
        let mut leaves = vec![Digest([0; 16]); self.base_blocks()];
        let jobs = (0..).zip(&mut leaves);
        parallel::for_each(&mut parallel::states(threads), jobs, |buffer, (index, leaf)| {
            let block = read_range(base, self.base_range(index), buffer)?;
            *leaf = Digest::of(block);
            visit(index, block)
        })?;
        self.prove(&leaves, self.shortened_digest(base)?)?;
        Ok(leaves)
    }

    /// Whether `object` is what the patch makes: then there is nothing to be done.
    ///
    /// Threads beside this one are started if `threads` is more than 1.
    ///
    /// # Errors
    ///
    /// Those of `object`.
    pub fn is_target<B: Source + ?Sized>(&self, object: &B, threads: usize) -> Result<bool, B::Error> {
        if object.size() != self.target_size() {
            return Ok(false);
        }
        let mut leaves = vec![Digest([0; 16]); self.block_count() as usize];
        let jobs = (0..).zip(&mut leaves);
        parallel::for_each(&mut parallel::states(threads), jobs, |buffer, (index, leaf)| {
            *leaf = Digest::of(read_range(object, self.target_range(index), buffer)?);
            Ok::<(), B::Error>(())
        })?;
        Ok(digest::tree(self.target_size(), self.block_bytes(), &leaves) == self.target_digest)
    }

    pub(super) fn base_blocks(&self) -> usize {
        // The base was found to have this size, and its digests fit wherever it does.
        self.base_size().div_ceil(self.block_bytes().into()) as usize
    }

    /// The digest of the last block, if it is as in the base but shorter there.
    pub(super) fn shortened_digest<B: Source + ?Sized>(&self, base: &B) -> Result<Option<Digest>, B::Error> {
        let Some(index) = self.shortened_same() else { return Ok(None) };
        Ok(Some(Digest::of(read_range(base, self.target_range(index.into()), &mut Vec::new())?)))
    }

    /// Refuses a base whose blocks have other digests, and a patch whose digests do not make its target.
    ///
    /// `leaves` are the digests of all blocks of the base. `shorter` is that of the last block of the target if it is
    /// as in the base, where the block is longer.
    ///
    /// # Errors
    ///
    /// [`PatchError::BaseMismatch`] or [`PatchError::TargetDigest`].
    pub fn prove(&self, leaves: &[Digest], shorter: Option<Digest>) -> Result<(), PatchError> {
        let actual = digest::tree(self.base_size(), self.block_bytes(), leaves);
        let expected = self.base_digest;
        if expected != actual {
            return Err(PatchError::BaseMismatch { expected, actual });
        }
        let mut tree = TreeHasher::new(self.target_size(), self.block_bytes());
        self.target_leaves(leaves, shorter).for_each(|leaf| tree.push(leaf));
        let (expected, actual) = (self.target_digest, tree.finish());
        if expected != actual {
            return Err(PatchError::TargetDigest { expected, actual });
        }
        Ok(())
    }

    /// The digests of the blocks of the target, in order; arguments as for [`Contents::prove`].
    pub fn target_leaves(&self, leaves: &[Digest], shorter: Option<Digest>) -> impl Iterator<Item = Digest> {
        let shortened = self.shortened_same();
        self.blocks().filter_map(move |(index, entry)| match (entry.digest, shorter) {
            (Some(digest), _) => Some(digest),
            (None, Some(digest)) if shortened == Some(index) => Some(digest),
            // A block that is as in the base was refused unless it lies within.
            (None, _) => leaves.get(index as usize).copied(),
        })
    }

    /// The last block of the target, if it is as in the base but the base's block is longer.
    #[must_use]
    pub fn shortened_same(&self) -> Option<u32> {
        let entry = self.entries.last().filter(|entry| entry.kind == EntryKind::Same)?;
        let last = entry.first + (entry.blocks - 1);
        (self.base_range(last.into()) != self.target_range(last.into())).then_some(last)
    }
}

/// What blocks made of parts of the target are made of.
#[derive(Default)]
struct Uses {
    coder: SegmentCoder,
    entries: Vec<u32>,
    blocks: Vec<u32>,
}

impl Uses {
    fn add(
        &mut self,
        head: &PatchHead,
        number: u32,
        entry: &Entry,
        kind: SegmentKind,
        payload: &[u8],
    ) -> Result<(), PatchError> {
        let segments = segments_of(&mut self.coder, head, entry, kind, payload)?;
        let used = used_blocks(&segments, head.block_bytes());
        // Lists are compressed: without this, memory would grow with what they say.
        let (value, limit) = (used.len() as u64, u64::from(entry.length));
        if value > limit {
            let source = CodecError::SegmentField { field: "number of blocks it is made of", value, limit };
            return Err(PatchError::Codec { index: entry.first, source });
        }
        if !used.is_empty() {
            self.blocks.try_reserve(used.len()).map_err(|_| out_of_memory::<u32>(used.len()))?;
            self.blocks.extend(used);
            self.entries.try_reserve(1).map_err(|_| out_of_memory::<u32>(1))?;
            self.entries.push(number);
        }
        Ok(())
    }
}

/// The blocks of the target that segments lie in, in order.
pub(super) fn used_blocks(segments: &[Segment], block_bytes: u32) -> Vec<u32> {
    let block_bytes = u64::from(block_bytes);
    let mut blocks = Vec::new();
    for segment in segments.iter().filter(|segment| segment.origin == Origin::Target) {
        // A segment is not empty, and lies before its block, whose number fits.
        let (first, last) = (segment.offset / block_bytes, (segment.end() - 1) / block_bytes);
        blocks.extend(first as u32..=last as u32);
    }
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// The segments at the start of the payload of an entry.
pub(super) fn segments_of(
    coder: &mut SegmentCoder,
    head: &PatchHead,
    entry: &Entry,
    kind: SegmentKind,
    payload: &[u8],
) -> Result<Vec<Segment>, PatchError> {
    let offset = head.target_range(entry.first.into()).start;
    let block_bytes = head.block_length(entry.first);
    let bounds = Bounds { base_size: head.base_size(), block_offset: offset, block_bytes };
    coder.parse(kind, payload, bounds).map_err(|source| PatchError::Codec { index: entry.first, source })
}

/// How the payload of an entry uses segments, if it does.
pub(super) fn segment_kind(kind: EntryKind) -> Option<SegmentKind> {
    match kind {
        EntryKind::Copy => Some(SegmentKind::Copy),
        EntryKind::Splice => Some(SegmentKind::Splice),
        EntryKind::Same | EntryKind::Block(_) => None,
    }
}

fn out_of_memory<T>(count: usize) -> PatchError {
    PatchError::OutOfMemory { bytes: (count * size_of::<T>()) as u64 }
}

/// `N` bytes at `at`, which must be there.
fn array<const N: usize, S: Source + ?Sized>(
    source: &S,
    at: u64,
    buffer: &mut Vec<u8>,
) -> Result<[u8; N], S::Error> {
    let (length, needed) = (source.size(), at.saturating_add(N as u64));
    let truncated = PatchError::Truncated { length, at, needed };
    if needed > length {
        // A source that is no patch at all is better named than one cut short.
        let most = length.saturating_sub(at).min(4) as usize;
        if let Some(found) = source.read(at, most, buffer)?.first_chunk()
            && N == HEAD_BYTES
            && *found != MAGIC
        {
            return Err(PatchError::BadMagic { found: *found }.into());
        }
        return Err(truncated.into());
    }
    source.read(at, N, buffer)?.first_chunk().copied().ok_or_else(|| truncated.into())
}
