//! How a chunk is laid out: numbers, and what is said of pages.

use crate::error::VmError;
use crate::stream::PAGE_BYTES;

/// The most bytes of a stream that one chunk stands for.
pub const MAX_STREAM_BYTES: usize = 1 << 20;

/// The most bytes that a chunk has.
pub const MAX_CHUNK_BYTES: usize = 2 * MAX_STREAM_BYTES;

/// The most blocks of RAM that are told apart.
pub(crate) const MAX_BLOCKS: usize = 4_096;

/// What is said of bytes or pages, in the low bits of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// Bytes of the stream that are no page.
    Bytes = 0,
    /// Pages as they are.
    Full = 1,
    /// Pages of zeros.
    Zero = 2,
    /// Pages that are what they were when they were last sent.
    Same = 3,
    /// A page like another that is held.
    Copy = 4,
    /// What of a page differs from what it was when it was last sent.
    Delta = 5,
    /// Pages that are those of the base in the same place.
    Base = 6,
    /// A page like another of the base.
    BaseCopy = 7,
}

impl Op {
    pub(crate) const ALL: [Op; 8] =
        [Op::Bytes, Op::Full, Op::Zero, Op::Same, Op::Copy, Op::Delta, Op::Base, Op::BaseCopy];

    /// Whether pages in a row share a tag.
    pub(crate) fn runs(self) -> bool {
        matches!(self, Op::Full | Op::Zero | Op::Same | Op::Base)
    }
}

/// The bit of a tag by which the place of the page is told; without it, it is the one behind the page before.
pub(crate) const PLACED: u64 = 0x08;

/// Appends a number, seven bits a byte, the low ones first.
pub(crate) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A difference as a number that is small if the difference is.
pub(crate) fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)) as u64
}

/// The difference again.
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a chunk.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, length: bytes.len() }
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, what: &'static str, count: usize) -> Result<&'a [u8], VmError> {
        let (taken, rest) =
            self.bytes.split_at_checked(count).ok_or(VmError::Short { what, length: self.length })?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn number(&mut self, what: &'static str, limit: u64) -> Result<u64, VmError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(what, 1)?[0];
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if value <= limit { Ok(value) } else { Err(VmError::Range { what, value, limit }) };
            }
        }
        Err(VmError::Range { what, value: u64::MAX, limit })
    }

    pub(crate) fn page(&mut self) -> Result<&'a [u8; PAGE_BYTES], VmError> {
        let page = self.take("a page", PAGE_BYTES)?;
        page.first_chunk().ok_or(VmError::Short { what: "a page", length: self.length })
    }
}
