//! Elements of two bytes by AVX2, which neither packs nor spreads them by a mask: by tables.

use std::arch::x86_64::*;

use super::super::lines::{line, set_bits};
use super::super::{LINE_BYTES, Line};
use super::{PART_BYTES, Part, load_halves, load_part, store_part};

/// How many elements a part has.
const PAIRS: usize = PART_BYTES / 2;

/// For each mask of elements, which bytes are those that have bits; zeros come after them.
static PACKED: [Part; 1 << PAIRS] = pairs_by_mask(false);
/// For each mask of elements, which bytes come to those that have bits; the others become 0.
static SPREAD: [Part; 1 << PAIRS] = pairs_by_mask(true);

const fn pairs_by_mask(is_spread: bool) -> [Part; 1 << PAIRS] {
    let mut table = [[0x80; PART_BYTES]; 1 << PAIRS];
    let mut mask = 0;
    while mask < table.len() {
        let (mut element, mut rank) = (0, 0);
        while element < PAIRS {
            if mask >> element & 1 == 1 {
                let (to, from) = if is_spread { (element, rank) } else { (rank, element) };
                table[mask][2 * to] = 2 * from as u8;
                table[mask][2 * to + 1] = 2 * from as u8 + 1;
                rank += 1;
            }
            element += 1;
        }
        mask += 1;
    }
    table
}

/// The search of changed elements of two bytes: those of eight are put side by side at once.
#[target_feature(enable = "avx2,popcnt,bmi1")]
#[inline]
pub(super) fn find_pairs(
    old: &[u8],
    new: &[u8],
    lines: &[u64],
    mask: &mut [u64],
    zigzags: &mut [u8],
) -> usize {
    let mut left = zigzags;
    let room = left.len();
    for index in set_bits(lines) {
        if index * LINE_BYTES >= new.len() {
            // The line of the tail alone.
            break;
        }
        let new = load_halves(&line(new, index));
        let old = load_halves(&line(old, index));
        let zigzag = [0, 1].map(|half: usize| {
            let difference = _mm256_sub_epi16(new[half], old[half]);
            let sign = _mm256_srai_epi16::<15>(difference);
            _mm256_xor_si256(_mm256_slli_epi16::<1>(difference), sign)
        });
        let [low, high] = zigzag.map(|zigzag| _mm256_cmpeq_epi16(zigzag, _mm256_setzero_si256()));
        // Packing works on halves: their parts have changed places.
        let same = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high));
        let bits = !_mm256_movemask_epi8(same) as u32;
        // All of the registers is written, and what does not belong there the next one overwrites.
        let Some(place) = left.first_chunk_mut::<LINE_BYTES>() else { break };
        let parts = [
            _mm256_castsi256_si128(zigzag[0]),
            _mm256_extracti128_si256::<1>(zigzag[0]),
            _mm256_castsi256_si128(zigzag[1]),
            _mm256_extracti128_si256::<1>(zigzag[1]),
        ];
        let mut end = 0;
        for (part, bits) in parts.into_iter().zip(bits.to_le_bytes()) {
            let side_by_side = _mm_shuffle_epi8(part, load_part(&PACKED[usize::from(bits)]));
            let Some(place) = place[end..].first_chunk_mut() else { break };
            store_part(place, side_by_side);
            end += 2 * bits.count_ones() as usize;
        }
        let first = index * (LINE_BYTES / 2);
        mask[first / 64] |= u64::from(bits) << (first % 64);
        left = &mut left[end..];
    }
    (room - left.len()) / 2
}

/// Changes the elements of two bytes of a line whose bits are set.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(super) fn change_pairs(line: &mut Line, bits: u64, zigzags: &Line) {
    let mut from = 0;
    for (part, bits) in line.as_chunks_mut().0.iter_mut().zip((bits as u32).to_le_bytes()) {
        let Some(next) = zigzags[from..].first_chunk() else { break };
        let zigzag = _mm_shuffle_epi8(load_part(next), load_part(&SPREAD[usize::from(bits)]));
        let sign = _mm_sub_epi16(_mm_setzero_si128(), _mm_and_si128(zigzag, _mm_set1_epi16(1)));
        let difference = _mm_xor_si128(_mm_srli_epi16::<1>(zigzag), sign);
        let changed = _mm_add_epi16(load_part(part), difference);
        store_part(part, changed);
        from += 2 * bits.count_ones() as usize;
    }
}
