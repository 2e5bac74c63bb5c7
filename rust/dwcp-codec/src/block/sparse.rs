//! Payloads of sparse blocks: which elements changed, and by how much.

use super::WIDTHS;
use super::decode::Way;
use super::values::{self, POSITION_BITS, POSITION_MANTISSA, ValueScratch, ValueWriter, change_mantissa};
use crate::codec::Decompressor;
use crate::digest::Digest;
use crate::error::CodecError;
use crate::kernel::changes::{self, Changed};
use crate::kernel::element::with_element;
use crate::kernel::{LINE_BYTES, Level};
use crate::stream::{Content, PayloadReader, StreamEncoder, append_number};

/// Bit of the mode: positions are a bit for each element.
const AS_MASK: u8 = 4;
/// Positions are told as a mask if more than one element in this many changed (18 %): there the gaps take more.
const GAPS_BELOW: f64 = 0.18;

/// Encodes, keeping its buffers.
#[derive(Default)]
pub(super) struct SparseEncoder {
    values: ValueWriter,
    mask: Vec<u64>,
    mask_bytes: Vec<u8>,
    zigzags: Vec<u8>,
}

impl SparseEncoder {
    /// Appends the payload; `dirty` has the lines in which `src` differs from `base`, which is as long.
    pub(super) fn append(
        &mut self,
        width: usize,
        src: &[u8],
        base: &[u8],
        dirty: &[u64],
        streams: &mut StreamEncoder,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let elements = src.len() / width;
        self.mask.clear();
        self.mask.resize(changes::words_for(elements), 0);
        if self.zigzags.len() < src.len() + LINE_BYTES {
            self.zigzags.resize(src.len() + LINE_BYTES, 0);
        }
        let count =
            changes::find(Level::detected(), width, base, src, dirty, &mut self.mask, &mut self.zigzags);
        let as_mask = count as f64 > elements as f64 * GAPS_BELOW;
        out.push(width.trailing_zeros() as u8 | if as_mask { AS_MASK } else { 0 });
        append_number(count as u64, out);
        if as_mask {
            self.mask_bytes.resize(8 * self.mask.len(), 0);
            for (bytes, word) in self.mask_bytes.as_chunks_mut().0.iter_mut().zip(&self.mask) {
                *bytes = word.to_le_bytes();
            }
            streams.append(&self.mask_bytes[..elements.div_ceil(8)], Content::Codes, out)?;
        } else if count > 0 {
            self.values.start(POSITION_MANTISSA, count);
            self.values.extend_gaps(Level::detected(), &self.mask, count);
            self.values.finish(Content::Codes, streams, out)?;
        }
        let zigzags = &self.zigzags[..count * width];
        match width {
            1 => streams.append(zigzags, Content::Codes, out)?,
            _ if count == 0 => {}
            _ => {
                self.values.start(change_mantissa(width), count);
                with_element!(width, E => self.values.extend::<E>(zigzags));
                self.values.finish(Content::Codes, streams, out)?;
            }
        }
        out.extend_from_slice(&src[elements * width..]);
        Ok(())
    }
}

/// Decodes, keeping its buffers.
#[derive(Default)]
pub(super) struct SparseDecoder {
    positions: ValueScratch,
    changes: ValueScratch,
    bytes: Vec<u8>,
    mask: Vec<u64>,
    gaps: Vec<u8>,
    places: Vec<u32>,
    zigzags: Vec<u8>,
}

impl SparseDecoder {
    /// Decodes a payload to `dst`, which holds the base, or the other way: without a tail to the base. On an error
    /// `dst` is as it was. Gives the digest of what it is then, if that is asked for and was found on the way.
    pub(super) fn decode(
        &mut self,
        way: Way,
        payload: &[u8],
        decompressor: &mut Decompressor,
        dst: &mut [u8],
        hash: bool,
    ) -> Result<Option<Digest>, CodecError> {
        let mut reader = PayloadReader::new(payload);
        let mode = reader.byte("mode")?;
        if mode >= 2 * AS_MASK {
            return Err(CodecError::UnknownMode { mode });
        }
        let width = usize::from(WIDTHS[usize::from(mode & 3)]);
        let elements = dst.len() / width;
        let count = reader.number("changed elements", 0, elements)?;
        let is_mask = mode & AS_MASK != 0;
        if count == 0 && is_mask {
            return Err(CodecError::UnknownMode { mode });
        }
        // Without any, only the tail changed.
        if count > 0 {
            if is_mask {
                self.read_mask(&mut reader, elements, count, decompressor)?;
            } else {
                self.read_gaps(&mut reader, elements, count, decompressor)?;
            }
            self.read_changes(&mut reader, width, count, decompressor)?;
        }
        let last = &mut dst[elements * width..];
        let tail = reader.bytes("tail", last.len())?;
        reader.finish()?;
        last.copy_from_slice(tail);
        if count == 0 {
            return Ok(None);
        }
        if way == Way::ToBase {
            changes::reverse(width, &mut self.zigzags[..count * width]);
        }
        let changed = if is_mask { Changed::Bits(&self.mask) } else { Changed::Places(&self.places) };
        let level = Level::detected();
        if hash {
            return Ok(Some(changes::apply_and_hash(level, width, changed, &self.zigzags, dst)));
        }
        changes::apply(level, width, changed, &self.zigzags, dst);
        Ok(None)
    }

    fn read_mask(
        &mut self,
        reader: &mut PayloadReader<'_>,
        elements: usize,
        count: usize,
        decompressor: &mut Decompressor,
    ) -> Result<(), CodecError> {
        let what = "mask of changed elements";
        let mask = reader.stream(what, elements.div_ceil(8), decompressor, &mut self.bytes)?;
        self.mask.clear();
        self.mask.extend(mask.chunks(8).map(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        }));
        let past = self
            .mask
            .last()
            .filter(|_| !elements.is_multiple_of(64))
            .map_or(0, |last| last >> (elements % 64));
        let set = self.mask.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        if past != 0 || set != count {
            return Err(CodecError::PayloadNumber { what, value: set as u64, low: count, high: count });
        }
        Ok(())
    }

    fn read_gaps(
        &mut self,
        reader: &mut PayloadReader<'_>,
        elements: usize,
        count: usize,
        decompressor: &mut Decompressor,
    ) -> Result<(), CodecError> {
        let what = "gaps between changed elements";
        let gaps = values::read(
            what,
            reader,
            count,
            POSITION_MANTISSA,
            POSITION_BITS,
            decompressor,
            &mut self.positions,
        )?;
        self.gaps.resize(4 * count, 0);
        gaps.write::<u32>(&mut self.gaps);
        let mut next = 0;
        self.places.clear();
        self.places.extend(self.gaps.as_chunks().0.iter().map(|gap| {
            let place = next + u64::from(u32::from_le_bytes(*gap));
            next = place + 1;
            place as u32
        }));
        // As many gaps of 32 bits as a block has elements have a sum of far less than 64; places rise to the last.
        if next > elements as u64 {
            return Err(CodecError::PayloadNumber { what, value: next - 1, low: 0, high: elements - 1 });
        }
        Ok(())
    }

    fn read_changes(
        &mut self,
        reader: &mut PayloadReader<'_>,
        width: usize,
        count: usize,
        decompressor: &mut Decompressor,
    ) -> Result<(), CodecError> {
        let what = "changes of elements";
        self.zigzags.clear();
        let has_zero = if width == 1 {
            let zigzags = reader.stream(what, count, decompressor, &mut self.bytes)?;
            self.zigzags.extend_from_slice(zigzags);
            self.zigzags.contains(&0)
        } else {
            let values = values::read(
                what,
                reader,
                count,
                change_mantissa(width),
                8 * width as u32,
                decompressor,
                &mut self.changes,
            )?;
            self.zigzags.resize(count * width, 0);
            with_element!(width, E => values.write::<E>(&mut self.zigzags))
        };
        if has_zero {
            return Err(CodecError::PayloadNumber { what, value: 0, low: 1, high: usize::MAX });
        }
        // The loops read a line at a time.
        self.zigzags.resize(count * width + LINE_BYTES, 0);
        Ok(())
    }
}
