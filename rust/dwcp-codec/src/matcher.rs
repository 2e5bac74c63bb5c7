//! Where the content of a block lives elsewhere: in the base, or in the target before the block.
//!
//! An [`Index`] remembers fingerprints of 32 bytes at sampled positions. Whether a position is sampled depends on
//! the bytes there and not on the position, so that content is found again however far it has moved. What a
//! fingerprint leads to is compared byte by byte and extended in both directions: a sample anywhere in it is enough
//! to find a match, and the ends are exact.

use std::ops::Range;

use crate::codec::CodecId;
use crate::error::CodecError;
use crate::sampling::{FINGERPRINT_BYTES, Sample, Sampler};

/// The object that a segment lies in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Origin {
    /// The object a patch is applied to.
    Base = 0,
    /// The object a patch makes.
    Target = 1,
}

/// A range of bytes of the base or of the target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Segment {
    /// The object it lies in.
    pub origin: Origin,
    /// Where it begins in its origin.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
}

impl Segment {
    /// The offset in its origin of the first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }
}

/// A segment and its place in the block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Piece {
    /// Where in the block the segment's bytes stand.
    pub at: u32,
    /// The bytes.
    pub segment: Segment,
}

impl Piece {
    /// The offset in the block of the first byte behind it.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.at.saturating_add(self.segment.length)
    }
}

/// Gives the bytes of base and target: memory gives slices of itself, a file fills a buffer.
pub trait Origins {
    /// What reading can fail with.
    type Error: From<CodecError>;

    /// The largest range around `offset` which segments may use; empty if `offset` itself may not be used.
    ///
    /// Of the target this is where forbidden blocks are left out. That a segment of the target ends where its block
    /// begins needs no help from here.
    fn usable(&self, origin: Origin, offset: u64) -> Range<u64>;

    /// `length` bytes at `offset`, all of them within a range that [`Origins::usable`] gave, or within what
    /// [`SegmentCoder::parse`](crate::segments::SegmentCoder::parse) has accepted. At most 65 536 bytes are asked for at a time.
    ///
    /// # Errors
    ///
    /// Those of reading.
    fn bytes(&mut self, origin: Origin, offset: u64, length: usize) -> Result<&[u8], Self::Error>;
}

/// Base and target in memory, all of them usable.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// The base.
    pub base: &'a [u8],
    /// The target, as much of it as there is.
    pub target: &'a [u8],
}

impl Origins for Memory<'_> {
    type Error = CodecError;

    fn usable(&self, origin: Origin, _offset: u64) -> Range<u64> {
        0..self.of(origin).len() as u64
    }

    fn bytes(&mut self, origin: Origin, offset: u64, length: usize) -> Result<&[u8], CodecError> {
        let object = self.of(origin);
        let missing = CodecError::SegmentField {
            field: "end of a segment",
            value: offset.saturating_add(length as u64),
            limit: object.len() as u64,
        };
        let start = usize::try_from(offset).ok();
        start.and_then(|start| object.get(start..)?.get(..length)).ok_or(missing)
    }
}

impl<'a> Memory<'a> {
    fn of(&self, origin: Origin) -> &'a [u8] {
        match origin {
            Origin::Base => self.base,
            Origin::Target => self.target,
        }
    }
}

/// The most buckets of an index: 64 MiB of them.
const MAX_BUCKETS: u64 = 1 << 20;
/// How many samples a bucket is meant to hold. It has room for more, for they are not spread evenly.
const SAMPLES_PER_BUCKET: u64 = 5;
/// Samples are at first this power of two of bytes apart, on average.
const MIN_DISTANCE_LOG: u32 = 8;
/// Positions of objects that are larger together leave too few bits for a tag.
const MAX_POSITION_BITS: u32 = 48;

/// How many samples are looked up together, for their misses of the cache to overlap.
const BATCH: usize = 64;
/// How far ahead a block is sampled; what a match covers further on need not be.
const LOOKAHEAD_BYTES: usize = 2048;

/// A piece is at least as long as what is fingerprinted, unless it goes on where the piece before it left off.
const MIN_CONTINUED_BYTES: usize = 16;
/// Pieces that a better match may take back, in bytes before the position where it was found.
const MAX_TAKEN_BACK_BYTES: usize = 4096;
/// The most bytes asked of an origin at a time.
pub(crate) const MAX_READ_BYTES: usize = 1 << 16;

/// One cache line of entries: a tag above a position plus one; 0 where there is none.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket([u64; 8]);

/// Fingerprints of base and target.
///
/// Takes at most 64 MiB, and less for small objects: the larger they are, the fewer positions are sampled. What it
/// finds depends on what was added in which order, and on nothing else.
pub struct Index {
    buckets: Vec<Bucket>,
    sampler: Sampler,
    base_size: u64,
    position_bits: u32,
}

impl Index {
    /// An empty index for objects of these sizes in bytes. What is past them is not indexed.
    #[must_use]
    pub fn new(base_size: u64, target_size: u64) -> Index {
        // Of the target only what is new is added. If that is nearly all of it, some of it finds no room.
        Index::for_part(base_size, target_size, base_size.saturating_add(target_size / 2))
    }

    /// An empty index for `expected` bytes of objects of these sizes.
    #[must_use]
    pub(crate) fn for_part(base_size: u64, target_size: u64, expected: u64) -> Index {
        let total = base_size.saturating_add(target_size);
        let position_bits = u64::BITS - total.leading_zeros();
        let most = MAX_BUCKETS * SAMPLES_PER_BUCKET;
        let mut distance_log = MIN_DISTANCE_LOG;
        while expected >> distance_log > most {
            distance_log += 1;
        }
        let buckets = (expected >> distance_log).div_ceil(SAMPLES_PER_BUCKET).max(1);
        let buckets = if position_bits > MAX_POSITION_BITS { 0 } else { buckets as usize };
        Index {
            buckets: vec![Bucket([0; 8]); buckets],
            sampler: Sampler::new(distance_log),
            base_size,
            position_bits,
        }
    }

    /// The memory it holds, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    /// Remembers `bytes`, which stand at `offset` of `origin`.
    ///
    /// Of equal content the first place and the last one are kept.
    pub fn add(&mut self, origin: Origin, offset: u64, bytes: &[u8]) {
        let Some(start) = self.position(origin, offset, bytes.len()) else { return };
        let mut samples = [Sample::default(); BATCH];
        let mut from = 0;
        while from < bytes.len() {
            let count;
            (count, from) = self.sampler.scan(bytes, from, bytes.len(), &mut samples);
            self.insert(start, &samples[..count]);
        }
    }

    /// Puts what of `bytes` is to be remembered into `samples`, for [`Index::add_samples`].
    pub(crate) fn sample(&self, bytes: &[u8], samples: &mut Vec<Sample>) {
        samples.clear();
        let mut some = [Sample::default(); BATCH];
        let mut from = 0;
        while from < bytes.len() && !self.buckets.is_empty() {
            let count;
            (count, from) = self.sampler.scan(bytes, from, bytes.len(), &mut some);
            samples.extend_from_slice(&some[..count]);
        }
    }

    /// [`Index::add`] of `length` bytes whose samples are there already.
    pub(crate) fn add_samples(&mut self, origin: Origin, offset: u64, length: usize, samples: &[Sample]) {
        if let Some(start) = self.position(origin, offset, length) {
            samples.chunks(BATCH).for_each(|samples| self.insert(start, samples));
        }
    }

    /// The position of `offset` of `origin`, if `length` bytes there can be remembered.
    fn position(&self, origin: Origin, offset: u64, length: usize) -> Option<u64> {
        let start = match origin {
            Origin::Base => offset,
            Origin::Target => offset.saturating_add(self.base_size),
        };
        let end = start.saturating_add(length as u64);
        (!self.buckets.is_empty() && end < 1 << self.position_bits).then_some(start)
    }

    /// Remembers samples of bytes that begin at position `start`, at most [`BATCH`].
    fn insert(&mut self, start: u64, samples: &[Sample]) {
        self.touch(samples);
        for sample in samples {
            let bucket = self.bucket_of(sample.fingerprint);
            let entry = self.tag_of(sample.fingerprint) | (start + sample.at as u64 + 1);
            insert(&mut self.buckets[bucket], entry, self.position_bits);
        }
    }

    /// How many samples of `bytes` are in the index, and how many there are.
    pub(crate) fn count_known(&self, bytes: &[u8]) -> (u64, u64) {
        let mut samples = [Sample::default(); BATCH];
        let (mut known, mut all, mut from) = (0, 0, 0);
        while from < bytes.len() && !self.buckets.is_empty() {
            let count;
            (count, from) = self.sampler.scan(bytes, from, bytes.len(), &mut samples);
            let samples = &samples[..count];
            self.touch(samples);
            known += samples.iter().filter(|sample| self.is_known(sample.fingerprint)).count() as u64;
            all += count as u64;
        }
        (known, all)
    }

    fn is_known(&self, fingerprint: u64) -> bool {
        let tag = self.tag_of(fingerprint);
        let entries = &self.buckets[self.bucket_of(fingerprint)].0;
        entries.iter().any(|&entry| entry != 0 && self.tag_of(entry) == tag)
    }

    /// Reads the buckets of all samples at once, for their misses of the cache to overlap.
    fn touch(&self, samples: &[Sample]) {
        let touched =
            samples.iter().fold(0, |all, sample| all | self.buckets[self.bucket_of(sample.fingerprint)].0[0]);
        std::hint::black_box(touched);
    }

    fn bucket_of(&self, fingerprint: u64) -> usize {
        // The low half scaled to the number of buckets; the tag is of the high bits.
        (((fingerprint & u64::from(u32::MAX)) * self.buckets.len() as u64) >> 32) as usize
    }

    fn tag_of(&self, fingerprint: u64) -> u64 {
        fingerprint >> self.position_bits << self.position_bits
    }

    fn place_of(&self, entry: u64) -> (Origin, u64) {
        let position = (entry & ((1 << self.position_bits) - 1)) - 1;
        match position.checked_sub(self.base_size) {
            Some(offset) => (Origin::Target, offset),
            None => (Origin::Base, position),
        }
    }

    /// Finds the content of `block`, which begins at `block_offset` of the target, in the base and in the target
    /// before the block, as far as they were added.
    ///
    /// # Errors
    ///
    /// Those of reading the origins; [`CodecError::InputTooLarge`] for a block of 4 GiB or more.
    pub fn find<O: Origins>(
        &self,
        block_offset: u64,
        block: &[u8],
        origins: &mut O,
        found: &mut Found,
    ) -> Result<(), O::Error> {
        found.pieces.clear();
        let mut search = Search { block_offset, block, origins, pieces: &mut found.pieces };
        let mut samples = [Sample::default(); BATCH];
        let mut from = 0;
        while from < block.len() && !self.buckets.is_empty() {
            let count;
            let until = block.len().min(from + LOOKAHEAD_BYTES);
            (count, from) = self.sampler.scan(block, from, until, &mut samples);
            let samples = &samples[..count];
            self.touch(samples);
            for sample in samples {
                let end = search.end();
                if sample.at < end {
                    continue;
                }
                let mut best = search.continued(sample.at)?;
                if best.is_none() {
                    let tag = self.tag_of(sample.fingerprint);
                    for &entry in &self.buckets[self.bucket_of(sample.fingerprint)].0 {
                        if entry != 0 && self.tag_of(entry) == tag {
                            let (origin, offset) = self.place_of(entry);
                            let piece = search.extend(origin, offset, sample.at, FINGERPRINT_BYTES)?;
                            let length =
                                |piece: &Option<Piece>| piece.map_or(0, |piece| piece.segment.length);
                            if length(&piece) > length(&best) {
                                best = piece;
                            }
                        }
                    }
                }
                if let Some(piece) = best {
                    search.push(piece);
                }
            }
            from = from.max(search.end());
        }
        found.covered = found.pieces.iter().map(|piece| piece.segment.length as usize).sum();
        Ok(())
    }
}

/// Puts `entry` into `bucket` if there is room, or over the second one of the same tag.
fn insert(bucket: &mut Bucket, entry: u64, position_bits: u32) {
    let mut known = false;
    for slot in &mut bucket.0 {
        let alike = *slot != 0 && *slot >> position_bits == entry >> position_bits;
        if *slot == 0 || (alike && known) {
            *slot = entry;
            return;
        }
        known |= alike;
    }
}

/// What [`Index::find`] has found. Kept by the caller, for its memory to be used again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Found {
    pieces: Vec<Piece>,
    covered: usize,
}

impl Found {
    /// The pieces, in their order in the block; they do not overlap there.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many bytes of the block they are.
    #[must_use]
    pub fn covered_bytes(&self) -> usize {
        self.covered
    }

    /// How many bytes of the block come from the target.
    #[must_use]
    pub fn target_bytes(&self) -> usize {
        let pieces = self.pieces.iter().filter(|piece| piece.segment.origin == Origin::Target);
        pieces.map(|piece| piece.segment.length as usize).sum()
    }
}

/// The pieces of one block, as they are found.
struct Search<'a, O> {
    block_offset: u64,
    block: &'a [u8],
    origins: &'a mut O,
    pieces: &'a mut Vec<Piece>,
}

impl<O: Origins> Search<'_, O> {
    /// Where the last piece ends in the block.
    fn end(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.end() as usize)
    }

    /// The match at `at` of the block where the last piece would have gone on.
    fn continued(&mut self, at: usize) -> Result<Option<Piece>, O::Error> {
        let (origin, offset) = match self.pieces.last() {
            Some(last) => (last.segment.origin, last.segment.offset + (at as u64 - u64::from(last.at))),
            None => (Origin::Base, self.block_offset + at as u64),
        };
        self.extend(origin, offset, at, MIN_CONTINUED_BYTES)
    }

    /// The longest match of `offset` in `origin` with `at` in the block, if at least `min` bytes behind these agree.
    fn extend(
        &mut self,
        origin: Origin,
        offset: u64,
        at: usize,
        min: usize,
    ) -> Result<Option<Piece>, O::Error> {
        let mut usable = self.origins.usable(origin, offset);
        if origin == Origin::Target {
            usable.end = usable.end.min(self.block_offset);
        }
        if !usable.contains(&offset) {
            return Ok(None);
        }
        let rest = (self.block.len() - at).min(usize::try_from(usable.end - offset).unwrap_or(usize::MAX));
        let mut forward = 0;
        let mut step = 256;
        while forward < rest {
            let length = step.min(rest - forward);
            let there = self.origins.bytes(origin, offset + forward as u64, length)?;
            let same = common_prefix(there, &self.block[at + forward..at + forward + length]);
            forward += same;
            if same < length {
                break;
            }
            step = (step * 4).min(MAX_READ_BYTES);
        }
        if forward < min {
            return Ok(None);
        }
        let floor = self.floor(at);
        let room = (at - floor).min(usize::try_from(offset - usable.start).unwrap_or(usize::MAX));
        let mut backward = 0;
        let mut step = 256;
        while backward < room {
            let length = step.min(room - backward);
            let there = self.origins.bytes(origin, offset - (backward + length) as u64, length)?;
            let same = common_suffix(there, &self.block[at - backward - length..at - backward]);
            backward += same;
            if same < length {
                break;
            }
            step = (step * 4).min(MAX_READ_BYTES);
        }
        let mut start = at - backward;
        // A piece that is covered in part only stays: what it has lost would have to be told anyway.
        for piece in self.pieces.iter().rev() {
            if start <= piece.at as usize {
                continue;
            }
            start = start.max(piece.end() as usize);
            break;
        }
        let length = self.block.len();
        let limit = u32::MAX as usize;
        let narrow = |value: usize| {
            u32::try_from(value).map_err(|_| CodecError::InputTooLarge {
                codec: CodecId::None,
                length,
                limit,
            })
        };
        let segment =
            Segment { origin, offset: offset - (at - start) as u64, length: narrow(at + forward - start)? };
        Ok(Some(Piece { at: narrow(start)?, segment }))
    }

    /// How far back a match at `at` may reach: over short pieces, to be taken back, but not into a long one.
    fn floor(&self, at: usize) -> usize {
        let reach = at.saturating_sub(MAX_TAKEN_BACK_BYTES);
        let mut floor = self.end();
        for piece in self.pieces.iter().rev() {
            if (piece.at as usize) < reach {
                break;
            }
            floor = piece.at as usize;
        }
        let before = self.pieces.iter().rev().find(|piece| (piece.at as usize) < floor);
        floor.min(before.map_or(0, |piece| piece.end() as usize))
    }

    /// Adds a piece, taking back those that it covers.
    fn push(&mut self, piece: Piece) {
        while self.pieces.last().is_some_and(|last| last.at >= piece.at) {
            self.pieces.pop();
        }
        self.pieces.push(piece);
    }
}

/// How many bytes at the start of both are equal.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    // A vector at a time, without the call of memcmp that a comparison of arrays becomes.
    let alike = |(x, y): &(&[u8; 32], &[u8; 32])| {
        let words = x.as_chunks::<8>().0.iter().zip(y.as_chunks::<8>().0);
        words.fold(0, |all, (x, y)| all | (u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y))) == 0
    };
    let wide = a.as_chunks::<32>().0.iter().zip(b.as_chunks::<32>().0);
    let mut same = 32 * wide.take_while(alike).count();
    for (x, y) in a[same..].as_chunks::<8>().0.iter().zip(b[same..].as_chunks::<8>().0) {
        let different = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if different != 0 {
            return same + (different.trailing_zeros() / 8) as usize;
        }
        same += 8;
    }
    same + a[same..].iter().zip(&b[same..]).take_while(|(x, y)| x == y).count()
}

/// How many bytes at the end of both are equal.
fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let mut same = 0;
    for (x, y) in a.as_rchunks::<8>().1.iter().rev().zip(b.as_rchunks::<8>().1.iter().rev()) {
        let different = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if different != 0 {
            return same + (different.leading_zeros() / 8) as usize;
        }
        same += 8;
    }
    let (a, b) = (&a[..a.len() - same], &b[..b.len() - same]);
    same + a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count()
}
