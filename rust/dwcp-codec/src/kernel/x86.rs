//! The loops for AVX2 and AVX-512.

mod halves;
mod pairs;

use std::arch::x86_64::*;

use super::changes::{Changed, apply_in_rounds, change_line, find_with, gaps_in_word, gaps_with, take_with};
use super::element::{Element, with_element};
use super::lines::{byte_masks_with, dirty_lines_with, line, set_bits, set_bytes_with};
use super::pair::{Lanes, Pair, hash_and_compare_with, hash_and_mark_with, hash_and_take_with};
use super::planes::{Transform, join_from, join_portable, split_from, split_portable};
use super::{LINE_BYTES, Line};
use crate::digest::Digest;
use halves::{differ_avx2, differing_bytes_avx2};
use pairs::{change_pairs, find_pairs};

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

pub(super) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
}

/// Makes a safe function of one that needs AVX2.
macro_rules! avx2 {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn inner($($arg: $type),*) $(-> $result)? $body
            debug_assert!(has_avx2());
            // SAFETY: only the level Avx2 leads here, which is there if the processor has all of these.
            unsafe { inner($($arg),*) }
        }
    )*};
}

/// Makes a safe function of one that needs AVX-512.
macro_rules! avx512 {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[target_feature(
                enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2"
            )]
            fn inner($($arg: $type),*) $(-> $result)? $body
            debug_assert!(has_avx512());
            // SAFETY: only the level Avx512 leads here, which is there if the processor has all of these.
            unsafe { inner($($arg),*) }
        }
    )*};
}

avx2! {
    fn dirty_lines_avx2(old: &[u8], new: &[u8], lines: &mut [u64]) -> usize {
        dirty_lines_with(old, new, lines, |old, new| differ_avx2(old, new))
    }

    fn hash_and_compare_avx2(old: &[u8], new: &[u8], lines: &mut [u64]) -> Pair {
        hash_and_compare_with(
            old,
            new,
            lines,
            |old, new| differ_avx2(old, new),
            |lanes, line, key| add_line_avx2(lanes, line, key),
        )
    }

    fn hash_and_mark_avx2(bytes: &[u8], lines: &mut [u64]) -> (Digest, usize) {
        hash_and_mark_with(
            bytes,
            lines,
            |old, new| differ_avx2(old, new),
            |lanes, line, key| add_line_avx2(lanes, line, key),
        )
    }

    fn hash_and_take_avx2(held: &mut [u8], new: &[u8], old: &mut [u8], lines: &mut [u64]) -> (Digest, usize) {
        hash_and_take_with(
            held,
            new,
            old,
            lines,
            |old, new| differ_avx2(old, new),
            |lanes, line, key| add_line_avx2(lanes, line, key),
        )
    }

    fn byte_masks_avx2(old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
        byte_masks_with(old, new, lines, masks, |old, new| differing_bytes_avx2(old, new));
    }

    fn set_bytes_avx2(bytes: &[u8], words: &mut Vec<u64>) {
        set_bytes_with(bytes, words, |zero, bytes| differing_bytes_avx2(zero, bytes));
    }

    fn find_avx2(
        width: usize,
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        if width == 2 {
            return find_pairs(old, new, lines, mask, zigzags);
        }
        with_element!(width, E => {
            find_with::<E>(old, new, lines, mask, zigzags, |old, new| differing_bytes_avx2(old, new))
        })
    }

    fn gaps_avx2(mask: &[u64], gaps: &mut [u8], long: &mut Vec<(usize, usize)>) {
        gaps_with(mask, gaps, long, gaps_in_word);
    }

    fn apply_avx2(
        width: usize,
        changed: Changed<'_>,
        zigzags: &[u8],
        dst: &mut [u8],
        hash: bool,
    ) -> Option<Digest> {
        let add = |lanes: &mut Lanes, line: &Line, key: &Line| add_line_avx2(lanes, line, key);
        if width == 2 {
            let change = |line: &mut Line, bits, next: &Line| change_pairs(line, bits, next);
            return apply_in_rounds::<u16>(changed, zigzags, dst, hash, change, fetch_ahead, add);
        }
        with_element!(width, E => {
            apply_in_rounds::<E>(changed, zigzags, dst, hash, change_line::<E>, fetch_ahead, add)
        })
    }

    fn split_avx2(transform: Transform, width: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
        split_portable(transform, width, src, base, planes);
    }

    fn join_avx2(transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
        join_portable(transform, width, planes, dst);
    }
}

avx512! {
    fn dirty_lines_avx512(old: &[u8], new: &[u8], lines: &mut [u64]) -> usize {
        dirty_lines_with(old, new, lines, |old, new| _mm512_cmpneq_epi64_mask(load(old), load(new)) != 0)
    }

    fn hash_and_compare_avx512(old: &[u8], new: &[u8], lines: &mut [u64]) -> Pair {
        hash_and_compare_with(
            old,
            new,
            lines,
            |old, new| _mm512_cmpneq_epi64_mask(load(old), load(new)) != 0,
            |lanes, line, key| add_line(lanes, line, key),
        )
    }

    fn hash_and_mark_avx512(bytes: &[u8], lines: &mut [u64]) -> (Digest, usize) {
        hash_and_mark_with(
            bytes,
            lines,
            |old, new| _mm512_cmpneq_epi64_mask(load(old), load(new)) != 0,
            |lanes, line, key| add_line(lanes, line, key),
        )
    }

    fn hash_and_take_avx512(held: &mut [u8], new: &[u8], old: &mut [u8], lines: &mut [u64]) -> (Digest, usize) {
        hash_and_take_with(
            held,
            new,
            old,
            lines,
            |old, new| _mm512_cmpneq_epi64_mask(load(old), load(new)) != 0,
            |lanes, line, key| add_line(lanes, line, key),
        )
    }

    fn byte_masks_avx512(old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
        byte_masks_with(old, new, lines, masks, |old, new| _mm512_cmpneq_epi8_mask(load(old), load(new)));
    }

    fn set_bytes_avx512(bytes: &[u8], words: &mut Vec<u64>) {
        set_bytes_with(bytes, words, |zero, bytes| _mm512_cmpneq_epi8_mask(load(zero), load(bytes)));
    }

    fn gaps_avx512(mask: &[u64], gaps: &mut [u8], long: &mut Vec<(usize, usize)>) {
        let places: Line = const {
            let mut places = [0; LINE_BYTES];
            let mut at = 0;
            while at < LINE_BYTES {
                places[at] = at as u8;
                at += 1;
            }
            places
        };
        let places = load(&places);
        let before = _mm512_sub_epi8(places, _mm512_set1_epi8(1));
        gaps_with(mask, gaps, long, |word, gaps| {
            let bits = _mm512_maskz_compress_epi8(word, places);
            let last = _mm512_permutexvar_epi8(before, bits);
            // A gap is one less than the distance: `!last` is `-last - 1`.
            let not_last = _mm512_xor_si512(last, _mm512_set1_epi8(-1));
            store(gaps, _mm512_add_epi8(bits, not_last));
        });
    }

    fn take_avx512(width: usize, mask: &[u64], src: &[u8], dst: &mut [u8]) {
        with_element!(width, E => take_lines::<{ E::WIDTH }, E>(mask, src, dst));
    }

    fn find_avx512(
        width: usize,
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        with_element!(width, E => find_lines::<{ E::WIDTH }>(old, new, lines, mask, zigzags))
    }

    fn apply_avx512(
        width: usize,
        changed: Changed<'_>,
        zigzags: &[u8],
        dst: &mut [u8],
        hash: bool,
    ) -> Option<Digest> {
        let add = |lanes: &mut Lanes, line: &Line, key: &Line| add_line(lanes, line, key);
        with_element!(width, E => {
            let change = |line: &mut Line, bits, next: &Line| change_elements::<{ E::WIDTH }>(line, bits, next);
            apply_in_rounds::<E>(changed, zigzags, dst, hash, change, fetch_ahead, add)
        })
    }

    fn split_avx512(transform: Transform, width: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
        with_element!(width, E => split_lines::<{ E::WIDTH }>(transform, src, base, planes));
    }

    fn join_avx512(transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
        match width {
            2 => join_lines::<2>(transform, planes, dst),
            4 => join_lines::<4>(transform, planes, dst),
            // Eight loads for each line are slower than what the compiler makes of whole planes.
            8 => join_avx2(transform, width, planes, dst),
            _ => join_lines::<1>(transform, planes, dst),
        }
    }
}

/// How many lines before its use a line is fetched from memory.
const LINES_AHEAD: usize = 32;

/// Has the line [`LINES_AHEAD`] lines behind this one fetched, if there is one.
#[inline(always)]
fn fetch_ahead(line: &Line) {
    let ahead = std::ptr::from_ref(line).wrapping_add(LINES_AHEAD);
    // SAFETY: a hint, which reads nothing and may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
}

/// A function for AVX-512, to be called from such only.
macro_rules! for_avx512 {
    ($($(#[$doc:meta])* fn $name:ident $([$($generic:tt)*])? ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?
        $body:block)*) => {$(
        $(#[$doc])*
        #[target_feature(
            enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2"
        )]
        #[inline]
        fn $name $(<$($generic)*>)? ($($arg: $type),*) $(-> $result)? $body
    )*};
}

for_avx512! {
    /// The search of changed elements: those of a line are put side by side at once.
    fn find_lines[const W: usize](
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        let mut count = 0;
        for index in set_bits(lines) {
            if index * LINE_BYTES >= new.len() {
                // The line of the tail alone.
                break;
            }
            let zigzag = zigzag::<W>(load(&line(new, index)), load(&line(old, index)));
            let (bits, side_by_side) = match W {
                2 => {
                    let mask = _mm512_test_epi16_mask(zigzag, zigzag);
                    (u64::from(mask), _mm512_maskz_compress_epi16(mask, zigzag))
                }
                4 => {
                    let mask = _mm512_test_epi32_mask(zigzag, zigzag);
                    (u64::from(mask), _mm512_maskz_compress_epi32(mask, zigzag))
                }
                8 => {
                    let mask = _mm512_test_epi64_mask(zigzag, zigzag);
                    (u64::from(mask), _mm512_maskz_compress_epi64(mask, zigzag))
                }
                _ => {
                    let mask = _mm512_test_epi8_mask(zigzag, zigzag);
                    (mask, _mm512_maskz_compress_epi8(mask, zigzag))
                }
            };
            // All of the register is written, and what does not belong there the next line overwrites.
            let Some(place) = zigzags[count * W..].first_chunk_mut() else { break };
            store(place, side_by_side);
            let first = index * (LINE_BYTES / W);
            mask[first / 64] |= bits << (first % 64);
            count += bits.count_ones() as usize;
        }
        count
    }

    /// The change of elements of a line whose bits are set.
    fn change_elements[const W: usize](line: &mut Line, bits: u64, zigzags: &Line) {
        let zigzags = load(zigzags);
        let zigzag = match W {
            2 => _mm512_maskz_expand_epi16(bits as u32, zigzags),
            4 => _mm512_maskz_expand_epi32(bits as u16, zigzags),
            8 => _mm512_maskz_expand_epi64(bits as u8, zigzags),
            _ => _mm512_maskz_expand_epi8(bits, zigzags),
        };
        let changed = zigzag_onto::<W>(zigzag, load(line));
        store(line, changed);
    }

    /// The copy of elements, of a whole line at once.
    fn take_lines[const W: usize, E: Element](mask: &[u64], src: &[u8], dst: &mut [u8]) {
        let per_line = LINE_BYTES / W;
        let low = u64::MAX >> (64 - per_line);
        let (whole, tail) = dst.as_chunks_mut::<LINE_BYTES>();
        let (src_whole, src_tail) = src.as_chunks::<LINE_BYTES>();
        for (index, (line, src)) in whole.iter_mut().zip(src_whole).enumerate() {
            let first = index * per_line;
            let bits = mask[first / 64] >> (first % 64) & low;
            if bits == 0 {
                continue;
            }
            let (old, new) = (load(line), load(src));
            let taken = match W {
                2 => _mm512_mask_blend_epi16(bits as u32, old, new),
                4 => _mm512_mask_blend_epi32(bits as u16, old, new),
                8 => _mm512_mask_blend_epi64(bits as u8, old, new),
                _ => _mm512_mask_blend_epi8(bits, old, new),
            };
            store(line, taken);
        }
        let first = whole.len() * per_line;
        if !tail.is_empty() && first / 64 < mask.len() {
            take_with::<E>(&[mask[first / 64] >> (first % 64) & low], src_tail, tail);
        }
    }

    fn split_lines[const W: usize](transform: Transform, src: &[u8], base: &[u8], planes: &mut [u8]) {
        // The byte that stands at each place after the split.
        const { assert!(W.is_power_of_two() && W <= 8) };
        let order = const {
            let mut order = [0; LINE_BYTES];
            let mut at = 0;
            while at < LINE_BYTES {
                order[at] = (at % (LINE_BYTES / W) * W + at / (LINE_BYTES / W)) as u8;
                at += 1;
            }
            order
        };
        let order = load(&order);
        let (count, per_line) = (src.len() / W, LINE_BYTES / W);
        let (lines, _) = src.as_chunks();
        let (base_lines, _) = base.as_chunks();
        for (index, (src, base)) in lines.iter().zip(base_lines).enumerate() {
            let changed = match transform {
                Transform::Keep => load(src),
                Transform::Rotate => rotate::<W>(load(src)),
                Transform::Xor => _mm512_xor_si512(load(src), load(base)),
                Transform::Zigzag => zigzag::<W>(load(src), load(base)),
                Transform::ZigzagBack => zigzag::<W>(load(base), load(src)),
            };
            let mut split = [0; LINE_BYTES];
            store(&mut split, _mm512_permutexvar_epi8(order, changed));
            for (position, part) in split.chunks_exact(per_line).enumerate() {
                planes[position * count + index * per_line..][..per_line].copy_from_slice(part);
            }
        }
        split_from(transform, W, lines.len() * LINE_BYTES, src, base, planes);
    }

    fn join_lines[const W: usize](transform: Transform, planes: &[&[u8]; 8], dst: &mut [u8]) {
        let order = const {
            let mut order = [0; LINE_BYTES];
            let mut at = 0;
            while at < LINE_BYTES {
                order[at] = (at % W * (LINE_BYTES / W) + at / W) as u8;
                at += 1;
            }
            order
        };
        let order = load(&order);
        let per_line = LINE_BYTES / W;
        let (lines, _) = dst.as_chunks_mut();
        let done = lines.len() * LINE_BYTES;
        for (index, line) in lines.iter_mut().enumerate() {
            let part = |position: usize| &planes[position][index * per_line..][..per_line];
            let split = match W {
                1 => load_parts::<1>([part(0)]),
                2 => load_parts::<2>([part(0), part(1)]),
                _ => load_parts::<4>([part(0), part(1), part(2), part(3)]),
            };
            let changed = _mm512_permutexvar_epi8(order, split);
            let joined = match transform {
                Transform::Keep => changed,
                Transform::Rotate => rotate_back::<W>(changed),
                Transform::Xor => _mm512_xor_si512(changed, load(line)),
                Transform::Zigzag => zigzag_onto::<W>(changed, load(line)),
                Transform::ZigzagBack => {
                    let zero = _mm512_setzero_si512();
                    zigzag_onto::<W>(zigzag::<W>(zero, zigzag_onto::<W>(changed, zero)), load(line))
                }
            };
            store(line, joined);
        }
        join_from(transform, W, done, planes, dst);
    }

    /// A register of parts side by side.
    fn load_parts[const W: usize](parts: [&[u8]; W]) -> __m512i {
        let word = |part: &[u8], at: usize| {
            part[8 * at..].first_chunk().map_or(0, |word| i64::from_le_bytes(*word))
        };
        let per_part = 8 / W;
        let words: [i64; 8] = std::array::from_fn(|i| word(parts[i / per_part], i % per_part));
        let [a, b, c, d, e, f, g, h] = words;
        _mm512_setr_epi64(a, b, c, d, e, f, g, h)
    }

    /// The zigzags of `new - old`.
    fn zigzag[const W: usize](new: __m512i, old: __m512i) -> __m512i {
        let (doubled, sign) = match W {
            2 => {
                let difference = _mm512_sub_epi16(new, old);
                (_mm512_slli_epi16::<1>(difference), _mm512_srai_epi16::<15>(difference))
            }
            4 => {
                let difference = _mm512_sub_epi32(new, old);
                (_mm512_slli_epi32::<1>(difference), _mm512_srai_epi32::<31>(difference))
            }
            8 => {
                let difference = _mm512_sub_epi64(new, old);
                (_mm512_slli_epi64::<1>(difference), _mm512_srai_epi64::<63>(difference))
            }
            _ => {
                let difference = _mm512_sub_epi8(new, old);
                (_mm512_add_epi8(difference, difference), _mm512_movm_epi8(_mm512_movepi8_mask(difference)))
            }
        };
        _mm512_xor_si512(doubled, sign)
    }

    /// The elements whose zigzags from `old` are given.
    fn zigzag_onto[const W: usize](zigzag: __m512i, old: __m512i) -> __m512i {
        let zero = _mm512_setzero_si512();
        match W {
            2 => {
                let sign = _mm512_sub_epi16(zero, _mm512_and_si512(zigzag, _mm512_set1_epi16(1)));
                _mm512_add_epi16(old, _mm512_xor_si512(_mm512_srli_epi16::<1>(zigzag), sign))
            }
            4 => {
                let sign = _mm512_sub_epi32(zero, _mm512_and_si512(zigzag, _mm512_set1_epi32(1)));
                _mm512_add_epi32(old, _mm512_xor_si512(_mm512_srli_epi32::<1>(zigzag), sign))
            }
            8 => {
                let sign = _mm512_sub_epi64(zero, _mm512_and_si512(zigzag, _mm512_set1_epi64(1)));
                _mm512_add_epi64(old, _mm512_xor_si512(_mm512_srli_epi64::<1>(zigzag), sign))
            }
            _ => {
                let sign = _mm512_sub_epi8(zero, _mm512_and_si512(zigzag, _mm512_set1_epi8(1)));
                let half = _mm512_and_si512(_mm512_srli_epi16::<1>(zigzag), _mm512_set1_epi8(0x7f));
                _mm512_add_epi8(old, _mm512_xor_si512(half, sign))
            }
        }
    }

    /// Each element rotated left by one bit.
    fn rotate[const W: usize](elements: __m512i) -> __m512i {
        match W {
            2 => _mm512_or_si512(_mm512_slli_epi16::<1>(elements), _mm512_srli_epi16::<15>(elements)),
            4 => _mm512_rol_epi32::<1>(elements),
            8 => _mm512_rol_epi64::<1>(elements),
            _ => {
                let top = _mm512_and_si512(_mm512_srli_epi16::<7>(elements), _mm512_set1_epi8(1));
                _mm512_or_si512(_mm512_add_epi8(elements, elements), top)
            }
        }
    }

    /// Each element rotated right by one bit.
    fn rotate_back[const W: usize](elements: __m512i) -> __m512i {
        match W {
            2 => _mm512_or_si512(_mm512_srli_epi16::<1>(elements), _mm512_slli_epi16::<15>(elements)),
            4 => _mm512_ror_epi32::<1>(elements),
            8 => _mm512_ror_epi64::<1>(elements),
            _ => {
                let half = _mm512_and_si512(_mm512_srli_epi16::<1>(elements), _mm512_set1_epi8(0x7f));
                let low = _mm512_and_si512(_mm512_slli_epi16::<7>(elements), _mm512_set1_epi8(-0x80));
                _mm512_or_si512(half, low)
            }
        }
    }

    /// Adds a line, mixed with its key, to the state of the hash.
    fn add_line(lanes: &mut Lanes, line: &Line, key: &Line) {
        let line = load(line);
        let mixed = _mm512_xor_si512(line, load(key));
        let product = _mm512_mul_epu32(mixed, _mm512_srli_epi64::<32>(mixed));
        let swapped = _mm512_shuffle_epi32::<HALVES_SWAPPED>(line);
        // SAFETY: the state is 64 bytes, and the load needs no alignment.
        let state = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        let state = _mm512_add_epi64(state, _mm512_add_epi64(swapped, product));
        // SAFETY: the state is 64 bytes, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), state) };
    }

    fn load(line: &Line) -> __m512i {
        // SAFETY: a line is 64 bytes, and the load needs no alignment.
        unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
    }

    fn store(line: &mut Line, value: __m512i) {
        // SAFETY: a line is 64 bytes, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), value) }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_halves(line: &Line) -> [__m256i; 2] {
    let (halves, _) = line.as_chunks::<32>();
    // SAFETY: both halves are 32 bytes, and the load needs no alignment.
    [0, 1].map(|half: usize| unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) })
}

/// The order of 32-bit words in which the halves of 128 bits have changed places.
const HALVES_SWAPPED: i32 = 0b01_00_11_10;

/// Adds a line, mixed with its key, to the state of the hash.
#[target_feature(enable = "avx2")]
#[inline]
fn add_line_avx2(lanes: &mut Lanes, line: &Line, key: &Line) {
    let (halves, _) = lanes.as_chunks_mut::<4>();
    for ((half, line), key) in halves.iter_mut().zip(load_halves(line)).zip(load_halves(key)) {
        let mixed = _mm256_xor_si256(line, key);
        let product = _mm256_mul_epu32(mixed, _mm256_srli_epi64::<32>(mixed));
        let swapped = _mm256_shuffle_epi32::<HALVES_SWAPPED>(line);
        // SAFETY: half of the state is 32 bytes, and the load needs no alignment.
        let state = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        let state = _mm256_add_epi64(state, _mm256_add_epi64(swapped, product));
        // SAFETY: half of the state is 32 bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), state) };
    }
}

/// What a register of 16 bytes holds.
const PART_BYTES: usize = 16;
type Part = [u8; PART_BYTES];

#[target_feature(enable = "avx2")]
#[inline]
fn load_part(part: &Part) -> __m128i {
    // SAFETY: a part is 16 bytes, and the load needs no alignment.
    unsafe { _mm_loadu_si128(part.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_part(part: &mut Part, value: __m128i) {
    // SAFETY: a part is 16 bytes, and the store needs no alignment.
    unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), value) }
}
