mod dictionaries;
mod hostile;
mod properties;
mod scouting;
mod snapshots;

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::format::DICTIONARY_BYTES;
use super::*;
use crate::block::BlockKind;
use crate::codec::{Codec, CodecId};
use crate::digest::{self, Digest};
use crate::error::CodecError;
use crate::probe::tests::{noise, text, weights};

const BLOCK: usize = MIN_BLOCK_BYTES as usize;

fn small() -> PatchOptions<'static> {
    PatchOptions { block_bytes: Some(MIN_BLOCK_BYTES), ..PatchOptions::default() }
}

fn apply(patch: &[u8], old: &[u8]) -> Result<Vec<u8>, PatchError> {
    let patch = Patch::parse(patch)?;
    let mut new = vec![0xee; patch.target_size() as usize];
    patch.apply(old, &mut new, 1).map(|()| new)
}

/// A base and a target of eight blocks: same, filled, changed in one byte, new noise, new text, moved within the base,
/// moved with changes, and like the new noise but for one byte; then an end that is not whole.
fn versions() -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 8 * BLOCK + 100);
    let mut new = old.clone();
    new[BLOCK..2 * BLOCK].fill(7);
    new[2 * BLOCK + 5] ^= 1;
    new[3 * BLOCK..4 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    new[4 * BLOCK..5 * BLOCK].copy_from_slice(&text(BLOCK));
    new[5 * BLOCK..6 * BLOCK].copy_from_slice(&old[77..BLOCK + 77]);
    new[6 * BLOCK..7 * BLOCK].copy_from_slice(&old[BLOCK + 777..2 * BLOCK + 777]);
    new[6 * BLOCK + 30_000] ^= 1;
    new.copy_within(3 * BLOCK..4 * BLOCK, 7 * BLOCK);
    new[7 * BLOCK + 20_000] ^= 1;
    new[8 * BLOCK + 99] ^= 1;
    (old, new)
}

#[test]
fn each_block_takes_the_form_that_suits_it() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let parsed = Patch::parse(&patch).unwrap();
    let forms: Vec<_> = parsed.entries().iter().map(|entry| (entry.kind, entry.codec)).collect();
    assert_eq!(forms[0], (EntryKind::Same, CodecId::None));
    assert_eq!(forms[1], (EntryKind::Block(BlockKind::Fill), CodecId::None));
    assert!(matches!(forms[2].0, EntryKind::Block(kind) if kind.needs_base()), "{forms:?}");
    assert_eq!(forms[3], (EntryKind::Block(BlockKind::Plain), CodecId::None));
    assert_eq!(forms[4], (EntryKind::Block(BlockKind::Plain), CodecId::Zstd));
    assert_eq!(forms[5], (EntryKind::Copy, CodecId::None));
    assert_eq!(forms[6], (EntryKind::Splice, CodecId::None));
    assert_eq!(forms[7], (EntryKind::Splice, CodecId::None));
    assert_eq!(parsed.dependent().map(|entry| entry.first).collect::<Vec<_>>(), [7]);
    assert!(parsed.is_used(3) && !parsed.is_used(4));
    for (digest, object) in [(parsed.target_digest(), &new), (parsed.base_digest(), &old)] {
        let leaves = digest::leaves_of(object, MIN_BLOCK_BYTES);
        assert_eq!(digest, digest::tree(object.len() as u64, MIN_BLOCK_BYTES, &leaves));
    }
    assert!(apply(&patch, &old).unwrap() == new);
}

#[test]
fn content_is_not_looked_for_elsewhere_unless_asked() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &PatchOptions { search: false, ..small() }).unwrap();
    let counts = Patch::parse(&patch).unwrap().counts();
    assert_eq!((counts.copy, counts.splice), (0, 0));
    assert!(apply(&patch, &old).unwrap() == new);
}

#[test]
fn patch_is_laid_out_as_documented() {
    let patch = encode(b"old", b"newer", &small()).unwrap();
    assert_eq!(patch[..16], *b"DWCD\x02\0\0\0\0\0\x01\0\0\0\0\0");
    assert_eq!(patch[16..32], *b"\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
    assert_eq!(patch[32..40], *b"\0\0\0\0\x05\0\0\0");
    assert_eq!(patch[40..56], Digest::of(b"newer").0);
    assert_eq!(patch[56..61], *b"newer");
    assert_eq!(patch[61..69], *b"\xff\0\0\0\x01\0\0\0");
    assert_eq!(patch[69..85], digest::tree(3, 0x1_0000, &[Digest::of(b"old")]).0);
    assert_eq!(patch[85..101], digest::tree(5, 0x1_0000, &[Digest::of(b"newer")]).0);
    let check = digest::check64(u64::from_be_bytes(*b"\0\0\0\0dwcd"), &[&patch[..56], &patch[61..101]]);
    assert_eq!(patch[101..], check.to_le_bytes());
}

#[test]
fn what_is_the_same_is_one_entry_however_long() {
    let old = noise(3, 40 * BLOCK);
    let patch = encode(&old, &old[..39 * BLOCK + 17], &small()).unwrap();
    assert_eq!(patch.len(), 32 + 8 + 48);
    assert!(apply(&patch, &old).unwrap() == old[..39 * BLOCK + 17]);
}

#[test]
fn other_base_is_refused_whatever_else_is_wrong() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let patch = Patch::parse(&patch).unwrap();
    let mut wrong = old.clone();
    wrong[7 * BLOCK + 3] ^= 1;
    for wrong in [&wrong[..], &new] {
        let mut dst = vec![0xee; new.len()];
        let refused = patch.apply(wrong, &mut dst, 1).unwrap_err();
        assert!(
            matches!(refused, PatchError::BaseMismatch { expected, .. } if expected == patch.base_digest())
        );
        assert_eq!(patch.verify_base(wrong, 1), Err(refused.clone()));
        let mut damaged = patch.bytes().to_vec();
        let last = patch.entries().last().unwrap();
        damaged[(last.offset + u64::from(last.length)) as usize - 1] ^= 1;
        let damaged = Patch::parse(&damaged).unwrap();
        for threads in [1, 3] {
            assert_eq!(damaged.apply(wrong, &mut dst, threads), Err(refused.clone()));
            let mut new = vec![MaybeUninit::uninit(); dst.len()];
            assert_eq!(damaged.apply_to_new(wrong, &mut new, threads), Err(refused.clone()));
        }
    }
    for wrong in [&old[..old.len() - 1], b""] {
        let size = wrong.len() as u64;
        let refused = PatchError::BaseSize { expected: old.len() as u64, actual: size };
        assert_eq!(patch.apply(wrong, &mut vec![0; new.len()], 1), Err(refused));
    }
    let mut buf = wrong.clone();
    assert!(matches!(patch.apply_in_place(&mut buf, 1), Err(PatchError::BaseMismatch { .. })));
    assert!(buf == wrong);
    assert_eq!(patch.verify_base(&old[..], 2), Ok(digest::leaves_of(&old, MIN_BLOCK_BYTES)));
}

#[test]
fn patch_that_changes_the_size_is_not_applied_in_place() {
    let patch = encode(b"old", b"newer", &small()).unwrap();
    let refused = PatchError::SizeChanged { base_size: 3, target_size: 5 };
    let mut buf = *b"old";
    assert_eq!(Patch::parse(&patch).unwrap().apply_in_place(&mut buf, 1), Err(refused));
    assert_eq!(buf, *b"old");
}

#[test]
fn chain_is_read_patch_by_patch() {
    let versions = [noise(1, 100_000), noise(2, 200_000), noise(3, 50_000)];
    let mut chain = encode(&versions[0], &versions[1], &small()).unwrap();
    chain.extend(encode(&versions[1], &versions[2], &small()).unwrap());
    assert!(matches!(Patch::parse(&chain), Err(PatchError::TrailingBytes { .. })));
    let mut rest = &chain[..];
    let mut held = versions[0].clone();
    for next in &versions[1..] {
        let patch;
        (patch, rest) = Patch::parse_next(rest).unwrap();
        let mut made = vec![0; patch.target_size() as usize];
        patch.apply(&held[..], &mut made, 1).unwrap();
        assert!(made == *next);
        held = made;
    }
    assert!(rest.is_empty());
}

#[test]
fn source_that_fails_ends_the_work_with_its_own_error() {
    #[derive(Debug, PartialEq)]
    enum Ended {
        Patch(PatchError),
        Stopped,
    }
    impl From<PatchError> for Ended {
        fn from(error: PatchError) -> Ended {
            Ended::Patch(error)
        }
    }
    struct Stopping<'a>(&'a [u8], AtomicUsize);
    impl Source for Stopping<'_> {
        type Error = Ended;
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], Ended> {
            let left = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            left.map_err(|_| Ended::Stopped)?;
            Ok(&self.0[offset as usize..][..length])
        }
    }
    let (old, new) = versions();
    for threads in [1, 3] {
        let options = PatchOptions { threads, ..small() };
        for reads in 0..20 {
            let old = Stopping(&old, AtomicUsize::new(reads));
            let new = Stopping(&new, AtomicUsize::new(usize::MAX));
            assert_eq!(encode_into(&old, &new, None, &options, |_| Ok(())).unwrap_err(), Ended::Stopped);
        }
    }
}

#[test]
fn longest_patch_has_the_length_that_is_told() {
    for length in [0, 1, 65_536, 200_000] {
        let (old, new) = (noise(3, length), noise(4, length));
        let patch = encode(&old, &new, &small()).unwrap();
        // No block of it is short enough for a dictionary, which would be named.
        assert_eq!(patch.len() as u64 + DICTIONARY_BYTES as u64, max_length(length as u64), "{length}");
    }
}

#[test]
fn parts_are_written_one_behind_the_other_as_far_as_there_is_room() {
    let bytes = noise(5, 17 << 20);
    let (made, target) = bytes.split_at(1_000);
    for capacity in [bytes.len(), bytes.len() + 7] {
        let mut memory = vec![7; capacity];
        let mut buffer = Buffer::new(&mut memory);
        buffer.put(Part::Made(made)).unwrap();
        buffer.put(Part::Target(1_000, target)).unwrap();
        assert_eq!(buffer.length(), bytes.len());
        assert!(memory[..bytes.len()] == bytes && memory[bytes.len()..].iter().all(|byte| *byte == 7));
    }
    let mut memory = [0; 1_001];
    let mut buffer = Buffer::new(&mut memory);
    buffer.put(Part::Made(made)).unwrap();
    let refused = buffer.put(Part::Made(&[1, 2]));
    assert_eq!(refused, Err(CodecError::OutputTooSmall { capacity: 1_001 }));
    assert_eq!(buffer.length(), 1_000);
}

#[test]
fn options_outside_the_format_are_refused() {
    for block_bytes in [0, 1, MIN_BLOCK_BYTES / 2, MIN_BLOCK_BYTES + 1, 2 * MAX_BLOCK_BYTES] {
        let refused = encode(b"old", b"new", &PatchOptions { block_bytes: Some(block_bytes), ..small() });
        assert!(matches!(refused, Err(PatchError::BlockBytes { .. })), "{block_bytes}");
    }
    let refused = encode(b"old", b"new", &PatchOptions { width: Some(3), ..small() });
    assert_eq!(refused, Err(PatchError::Width { width: 3 }));
}

#[test]
fn block_of_mostly_zeros_without_a_base_is_told_by_what_is_not() {
    let mut new = vec![0; 3 * BLOCK - 5];
    new[BLOCK + 100..BLOCK + 4_000].copy_from_slice(&noise(3, 3_900));
    *new.last_mut().unwrap() = 1;
    for old in [&[][..], &noise(4, BLOCK)] {
        let patch = encode(old, &new, &small()).unwrap();
        assert!(patch.len() < 4_300, "{}", patch.len());
        let parsed = Patch::parse(&patch).unwrap();
        let kinds: Vec<_> = parsed.entries().iter().map(|entry| entry.kind).collect();
        let [fill, runs] = [BlockKind::Fill, BlockKind::Runs].map(EntryKind::Block);
        assert_eq!(kinds, [fill, runs, runs]);
        assert!(apply(&patch, old).unwrap() == new);
        let mut place = Box::new_uninit_slice(new.len());
        parsed.apply_to_new(old, &mut place, 1).unwrap();
    }
}
