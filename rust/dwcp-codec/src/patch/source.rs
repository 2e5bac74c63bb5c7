//! Where the bytes of objects and patches come from.

use std::collections::BTreeSet;
use std::ops::Range;

use super::error::PatchError;
use crate::error::CodecError;
use crate::matcher::{Origin, Origins};

/// An object of known size, read at any place from any thread.
///
/// Memory gives slices of itself, a file fills the buffer. What is read must not change meanwhile; if it does, digests
/// and payloads tell of different moments, which whoever applies the patch refuses.
pub trait Source: Sync {
    /// What can go wrong with reading, and with patches.
    type Error: From<PatchError> + Send;

    /// Size of the object in bytes.
    fn size(&self) -> u64;

    /// The `length` bytes at `offset`, which lie within the object. They may be put into `buffer`.
    ///
    /// # Errors
    ///
    /// Whatever keeps the bytes from being read. It ends the work at hand and is passed on, so that this is also how
    /// a caller stops it.
    fn read<'a>(
        &'a self,
        offset: u64,
        length: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Self::Error>;
}

impl Source for [u8] {
    type Error = PatchError;

    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], PatchError> {
        slice(self, offset, length)
    }
}

/// A part of `bytes`, refused if it goes past their end.
pub(super) fn slice(bytes: &[u8], offset: u64, length: usize) -> Result<&[u8], PatchError> {
    let end = offset.saturating_add(length as u64);
    let part =
        usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).and_then(|rest| rest.get(..length));
    part.ok_or(PatchError::Truncated { length: bytes.len() as u64, at: offset, needed: end })
}

/// The bytes in a range of an object, which lies within it.
pub(super) fn read_range<'a, S: Source + ?Sized>(
    source: &'a S,
    range: Range<u64>,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], S::Error> {
    source.read(range.start, (range.end - range.start) as usize, buffer)
}

/// Base and target as the origins of segments.
pub(super) struct Between<'a, B: ?Sized, T: ?Sized> {
    pub(super) base: &'a B,
    pub(super) target: &'a T,
    /// What of the target may be used.
    pub(super) usable: Usable<'a>,
    pub(super) buffer: &'a mut Vec<u8>,
}

/// What of a target segments may lie in.
#[derive(Clone, Copy)]
pub(super) enum Usable<'a> {
    /// All of it.
    All,
    /// Nothing.
    Nothing,
    /// All but blocks of this size with these numbers.
    Except(u32, &'a BTreeSet<u32>),
}

/// A codec's error, or that of a source.
pub(super) enum Failed<E> {
    Codec(CodecError),
    Source(E),
}

impl<E> From<CodecError> for Failed<E> {
    fn from(error: CodecError) -> Failed<E> {
        Failed::Codec(error)
    }
}

impl<E: From<PatchError>> Failed<E> {
    /// The error of a block.
    pub(super) fn of_block(self, index: u32) -> E {
        match self {
            Failed::Codec(source) => PatchError::Codec { index, source }.into(),
            Failed::Source(error) => error,
        }
    }
}

impl<B, T> Origins for Between<'_, B, T>
where
    B: Source + ?Sized,
    T: Source<Error = B::Error> + ?Sized,
{
    type Error = Failed<B::Error>;

    fn usable(&self, origin: Origin, offset: u64) -> Range<u64> {
        match (origin, self.usable) {
            (Origin::Base, _) => 0..self.base.size(),
            (Origin::Target, Usable::All) => 0..self.target.size(),
            (Origin::Target, Usable::Nothing) => 0..0,
            (Origin::Target, Usable::Except(block_bytes, blocks)) => {
                let start = |block: u32| u64::from(block) * u64::from(block_bytes);
                // What is past the last block that can be has no block before it that could use it.
                let Ok(block) = u32::try_from(offset / u64::from(block_bytes)) else { return 0..0 };
                let next = blocks.range(block..).next();
                if next == Some(&block) {
                    return 0..0;
                }
                let before = blocks.range(..block).next_back();
                let end = next.map_or(self.target.size(), |next| start(*next));
                before.map_or(0, |before| start(*before) + u64::from(block_bytes))..end
            }
        }
    }

    fn bytes(&mut self, origin: Origin, offset: u64, length: usize) -> Result<&[u8], Failed<B::Error>> {
        let read = match origin {
            Origin::Base => self.base.read(offset, length, self.buffer),
            Origin::Target => self.target.read(offset, length, self.buffer),
        };
        read.map_err(Failed::Source)
    }
}
