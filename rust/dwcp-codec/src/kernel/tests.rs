//! All loops at all levels that the processor has, against what they mean, written byte by byte.

use proptest::prelude::*;

use super::changes::Changed;
use super::element::Element;
use super::planes::Transform;
use super::{LINE_BYTES, Level, changes, lines, pair, planes};
use crate::digest::Digest;

/// Two versions of a block, equal in many lines and elements.
fn versions() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..9_usize), 0..60);
    (prop::collection::vec(any::<u8>(), 0..6_000), edits).prop_map(|(old, edits)| {
        let mut new = old.clone();
        for (at, byte, count) in edits.into_iter().filter(|_| !old.is_empty()) {
            let at = at.index(old.len());
            new[at..].iter_mut().take(count).for_each(|b| *b = b.wrapping_add(byte));
        }
        (old, new)
    })
}

fn element(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The zigzag of `new - old` in `width` bytes, by its definition.
fn zigzag(width: usize, new: u64, old: u64) -> u64 {
    let modulus = 1_i128 << (8 * width);
    let difference = (i128::from(new) - i128::from(old)).rem_euclid(modulus);
    let signed = if difference >= modulus / 2 { difference - modulus } else { difference };
    (if signed >= 0 { 2 * signed } else { -2 * signed - 1 }) as u64
}

fn dirty(level: Level, old: &[u8], new: &[u8]) -> (Vec<u64>, usize) {
    // What was in the words before must not stay.
    let mut words = vec![u64::MAX; lines::words_for(new.len())];
    let count = lines::dirty_lines(level, old, new, &mut words);
    (words, count)
}

proptest! {
    #[test]
    fn one_pass_tells_both_digests_and_the_lines_that_differ(
        (mut old, mut new) in versions(),
        repeat in 1..6_usize,
        cut in 0..400_usize,
        of_old: bool,
    ) {
        // Several pieces, whichever way they are cut, and an end of the one that the other has not.
        (old, new) = (old.repeat(repeat), new.repeat(repeat));
        let shorter = if of_old { &mut old } else { &mut new };
        shorter.truncate(shorter.len().saturating_sub(cut / 2 * (cut % 2)));
        let common = old.len().min(new.len());
        for level in Level::available() {
            let mut words = vec![1; 3];
            let found = pair::hash_and_compare(level, &old, &new, &mut words);
            prop_assert_eq!(found.old, Digest::of(&old), "{:?} {}", level, old.len());
            prop_assert_eq!(found.new, Digest::of(&new), "{:?} {}", level, new.len());
            prop_assert_eq!((words, found.dirty), dirty(level, &old[..common], &new[..common]), "{:?}", level);
        }
    }

    #[test]
    fn zeros_are_hashed_like_all_else_and_other_lines_marked(
        used in prop::collection::vec((any::<prop::sample::Index>(), 1..2_000_usize), 0..6),
        changed in prop::collection::vec((any::<prop::sample::Index>(), 1..200_usize), 0..4),
        length in 0..20_000_usize,
        cut in 0..3_000_usize,
    ) {
        let put = |parts: &[(prop::sample::Index, usize)], byte, bytes: &mut Vec<u8>| {
            for (at, count) in parts.iter().filter(|_| length > 0) {
                bytes[at.index(length)..].iter_mut().take(*count).for_each(|b| *b = byte);
            }
        };
        let mut bytes = vec![0; length];
        put(&used, 1, &mut bytes);
        let mut new = bytes.clone();
        put(&changed, 0, &mut new);
        put(&changed[changed.len() / 2..], 0x80, &mut new);
        new.truncate(length.saturating_sub(cut / 2 * (cut % 2)));
        for level in Level::available() {
            let mut words = vec![1; 3];
            let marked = pair::hash_and_mark(level, &bytes, &mut words);
            prop_assert_eq!(marked.0, Digest::of(&bytes), "{:?} {}", level, length);
            prop_assert_eq!((words, marked.1), dirty(level, &vec![0; length], &bytes), "{:?}", level);
            let mut words = vec![1; 3];
            let found = pair::hash_and_compare(level, &bytes, &new, &mut words);
            prop_assert_eq!(found.old, Digest::of(&bytes), "{:?} {}", level, length);
            prop_assert_eq!(found.new, Digest::of(&new), "{:?} {}", level, new.len());
            prop_assert_eq!((words, found.dirty), dirty(level, &bytes[..new.len()], &new), "{:?}", level);
        }
    }

    #[test]
    fn what_is_taken_is_held_hashed_and_what_it_was_is_kept(
        (old, new) in versions(),
        repeat in 1..6_usize,
    ) {
        let (old, new) = (old.repeat(repeat), new.repeat(repeat));
        for level in Level::available() {
            let (mut held, mut kept, mut words) = (old.clone(), vec![7; old.len()], vec![1; 3]);
            let taken = pair::hash_and_take(level, &mut held, &new, &mut kept, &mut words);
            prop_assert!(held == new, "{:?}", level);
            prop_assert_eq!((words.clone(), taken.1), dirty(level, &old, &new), "{:?}", level);
            prop_assert_eq!(taken.0, Digest::of(&new), "{:?} {}", level, new.len());
            let mut untouched = vec![7; old.len()];
            lines::put_lines(&old, &words, &mut untouched);
            prop_assert!(kept == untouched, "{:?}", level);
            lines::put_other_lines(&old, &words, &mut untouched);
            prop_assert!(untouched == old, "{:?}", level);
            lines::put_lines(&kept, &words, &mut held);
            prop_assert!(held == old, "{:?}", level);
        }
    }

    #[test]
    fn dirty_lines_and_their_bytes_are_those_that_differ((old, new) in versions()) {
        let differing: Vec<usize> = old
            .chunks(LINE_BYTES)
            .zip(new.chunks(LINE_BYTES))
            .enumerate()
            .filter_map(|(i, (old, new))| (old != new).then_some(i))
            .collect();
        for level in Level::available() {
            let (words, count) = dirty(level, &old, &new);
            prop_assert_eq!(count, differing.len(), "{:?}", level);
            prop_assert_eq!(&lines::set_bits(&words).collect::<Vec<_>>(), &differing, "{:?}", level);
            let mut masks = vec![];
            lines::byte_masks(level, &old, &new, &words, &mut masks);
            prop_assert_eq!(masks.len(), count);
            for (mask, index) in masks.iter().zip(&differing) {
                for bit in 0..LINE_BYTES {
                    let at = index * LINE_BYTES + bit;
                    prop_assert_eq!(mask >> bit & 1 == 1, old.get(at) != new.get(at), "{:?} {}", level, at);
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_not_zero_have_their_bits(
        bytes in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..300),
    ) {
        for level in Level::available() {
            let mut words = vec![];
            lines::set_bytes(level, &bytes, &mut words);
            prop_assert_eq!(words.len(), bytes.len().div_ceil(64));
            let set: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            prop_assert_eq!(lines::set_bits(&words).collect::<Vec<_>>(), set, "{:?}", level);
        }
    }

    #[test]
    fn changes_are_found_and_make_the_new_version_of_the_old(
        (old, new) in versions(),
        width in prop::sample::select(vec![1, 2, 4, 8_usize]),
    ) {
        let whole = new.len() / width * width;
        let changed: Vec<(usize, u64)> = (0..new.len() / width)
            .map(|i| (i, element(&old[i * width..][..width]), element(&new[i * width..][..width])))
            .filter(|(_, old, new)| old != new)
            .map(|(i, old, new)| (i, zigzag(width, new, old)))
            .collect();
        for level in Level::available() {
            let (words, _) = dirty(level, &old, &new);
            let mut mask = vec![0; changes::words_for(new.len() / width)];
            let mut zigzags = vec![0xee; new.len() + LINE_BYTES];
            let count = changes::find(level, width, &old, &new, &words, &mut mask, &mut zigzags);
            let found: Vec<(usize, u64)> = lines::set_bits(&mask)
                .zip(zigzags.chunks(width).map(element))
                .collect();
            prop_assert_eq!(count, changed.len(), "{:?}", level);
            prop_assert_eq!(&found, &changed, "{:?}", level);
            let places: Vec<usize> = lines::set_bits(&mask).collect();
            let numbers: Vec<u32> = places.iter().map(|place| *place as u32).collect();
            let zigzags = &zigzags[..count * width + LINE_BYTES];
            for told in [Changed::Bits(&mask), Changed::Places(&numbers)] {
                let mut applied = old.clone();
                changes::apply(level, width, told, zigzags, &mut applied);
                prop_assert_eq!(&applied[..whole], &new[..whole], "{:?}", level);
                prop_assert_eq!(&applied[whole..], &old[whole..], "{:?}", level);
                let mut hashed = old.clone();
                let digest = changes::apply_and_hash(level, width, told, zigzags, &mut hashed);
                prop_assert_eq!(&hashed, &applied, "{:?}", level);
                prop_assert_eq!(digest, Digest::of(&applied), "{:?}", level);
            }
            let (mut gaps, mut long) = (vec![0xee; count + LINE_BYTES], vec![]);
            changes::gaps(level, &mask, &mut gaps, &mut long);
            let mut long = long.into_iter().peekable();
            for (number, place) in places.iter().enumerate() {
                let gap = number.checked_sub(1).map_or(*place, |before| place - places[before] - 1);
                match long.next_if(|(at, _)| *at == number) {
                    Some((_, found)) => prop_assert!(found == gap && gap >= changes::LONG_GAP),
                    None => prop_assert_eq!(usize::from(gaps[number]), gap, "{:?}", level),
                }
            }
            let mut taken = old.clone();
            changes::take(level, width, &mask, &new[..whole], &mut taken[..whole]);
            prop_assert_eq!(&taken[..whole], &new[..whole], "{:?}", level);
            let mut others = new[..whole].to_vec();
            changes::take(level, width, &vec![0; mask.len()], &old[..whole], &mut others);
            prop_assert_eq!(&others, &new[..whole], "{:?}", level);
        }
    }

    #[test]
    fn planes_are_split_by_place_and_joined_again(
        (base, src) in versions(),
        width in prop::sample::select(vec![1, 2, 4, 8_usize]),
        transform in prop::sample::select(vec![
            Transform::Keep,
            Transform::Rotate,
            Transform::Xor,
            Transform::Zigzag,
            Transform::ZigzagBack,
        ]),
    ) {
        let count = src.len() / width;
        let changed: Vec<u64> = (0..count)
            .map(|i| (element(&src[i * width..][..width]), element(&base[i * width..][..width])))
            .map(|(src, base)| match transform {
                Transform::Keep => src,
                Transform::Rotate => {
                    let bits = 8 * width as u32;
                    (src << 1 | src >> (bits - 1)) & (u64::MAX >> (64 - bits))
                }
                Transform::Xor => src ^ base,
                Transform::Zigzag => zigzag(width, src, base),
                Transform::ZigzagBack => zigzag(width, base, src),
            })
            .collect();
        for level in Level::available() {
            let mut split = vec![0xee; count * width];
            planes::split(level, transform, width, &src, &base, &mut split);
            for (i, byte) in split.iter().enumerate() {
                let (position, element) = (i / count, i % count);
                prop_assert_eq!(*byte, changed[element].byte(position), "{:?} {}", level, i);
            }
            let mut parts: [&[u8]; 8] = [&[]; 8];
            for (part, plane) in parts.iter_mut().zip(split.chunks(count.max(1))) {
                *part = plane;
            }
            let mut joined = base[..count * width].to_vec();
            planes::join(level, transform, width, &parts, &mut joined);
            prop_assert_eq!(&joined, &src[..count * width], "{:?}", level);
        }
    }
}
