//! Which lines of two versions of a block differ, and in which bytes.

use super::{LINE_BYTES, Level};

/// How many words hold a bit for each line of `length` bytes.
pub(crate) fn words_for(length: usize) -> usize {
    length.div_ceil(LINE_BYTES).div_ceil(64)
}

/// Sets bit *i* mod 64 of word *i* / 64 of `lines` if line *i* of both differs, clears the others, and returns how many
/// differ.
///
/// `old` is as long as `new`, and `lines` as [`words_for`] says. The last line may be shorter.
pub(crate) fn dirty_lines(level: Level, old: &[u8], new: &[u8], lines: &mut [u64]) -> usize {
    match level {
        Level::Portable => dirty_lines_with(old, new, lines, differ),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::dirty_lines_avx2(old, new, lines),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::dirty_lines_avx512(old, new, lines),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::dirty_lines_neon(old, new, lines),
    }
}

#[inline(always)]
pub(super) fn dirty_lines_with(
    old: &[u8],
    new: &[u8],
    lines: &mut [u64],
    differ: impl Fn(&[u8; LINE_BYTES], &[u8; LINE_BYTES]) -> bool,
) -> usize {
    let (old_lines, old_tail) = old.as_chunks::<LINE_BYTES>();
    let (new_lines, new_tail) = new.as_chunks::<LINE_BYTES>();
    let mut count = 0;
    for (word, (old, new)) in lines.iter_mut().zip(old_lines.chunks(64).zip(new_lines.chunks(64))) {
        let mut bits = 0;
        for (bit, (old, new)) in old.iter().zip(new).enumerate() {
            bits |= u64::from(differ(old, new)) << bit;
        }
        *word = bits;
        count += bits.count_ones() as usize;
    }
    if !new_tail.is_empty() {
        let (word, bit) = (new_lines.len() / 64, new_lines.len() % 64);
        let differs = old_tail != new_tail;
        // A word of its own has not been cleared above.
        lines[word] = if bit == 0 { 0 } else { lines[word] } | u64::from(differs) << bit;
        count += usize::from(differs);
    }
    count
}

/// Whether two lines differ.
#[inline(always)]
fn differ(old: &[u8; LINE_BYTES], new: &[u8; LINE_BYTES]) -> bool {
    let (old, new) = (old.as_chunks::<8>().0, new.as_chunks::<8>().0);
    let differences =
        old.iter().zip(new).map(|(old, new)| u64::from_ne_bytes(*old) ^ u64::from_ne_bytes(*new));
    differences.fold(0, |all, one| all | one) != 0
}

/// A bit for each byte of two lines, set if it differs.
#[inline(always)]
pub(super) fn differing_bytes(old: &[u8; LINE_BYTES], new: &[u8; LINE_BYTES]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let (old, new) = (old.as_chunks::<8>().0, new.as_chunks::<8>().0);
    let mut mask = 0;
    for (i, (old, new)) in old.iter().zip(new).enumerate() {
        let difference = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
        // The top bit of every byte that is not zero, then those eight bits side by side.
        let top = (((difference & LOW) + LOW) | difference) & !LOW;
        mask |= ((top >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
    }
    mask
}

/// Numbers of the lines whose bits are set.
#[inline(always)]
pub(crate) fn set_bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(index, word)| {
        let mut word = *word;
        std::iter::from_fn(move || {
            let bit = word.trailing_zeros() as usize;
            let some = word != 0;
            word &= word.wrapping_sub(1);
            some.then_some(index * 64 + bit)
        })
    })
}

/// As [`dirty_lines`], the lines of `bytes` in which there is a byte that is not 0.
pub(crate) fn used_lines(level: Level, bytes: &[u8], lines: &mut [u64]) -> usize {
    const ZEROS: [u8; 64 * LINE_BYTES] = [0; 64 * LINE_BYTES];
    let words = lines.iter_mut().zip(bytes.chunks(ZEROS.len()));
    words
        .map(|(word, bytes)| dirty_lines(level, &ZEROS[..bytes.len()], bytes, std::slice::from_mut(word)))
        .sum()
}

/// Line `index` of a block; what is missing of a short last line is zero.
#[inline(always)]
pub(crate) fn line(block: &[u8], index: usize) -> [u8; LINE_BYTES] {
    let rest = &block[index * LINE_BYTES..];
    match rest.first_chunk() {
        Some(line) => *line,
        None => {
            let mut line = [0; LINE_BYTES];
            line[..rest.len()].copy_from_slice(rest);
            line
        }
    }
}

/// Makes the lines of `block` that are marked in `lines` those of `other`, which is as long.
pub(crate) fn put_lines(other: &[u8], lines: &[u64], block: &mut [u8]) {
    for line in set_bits(lines) {
        let range = line * LINE_BYTES..block.len().min((line + 1) * LINE_BYTES);
        block[range.clone()].copy_from_slice(&other[range]);
    }
}

/// [`put_lines`] of all lines that are not marked.
pub(crate) fn put_other_lines(other: &[u8], lines: &[u64], block: &mut [u8]) {
    let both = block.chunks_mut(64 * LINE_BYTES).zip(other.chunks(64 * LINE_BYTES));
    for (word, (block, other)) in lines.iter().zip(both) {
        let count = block.len().div_ceil(LINE_BYTES);
        put_lines(other, &[!word & (u64::MAX >> (64 - count))], block);
    }
}

/// Appends, for each line whose bit is set in `lines`, in order, a bit for each byte that differs.
pub(crate) fn byte_masks(level: Level, old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
    match level {
        Level::Portable => byte_masks_with(old, new, lines, masks, differing_bytes),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::byte_masks_avx2(old, new, lines, masks),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::byte_masks_avx512(old, new, lines, masks),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::byte_masks_neon(old, new, lines, masks),
    }
}

#[inline(always)]
pub(super) fn byte_masks_with(
    old: &[u8],
    new: &[u8],
    lines: &[u64],
    masks: &mut Vec<u64>,
    differing_bytes: impl Fn(&[u8; LINE_BYTES], &[u8; LINE_BYTES]) -> u64,
) {
    for index in set_bits(lines) {
        masks.push(differing_bytes(&line(old, index), &line(new, index)));
    }
}

/// Appends a bit for each byte, set if it is not 0.
pub(crate) fn set_bytes(level: Level, bytes: &[u8], words: &mut Vec<u64>) {
    match level {
        Level::Portable => set_bytes_with(bytes, words, differing_bytes),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::set_bytes_avx2(bytes, words),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::set_bytes_avx512(bytes, words),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::set_bytes_neon(bytes, words),
    }
}

#[inline(always)]
pub(super) fn set_bytes_with(
    bytes: &[u8],
    words: &mut Vec<u64>,
    differing_bytes: impl Fn(&[u8; LINE_BYTES], &[u8; LINE_BYTES]) -> u64,
) {
    let count = bytes.len().div_ceil(LINE_BYTES);
    words.extend((0..count).map(|index| differing_bytes(&[0; LINE_BYTES], &line(bytes, index))));
}
