//! Seeded pseudo-random numbers: the same losses for the same packets at every run.

/// SplitMix64: small, fast, and good enough to decide which packet is lost.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        to_fraction(self.next())
    }
}

/// A number in [0, 1) that depends on nothing but the seed and the index.
pub fn fraction_at(seed: u64, index: u64) -> f64 {
    to_fraction(mix(seed ^ mix(index.wrapping_add(0x9E37_79B9_7F4A_7C15))))
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

fn to_fraction(word: u64) -> f64 {
    (word >> 11) as f64 / (1_u64 << 53) as f64
}
