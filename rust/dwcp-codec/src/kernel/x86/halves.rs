//! Comparing lines by AVX2, whose registers hold half of one.

use std::arch::x86_64::*;

use super::super::Line;
use super::load_halves;

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn differ_avx2(old: &Line, new: &Line) -> bool {
    let [a, b] = load_halves(old);
    let [c, d] = load_halves(new);
    let differences = _mm256_or_si256(_mm256_xor_si256(a, c), _mm256_xor_si256(b, d));
    _mm256_testz_si256(differences, differences) == 0
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn differing_bytes_avx2(old: &Line, new: &Line) -> u64 {
    let [a, b] = load_halves(old);
    let [c, d] = load_halves(new);
    let low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a, c)) as u32;
    let high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(b, d)) as u32;
    !(u64::from(high) << 32 | u64::from(low))
}
