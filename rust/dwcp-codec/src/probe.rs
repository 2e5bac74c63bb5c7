//! A cheap guess whether compressing pays, from a few small samples.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use crate::raw;

/// Shorter inputs are always worth a try: compressing them costs less than guessing well.
const MIN_BYTES: usize = 512;
/// How many pieces are looked at, and how long each is.
const PIECES: usize = 16;
const PIECE_BYTES: usize = 1_024;
const SAMPLE_BYTES: usize = PIECES * PIECE_BYTES;
/// Content that repeats does so most often at multiples of a page.
const PAGE_BYTES: usize = 4_096;
/// How many page heads are compared at most; a power of two.
const MAX_PAGES: usize = 512;
/// One part in this many is the least saving worth compressing for (3 %).
const LEAST_SAVING: usize = 33;

/// `n * log2(n)` for every count a piece can have.
static N_LOG_N: LazyLock<[f32; PIECE_BYTES + 1]> =
    LazyLock::new(|| std::array::from_fn(|n| if n == 0 { 0.0 } else { (n as f32) * (n as f32).log2() }));

/// Whether compressing `src` is likely to save more than 2 to 3 %.
///
/// Looks at no more than 16 KiB, spread over the input: at the entropy of its bytes (what zstd's entropy
/// stage can gain, as on weights in floating point, where LZ4 gains nothing), at repetition within and between the
/// samples, and at equal pages. What repeats only elsewhere is not seen.
#[must_use]
pub fn compressible(src: &[u8]) -> bool {
    if src.len() < MIN_BYTES {
        return true;
    }
    let mut scratch = [MaybeUninit::uninit(); SAMPLE_BYTES];
    if src.len() <= SAMPLE_BYTES {
        return varies_little(src.chunks(PIECE_BYTES), src.len()) || repeats(src, &mut scratch);
    }
    let pieces = pieces(src);
    if varies_little(pieces.clone(), SAMPLE_BYTES) || pages_repeat(src) {
        return true;
    }
    let mut sample = [0; SAMPLE_BYTES];
    for (copy, piece) in sample.chunks_exact_mut(PIECE_BYTES).zip(pieces) {
        copy.copy_from_slice(piece);
    }
    repeats(&sample, &mut scratch)
}

/// What coding the bytes of `src` by their frequencies alone is likely to leave of them, from a few samples: 0 to 1.
pub(crate) fn entropy_share(src: &[u8]) -> f32 {
    // A quarter of the pieces is enough to know what coder suits.
    let step = (src.len() / PIECE_BYTES).div_ceil(PIECES / 4).max(1);
    let (bits, bytes) = src
        .chunks(PIECE_BYTES)
        .step_by(step)
        .fold((0.0, 0), |(bits, bytes), piece| (bits + entropy_bits(piece), bytes + piece.len()));
    bits / (8 * bytes.max(1)) as f32
}

/// The least that compression is likely to leave of `src`, 0 to 1: of what repeats that cannot be told, and it is 0.
pub(crate) fn least_share(src: &[u8]) -> f32 {
    let sample = sample(src);
    let is_repeating = lz4_bytes(&sample) < sample.len() - sample.len() / LEAST_SAVING;
    if is_repeating || pages_repeat(src) { 0.0 } else { entropy_bytes(&sample) / sample.len().max(1) as f32 }
}

/// The order-0 entropy of all of `src` in bytes.
pub(crate) fn entropy_bytes(src: &[u8]) -> f32 {
    let mut counts = [0_u32; 256];
    for byte in src {
        counts[usize::from(*byte)] += 1;
    }
    let length = src.len() as f32;
    let bits = counts.iter().filter(|count| **count > 0).map(|count| {
        let count = *count as f32;
        count * (length / count).log2()
    });
    bits.sum::<f32>() / 8.0
}

/// Pieces of `src` one behind the other, or all of it if it is not longer than they are together.
pub(crate) fn sample(src: &[u8]) -> Vec<u8> {
    if src.len() <= SAMPLE_BYTES { src.to_vec() } else { pieces(src).flatten().copied().collect() }
}

/// Length in bytes of a [`sample`] after LZ4, at most its own.
pub(crate) fn lz4_bytes(sample: &[u8]) -> usize {
    let mut scratch = [MaybeUninit::uninit(); SAMPLE_BYTES];
    let room = sample.len().min(SAMPLE_BYTES);
    raw::lz4_compress(sample, &mut scratch[..room]).map_or(sample.len(), |written| written.count())
}

/// Pieces spread over `src`, which is longer than all of them.
fn pieces(src: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let last = src.len() - PIECE_BYTES;
    (0..PIECES).map(move |i| {
        // In this order of operations no length overflows.
        let at = last / (PIECES - 1) * i + last % (PIECES - 1) * i / (PIECES - 1);
        // Each begins with an element, whatever the width.
        let at = at / 8 * 8;
        &src[at..at + PIECE_BYTES]
    })
}

/// Whether the entropy of the bytes in `pieces`, `length` bytes in all, is low enough to compress.
fn varies_little<'a>(pieces: impl Iterator<Item = &'a [u8]>, length: usize) -> bool {
    let mut missing = (8 * (length / LEAST_SAVING)) as f32;
    for piece in pieces {
        missing -= 8.0 * piece.len() as f32 - entropy_bits(piece);
        // No piece has less than nothing to save, so the rest cannot take it back.
        if missing < 0.0 {
            return true;
        }
    }
    false
}

/// How often each byte occurs in `bytes`, which are fewer than 64 KiB.
#[inline(always)]
pub(crate) fn histogram(bytes: &[u8]) -> [u16; 256] {
    // Four tables, so that runs of one byte do not wait for their own last store.
    let mut tables = [[0_u16; 256]; 4];
    let mut fours = bytes.chunks_exact(4);
    for four in &mut fours {
        for (table, byte) in tables.iter_mut().zip(four) {
            table[usize::from(*byte)] += 1;
        }
    }
    for byte in fours.remainder() {
        tables[0][usize::from(*byte)] += 1;
    }
    let [a, b, c, d] = &tables;
    let mut sums = [0; 256];
    for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *sum = a + b + c + d;
    }
    sums
}

/// The order-0 entropy of all of `piece` in bits, corrected for how much so few samples underestimate it.
fn entropy_bits(piece: &[u8]) -> f32 {
    let logs = &*N_LOG_N;
    let (mut sum, mut distinct) = (0.0, 0_u16);
    for n in histogram(piece) {
        sum += logs[usize::from(n)];
        distinct += u16::from(n > 0);
    }
    // The Miller-Madow term: (distinct - 1) / 2 nats over the whole piece.
    let correction = f32::from(distinct.saturating_sub(1)) * 0.5 * std::f32::consts::LOG2_E;
    (logs[piece.len()] - sum + correction).min(8.0 * piece.len() as f32)
}

/// Whether LZ4 finds enough repetition in `sample`.
fn repeats(sample: &[u8], scratch: &mut [MaybeUninit<u8>; SAMPLE_BYTES]) -> bool {
    let room = sample.len() - sample.len() / LEAST_SAVING;
    raw::lz4_compress(sample, &mut scratch[..room]).is_ok()
}

/// Whether enough pages begin like another page.
fn pages_repeat(src: &[u8]) -> bool {
    let pages = src.len() / PAGE_BYTES;
    if pages < 2 {
        return false;
    }
    let step = pages.div_ceil(MAX_PAGES) * PAGE_BYTES;
    let mut seen = [None; 2 * MAX_PAGES];
    let (mut looked, mut again) = (0_usize, 0_usize);
    for page in src.chunks_exact(step) {
        let Some(head) = page.first_chunk::<8>() else { break };
        let head = u64::from_le_bytes(*head);
        // The top ten bits of a multiplicative hash; a later page simply takes the slot.
        let slot = (head.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize;
        again += usize::from(seen[slot] == Some(head));
        seen[slot] = Some(head);
        looked += 1;
    }
    again * LEAST_SAVING > looked
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes without any pattern, from a fixed seed.
    pub(crate) fn noise(mut state: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Text-like bytes: words of a small vocabulary.
    pub(crate) fn text(length: usize) -> Vec<u8> {
        let words = ["lane ", "block ", "frame ", "entry ", "digest ", "base ", "of ", "the "];
        noise(3, length).iter().flat_map(|byte| words[usize::from(byte % 8)].bytes()).take(length).collect()
    }

    /// Floating-point weights in bf16: a noisy mantissa under a narrow exponent.
    pub(crate) fn weights(length: usize) -> Vec<u8> {
        let mut bytes = noise(4, length);
        for pair in bytes.chunks_exact_mut(2) {
            pair[1] = 0x3c + (pair[1].trailing_zeros() as u8) / 2 + (pair[1] & 0x80);
        }
        bytes
    }

    #[test]
    fn noise_of_any_length_is_not_worth_compressing() {
        for length in [512, 1_000, 4_096, 100_000, 1 << 20] {
            for seed in 1..20 {
                assert!(!compressible(&noise(seed, length)), "{length} {seed}");
            }
        }
    }

    #[test]
    fn compressed_text_is_not_worth_compressing_again() {
        let mut wire = Vec::new();
        let text = text(4 << 20);
        crate::Compressor::new().compress(crate::Codec::Zstd { level: 3 }, &text, &mut wire).unwrap();
        assert!(wire.len() > 100_000);
        assert!(!compressible(&wire));
    }

    #[test]
    fn text_weights_zeroes_and_repeated_pages_are_worth_compressing() {
        for length in [512, 4_096, 1 << 20] {
            assert!(compressible(&text(length)), "text of {length}");
            assert!(compressible(&weights(length)), "weights of {length}");
            assert!(compressible(&vec![0; length]), "zeroes of {length}");
        }
        let mut half = noise(9, 1 << 20);
        half[1 << 19..].fill(0);
        assert!(compressible(&half), "half noise, half zeroes");
        let pages = noise(9, 64 << 10).repeat(16);
        assert!(compressible(&pages), "pages of noise that repeat");
    }
}
