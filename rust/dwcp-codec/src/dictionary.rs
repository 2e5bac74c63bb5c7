//! Trained dictionaries: what many small pieces of data have in common, held by both sides and named by its digest.
//!
//! The format is zstd's (RFC 8878, section 5); training is its COVER algorithm.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use zstd_safe::{CDict, DDict};

use crate::digest::Digest;
use crate::error::CodecError;

/// The longest dictionary that is read or made.
pub const MAX_DICTIONARY_BYTES: usize = 0x100_0000;
/// The shortest that zstd trains.
pub const MIN_DICTIONARY_BYTES: usize = 0x100;
/// Fewer samples train nothing of use.
pub const MIN_SAMPLES: usize = 8;
/// How many bytes samples may have together: what the trainer can index.
pub const MAX_SAMPLE_BYTES: usize = 0x7fff_0000;

/// A dictionary made ready for use, from any number of threads.
pub struct Dictionary {
    bytes: Vec<u8>,
    digest: Digest,
    decoder: DDict<'static>,
    /// For the level that was used last: making it costs far more than one small piece does.
    encoder: Mutex<Option<(i32, Arc<CDict<'static>>)>>,
}

impl Dictionary {
    /// The dictionary of these bytes: a trained one, or any content that data has in common.
    ///
    /// # Errors
    ///
    /// [`CodecError::Dictionary`] if it is empty, too long, or damaged.
    pub fn new(bytes: Vec<u8>) -> Result<Dictionary, CodecError> {
        let refused = |reason| CodecError::Dictionary { length: bytes.len(), reason };
        if bytes.is_empty() || bytes.len() > MAX_DICTIONARY_BYTES {
            return Err(refused("it must have 1 to 16777216 bytes"));
        }
        let decoder = DDict::try_create(&bytes).ok_or_else(|| refused("its tables are damaged"))?;
        Ok(Dictionary { digest: Digest::of(&bytes), bytes, decoder, encoder: Mutex::new(None) })
    }

    /// Trains a dictionary of at most `max_bytes` on `samples`, which stand one behind the other and have these lengths.
    ///
    /// # Errors
    ///
    /// [`CodecError::Training`] if there are too few samples or too little in them, or `max_bytes` is out of range.
    ///
    /// # Panics
    ///
    /// If the lengths do not add up to the samples.
    pub fn train(samples: &[u8], lengths: &[usize], max_bytes: usize) -> Result<Dictionary, CodecError> {
        let refused = |reason| CodecError::Training { samples: lengths.len(), bytes: samples.len(), reason };
        if !(MIN_DICTIONARY_BYTES..=MAX_DICTIONARY_BYTES).contains(&max_bytes) {
            return Err(refused("a dictionary has 256 to 16777216 bytes"));
        }
        if lengths.len() < MIN_SAMPLES || lengths.len() > u32::MAX as usize {
            return Err(refused("at least 8 samples are needed"));
        }
        if samples.len() > MAX_SAMPLE_BYTES {
            return Err(refused("they may have 2147418112 bytes together"));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(max_bytes).map_err(|_| CodecError::OutOfMemory { bytes: max_bytes })?;
        zstd_safe::train_from_buffer(&mut bytes, samples, lengths)
            .map_err(|code| refused(zstd_safe::get_error_name(code)))?;
        Dictionary::new(bytes)
    }

    /// The bytes, to be kept and told to others.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name of the dictionary.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn decoder(&self) -> &DDict<'static> {
        &self.decoder
    }

    pub(crate) fn encoder(&self, level: i32) -> Result<Arc<CDict<'static>>, CodecError> {
        // What a panic elsewhere leaves behind is a whole value.
        let mut kept = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((for_level, encoder)) if *for_level == level => Ok(Arc::clone(encoder)),
            _ => {
                let made = CDict::try_create(&self.bytes, level)
                    .ok_or(CodecError::OutOfMemory { bytes: self.bytes.len() })?;
                let made = Arc::new(made);
                *kept = Some((level, Arc::clone(&made)));
                Ok(made)
            }
        }
    }
}

/// Dictionaries are equal if their bytes are.
impl PartialEq for Dictionary {
    fn eq(&self, other: &Dictionary) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Dictionary {}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dictionary").field("digest", &self.digest).field("bytes", &self.bytes.len()).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Records that have much in common, as what a service logs or keeps.
    pub(crate) fn records(count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|i| {
                let user = i * 7919 % 1000;
                format!(
                    "{{\"timestamp\":\"2024-03-{:02}T10:{:02}:00Z\",\"region\":\"eu-west-{}\",\"user\":\"u{user:05}\",\
                     \"dwcp_mode\":\"internet\",\"throughput_mbps\":{}}}",
                    i % 28 + 1,
                    i % 60,
                    i % 3,
                    i * 31 % 900
                )
                .into_bytes()
            })
            .collect()
    }

    pub(crate) fn trained() -> Dictionary {
        let samples = records(400);
        let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
        Dictionary::train(&samples.concat(), &lengths, 4096).unwrap()
    }

    #[test]
    fn training_gives_a_dictionary_of_at_most_the_size_asked_for_and_always_the_same() {
        let dictionary = trained();
        assert!(dictionary.bytes().len() <= 4096);
        assert_eq!(dictionary.digest(), trained().digest());
        assert_eq!(Dictionary::new(dictionary.bytes().to_vec()).unwrap().digest(), dictionary.digest());
    }

    #[test]
    fn samples_that_train_nothing_are_refused() {
        let train = |count: usize, max_bytes| {
            let samples = records(count);
            let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
            Dictionary::train(&samples.concat(), &lengths, max_bytes)
        };
        for (count, max_bytes) in [(0, 4096), (7, 4096), (400, 255), (400, MAX_DICTIONARY_BYTES + 1)] {
            assert!(
                matches!(train(count, max_bytes), Err(CodecError::Training { .. })),
                "{count} {max_bytes}"
            );
        }
        assert!(matches!(Dictionary::train(&[], &[0; 20], 4096), Err(CodecError::Training { .. })));
    }

    #[test]
    fn damaged_dictionary_is_refused() {
        let mut bytes = trained().bytes().to_vec();
        bytes.truncate(20);
        assert!(matches!(Dictionary::new(bytes), Err(CodecError::Dictionary { length: 20, .. })));
        assert!(matches!(Dictionary::new(Vec::new()), Err(CodecError::Dictionary { length: 0, .. })));
    }
}
