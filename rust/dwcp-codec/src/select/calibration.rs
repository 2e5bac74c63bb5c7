//! What codecs are timed on to compare one processor with another.

/// Length of [`calibration_sample`] in bytes. Of a shorter one a processor learns the branches: the third time LZ4 codes
/// 128 KiB it takes half of the time of the first, so that what is measured would depend on how often it is.
const SAMPLE_BYTES: usize = 512 << 10;
/// Bytes of it that are words, and bytes that are records; the rest is noise.
const TEXT_BYTES: usize = 256 << 10;
const RECORD_BYTES: usize = 128 << 10;
const WORDS: usize = 512;
/// Letters by how often they are used: an earlier one more often.
const LETTERS: &[u8; 26] = b"etaoinshrdlcumwfgypbvkjxqz";

/// The same bytes everywhere and for ever: words, records and noise, so that a codec meets repetition, uneven
/// frequencies and neither.
///
/// A model holds how fast each action was on them where it was trained; how fast it is here tells what to make of the
/// model's times.
#[must_use]
pub fn calibration_sample() -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let words: Vec<Vec<u8>> = (0..WORDS)
        .map(|_| {
            let length = 2 + random.below(8);
            (0..length).map(|_| LETTERS[random.low(LETTERS.len())]).collect()
        })
        .collect();
    let mut sample = Vec::with_capacity(SAMPLE_BYTES);
    while sample.len() < TEXT_BYTES {
        sample.extend_from_slice(&words[random.low(WORDS)]);
        sample.push(if random.below(12) == 0 { b'\n' } else { b' ' });
    }
    sample.truncate(TEXT_BYTES);
    let (mut time, mut level) = (1_700_000_000_u32, 1_000_u16);
    while sample.len() < TEXT_BYTES + RECORD_BYTES {
        time += random.below(5) as u32;
        level = level.wrapping_add(random.below(9) as u16).wrapping_sub(4);
        sample.extend_from_slice(&time.to_le_bytes());
        sample.extend_from_slice(&level.to_le_bytes());
        sample.extend_from_slice(&[random.low(8) as u8, 0]);
        sample.extend_from_slice(&random.next().to_le_bytes()[4..]);
        sample.extend_from_slice(&[0; 4]);
    }
    while sample.len() < SAMPLE_BYTES {
        sample.extend_from_slice(&random.next().to_le_bytes());
    }
    sample
}

/// xorshift64: as random as this needs, and as easily written elsewhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 33) % limit as u64) as usize
    }

    /// One below `limit`, a lower one more often.
    fn low(&mut self, limit: usize) -> usize {
        self.below(limit).min(self.below(limit)).min(self.below(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn sample_is_the_one_that_the_speeds_in_models_are_of() {
        let sample = calibration_sample();
        assert_eq!(sample.len(), SAMPLE_BYTES);
        assert_eq!(Digest::of(&sample).to_string(), "8bd58731a2ec83a27db4416dd4d84159");
    }
}
