//! The fields of a patch: its head, the heads of its entries and its tail.

use std::ops::Range;

use super::error::PatchError;
use crate::block::{self, BlockKind, MAX_DICTIONARY_BLOCK_BYTES};
use crate::codec::CodecId;
use crate::digest::{CheckHasher, Digest};
use crate::segments::SegmentKind;

/// The first bytes of a patch.
pub const MAGIC: [u8; 4] = *b"DWCD";
/// The version that is written and read.
pub const VERSION: u8 = 2;
/// The smallest block.
pub const MIN_BLOCK_BYTES: u32 = 0x1_0000;
/// The largest block.
pub const MAX_BLOCK_BYTES: u32 = 0x40_0000;
/// The largest base or target.
pub const MAX_OBJECT_BYTES: u64 = i64::MAX as u64;

/// Length in bytes of what precedes the entries, without the name of a dictionary.
pub(super) const HEAD_BYTES: usize = 32;
/// Length in bytes of the name of a dictionary, which follows.
pub(super) const DICTIONARY_BYTES: usize = 16;
/// The flag in the head that there is one.
const FLAG_DICTIONARY: u8 = 1;
/// Length in bytes of the head of an entry that has a digest.
pub(super) const ENTRY_BYTES: usize = 24;
/// Length in bytes of an entry that has none.
pub(super) const SAME_BYTES: usize = 8;
/// Length in bytes of the tail.
pub(super) const TAIL_BYTES: usize = 48;
/// The kind of the tail.
pub(super) const KIND_TAIL: u8 = 255;

/// Seed of the check: "dwcd" in ASCII.
const CHECK_SEED: u64 = 0x6477_6364;
const WITH_DICTIONARY: u8 = CodecId::ZstdDictionary as u8;
const KIND_SAME: u8 = 16;
const KIND_COPY: u8 = SegmentKind::Copy as u8;
const KIND_SPLICE: u8 = SegmentKind::Splice as u8;

/// The most bytes that a patch to a target of so many bytes has, whatever its base and its blocks.
#[must_use]
pub fn max_length(target_size: u64) -> u64 {
    // No block has more than one entry, and no payload is longer than its block.
    let entries = target_size.div_ceil(MIN_BLOCK_BYTES.into()) * ENTRY_BYTES as u64;
    target_size.saturating_add(entries).saturating_add((HEAD_BYTES + DICTIONARY_BYTES + TAIL_BYTES) as u64)
}

/// Where a block of the target comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntryKind {
    /// From the payload, as a block of this kind, some against the base's bytes at the same place.
    Block(BlockKind),
    /// From the base: the same bytes at the same place.
    Same,
    /// From segments of the base and the target.
    Copy,
    /// From segments of the base and the target, and fresh bytes between them.
    Splice,
}

impl EntryKind {
    /// The byte that names the kind.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            EntryKind::Block(kind) => kind as u8,
            EntryKind::Same => KIND_SAME,
            EntryKind::Copy => KIND_COPY,
            EntryKind::Splice => KIND_SPLICE,
        }
    }

    pub(super) fn of_byte(byte: u8) -> Option<EntryKind> {
        match byte {
            KIND_SAME => Some(EntryKind::Same),
            KIND_COPY => Some(EntryKind::Copy),
            KIND_SPLICE => Some(EntryKind::Splice),
            _ => BlockKind::try_from(byte).ok().map(EntryKind::Block),
        }
    }

    /// Whether `length` payload bytes of `codec` can make a block of `block_length` bytes.
    fn allows(self, codec: CodecId, length: u32, block_length: u32) -> bool {
        match (self, codec) {
            (EntryKind::Block(BlockKind::Fill), CodecId::None) => length == 1,
            (EntryKind::Block(BlockKind::Plain), CodecId::None) => length == block_length,
            (EntryKind::Block(BlockKind::Plain), _) | (_, CodecId::None) => {
                (1..block_length).contains(&length)
            }
            _ => false,
        }
    }
}

/// The head of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatchHead {
    block_bytes: u32,
    base_size: u64,
    target_size: u64,
    dictionary: Option<Digest>,
}

impl PatchHead {
    /// The head of a patch between objects of these sizes.
    ///
    /// # Errors
    ///
    /// [`PatchError::BlockBytes`], [`PatchError::Size`] or [`PatchError::TooManyBlocks`].
    pub(super) fn new(block_bytes: u32, base_size: u64, target_size: u64) -> Result<PatchHead, PatchError> {
        let (min, max, limit) = (MIN_BLOCK_BYTES, MAX_BLOCK_BYTES, MAX_OBJECT_BYTES);
        if !block_bytes.is_power_of_two() || !(min..=max).contains(&block_bytes) {
            return Err(PatchError::BlockBytes { block_bytes, min, max });
        }
        for (what, size) in [("base", base_size), ("target", target_size)] {
            if size > limit {
                return Err(PatchError::Size { what, size, limit });
            }
        }
        let (blocks, limit) = (target_size.div_ceil(block_bytes.into()), u64::from(u32::MAX));
        if blocks > limit {
            return Err(PatchError::TooManyBlocks { target_size, blocks, limit });
        }
        Ok(PatchHead { block_bytes, base_size, target_size, dictionary: None })
    }

    /// The same head, which names a dictionary.
    pub(super) fn naming(self, dictionary: Digest) -> PatchHead {
        PatchHead { dictionary: Some(dictionary), ..self }
    }

    /// Whether the target has a block for which a dictionary is of use.
    pub(super) fn has_short_block(&self) -> bool {
        let lengths = [0, self.block_count().saturating_sub(1)].map(|index| self.block_length(index));
        lengths.iter().any(|length| (1..=MAX_DICTIONARY_BLOCK_BYTES).contains(length))
    }

    /// The dictionary that blocks may be made with.
    #[must_use]
    pub fn dictionary(&self) -> Option<Digest> {
        self.dictionary
    }

    /// The head, and whether the name of a dictionary follows it.
    pub(super) fn read(bytes: &[u8; HEAD_BYTES], at: u64) -> Result<(PatchHead, bool), PatchError> {
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(PatchError::BadMagic { found: magic });
        }
        if bytes[4] != VERSION {
            return Err(PatchError::UnsupportedVersion { version: bytes[4], supported: VERSION });
        }
        expect_zero(at + 5, u32::from(bytes[5] & !FLAG_DICTIONARY))?;
        expect_zero(at + 6, u32_at(bytes, 4) >> 16)?;
        expect_zero(at + 12, u32_at(bytes, 12))?;
        let head = PatchHead::new(u32_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24))?;
        Ok((head, bytes[5] & FLAG_DICTIONARY != 0))
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        if let Some(dictionary) = self.dictionary {
            bytes[5] = FLAG_DICTIONARY;
            bytes.extend(dictionary.0);
        }
        bytes[8..12].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base_size.to_le_bytes());
        bytes[24..HEAD_BYTES].copy_from_slice(&self.target_size.to_le_bytes());
        bytes
    }

    /// Size of a block in bytes.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Size of the base in bytes.
    #[must_use]
    pub fn base_size(&self) -> u64 {
        self.base_size
    }

    /// Size of the target in bytes.
    #[must_use]
    pub fn target_size(&self) -> u64 {
        self.target_size
    }

    /// How many blocks the target has.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        // No head is made of a target with more.
        self.target_size.div_ceil(self.block_bytes.into()) as u32
    }

    /// Where block `index` is in the target; empty past its end.
    #[must_use]
    pub fn target_range(&self, index: u64) -> Range<u64> {
        block_range(index, self.block_bytes, self.target_size)
    }

    /// Where the bytes of the base at block `index` are; empty past its end.
    #[must_use]
    pub fn base_range(&self, index: u64) -> Range<u64> {
        block_range(index, self.block_bytes, self.base_size)
    }

    /// Length of block `index` of the target in bytes.
    pub(super) fn block_length(&self, index: u32) -> usize {
        let range = self.target_range(index.into());
        (range.end - range.start) as usize
    }
}

/// What a patch says of one block of the target, or of several that are as in the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where the blocks come from.
    pub kind: EntryKind,
    /// The codec of the payload.
    pub codec: CodecId,
    /// The first block.
    pub first: u32,
    /// How many blocks there are: 1 unless the kind is [`EntryKind::Same`].
    pub blocks: u32,
    /// Where the payload begins in what holds the patch.
    pub offset: u64,
    /// Length of the payload in bytes.
    pub length: u32,
    /// Digest of the block in the target; `None` for [`EntryKind::Same`].
    pub digest: Option<Digest>,
}

impl Entry {
    /// Reads entry number `number`, the first that tells of block `first`, from the `bytes` at `at`. The kind is none
    /// of the tail's, and there are as many bytes as an entry can have or as the patch has.
    pub(super) fn read(
        head: &PatchHead,
        number: u32,
        first: u32,
        bytes: &[u8],
        at: u64,
    ) -> Result<Entry, PatchError> {
        let truncated = |needed: usize| PatchError::Truncated {
            length: at + bytes.len() as u64,
            at,
            needed: at + needed as u64,
        };
        let fixed: &[u8; SAME_BYTES] = bytes.first_chunk().ok_or(truncated(SAME_BYTES))?;
        let (kind, codec, length) = (fixed[0], fixed[1], u32_at(fixed, 4));
        let told_kind = EntryKind::of_byte(kind).ok_or(PatchError::UnknownKind { entry: number, kind })?;
        expect_zero(at + 2, u32_at(fixed, 0) >> 16)?;
        let count = head.block_count();
        let blocks = if told_kind == EntryKind::Same { length } else { 1 };
        if blocks > count - first {
            return Err(PatchError::PastTarget { entry: number, first, blocks, count });
        }
        let block_length = head.block_length(first) as u32;
        let refused = PatchError::Entry { entry: number, kind, codec, length, block_length };
        let codec = match codec {
            WITH_DICTIONARY if head.dictionary.is_some() => CodecId::ZstdDictionary,
            codec => CodecId::try_from(codec).map_err(|_| refused.clone())?,
        };
        if told_kind == EntryKind::Same {
            if blocks == 0 || codec != CodecId::None {
                return Err(refused);
            }
            let index = first + (blocks - 1);
            let (end, base_size) = (head.target_range(index.into()).end, head.base_size());
            if end > base_size {
                return Err(PatchError::PastBase { index, end, base_size });
            }
            let offset = at + SAME_BYTES as u64;
            return Ok(Entry { kind: told_kind, codec, first, blocks, offset, length: 0, digest: None });
        }
        if !told_kind.allows(codec, length, block_length) {
            return Err(refused);
        }
        let bytes: &[u8; ENTRY_BYTES] = bytes.first_chunk().ok_or(truncated(ENTRY_BYTES))?;
        let digest = Some(digest_at(bytes, SAME_BYTES));
        Ok(Entry { kind: told_kind, codec, first, blocks, offset: at + ENTRY_BYTES as u64, length, digest })
    }
}

/// The head of an entry of one block.
pub(super) fn entry_bytes(kind: EntryKind, codec: CodecId, length: u32, digest: Digest) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[0] = kind.to_byte();
    bytes[1] = codec as u8;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..].copy_from_slice(&digest.0);
    bytes
}

/// An entry of `blocks` blocks that are as in the base.
pub(super) fn same_bytes(blocks: u32) -> [u8; SAME_BYTES] {
    let mut bytes = [0; SAME_BYTES];
    bytes[0] = KIND_SAME;
    bytes[4..].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// The tail of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tail {
    pub entries: u32,
    pub base_digest: Digest,
    pub target_digest: Digest,
}

impl Tail {
    /// Reads the tail at `at`; `check` has all that precedes it.
    pub(super) fn read(bytes: &[u8; TAIL_BYTES], at: u64, mut check: Check) -> Result<Tail, PatchError> {
        expect_zero(at + 1, u32_at(bytes, 0) >> 8)?;
        check.update(&bytes[..TAIL_BYTES - 8]);
        let (expected, actual) = (u64_at(bytes, TAIL_BYTES - 8), check.finish());
        if expected != actual {
            return Err(PatchError::Check { expected, actual });
        }
        Ok(Tail {
            entries: u32_at(bytes, 4),
            base_digest: digest_at(bytes, 8),
            target_digest: digest_at(bytes, 24),
        })
    }

    pub(super) fn to_bytes(self, mut check: Check) -> [u8; TAIL_BYTES] {
        let mut bytes = [0; TAIL_BYTES];
        bytes[0] = KIND_TAIL;
        bytes[4..8].copy_from_slice(&self.entries.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.base_digest.0);
        bytes[24..40].copy_from_slice(&self.target_digest.0);
        check.update(&bytes[..TAIL_BYTES - 8]);
        bytes[TAIL_BYTES - 8..].copy_from_slice(&check.finish().to_le_bytes());
        bytes
    }
}

/// The check over the fields of a patch, as they come.
#[derive(Clone)]
pub(super) struct Check(CheckHasher);

impl Check {
    pub(super) fn new() -> Check {
        Check(CheckHasher::new(CHECK_SEED))
    }

    pub(super) fn update(&mut self, fields: &[u8]) {
        self.0.update(fields);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Refuses a width of elements that there is not.
pub(super) fn expect_width(width: Option<u8>) -> Result<(), PatchError> {
    match width {
        Some(width) if !block::WIDTHS.contains(&width) => Err(PatchError::Width { width }),
        _ => Ok(()),
    }
}

/// Where block `index` of an object of `size` bytes is; empty past its end.
fn block_range(index: u64, block_bytes: u32, size: u64) -> Range<u64> {
    let start = index.saturating_mul(block_bytes.into()).min(size);
    start..start.saturating_add(block_bytes.into()).min(size)
}

fn expect_zero(at: u64, value: u32) -> Result<(), PatchError> {
    if value == 0 { Ok(()) } else { Err(PatchError::ReservedNotZero { at, value }) }
}

// The callers index within arrays of known length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest(std::array::from_fn(|i| bytes[at + i]))
}
