//! When an index of everything is made.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::source::{Source, slice};
use super::*;

/// Bytes, and how many of them have been read.
struct Counted<'a>(&'a [u8], AtomicU64);

impl Source for Counted<'_> {
    type Error = PatchError;
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], PatchError> {
        self.1.fetch_add(length as u64, Ordering::Relaxed);
        slice(self.0, offset, length)
    }
}

/// Length of the patch, and bytes read of base and target.
fn made(old: &[u8], new: &[u8]) -> (u64, u64, u64) {
    let (old, new) = (Counted(old, AtomicU64::new(0)), Counted(new, AtomicU64::new(0)));
    let made = encode_into(&old, &new, None, &small(), |_| Ok(())).unwrap();
    (made.length, old.1.into_inner(), new.1.into_inner())
}

#[test]
fn of_unrelated_noise_little_is_read_twice() {
    let (old, new) = (noise(1, 8 << 20), noise(2, 8 << 20));
    let all = new.len() as u64;
    let (_, of_old, of_new) = made(&old, &new);
    assert!(of_old < all + all / 8, "{of_old}");
    // Once to be compared, once to be written.
    assert!(of_new < 2 * all + all / 4, "{of_new}");
}

#[test]
fn noise_that_moved_is_found_however_far() {
    let old = noise(1, 8 << 20);
    for distance in [1, 3_333, 33_000, 1 << 16, 2_222_222, 4 << 20] {
        let mut new = old.clone();
        new.rotate_left(distance);
        let (length, ..) = made(&old, &new);
        assert!(length < 20_000, "{distance}: {length}");
    }
}

#[test]
fn noise_that_comes_again_in_the_target_is_found_once_that_is_seen() {
    let new = noise(1, 4 << 20).repeat(2);
    let (length, ..) = made(&[], &new);
    assert!(length < new.len() as u64 / 2 + 20_000, "{length}");
}

#[test]
fn block_of_which_only_the_end_is_shifted_is_found() {
    let old = noise(1, 4 * BLOCK);
    // An insertion that leaves the first quarter of the first block where it was.
    let mut new = old.clone();
    new.splice(BLOCK / 4..BLOCK / 4, [1, 2, 3]);
    let (length, ..) = made(&old, &new);
    assert!(length < 1_000, "{length}");
}

#[test]
fn blocks_are_long_where_content_moved_and_short_where_it_changes_in_place() {
    let old: Vec<u8> = noise(1, 9 << 20);
    let chosen = |new: &[u8], width| {
        let patch = encode(&old, new, &PatchOptions { width, ..PatchOptions::default() }).unwrap();
        let patch = Patch::parse(&patch).unwrap();
        assert!(apply(patch.bytes(), &old).unwrap() == new);
        patch.block_bytes()
    };
    let mut changed = old.clone();
    changed.iter_mut().step_by(5_000).for_each(|byte| *byte ^= 1);
    assert_eq!(chosen(&changed, None), 1 << 20);
    assert_eq!(chosen(&changed[..8 << 20], None), 1 << 20);
    let moved = [b"more", &old[..]].concat();
    assert_eq!(chosen(&moved, None), 4 << 20);
    assert_eq!(chosen(&moved, Some(2)), 1 << 20);
    changed[4 << 20..5 << 20].copy_from_slice(&noise(2, 1 << 20));
    assert_eq!(chosen(&changed, None), 4 << 20);
}
