//! Scattered pages of a memory brought together and taken apart again: compressed one by one they would cost a call and
//! a table each, and find nothing in their neighbours.

use crate::error::CodecError;
use crate::raw::PastCache;

/// Pages of a memory as long as this are not expected to be in the cache.
const PAST_CACHE_BYTES: usize = 4 << 20;

/// Appends the pages of `memory` with these numbers, each `page_bytes` long, to `out`.
///
/// # Errors
///
/// [`CodecError::Page`] if there is no such page, [`CodecError::OutOfMemory`].
pub fn gather(
    memory: &[u8],
    page_bytes: usize,
    numbers: impl ExactSizeIterator<Item = u64>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let bytes = numbers.len().saturating_mul(page_bytes);
    out.try_reserve(bytes).map_err(|_| CodecError::OutOfMemory { bytes })?;
    let pages = memory.len() / page_bytes.max(1);
    for number in numbers {
        let page = page_range(number, page_bytes, pages).and_then(|range| memory.get(range));
        out.extend_from_slice(page.ok_or(CodecError::Page { number, pages })?);
    }
    Ok(())
}

/// Writes consecutive pages to the places in `memory` that their numbers say.
///
/// All numbers are looked at before the first page is written.
///
/// # Errors
///
/// [`CodecError::Page`] if there is no such page; [`CodecError::RawLength`] if `together` is not that many pages.
pub fn scatter(
    together: &[u8],
    page_bytes: usize,
    numbers: impl ExactSizeIterator<Item = u64> + Clone,
    memory: &mut [u8],
) -> Result<(), CodecError> {
    let expected = numbers.len().saturating_mul(page_bytes);
    if together.len() != expected {
        return Err(CodecError::RawLength { expected });
    }
    let pages = memory.len() / page_bytes.max(1);
    for number in numbers.clone() {
        page_range(number, page_bytes, pages).ok_or(CodecError::Page { number, pages })?;
    }
    let mut past_cache = (memory.len() >= PAST_CACHE_BYTES).then(PastCache::new);
    for (number, page) in numbers.zip(together.chunks_exact(page_bytes.max(1))) {
        let place = page_range(number, page_bytes, pages).and_then(|range| memory.get_mut(range));
        let place = place.ok_or(CodecError::Page { number, pages })?;
        match &mut past_cache {
            Some(past_cache) => past_cache.copy(page, place),
            None => place.copy_from_slice(page),
        }
    }
    Ok(())
}

fn page_range(number: u64, page_bytes: usize, pages: usize) -> Option<std::ops::Range<usize>> {
    let number = usize::try_from(number).ok().filter(|number| *number < pages)?;
    Some(number * page_bytes..(number + 1) * page_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::noise;

    #[test]
    fn pages_come_back_to_their_places_and_nothing_else_is_written() {
        let numbers = [39_u64, 0, 7, 7, 20];
        for (page_bytes, length) in [(512, 40 * 512 + 100), (4097, PAST_CACHE_BYTES), (5, PAST_CACHE_BYTES)] {
            let memory = noise(1, length);
            let mut together = Vec::new();
            gather(&memory, page_bytes, numbers.into_iter(), &mut together).unwrap();
            assert_eq!(together[page_bytes..2 * page_bytes], memory[..page_bytes]);
            let mut expected = vec![0; length];
            for at in numbers.map(|number| number as usize * page_bytes) {
                expected[at..at + page_bytes].copy_from_slice(&memory[at..at + page_bytes]);
            }
            let mut other = vec![0; length];
            scatter(&together, page_bytes, numbers.into_iter(), &mut other).unwrap();
            assert!(other == expected, "{page_bytes} {length}");
        }
    }

    #[test]
    fn page_that_does_not_exist_is_refused_before_anything_is_written() {
        let memory = noise(1, 4 * 512 + 100);
        for number in [4, 5, u64::MAX] {
            let refused = Err(CodecError::Page { number, pages: 4 });
            assert_eq!(gather(&memory, 512, [0, number].into_iter(), &mut Vec::new()), refused);
            let mut other = vec![0; memory.len()];
            assert_eq!(scatter(&memory[..1024], 512, [0, number].into_iter(), &mut other), refused);
            assert!(other.iter().all(|byte| *byte == 0));
        }
        let refused = scatter(&memory[..1000], 512, [0, 1].into_iter(), &mut [0; 2048]);
        assert_eq!(refused, Err(CodecError::RawLength { expected: 1024 }));
    }
}
