//! The head of a patch: sizes, digests and one record per block. All that is needed to find and check a payload.

use std::ops::Range;

use super::error::PatchError;
use crate::block::{self, BlockDecoder, BlockKind};
use crate::codec::CodecId;
use crate::digest::{self, Digest, TreeHasher};

/// The first bytes of a patch.
pub const MAGIC: [u8; 4] = *b"DWCD";
/// The version written, and the highest that is read.
pub const VERSION: u8 = 1;
/// Length in bytes of what precedes the records.
pub const FIXED_BYTES: usize = 72;
/// The smallest block.
pub const MIN_BLOCK_BYTES: u32 = 0x1_0000;
/// The largest block.
pub const MAX_BLOCK_BYTES: u32 = 0x40_0000;

/// Length in bytes of a record.
const RECORD_BYTES: usize = 24;
/// Where the check is; it covers everything else in the head.
const CHECK_OFFSET: usize = 64;
/// Seed of the check: "dwcd" in ASCII.
const CHECK_SEED: u64 = 0x6477_6364;

/// Where a block of the target comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecordKind {
    /// From the payload, as a block of this kind.
    Block(BlockKind),
    /// From the base: the same bytes at the same place. No payload.
    Same,
}

/// The kind byte of [`RecordKind::Same`]; lower ones are block kinds.
const KIND_SAME: u8 = 16;

/// What a patch says of one block of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Where the block comes from.
    pub kind: RecordKind,
    /// The codec of the payload.
    pub codec: CodecId,
    /// Where the payload begins in the patch.
    pub offset: u64,
    /// Length of the payload in bytes.
    pub length: u32,
    /// Digest of the block in the target.
    pub digest: Digest,
}

/// The head of a patch, checked: every record is plausible for its block, the payloads are exactly what follows the
/// head, and the digests of the blocks make that of the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatchHead {
    pub(super) width: u8,
    pub(super) block_bytes: u32,
    pub(super) base_size: u64,
    pub(super) target_size: u64,
    pub(super) base_digest: Digest,
    pub(super) target_digest: Digest,
    pub(super) records: Vec<Record>,
}

impl PatchHead {
    /// Length in bytes of the head of a patch that is `patch_length` bytes long and begins with `fixed`, of which
    /// [`FIXED_BYTES`] are needed. It is never more than `patch_length`.
    ///
    /// # Errors
    ///
    /// As [`PatchHead::parse`].
    pub fn length_of(fixed: &[u8], patch_length: u64) -> Result<u64, PatchError> {
        Fixed::read(fixed, patch_length).map(|fixed| head_length(fixed.count))
    }

    /// Reads the head of a patch that is `patch_length` bytes long; `head` holds its beginning, as far as
    /// [`PatchHead::length_of`] says or further.
    ///
    /// # Errors
    ///
    /// Every [`PatchError`] that names a field of the head, or [`PatchError::OutOfMemory`]. The memory taken is
    /// proportional to the length of `head`.
    pub fn parse(head: &[u8], patch_length: u64) -> Result<PatchHead, PatchError> {
        let fixed = Fixed::read(head, patch_length)?;
        let length = head_length(fixed.count);
        let truncated = PatchError::Truncated { length: head.len() as u64, needed: length };
        let head = usize::try_from(length).ok().and_then(|length| head.get(..length)).ok_or(truncated)?;
        let actual = check(head);
        if actual != fixed.check {
            return Err(PatchError::HeadCheck { expected: fixed.check, actual });
        }
        let mut parsed = PatchHead {
            width: fixed.width,
            block_bytes: fixed.block_bytes,
            base_size: fixed.base_size,
            target_size: fixed.target_size,
            base_digest: fixed.base_digest,
            target_digest: fixed.target_digest,
            records: Vec::new(),
        };
        parsed.records.try_reserve_exact(fixed.count as usize).map_err(|_| PatchError::OutOfMemory {
            bytes: u64::from(fixed.count) * size_of::<Record>() as u64,
        })?;
        let mut tree = TreeHasher::new(fixed.target_size, fixed.block_bytes);
        let mut offset = length;
        for index in 0..fixed.count {
            let at = FIXED_BYTES + index as usize * RECORD_BYTES;
            let record = parsed.read_record(index, &head[at..at + RECORD_BYTES], offset)?;
            offset += u64::from(record.length);
            tree.push(record.digest);
            parsed.records.push(record);
        }
        if offset > patch_length {
            return Err(PatchError::Truncated { length: patch_length, needed: offset });
        }
        if offset < patch_length {
            return Err(PatchError::TrailingBytes { length: patch_length, expected: offset });
        }
        let actual = tree.finish();
        if actual != parsed.target_digest {
            return Err(PatchError::TargetDigest { expected: parsed.target_digest, actual });
        }
        Ok(parsed)
    }

    fn read_record(&self, index: u32, bytes: &[u8], offset: u64) -> Result<Record, PatchError> {
        let (kind, codec) = (bytes[0], bytes[1]);
        let reserved = u16::from_le_bytes([bytes[2], bytes[3]]);
        if reserved != 0 {
            let offset = (FIXED_BYTES + index as usize * RECORD_BYTES + 2) as u64;
            return Err(PatchError::ReservedNotZero { offset, value: reserved });
        }
        let length = u32_at(bytes, 4);
        let range = self.target_range(index.into())?;
        // A block is at most MAX_BLOCK_BYTES long.
        let block_length = (range.end - range.start) as u32;
        let record_error = PatchError::Record { index, kind, codec, length, block_length };
        let Ok(codec) = CodecId::try_from(codec) else { return Err(record_error) };
        let kind = match BlockKind::try_from(kind) {
            Ok(kind) => RecordKind::Block(kind),
            Err(_) if kind == KIND_SAME => RecordKind::Same,
            Err(_) => return Err(PatchError::UnknownKind { index, kind, max: KIND_SAME }),
        };
        let plausible = match (kind, codec) {
            (RecordKind::Same, CodecId::None) => length == 0,
            (RecordKind::Block(BlockKind::Fill), CodecId::None) => length == 1,
            (RecordKind::Block(BlockKind::Plain), CodecId::None) => length == block_length,
            (RecordKind::Block(BlockKind::Plain), CodecId::Lz4 | CodecId::Zstd)
            | (RecordKind::Block(_), CodecId::None) => (1..block_length).contains(&length),
            _ => false,
        };
        if !plausible {
            return Err(record_error);
        }
        if kind == RecordKind::Same && range.end > self.base_size {
            return Err(PatchError::PastBase { index, end: range.end, base_size: self.base_size });
        }
        Ok(Record { kind, codec, offset, length, digest: digest_at(bytes, 8) })
    }

    /// The bytes of the head.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.records.len() * RECORD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend([VERSION, self.width, 0, 0]);
        bytes.extend(self.block_bytes.to_le_bytes());
        // The encoder refuses targets with more blocks than fit.
        bytes.extend((self.records.len() as u32).to_le_bytes());
        bytes.extend(self.base_size.to_le_bytes());
        bytes.extend(self.target_size.to_le_bytes());
        bytes.extend(self.base_digest.0);
        bytes.extend(self.target_digest.0);
        bytes.extend([0; 8]);
        for record in &self.records {
            let kind = match record.kind {
                RecordKind::Block(kind) => kind as u8,
                RecordKind::Same => KIND_SAME,
            };
            bytes.extend([kind, record.codec as u8, 0, 0]);
            bytes.extend(record.length.to_le_bytes());
            bytes.extend(record.digest.0);
        }
        let check = check(&bytes);
        bytes[CHECK_OFFSET..FIXED_BYTES].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Bytes per element whose bytes were grouped in differences: 1, 2, 4 or 8.
    #[must_use]
    pub fn width(&self) -> u8 {
        self.width
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

    /// One record per block of the target, in order.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Where block `index` is in the target.
    ///
    /// # Errors
    ///
    /// [`PatchError::NoSuchBlock`].
    pub fn target_range(&self, index: u64) -> Result<Range<u64>, PatchError> {
        let count = self.target_size.div_ceil(self.block_bytes.into());
        if index >= count {
            return Err(PatchError::NoSuchBlock { index, count });
        }
        Ok(block_range(index, self.block_bytes, self.target_size))
    }

    /// Where the bytes of the base at block `index` are; empty past its end.
    #[must_use]
    pub fn base_range(&self, index: u64) -> Range<u64> {
        block_range(index, self.block_bytes, self.base_size)
    }

    /// Decodes block `index` of the target into `dst` and checks its digest.
    ///
    /// `payload` is what the record says, `base` the base at [`PatchHead::base_range`]. The base has to be proven as a
    /// whole before, by its tree digest: a caller that streams computes it with [`crate::digest::TreeHasher`].
    ///
    /// # Errors
    ///
    /// [`PatchError::NoSuchBlock`], [`PatchError::Length`], [`PatchError::Codec`] or [`PatchError::BlockMismatch`].
    pub fn decode_block(
        &self,
        decoder: &mut BlockDecoder,
        index: u32,
        payload: &[u8],
        base: &[u8],
        dst: &mut [u8],
    ) -> Result<(), PatchError> {
        let range = self.target_range(index.into())?;
        let record = &self.records[index as usize];
        let base_range = self.base_range(index.into());
        expect_length("target block", range.end - range.start, dst.len())?;
        expect_length("base block", base_range.end - base_range.start, base.len())?;
        expect_length("payload", record.length.into(), payload.len())?;
        match record.kind {
            // The record was refused unless the base reaches as far.
            RecordKind::Same => dst.copy_from_slice(&base[..dst.len()]),
            RecordKind::Block(kind) => decoder
                .decode(kind, record.codec, payload, Some(base), dst)
                .map_err(|source| PatchError::Codec { index, source })?,
        }
        expect_digest(index, record.digest, Digest::of(dst))
    }
}

/// The fields before the records.
struct Fixed {
    width: u8,
    block_bytes: u32,
    count: u32,
    base_size: u64,
    target_size: u64,
    base_digest: Digest,
    target_digest: Digest,
    check: u64,
}

impl Fixed {
    fn read(bytes: &[u8], patch_length: u64) -> Result<Fixed, PatchError> {
        let length = bytes.len() as u64;
        let truncated = PatchError::Truncated { length, needed: FIXED_BYTES as u64 };
        let magic = bytes.first_chunk().ok_or(truncated.clone())?;
        if *magic != MAGIC {
            return Err(PatchError::BadMagic { found: *magic });
        }
        let bytes: &[u8; FIXED_BYTES] = bytes.first_chunk().ok_or(truncated)?;
        if bytes[4] != VERSION {
            return Err(PatchError::UnsupportedVersion { version: bytes[4], max: VERSION });
        }
        let reserved = u16::from_le_bytes([bytes[6], bytes[7]]);
        if reserved != 0 {
            return Err(PatchError::ReservedNotZero { offset: 6, value: reserved });
        }
        let fixed = Fixed {
            width: bytes[5],
            block_bytes: u32_at(bytes, 8),
            count: u32_at(bytes, 12),
            base_size: u64_at(bytes, 16),
            target_size: u64_at(bytes, 24),
            base_digest: digest_at(bytes, 32),
            target_digest: digest_at(bytes, 48),
            check: u64_at(bytes, CHECK_OFFSET),
        };
        expect_shape(fixed.block_bytes, fixed.width)?;
        let expected = fixed.target_size.div_ceil(fixed.block_bytes.into());
        if u64::from(fixed.count) != expected {
            return Err(PatchError::BlockCount {
                count: fixed.count,
                expected,
                target_size: fixed.target_size,
            });
        }
        let needed = head_length(fixed.count);
        if needed > patch_length {
            return Err(PatchError::Truncated { length: patch_length, needed });
        }
        Ok(fixed)
    }
}

/// Length in bytes of a head with `count` records.
pub(super) fn head_length(count: u32) -> u64 {
    FIXED_BYTES as u64 + u64::from(count) * RECORD_BYTES as u64
}

/// Where block `index` of an object of `size` bytes is; empty past its end.
pub(super) fn block_range(index: u64, block_bytes: u32, size: u64) -> Range<u64> {
    let start = index.saturating_mul(block_bytes.into()).min(size);
    start..start.saturating_add(block_bytes.into()).min(size)
}

/// Refuses block sizes and element widths outside the format.
pub(super) fn expect_shape(block_bytes: u32, width: u8) -> Result<(), PatchError> {
    let (min, max) = (MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
    if !block_bytes.is_power_of_two() || !(min..=max).contains(&block_bytes) {
        return Err(PatchError::BlockBytes { block_bytes, min, max });
    }
    if !block::WIDTHS.contains(&width) {
        return Err(PatchError::Width { width });
    }
    Ok(())
}

/// Refuses a buffer of another length.
pub(super) fn expect_length(what: &'static str, expected: u64, actual: usize) -> Result<(), PatchError> {
    let actual = actual as u64;
    if actual == expected { Ok(()) } else { Err(PatchError::Length { what, expected, actual }) }
}

/// Refuses a block with another digest.
pub(super) fn expect_digest(index: u32, expected: Digest, actual: Digest) -> Result<(), PatchError> {
    if actual == expected { Ok(()) } else { Err(PatchError::BlockMismatch { index, expected, actual }) }
}

/// The check of a whole head; the bytes where it stands are not covered.
fn check(head: &[u8]) -> u64 {
    digest::check64(CHECK_SEED, &[&head[..CHECK_OFFSET], &head[FIXED_BYTES..]])
}

// The callers index within the fixed part of a head or within one record.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest(std::array::from_fn(|i| bytes[at + i]))
}
