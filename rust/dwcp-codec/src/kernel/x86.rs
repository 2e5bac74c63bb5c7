//! The loops for AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::LINE_BYTES;
use super::changes::{apply_with, find_with};
use super::element::Element;
use super::lines::{byte_masks_with, dirty_lines_with, line, set_bits};
use super::planes::{Transform, join_portable, split_portable};

type Line = [u8; LINE_BYTES];

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
        dirty_lines_with(old, new, lines, |old, new| {
            let [a, b] = load_halves(old);
            let [c, d] = load_halves(new);
            let differences = _mm256_or_si256(_mm256_xor_si256(a, c), _mm256_xor_si256(b, d));
            _mm256_testz_si256(differences, differences) == 0
        })
    }

    fn byte_masks_avx2(old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
        byte_masks_with(old, new, lines, masks, |old, new| differing_bytes_avx2(old, new));
    }

    fn find_avx2(
        width: usize,
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        match width {
            2 => find_with::<u16>(old, new, lines, mask, zigzags, |old, new| differing_bytes_avx2(old, new)),
            4 => find_with::<u32>(old, new, lines, mask, zigzags, |old, new| differing_bytes_avx2(old, new)),
            8 => find_with::<u64>(old, new, lines, mask, zigzags, |old, new| differing_bytes_avx2(old, new)),
            _ => find_with::<u8>(old, new, lines, mask, zigzags, |old, new| differing_bytes_avx2(old, new)),
        }
    }

    fn apply_avx2(width: usize, mask: &[u64], zigzags: &[u8], dst: &mut [u8]) {
        match width {
            2 => apply_with::<u16>(mask, zigzags, dst),
            4 => apply_with::<u32>(mask, zigzags, dst),
            8 => apply_with::<u64>(mask, zigzags, dst),
            _ => apply_with::<u8>(mask, zigzags, dst),
        }
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

    fn byte_masks_avx512(old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
        byte_masks_with(old, new, lines, masks, |old, new| _mm512_cmpneq_epi8_mask(load(old), load(new)));
    }

    fn find_avx512(
        width: usize,
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        match width {
            2 => find_compressed::<u16>(old, new, lines, mask, zigzags, |old, new| {
                let difference = _mm512_sub_epi16(new, old);
                let zigzag = _mm512_xor_si512(
                    _mm512_slli_epi16::<1>(difference),
                    _mm512_srai_epi16::<15>(difference),
                );
                let mask = _mm512_test_epi16_mask(difference, difference);
                (u64::from(mask), _mm512_maskz_compress_epi16(mask, zigzag))
            }),
            4 => find_compressed::<u32>(old, new, lines, mask, zigzags, |old, new| {
                let difference = _mm512_sub_epi32(new, old);
                let zigzag = _mm512_xor_si512(
                    _mm512_slli_epi32::<1>(difference),
                    _mm512_srai_epi32::<31>(difference),
                );
                let mask = _mm512_test_epi32_mask(difference, difference);
                (u64::from(mask), _mm512_maskz_compress_epi32(mask, zigzag))
            }),
            8 => find_compressed::<u64>(old, new, lines, mask, zigzags, |old, new| {
                let difference = _mm512_sub_epi64(new, old);
                let zigzag = _mm512_xor_si512(
                    _mm512_slli_epi64::<1>(difference),
                    _mm512_srai_epi64::<63>(difference),
                );
                let mask = _mm512_test_epi64_mask(difference, difference);
                (u64::from(mask), _mm512_maskz_compress_epi64(mask, zigzag))
            }),
            _ => find_compressed::<u8>(old, new, lines, mask, zigzags, |old, new| {
                let difference = _mm512_sub_epi8(new, old);
                let sign = _mm512_movm_epi8(_mm512_movepi8_mask(difference));
                let zigzag = _mm512_xor_si512(_mm512_add_epi8(difference, difference), sign);
                let mask = _mm512_test_epi8_mask(difference, difference);
                (mask, _mm512_maskz_compress_epi8(mask, zigzag))
            }),
        }
    }

    fn apply_avx512(width: usize, mask: &[u64], zigzags: &[u8], dst: &mut [u8]) {
        match width {
            2 => apply_expanded::<u16>(mask, zigzags, dst, |mask, zigzags, old| {
                let zigzag = _mm512_maskz_expand_epi16(mask as u32, zigzags);
                let sign = _mm512_sub_epi16(
                    _mm512_setzero_si512(),
                    _mm512_and_si512(zigzag, _mm512_set1_epi16(1)),
                );
                _mm512_add_epi16(old, _mm512_xor_si512(_mm512_srli_epi16::<1>(zigzag), sign))
            }),
            4 => apply_expanded::<u32>(mask, zigzags, dst, |mask, zigzags, old| {
                let zigzag = _mm512_maskz_expand_epi32(mask as u16, zigzags);
                let sign = _mm512_sub_epi32(
                    _mm512_setzero_si512(),
                    _mm512_and_si512(zigzag, _mm512_set1_epi32(1)),
                );
                _mm512_add_epi32(old, _mm512_xor_si512(_mm512_srli_epi32::<1>(zigzag), sign))
            }),
            8 => apply_expanded::<u64>(mask, zigzags, dst, |mask, zigzags, old| {
                let zigzag = _mm512_maskz_expand_epi64(mask as u8, zigzags);
                let sign = _mm512_sub_epi64(
                    _mm512_setzero_si512(),
                    _mm512_and_si512(zigzag, _mm512_set1_epi64(1)),
                );
                _mm512_add_epi64(old, _mm512_xor_si512(_mm512_srli_epi64::<1>(zigzag), sign))
            }),
            _ => apply_with::<u8>(mask, zigzags, dst),
        }
    }

    fn split_avx512(transform: Transform, width: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
        split_portable(transform, width, src, base, planes);
    }

    fn join_avx512(transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
        join_portable(transform, width, planes, dst);
    }
}

/// The search of changed elements where a whole line is compressed at once: `compress` gives a bit for each element
/// that differs, and their zigzags side by side.
#[inline(always)]
fn find_compressed<E: Element>(
    old: &[u8],
    new: &[u8],
    lines: &[u64],
    mask: &mut [u64],
    zigzags: &mut [u8],
    compress: impl Fn(__m512i, __m512i) -> (u64, __m512i),
) -> usize {
    let mut count = 0;
    for index in set_bits(lines) {
        if index * LINE_BYTES >= new.len() {
            break;
        }
        // SAFETY: the caller of this function, which is inlined there, has AVX-512.
        let (old, new) = unsafe { (load(&line(old, index)), load(&line(new, index))) };
        let (bits, side_by_side) = compress(old, new);
        let Some(place) = zigzags[count * E::WIDTH..].first_chunk_mut::<LINE_BYTES>() else { break };
        // SAFETY: as above.
        unsafe { store(place, side_by_side) };
        let first = index * (LINE_BYTES / E::WIDTH);
        mask[first / 64] |= bits << (first % 64);
        count += bits.count_ones() as usize;
    }
    count
}

/// The change of elements where a whole line is changed at once: `change` gives the new line for a bit for each element
/// to change, zigzags of which as many as needed come first, and the old line.
#[inline(always)]
fn apply_expanded<E: Element>(
    mask: &[u64],
    zigzags: &[u8],
    dst: &mut [u8],
    change: impl Fn(u64, __m512i, __m512i) -> __m512i,
) {
    let per_line = LINE_BYTES / E::WIDTH;
    let low = if per_line == 64 { u64::MAX } else { (1 << per_line) - 1 };
    let mut used = 0;
    let (whole, tail) = dst.as_chunks_mut::<LINE_BYTES>();
    for (index, line) in whole.iter_mut().enumerate() {
        let first = index * per_line;
        let bits = mask[first / 64] >> (first % 64) & low;
        if bits == 0 {
            continue;
        }
        let Some(next) = zigzags[used * E::WIDTH..].first_chunk() else { return };
        // SAFETY: the caller of this function, which is inlined there, has AVX-512.
        unsafe { store(line, change(bits, load(next), load(line))) };
        used += bits.count_ones() as usize;
    }
    let first = whole.len() * per_line;
    if !tail.is_empty() && first / 64 < mask.len() {
        let bits = [mask[first / 64] >> (first % 64) & low];
        apply_with::<E>(&bits, &zigzags[used * E::WIDTH..], tail);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_halves(line: &Line) -> [__m256i; 2] {
    let (halves, _) = line.as_chunks::<32>();
    // SAFETY: both halves are 32 bytes, and the load needs no alignment.
    [0, 1].map(|half: usize| unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn differing_bytes_avx2(old: &Line, new: &Line) -> u64 {
    let [a, b] = load_halves(old);
    let [c, d] = load_halves(new);
    let low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a, c)) as u32;
    let high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(b, d)) as u32;
    !(u64::from(high) << 32 | u64::from(low))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(line: &mut Line, value: __m512i) {
    // SAFETY: a line is 64 bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), value) }
}
