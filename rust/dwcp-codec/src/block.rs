//! One block of an object: filled with one byte, plain, or as its difference to a base.

use crate::codec::{Codec, CodecId, Compressor, Decompressor};
use crate::error::CodecError;
use crate::{page, probe, raw, shuffle};

/// How a block is represented.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BlockKind {
    /// The block's bytes, compressed by the codec.
    Plain = 0,
    /// One byte that every byte of the block equals.
    Fill = 1,
    /// The block XOR the base's bytes at the same place, compressed by the codec. Where the base ends early it counts
    /// as zero bytes.
    Xor = 2,
}

impl TryFrom<u8> for BlockKind {
    type Error = CodecError;

    fn try_from(kind: u8) -> Result<BlockKind, CodecError> {
        match kind {
            0 => Ok(BlockKind::Plain),
            1 => Ok(BlockKind::Fill),
            2 => Ok(BlockKind::Xor),
            _ => Err(CodecError::UnknownBlockKind { kind, max: BlockKind::Xor as u8 }),
        }
    }
}

/// A block ready to be sent or stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncodedBlock<'a> {
    /// How the block is represented.
    pub kind: BlockKind,
    /// The codec of `wire`.
    pub codec: CodecId,
    /// The bytes to send: those of the encoder, or the source itself when nothing makes it smaller. Never longer
    /// than the source.
    pub wire: &'a [u8],
}

/// The codec of differences where the caller's own makes little of them.
const DELTA_CODEC: Codec = Codec::Zstd { level: 1 };

/// Encodes blocks, keeping its buffers between them.
#[derive(Default)]
pub struct BlockEncoder {
    compressor: Compressor,
    plain: Vec<u8>,
    delta: Vec<u8>,
    difference: Vec<u8>,
    padded: Vec<u8>,
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
    /// A difference is compressed by zstd whatever `codec` says, at its level if it has one. Data that looks
    /// incompressible is not given to a compressor.
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
        self.encode_elements(codec, src, base, 1)
    }

    /// [`BlockEncoder::encode`] with the bytes of a difference grouped by their place in elements of `width` bytes.
    pub(crate) fn encode_elements<'a>(
        &'a mut self,
        codec: Codec,
        src: &'a [u8],
        base: Option<&[u8]>,
        width: u8,
    ) -> Result<EncodedBlock<'a>, CodecError> {
        if page::fill_byte(src).is_some() {
            return Ok(EncodedBlock { kind: BlockKind::Fill, codec: CodecId::None, wire: &src[..1] });
        }
        let delta = match base {
            Some(base) if !base.is_empty() => self.encode_difference(codec, src, base, width)?,
            _ => false,
        };
        // A difference that saves well is taken without trying the rest.
        let delta_is_good = delta && self.delta.len() <= src.len() / 5 * 3;
        let plain = !delta_is_good && codec != Codec::None && self.encode_plain(codec, src)?;
        if delta && !(plain && self.plain.len() < self.delta.len()) {
            return Ok(EncodedBlock { kind: BlockKind::Xor, codec: CodecId::Zstd, wire: &self.delta });
        }
        if plain {
            return Ok(EncodedBlock { kind: BlockKind::Plain, codec: codec.id(), wire: &self.plain });
        }
        Ok(EncodedBlock { kind: BlockKind::Plain, codec: CodecId::None, wire: src })
    }

    /// Fills `self.plain`; says whether that is smaller than `src`.
    fn encode_plain(&mut self, codec: Codec, src: &[u8]) -> Result<bool, CodecError> {
        if !probe::compressible(src) {
            return Ok(false);
        }
        self.plain.clear();
        self.compressor.compress(codec, src, &mut self.plain)?;
        Ok(self.plain.len() < src.len())
    }

    /// Fills `self.delta`; says whether that is smaller than `src`.
    fn encode_difference(
        &mut self,
        codec: Codec,
        src: &[u8],
        base: &[u8],
        width: u8,
    ) -> Result<bool, CodecError> {
        let base = padded(base, src.len(), &mut self.padded);
        if self.difference.len() < src.len() {
            self.difference.resize(src.len(), 0);
        }
        let difference = &mut self.difference[..src.len()];
        shuffle::xor_grouped(src, base, width, difference);
        if !probe::compressible(difference) {
            return Ok(false);
        }
        let codec = if codec.id() == CodecId::Zstd { codec } else { DELTA_CODEC };
        self.delta.clear();
        self.compressor.compress(codec, difference, &mut self.delta)?;
        Ok(self.delta.len() < src.len())
    }
}

/// Decodes blocks, keeping its state between them.
#[derive(Default)]
pub struct BlockDecoder {
    decompressor: Decompressor,
    difference: Vec<u8>,
    padded: Vec<u8>,
}

impl BlockDecoder {
    /// A decoder whose buffers grow with the blocks it is given.
    #[must_use]
    pub fn new() -> BlockDecoder {
        BlockDecoder::default()
    }

    /// Decodes `wire` into `dst`, whose length must be the block's.
    ///
    /// `base` is needed for [`BlockKind::Xor`] and must be what the encoder was given; that it is so can only be
    /// proven by digests, of the base before and of the block afterwards. On an error the contents of `dst` are
    /// unspecified.
    ///
    /// # Errors
    ///
    /// Those of [`Decompressor::decompress_into`], [`CodecError::FillBlock`] or [`CodecError::MissingBase`].
    pub fn decode(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        base: Option<&[u8]>,
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        self.decode_elements(kind, codec, wire, base, 1, dst)
    }

    /// [`BlockDecoder::decode`] for differences grouped by elements of `width` bytes.
    pub(crate) fn decode_elements(
        &mut self,
        kind: BlockKind,
        codec: CodecId,
        wire: &[u8],
        base: Option<&[u8]>,
        width: u8,
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        match (kind, wire) {
            (BlockKind::Fill, [byte]) if codec == CodecId::None => {
                dst.fill(*byte);
                Ok(())
            }
            (BlockKind::Fill, _) => Err(CodecError::FillBlock { length: wire.len(), codec }),
            (BlockKind::Plain, _) => self.decompressor.decompress_into_slice(codec, wire, dst),
            (BlockKind::Xor, _) if width == 1 => {
                let base = base.ok_or(CodecError::MissingBase)?;
                self.decompressor.decompress_into_slice(codec, wire, dst)?;
                shuffle::xor_in_place(dst, base);
                Ok(())
            }
            (BlockKind::Xor, _) => {
                let base = padded(base.ok_or(CodecError::MissingBase)?, dst.len(), &mut self.padded);
                self.difference.clear();
                let decompressor = &mut self.decompressor;
                raw::append_exactly(&mut self.difference, dst.len(), |out| {
                    decompressor.fill(codec, wire, out)
                })?;
                shuffle::xor_ungrouped(&self.difference, base, width, dst);
                Ok(())
            }
        }
    }
}

/// `base` cut or filled up with zero bytes to `length`.
fn padded<'a>(base: &'a [u8], length: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if let Some(base) = base.get(..length) {
        return base;
    }
    scratch.clear();
    scratch.extend_from_slice(base);
    scratch.resize(length, 0);
    scratch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::{noise, text, weights};
    use proptest::prelude::*;

    const ZSTD: Codec = Codec::Zstd { level: 1 };

    fn roundtrip(codec: Codec, src: &[u8], base: Option<&[u8]>) -> (BlockKind, CodecId, usize) {
        let mut encoder = BlockEncoder::new();
        let block = encoder.encode(codec, src, base).unwrap();
        assert!(block.wire.len() <= src.len(), "{codec} made {} bytes of {}", block.wire.len(), src.len());
        let mut back = vec![0xee; src.len()];
        BlockDecoder::new().decode(block.kind, block.codec, block.wire, base, &mut back).unwrap();
        assert!(back == src);
        (block.kind, block.codec, block.wire.len())
    }

    #[test]
    fn coders_move_between_threads() {
        fn moves<T: Send>() {}
        moves::<BlockEncoder>();
        moves::<BlockDecoder>();
    }

    #[test]
    fn constant_block_is_one_byte_even_with_a_base() {
        for codec in [Codec::None, Codec::Lz4, ZSTD] {
            let src = vec![9; 70_000];
            assert_eq!(roundtrip(codec, &src, None), (BlockKind::Fill, CodecId::None, 1));
            assert_eq!(roundtrip(codec, &src, Some(&noise(1, 70_000))), (BlockKind::Fill, CodecId::None, 1));
        }
    }

    #[test]
    fn incompressible_block_is_the_source_itself() {
        let src = noise(5, 100_000);
        for base in [None, Some(&noise(6, 100_000)[..])] {
            let mut encoder = BlockEncoder::new();
            let block = encoder.encode(ZSTD, &src, base).unwrap();
            assert_eq!((block.kind, block.codec), (BlockKind::Plain, CodecId::None));
            assert!(std::ptr::eq(block.wire, &src[..]));
        }
    }

    #[test]
    fn block_that_changed_little_is_sent_as_its_difference() {
        let base = noise(5, 1 << 20);
        let mut src = base.clone();
        src[77_777] ^= 1;
        for codec in [Codec::None, Codec::Lz4, ZSTD] {
            let (kind, codec, length) = roundtrip(codec, &src, Some(&base));
            assert_eq!((kind, codec), (BlockKind::Xor, CodecId::Zstd));
            assert!(length < 500, "{length}");
        }
    }

    #[test]
    fn unrelated_base_does_not_stop_plain_compression() {
        let (src, base) = (text(100_000), noise(5, 100_000));
        assert_eq!(roundtrip(ZSTD, &src, Some(&base)).0, BlockKind::Plain);
        assert_eq!(roundtrip(Codec::Lz4, &src, Some(&base)).1, CodecId::Lz4);
        // An equal-natured base makes a difference that compresses, but worse than the block itself does.
        let (kind, _, length) = roundtrip(ZSTD, &src, Some(&text(100_100)[50..]));
        assert!(kind == BlockKind::Plain || length < 60_000);
        let (kind, codec, length) = roundtrip(ZSTD, &weights(1 << 20), None);
        assert_eq!((kind, codec), (BlockKind::Plain, CodecId::Zstd));
        assert!(length < 900_000, "{length}");
    }

    #[test]
    fn malformed_fill_and_difference_without_base_are_refused() {
        let mut dst = [0; 8];
        let mut decoder = BlockDecoder::new();
        for (codec, wire) in [(CodecId::None, &b""[..]), (CodecId::None, b"ab"), (CodecId::Lz4, b"a")] {
            let refused = decoder.decode(BlockKind::Fill, codec, wire, None, &mut dst);
            assert_eq!(refused, Err(CodecError::FillBlock { length: wire.len(), codec }));
        }
        let refused = decoder.decode(BlockKind::Xor, CodecId::None, &[0; 8], None, &mut dst);
        assert_eq!(refused, Err(CodecError::MissingBase));
        assert_eq!(BlockKind::try_from(3), Err(CodecError::UnknownBlockKind { kind: 3, max: 2 }));
    }

    proptest! {
        #[test]
        fn every_block_is_given_back(
            src in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..3_000),
                (0..9_000_usize).prop_map(text),
                (any::<u8>(), 0..3_000_usize).prop_map(|(byte, length)| vec![byte; length]),
            ],
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
            base_length in prop::option::of(0..9_000_usize),
            codec in prop::sample::select(vec![Codec::None, Codec::Lz4, ZSTD, Codec::Zstd { level: 9 }]),
            width in prop::sample::select(&shuffle::WIDTHS[..]),
        ) {
            let base = base_length.map(|length| {
                let mut base = src.clone();
                for (at, byte) in changes.iter().filter(|_| !src.is_empty()) {
                    base[at.index(src.len())] = *byte;
                }
                base.resize(length, 1);
                base
            });
            let mut encoder = BlockEncoder::new();
            let block = encoder.encode_elements(codec, &src, base.as_deref(), width).unwrap();
            prop_assert!(block.wire.len() <= src.len());
            let mut back = vec![0xee; src.len()];
            let mut decoder = BlockDecoder::new();
            decoder
                .decode_elements(block.kind, block.codec, block.wire, base.as_deref(), width, &mut back)
                .unwrap();
            prop_assert_eq!(back, src);
        }

        #[test]
        fn arbitrary_bytes_never_panic_the_decoder(
            wire in prop::collection::vec(any::<u8>(), 0..300),
            base in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            length in 0..5_000_usize,
        ) {
            let mut dst = vec![0; length];
            for kind in [BlockKind::Plain, BlockKind::Fill, BlockKind::Xor] {
                for codec in [CodecId::None, CodecId::Lz4, CodecId::Zstd] {
                    let _ = BlockDecoder::new().decode(kind, codec, &wire, base.as_deref(), &mut dst);
                }
            }
        }
    }
}
