//! Encoding blocks: which kind, and with what.

use super::{BlockKind, EncodedBlock, MAX_BLOCK_BYTES, planes};
use crate::codec::{Codec, CodecId, Compressor};
use crate::error::CodecError;
use crate::kernel::planes::Transform;
use crate::stream::StreamEncoder;
use crate::{page, probe};

/// Encodes blocks, keeping its buffers between them.
#[derive(Default)]
pub struct BlockEncoder {
    compressor: Compressor,
    streams: StreamEncoder,
    plain: Vec<u8>,
    coded: Vec<u8>,
    planes: Vec<u8>,
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
        if let Some(width) = width.filter(|width| !super::WIDTHS.contains(width)) {
            return Err(CodecError::ElementWidth { width });
        }
        if page::fill_byte(src).is_some() {
            return Ok(EncodedBlock { kind: BlockKind::Fill, codec: CodecId::None, wire: &src[..1] });
        }
        let coded = match base {
            Some(base) if !base.is_empty() && src.len() <= MAX_BLOCK_BYTES => {
                let base = padded(base, src.len(), &mut self.padded);
                self.coded.clear();
                planes::append(
                    Transform::Xor,
                    width.unwrap_or(1).into(),
                    src,
                    base,
                    &mut self.planes,
                    &mut self.streams,
                    &mut self.coded,
                )?;
                self.coded.len() < src.len()
            }
            _ => false,
        };
        // A difference that saves well is taken without trying the rest.
        let coded_is_good = coded && self.coded.len() <= src.len() / 5 * 3;
        let plain = !coded_is_good && codec != Codec::None && self.encode_plain(codec, src)?;
        if coded && !(plain && self.plain.len() < self.coded.len()) {
            return Ok(EncodedBlock { kind: BlockKind::Difference, codec: CodecId::None, wire: &self.coded });
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
