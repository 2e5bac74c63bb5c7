//! What can be told of a block in a few microseconds.

use std::sync::LazyLock;

use super::sample::{self, LINE_BYTES, SAMPLE_BYTES};
use crate::kernel::Level;
use crate::kernel::planes::{Transform, split};
use crate::probe::histogram;

/// How many features there are.
const COUNT: usize = 32;

/// Their names, in order.
pub const FEATURES: [&str; COUNT] = [
    "log2_bytes",
    "width",
    "flat",
    "noise",
    "zeros",
    "high",
    "printable",
    "equal_1",
    "equal_4",
    "equal_8",
    "heads_again",
    "entropy",
    "entropy_differences",
    "distinct",
    "top",
    "lz4_share",
    "literals",
    "sequences",
    "match_bytes",
    "far",
    "literal_entropy",
    "spread",
    "lz4_estimate",
    "zstd_estimate",
    "plane_0",
    "plane_1",
    "plane_2",
    "plane_3",
    "plane_4",
    "plane_5",
    "plane_6",
    "plane_7",
];

/// `n * log2(n)` for every count a sample can have.
static N_LOG_N: LazyLock<[f32; SAMPLE_BYTES + 1]> =
    LazyLock::new(|| std::array::from_fn(|n| if n == 0 { 0.0 } else { (n as f32) * (n as f32).log2() }));

/// What is known of a block, each number finite.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Features([f32; COUNT]);

impl Features {
    /// Those of `src`, of which `width` is the width of its elements in bytes where it is known (2, 4 or 8).
    ///
    /// Looks at no more than 20 KiB, from all over `src`. The time it takes hardly depends on the length.
    #[must_use]
    pub fn of(src: &[u8], width: Option<u8>) -> Features {
        let width = usize::from(width.filter(|width| matches!(width, 2 | 4 | 8)).unwrap_or(0));
        let mut values = [0.0; COUNT];
        if src.is_empty() {
            return Features(values);
        }
        let (lines, pieces) = sample::look(src);
        let sample = pieces.bytes();
        let share = |part: usize, whole: usize| part as f32 / whole.max(1) as f32;
        let inner_bytes = lines.inner * LINE_BYTES;
        let flat = share(lines.flat, lines.count);

        let mut planes = [0.0; 8];
        let counts = match width {
            0 => histogram(sample),
            _ => plane_entropies(sample, width, &mut planes),
        };
        let entropy = entropy(&counts, sample.len());
        let differences: Vec<u8> = sample.chunks_exact(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        let top = counts.iter().copied().max().unwrap_or(0);
        let distinct = counts.iter().filter(|count| **count > 0).count();
        let length = sample.len() as f32;

        let matches = pieces.matches();
        let literals = sample.len() - matches.matched.min(sample.len());
        let literal_entropy = if literals * 64 > sample.len() * 63 {
            entropy
        } else {
            self::entropy(&matches.literals, literals)
        };
        let lz4_share = share(matches.coded, sample.len());
        // What a code for the literals leaves of them, and two and a half bytes for each sequence.
        let coded = literals as f32 * literal_entropy / 8.0 + 2.5 * matches.sequences as f32;
        let zstd_share = (coded / length).min(1.0);
        let told = matches.told.map(f32::from);
        let pieces_there = sample.len().div_ceil(pieces.piece).min(told.len());
        let mean = told[..pieces_there].iter().sum::<f32>() / pieces_there as f32;
        let deviation = told[..pieces_there].iter().map(|told| (told - mean).abs()).sum::<f32>();

        let leading = [
            (src.len() as f32).log2(),
            width as f32,
            flat,
            share(lines.noise, lines.inner),
            share(lines.zeros, inner_bytes),
            share(lines.high, inner_bytes),
            share(lines.printable, inner_bytes),
            share(lines.equal_1, inner_bytes),
            share(lines.equal_4, inner_bytes),
            share(lines.equal_8, inner_bytes),
            share(lines.heads_again, lines.heads),
            entropy,
            self::entropy(&histogram(&differences), differences.len()),
            share(distinct, 256),
            share(usize::from(top), sample.len()),
            lz4_share,
            share(literals, sample.len()),
            share(matches.sequences * 1024, sample.len()),
            share(matches.matched, matches.sequences),
            share(matches.far, sample.len()),
            literal_entropy,
            deviation / length,
            (1.0 - flat) * lz4_share,
            (1.0 - flat) * zstd_share,
        ];
        values[..leading.len()].copy_from_slice(&leading);
        values[leading.len()..].copy_from_slice(&planes);
        Features(values)
    }

    /// Numbers from elsewhere, in the order of [`FEATURES`].
    #[must_use]
    pub fn from_values(values: [f32; COUNT]) -> Features {
        Features(values)
    }

    /// The numbers, in the order of [`FEATURES`].
    #[must_use]
    pub fn values(&self) -> &[f32; COUNT] {
        &self.0
    }
}

/// Bits for each of `total` bytes that occur as often as `counts` says, with what so few samples underestimate.
fn entropy(counts: &[u16; 256], total: usize) -> f32 {
    let Some(whole) = N_LOG_N.get(total).filter(|_| total > 0) else { return 0.0 };
    let logs = &*N_LOG_N;
    let mut distinct = 0_u16;
    let mut sums = [0.0_f32; 8];
    for counts in counts.as_chunks::<8>().0 {
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += logs[usize::from(*count).min(SAMPLE_BYTES)];
            distinct += u16::from(*count > 0);
        }
    }
    // The Miller-Madow term.
    let correction = f32::from(distinct.saturating_sub(1)) * 0.5 * std::f32::consts::LOG2_E;
    ((whole - sums.iter().sum::<f32>() + correction) / total as f32).clamp(0.0, 8.0)
}

/// Entropies of the bytes of elements by their place; returns how often each byte occurs at any.
fn plane_entropies(sample: &[u8], width: usize, planes: &mut [f32; 8]) -> [u16; 256] {
    let count = sample.len() / width;
    if count == 0 {
        return histogram(sample);
    }
    let mut room = [0; SAMPLE_BYTES];
    let room = &mut room[..count * width];
    split(Level::detected(), Transform::Keep, width, sample, sample, room);
    let mut all = histogram(&sample[count * width..]);
    for (plane, bytes) in planes.iter_mut().zip(room.chunks_exact(count)) {
        let counts = histogram(bytes);
        *plane = entropy(&counts, count);
        for (all, count) in all.iter_mut().zip(counts) {
            *all += count;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::tests::{noise, text, weights};

    fn of(name: &str, src: &[u8], width: Option<u8>) -> f32 {
        let place = FEATURES.iter().position(|known| *known == name).unwrap();
        Features::of(src, width).values()[place]
    }

    proptest! {
        #[test]
        fn features_are_finite_for_any_bytes_and_the_width_is_told_by_its_own_only(
            src in prop::collection::vec(prop_oneof![any::<u8>(), Just(0)], 0..6_000),
            times in 1..20_usize,
            width in prop::sample::select(vec![0, 1, 2, 3, 4, 8, 255]),
        ) {
            let src = src.repeat(times);
            let (with, without) = (Features::of(&src, Some(width)), Features::of(&src, None));
            for ((name, with), without) in FEATURES.iter().zip(with.values()).zip(without.values()) {
                prop_assert!(with.is_finite() && with.abs() < 1e5, "{name} {with}");
                prop_assert!(with == without || *name == "width" || name.starts_with("plane_"), "{name}");
            }
        }
    }

    #[test]
    fn features_tell_what_they_are_named_for() {
        let noise = noise(3, 1 << 20);
        assert_eq!(of("log2_bytes", &noise, None), 20.0);
        assert!(of("entropy", &noise, None) > 7.9 && of("entropy_differences", &noise, None) > 7.9);
        assert!(of("noise", &noise, None) > 0.8 && of("lz4_share", &noise, None) > 1.0);
        let text = text(1 << 20);
        assert!(of("printable", &text, None) == 1.0 && of("zstd_estimate", &text, None) < 0.5);
        let mut half = noise.clone();
        half[1 << 19..].fill(9);
        assert_eq!(of("flat", &half, None), 0.5);
        assert!(of("lz4_share", &half, None) > 1.0 && of("lz4_estimate", &half, None) < 0.6);
        let pages = noise[..64 << 10].repeat(16);
        assert_eq!(of("heads_again", &pages, None), 15.0 / 16.0);
        assert_eq!(of("heads_again", &noise, None), 0.0);
        let weights = weights(1 << 20);
        assert!(of("plane_0", &weights, Some(2)) > 7.8 && of("plane_1", &weights, Some(2)) < 4.0);
        assert_eq!(of("plane_2", &weights, Some(2)), 0.0);
        let words: Vec<u8> = noise[..8].repeat(1 << 17);
        assert!(of("equal_8", &words, None) >= 56.0 / 64.0 && of("equal_1", &words, None) < 0.1);
    }
}
