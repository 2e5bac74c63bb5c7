//! Positions chosen by the bytes that stand there, and fingerprints of what follows them.

/// What a fingerprint covers.
pub(crate) const FINGERPRINT_BYTES: usize = 32;
/// Samples are at least this far apart, for repetitive bytes not to be sampled everywhere.
const MIN_DISTANCE_BYTES: usize = 32;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sampled position.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sample {
    /// Where it is in the bytes that were scanned.
    pub at: usize,
}

/// Chooses positions.
pub(crate) struct Sampler {
    /// Positions are sampled whose hash is below this.
    below: u64,
}

impl Sampler {
    /// Samples one position in two to the power of `distance_log`, on average.
    pub(crate) fn new(distance_log: u32) -> Sampler {
        Sampler { below: u64::MAX >> distance_log }
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
        let mut count = 0;
        let mut at = from;
        while at < last && count < samples.len() {
            let hash = word(bytes, at).wrapping_mul(MULTIPLIER);
            // Where one byte is repeated, one position is like any other.
            if hash < self.below && word(bytes, at) != word(bytes, at).rotate_left(8) {
                samples[count] = Sample { at };
                count += 1;
                at += MIN_DISTANCE_BYTES;
            } else {
                at += 1;
            }
        }
        (count, if count == samples.len() { at } else { at.max(until) })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A hash of the bytes at a sample.
pub(crate) fn fingerprint(bytes: &[u8], sample: Sample) -> u64 {
    let bytes = &bytes[sample.at..sample.at + FINGERPRINT_BYTES];
    let mut hash = 0_u64;
    for at in [0, 8, 16, 24] {
        hash = (hash.rotate_left(29) ^ word(bytes, at)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    hash.wrapping_mul(MULTIPLIER) ^ hash >> 29
}
