//! Encoding blocks: in which kind.

use super::choose::{self, Against};
use super::runs::RunsEncoder;
use super::sparse::SparseEncoder;
use super::{Base, BlockKind, DirtyLines, EncodedBlock, MAX_BLOCK_BYTES, MAX_DICTIONARY_BLOCK_BYTES, planes};
use crate::codec::{Codec, CodecId, Compressor};
use crate::dictionary::Dictionary;
use crate::error::CodecError;
use crate::kernel::planes::Transform;
use crate::kernel::{LINE_BYTES, Level, lines};
use crate::select::Action;
use crate::stream::StreamEncoder;
use crate::{page, probe};

/// The level of zstd with a dictionary where another codec is asked for.
const DICTIONARY_LEVEL: i32 = 3;

/// Of a block without a base, bytes that are not 0 are told as runs if they are less than one part in this many: what
/// compresses the rest does not look at zeros then.
const USED_SHARE: usize = 4;

/// Encodes blocks, keeping its buffers between them.
#[derive(Default)]
pub struct BlockEncoder {
    compressor: Compressor,
    streams: StreamEncoder,
    sparse: SparseEncoder,
    runs: RunsEncoder,
    plain: Vec<u8>,
    packed: Vec<u8>,
    coded: Vec<u8>,
    planes: Vec<u8>,
    padded: Vec<u8>,
    dirty: Vec<u64>,
}

/// Whether what is left of a block of `length` bytes is so little that it is taken without trying the rest.
fn is_good(left: usize, length: usize) -> bool {
    left <= length / 5 * 3
}

/// Refuses a width of elements that there is not.
fn known_width(width: Option<u8>) -> Result<Option<usize>, CodecError> {
    match width {
        Some(width) if !super::WIDTHS.contains(&width) => Err(CodecError::ElementWidth { width }),
        width => Ok(width.map(usize::from)),
    }
}

impl BlockEncoder {
    /// An encoder whose buffers grow with the blocks it is given.
    #[must_use]
    pub fn new() -> BlockEncoder {
        BlockEncoder::default()
    }

    /// Encodes `src` in the smallest of the forms worth trying.
    ///
    /// `base`, if there is one, holds the base's bytes at the same offset; it may be shorter or longer than `src`.
    /// `codec` is the codec of plain blocks; what is coded against the base is compressed whatever it says. Data that
    /// looks incompressible is not given to a compressor.
    ///
    /// # Errors
    ///
    /// Those of [`Compressor::compress_into`] other than [`CodecError::OutputTooSmall`].
    pub fn encode<'a>(
        &'a mut self,
        codec: Codec,
        src: &'a [u8],
        base: Option<&[u8]>,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        self.encode_elements(codec, src, base, None)
    }

    /// [`BlockEncoder::encode_elements`] with a dictionary, which a short block is compressed with if that makes it smaller,
    /// whatever `codec` says: by zstd, of its level if it has one. The block's codec is [`CodecId::ZstdDictionary`] then.
    ///
    /// # Errors
    ///
    /// Those of [`BlockEncoder::encode_elements`].
    pub fn encode_with<'a>(
        &'a mut self,
        dictionary: &Dictionary,
        codec: Codec,
        src: &'a [u8],
        base: Option<&[u8]>,
        width: Option<u8>,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        self.encode_compared(Some(dictionary), codec, src, base.map(Base::from), width)
    }

    /// [`BlockEncoder::encode`] of elements of `width` bytes (1, 2, 4 or 8); a probe finds a width if none is given.
    /// The width has no influence but on the size.
    ///
    /// # Errors
    ///
    /// [`CodecError::ElementWidth`] and those of [`BlockEncoder::encode`].
    pub fn encode_elements<'a>(
        &'a mut self,
        codec: Codec,
        src: &'a [u8],
        base: Option<&[u8]>,
        width: Option<u8>,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        self.encode_compared(None, codec, src, base.map(Base::from), width)
    }

    /// [`BlockEncoder::encode_with`], or without a dictionary [`BlockEncoder::encode_elements`], of what may have been
    /// compared with its base already.
    pub(crate) fn encode_compared<'a>(
        &'a mut self,
        dictionary: Option<&Dictionary>,
        codec: Codec,
        src: &'a [u8],
        base: Option<Base<'_>>,
        width: Option<u8>,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        let elements = known_width(width)?;
        if page::fill_byte(src).is_some() {
            return Ok(EncodedBlock { kind: BlockKind::Fill, codec: CodecId::None, wire: &src[..1] });
        }
        let Some(dictionary) = dictionary.filter(|_| src.len() <= MAX_DICTIONARY_BLOCK_BYTES) else {
            let (plain, coded) = self.try_forms(codec, src, base, elements)?;
            return Ok(self.smallest(src, plain, coded));
        };
        let level = if let Codec::Zstd { level } = codec { level } else { DICTIONARY_LEVEL };
        self.packed.clear();
        self.compressor.compress_with(dictionary, level, src, &mut self.packed)?;
        // A base, or numbers grouped by their places, may do better still.
        let is_enough =
            base.is_none_or(|base| base.bytes.is_empty()) && is_good(self.packed.len(), src.len());
        let (plain, coded) =
            if is_enough { (None, None) } else { self.try_forms(codec, src, base, elements)? };
        let other = self.smallest(src, plain, coded);
        if other.wire.len() <= self.packed.len() {
            return Ok(other);
        }
        Ok(EncodedBlock { kind: BlockKind::Plain, codec: CodecId::ZstdDictionary, wire: &self.packed })
    }

    /// Encodes `src` in the forms worth trying; [`BlockEncoder::smallest`] takes what is returned.
    fn try_forms(
        &mut self,
        codec: Codec,
        src: &[u8],
        base: Option<Base<'_>>,
        width: Option<usize>,
    ) -> Result<(Option<CodecId>, Option<BlockKind>), CodecError> {
        let mut coded = self.encode_against(src, base, width)?;
        let mut plain = None;
        let saves_well = coded.is_some() && is_good(self.coded.len(), src.len());
        let may_save_more = !saves_well
            && codec != Codec::None
            && match coded {
                Some(_) => probe::least_share(src) * (src.len() as f32) < self.coded.len() as f32,
                None => probe::compressible(src),
            };
        if may_save_more {
            match choose::planes(src, width) {
                Some((transform, width)) if coded.is_none() && src.len() <= MAX_BLOCK_BYTES => {
                    coded = self.encode_planes(transform, width, src, src)?.then_some(BlockKind::Planes);
                }
                _ => {
                    self.plain.clear();
                    self.compressor.compress(codec, src, &mut self.plain)?;
                    let limit = if coded.is_some() { self.coded.len() } else { src.len() };
                    plain = (self.plain.len() < limit).then_some(codec.id());
                }
            }
        }
        Ok((plain, coded))
    }

    /// Encodes `src` as somebody has chosen who knows it: what differs from the base, where that saves well, and else by
    /// `action`. Nothing is guessed about `src` again, and what an action makes no smaller is sent as it is.
    ///
    /// `width` is the width of its elements in bytes (1, 2, 4 or 8), if it is known.
    ///
    /// # Errors
    ///
    /// [`CodecError::NoPlanes`] if there are no elements for [`Action::Planes`], [`CodecError::ElementWidth`], and those
    /// of [`BlockEncoder::encode`].
    pub fn encode_action<'a>(
        &'a mut self,
        action: Action,
        src: &'a [u8],
        base: Option<&[u8]>,
        width: Option<u8>,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        let elements = known_width(width)?;
        if !action.is_possible(width) {
            return Err(CodecError::NoPlanes { width: width.unwrap_or(1) });
        }
        if page::fill_byte(src).is_some() {
            return Ok(EncodedBlock { kind: BlockKind::Fill, codec: CodecId::None, wire: &src[..1] });
        }
        let mut coded = self.encode_against(src, base.map(Base::from), elements)?;
        let limit = if coded.is_some() { self.coded.len() } else { src.len() };
        let mut plain = None;
        if !is_good(limit, src.len()) {
            match action.codec() {
                Some(Codec::None) => {}
                Some(codec) => {
                    self.plain.clear();
                    self.compressor.compress(codec, src, &mut self.plain)?;
                    plain = (self.plain.len() < limit).then_some(codec.id());
                }
                None if coded.is_none() && src.len() <= MAX_BLOCK_BYTES => {
                    let width = elements.unwrap_or(1);
                    let transform = choose::transform(src, width);
                    coded = self.encode_planes(transform, width, src, src)?.then_some(BlockKind::Planes);
                }
                None => {}
            }
        }
        Ok(self.smallest(src, plain, coded))
    }

    /// What was made of `src`: `plain` by that codec, `coded` in that kind, or nothing.
    fn smallest<'a>(
        &'a self,
        src: &'a [u8],
        plain: Option<CodecId>,
        coded: Option<BlockKind>,
    ) -> EncodedBlock<'a> {
        match (plain, coded) {
            (Some(codec), _) => EncodedBlock { kind: BlockKind::Plain, codec, wire: &self.plain },
            (None, Some(kind)) => EncodedBlock { kind, codec: CodecId::None, wire: &self.coded },
            (None, None) => EncodedBlock { kind: BlockKind::Plain, codec: CodecId::None, wire: src },
        }
    }

    /// Fills `self.coded` with what differs from the base, if there is any, in the kind returned, if that is smaller
    /// than `src`.
    fn encode_against(
        &mut self,
        src: &[u8],
        base: Option<Base<'_>>,
        width: Option<usize>,
    ) -> Result<Option<BlockKind>, CodecError> {
        let Some(Base { bytes: base, dirty, is_partial }) = base.filter(|_| src.len() <= MAX_BLOCK_BYTES)
        else {
            return Ok(None);
        };
        if base.is_empty() {
            return self.encode_used(src, dirty, width);
        }
        let is_short = base.len() < src.len();
        let mut padded = std::mem::take(&mut self.padded);
        let base = if is_short {
            padded.clear();
            padded.extend_from_slice(base);
            padded.resize(src.len(), 0);
            &padded
        } else {
            &base[..src.len()]
        };
        let DirtyLines { words: dirty, count } = match dirty.filter(|_| !is_short) {
            Some(dirty) => dirty,
            None => {
                self.dirty.resize(lines::words_for(src.len()), 0);
                let count = lines::dirty_lines(Level::detected(), base, src, &mut self.dirty);
                DirtyLines { words: &self.dirty, count }
            }
        };
        let mut choice = choose::against(src, base, dirty, count, width);
        // Only differences fill up a short base.
        if is_short {
            choice = match choice {
                Against::Sparse(width) => Against::Difference(width),
                Against::Runs => Against::Difference(1),
                other => other,
            };
        }
        self.coded.clear();
        let kind = match choice {
            Against::Nothing => None,
            Against::Sparse(width) => {
                self.sparse.append(width, src, base, dirty, &mut self.streams, &mut self.coded)?;
                Some(BlockKind::Sparse)
            }
            Against::Runs => {
                self.runs.append(src, base, dirty, &mut self.streams, &mut self.coded)?;
                Some(BlockKind::Runs)
            }
            Against::Difference(width) => {
                let mut whole = std::mem::take(&mut self.plain);
                if is_partial {
                    whole.clear();
                    whole.extend_from_slice(src);
                    lines::put_lines(base, dirty, &mut whole);
                }
                let base = if is_partial { &whole } else { base };
                let is_smaller = self.encode_planes(Transform::Zigzag, width, src, base);
                self.plain = whole;
                is_smaller?.then_some(BlockKind::Difference)
            }
        };
        self.padded = padded;
        Ok(kind.filter(|_| self.coded.len() < src.len()))
    }

    /// Fills `self.coded` with what of `src` is not zero, if that is little and known.
    fn encode_used(
        &mut self,
        src: &[u8],
        used: Option<DirtyLines<'_>>,
        width: Option<usize>,
    ) -> Result<Option<BlockKind>, CodecError> {
        let is_little = |used: &DirtyLines<'_>| used.count * LINE_BYTES < src.len() / USED_SHARE;
        let used = used.filter(|used| width.is_none_or(|width| width == 1) && is_little(used));
        let Some(used) = used else { return Ok(None) };
        self.coded.clear();
        self.runs.append_new(src, used.words, &mut self.streams, &mut self.coded)?;
        Ok((self.coded.len() < src.len()).then_some(BlockKind::Runs))
    }

    /// Fills `self.coded` with planes; says whether that is smaller than `src`.
    fn encode_planes(
        &mut self,
        transform: Transform,
        width: usize,
        src: &[u8],
        base: &[u8],
    ) -> Result<bool, CodecError> {
        self.coded.clear();
        planes::append(transform, width, src, base, &mut self.planes, &mut self.streams, &mut self.coded)?;
        Ok(self.coded.len() < src.len())
    }
}
