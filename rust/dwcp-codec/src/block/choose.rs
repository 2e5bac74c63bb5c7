//! Which kind is likely to make the least of a block, from a few of its lines.

use crate::kernel::element::{Element, with_element};
use crate::kernel::planes::{Transform, split};
use crate::kernel::{LINE_BYTES, Level, lines};
use crate::probe;

/// How a block is to be coded against its base.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Against {
    /// Its changed elements of this width in bytes.
    Sparse(usize),
    /// The differences of all elements of this width in bytes.
    Difference(usize),
    /// Its changed bytes.
    Runs,
    /// The base does not seem to help.
    Nothing,
}

/// Changed lines that are looked at, at most and at least.
const MOST_LINES: usize = 64;
const LEAST_LINES: usize = 16;
/// One changed line in this many is looked at, in between.
const LINE_STEP: usize = 16;
/// From this share of changed elements on, telling which they are takes more than telling the difference of all.
const DENSE: f64 = 0.8;
/// From this share of changed bytes on, the bytes of runs are as good as the whole block, where repetition is found.
const MANY_BYTES: f64 = 0.6;
/// What must be left of the block for trying a kind: no more than this.
const WORTH_TRYING: f64 = 0.97;
/// What compression leaves of the order-0 entropy of the bytes of runs, which repeat themselves and each other.
const RUN_BYTES_SHARE: f64 = 0.7;
/// What a run takes beside its place, in bits.
const RUN_BITS: f64 = 3.0;
/// What a changed element takes beside the bits of its zigzag, in bits.
const CHANGE_BITS: f64 = 0.5;
/// The widths that are tried if none is given, where a later one has to be better than an earlier one.
const PROBED_WIDTHS: [usize; 3] = [2, 4, 8];

/// Chooses for a block of which `dirty` lines, `dirty_count` of them, differ from `base`, which is as long.
pub(super) fn against(
    src: &[u8],
    base: &[u8],
    dirty: &[u64],
    dirty_count: usize,
    width: Option<usize>,
) -> Against {
    let wanted = (dirty_count / LINE_STEP).clamp(LEAST_LINES, MOST_LINES);
    let (mut old, mut new) =
        (Vec::with_capacity(MOST_LINES * LINE_BYTES), Vec::with_capacity(MOST_LINES * LINE_BYTES));
    let step = dirty_count.div_ceil(wanted).max(1);
    for index in every(dirty, step).take(MOST_LINES) {
        let range = index * LINE_BYTES..src.len().min((index + 1) * LINE_BYTES);
        // The last line may be short; it has its place behind the others.
        old.extend_from_slice(&base[range.clone()]);
        new.extend_from_slice(&src[range]);
    }
    if new.is_empty() {
        return Against::Nothing;
    }
    // Changed lines for each line looked at.
    let scale = (dirty_count * LINE_BYTES) as f64 / new.len() as f64;
    let length = src.len() as f64;
    let mut best = (Against::Nothing, WORTH_TRYING * 8.0 * length);
    if width.is_none_or(|width| width == 1) {
        let mut masks = Vec::with_capacity(MOST_LINES);
        let all = [u64::MAX >> (64 - new.len().div_ceil(LINE_BYTES).min(64))];
        lines::byte_masks(Level::detected(), &old, &new, &all, &mut masks);
        let bytes = masks.iter().map(|mask| mask.count_ones()).sum::<u32>();
        if f64::from(bytes) * scale <= MANY_BYTES * length {
            let runs = masks.iter().map(|mask| (mask & !(mask << 1)).count_ones()).sum::<u32>();
            let runs = f64::from(runs) * scale;
            let bytes: Vec<u8> = lines::set_bits(&masks).map(|at| new[at]).collect();
            let bytes_bits = f64::from(probe::entropy_bytes(&bytes)) * 8.0 * scale * RUN_BYTES_SHARE;
            let bits = length * entropy(runs / length) + runs * RUN_BITS + bytes_bits;
            if bits < best.1 {
                best = (Against::Runs, bits);
            }
        }
    }
    let given = width.map(|width| [width]);
    for &width in given.as_ref().map_or(&PROBED_WIDTHS[..], |given| &given[..]) {
        let (changed, value_bits) = with_element!(width, E => changes::<E>(&old, &new));
        let elements = length / width as f64;
        let (changed, value_bits) = (changed as f64 * scale, value_bits as f64 * scale);
        let share = (changed / elements).min(1.0);
        let bits = elements * entropy(share) + value_bits + changed * CHANGE_BITS;
        if bits < best.1 {
            best = (if share > DENSE { Against::Difference(width) } else { Against::Sparse(width) }, bits);
        }
    }
    best.0
}

/// Numbers of one in `step` set bits.
fn every(words: &[u64], step: usize) -> impl Iterator<Item = usize> {
    let mut skip = 0;
    words.iter().enumerate().flat_map(move |(index, word)| {
        let count = word.count_ones() as usize;
        let mut found = [0; 64];
        let mut taken = 0;
        if skip >= count {
            skip -= count;
        } else {
            for (rank, bit) in lines::set_bits(std::slice::from_ref(word)).enumerate() {
                if rank == skip {
                    found[taken] = index * 64 + bit;
                    taken += 1;
                    skip += step;
                }
            }
            skip -= count;
        }
        found.into_iter().take(taken)
    })
}

/// Bits that an event of probability `share` takes for each trial.
fn entropy(share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return 0.0;
    }
    -share * share.log2() - (1.0 - share) * (1.0 - share).log2()
}

/// How many elements differ, and the bits of their zigzags.
fn changes<E: Element>(old: &[u8], new: &[u8]) -> (usize, u64) {
    let pairs = old.chunks_exact(E::WIDTH).zip(new.chunks_exact(E::WIDTH));
    pairs.fold((0, 0), |(count, bits), (old, new)| {
        let zigzag = E::read(new).zigzag_from(E::read(old)).widen();
        (count + usize::from(zigzag != 0), bits + u64::from(u64::BITS - zigzag.leading_zeros()))
    })
}

/// The elements whose planes are likely to take less than the block itself by a compressor, and what to do to them, if
/// there are such.
pub(super) fn planes(src: &[u8], width: Option<usize>) -> Option<(Transform, usize)> {
    /// What planes must be of the entropy of the bytes: less is needed to believe a width that was given.
    const PROBED: f32 = 0.93;
    const GIVEN: f32 = 0.98;
    /// What LZ4 leaves at least of bytes that do not repeat.
    const NOT_REPEATING: f32 = 0.97;
    if width == Some(1) {
        return None;
    }
    let sample = probe::sample(src);
    let (widths, factor) = match &width {
        Some(width) => (std::slice::from_ref(width), GIVEN),
        None => (&PROBED_WIDTHS[..2], PROBED),
    };
    let mut best = (None, probe::entropy_bytes(&sample) * factor);
    let mut split_sample = vec![0; sample.len()];
    for &width in widths {
        let count = sample.len() / width;
        if count == 0 {
            continue;
        }
        for transform in [Transform::Keep, Transform::Rotate] {
            split(Level::detected(), transform, width, &sample, &sample, &mut split_sample);
            let planes = split_sample[..count * width].chunks(count).map(probe::entropy_bytes);
            let bytes = planes.sum::<f32>();
            if bytes < best.1 {
                best = (Some((transform, width)), bytes);
            }
        }
    }
    best.0.filter(|_| {
        // What repeats is not a tensor, unless it is said to be one.
        let repeating = probe::lz4_bytes(&sample) as f32;
        best.1 < repeating && (width.is_some() || repeating > NOT_REPEATING * sample.len() as f32)
    })
}

/// What to do to elements of `width` bytes, of which it is known that their planes are wanted.
pub(super) fn transform(src: &[u8], width: usize) -> Transform {
    /// Enough to tell which of the two is better: they differ in one bit.
    const SAMPLED: usize = 4_096;
    let start = src.len().saturating_sub(SAMPLED) / 2 / width * width;
    let sample = &src[start..src.len().min(start + SAMPLED)];
    let (mut planes, count) = (vec![0; sample.len()], sample.len() / width);
    let mut bytes_by = |transform| {
        split(Level::detected(), transform, width, sample, sample, &mut planes);
        planes[..count * width].chunks(count.max(1)).map(probe::entropy_bytes).sum::<f32>()
    };
    if bytes_by(Transform::Rotate) < bytes_by(Transform::Keep) { Transform::Rotate } else { Transform::Keep }
}
