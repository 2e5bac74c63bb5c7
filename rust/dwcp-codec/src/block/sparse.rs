//! Payloads of sparse blocks: which elements changed, and by how much.

use super::WIDTHS;
use super::decode::Way;
use super::values::{self, POSITION_BITS, POSITION_MANTISSA, ValueScratch, ValueWriter, change_mantissa};
use crate::codec::Decompressor;
use crate::error::CodecError;
use crate::kernel::element::with_element;
use crate::kernel::{LINE_BYTES, Level, changes};
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
            self.mask_bytes.clear();
            self.mask_bytes.extend(self.mask.iter().flat_map(|word| word.to_le_bytes()));
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
    zigzags: Vec<u8>,
}

impl SparseDecoder {
    /// Decodes a payload to `dst`, which holds the base, or the other way: without a tail to the base. On an error
    /// `dst` is as it was.
    pub(super) fn decode(
        &mut self,
        way: Way,
        payload: &[u8],
        decompressor: &mut Decompressor,
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        let mut reader = PayloadReader::new(payload);
        let mode = reader.byte("mode")?;
        if mode >= 2 * AS_MASK {
            return Err(CodecError::UnknownMode { mode });
        }
        let width = usize::from(WIDTHS[usize::from(mode & 3)]);
        let elements = dst.len() / width;
        let count = reader.number("changed elements", 0, elements)?;
        if count == 0 && mode & AS_MASK != 0 {
            return Err(CodecError::UnknownMode { mode });
        }
        // Without any, only the tail changed.
        if count > 0 {
            if mode & AS_MASK != 0 {
                self.read_mask(&mut reader, elements, count, decompressor)?;
            } else {
                self.read_gaps(&mut reader, elements, count, decompressor)?;
            }
            self.read_changes(&mut reader, width, count, decompressor)?;
        }
        let (whole, last) = dst.split_at_mut(elements * width);
        let tail = reader.bytes("tail", last.len())?;
        reader.finish()?;
        if count > 0 {
            if way == Way::ToBase {
                changes::reverse(width, &mut self.zigzags[..count * width]);
            }
            changes::apply(Level::detected(), width, &self.mask, &self.zigzags, whole);
        }
        last.copy_from_slice(tail);
        Ok(())
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
        self.mask.clear();
        self.mask.resize(changes::words_for(elements), 0);
        let mut next = 0;
        for gap in gaps.iter() {
            // A gap has at most 32 bits, and no block as many elements.
            let element = next + gap as usize;
            if element >= elements {
                let value = element as u64;
                return Err(CodecError::PayloadNumber { what, value, low: 0, high: elements - 1 });
            }
            self.mask[element / 64] |= 1 << (element % 64);
            next = element + 1;
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
