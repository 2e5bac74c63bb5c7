//! Payloads of runs: which bytes changed, as they are.

use std::ops::Range;

use super::values::{self, POSITION_BITS, POSITION_MANTISSA, ValueScratch, ValueWriter};
use crate::codec::Decompressor;
use crate::error::CodecError;
use crate::kernel::{LINE_BYTES, Level, lines};
use crate::stream::{Content, PayloadReader, StreamEncoder, append_number};

/// Runs with no more unchanged bytes between them are told as one: another run takes about as much.
const MERGED_GAP_BYTES: usize = 8;

/// Encodes, keeping its buffers.
#[derive(Default)]
pub(super) struct RunsEncoder {
    masks: Vec<u64>,
    gaps: ValueWriter,
    lengths: ValueWriter,
    bytes: Vec<u8>,
    old_bytes: Vec<u8>,
    runs: Vec<Range<usize>>,
}

impl RunsEncoder {
    /// Appends the payload; `dirty` has the lines in which `src` differs from `base`, which is as long. There is at
    /// least one.
    pub(super) fn append(
        &mut self,
        src: &[u8],
        base: &[u8],
        dirty: &[u64],
        streams: &mut StreamEncoder,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        self.masks.clear();
        lines::byte_masks(Level::detected(), base, src, dirty, &mut self.masks);
        self.list(src, dirty);
        self.old_bytes.clear();
        for run in &self.runs {
            self.old_bytes.extend_from_slice(&base[run.clone()]);
        }
        append_number(self.runs.len() as u64, out);
        self.gaps.finish(Content::Bytes, streams, out)?;
        self.lengths.finish(Content::Bytes, streams, out)?;
        let before = self.old_bytes.len();
        self.old_bytes.extend_from_slice(&self.bytes);
        streams.append_behind(&self.old_bytes, before, out)
    }

    /// Appends the payload of `src` against nothing but zero bytes; `used` has the lines in which there are others. There
    /// is at least one.
    pub(super) fn append_new(
        &mut self,
        src: &[u8],
        used: &[u64],
        streams: &mut StreamEncoder,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        self.masks.clear();
        for index in lines::set_bits(used) {
            lines::set_bytes(Level::detected(), &lines::line(src, index), &mut self.masks);
        }
        self.list(src, used);
        append_number(self.runs.len() as u64, out);
        self.gaps.finish(Content::Bytes, streams, out)?;
        self.lengths.finish(Content::Bytes, streams, out)?;
        streams.append(&self.bytes, Content::Bytes, out)
    }

    /// Lists the runs of `src` that are marked in `self.masks`, line by line of `dirty`.
    fn list(&mut self, src: &[u8], dirty: &[u64]) {
        self.gaps.start(POSITION_MANTISSA, self.masks.len());
        self.lengths.start(POSITION_MANTISSA, self.masks.len());
        self.bytes.clear();
        self.runs.clear();
        let mut run = 0..0;
        for (index, line) in lines::set_bits(dirty).enumerate() {
            let (start, mut mask) = (line * LINE_BYTES, self.masks[index]);
            while mask != 0 {
                let first = mask.trailing_zeros() as usize;
                let length = (!(mask >> first)).trailing_zeros() as usize;
                let found = start + first..start + first + length;
                if run.is_empty() {
                    run = found;
                } else if found.start - run.end <= MERGED_GAP_BYTES {
                    run.end = found.end;
                } else {
                    self.push(src, run);
                    run = found;
                }
                // A run up to the last bit leaves nothing.
                mask = if first + length == 64 { 0 } else { mask & (u64::MAX << (first + length)) };
            }
        }
        self.push(src, run);
    }

    fn push(&mut self, src: &[u8], run: Range<usize>) {
        let end = self.runs.last().map_or(0, |run| run.end);
        self.gaps.push((run.start - end) as u64);
        self.lengths.push((run.len() - 1) as u64);
        self.bytes.extend_from_slice(&src[run.clone()]);
        self.runs.push(run);
    }
}

/// Decodes, keeping its buffers.
#[derive(Default)]
pub(super) struct RunsDecoder {
    gaps: ValueScratch,
    lengths: ValueScratch,
    bytes: Vec<u8>,
}

impl RunsDecoder {
    /// Decodes a payload to `dst`, which holds the base.
    pub(super) fn decode(
        &mut self,
        payload: &[u8],
        decompressor: &mut Decompressor,
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        let mut reader = PayloadReader::new(payload);
        let count = reader.number("runs", 1, dst.len().div_ceil(2))?;
        let (mantissa, bits) = (POSITION_MANTISSA, POSITION_BITS);
        let what = "gaps between runs";
        let gaps = values::read(what, &mut reader, count, mantissa, bits, decompressor, &mut self.gaps)?;
        let what = "lengths of runs";
        let lengths =
            values::read(what, &mut reader, count, mantissa, bits, decompressor, &mut self.lengths)?;
        // At most 2^22 values of at most 32 bits.
        let total = lengths.iter().map(|length| length + 1).sum::<u64>();
        if total > dst.len() as u64 {
            let (what, high) = ("bytes of all runs", dst.len());
            return Err(CodecError::PayloadNumber { what, value: total, low: 1, high });
        }
        let mut end = 0;
        for (index, (gap, length)) in gaps.iter().zip(lengths.iter()).enumerate() {
            if gap == 0 && index > 0 {
                return Err(CodecError::PayloadNumber { what: "gap", value: 0, low: 1, high: dst.len() });
            }
            // Both have at most 32 bits, and what precedes them lies within the block.
            end += gap + length + 1;
            if end > dst.len() as u64 {
                let (what, high) = ("end of a run", dst.len());
                return Err(CodecError::PayloadNumber { what, value: end, low: 1, high });
            }
        }
        let runs = || {
            let mut end = 0;
            gaps.iter().zip(lengths.iter()).map(move |(gap, length)| {
                let start = end + gap as usize;
                end = start + length as usize + 1;
                start..end
            })
        };
        let (what, total) = ("bytes of runs", total as usize);
        let bytes = reader.stream_behind(what, total, decompressor, &mut self.bytes, |old_bytes| {
            runs().for_each(|run| old_bytes.extend_from_slice(&dst[run]));
        })?;
        reader.finish()?;
        let mut rest = bytes;
        for run in runs() {
            // All lengths together are those of the stream.
            let (bytes, after) = rest.split_at(run.len());
            dst[run].copy_from_slice(bytes);
            rest = after;
        }
        Ok(())
    }
}
