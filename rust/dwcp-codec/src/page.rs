//! Classes of blocks that need no compressor.

/// The byte every byte of `block` equals, if there is one.
///
/// Costs a few bytes when there is none near the start, and one pass at memory speed when there is. An empty block
/// has none.
#[must_use]
pub fn fill_byte(block: &[u8]) -> Option<u8> {
    let (&first, rest) = block.split_first()?;
    // All bytes are equal if each equals its neighbour: the platform's memcmp, which stops at the first difference
    // and picks its vector width at run time.
    (block[..rest.len()] == *rest).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_other_byte_anywhere_is_seen() {
        for length in 1..200_usize {
            let mut block = vec![7; length];
            assert_eq!(fill_byte(&block), Some(7), "{length}");
            for at in 0..length {
                block[at] ^= 0x80;
                assert_eq!(fill_byte(&block).is_some(), length == 1, "{length} {at}");
                block[at] ^= 0x80;
            }
        }
        assert_eq!(fill_byte(&[]), None);
    }
}
