//! Whether it pays to look for content elsewhere, from a little of everything.

use std::ops::Range;

use super::source::Source;
use crate::kernel::LINE_BYTES;
use crate::matcher::{Index, Origin};

/// Of so many bytes of what may be found again,
const SPAN_BYTES: u64 = 64 << 10;
/// the first ones are remembered, and
const REMEMBERED_BYTES: u64 = 4 << 10;
/// of what is looked for these are asked for, which begin elsewhere in each span: however far content has moved, some
/// of it is asked for where it is remembered.
const ASKED_BYTES: u64 = 1 << 10;
/// The most bytes to be indexed for a byte of the patch.
const INDEXED_PER_SAVED_BYTE: u64 = 1024;
/// How many samples are compared to see whether the base block has anything to do with a block, and of how many bytes.
const SAMPLES: usize = 64;
const SAMPLE_BYTES: usize = 64;
/// How many parts of a block are looked at each for itself.
pub(super) const ALL_SHARES: usize = 8;
/// One in this many bytes is equal by chance, in text and programs.
const LEAST_EQUAL_SHARE: usize = 8;
/// Of wide numbers, most bytes of which are noise, hardly as many are equal to those of their successors.
const LEAST_EQUAL_SHARE_WIDE: usize = 11;
/// Bytes of a wide number at least.
const WIDE_BYTES: u8 = 4;

/// How many places are looked at to choose a length of blocks, and how many bytes there.
const PLACES: u64 = 64;
const PLACE_BYTES: u64 = 4 << 10;
/// Where one in this many places has nothing to do with the base there, blocks are long.
const LONG_SHARE: u64 = 16;
const LONG_BLOCK_BYTES: u32 = 4 << 20;
/// Otherwise they are of this length.
pub(super) const BLOCK_BYTES: u32 = 1 << 20;

/// The length of blocks, in bytes, that is likely to make the best patch from `old` to `new`, elements of `width` bytes.
///
/// What changes where it is, is told best by short blocks: the rest of them stays the same. What moves, or comes anew,
/// is told best by long ones, within which more can be found again.
pub(super) fn choose_block_bytes<O, N>(old: &O, new: &N, width: Option<u8>) -> Result<u32, O::Error>
where
    O: Source + ?Sized,
    N: Source<Error = O::Error> + ?Sized,
{
    if width.is_some() || old.size() == 0 {
        return Ok(BLOCK_BYTES);
    }
    let size = new.size();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut places, mut elsewhere) = (0, 0);
    for at in (0..size).step_by((size / PLACES).max(PLACE_BYTES) as usize) {
        let length = (size - at).min(PLACE_BYTES);
        let held = old.size().saturating_sub(at).min(length);
        let is_elsewhere = held == 0 || {
            let old = old.read(at, held as usize, &mut before)?;
            share_elsewhere(old, new.read(at, length as usize, &mut after)?, width) == ALL_SHARES
        };
        places += 1;
        elsewhere += u64::from(is_elsewhere);
    }
    Ok(if elsewhere * LONG_SHARE > places { LONG_BLOCK_BYTES } else { BLOCK_BYTES })
}

/// How many places are looked at to see how a version of elements changes, and how many bytes there.
const ELEMENT_PLACES: usize = 32;
const ELEMENT_PLACE_BYTES: usize = 1 << 10;

/// Whether a new version of elements of `width` bytes, as long as the old one, seems to be told by some of these, each at
/// its place: no more than three of four changed, and nothing moved.
pub(super) fn changes_some_elements(old: &[u8], new: &[u8], width: u8) -> bool {
    let step = (new.len() / ELEMENT_PLACES).max(ELEMENT_PLACE_BYTES).next_multiple_of(LINE_BYTES);
    let places = old.chunks(step).zip(new.chunks(step));
    let (mut changed, mut all) = (0, 0);
    for (old, new) in places {
        let (old, new) =
            (&old[..old.len().min(ELEMENT_PLACE_BYTES)], &new[..new.len().min(ELEMENT_PLACE_BYTES)]);
        if share_elsewhere(old, new, Some(width)) == ALL_SHARES {
            return false;
        }
        let elements = old.chunks_exact(width.into()).zip(new.chunks_exact(width.into()));
        all += elements.len();
        changed += elements.filter(|(old, new)| old != new).count();
    }
    changed <= all / 4 * 3
}

/// Remembers parts of base and target, and adds up what a search might have saved so far.
pub(super) struct Scout {
    index: Index,
    saved: u64,
}

impl Scout {
    /// A scout for objects of these sizes.
    pub(super) fn new(base_size: u64, target_size: u64) -> Scout {
        let all = base_size.saturating_add(target_size);
        let index = Index::for_part(base_size, target_size, all / (SPAN_BYTES / REMEMBERED_BYTES));
        Scout { index, saved: 0 }
    }

    /// Remembers parts of a range of an object.
    pub(super) fn remember<S: Source + ?Sized>(
        &mut self,
        origin: Origin,
        source: &S,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), S::Error> {
        for at in range.clone().step_by(SPAN_BYTES as usize) {
            let length = (range.end - at).min(REMEMBERED_BYTES) as usize;
            self.index.add(origin, at, source.read(at, length, buffer)?);
        }
        Ok(())
    }

    /// Asks for parts of a range of the target, which has a payload of so many bytes.
    pub(super) fn ask<S: Source + ?Sized>(
        &mut self,
        target: &S,
        range: Range<u64>,
        payload_bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), S::Error> {
        let (mut known, mut asked) = (0, 0);
        for span in range.clone().step_by(SPAN_BYTES as usize) {
            let at = span + span / SPAN_BYTES * REMEMBERED_BYTES % SPAN_BYTES;
            if at < range.end {
                let length = (range.end - at).min(ASKED_BYTES) as usize;
                let counts = self.index.count_known(target.read(at, length, buffer)?);
                known += counts.0;
                asked += counts.1;
            }
        }
        // Only one part in so many that are somewhere is remembered.
        let known = (known * (SPAN_BYTES / REMEMBERED_BYTES)).min(asked);
        self.saved += payload_bytes as u64 * known / asked.max(1);
        Ok(())
    }

    /// Whether what a search might have saved so far is worth indexing so many bytes.
    pub(super) fn finds_worth(&self, indexed_bytes: u64) -> bool {
        is_worth(self.saved, indexed_bytes)
    }
}

/// Whether saving so many bytes is worth indexing so many others.
pub(super) fn is_worth(saved_bytes: u64, indexed_bytes: u64) -> bool {
    saved_bytes > 0 && saved_bytes.saturating_mul(INDEXED_PER_SAVED_BYTE) >= indexed_bytes
}

/// How much of a block, in parts of [`ALL_SHARES`], seems to have nothing to do with the base at its place: of the bytes
/// in samples of it that are not 0, hardly more than chance makes equal are equal.
pub(super) fn share_elsewhere(old: &[u8], new: &[u8], width: Option<u8>) -> usize {
    share_by(old.len().min(new.len()), width, |range| count_equal(&old[range.clone()], &new[range]))
}

/// The same for a block `new`, whose base block had the lines of `old` that are marked in `dirty`, and else those of
/// `new`.
pub(super) fn share_elsewhere_before(old: &[u8], dirty: &[u64], new: &[u8], width: Option<u8>) -> usize {
    share_by(new.len(), width, |range| {
        let mut before = [0; SAMPLE_BYTES];
        let before = &mut before[..range.len()];
        before.copy_from_slice(&new[range.clone()]);
        for line in range.start / LINE_BYTES..range.end.div_ceil(LINE_BYTES) {
            if dirty[line / 64] >> (line % 64) & 1 == 1 {
                let start = range.start.max(line * LINE_BYTES);
                let end = range.end.min((line + 1) * LINE_BYTES);
                before[start - range.start..end - range.start].copy_from_slice(&old[start..end]);
            }
        }
        count_equal(before, &new[range])
    })
}

/// How many bytes are equal but not 0, and how many are not 0 in `new`.
fn count_equal(old: &[u8], new: &[u8]) -> (usize, usize) {
    old.iter().zip(new).fold((0, 0), |(equal, set), (old, new)| {
        (equal + usize::from(*new != 0 && old == new), set + usize::from(*new != 0))
    })
}

fn share_by(length: usize, width: Option<u8>, count: impl Fn(Range<usize>) -> (usize, usize)) -> usize {
    let is_wide = width.is_some_and(|width| width >= WIDE_BYTES);
    let least_share = if is_wide { LEAST_EQUAL_SHARE_WIDE } else { LEAST_EQUAL_SHARE };
    let (mut equal, mut set) = ([0; ALL_SHARES], [0; ALL_SHARES]);
    for at in (0..length).step_by((length / SAMPLES).max(SAMPLE_BYTES)) {
        let share = at * ALL_SHARES / length;
        let found = count(at..length.min(at + SAMPLE_BYTES));
        equal[share] += found.0;
        set[share] += found.1;
    }
    let (all_equal, all_set): (usize, usize) = (equal.iter().sum(), set.iter().sum());
    if all_set > 0 && all_equal < all_set / least_share {
        return ALL_SHARES;
    }
    let elsewhere = |&(equal, set): &(&usize, &usize)| *set > SAMPLE_BYTES && *equal < set / least_share;
    equal.iter().zip(&set).filter(elsewhere).count().min(ALL_SHARES - 1)
}
