//! Bounded reading and writing of little-endian fields.

use std::ops::RangeInclusive;

use dwcp_codec::Digest;

use crate::error::ProtoError;

/// Reads fields from a slice; every error names the structure and the offset.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`, which are a `what`.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, bytes, at: 0 }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let left = self.left();
        if length > left {
            return Err(ProtoError::Truncated { what: self.what, needed: length, left, offset: self.at });
        }
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// A byte.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there is none.
    pub fn u8(&mut self) -> Result<u8, ProtoError> {
        self.array().map(u8::from_le_bytes)
    }

    /// A number of 2 bytes.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn u16(&mut self) -> Result<u16, ProtoError> {
        self.array().map(u16::from_le_bytes)
    }

    /// A number of 4 bytes.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn u32(&mut self) -> Result<u32, ProtoError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number of 8 bytes.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn u64(&mut self) -> Result<u64, ProtoError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A signed number of 8 bytes.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer.
    pub fn i64(&mut self) -> Result<i64, ProtoError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A digest.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer than 16 bytes.
    pub fn digest(&mut self) -> Result<Digest, ProtoError> {
        self.array().map(Digest)
    }

    /// The next `count` digests.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] when there are fewer; nothing is allocated then.
    pub fn digests(&mut self, count: usize) -> Result<Vec<Digest>, ProtoError> {
        let mut part = Reader::new(self.what, self.bytes(count.saturating_mul(16))?);
        (0..count).map(|_| part.digest()).collect()
    }

    /// A number of `width` (1 to 8) bytes that must lie in `range`.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] and [`ProtoError::Range`].
    pub fn number(
        &mut self,
        field: &'static str,
        width: usize,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ProtoError> {
        let offset = self.at;
        let mut wide = [0; 8];
        let width = width.min(8);
        wide[..width].copy_from_slice(self.bytes(width)?);
        let value = u64::from_le_bytes(wide);
        if range.contains(&value) {
            return Ok(value);
        }
        Err(ProtoError::Range {
            what: self.what,
            field,
            value,
            low: *range.start(),
            high: *range.end(),
            offset,
        })
    }

    /// Skips `length` bytes that must be zero.
    ///
    /// # Errors
    /// [`ProtoError::Truncated`] and [`ProtoError::NotZero`].
    pub fn zeros(&mut self, field: &'static str, length: usize) -> Result<(), ProtoError> {
        let offset = self.at;
        if self.bytes(length)?.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(ProtoError::NotZero { what: self.what, field, offset })
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`ProtoError::Trailing`] when bytes are left.
    pub fn finish(self) -> Result<(), ProtoError> {
        match self.left() {
            0 => Ok(()),
            left => Err(ProtoError::Trailing { what: self.what, left, offset: self.at }),
        }
    }
}

/// Appends fields to a vector.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Appends a number of 2 bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends a number of 4 bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends a number of 8 bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends a signed number of 8 bytes.
    pub fn i64(&mut self, value: i64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends digests.
    pub fn digests(&mut self, digests: &[Digest]) {
        digests.iter().for_each(|digest| self.bytes(&digest.0));
    }

    /// Appends `length` zero bytes.
    pub fn zeros(&mut self, length: usize) {
        self.0.resize(self.0.len() + length, 0);
    }
}
