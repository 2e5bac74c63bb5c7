//! The elements that differ between two versions of a block: found, and put in place.

use super::element::{Element, with_element};
use super::lines::{differing_bytes, line, set_bits};
use super::pair::{Lanes, change_and_hash_with};
use super::{LINE_BYTES, Level, Line};
use crate::digest::Digest;

/// How many words hold a bit for each of `count` elements.
pub(crate) fn words_for(count: usize) -> usize {
    count.div_ceil(64)
}

/// Finds the elements of `width` bytes that differ, in the lines whose bits are set in `lines`, and returns how many.
///
/// Sets their bits in `mask`, which is all zero and as long as [`words_for`] says, and writes the zigzags of `new`
/// minus `old`, in order, to `zigzags`, which has a line more bytes than the block. Bytes after the last element are
/// not looked at.
pub(crate) fn find(
    level: Level,
    width: usize,
    old: &[u8],
    new: &[u8],
    lines: &[u64],
    mask: &mut [u64],
    zigzags: &mut [u8],
) -> usize {
    let whole = new.len() / width * width;
    let (old, new) = (&old[..whole], &new[..whole]);
    match level {
        Level::Portable => {
            with_element!(width, E => find_with::<E>(old, new, lines, mask, zigzags, differing_bytes))
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::find_avx2(width, old, new, lines, mask, zigzags),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::find_avx512(width, old, new, lines, mask, zigzags),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::find_neon(width, old, new, lines, mask, zigzags),
    }
}

#[inline(always)]
pub(super) fn find_with<E: Element>(
    old: &[u8],
    new: &[u8],
    lines: &[u64],
    mask: &mut [u64],
    zigzags: &mut [u8],
    differing_bytes: impl Fn(&[u8; LINE_BYTES], &[u8; LINE_BYTES]) -> u64,
) -> usize {
    let of_element = u64::MAX >> (64 - E::WIDTH);
    let mut end = 0;
    for index in set_bits(lines) {
        if index * LINE_BYTES >= new.len() {
            // The line of the tail alone.
            break;
        }
        let (old, new) = (&line(old, index), &line(new, index));
        let first = index * (LINE_BYTES / E::WIDTH);
        let mut bytes = differing_bytes(old, new);
        let mut bits = 0;
        while bytes != 0 {
            let element = bytes.trailing_zeros() as usize / E::WIDTH;
            let at = element * E::WIDTH;
            E::read(&new[at..]).zigzag_from(E::read(&old[at..])).write(&mut zigzags[end..]);
            end += E::WIDTH;
            bits |= 1 << element;
            bytes &= !(of_element << at);
        }
        mask[first / 64] |= bits << (first % 64);
    }
    end / E::WIDTH
}

/// Which elements of a block are changed.
#[derive(Clone, Copy)]
pub(crate) enum Changed<'a> {
    /// Those whose bits are set; there are none past the last element.
    Bits(&'a [u64]),
    /// Those of these numbers, which rise.
    Places(&'a [u32]),
}

/// Changes elements of `width` bytes of `dst` by the zigzags in `zigzags`, in order, of which there are as many, and a line
/// more.
pub(crate) fn apply(level: Level, width: usize, changed: Changed<'_>, zigzags: &[u8], dst: &mut [u8]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => drop(super::x86::apply_avx2(width, changed, zigzags, dst, false)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => drop(super::x86::apply_avx512(width, changed, zigzags, dst, false)),
        _ => with_element!(width, E => apply_with::<E>(changed, zigzags, dst)),
    }
}

/// [`apply`], and the digest of what `dst` is then. Elements begin where it does; its last bytes may be no whole one.
pub(crate) fn apply_and_hash(
    level: Level,
    width: usize,
    changed: Changed<'_>,
    zigzags: &[u8],
    dst: &mut [u8],
) -> Digest {
    let told = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::apply_avx2(width, changed, zigzags, dst, true),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::apply_avx512(width, changed, zigzags, dst, true),
        _ => {
            apply(level, width, changed, zigzags, dst);
            None
        }
    };
    told.unwrap_or_else(|| Digest::of(dst))
}

fn apply_with<E: Element>(changed: Changed<'_>, zigzags: &[u8], dst: &mut [u8]) {
    let zigzags = zigzags.chunks_exact(E::WIDTH);
    match changed {
        Changed::Bits(mask) => set_bits(mask).zip(zigzags).for_each(|(element, zigzag)| {
            change::<E>(E::read(zigzag), element, dst);
        }),
        Changed::Places(places) => places.iter().zip(zigzags).for_each(|(place, zigzag)| {
            change::<E>(E::read(zigzag), *place as usize, dst);
        }),
    }
}

/// [`apply_and_hash`], or without a digest, by what a level has instructions for: `change` changes the elements of a line
/// whose bits are given by the zigzags at the start of what it gets, and `fetch_ahead` and `add` are as for
/// [`change_and_hash_with`].
#[inline(always)]
pub(super) fn apply_in_rounds<E: Element>(
    changed: Changed<'_>,
    zigzags: &[u8],
    dst: &mut [u8],
    hash: bool,
    change: impl Fn(&mut Line, u64, &Line) + Copy,
    fetch_ahead: impl Fn(&Line) + Copy,
    add: impl Fn(&mut Lanes, &Line, &Line) + Copy,
) -> Option<Digest> {
    let mut left = zigzags;
    match changed {
        Changed::Bits(mask) => {
            let per_line = LINE_BYTES / E::WIDTH;
            let bits = |line: usize| {
                let first = line * per_line;
                let word = mask.get(first / 64).map_or(0, |word| word >> (first % 64));
                word & (u64::MAX >> (64 - per_line))
            };
            let change_part = |start: usize, part: &mut [u8]| {
                let (lines, last) = part.as_chunks_mut();
                for (index, line) in (start / LINE_BYTES..).zip(&mut *lines) {
                    let bits = bits(index);
                    let Some(next) = left.first_chunk().filter(|_| bits != 0) else { continue };
                    change(line, bits, next);
                    left = &left[bits.count_ones() as usize * E::WIDTH..];
                }
                if !last.is_empty() {
                    apply_with::<E>(Changed::Bits(&[bits(start / LINE_BYTES + lines.len())]), left, last);
                }
            };
            change_and_hash_with(dst, hash, change_part, fetch_ahead, add)
        }
        Changed::Places(places) => {
            let mut places = places;
            let change_part = |start: usize, part: &mut [u8]| {
                let (first, count) = (start / E::WIDTH, part.len() / E::WIDTH);
                while let Some((place, rest)) = places.split_first()
                    && (*place as usize) < first + count
                {
                    let Some((zigzag, unused)) = left.split_at_checked(E::WIDTH) else { return };
                    self::change::<E>(E::read(zigzag), *place as usize - first, part);
                    (places, left) = (rest, unused);
                }
            };
            change_and_hash_with(dst, hash, change_part, fetch_ahead, add)
        }
    }
}

/// From here on a gap is told in `long` by [`gaps`].
pub(crate) const LONG_GAP: usize = 128;

/// Words that are listed together before their bits are looked at.
const LISTED_WORDS: usize = 256;

/// Writes for each set bit of `mask` how many others lie between it and the one before, or the start, to `gaps`, which
/// has a line more bytes than there are set bits. Those of [`LONG_GAP`] or more go to `long`, with their numbers.
pub(crate) fn gaps(level: Level, mask: &[u64], gaps: &mut [u8], long: &mut Vec<(usize, usize)>) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::gaps_avx2(mask, gaps, long),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::gaps_avx512(mask, gaps, long),
        _ => gaps_with(mask, gaps, long, gaps_in_word),
    }
}

#[inline(always)]
pub(super) fn gaps_with(
    mask: &[u64],
    gaps: &mut [u8],
    long: &mut Vec<(usize, usize)>,
    gaps_in_word: impl Fn(u64, &mut [u8; 64]),
) {
    let (mut end, mut behind) = (0, 0);
    for (start, words) in (0..).step_by(LISTED_WORDS).zip(mask.chunks(LISTED_WORDS)) {
        // Whether a word has bits cannot be foreseen: those that have are listed without a branch.
        let mut listed = [0_u8; LISTED_WORDS];
        let mut count = 0;
        for (index, word) in words.iter().enumerate() {
            listed[count] = index as u8;
            count += usize::from(*word != 0);
        }
        for index in &listed[..count] {
            let word = words[usize::from(*index)];
            // All of the line is written, and what does not belong there the next word overwrites.
            let Some(place) = gaps[end..].first_chunk_mut() else { return };
            gaps_in_word(word, place);
            let at = (start + usize::from(*index)) * 64;
            let first = at + word.trailing_zeros() as usize - behind;
            place[0] = first as u8;
            if first >= LONG_GAP {
                long.push((end, first));
            }
            end += word.count_ones() as usize;
            behind = at + 64 - word.leading_zeros() as usize;
        }
    }
}

/// Writes the gaps before all but the first bit of a word, from the second byte on.
#[inline(always)]
pub(super) fn gaps_in_word(mut word: u64, gaps: &mut [u8; 64]) {
    /// How many bits a word has cannot be foreseen: so many are written without a branch, if there are any more.
    const TOGETHER: usize = 4;
    let mut next = 0_u32;
    for gaps in gaps.as_chunks_mut::<TOGETHER>().0 {
        for gap in gaps {
            let bit = word.trailing_zeros();
            *gap = bit.wrapping_sub(next) as u8;
            next = bit + 1;
            word &= word.wrapping_sub(1);
        }
        if word == 0 {
            break;
        }
    }
}

/// Copies the elements of `src` whose bits are set in `mask` to their places in `dst`, which is as long.
///
/// `mask` has no bits past the last element.
pub(crate) fn take(level: Level, width: usize, mask: &[u64], src: &[u8], dst: &mut [u8]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::take_avx512(width, mask, src, dst),
        _ => with_element!(width, E => take_with::<E>(mask, src, dst)),
    }
}

#[inline(always)]
pub(super) fn take_with<E: Element>(mask: &[u64], src: &[u8], dst: &mut [u8]) {
    for element in set_bits(mask) {
        let at = element * E::WIDTH;
        E::read(&src[at..]).write(&mut dst[at..]);
    }
}

/// Makes each of the zigzags in `zigzags`, whole elements of `width` bytes, the one that undoes it.
pub(crate) fn reverse(width: usize, zigzags: &mut [u8]) {
    with_element!(width, E => reverse_with::<E>(zigzags))
}

fn reverse_with<E: Element>(zigzags: &mut [u8]) {
    for zigzag in zigzags.chunks_exact_mut(E::WIDTH) {
        E::read(zigzag).reversed_zigzag().write(zigzag);
    }
}

/// Changes the elements of a line whose bits are set by the zigzags at the start of `zigzags`.
pub(super) fn change_line<E: Element>(line: &mut Line, bits: u64, zigzags: &Line) {
    apply_with::<E>(Changed::Bits(&[bits]), zigzags, line);
}

/// Changes one element by its zigzag.
#[inline(always)]
pub(crate) fn change<E: Element>(zigzag: E, element: usize, dst: &mut [u8]) {
    let place = &mut dst[element * E::WIDTH..][..E::WIDTH];
    zigzag.zigzag_onto(E::read(place)).write(place);
}
