//! Two versions of a block hashed and compared in one pass: memory is slower than all of that together.
//!
//! The digest is XXH3-128 with its default secret, for which the vector levels have loops of their own here. As long as
//! both versions are equal one state is the state of both.

use super::lines::{dirty_lines, set_bits, used_lines, words_for};
use super::{LINE_BYTES, Level, Line};
use crate::digest::{BlockHasher, Digest};

/// What one pass tells of two versions of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pair {
    /// The digest of the old version.
    pub old: Digest,
    /// The digest of the new one.
    pub new: Digest,
    /// How many lines of what both have differ.
    pub dirty: usize,
}

/// Hashes both versions, and marks the lines in which they differ, as [`dirty_lines`] does, up to the end of the shorter
/// one.
pub(crate) fn hash_and_compare(level: Level, old: &[u8], new: &[u8], lines: &mut Vec<u64>) -> Pair {
    lines.clear();
    lines.resize(words_for(old.len().min(new.len())), 0);
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::hash_and_compare_avx2(old, new, lines),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::hash_and_compare_avx512(old, new, lines),
        _ => by_pieces(level, old, new, lines),
    }
}

/// Hashes a block, and marks the lines in which there is a byte that is not 0, as [`used_lines`] does: its digest, and how
/// many these are.
pub(crate) fn hash_and_mark(level: Level, bytes: &[u8], lines: &mut Vec<u64>) -> (Digest, usize) {
    lines.clear();
    lines.resize(words_for(bytes.len()), 0);
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::hash_and_mark_avx2(bytes, lines),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::hash_and_mark_avx512(bytes, lines),
        _ => mark_by_pieces(level, bytes, lines),
    }
}

/// Makes of `held` the block `new`, which is as long, marks the lines that differed, as [`dirty_lines`] does, and puts what
/// these were to their places in `old`, which is as long, too. Gives the digest of what is held now, and their number.
///
/// `new` is read once: whatever becomes of it meanwhile, the digest is that of what is held.
pub(crate) fn hash_and_take(
    level: Level,
    held: &mut [u8],
    new: &[u8],
    old: &mut [u8],
    lines: &mut Vec<u64>,
) -> (Digest, usize) {
    lines.clear();
    lines.resize(words_for(held.len()), 0);
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::hash_and_take_avx2(held, new, old, lines),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::hash_and_take_avx512(held, new, old, lines),
        _ => take_by_pieces(level, held, new, old, lines),
    }
}

/// How many bytes are hashed before they are compared, by a hasher that is not made for both. Memory is read ahead of
/// hashing, and the second reader of it is in step: with longer pieces both together take a fifth more.
const PIECE_BYTES: usize = 8 << 10;
const PIECE_WORDS: usize = PIECE_BYTES / LINE_BYTES / 64;

fn by_pieces(level: Level, old: &[u8], new: &[u8], lines: &mut [u64]) -> Pair {
    let common = old.len().min(new.len());
    let (old_pieces, new_pieces) = (old[..common].chunks(PIECE_BYTES), new[..common].chunks(PIECE_BYTES));
    let mut old_hasher = BlockHasher::new();
    let mut new_hasher: Option<BlockHasher> = None;
    let mut dirty = 0;
    for (lines, (old, new)) in lines.chunks_mut(PIECE_WORDS).zip(old_pieces.zip(new_pieces)) {
        let before = old_hasher.clone();
        old_hasher.update(old);
        dirty += dirty_lines(level, old, new, lines);
        if dirty > 0 {
            new_hasher.get_or_insert(before).update(new);
        }
    }
    let is_same = dirty == 0 && old.len() == new.len();
    let new_hasher = new_hasher.unwrap_or_else(|| old_hasher.clone());
    let old_digest = old_hasher.digest_with(&old[common..]);
    let new_digest = if is_same { old_digest } else { new_hasher.digest_with(&new[common..]) };
    Pair { old: old_digest, new: new_digest, dirty }
}

fn mark_by_pieces(level: Level, bytes: &[u8], lines: &mut [u64]) -> (Digest, usize) {
    let mut hasher = BlockHasher::new();
    let mut used = 0;
    for (lines, bytes) in lines.chunks_mut(PIECE_WORDS).zip(bytes.chunks(PIECE_BYTES)) {
        hasher.update(bytes);
        used += used_lines(level, bytes, lines);
    }
    (hasher.digest_with(&[]), used)
}

fn take_by_pieces(
    level: Level,
    held: &mut [u8],
    new: &[u8],
    old: &mut [u8],
    lines: &mut [u64],
) -> (Digest, usize) {
    let mut hasher = BlockHasher::new();
    let mut dirty = 0;
    let pieces = held.chunks_mut(PIECE_BYTES).zip(new.chunks(PIECE_BYTES)).zip(old.chunks_mut(PIECE_BYTES));
    for (lines, ((held, new), old)) in lines.chunks_mut(PIECE_WORDS).zip(pieces) {
        dirty += dirty_lines(level, held, new, lines);
        set_bits(lines).for_each(|line| take_line(line, held, new, old));
        hasher.update(held);
    }
    (hasher.digest_with(&[]), dirty)
}

/// Puts a line, which may be the last and short, of `held` into `old`, and that of `new` in its place.
#[inline(always)]
fn take_line(line: usize, held: &mut [u8], new: &[u8], old: &mut [u8]) {
    let range = line * LINE_BYTES..held.len().min((line + 1) * LINE_BYTES);
    old[range.clone()].copy_from_slice(&held[range.clone()]);
    held[range.clone()].copy_from_slice(&new[range]);
}

/// The state of the hash.
pub(super) type Lanes = [u64; 8];

/// After so many lines the state is stirred.
const ROUND_LINES: usize = 16;
const ROUND_BYTES: usize = ROUND_LINES * LINE_BYTES;
type Round = [Line; ROUND_LINES];

/// Up to this length XXH3 has other ways.
const SHORT_BYTES: usize = 240;

const PRIME32_1: u64 = 0x9e37_79b1;
const PRIME32_2: u64 = 0x85eb_ca77;
const PRIME32_3: u64 = 0xc2b2_ae3d;
const PRIME64_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME64_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME64_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME64_4: u64 = 0x85eb_ca77_c2b2_ae63;
const PRIME64_5: u64 = 0x27d4_eb2f_1656_67c5;
const PRIME_MX1: u64 = 0x1656_6791_9e37_79f9;

const START: Lanes = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1];

/// The default secret, and where in it the keys are: of line *i* of a round 8 bytes further for each, of stirring, of the
/// last line, and of both halves of the digest.
#[rustfmt::skip]
static SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];
const STIR_KEY: usize = 128;
const LAST_KEY: usize = 121;
const LOW_KEY: usize = 11;
const HIGH_KEY: usize = 117;

const NO_BYTES: Line = [0; LINE_BYTES];
static NO_ROUND: Round = [NO_BYTES; ROUND_LINES];

/// A line that adds to the state, mixed with itself as its key, what a round of zeros adds line by line: of a zero only its
/// product with nothing but the key is left, and of this line only itself.
static ZERO_ROUND: Line = {
    let mut line = NO_BYTES;
    let mut lane = 0;
    while lane < 8 {
        let mut sum = 0_u64;
        let mut i = 0;
        while i < ROUND_LINES {
            let at = 8 * (i + lane);
            let mut key = 0;
            let mut byte = 8;
            while byte > 0 {
                byte -= 1;
                key = key << 8 | SECRET[at + byte] as u64;
            }
            sum = sum.wrapping_add((key & u32::MAX as u64) * (key >> 32));
            i += 1;
        }
        // Lines are added with their lanes in pairs changed over.
        let (bytes, mut byte) = (sum.to_le_bytes(), 0);
        while byte < 8 {
            line[8 * (lane ^ 1) + byte] = bytes[byte];
            byte += 1;
        }
        lane += 1;
    }
    line
};

/// [`hash_and_compare`] by what a level has instructions for: `differ` tells whether two lines differ, `add` adds a line,
/// mixed with its key, to the state. All words of `lines` are 0.
#[inline(always)]
pub(super) fn hash_and_compare_with(
    old: &[u8],
    new: &[u8],
    lines: &mut [u64],
    differ: impl Fn(&Line, &Line) -> bool + Copy,
    add: impl Fn(&mut Lanes, &Line, &Line) + Copy,
) -> Pair {
    let common = old.len().min(new.len());
    // The last bytes of each, one at least, are not hashed in rounds.
    let in_rounds = common.saturating_sub(1) / ROUND_BYTES * ROUND_BYTES;
    let (old_rounds, new_rounds) = (rounds(&old[..in_rounds]), rounds(&new[..in_rounds]));
    let mut dirty = 0;
    let mut both = START;
    let mut equal = 0;
    for (old, new) in old_rounds.iter().zip(new_rounds) {
        let mut lanes = both;
        if is_zero(old, differ) && is_zero(new, differ) {
            add(&mut lanes, &ZERO_ROUND, &ZERO_ROUND);
        } else if compare_round(old, new, differ, |i, line, _| add(&mut lanes, line, key(8 * i))) != 0 {
            break;
        }
        stir(&mut lanes);
        both = lanes;
        equal += 1;
    }
    let (mut old_lanes, mut new_lanes) = (both, both);
    for (index, (old, new)) in old_rounds.iter().zip(new_rounds).enumerate().skip(equal) {
        let mut bits = 0;
        if is_zero(old, differ) && is_zero(new, differ) {
            add(&mut old_lanes, &ZERO_ROUND, &ZERO_ROUND);
            add(&mut new_lanes, &ZERO_ROUND, &ZERO_ROUND);
        } else {
            bits = compare_round(old, new, differ, |i, old, new| {
                add(&mut old_lanes, old, key(8 * i));
                add(&mut new_lanes, new, key(8 * i));
            });
        }
        stir(&mut old_lanes);
        stir(&mut new_lanes);
        lines[index / 4] |= bits << (ROUND_LINES * (index % 4));
        dirty += bits.count_ones() as usize;
    }
    let old_rest = old[in_rounds..common].chunks(LINE_BYTES);
    let rest = old_rest.zip(new[in_rounds..common].chunks(LINE_BYTES));
    for (line, _) in (in_rounds / LINE_BYTES..).zip(rest).filter(|(_, (old, new))| old != new) {
        lines[line / 64] |= 1 << (line % 64);
        dirty += 1;
    }
    let old_digest = finish(old_lanes, old, in_rounds, add);
    let is_same = dirty == 0 && old.len() == new.len();
    let new_digest = if is_same { old_digest } else { finish(new_lanes, new, in_rounds, add) };
    Pair { old: old_digest, new: new_digest, dirty }
}

/// [`hash_and_mark`] by what a level has instructions for, as in [`hash_and_compare_with`].
#[inline(always)]
pub(super) fn hash_and_mark_with(
    bytes: &[u8],
    lines: &mut [u64],
    differ: impl Fn(&Line, &Line) -> bool + Copy,
    add: impl Fn(&mut Lanes, &Line, &Line) + Copy,
) -> (Digest, usize) {
    let in_rounds = bytes.len().saturating_sub(1) / ROUND_BYTES * ROUND_BYTES;
    let mut used = 0;
    let mut lanes = START;
    for (index, round) in rounds(&bytes[..in_rounds]).iter().enumerate() {
        if is_zero(round, differ) {
            add(&mut lanes, &ZERO_ROUND, &ZERO_ROUND);
        } else {
            let bits =
                compare_round(&NO_ROUND, round, differ, |i, _, line| add(&mut lanes, line, key(8 * i)));
            lines[index / 4] |= bits << (ROUND_LINES * (index % 4));
            used += bits.count_ones() as usize;
        }
        stir(&mut lanes);
    }
    let rest = bytes[in_rounds..].chunks(LINE_BYTES);
    for (line, _) in (in_rounds / LINE_BYTES..).zip(rest).filter(|(_, rest)| **rest != NO_BYTES[..rest.len()])
    {
        lines[line / 64] |= 1 << (line % 64);
        used += 1;
    }
    (finish(lanes, bytes, in_rounds, add), used)
}

/// [`hash_and_take`] by what a level has instructions for, as in [`hash_and_compare_with`].
#[inline(always)]
pub(super) fn hash_and_take_with(
    held: &mut [u8],
    new: &[u8],
    old: &mut [u8],
    lines: &mut [u64],
    differ: impl Fn(&Line, &Line) -> bool + Copy,
    add: impl Fn(&mut Lanes, &Line, &Line) + Copy,
) -> (Digest, usize) {
    let in_rounds = held.len().saturating_sub(1) / ROUND_BYTES * ROUND_BYTES;
    let mut dirty = 0;
    let mut lanes = START;
    let both = rounds_mut(&mut held[..in_rounds]).iter_mut().zip(rounds(&new[..in_rounds]));
    let all = both.zip(rounds_mut(&mut old[..in_rounds])).enumerate();
    for (index, ((held, new), old)) in all {
        let bits = compare_round(held, new, differ, |_, _, _| ());
        for i in set_bits(&[bits]) {
            old[i] = held[i];
            held[i] = new[i];
        }
        held.iter().enumerate().for_each(|(i, line)| add(&mut lanes, line, key(8 * i)));
        stir(&mut lanes);
        lines[index / 4] |= bits << (ROUND_LINES * (index % 4));
        dirty += bits.count_ones() as usize;
    }
    for line in in_rounds / LINE_BYTES..held.len().div_ceil(LINE_BYTES) {
        let range = line * LINE_BYTES..held.len().min((line + 1) * LINE_BYTES);
        if held[range.clone()] != new[range] {
            take_line(line, held, new, old);
            lines[line / 64] |= 1 << (line % 64);
            dirty += 1;
        }
    }
    (finish(lanes, held, in_rounds, add), dirty)
}

/// Changes `bytes` by `change`, which gets parts of them in order and where each begins, and gives the digest of what they
/// are then if it is asked for, both while the part is at hand. `fetch_ahead` is called with every line before the last
/// ones, and `add` as in [`hash_and_compare_with`].
#[inline(always)]
pub(super) fn change_and_hash_with(
    bytes: &mut [u8],
    hash: bool,
    mut change: impl FnMut(usize, &mut [u8]),
    fetch_ahead: impl Fn(&Line),
    add: impl Fn(&mut Lanes, &Line, &Line) + Copy,
) -> Option<Digest> {
    let in_rounds = bytes.len().saturating_sub(1) / ROUND_BYTES * ROUND_BYTES;
    let mut lanes = START;
    for (index, round) in rounds_mut(&mut bytes[..in_rounds]).iter_mut().enumerate() {
        round.iter().for_each(&fetch_ahead);
        change(index * ROUND_BYTES, round.as_flattened_mut());
        if hash {
            round.iter().enumerate().for_each(|(i, line)| add(&mut lanes, line, key(8 * i)));
            stir(&mut lanes);
        }
    }
    change(in_rounds, &mut bytes[in_rounds..]);
    hash.then(|| finish(lanes, bytes, in_rounds, add))
}

fn rounds(bytes: &[u8]) -> &[Round] {
    bytes.as_chunks().0.as_chunks().0
}

fn rounds_mut(bytes: &mut [u8]) -> &mut [Round] {
    bytes.as_chunks_mut().0.as_chunks_mut().0
}

/// Whether there is nothing but zeros in a round.
#[inline(always)]
fn is_zero(round: &Round, differ: impl Fn(&Line, &Line) -> bool) -> bool {
    round.iter().all(|line| !differ(line, &NO_BYTES))
}

/// Calls `add` with every line of a round and its number, and returns a bit for each, set if both versions differ.
#[inline(always)]
fn compare_round(
    old: &Round,
    new: &Round,
    differ: impl Fn(&Line, &Line) -> bool,
    mut add: impl FnMut(usize, &Line, &Line),
) -> u64 {
    let mut bits = 0;
    for (i, (old, new)) in old.iter().zip(new).enumerate() {
        bits |= u64::from(differ(old, new)) << i;
        add(i, old, new);
    }
    bits
}

/// The key at a place of the secret that is not past the last key.
#[inline(always)]
fn key(at: usize) -> &'static Line {
    SECRET[at..].first_chunk().unwrap_or(&[0; LINE_BYTES])
}

#[inline(always)]
fn words(line: &Line) -> Lanes {
    let (words, _) = line.as_chunks();
    std::array::from_fn(|i| u64::from_le_bytes(words[i]))
}

#[inline(always)]
fn stir(lanes: &mut Lanes) {
    for (lane, key) in lanes.iter_mut().zip(words(key(STIR_KEY))) {
        *lane = (*lane ^ (*lane >> 47) ^ key).wrapping_mul(PRIME32_1);
    }
}

/// The digest of `bytes`, of which `done` are in the state.
#[inline(always)]
fn finish(mut lanes: Lanes, bytes: &[u8], done: usize, add: impl Fn(&mut Lanes, &Line, &Line)) -> Digest {
    if bytes.len() <= SHORT_BYTES {
        return Digest::of(bytes);
    }
    let Some(last) = bytes.last_chunk() else { return Digest::of(bytes) };
    let rest = &bytes[done..];
    // The last line of all is added once more, with another key, so that it need not be whole.
    let (all, _) = rest[..(rest.len() - 1) / LINE_BYTES * LINE_BYTES].as_chunks();
    let (whole, left) = all.as_chunks::<ROUND_LINES>();
    for round in whole {
        round.iter().enumerate().for_each(|(i, line)| add(&mut lanes, line, key(8 * i)));
        stir(&mut lanes);
    }
    left.iter().enumerate().for_each(|(i, line)| add(&mut lanes, line, key(8 * i)));
    add(&mut lanes, last, key(LAST_KEY));
    let length = bytes.len() as u64;
    let low = merge(&lanes, LOW_KEY, length.wrapping_mul(PRIME64_1));
    let high = merge(&lanes, HIGH_KEY, !length.wrapping_mul(PRIME64_2));
    Digest((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

fn merge(lanes: &Lanes, at: usize, start: u64) -> u64 {
    let keys = words(key(at));
    let mut hash = start;
    for i in (0..8).step_by(2) {
        let product = u128::from(lanes[i] ^ keys[i]) * u128::from(lanes[i + 1] ^ keys[i + 1]);
        hash = hash.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    hash ^= hash >> 37;
    hash = hash.wrapping_mul(PRIME_MX1);
    hash ^ (hash >> 32)
}
