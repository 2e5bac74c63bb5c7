//! Positions chosen by the bytes that stand there, and fingerprints of what follows them.
//!
//! A position is chosen by a hash of the eight bytes there that needs no state: a sum of products of 16-bit words, for
//! which every vector unit has instructions.

use crate::kernel::Level;

/// What a fingerprint covers.
pub(crate) const FINGERPRINT_BYTES: usize = 32;
/// Samples are at least this far apart, for repetitive bytes not to be sampled everywhere.
const MIN_DISTANCE_BYTES: usize = 32;

/// Factors of the four words at a position. They add up to 0, so that the hash of a repeated byte is 0, which is never
/// sampled: in a run one position is like any other.
const FACTORS: [u16; 4] = [0x9e37, 0x6a25, 0xc5b9, 0x31eb];
const _: () =
    assert!((FACTORS[0] as u32 + FACTORS[1] as u32 + FACTORS[2] as u32 + FACTORS[3] as u32) & 0xffff == 0);

/// What the hash of a position sees.
const WORD_BYTES: usize = 8;
/// The hash alone makes samples at most this power of two apart; for more there is the fingerprint.
const MAX_HASH_LOG: u32 = 10;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sampled position.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sample {
    /// Where it is in the bytes that were scanned.
    pub at: usize,
    /// The hash of [`FINGERPRINT_BYTES`] there.
    pub fingerprint: u64,
}

/// Chooses positions.
pub(crate) struct Sampler {
    /// Positions are sampled whose hash, shifted right by this, is all ones.
    shift: u32,
    /// Of these, those whose fingerprint has this many zero bits on top.
    thinning: u32,
    level: Level,
}

/// What a scan goes through, and what it has found so far.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    last: usize,
    thinning: u32,
    samples: &'a mut [Sample],
    count: usize,
}

impl Sampler {
    /// Samples one position in two to the power of `distance_log`, on average.
    pub(crate) fn new(distance_log: u32) -> Sampler {
        let hash_log = distance_log.min(MAX_HASH_LOG);
        Sampler { shift: u16::BITS - hash_log, thinning: distance_log - hash_log, level: Level::detected() }
    }

    /// Samples `bytes[from..until]` until `samples` are used up; returns how many there are, and where to go on.
    ///
    /// Only positions with enough bytes behind them for a fingerprint are sampled.
    pub(crate) fn scan(
        &self,
        bytes: &[u8],
        from: usize,
        until: usize,
        samples: &mut [Sample],
    ) -> (usize, usize) {
        let last = (bytes.len() + 1).saturating_sub(FINGERPRINT_BYTES).min(until);
        let mut scan = Scan { bytes, at: from, last, thinning: self.thinning, samples, count: 0 };
        let next = match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these levels are only there where the processor has AVX2.
            Level::Avx2 | Level::Avx512 => unsafe { avx2::scan(&mut scan, from, self.shift) },
            _ => scan_groups(&mut scan, from, self.shift),
        };
        for at in next..last {
            if scan.is_full() {
                break;
            }
            if word_hash(bytes, at) >> self.shift == u16::MAX >> self.shift {
                scan.take(at);
            }
        }
        (scan.count, if scan.is_full() { scan.at } else { scan.at.max(until) })
    }
}

impl Scan<'_> {
    fn is_full(&self) -> bool {
        self.count == self.samples.len()
    }

    /// Takes a position that the hash has chosen, if it is not too close to the one before.
    #[inline]
    fn take(&mut self, at: usize) {
        if at < self.at || at >= self.last || self.is_full() {
            return;
        }
        self.at = at + MIN_DISTANCE_BYTES;
        let fingerprint = fingerprint(&self.bytes[at..at + FINGERPRINT_BYTES]);
        if self.thinning == 0 || fingerprint >> (u64::BITS - self.thinning) == 0 {
            self.samples[self.count] = Sample { at, fingerprint };
            self.count += 1;
        }
    }
}

/// The hash of the bytes at a position.
fn word_hash(bytes: &[u8], at: usize) -> u16 {
    let words = bytes[at..at + WORD_BYTES].as_chunks::<2>().0.iter();
    words
        .zip(FACTORS)
        .fold(0_u16, |hash, (&word, factor)| hash.wrapping_add(u16::from_le_bytes(word).wrapping_mul(factor)))
}

/// How many positions the portable kernel hashes together.
const GROUP: usize = 64;

/// Scans as far as whole groups go, and returns how far that was. A compiler makes vector code of it.
fn scan_groups(scan: &mut Scan<'_>, from: usize, shift: u32) -> usize {
    let mut next = from;
    while next < scan.last && !scan.is_full() {
        let Some(group) = scan.bytes.get(next..next + GROUP + WORD_BYTES) else { break };
        let mut words = [0_u16; GROUP + WORD_BYTES - 1];
        for (word, pair) in words.iter_mut().zip(group.windows(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        let mut hashes = [0_u16; GROUP];
        for (at, hash) in hashes.iter_mut().enumerate() {
            for (step, factor) in FACTORS.into_iter().enumerate() {
                *hash = hash.wrapping_add(words[at + 2 * step].wrapping_mul(factor));
            }
        }
        let chosen = |hash: u16| hash >> shift == u16::MAX >> shift;
        if hashes.iter().fold(false, |any, &hash| any | chosen(hash)) {
            for (at, _) in hashes.iter().enumerate().filter(|(_, hash)| chosen(**hash)) {
                scan.take(next + at);
            }
        }
        next += GROUP;
    }
    next.max(from)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi32_si128, _mm256_add_epi16, _mm256_blendv_epi8, _mm256_cmpeq_epi16,
        _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_mullo_epi16, _mm256_set1_epi16, _mm256_srl_epi16,
    };

    use super::{FACTORS, Scan};

    /// Positions in one vector.
    const GROUP: usize = 32;
    /// What is loaded of the bytes behind a position: up to 7 further on, 32 bytes.
    const LOADED: usize = GROUP + 7;

    /// Scans as far as whole groups go, and returns how far that was.
    #[target_feature(enable = "avx2")]
    pub(super) fn scan(scan: &mut Scan<'_>, from: usize, shift: u32) -> usize {
        let factors = FACTORS.map(|factor| _mm256_set1_epi16(factor.cast_signed()));
        let ones = _mm256_set1_epi16((u16::MAX >> shift).cast_signed());
        let odd = _mm256_set1_epi16(0xff00_u16.cast_signed());
        let count = _mm_cvtsi32_si128(shift.cast_signed());
        let bytes = scan.bytes;
        let mut next = from;
        while next < scan.last && !scan.is_full() {
            let Some(group) = bytes.get(next..next + LOADED) else { break };
            let load = |at: usize| -> __m256i {
                // SAFETY: at is at most 7, and the group has 32 bytes more than that.
                unsafe { _mm256_loadu_si256(group[at..].as_ptr().cast()) }
            };
            let hash = |first: usize| {
                let product = |step: usize| _mm256_mullo_epi16(load(first + 2 * step), factors[step]);
                _mm256_add_epi16(
                    _mm256_add_epi16(product(0), product(1)),
                    _mm256_add_epi16(product(2), product(3)),
                )
            };
            // Words at even positions in one vector, at odd ones in another: put together they are in order again.
            let even_chosen = _mm256_cmpeq_epi16(_mm256_srl_epi16(hash(0), count), ones);
            let odd_chosen = _mm256_cmpeq_epi16(_mm256_srl_epi16(hash(1), count), ones);
            let chosen = _mm256_blendv_epi8(even_chosen, odd_chosen, odd);
            let mut chosen = _mm256_movemask_epi8(chosen).cast_unsigned();
            while chosen != 0 {
                scan.take(next + chosen.trailing_zeros() as usize);
                chosen &= chosen - 1;
            }
            next += GROUP;
        }
        next
    }
}

fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// A hash of [`FINGERPRINT_BYTES`] bytes.
fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hash = 0_u64;
    for chunk in bytes.as_chunks::<8>().0 {
        hash = (hash.rotate_left(29) ^ word(chunk)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    hash.wrapping_mul(MULTIPLIER) ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a scan finds, one position after the other.
    fn naive(bytes: &[u8], from: usize, until: usize, shift: u32) -> Vec<usize> {
        let mut taken = Vec::new();
        let mut next = from;
        for at in from..until.min((bytes.len() + 1).saturating_sub(FINGERPRINT_BYTES)) {
            if at >= next && word_hash(bytes, at) >> shift == u16::MAX >> shift {
                taken.push(at);
                next = at + MIN_DISTANCE_BYTES;
            }
        }
        taken
    }

    proptest! {
        #[test]
        fn all_kernels_choose_what_the_naive_twin_does(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0)], 0..2000),
            from in 0..300_usize,
            until in 0..2100_usize,
            distance_log in 1..6_u32,
            room in 1..80_usize,
        ) {
            let mut sampler = Sampler::new(distance_log);
            let (from, until) = (from.min(bytes.len()), until.min(bytes.len()));
            let expected = naive(&bytes, from, until, sampler.shift);
            for level in Level::available() {
                sampler.level = level;
                let mut taken = Vec::new();
                let mut samples = vec![Sample::default(); room];
                let mut next = from;
                while next < until {
                    let (count, then) = sampler.scan(&bytes, next, until, &mut samples);
                    prop_assert!(then > next);
                    next = then;
                    taken.extend(samples[..count].iter().map(|sample| sample.at));
                }
                prop_assert_eq!(&taken, &expected);
            }
        }
    }

    #[test]
    fn samples_are_about_as_far_apart_as_asked_and_runs_have_none() {
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(MULTIPLIER).wrapping_add(1);
            (state >> 56) as u8
        });
        let noise: Vec<u8> = noise.take(1 << 20).collect();
        for distance_log in [6, 8, 12] {
            let sampler = Sampler::new(distance_log);
            let mut samples = vec![Sample::default(); 1 << 16];
            let (count, _) = sampler.scan(&noise, 0, noise.len(), &mut samples);
            let expected = noise.len() >> distance_log;
            assert!(count > expected / 2 && count < expected * 2, "{distance_log}: {count} of {expected}");
            for byte in [0, 1, 0x55, 0xff] {
                assert_eq!(sampler.scan(&[byte; 5000], 0, 5000, &mut samples), (0, 5000));
            }
        }
    }
}
