//! Decoding blocks.

use super::runs::RunsDecoder;
use super::sparse::SparseDecoder;
use super::{BlockKind, MAX_BLOCK_BYTES, planes};
use crate::codec::{CodecId, Decompressor};
use crate::dictionary::Dictionary;
use crate::digest::Digest;
use crate::error::CodecError;

/// What is made of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// The block of the base block.
    ToBlock,
    /// The base block of the block.
    ToBase,
}

/// Decodes blocks, keeping its state between them.
#[derive(Default)]
pub struct BlockDecoder {
    decompressor: Decompressor,
    planes: [Vec<u8>; 8],
    sparse: SparseDecoder,
    runs: RunsDecoder,
}

impl BlockDecoder {
    /// A decoder whose buffers grow with the blocks it is given.
    #[must_use]
    pub fn new() -> BlockDecoder {
        BlockDecoder::default()
    }

    /// Decodes `wire` into `dst`, whose length must be the block's.
    ///
    /// `base` is needed for kinds that [need one](BlockKind::needs_base) and must be what the encoder was given; that
    /// it is so can only be proven by digests, of the base before and of the block afterwards. On an error the
    /// contents of `dst` are unspecified.
    ///
    /// # Errors
    ///
    /// [`CodecError::MissingBase`], [`CodecError::ShortBase`] and those of [`BlockDecoder::decode_onto`].
    pub fn decode(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        base: Option<&[u8]>,
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        put_base(kind, base, dst)?;
        self.decode_onto(kind, codec, wire, dst)
    }

    /// [`BlockDecoder::decode`], and the digest of the block.
    ///
    /// # Errors
    ///
    /// Those of [`BlockDecoder::decode`].
    pub fn decode_and_hash(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        base: Option<&[u8]>,
        dst: &mut [u8],
    ) -> Result<Digest, CodecError> {
        put_base(kind, base, dst)?;
        self.decode_onto_and_hash(kind, codec, wire, dst)
    }

    /// Decodes what [`BlockEncoder::encode_with`](super::BlockEncoder::encode_with) made with a dictionary into `dst`,
    /// whose length must be the block's.
    ///
    /// # Errors
    ///
    /// Those of [`Decompressor::decompress_into`].
    pub fn decode_with(
        &mut self,
        dictionary: &Dictionary,
        wire: &[u8],
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        self.decompressor.decompress_with(dictionary, wire, dst)
    }

    /// Decodes `wire` into `dst`, which holds the base block if the kind needs one; only what differs is written then.
    ///
    /// On an error `dst` is as it was if the kind [can be undone](BlockKind::is_undoable), and unspecified otherwise.
    ///
    /// # Errors
    ///
    /// Those of [`Decompressor::decompress_into`], [`CodecError::FillBlock`], [`CodecError::CodedBlock`] and those that
    /// name a part of a payload.
    pub fn decode_onto(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        self.decode_way(Way::ToBlock, kind, codec, wire, dst, false).map(|_| ())
    }

    /// [`BlockDecoder::decode_onto`], and the digest of the block: in the same pass over it, where that can be.
    ///
    /// # Errors
    ///
    /// Those of [`BlockDecoder::decode_onto`].
    pub fn decode_onto_and_hash(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        dst: &mut [u8],
    ) -> Result<Digest, CodecError> {
        let found = self.decode_way(Way::ToBlock, kind, codec, wire, dst, true)?;
        Ok(found.unwrap_or_else(|| Digest::of(dst)))
    }

    /// Takes back what [`BlockDecoder::decode_onto`] did to `dst` with the same `wire` of a kind that
    /// [can be undone](BlockKind::is_undoable), whatever `dst` held before.
    ///
    /// The bytes after the last whole element cannot be taken back: the length of `dst` must be a multiple of 8.
    ///
    /// # Errors
    ///
    /// Those of [`BlockDecoder::decode_onto`], which `wire` did not give before, and [`CodecError::MissingBase`] for
    /// other kinds.
    pub fn undo_onto(&mut self, kind: BlockKind, wire: &[u8], dst: &mut [u8]) -> Result<(), CodecError> {
        if kind.is_undoable() {
            self.decode_way(Way::ToBase, kind, CodecId::None, wire, dst, false).map(|_| ())
        } else {
            Err(CodecError::MissingBase)
        }
    }

    fn decode_way(
        &mut self,
        way: Way,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        dst: &mut [u8],
        hash: bool,
    ) -> Result<Option<Digest>, CodecError> {
        match (kind, wire) {
            (BlockKind::Fill, [byte]) if codec == CodecId::None => {
                dst.fill(*byte);
                return Ok(None);
            }
            (BlockKind::Fill, _) => return Err(CodecError::FillBlock { length: wire.len(), codec }),
            (BlockKind::Plain, _) => {
                return self.decompressor.decompress_into_slice(codec, wire, dst).map(|()| None);
            }
            _ => {}
        }
        if codec != CodecId::None || !(1..dst.len()).contains(&wire.len()) || dst.len() > MAX_BLOCK_BYTES {
            let (length, raw_length) = (wire.len(), dst.len());
            return Err(CodecError::CodedBlock { codec, length, raw_length, limit: MAX_BLOCK_BYTES });
        }
        let decompressor = &mut self.decompressor;
        match kind {
            BlockKind::Sparse => self.sparse.decode(way, wire, decompressor, dst, hash),
            BlockKind::Runs => self.runs.decode(wire, decompressor, dst).map(|()| None),
            _ => {
                let differs = kind == BlockKind::Difference;
                planes::decode(way, differs, wire, decompressor, &mut self.planes, dst).map(|()| None)
            }
        }
    }
}

/// Puts the base block to `dst`, where a block of this kind is made of it.
fn put_base(kind: BlockKind, base: Option<&[u8]>, dst: &mut [u8]) -> Result<(), CodecError> {
    if !kind.needs_base() {
        return Ok(());
    }
    let base = base.ok_or(CodecError::MissingBase)?;
    let (needed, length) = (dst.len(), base.len());
    if kind == BlockKind::Sparse && length < needed {
        return Err(CodecError::ShortBase { length, needed });
    }
    let (copied, missing) = dst.split_at_mut(length.min(needed));
    copied.copy_from_slice(&base[..copied.len()]);
    missing.fill(0);
    Ok(())
}
