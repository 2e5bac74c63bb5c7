//! Samples of a block: lines from all over it, and pieces of what is not one byte repeated.

use std::mem::MaybeUninit;

use crate::raw;

/// Bytes of a line, and how many are looked at.
pub(super) const LINE_BYTES: usize = 64;
const LINES: usize = 256;
/// Bytes of the pieces together, and how many they are at most.
pub(super) const SAMPLE_BYTES: usize = 4_096;
const PIECES: usize = 8;

/// What the lines say.
#[derive(Default, Debug)]
pub(super) struct Lines {
    /// How many were looked at.
    pub count: usize,
    /// How many are one byte repeated; the numbers below are of the others.
    pub flat: usize,
    /// How many stood at the start of a page, and how many of these were the same as one before.
    pub heads: usize,
    pub heads_again: usize,
    /// How many stood elsewhere; the numbers below are of these. How many have no sign of structure.
    pub inner: usize,
    pub noise: usize,
    /// Bytes that are zero, 0x80 or more, printable; that equal the byte 1, 4 or 8 before.
    pub zeros: usize,
    pub high: usize,
    pub printable: usize,
    pub equal_1: usize,
    pub equal_4: usize,
    pub equal_8: usize,
}

/// Pieces of a block, one behind the other.
pub(super) struct Pieces {
    bytes: [u8; SAMPLE_BYTES],
    length: usize,
    /// Bytes of each piece.
    pub piece: usize,
}

impl Pieces {
    /// Their bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Looks at `src`, which is not empty.
pub(super) fn look(src: &[u8]) -> (Lines, Pieces) {
    let mut lines = Lines::default();
    let mut solid = [0_usize; LINES];
    let mut solid_count = 0;
    let mut seen = [0_u32; 2 * LINES];
    let step = (src.len() / LINES).max(LINE_BYTES);
    for (number, stretch) in src.chunks(step).take(LINES).enumerate() {
        // Every other line stands at the start of its stretch, which is a page's where blocks are as long as usual, and
        // the others anywhere, so that the fields of records do not all fall on the same place.
        let at_start = number % 2 == 0;
        let places = stretch.len() / LINE_BYTES;
        let at = if at_start || places < 2 { 0 } else { number.wrapping_mul(29) % places * LINE_BYTES };
        let Some(line) = stretch.get(at..).and_then(<[u8]>::first_chunk::<LINE_BYTES>) else { continue };
        lines.count += 1;
        if is_flat(line) {
            lines.flat += 1;
            continue;
        }
        if at_start {
            lines.heads += 1;
            let check = check(line);
            let slot = &mut seen[check as usize % (2 * LINES)];
            lines.heads_again += usize::from(*slot == check);
            *slot = check;
        } else {
            lines.add(line);
        }
        solid[solid_count] = number * step + at;
        solid_count += 1;
    }
    (lines, pieces(src, &solid[..solid_count]))
}

impl Lines {
    fn add(&mut self, line: &[u8; LINE_BYTES]) {
        let mut words = [0_u64; LINE_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(line.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        // The first word has none before it, and takes what it cannot equal at a distance of 8.
        let mut before = [!words[0]; LINE_BYTES / 8];
        before[1..].copy_from_slice(&words[..LINE_BYTES / 8 - 1]);
        let mut sums = [0_u64; 6];
        for (word, before) in words.into_iter().zip(before) {
            let tests = [
                zero_bytes(word),
                word >> 7 & ONES,
                !(word | bytes_below_space(word)) >> 7 & ONES,
                zero_bytes(word ^ (word << 8 | before >> 56)),
                zero_bytes(word ^ (word << 32 | before >> 32)),
                zero_bytes(word ^ before),
            ];
            for (sum, test) in sums.iter_mut().zip(tests) {
                *sum += test;
            }
        }
        // Each byte of a sum is 8 at most.
        let [zeros, high, printable, equal_1, equal_4, equal_8] =
            sums.map(|sum| (sum.wrapping_mul(ONES) >> 56) as usize);
        self.inner += 1;
        self.zeros += zeros;
        self.high += high;
        self.printable += printable;
        self.equal_1 += equal_1;
        self.equal_4 += equal_4;
        self.equal_8 += equal_8;
        // Of 64 random bytes a quarter of one is expected to be zero or to equal another, and half to be high.
        let is_noise = zeros <= 2 && equal_1 <= 2 && equal_4 <= 2 && equal_8 <= 2 && high.abs_diff(32) <= 12;
        self.noise += usize::from(is_noise);
    }
}

/// One in each byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

/// One in each byte that is zero.
#[inline(always)]
fn zero_bytes(word: u64) -> u64 {
    !(((word & !(ONES << 7)) + !(ONES << 7)) | word) >> 7 & ONES
}

/// The high bit of each byte that is below a space, and of any above 0x7f.
#[inline(always)]
fn bytes_below_space(word: u64) -> u64 {
    !((word & !(ONES << 7)) + 0x60 * ONES)
}

fn is_flat(line: &[u8; LINE_BYTES]) -> bool {
    let words = line.as_chunks::<8>().0;
    let first = u64::from_ne_bytes([line[0]; 8]);
    words.iter().fold(0, |differs, word| differs | (u64::from_ne_bytes(*word) ^ first)) == 0
}

/// A hash of a line, never 0.
fn check(line: &[u8; LINE_BYTES]) -> u32 {
    let words = line.as_chunks::<8>().0.iter();
    let hash = words.fold(0_u64, |hash, word| {
        (hash.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (hash >> 32) as u32 | 1 << 31
}

/// Pieces around some of the lines that are not flat, or from all over `src` where there are none.
fn pieces(src: &[u8], solid: &[usize]) -> Pieces {
    let mut pieces = Pieces { bytes: [0; SAMPLE_BYTES], length: 0, piece: SAMPLE_BYTES };
    if src.len() <= SAMPLE_BYTES {
        pieces.bytes[..src.len()].copy_from_slice(src);
        pieces.length = src.len();
        return pieces;
    }
    let count = if solid.is_empty() { PIECES } else { solid.len().min(PIECES) };
    pieces.piece = SAMPLE_BYTES / count / LINE_BYTES * LINE_BYTES;
    let last = src.len() - pieces.piece;
    let mut next = 0;
    for number in 0..count {
        let at = match solid.len() {
            0 => last / count * number,
            found => solid[(2 * number + 1) * found / (2 * count)],
        };
        // From a multiple of its length on, so that elements are whole, but behind the piece before.
        let at = (at / pieces.piece * pieces.piece).max(next).min(last / LINE_BYTES * LINE_BYTES);
        pieces.bytes[pieces.length..][..pieces.piece].copy_from_slice(&src[at..at + pieces.piece]);
        pieces.length += pieces.piece;
        next = at + pieces.piece;
    }
    pieces
}

/// What LZ4 makes of pieces.
#[derive(Debug)]
pub(super) struct Matches {
    /// Length in bytes of what it makes.
    pub coded: usize,
    /// How many times it refers to bytes before.
    pub sequences: usize,
    /// Bytes that it refers to, and those of them further away than a piece is long.
    pub matched: usize,
    pub far: usize,
    /// How often each byte occurs among those that it tells.
    pub literals: [u16; 256],
    /// How many are told of each piece.
    pub told: [u16; PIECES],
}

impl Pieces {
    /// Compresses them, and takes apart what comes out.
    pub(super) fn matches(&self) -> Matches {
        let src = self.bytes();
        let mut coded = Vec::new();
        let room = src.len() + src.len() / 255 + 16;
        // A result of that length has room for anything, and only memory could be lacking.
        let made =
            raw::append_with(&mut coded, room, |spare: &mut [MaybeUninit<u8>]| raw::lz4_compress(src, spare));
        let mut matches = Matches {
            coded: if made.is_ok() { coded.len() } else { src.len() },
            sequences: 0,
            matched: 0,
            far: 0,
            literals: [0; 256],
            told: [0; PIECES],
        };
        matches.read(&coded, self.piece);
        matches
    }
}

impl Matches {
    /// Reads the sequences of an LZ4 block.
    fn read(&mut self, coded: &[u8], piece: usize) {
        let (mut rest, mut at) = (coded, 0_usize);
        while let Some((&token, behind)) = rest.split_first() {
            rest = behind;
            let literals = length(usize::from(token >> 4), &mut rest);
            let Some((told, behind)) = rest.split_at_checked(literals) else { return };
            for byte in told {
                self.literals[usize::from(*byte)] += 1;
            }
            if let Some(told) = self.told.get_mut(at / piece) {
                *told += literals as u16;
            }
            at += literals;
            let Some((&offset, behind)) = behind.split_first_chunk::<2>() else { return };
            rest = behind;
            let matched = length(usize::from(token & 15), &mut rest) + 4;
            self.sequences += 1;
            self.matched += matched;
            self.far += if usize::from(u16::from_le_bytes(offset)) > piece { matched } else { 0 };
            at += matched;
        }
    }
}

/// A length of which `start` is in the token.
#[inline(always)]
fn length(start: usize, rest: &mut &[u8]) -> usize {
    let mut length = start;
    if start == 15 {
        while let Some((&more, behind)) = rest.split_first() {
            *rest = behind;
            length += usize::from(more);
            if more < 255 {
                break;
            }
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::tests::{noise, text};

    proptest! {
        #[test]
        fn tally_of_a_line_is_what_counting_its_bytes_gives(
            line in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0x1f), 0x7e..0x81_u8], LINE_BYTES),
        ) {
            let line: [u8; LINE_BYTES] = line.try_into().unwrap();
            let mut lines = Lines::default();
            lines.add(&line);
            let count = |test: &dyn Fn(u8) -> bool| line.iter().filter(|byte| test(**byte)).count();
            prop_assert_eq!(lines.zeros, count(&|byte| byte == 0));
            prop_assert_eq!(lines.high, count(&|byte| byte >= 0x80));
            prop_assert_eq!(lines.printable, count(&|byte| (0x20..0x80).contains(&byte)));
            let equal = |distance: usize| (distance..LINE_BYTES).filter(|at| line[*at] == line[at - distance]).count();
            prop_assert_eq!(lines.equal_8, equal(8));
            prop_assert_eq!(lines.equal_4 - equal(4), (0..4).filter(|at| line[*at] == !line[at + 4]).count());
            prop_assert_eq!(lines.equal_1 - equal(1), usize::from(line[0] == !line[7]));
            prop_assert_eq!(is_flat(&line), line == [line[0]; LINE_BYTES]);
        }

        #[test]
        fn sequences_add_up_to_the_sample(
            seed in 1..u64::MAX,
            length in 1..9_000_usize,
            is_text in any::<bool>(),
            zeros in 0..9_000_usize,
        ) {
            let mut src = if is_text { text(length) } else { noise(seed, length) };
            src.resize(length + zeros, 0);
            let (_, pieces) = look(&src);
            let matches = pieces.matches();
            let literals: usize = matches.literals.iter().map(|count| usize::from(*count)).sum();
            prop_assert_eq!(literals + matches.matched, pieces.bytes().len());
            prop_assert_eq!(matches.told.iter().map(|told| usize::from(*told)).sum::<usize>(), literals);
            prop_assert!(matches.far <= matches.matched);
        }
    }

    #[test]
    fn pieces_come_from_what_is_not_flat_and_do_not_overlap() {
        let mut src = vec![0; 1 << 20];
        for (number, page) in src.chunks_mut(4096).enumerate().filter(|(number, _)| number % 16 == 3) {
            page.copy_from_slice(&noise(number as u64 + 1, 4096));
        }
        let (lines, pieces) = look(&src);
        assert_eq!((lines.count, lines.flat), (256, 240));
        assert_eq!(pieces.bytes().len(), SAMPLE_BYTES);
        assert_eq!(pieces.matches().coded.max(SAMPLE_BYTES), pieces.matches().coded);
        let mut different: Vec<_> = pieces.bytes().chunks(pieces.piece).collect();
        different.dedup();
        assert_eq!(different.len(), PIECES);
    }
}
