//! The ordered list of the entries of a transfer.

mod assembly;
mod entry;

use std::cmp::Ordering;

use dwcp_codec::Digest;

pub use crate::id::TransferId;
pub use assembly::ManifestAssembly;
pub(crate) use entry::MIN_ENTRY_BYTES;
pub use entry::{Candidate, Entry, EntryKind};

use crate::error::ProtoError;
use crate::limits::{
    Limits, MAX_BLOCKS, MAX_ENTRIES, MAX_HEAD, MAX_MANIFEST_BYTES, MAX_OBJECT, MIN_BLOCK, WRITTEN_HEAD,
};
use crate::wire::{Reader, Writer};

const ID_DOMAIN: &[u8; 9] = b"dwcp-mani";
const TRANSFER_DOMAIN: &[u8; 9] = b"dwcp-xfer";
/// Bytes of a MANIFEST head before its first entry.
const PART_BYTES: usize = 8;

/// Some entries in a row: the content of one MANIFEST frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPart {
    /// The number of entries told before.
    pub first_entry: u32,
    /// The entries.
    pub entries: Vec<Entry>,
}

impl ManifestPart {
    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.first_entry);
        w.u32(self.entries.len() as u32);
        self.entries.iter().for_each(|entry| entry.encode(w, true));
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<ManifestPart, ProtoError> {
        let first_entry = r.number("first entry", 4, 0..=u64::from(MAX_ENTRIES - 1))? as u32;
        // An entry takes at least MIN_ENTRY_BYTES, so the bytes at hand bound what may be allocated.
        let most = (r.left().saturating_sub(4) / MIN_ENTRY_BYTES).min((MAX_ENTRIES - first_entry) as usize);
        let count = r.number("count", 4, 1..=most as u64)? as u32;
        let mut entries = Vec::with_capacity(count as usize);
        for index in first_entry..first_entry + count {
            entries.push(Entry::decode(index, r)?);
        }
        Ok(ManifestPart { first_entry, entries })
    }

    fn wire_bytes(&self) -> u64 {
        PART_BYTES as u64 + self.entries.iter().map(|entry| entry.wire_bytes() as u64).sum::<u64>()
    }
}

/// A list of entries that keeps every rule of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    block_bytes: u32,
    entries: Vec<Entry>,
    /// For each entry the number of blocks of all entries before it, and at the end that of all.
    starts: Vec<u64>,
    total_bytes: u64,
    transfer_id: TransferId,
    /// The longest head of its parts, which is much longer than any entry.
    longest_part: usize,
}

/// Refuses a block size that is no power of two or outside the limits.
pub(crate) fn check_block_bytes(block_bytes: u32, max_block: u32) -> Result<(), ProtoError> {
    if block_bytes.is_power_of_two() && (MIN_BLOCK..=max_block).contains(&block_bytes) {
        return Ok(());
    }
    Err(ProtoError::Range {
        what: "block size",
        field: "block_bytes (a power of two)",
        value: u64::from(block_bytes),
        low: u64::from(MIN_BLOCK),
        high: u64::from(max_block),
        offset: 16,
    })
}

fn bounded(what: &'static str, value: u64, limit: u64) -> Result<(), ProtoError> {
    if value > limit { Err(ProtoError::Limit { what, value, limit }) } else { Ok(()) }
}

impl Manifest {
    /// Checks the entries against the format and `limits`.
    ///
    /// # Errors
    /// [`ProtoError`], naming the entry: a path, size or other field that is not allowed, the same path twice, an
    /// entry below a file or before its directory, buffers beside files, or more of anything than the limits.
    pub fn new(block_bytes: u32, entries: Vec<Entry>, limits: &Limits) -> Result<Manifest, ProtoError> {
        check_block_bytes(block_bytes, limits.max_block)?;
        if entries.is_empty() {
            let (what, field) = ("manifest", "entry count");
            let high = u64::from(limits.max_entries);
            return Err(ProtoError::Range { what, field, value: 0, low: 1, high, offset: 0 });
        }
        bounded("entry count", entries.len() as u64, u64::from(limits.max_entries.min(MAX_ENTRIES)))?;
        let buffers = entries[0].kind == EntryKind::Buffer;
        let mut starts = Vec::with_capacity(entries.len() + 1);
        let (mut total_bytes, mut blocks) = (0_u64, 0_u64);
        for (index, entry) in (0..).zip(&entries) {
            entry.check(index, limits.max_object)?;
            if (entry.kind == EntryKind::Buffer) != buffers {
                return Err(ProtoError::MixedKinds { entry: index });
            }
            starts.push(blocks);
            // Sizes are below 2^62, so neither sum can wrap before its bound is checked.
            total_bytes += entry.size;
            bounded("total bytes", total_bytes, MAX_OBJECT)?;
            blocks += entry.size.div_ceil(u64::from(block_bytes));
            bounded("block count", blocks, MAX_BLOCKS)?;
        }
        starts.push(blocks);
        check_tree(&entries)?;
        let transfer_id = transfer_id(block_bytes, &entries);
        let longest_part = WRITTEN_HEAD;
        let mut manifest = Manifest { block_bytes, entries, starts, total_bytes, transfer_id, longest_part };
        if manifest.wire_bytes() > MAX_MANIFEST_BYTES {
            // Fewer parts are a little shorter altogether.
            manifest.longest_part = MAX_HEAD;
        }
        bounded("manifest bytes", manifest.wire_bytes(), MAX_MANIFEST_BYTES)?;
        Ok(manifest)
    }

    /// The entries in their order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this index.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    /// The block size.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// How many blocks the object of entry `index` has; 0 without an object.
    #[must_use]
    pub fn blocks_of(&self, index: u32) -> u32 {
        let index = index as usize;
        match self.starts.get(index..index.saturating_add(2)) {
            Some([start, end]) => (end - start) as u32,
            _ => 0,
        }
    }

    /// How many blocks all objects have together.
    #[must_use]
    pub fn total_blocks(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The length of a block; 0 where the object has no such block.
    #[must_use]
    pub fn block_len(&self, index: u32, block: u32) -> u32 {
        let offset = u64::from(block) * u64::from(self.block_bytes);
        let size = self.entry(index).map_or(0, |entry| entry.size);
        size.saturating_sub(offset).min(u64::from(self.block_bytes)) as u32
    }

    /// The number of the block that begins at `offset`; none where no block of the object does.
    #[must_use]
    pub fn block_at(&self, index: u32, offset: u64) -> Option<u32> {
        let block_bytes = u64::from(self.block_bytes);
        let size = self.entry(index)?.size;
        (offset < size && offset.is_multiple_of(block_bytes)).then_some((offset / block_bytes) as u32)
    }

    /// The sum of all sizes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The id that follows from the entries, without their candidates.
    #[must_use]
    pub fn transfer_id(&self) -> TransferId {
        self.transfer_id
    }

    /// The transfer digest for these tree digests, one for each entry.
    #[must_use]
    pub fn transfer_digest(&self, trees: &[Digest]) -> Digest {
        let mut bytes = Vec::with_capacity(25 + 16 * trees.len());
        let mut w = Writer(&mut bytes);
        w.bytes(TRANSFER_DOMAIN);
        w.bytes(&self.transfer_id.0);
        w.digests(trees);
        Digest::of(&bytes)
    }

    /// The entries cut into MANIFEST frames.
    pub fn parts(&self) -> impl Iterator<Item = ManifestPart> + '_ {
        self.part_ranges().map(|(range, _)| ManifestPart {
            first_entry: range.start as u32,
            entries: self.entries[range].to_vec(),
        })
    }

    /// The part that begins at entry `first`; none at the end.
    pub(crate) fn part_at(&self, first: u32) -> Option<ManifestPart> {
        let (range, _) = self.part_range(first as usize)?;
        Some(ManifestPart { first_entry: first, entries: self.entries[range].to_vec() })
    }

    fn part_range(&self, first: usize) -> Option<(std::ops::Range<usize>, usize)> {
        let mut bytes = PART_BYTES;
        let mut end = first;
        for entry in self.entries.get(first..)? {
            let longer = bytes + entry.wire_bytes();
            if longer > self.longest_part {
                break;
            }
            (bytes, end) = (longer, end + 1);
        }
        (end > first).then_some((first..end, bytes))
    }

    fn part_ranges(&self) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + '_ {
        let mut first = 0;
        std::iter::from_fn(move || {
            let part = self.part_range(first)?;
            first = part.0.end;
            Some(part)
        })
    }

    fn wire_bytes(&self) -> u64 {
        self.part_ranges().map(|(_, bytes)| bytes as u64).sum()
    }

    /// The number of the first block of an entry among the blocks of all.
    pub(crate) fn start_of(&self, index: u32) -> u64 {
        self.starts[index as usize]
    }

    /// The entry and block that a number among the blocks of all stands for.
    pub(crate) fn locate(&self, number: u64) -> (u32, u32) {
        // Entries without blocks share their start with the next one, which comes later.
        let index = self.starts.partition_point(|start| *start <= number) - 1;
        (index as u32, (number - self.starts[index]) as u32)
    }
}

fn transfer_id(block_bytes: u32, entries: &[Entry]) -> TransferId {
    let mut bytes = Vec::new();
    let mut w = Writer(&mut bytes);
    w.bytes(ID_DOMAIN);
    w.u32(block_bytes);
    w.u32(entries.len() as u32);
    entries.iter().for_each(|entry| entry.encode(&mut w, false));
    TransferId(Digest::of(&bytes).0)
}

/// Orders paths so that everything below a directory follows it at once: the slash sorts before all other bytes.
fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    match a.iter().zip(b).find(|(x, y)| x != y) {
        Some((x, y)) => rank(x).cmp(&rank(y)),
        None => a.len().cmp(&b.len()),
    }
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.len() > directory.len() && path[directory.len()] == b'/' && path.starts_with(directory)
}

/// Refuses equal paths, and entries below something that is no directory or comes later.
fn check_tree(entries: &[Entry]) -> Result<(), ProtoError> {
    let mut order: Vec<u32> = (0..entries.len() as u32).collect();
    let path = |index: u32| entries[index as usize].path.as_slice();
    order.sort_by(|a, b| path_order(path(*a), path(*b)).then(a.cmp(b)));
    // The entries above the one at hand, outermost first.
    let mut above: Vec<u32> = Vec::new();
    for index in order {
        while let Some(&last) = above.last() {
            if path(last) == path(index) {
                return Err(ProtoError::DuplicatePath { first: last, second: index });
            }
            if is_below(path(index), path(last)) {
                if entries[last as usize].kind != EntryKind::Directory || last > index {
                    return Err(ProtoError::Parent { entry: index, parent: last });
                }
                break;
            }
            above.pop();
        }
        above.push(index);
    }
    Ok(())
}
