//! Blocks told by segments of the base and of the target before them: copies and splices.
//!
//! A splice is made of segments and of fresh bytes between them. The fresh bytes are compressed with what the base
//! has near them as a prefix, so that zstd finds there what is too short to be a segment. The cost of both is that of
//! what has changed; the rest is compared, and copied.

use crate::codec::{Codec, CodecId, Compressor, Decompressor};
use crate::error::CodecError;
use crate::kernel::element::Element;
use crate::matcher::{Found, MAX_READ_BYTES, Origin, Origins, Piece, Segment};
use crate::raw::{self, Reach};
use crate::stream::{self, PayloadReader, append_number};

/// The longest block that can be told by segments, in bytes.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;
/// The most pieces of a block.
pub const MAX_PIECES: usize = 1 << 16;
/// The most contexts of a splice.
pub const MAX_CONTEXTS: usize = 1024;
/// The most bytes that the contexts of a splice have together.
pub const MAX_CONTEXT_BYTES: usize = 8 << 20;

/// Fresh bytes fewer than these are told without looking at the base.
const MIN_CONTEXT_GAP_BYTES: u64 = 24;
/// How far from a segment content is looked for that was replaced or moved a little, at least and at most.
const LEAST_CONTEXT_REACH_BYTES: u64 = 1 << 10;
const CONTEXT_REACH_BYTES: u64 = 16 << 10;
/// How many bytes around it a byte of a segment speaks for.
const CONTEXT_PER_PIECE_BYTE: u64 = 8;
/// Contexts this close are told as one.
const CONTEXT_MERGE_BYTES: u64 = 256;

/// How a block is told by segments: its kind in a patch entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum SegmentKind {
    /// Segments that make the whole block.
    Copy = 17,
    /// Segments and fresh bytes.
    Splice = 18,
}

/// What limits the segments of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Size of the base in bytes.
    pub base_size: u64,
    /// Where the block begins in the target.
    pub block_offset: u64,
    /// Length of the block in bytes.
    pub block_bytes: usize,
}

/// Lists shorter than this are told as they are.
const MIN_COMPRESSED_LISTS_BYTES: usize = 64;
/// How much longer the head of a compressed stream may be.
const MAX_FRAME_HEAD_BYTES: usize = 4;

/// Of this many fresh bytes that become less than one part in this many, all repetition is looked for: more of it is
/// likely to be further away than the table of positions reaches.
const FAR_FRESH_BYTES: usize = 128 << 10;
const REPEATING_SHARE: usize = 8;

/// How fresh bytes are told.
const FRESH_STORED: u8 = 0;
const FRESH_ZSTD: u8 = 1;

/// Encodes and decodes blocks by segments, keeping zstd's state and all buffers between them.
#[derive(Default)]
pub struct SegmentCoder {
    compressor: Compressor,
    decompressor: Decompressor,
    plan: Plan,
    frame: Vec<u8>,
    lists: Vec<u8>,
    /// The prefix and, right behind it, the fresh bytes.
    joined: Vec<u8>,
    payload: Vec<u8>,
}

/// What a payload says before its fresh bytes.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    contexts: Vec<Segment>,
}

impl SegmentCoder {
    /// A coder whose buffers grow with the blocks it is given.
    #[must_use]
    pub fn new() -> SegmentCoder {
        SegmentCoder::default()
    }

    /// Tells `block`, which begins at `block_offset` of the target, by the pieces of `found`.
    ///
    /// Fresh bytes are compressed by zstd at `level`. `None` if the payload would not be shorter than `limit` bytes, or
    /// than the block.
    ///
    /// # Errors
    ///
    /// Those of reading the origins; [`CodecError::InputTooLarge`] for a block over [`MAX_BLOCK_BYTES`],
    /// [`CodecError::LevelOutOfRange`], [`CodecError::OutOfMemory`].
    pub fn encode<O: Origins>(
        &mut self,
        level: i32,
        block_offset: u64,
        block: &[u8],
        found: &Found,
        limit: usize,
        origins: &mut O,
    ) -> Result<Option<(SegmentKind, &[u8])>, O::Error> {
        Codec::zstd(level)?;
        if block.len() > MAX_BLOCK_BYTES {
            return Err(too_long(block.len()).into());
        }
        let limit = limit.min(block.len());
        let pieces = found.pieces();
        if pieces.len() > MAX_PIECES {
            return Ok(None);
        }
        self.lists.clear();
        self.payload.clear();
        write_pieces(&mut self.lists, block_offset, pieces);
        if found.covered_bytes() == block.len() {
            self.write_lists(level)?;
            return Ok((self.payload.len() < limit).then_some((SegmentKind::Copy, self.payload.as_slice())));
        }
        let pieces_end = self.lists.len();
        self.plan.contexts.clear();
        choose_contexts(&mut self.plan.contexts, pieces, block.len(), origins);
        write_contexts(&mut self.lists, block_offset, &self.plan.contexts);
        self.write_lists(level)?;
        self.payload.push(FRESH_ZSTD);
        read_prefix(&mut self.joined, &self.plan.contexts, origins)?;
        let prefix_bytes = self.joined.len();
        let mut end = 0;
        for piece in pieces {
            self.joined.extend_from_slice(&block[end..piece.at as usize]);
            end = piece.end() as usize;
        }
        self.joined.extend_from_slice(&block[end..]);
        let frame = self.payload.len();
        self.compress_fresh(level, prefix_bytes)?;
        let fresh_bytes = self.joined.len() - prefix_bytes;
        if self.payload.len() - frame >= fresh_bytes {
            self.lists.truncate(pieces_end);
            write_contexts(&mut self.lists, block_offset, &[]);
            self.payload.clear();
            self.write_lists(level)?;
            self.payload.push(FRESH_STORED);
            self.payload.extend_from_slice(&self.joined[prefix_bytes..]);
        }
        Ok((self.payload.len() < limit).then_some((SegmentKind::Splice, self.payload.as_slice())))
    }

    /// Puts the lists at the start of the payload.
    fn write_lists(&mut self, level: i32) -> Result<(), CodecError> {
        append_number(self.lists.len() as u64, &mut self.payload);
        self.frame.clear();
        if self.lists.len() >= MIN_COMPRESSED_LISTS_BYTES {
            self.compressor.compress(Codec::Zstd { level }, &self.lists, &mut self.frame)?;
        }
        if self.frame.is_empty() || self.frame.len() + MAX_FRAME_HEAD_BYTES >= self.lists.len() {
            self.payload.push(stream::AS_IT_IS);
            self.payload.extend_from_slice(&self.lists);
        } else {
            self.payload.push(stream::ZSTD);
            append_number(self.frame.len() as u64, &mut self.payload);
            self.payload.extend_from_slice(&self.frame);
        }
        Ok(())
    }

    /// Puts the fresh bytes, which stand behind the prefix, at the end of the payload.
    fn compress_fresh(&mut self, level: i32, prefix_bytes: usize) -> Result<(), CodecError> {
        let context = self.compressor.zstd()?;
        let fresh_bytes = self.joined.len() - prefix_bytes;
        let room = zstd_safe::compress_bound(fresh_bytes);
        let mut compress = |reach, out: &mut Vec<u8>| {
            raw::append_with(out, room, |spare| {
                raw::zstd_compress_with_prefix(context, level, reach, &self.joined, prefix_bytes, spare)
            })
        };
        let start = self.payload.len();
        compress(Reach::Table, &mut self.payload)?;
        let length = self.payload.len() - start;
        if fresh_bytes >= FAR_FRESH_BYTES && length <= fresh_bytes / REPEATING_SHARE {
            self.frame.clear();
            compress(Reach::All, &mut self.frame)?;
            if self.frame.len() < length {
                self.payload.truncate(start);
                self.payload.extend_from_slice(&self.frame);
            }
        }
        Ok(())
    }

    /// The segments that a payload refers to, checked: all lie within the base, or in the target before the block.
    ///
    /// Pieces first, then contexts. Takes memory for at most as many bytes as the block has, and for the segments.
    ///
    /// # Errors
    ///
    /// [`CodecError::SegmentField`] for a number out of its range, those that name a part of a payload,
    /// [`CodecError::RawLength`], [`CodecError::Corrupt`] or [`CodecError::OutOfMemory`] for the lists,
    /// [`CodecError::InputTooLarge`] for a block over [`MAX_BLOCK_BYTES`].
    pub fn parse(
        &mut self,
        kind: SegmentKind,
        payload: &[u8],
        bounds: Bounds,
    ) -> Result<Vec<Segment>, CodecError> {
        self.read(kind, payload, bounds)?;
        let pieces = self.plan.pieces.iter().map(|piece| piece.segment);
        Ok(pieces.chain(self.plan.contexts.iter().copied()).collect())
    }

    /// Reads what comes before the fresh bytes into the plan.
    fn read<'p>(
        &mut self,
        kind: SegmentKind,
        payload: &'p [u8],
        bounds: Bounds,
    ) -> Result<Fresh<'p>, CodecError> {
        if bounds.block_bytes > MAX_BLOCK_BYTES {
            return Err(too_long(bounds.block_bytes));
        }
        within("payload length", payload.len() as u64, (bounds.block_bytes as u64).saturating_sub(1))?;
        let mut reader = PayloadReader::new(payload);
        let length = reader.number("length of the lists", 1, bounds.block_bytes)?;
        let lists = reader.stream("lists", length, &mut self.decompressor, &mut self.lists)?;
        self.plan.read(kind, lists, bounds)?;
        if kind == SegmentKind::Copy {
            reader.finish()?;
            return Ok(Fresh::Stored(&[]));
        }
        let coder = reader.byte("coder of the fresh bytes")?;
        within("coder of the fresh bytes", coder.into(), FRESH_ZSTD.into())?;
        if coder == FRESH_ZSTD {
            return Ok(Fresh::Frame(reader.rest()));
        }
        within("contexts of stored bytes", self.plan.contexts.len() as u64, 0)?;
        Ok(Fresh::Stored(reader.rest()))
    }

    /// Makes the block from its payload, into `dst`, whose length is that of the block.
    ///
    /// On an error the contents of `dst` are unspecified.
    ///
    /// # Errors
    ///
    /// As [`SegmentCoder::parse`], those of reading the origins, and [`CodecError::RawLength`], [`CodecError::Corrupt`] or
    /// [`CodecError::OutOfMemory`] for the fresh bytes.
    pub fn decode<O: Origins>(
        &mut self,
        kind: SegmentKind,
        payload: &[u8],
        base_size: u64,
        block_offset: u64,
        origins: &mut O,
        dst: &mut [u8],
    ) -> Result<(), O::Error> {
        let bounds = Bounds { base_size, block_offset, block_bytes: dst.len() };
        let fresh = self.read(kind, payload, bounds)?;
        let told: usize = self.plan.pieces.iter().map(|piece| piece.segment.length as usize).sum();
        let expected = dst.len() - told;
        let fresh = match fresh {
            Fresh::Stored(bytes) if bytes.len() == expected => bytes,
            Fresh::Stored(_) => return Err(CodecError::RawLength { expected }.into()),
            Fresh::Frame(frame) => {
                read_prefix(&mut self.joined, &self.plan.contexts, origins)?;
                let context = self.decompressor.zstd()?;
                let prefix_bytes = self.joined.len();
                raw::zstd_decompress_behind_prefix(context, &mut self.joined, frame, expected)?;
                &self.joined[prefix_bytes..]
            }
        };
        let mut fresh = fresh;
        let mut end = 0;
        for piece in &self.plan.pieces {
            let (gap, rest) = fresh.split_at(piece.at as usize - end);
            dst[end..piece.at as usize].copy_from_slice(gap);
            fresh = rest;
            end = piece.end() as usize;
            let mut offset = piece.segment.offset;
            for part in dst[piece.at as usize..end].chunks_mut(MAX_READ_BYTES) {
                part.copy_from_slice(origins.bytes(piece.segment.origin, offset, part.len())?);
                offset += part.len() as u64;
            }
        }
        dst[end..].copy_from_slice(fresh);
        Ok(())
    }
}

enum Fresh<'a> {
    Stored(&'a [u8]),
    Frame(&'a [u8]),
}

impl Plan {
    fn read(&mut self, kind: SegmentKind, lists: &[u8], bounds: Bounds) -> Result<(), CodecError> {
        self.pieces.clear();
        self.contexts.clear();
        let mut reader = PayloadReader::new(lists);
        let block_bytes = bounds.block_bytes as u64;
        let count = read_number(&mut reader, "piece count", MAX_PIECES as u64)?;
        let most = if kind == SegmentKind::Copy { 0 } else { block_bytes };
        for _ in 0..count {
            // Until the lengths are known: how many fresh bytes come before it, and the zigzag of its offset from where
            // it is expected.
            let at = read_number(&mut reader, "fresh bytes before a piece", most)? as u32;
            self.pieces.push(Piece { at, segment: Segment { origin: Origin::Base, offset: 0, length: 0 } });
        }
        for piece in &mut self.pieces {
            piece.segment.offset = reader.any_number("offset of a piece")?;
        }
        let mut diagonals = Diagonals::new(bounds.block_offset);
        let mut end = 0;
        for piece in &mut self.pieces {
            let fresh = u64::from(piece.at);
            within("fresh bytes before a piece", fresh, block_bytes - end)?;
            let at = end + fresh;
            let (origin, length) = read_length(&mut reader, block_bytes - at)?;
            let offset = piece.segment.offset.zigzag_onto(diagonals.expected(origin, at));
            *piece = Piece { at: at as u32, segment: bounds.segment(origin, offset, length)? };
            diagonals.follow(*piece);
            end = at + u64::from(length);
        }
        if kind == SegmentKind::Copy {
            if end != block_bytes {
                return Err(CodecError::RawLength { expected: bounds.block_bytes });
            }
            return reader.finish();
        }
        let count = read_number(&mut reader, "context count", MAX_CONTEXTS as u64)?;
        for _ in 0..count {
            let offset = reader.any_number("offset of a context")?;
            self.contexts.push(Segment { origin: Origin::Base, offset, length: 0 });
        }
        let mut room = MAX_CONTEXT_BYTES as u64;
        let mut expected = bounds.block_offset;
        for context in &mut self.contexts {
            let (origin, length) = read_length(&mut reader, room)?;
            *context = bounds.segment(origin, context.offset.zigzag_onto(expected), length)?;
            room -= u64::from(length);
            expected = context.end();
        }
        reader.finish()
    }
}

impl Bounds {
    fn segment(&self, origin: Origin, offset: u64, length: u32) -> Result<Segment, CodecError> {
        let size = match origin {
            Origin::Base => self.base_size,
            Origin::Target => self.block_offset,
        };
        within("end of a segment", offset.saturating_add(length.into()), size)?;
        Ok(Segment { origin, offset, length })
    }
}

/// Where a segment is expected: where the last one of its origin would have gone on.
struct Diagonals([u64; 2]);

impl Diagonals {
    fn new(block_offset: u64) -> Diagonals {
        Diagonals([block_offset; 2])
    }

    fn expected(&self, origin: Origin, at: u64) -> u64 {
        self.0[origin as usize].wrapping_add(at)
    }

    fn follow(&mut self, piece: Piece) {
        self.0[piece.segment.origin as usize] = piece.segment.offset.wrapping_sub(piece.at.into());
    }
}

fn write_pieces(out: &mut Vec<u8>, block_offset: u64, pieces: &[Piece]) {
    append_number(pieces.len() as u64, out);
    let mut diagonals = Diagonals::new(block_offset);
    let mut end = 0;
    for piece in pieces {
        append_number(u64::from(piece.at - end), out);
        end = piece.end();
    }
    for piece in pieces {
        let Segment { origin, offset, .. } = piece.segment;
        append_number(offset.zigzag_from(diagonals.expected(origin, piece.at.into())), out);
        diagonals.follow(*piece);
    }
    for piece in pieces {
        append_number(length_and_origin(piece.segment), out);
    }
}

fn write_contexts(out: &mut Vec<u8>, block_offset: u64, contexts: &[Segment]) {
    append_number(contexts.len() as u64, out);
    let mut expected = block_offset;
    for context in contexts {
        append_number(context.offset.zigzag_from(expected), out);
        expected = context.end();
    }
    for context in contexts {
        append_number(length_and_origin(*context), out);
    }
}

fn length_and_origin(segment: Segment) -> u64 {
    2 * u64::from(segment.length) + segment.origin as u64
}

/// Where the base may hold something like the fresh bytes: between the segments around them, or near these.
fn choose_contexts<O: Origins>(
    contexts: &mut Vec<Segment>,
    pieces: &[Piece],
    block_bytes: usize,
    origins: &O,
) {
    let in_base = |piece: Option<&Piece>| piece.copied().filter(|piece| piece.segment.origin == Origin::Base);
    let mut room = MAX_CONTEXT_BYTES as u64;
    for index in 0..=pieces.len() {
        let before = index.checked_sub(1).and_then(|index| pieces.get(index));
        let start = u64::from(before.map_or(0, Piece::end));
        let end = pieces.get(index).map_or(block_bytes as u64, |piece| piece.at.into());
        let gap = end - start;
        if gap < MIN_CONTEXT_GAP_BYTES {
            continue;
        }
        let reach = (gap * 2).clamp(LEAST_CONTEXT_REACH_BYTES, CONTEXT_REACH_BYTES);
        let (before, after) = (in_base(before), in_base(pieces.get(index)));
        let between = match (before, after) {
            (Some(before), Some(after)) => {
                let (start, end) = (before.segment.end(), after.segment.offset);
                (start <= end && end - start <= 2 * reach).then_some((start, end))
            }
            _ => None,
        };
        let mut wanted = [between, None];
        if between.is_none() {
            // A short piece may be there by chance, and says little about what is around it.
            let reach_from =
                |piece: &Piece| reach.min(CONTEXT_PER_PIECE_BYTE * u64::from(piece.segment.length));
            wanted[0] = before.map(|piece| (piece.segment.end(), piece.segment.end() + reach_from(&piece)));
            wanted[1] = after
                .map(|piece| (piece.segment.offset.saturating_sub(reach_from(&piece)), piece.segment.offset));
        }
        for (start, end) in wanted.into_iter().flatten() {
            let usable = origins.usable(Origin::Base, start);
            let (start, end) = (start.max(usable.start), end.min(usable.end));
            if start >= end {
                continue;
            }
            if let Some(last) = contexts.last_mut()
                && start >= last.offset
                && start <= last.end() + CONTEXT_MERGE_BYTES
            {
                let more = end.saturating_sub(last.end());
                if more > room {
                    return;
                }
                room -= more;
                last.length += more as u32;
                continue;
            }
            if contexts.len() == MAX_CONTEXTS || end - start > room {
                return;
            }
            room -= end - start;
            contexts.push(Segment { origin: Origin::Base, offset: start, length: (end - start) as u32 });
        }
    }
}

fn read_prefix<O: Origins>(
    prefix: &mut Vec<u8>,
    contexts: &[Segment],
    origins: &mut O,
) -> Result<(), O::Error> {
    prefix.clear();
    for context in contexts {
        let mut offset = context.offset;
        while offset < context.end() {
            let length = (context.end() - offset).min(MAX_READ_BYTES as u64);
            prefix.extend_from_slice(origins.bytes(context.origin, offset, length as usize)?);
            offset += length;
        }
    }
    Ok(())
}

/// A number, 0..=`limit`.
fn read_number(reader: &mut PayloadReader<'_>, field: &'static str, limit: u64) -> Result<u64, CodecError> {
    let value = reader.any_number(field)?;
    within(field, value, limit)?;
    Ok(value)
}

/// The length of a segment, 1..=`most`, and its origin.
fn read_length(reader: &mut PayloadReader<'_>, most: u64) -> Result<(Origin, u32), CodecError> {
    let field = "length of a segment";
    let value = read_number(reader, field, 2 * most + 1)?;
    let origin = if value & 1 == 0 { Origin::Base } else { Origin::Target };
    match u32::try_from(value / 2) {
        Ok(length) if length > 0 => Ok((origin, length)),
        _ => Err(CodecError::SegmentField { field, value: value / 2, limit: most }),
    }
}

fn within(field: &'static str, value: u64, limit: u64) -> Result<(), CodecError> {
    if value > limit {
        return Err(CodecError::SegmentField { field, value, limit });
    }
    Ok(())
}

fn too_long(length: usize) -> CodecError {
    CodecError::InputTooLarge { codec: CodecId::None, length, limit: MAX_BLOCK_BYTES }
}
