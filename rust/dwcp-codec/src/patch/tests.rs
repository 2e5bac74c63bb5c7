use proptest::prelude::*;

use super::*;
use crate::block::{BlockDecoder, BlockKind};
use crate::codec::{Codec, CodecId};
use crate::digest::{self, Digest};
use crate::probe::tests::{noise, text, weights};

const BLOCK: usize = MIN_BLOCK_BYTES as usize;

fn options(width: u8, codec: Codec) -> PatchOptions {
    PatchOptions { block_bytes: MIN_BLOCK_BYTES, width, codec }
}

fn small() -> PatchOptions {
    options(1, Codec::Zstd { level: 1 })
}

fn apply(patch: &[u8], old: &[u8]) -> Result<Vec<u8>, PatchError> {
    let patch = Patch::parse(patch)?;
    let mut new = vec![0xee; patch.target_size() as usize];
    patch.apply(old, &mut new).map(|()| new)
}

/// A base and a target with one block of every kind: same, filled, difference, plain and compressed plain, and an end
/// that is not whole.
fn versions() -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 5 * BLOCK + 100);
    let mut new = old.clone();
    new[BLOCK..2 * BLOCK].fill(7);
    new[2 * BLOCK + 5] ^= 1;
    new[3 * BLOCK..4 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    new[4 * BLOCK..5 * BLOCK].copy_from_slice(&text(BLOCK));
    new[5 * BLOCK + 99] ^= 1;
    (old, new)
}

#[test]
fn each_block_takes_the_form_that_suits_it() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let parsed = Patch::parse(&patch).unwrap();
    let forms: Vec<_> = parsed.records().iter().map(|record| (record.kind, record.codec)).collect();
    assert_eq!(
        forms[..5],
        [
            (RecordKind::Same, CodecId::None),
            (RecordKind::Block(BlockKind::Fill), CodecId::None),
            (RecordKind::Block(BlockKind::Sparse), CodecId::None),
            (RecordKind::Block(BlockKind::Plain), CodecId::None),
            (RecordKind::Block(BlockKind::Plain), CodecId::Zstd),
        ]
    );
    assert_eq!(
        parsed.target_digest(),
        digest::tree(new.len() as u64, MIN_BLOCK_BYTES, &digest::leaves_of(&new, MIN_BLOCK_BYTES))
    );
    assert_eq!(
        parsed.base_digest(),
        digest::tree(old.len() as u64, MIN_BLOCK_BYTES, &digest::leaves_of(&old, MIN_BLOCK_BYTES))
    );
    assert!(apply(&patch, &old).unwrap() == new);
}

#[test]
fn head_is_as_documented() {
    let patch = encode(b"old", b"newer", &PatchOptions { width: 4, ..small() }).unwrap();
    assert_eq!(patch[..8], *b"DWCD\x01\x04\0\0");
    assert_eq!(patch[8..16], *b"\0\0\x01\0\x01\0\0\0");
    assert_eq!(patch[16..32], *b"\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
    assert_eq!(patch[32..48], digest::tree(3, 0x1_0000, &[Digest::of(b"old")]).0);
    assert_eq!(patch[48..64], digest::tree(5, 0x1_0000, &[Digest::of(b"newer")]).0);
    let check = digest::check64(u64::from_be_bytes(*b"\0\0\0\0dwcd"), &[&patch[..64], &patch[72..96]]);
    assert_eq!(patch[64..72], check.to_le_bytes());
    assert_eq!(patch[72..80], *b"\0\0\0\0\x05\0\0\0");
    assert_eq!(patch[80..96], Digest::of(b"newer").0);
    assert_eq!(patch[96..], *b"newer");
}

#[test]
fn other_base_is_refused_before_anything_is_written() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let patch = Patch::parse(&patch).unwrap();
    let mut wrong = old.clone();
    wrong[5 * BLOCK + 3] ^= 1;
    for wrong in [&wrong[..], &old[..old.len() - 1], &new, b""] {
        let mut dst = vec![0xee; new.len()];
        let refused = patch.apply(wrong, &mut dst).unwrap_err();
        assert!(
            matches!(refused, PatchError::BaseMismatch { expected, .. } if expected == patch.base_digest())
        );
        assert_eq!(patch.verify_base(wrong), Err(refused));
        assert!(dst.iter().all(|byte| *byte == 0xee));
    }
    let mut buf = wrong.clone();
    assert!(matches!(patch.apply_in_place(&mut buf), Err(PatchError::BaseMismatch { .. })));
    assert!(buf == wrong);
    assert_eq!(patch.verify_base(&old), Ok(()));
}

#[test]
fn damaged_payload_leaves_the_buffer_as_it_was() {
    let (old, new) = versions();
    let mut patch = encode(&old, &new, &small()).unwrap();
    let mut buf = old.clone();
    Patch::parse(&patch).unwrap().apply_in_place(&mut buf).unwrap();
    assert!(buf == new);
    // The last payload: all blocks before it decode well.
    let last = patch.len() - 1;
    patch[last] ^= 0x10;
    let mut buf = old.clone();
    let refused = Patch::parse(&patch).unwrap().apply_in_place(&mut buf).unwrap_err();
    assert!(matches!(refused, PatchError::BlockMismatch { .. } | PatchError::Codec { .. }), "{refused}");
    assert!(buf == old);
}

#[test]
fn patch_that_changes_the_size_is_not_applied_in_place() {
    let patch = encode(b"old", b"newer", &small()).unwrap();
    let refused = Patch::parse(&patch).unwrap().apply_in_place(&mut b"old".to_vec());
    assert_eq!(refused, Err(PatchError::SizeChanged { base_size: 3, target_size: 5 }));
    let refused = Patch::parse(&patch).unwrap().apply(b"old", &mut [0; 4]);
    assert_eq!(refused, Err(PatchError::Length { what: "target buffer", expected: 5, actual: 4 }));
}

#[test]
fn every_truncation_is_refused_and_so_is_a_byte_too_many() {
    let (old, new) = (b"old old old".to_vec(), [noise(1, BLOCK + 50), vec![0; 5]].concat());
    let mut patch = encode(&old, &new, &small()).unwrap();
    for length in (0..200).chain([patch.len() - 1]) {
        let refused = Patch::parse(&patch[..length]).unwrap_err();
        assert!(matches!(refused, PatchError::Truncated { .. }), "{length}: {refused}");
    }
    patch.push(0);
    assert!(matches!(Patch::parse(&patch), Err(PatchError::TrailingBytes { .. })));
}

/// Changes bytes of a patch and makes its check right again, as a forger would.
fn forged(patch: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut forged = patch.to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    let count = u32::from_le_bytes(patch[12..16].try_into().unwrap()) as usize;
    let check = digest::check64(0x6477_6364, &[&forged[..64], &forged[72..72 + 24 * count]]);
    forged[64..72].copy_from_slice(&check.to_le_bytes());
    forged
}

#[test]
fn lying_fields_are_refused_by_name_even_with_a_right_check() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let refusal = |at: usize, bytes: &[u8]| apply(&forged(&patch, at, bytes), &old).unwrap_err();
    let record = |index: usize| 72 + 24 * index;
    assert!(matches!(refusal(0, b"X"), PatchError::BadMagic { .. }));
    assert_eq!(refusal(4, &[2]), PatchError::UnsupportedVersion { version: 2, max: 1 });
    assert_eq!(refusal(5, &[3]), PatchError::Width { width: 3 });
    assert_eq!(refusal(6, &[1]), PatchError::ReservedNotZero { offset: 6, value: 1 });
    for lie in [0, 1, 0x8000, 0x1_0001, 0x80_0000, u32::MAX] {
        let refused = refusal(8, &lie.to_le_bytes());
        assert!(matches!(refused, PatchError::BlockBytes { block_bytes, .. } if block_bytes == lie));
    }
    for lie in [1 << 63, u64::MAX, 0, new.len() as u64 + BLOCK as u64] {
        assert!(matches!(refusal(24, &lie.to_le_bytes()), PatchError::BlockCount { .. }), "{lie}");
        assert!(apply(&forged(&patch, 16, &lie.to_le_bytes()), &old).is_err(), "{lie}");
    }
    // Another target size of as many blocks: the digest covers it.
    let other = (new.len() as u64 - 1).to_le_bytes();
    assert!(matches!(refusal(24, &other), PatchError::TargetDigest { .. }));
    assert!(matches!(refusal(32, &[!patch[32]]), PatchError::BaseMismatch { .. }));
    assert!(matches!(refusal(48, &[!patch[48]]), PatchError::TargetDigest { .. }));
    assert!(matches!(refusal(record(2) + 8, &[!patch[record(2) + 8]]), PatchError::TargetDigest { .. }));
    assert!(matches!(refusal(record(1), &[6]), PatchError::UnknownKind { index: 1, kind: 6, .. }));
    assert!(matches!(refusal(record(1) + 1, &[9]), PatchError::Record { index: 1, codec: 9, .. }));
    assert!(matches!(refusal(record(1) + 2, &[0, 1]), PatchError::ReservedNotZero { value: 0x100, .. }));
    for (index, lie) in [(0, 1), (1, 0), (1, 2), (2, 0), (2, BLOCK as u32), (3, 5), (4, u32::MAX), (4, 0)] {
        let refused = refusal(record(index) + 4, &lie.to_le_bytes());
        assert!(matches!(refused, PatchError::Record { .. }), "{index} {lie}: {refused}");
    }
    // A difference that is said to have a codec, and one block's payload grown into the next one's.
    assert!(matches!(refusal(record(2) + 1, &[2]), PatchError::Record { index: 2, .. }));
    let grown = (Patch::parse(&patch).unwrap().records()[2].length + 1).to_le_bytes();
    assert!(matches!(refusal(record(2) + 4, &grown), PatchError::Truncated { .. }));
    // A block that is not the base's, said to be so: found by its digest.
    let same = [[16, 0, 0, 0], [0; 4]].concat();
    let mut moved = forged(&patch, record(1), &same);
    moved.remove(72 + 24 * 6);
    assert!(matches!(apply(&moved, &old), Err(PatchError::BlockMismatch { index: 1, .. })));
}

#[test]
fn same_block_past_the_end_of_the_base_is_refused() {
    let (old, new) = (noise(1, BLOCK), noise(1, BLOCK + 10));
    let patch = encode(&old, &new, &small()).unwrap();
    let same = [[16, 0, 0, 0], [0; 4]].concat();
    let forged = forged(&patch, 72 + 24, &same);
    let refused = Patch::parse(&forged[..forged.len() - 10]).unwrap_err();
    let end = BLOCK as u64 + 10;
    assert_eq!(refused, PatchError::PastBase { index: 1, end, base_size: BLOCK as u64 });
}

#[test]
fn element_width_makes_differences_of_weights_smaller() {
    let old = weights(4 * BLOCK);
    let mut new = old.clone();
    for (pair, change) in new.chunks_exact_mut(2).zip(noise(8, 2 * BLOCK)) {
        let moved = u16::from_le_bytes([pair[0], pair[1]]).wrapping_add(u16::from(change) * 5);
        pair.copy_from_slice(&moved.to_le_bytes());
    }
    let length = |width| {
        let patch = encode(&old, &new, &options(width, Codec::Zstd { level: 1 })).unwrap();
        assert!(apply(&patch, &old).unwrap() == new);
        patch.len()
    };
    assert!(length(2) < length(1));
}

#[test]
fn blockwise_forms_make_and_read_the_same_patch() {
    let (old, new) = versions();
    for (old, new) in
        [(&old[..], &new[..]), (&old, &new[..BLOCK + 1]), (&old[..BLOCK + 1], &new), (&old, b"")]
    {
        let mut encoder = PatchEncoder::new(old.len() as u64, new.len() as u64, &small()).unwrap();
        let mut patch = vec![0; encoder.head_length() as usize];
        for i in 0..encoder.block_count() as usize {
            let cut = |bytes: &[u8]| {
                let at = |i: usize| (i * BLOCK).min(bytes.len());
                bytes[at(i)..at(i + 1)].to_vec()
            };
            let (old, new) = (cut(old), cut(new));
            patch.extend_from_slice(encoder.push(&old, &new).unwrap());
        }
        assert!(matches!(encoder.push(b"", b""), Err(PatchError::NoSuchBlock { .. })));
        let head = encoder.finish().unwrap();
        patch[..head.len()].copy_from_slice(&head);
        assert!(patch == encode(old, new, &small()).unwrap());

        let length = PatchHead::length_of(&patch[..FIXED_BYTES], patch.len() as u64).unwrap();
        let head = PatchHead::parse(&patch[..length as usize], patch.len() as u64).unwrap();
        let mut decoder = BlockDecoder::new();
        let mut back = Vec::new();
        for (i, record) in (0..).zip(head.records()) {
            let range = head.target_range(u64::from(i)).unwrap();
            let base = head.base_range(u64::from(i));
            let mut block = vec![0; (range.end - range.start) as usize];
            let payload = &patch[record.offset as usize..][..record.length as usize];
            let base = &old[base.start as usize..base.end as usize];
            head.decode_block(&mut decoder, i, payload, base, &mut block).unwrap();
            back.extend(block);
        }
        assert!(back == new);
    }
    let mut encoder = PatchEncoder::new(10, 10, &small()).unwrap();
    let refused = encoder.push(b"short", b"0123456789").unwrap_err();
    assert_eq!(refused, PatchError::Length { what: "base block", expected: 10, actual: 5 });
    assert_eq!(encoder.finish().unwrap_err(), PatchError::Incomplete { pushed: 0, expected: 1 });
}

#[test]
fn options_outside_the_format_are_refused() {
    let refusal = |options: PatchOptions| encode(b"a", b"b", &options).unwrap_err();
    assert!(matches!(
        refusal(PatchOptions { block_bytes: 100_000, ..small() }),
        PatchError::BlockBytes { .. }
    ));
    assert_eq!(refusal(PatchOptions { width: 16, ..small() }), PatchError::Width { width: 16 });
    let refused = PatchEncoder::new(0, u64::MAX, &small()).err().unwrap();
    assert!(matches!(refused, PatchError::TooManyBlocks { .. }));
}

/// Two related versions of different sizes, made of runs, text and noise.
fn related() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let part = prop_oneof![
        (1..u64::MAX, 0..BLOCK).prop_map(|(seed, length)| noise(seed, length)),
        (0..BLOCK).prop_map(text),
        (any::<u8>(), 0..BLOCK).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::collection::vec(part, 0..5), changes, prop::option::of(0..3 * BLOCK)).prop_map(
        |(parts, changes, length)| {
            let old = parts.concat();
            let mut new = old.clone();
            for (at, byte) in changes.iter().filter(|_| !old.is_empty()) {
                new[at.index(old.len())] = *byte;
            }
            new.resize(length.unwrap_or(old.len()), 3);
            (old, new)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn patch_turns_old_into_new(
        (old, new) in related(),
        width in prop::sample::select(vec![1, 2, 4, 8]),
        codec in prop::sample::select(vec![Codec::None, Codec::Lz4, Codec::Zstd { level: 1 }]),
    ) {
        let patch = encode(&old, &new, &options(width, codec)).unwrap();
        prop_assert!(apply(&patch, &old).unwrap() == new);
        let mut buf = old.clone();
        let applied = Patch::parse(&patch).unwrap().apply_in_place(&mut buf);
        if old.len() == new.len() {
            prop_assert!(applied.is_ok() && buf == new);
        } else {
            prop_assert!(applied.is_err() && buf == old);
        }
    }

    #[test]
    fn corrupted_byte_is_found_or_harmless(
        (old, new) in related(),
        at: prop::sample::Index,
        flip in 1..=255_u8,
        width in prop::sample::select(vec![1, 2]),
    ) {
        let mut patch = encode(&old, &new, &options(width, Codec::Zstd { level: 1 })).unwrap();
        let at = at.index(patch.len());
        patch[at] ^= flip;
        if let Ok(read) = apply(&patch, &old) {
            prop_assert!(read == new);
        }
    }

    #[test]
    fn corrupted_byte_of_the_head_is_always_found(at in 0..72 + 24 * 6_usize, flip in 1..=255_u8) {
        let (old, new) = versions();
        let mut patch = encode(&old, &new, &small()).unwrap();
        patch[at] ^= flip;
        prop_assert!(Patch::parse(&patch).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_reader(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        sizes in (0..200_000_u64, 0..200_000_u64),
    ) {
        let _ = Patch::parse(&bytes);
        // The same with everything right that a random patch would get wrong first.
        if bytes.len() >= FIXED_BYTES {
            bytes[..12].copy_from_slice(b"DWCD\x01\x01\0\0\0\0\x01\0");
            let count = sizes.1.div_ceil(BLOCK as u64) as usize;
            bytes[12..16].copy_from_slice(&(count as u32).to_le_bytes());
            bytes[16..24].copy_from_slice(&sizes.0.to_le_bytes());
            bytes[24..32].copy_from_slice(&sizes.1.to_le_bytes());
            if bytes.len() >= FIXED_BYTES + 24 * count {
                let bytes = forged(&bytes, 0, b"D");
                prop_assert!(Patch::parse(&bytes).is_err());
            }
        }
    }
}
