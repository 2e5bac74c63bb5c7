//! The parts of which the payloads of blocks consist: numbers and streams.

use std::mem::MaybeUninit;

use zstd_safe::{CCtx, CParameter, ParamSwitch};

use crate::codec::{CodecId, Decompressor, max_compressed_length};
use crate::error::CodecError;
use crate::raw::{self, Reach, Written};
use crate::{page, probe};

/// Coders of a stream.
pub(crate) const AS_IT_IS: u8 = 0;
const REPEATED: u8 = 1;
pub(crate) const ZSTD: u8 = 2;
/// Where something stands before the stream that it may refer to.
const ZSTD_BEHIND: u8 = 3;

/// Shorter streams are not compressed: a zstd frame and its length take about as much as could be saved.
const MIN_COMPRESSED_BYTES: usize = 32;
/// Shorter streams are tried without looking at them first.
const MIN_PROBED_BYTES: usize = 1_024;
/// Up to this length what may resemble something else is compressed without looking at it first.
const MAX_UNPROBED_BYTES: usize = 64 << 10;
/// The level of zstd for what may resemble something else.
const BEHIND_LEVEL: i32 = 1;
/// What entropy coding must leave at most to be tried.
const MOST_ENTROPY: f32 = 0.97;
/// Below this a code of one bit for each byte, the least there is, is too much: repetition is looked for.
const LEAST_ENTROPY: f32 = 0.1;
/// The most bytes of the length of a frame.
const LENGTH_BYTES: usize = 4;

/// What a stream holds, and so what is worth looking for in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// Codes and byte planes: unevenly distributed bytes in no order.
    Codes,
    /// Bytes of the object, which may repeat.
    Bytes,
}

/// Appends `number` in the fewest bytes.
pub(crate) fn append_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends streams, keeping the compressors between them.
#[derive(Default)]
pub(crate) struct StreamEncoder {
    codes: Option<CCtx<'static>>,
    bytes: Option<CCtx<'static>>,
    behind: Option<CCtx<'static>>,
}

impl StreamEncoder {
    /// Appends `stream` to `out`, by the coder that suits it.
    ///
    /// Fails with [`CodecError::OutOfMemory`].
    pub(crate) fn append(
        &mut self,
        stream: &[u8],
        content: Content,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        if stream.is_empty() {
            return Ok(());
        }
        if let Some(byte) = page::fill_byte(stream) {
            out.extend([REPEATED, byte]);
            return Ok(());
        }
        let is_coded = match coder_for(stream, content) {
            Some(content) => {
                let context = self.context(content)?;
                append_frame(ZSTD, stream, out, |spare| raw::zstd_compress_as_set(context, stream, spare))?
            }
            None => false,
        };
        if !is_coded {
            append_as_it_is(stream, out);
        }
        Ok(())
    }

    /// Appends what stands in `joined` behind the first `before` bytes, which whoever decodes it has, and which it may
    /// resemble.
    ///
    /// Fails with [`CodecError::OutOfMemory`].
    pub(crate) fn append_behind(
        &mut self,
        joined: &[u8],
        before: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let stream = &joined[before..];
        let is_tried = stream.len() >= MIN_COMPRESSED_BYTES
            && (stream.len() <= MAX_UNPROBED_BYTES || probe::compressible(stream));
        if !is_tried {
            return self.append(stream, Content::Bytes, out);
        }
        let context = match &mut self.behind {
            Some(context) => context,
            empty => empty.insert(raw::zstd_context(&[])?),
        };
        let is_coded = append_frame(ZSTD_BEHIND, stream, out, |spare| {
            raw::zstd_compress_with_prefix(context, BEHIND_LEVEL, Reach::Table, joined, before, spare)
        })?;
        if !is_coded {
            append_as_it_is(stream, out);
        }
        Ok(())
    }

    fn context(&mut self, content: Content) -> Result<&mut CCtx<'static>, CodecError> {
        let (slot, parameters): (_, &[CParameter]) = match content {
            Content::Codes => (
                &mut self.codes,
                &[
                    // The level that looks for next to no repetition; it would not code literals by itself.
                    CParameter::CompressionLevel(-131_072),
                    CParameter::LiteralCompressionMode(ParamSwitch::Enable),
                ],
            ),
            Content::Bytes => (&mut self.bytes, &[CParameter::CompressionLevel(1)]),
        };
        Ok(match slot {
            Some(context) => context,
            empty => empty.insert(raw::zstd_context(parameters)?),
        })
    }
}

fn append_as_it_is(stream: &[u8], out: &mut Vec<u8>) {
    out.push(AS_IT_IS);
    out.extend_from_slice(stream);
}

/// Appends what `compress` makes of `stream`, if that is shorter; says whether it is.
fn append_frame(
    coder: u8,
    stream: &[u8],
    out: &mut Vec<u8>,
    compress: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<Written, CodecError>,
) -> Result<bool, CodecError> {
    let start = out.len();
    out.push(coder);
    // The length of the frame is known after it; most often it takes as many bytes as that of the stream.
    append_number(stream.len() as u64, out);
    let frame = out.len();
    raw::append_with(out, max_compressed_length(CodecId::Zstd, stream.len()), compress)?;
    let length = out.len() - frame;
    let is_shorter = length < stream.len() - LENGTH_BYTES;
    if is_shorter {
        let mut number = Vec::with_capacity(LENGTH_BYTES);
        append_number(length as u64, &mut number);
        let place = start + 1 + number.len();
        if place != frame {
            out.copy_within(frame.., place);
            out.truncate(place + length);
        }
        out[start + 1..place].copy_from_slice(&number);
    } else {
        out.truncate(start);
    }
    Ok(is_shorter)
}

/// How `stream` is to be compressed, if it is to be at all.
fn coder_for(stream: &[u8], content: Content) -> Option<Content> {
    if stream.len() < MIN_COMPRESSED_BYTES {
        return None;
    }
    match content {
        Content::Codes if stream.len() < MIN_PROBED_BYTES => Some(Content::Codes),
        Content::Codes => match probe::entropy_share(stream) {
            share if share > MOST_ENTROPY => None,
            share if share < LEAST_ENTROPY => Some(Content::Bytes),
            _ => Some(Content::Codes),
        },
        Content::Bytes => probe::compressible(stream).then_some(Content::Bytes),
    }
}

/// Reads a payload from front to back.
pub(crate) struct PayloadReader<'a> {
    rest: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> PayloadReader<'a> {
        PayloadReader { rest: payload }
    }

    /// The next `length` bytes.
    pub(crate) fn bytes(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], CodecError> {
        let left = self.rest.len();
        let (bytes, rest) =
            self.rest.split_at_checked(length).ok_or(CodecError::PayloadEnds { what, length, left })?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next byte.
    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, CodecError> {
        self.bytes(what, 1).map(|byte| byte[0])
    }

    /// A number from `low` to `high`.
    pub(crate) fn number(
        &mut self,
        what: &'static str,
        low: usize,
        high: usize,
    ) -> Result<usize, CodecError> {
        let value = self.any_number(what)?;
        match usize::try_from(value) {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(CodecError::PayloadNumber { what, value, low, high }),
        }
    }

    /// A number, which the caller bounds.
    pub(crate) fn any_number(&mut self, what: &'static str) -> Result<u64, CodecError> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return Err(CodecError::LongNumber { what });
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(CodecError::LongNumber { what })
    }

    /// A stream of `length` bytes: as it stands in the payload, or decoded into `scratch`.
    ///
    /// The caller has bounded `length` by the block's.
    pub(crate) fn stream<'s>(
        &mut self,
        what: &'static str,
        length: usize,
        decompressor: &mut Decompressor,
        scratch: &'s mut Vec<u8>,
    ) -> Result<&'s [u8], CodecError>
    where
        'a: 's,
    {
        if length == 0 {
            return Ok(&[]);
        }
        match self.byte(what)? {
            AS_IT_IS => self.bytes(what, length),
            REPEATED => {
                let byte = self.byte(what)?;
                scratch.clear();
                scratch.try_reserve(length).map_err(|_| CodecError::OutOfMemory { bytes: length })?;
                scratch.resize(length, byte);
                Ok(scratch)
            }
            ZSTD => {
                let compressed = self.number(what, 1, length)?;
                let frames = self.bytes(what, compressed)?;
                scratch.clear();
                raw::append_exactly(scratch, length, |out| decompressor.fill(CodecId::Zstd, frames, out))?;
                Ok(scratch)
            }
            coder => Err(CodecError::UnknownCoder { what, coder, max: ZSTD }),
        }
    }

    /// [`PayloadReader::stream`], of which there is at least a byte, and which may refer to what `put_before` puts into
    /// `scratch`.
    pub(crate) fn stream_behind<'s>(
        &mut self,
        what: &'static str,
        length: usize,
        decompressor: &mut Decompressor,
        scratch: &'s mut Vec<u8>,
        put_before: impl FnOnce(&mut Vec<u8>),
    ) -> Result<&'s [u8], CodecError>
    where
        'a: 's,
    {
        match self.rest.first() {
            Some(&ZSTD_BEHIND) => {}
            Some(&coder) if coder > ZSTD_BEHIND => {
                return Err(CodecError::UnknownCoder { what, coder, max: ZSTD_BEHIND });
            }
            _ => return self.stream(what, length, decompressor, scratch),
        }
        self.byte(what)?;
        let compressed = self.number(what, 1, length)?;
        let frame = self.bytes(what, compressed)?;
        scratch.clear();
        put_before(scratch);
        let before = scratch.len();
        raw::zstd_decompress_behind_prefix(decompressor.zstd()?, scratch, frame, length)?;
        Ok(&scratch[before..])
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Refuses a payload of which something is left.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::PayloadLeft { bytes: self.rest.len() }) }
    }
}
