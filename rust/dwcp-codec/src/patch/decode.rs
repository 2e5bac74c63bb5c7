//! Decoding one block of a target.

use super::apply::zeroed;
use super::contents::{Contents, segment_kind};
use super::error::PatchError;
use super::format::{Entry, EntryKind};
use super::parallel;
use super::source::{Between, Source, Usable, slice};
use crate::block::{BlockDecoder, BlockKind};
use crate::codec::CodecId;
use crate::digest::Digest;
use crate::error::CodecError;
use crate::segments::SegmentCoder;

/// Decodes blocks of patches, keeping its state between them.
#[derive(Default)]
pub struct EntryDecoder {
    blocks: BlockDecoder,
    segments: SegmentCoder,
    base: Vec<u8>,
    payload: Vec<u8>,
    gathered: Vec<u8>,
}

impl EntryDecoder {
    /// A decoder whose buffers grow with the blocks it is given.
    #[must_use]
    pub fn new() -> EntryDecoder {
        EntryDecoder::default()
    }

    /// Decodes the block of `entry`, which is not [`EntryKind::Same`], into `dst` and proves it by its digest.
    ///
    /// `patch` is what `contents` was scanned from. `base` is the base, proven as a whole before: nothing else keeps
    /// a block from being decoded against another base, though the digest tells that it was. `target` holds the blocks
    /// that the block is made of; those of an independent entry it is not asked for. On an error the contents of
    /// `dst` are unspecified.
    ///
    /// # Errors
    ///
    /// [`PatchError::Length`] if `dst` is not as long as the block, [`PatchError::Codec`],
    /// [`PatchError::DictionaryMissing`] if `contents` was not given [one](Contents::with_dictionary) that it needs,
    /// [`PatchError::BlockMismatch`], and those of the sources.
    pub fn decode<P, B, T>(
        &mut self,
        contents: &Contents,
        entry: &Entry,
        patch: &P,
        base: &B,
        target: &T,
        dst: &mut [u8],
    ) -> Result<(), B::Error>
    where
        P: Source<Error = B::Error> + ?Sized,
        B: Source + ?Sized,
        T: Source<Error = B::Error> + ?Sized,
    {
        let index = entry.first;
        expect_length("block buffer", contents.block_length(index) as u64, dst.len())?;
        if entry.digest.is_none() {
            return Err(PatchError::NoSuchBlock { index, count: contents.block_count() }.into());
        }
        let codec_error = |source| PatchError::Codec { index, source };
        let payload = patch.read(entry.offset, entry.length as usize, &mut self.payload)?;
        match (entry.kind, segment_kind(entry.kind)) {
            (_, Some(kind)) => {
                let offset = contents.target_range(index.into()).start;
                let (usable, buffer) = (Usable::All, &mut self.gathered);
                let mut origins = Between { base, target, usable, buffer };
                self.segments
                    .decode(kind, payload, contents.base_size(), offset, &mut origins, dst)
                    .map_err(|error| error.of_block(index))?;
            }
            (EntryKind::Block(_), None) if entry.codec == CodecId::ZstdDictionary => {
                let dictionary = contents.dictionary()?;
                self.blocks.decode_with(dictionary, payload, dst).map_err(codec_error)?;
            }
            (EntryKind::Block(kind), None) => {
                let mut held = None;
                if kind.needs_base() {
                    let range = contents.base_range(index.into());
                    let length = ((range.end - range.start) as usize).min(dst.len());
                    held = Some(base.read(range.start, length, &mut self.base)?);
                }
                let made = self.blocks.decode_and_hash(kind, entry.codec, payload, held, dst);
                return Ok(expect_digest(entry, made.map_err(codec_error)?)?);
            }
            (EntryKind::Same | EntryKind::Copy | EntryKind::Splice, None) => {}
        }
        Ok(expect_digest(entry, Digest::of(dst))?)
    }

    /// Decodes a block, told by what changed or by one byte, onto its base block.
    pub(super) fn decode_onto(
        &mut self,
        patch: &[u8],
        entry: &Entry,
        block: &mut [u8],
    ) -> Result<(), PatchError> {
        self.with_payload(patch, entry, |blocks, kind, payload| {
            blocks.decode_onto(kind, entry.codec, payload, block)
        })
    }

    /// [`EntryDecoder::decode_onto`], and the digest of the block, which it is the caller's to prove.
    pub(super) fn decode_onto_and_hash(
        &mut self,
        patch: &[u8],
        entry: &Entry,
        block: &mut [u8],
    ) -> Result<Digest, PatchError> {
        let mut made = None;
        self.with_payload(patch, entry, |blocks, kind, payload| {
            made = Some(blocks.decode_onto_and_hash(kind, entry.codec, payload, block)?);
            Ok(())
        })?;
        Ok(made.unwrap_or_else(|| Digest::of(block)))
    }

    /// Decodes a block, told by itself or against its base block `base`, into `dst`, and proves it by its digest.
    pub(super) fn decode_against(
        &mut self,
        patch: &[u8],
        entry: &Entry,
        base: &[u8],
        dst: &mut [u8],
    ) -> Result<(), PatchError> {
        let mut made = None;
        self.with_payload(patch, entry, |blocks, kind, payload| {
            made = Some(blocks.decode_and_hash(kind, entry.codec, payload, Some(base), dst)?);
            Ok(())
        })?;
        expect_digest(entry, made.unwrap_or_else(|| Digest::of(dst)))
    }

    /// Takes back what [`EntryDecoder::decode_onto`] did to a block of a kind that can be undone.
    pub(super) fn undo_onto(
        &mut self,
        patch: &[u8],
        entry: &Entry,
        block: &mut [u8],
    ) -> Result<(), PatchError> {
        self.with_payload(patch, entry, |blocks, kind, payload| blocks.undo_onto(kind, payload, block))
    }

    /// Decodes the payload of a block that is made of nothing but that and its base block.
    fn with_payload(
        &mut self,
        patch: &[u8],
        entry: &Entry,
        decode: impl FnOnce(&mut BlockDecoder, BlockKind, &[u8]) -> Result<(), CodecError>,
    ) -> Result<(), PatchError> {
        let payload = slice(patch, entry.offset, entry.length as usize)?;
        let EntryKind::Block(kind) = entry.kind else { return Ok(()) };
        decode(&mut self.blocks, kind, payload)
            .map_err(|source| PatchError::Codec { index: entry.first, source })
    }
}

/// Decodes the blocks of `entries`, which are not [`EntryKind::Same`], and gives them to `put` in this order.
///
/// As many threads as stated work on blocks that follow each other; other arguments are as for
/// [`EntryDecoder::decode`].
///
/// # Errors
///
/// Those of [`EntryDecoder::decode`] and of `put`.
pub fn decode_each<'e, P, B, T>(
    contents: &Contents,
    entries: impl Iterator<Item = &'e Entry>,
    patch: &P,
    base: &B,
    target: &T,
    threads: usize,
    mut put: impl FnMut(&Entry, &[u8]) -> Result<(), B::Error>,
) -> Result<(), B::Error>
where
    P: Source<Error = B::Error> + ?Sized,
    B: Source + ?Sized,
    T: Source<Error = B::Error> + ?Sized,
{
    let mut decoders = parallel::states::<EntryDecoder>(threads);
    let mut blocks = vec![Vec::new(); decoders.len()];
    let mut entries = entries.peekable();
    while entries.peek().is_some() {
        // The blocks come first: with none left, no entry is taken.
        let mut batch: Vec<_> = blocks.iter_mut().zip(entries.by_ref()).collect();
        parallel::for_each(&mut decoders, batch.iter_mut(), |decoder, (block, entry)| {
            zeroed(block, contents.block_length(entry.first))?;
            decoder.decode(contents, entry, patch, base, target, block)
        })?;
        batch.iter().try_for_each(|(block, entry)| put(entry, block))?;
    }
    Ok(())
}

/// Refuses a block that has not the digest of its entry, which has one unless the block is as in the base.
pub(super) fn expect_digest(entry: &Entry, actual: Digest) -> Result<(), PatchError> {
    match entry.digest {
        Some(expected) if expected != actual => {
            Err(PatchError::BlockMismatch { index: entry.first, expected, actual })
        }
        _ => Ok(()),
    }
}

/// Refuses a buffer of another length.
pub(super) fn expect_length(what: &'static str, expected: u64, actual: usize) -> Result<(), PatchError> {
    let actual = actual as u64;
    if actual == expected { Ok(()) } else { Err(PatchError::Length { what, expected, actual }) }
}
