//! The loops for NEON, where a compiler makes more instructions of the plain ones: it has no 64-bit products for masks
//! of bytes, and does not unzip planes or zip more than two.

use std::arch::aarch64::*;

use super::changes::find_with;
use super::element::with_element;
use super::lines::{byte_masks_with, dirty_lines_with, set_bytes_with};
use super::planes::{Transform, join_from, join_portable, split_from, split_portable};
use super::{LINE_BYTES, Line};

type Part = [u8; PART_BYTES];

/// What a register holds.
const PART_BYTES: usize = 16;
/// Lines whose bits are brought to one register.
const GROUP_LINES: usize = 4;

/// Makes a safe function of one that needs NEON.
macro_rules! neon {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[target_feature(enable = "neon")]
            fn inner($($arg: $type),*) $(-> $result)? $body
            // SAFETY: only the level Neon leads here, and every processor of the architecture has it.
            unsafe { inner($($arg),*) }
        }
    )*};
}

neon! {
    fn dirty_lines_neon(old: &[u8], new: &[u8], lines: &mut [u64]) -> usize {
        let weights = vld1q_u32_of([1, 2, 4, 8]);
        let (old_lines, _) = old.as_chunks::<LINE_BYTES>();
        let (new_lines, _) = new.as_chunks::<LINE_BYTES>();
        let (old_words, _) = old_lines.as_chunks::<64>();
        let (new_words, _) = new_lines.as_chunks::<64>();
        let mut count = 0;
        for (word, (old, new)) in lines.iter_mut().zip(old_words.iter().zip(new_words)) {
            let mut bits = 0;
            let groups = old.as_chunks::<GROUP_LINES>().0.iter().zip(new.as_chunks::<GROUP_LINES>().0);
            for (group, (old, new)) in groups.enumerate() {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| differences(&old[i], &new[i]));
                // A lane for each line, not 0 if it differs.
                let lanes = vpmaxq_u32(vpmaxq_u32(a, b), vpmaxq_u32(c, d));
                let differ = vandq_u32(vtstq_u32(lanes, lanes), weights);
                bits |= u64::from(vaddvq_u32(differ)) << (GROUP_LINES * group);
            }
            *word = bits;
            count += bits.count_ones() as usize;
        }
        let (words, bytes) = (new_words.len(), new_words.len() * 64 * LINE_BYTES);
        count + dirty_lines_with(&old[bytes..], &new[bytes..], &mut lines[words..], |old, new| {
            vmaxvq_u32(differences(old, new)) != 0
        })
    }

    fn byte_masks_neon(old: &[u8], new: &[u8], lines: &[u64], masks: &mut Vec<u64>) {
        byte_masks_with(old, new, lines, masks, |old, new| differing_bytes(old, new));
    }

    fn set_bytes_neon(bytes: &[u8], words: &mut Vec<u64>) {
        set_bytes_with(bytes, words, |zero, bytes| differing_bytes(zero, bytes));
    }

    fn find_neon(
        width: usize,
        old: &[u8],
        new: &[u8],
        lines: &[u64],
        mask: &mut [u64],
        zigzags: &mut [u8],
    ) -> usize {
        with_element!(width, E => {
            find_with::<E>(old, new, lines, mask, zigzags, |old, new| differing_bytes(old, new))
        })
    }

    fn split_neon(transform: Transform, width: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
        match width {
            2 => split_parts::<2>(transform, src, base, planes),
            4 => split_parts::<4>(transform, src, base, planes),
            8 => split_parts::<8>(transform, src, base, planes),
            // There is nothing to be unzipped.
            _ => split_portable(transform, width, src, base, planes),
        }
    }

    fn join_neon(transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
        match width {
            4 => join_parts::<4>(transform, planes, dst),
            8 => join_parts::<8>(transform, planes, dst),
            // Two planes are zipped by the compiler as well.
            _ => join_portable(transform, width, planes, dst),
        }
    }
}

/// A function for NEON, to be called from such only.
macro_rules! for_neon {
    ($($(#[$doc:meta])* fn $name:ident $([$($generic:tt)*])? ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?
        $body:block)*) => {$(
        $(#[$doc])*
        #[target_feature(enable = "neon")]
        #[inline]
        fn $name $(<$($generic)*>)? ($($arg: $type),*) $(-> $result)? $body
    )*};
}

for_neon! {
    /// The bits that differ in any of the four parts of a line.
    fn differences(old: &Line, new: &Line) -> uint32x4_t {
        let (old, new) = (old.as_chunks().0, new.as_chunks().0);
        let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| veorq_u8(load(&old[i]), load(&new[i])));
        vreinterpretq_u32_u8(vorrq_u8(vorrq_u8(a, b), vorrq_u8(c, d)))
    }

    /// A bit for each byte of two lines, set if it differs.
    fn differing_bytes(old: &Line, new: &Line) -> u64 {
        let weights = load(&[1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128]);
        let (old, new) = (old.as_chunks().0, new.as_chunks().0);
        let part = |i: usize| vbicq_u8(weights, vceqq_u8(load(&old[i]), load(&new[i])));
        // Sums of neighbours: of eight in three steps, as no two have the same bit.
        let quarters = vpaddq_u8(vpaddq_u8(part(0), part(1)), vpaddq_u8(part(2), part(3)));
        vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(quarters, quarters)))
    }

    /// The split of sixteen elements at a time.
    fn split_parts[const W: usize](transform: Transform, src: &[u8], base: &[u8], planes: &mut [u8]) {
        let done = match transform {
            Transform::Keep => split_with::<W>(src, src, planes, |src, _| src),
            Transform::Rotate => split_with::<W>(src, src, planes, |src, _| rotate::<W>(src)),
            Transform::Xor => split_with::<W>(src, base, planes, |src, base| veorq_u8(src, base)),
            Transform::Zigzag => split_with::<W>(src, base, planes, |src, base| zigzag::<W>(src, base)),
            Transform::ZigzagBack => split_with::<W>(src, base, planes, |src, base| zigzag::<W>(base, src)),
        };
        split_from(transform, W, done, src, base, planes);
    }

    /// Splits as many whole groups as there are, and returns how many bytes that was.
    fn split_with[const W: usize](
        src: &[u8],
        base: &[u8],
        planes: &mut [u8],
        change: impl Fn(uint8x16_t, uint8x16_t) -> uint8x16_t,
    ) -> usize {
        let (src_groups, _) = src.as_chunks::<PART_BYTES>().0.as_chunks::<W>();
        let (base_groups, _) = base.as_chunks::<PART_BYTES>().0.as_chunks::<W>();
        let groups = src_groups.len();
        let mut planes = planes.chunks_exact_mut((src.len() / W).max(1));
        let mut planes: [&mut [Part]; W] = std::array::from_fn(|_| {
            // As many as there are groups, known to the compiler.
            planes.next().map_or(&mut [][..], |plane| &mut plane.as_chunks_mut().0[..groups])
        });
        for (index, (src, base)) in src_groups.iter().zip(base_groups).enumerate() {
            let mut registers: [uint8x16_t; W] =
                std::array::from_fn(|i| change(load(&src[i]), load(&base[i])));
            for _ in 0..W.ilog2() {
                let zipped = registers;
                for i in 0..W / 2 {
                    let (a, b) = (zipped[2 * i], zipped[2 * i + 1]);
                    registers[i] = vuzp1q_u8(a, b);
                    registers[W / 2 + i] = vuzp2q_u8(a, b);
                }
            }
            for (plane, register) in planes.iter_mut().zip(registers) {
                store(&mut plane[index], register);
            }
        }
        groups * W * PART_BYTES
    }

    /// The join of sixteen elements at a time.
    fn join_parts[const W: usize](transform: Transform, planes: &[&[u8]; 8], dst: &mut [u8]) {
        let done = match transform {
            Transform::Keep => join_with::<W>(planes, dst, |changed, _| changed),
            Transform::Rotate => join_with::<W>(planes, dst, |changed, _| rotate_back::<W>(changed)),
            Transform::Xor => join_with::<W>(planes, dst, |changed, base| veorq_u8(changed, base)),
            Transform::Zigzag => join_with::<W>(planes, dst, |changed, base| zigzag_onto::<W>(changed, base)),
            Transform::ZigzagBack => join_with::<W>(planes, dst, |changed, base| {
                let zero = vdupq_n_u8(0);
                zigzag_onto::<W>(zigzag::<W>(zero, zigzag_onto::<W>(changed, zero)), base)
            }),
        };
        join_from(transform, W, done, planes, dst);
    }

    /// Joins as many whole groups as there are, and returns how many bytes that was.
    fn join_with[const W: usize](
        planes: &[&[u8]; 8],
        dst: &mut [u8],
        change: impl Fn(uint8x16_t, uint8x16_t) -> uint8x16_t,
    ) -> usize {
        let (groups, _) = dst.as_chunks_mut::<PART_BYTES>().0.as_chunks_mut::<W>();
        // As many as there are groups, known to the compiler.
        let planes: [&[Part]; W] =
            std::array::from_fn(|position| &planes[position].as_chunks().0[..groups.len()]);
        for (index, group) in groups.iter_mut().enumerate() {
            let mut registers: [uint8x16_t; W] = std::array::from_fn(|position| load(&planes[position][index]));
            for _ in 0..W.ilog2() {
                let split = registers;
                for i in 0..W / 2 {
                    let (a, b) = (split[i], split[W / 2 + i]);
                    registers[2 * i] = vzip1q_u8(a, b);
                    registers[2 * i + 1] = vzip2q_u8(a, b);
                }
            }
            for (place, changed) in group.iter_mut().zip(registers) {
                store(place, change(changed, load(place)));
            }
        }
        groups.len() * W * PART_BYTES
    }

    /// The zigzags of `new - old`, of elements of 2, 4 or 8 bytes.
    fn zigzag[const W: usize](new: uint8x16_t, old: uint8x16_t) -> uint8x16_t {
        match W {
            2 => {
                let difference = vsubq_s16(vreinterpretq_s16_u8(new), vreinterpretq_s16_u8(old));
                vreinterpretq_u8_s16(veorq_s16(vshlq_n_s16::<1>(difference), vshrq_n_s16::<15>(difference)))
            }
            4 => {
                let difference = vsubq_s32(vreinterpretq_s32_u8(new), vreinterpretq_s32_u8(old));
                vreinterpretq_u8_s32(veorq_s32(vshlq_n_s32::<1>(difference), vshrq_n_s32::<31>(difference)))
            }
            _ => {
                let difference = vsubq_s64(vreinterpretq_s64_u8(new), vreinterpretq_s64_u8(old));
                vreinterpretq_u8_s64(veorq_s64(vshlq_n_s64::<1>(difference), vshrq_n_s64::<63>(difference)))
            }
        }
    }

    /// The elements of 4 or 8 bytes whose zigzags from `old` are given.
    fn zigzag_onto[const W: usize](zigzag: uint8x16_t, old: uint8x16_t) -> uint8x16_t {
        match W {
            4 => {
                let (zigzag, old) = (vreinterpretq_u32_u8(zigzag), vreinterpretq_u32_u8(old));
                let sign = vsubq_u32(vdupq_n_u32(0), vandq_u32(zigzag, vdupq_n_u32(1)));
                vreinterpretq_u8_u32(vaddq_u32(old, veorq_u32(vshrq_n_u32::<1>(zigzag), sign)))
            }
            _ => {
                let (zigzag, old) = (vreinterpretq_u64_u8(zigzag), vreinterpretq_u64_u8(old));
                let sign = vsubq_u64(vdupq_n_u64(0), vandq_u64(zigzag, vdupq_n_u64(1)));
                vreinterpretq_u8_u64(vaddq_u64(old, veorq_u64(vshrq_n_u64::<1>(zigzag), sign)))
            }
        }
    }

    /// Each element of 2, 4 or 8 bytes rotated left by one bit.
    fn rotate[const W: usize](elements: uint8x16_t) -> uint8x16_t {
        match W {
            2 => {
                let elements = vreinterpretq_u16_u8(elements);
                vreinterpretq_u8_u16(vsriq_n_u16::<15>(vshlq_n_u16::<1>(elements), elements))
            }
            4 => {
                let elements = vreinterpretq_u32_u8(elements);
                vreinterpretq_u8_u32(vsriq_n_u32::<31>(vshlq_n_u32::<1>(elements), elements))
            }
            _ => {
                let elements = vreinterpretq_u64_u8(elements);
                vreinterpretq_u8_u64(vsriq_n_u64::<63>(vshlq_n_u64::<1>(elements), elements))
            }
        }
    }

    /// Each element of 4 or 8 bytes rotated right by one bit.
    fn rotate_back[const W: usize](elements: uint8x16_t) -> uint8x16_t {
        match W {
            4 => {
                let elements = vreinterpretq_u32_u8(elements);
                vreinterpretq_u8_u32(vsliq_n_u32::<31>(vshrq_n_u32::<1>(elements), elements))
            }
            _ => {
                let elements = vreinterpretq_u64_u8(elements);
                vreinterpretq_u8_u64(vsliq_n_u64::<63>(vshrq_n_u64::<1>(elements), elements))
            }
        }
    }

    fn vld1q_u32_of(lanes: [u32; 4]) -> uint32x4_t {
        // SAFETY: the array is 16 bytes, and the load needs no more alignment than it has.
        unsafe { vld1q_u32(lanes.as_ptr()) }
    }

    fn load(part: &Part) -> uint8x16_t {
        // SAFETY: a part is 16 bytes, and the load needs no alignment.
        unsafe { vld1q_u8(part.as_ptr()) }
    }

    fn store(part: &mut Part, value: uint8x16_t) {
        // SAFETY: a part is 16 bytes, and the store needs no alignment.
        unsafe { vst1q_u8(part.as_mut_ptr(), value) }
    }
}
