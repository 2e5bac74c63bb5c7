//! Scattered pages of a memory brought together and taken apart again: compressed one by one they would cost a call and
//! a table each, and find nothing in their neighbours.

use crate::error::CodecError;

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
    for (number, page) in numbers.zip(together.chunks_exact(page_bytes.max(1))) {
        let place = page_range(number, page_bytes, pages).and_then(|range| memory.get_mut(range));
        place.ok_or(CodecError::Page { number, pages })?.copy_from_slice(page);
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
        let memory = noise(1, 40 * 512 + 100);
        let numbers = [39_u64, 0, 7, 7, 20];
        let mut together = Vec::new();
        gather(&memory, 512, numbers.into_iter(), &mut together).unwrap();
        assert_eq!(together[512..1024], memory[..512]);
        let mut other = vec![0; memory.len()];
        scatter(&together, 512, numbers.into_iter(), &mut other).unwrap();
        for (number, page) in memory.chunks(512).enumerate() {
            let expected = if numbers.contains(&(number as u64)) { page } else { &vec![0; page.len()] };
            assert_eq!(&other[number * 512..][..page.len()], expected, "{number}");
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
