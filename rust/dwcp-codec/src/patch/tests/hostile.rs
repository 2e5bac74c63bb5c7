use proptest::prelude::*;

use super::*;
use crate::error::CodecError;

const HEAD: usize = 32;

/// Computes the check of a patch with one entry for each of `payloads` anew.
fn seal(patch: &mut [u8], entries: &[usize]) {
    let tail = patch.len() - 48;
    let mut parts: Vec<&[u8]> = vec![&patch[..HEAD]];
    for at in entries {
        let length = if patch[*at] == 16 { 8 } else { 24 };
        parts.push(&patch[*at..at + length]);
    }
    parts.push(&patch[tail..tail + 40]);
    let check = digest::check64(0x6477_6364, &parts);
    patch[tail + 40..].copy_from_slice(&check.to_le_bytes());
}

fn parse(patch: &[u8]) -> PatchError {
    Patch::parse(patch).unwrap_err()
}

#[test]
fn truncated_patch_is_refused_at_every_length() {
    let old = noise(1, BLOCK + 10);
    let mut new = old.clone();
    new[BLOCK + 3] = !new[BLOCK + 3];
    let patch = encode(&old, &new, &small()).unwrap();
    assert!(patch.len() < 200);
    for length in 0..patch.len() {
        assert!(matches!(parse(&patch[..length]), PatchError::Truncated { .. }), "{length}");
    }
    let mut longer = patch.clone();
    longer.push(0);
    assert!(matches!(parse(&longer), PatchError::TrailingBytes { .. }));
}

#[test]
fn every_field_that_lies_is_refused_though_the_check_is_right() {
    // A same block, then one of a few plain bytes.
    let old = noise(1, BLOCK + 2);
    let mut new = old[..BLOCK].to_vec();
    new.extend(b"end");
    let true_patch = encode(&old, &new, &small()).unwrap();
    let entries = [HEAD, HEAD + 8];
    let tail = true_patch.len() - 48;
    assert_eq!(tail, HEAD + 8 + 24 + 3);
    let lie = |at: usize, bytes: &[u8]| {
        let mut patch = true_patch.clone();
        patch[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut patch, &entries);
        patch
    };
    assert!(apply(&lie(0, b"DWCD"), &old).unwrap() == new);
    assert!(matches!(parse(&lie(0, b"DWCB")), PatchError::BadMagic { .. }));
    assert!(matches!(parse(&lie(4, &[1])), PatchError::UnsupportedVersion { version: 1, supported: 2 }));
    for at in [5, 6, 7, 12, 15, entries[0] + 2, entries[1] + 3, tail + 1, tail + 3] {
        assert!(matches!(parse(&lie(at, &[2])), PatchError::ReservedNotZero { .. }), "{at}");
    }
    assert!(matches!(parse(&lie(8, &[1])), PatchError::BlockBytes { .. }));
    assert!(matches!(parse(&lie(16, &[0xff; 8])), PatchError::Size { what: "base", .. }));
    assert!(matches!(parse(&lie(24, &[0xff; 8])), PatchError::Size { what: "target", .. }));
    assert!(matches!(parse(&lie(24, &[0, 0, 0, 0, 0, 0, 0, 1])), PatchError::TooManyBlocks { .. }));
    // Sizes that are none of these objects': entries and base do not go with them.
    assert!(matches!(parse(&lie(16, &[7, 0, 0])), PatchError::PastBase { index: 0, base_size: 7, .. }));
    assert!(matches!(parse(&lie(24, &[0, 0, 1])), PatchError::PastTarget { first: 1, count: 1, .. }));
    assert!(matches!(parse(&lie(24, &[4])), PatchError::Entry { block_length: 4, .. }));
    assert!(matches!(parse(&lie(24, &[3, 0, 2])), PatchError::Entry { .. }));
    let bigger = lie(16, &[3]);
    assert!(matches!(apply(&bigger, &old), Err(PatchError::BaseSize { .. })));
    // Kinds, codecs and lengths.
    assert!(matches!(parse(&lie(entries[1], &[6])), PatchError::UnknownKind { entry: 1, kind: 6 }));
    assert!(matches!(parse(&lie(entries[1], &[19])), PatchError::UnknownKind { kind: 19, .. }));
    assert!(matches!(parse(&lie(entries[0] + 1, &[1])), PatchError::Entry { codec: 1, .. }));
    assert!(matches!(parse(&lie(entries[0] + 4, &[0])), PatchError::Entry { length: 0, .. }));
    assert!(matches!(parse(&lie(entries[0] + 4, &[3])), PatchError::PastTarget { blocks: 3, .. }));
    assert!(matches!(parse(&lie(entries[0] + 4, &[0xff; 4])), PatchError::PastTarget { .. }));
    assert!(matches!(parse(&lie(entries[0] + 4, &[2])), PatchError::PastBase { index: 1, .. }));
    for kind in 1..=5 {
        assert!(matches!(parse(&lie(entries[1], &[kind])), PatchError::Entry { .. }), "{kind}");
    }
    for codec in [1, 2, 3] {
        assert!(matches!(parse(&lie(entries[1] + 1, &[codec])), PatchError::Entry { .. }), "{codec}");
    }
    for length in [0, 2, 4, 200] {
        assert!(matches!(parse(&lie(entries[1] + 4, &[length])), PatchError::Entry { .. }), "{length}");
    }
    for kind in [17, 18] {
        let mut patch = lie(entries[1], &[kind, 0, 0, 0, 2]);
        patch.remove(tail - 1);
        seal(&mut patch, &entries);
        assert!(matches!(parse(&patch), PatchError::Codec { index: 1, .. }), "{kind}");
    }
    // Digests: of the block, of the base, of the target.
    let other_block = lie(entries[1] + 8, &[0; 16]);
    assert!(matches!(apply(&other_block, &old), Err(PatchError::TargetDigest { .. })));
    assert!(matches!(apply(&lie(tail + 8, &[0; 16]), &old), Err(PatchError::BaseMismatch { .. })));
    assert!(matches!(apply(&lie(tail + 24, &[0; 16]), &old), Err(PatchError::TargetDigest { .. })));
    assert!(matches!(apply(&lie(tail - 1, b"!"), &old), Err(PatchError::BlockMismatch { index: 1, .. })));
    // The tail.
    assert!(matches!(parse(&lie(tail + 4, &[1])), PatchError::EntryCount { count: 1, entries: 2 }));
    let mut unsealed = true_patch.clone();
    unsealed[tail + 40] ^= 1;
    assert!(matches!(parse(&unsealed), PatchError::Check { .. }));
    let mut missing = true_patch[..entries[1]].to_vec();
    missing.extend(&true_patch[tail..]);
    missing[entries[1] + 4] = 1;
    seal(&mut missing, &entries[..1]);
    assert!(matches!(parse(&missing), PatchError::MissingBlocks { told: 1, count: 2 }));
}

#[test]
fn block_made_of_a_block_that_is_made_of_others_is_refused() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let parsed = Patch::parse(&patch).unwrap();
    assert_eq!(parsed.dependent().next().unwrap().first, 7);
    let mut more = patch[..parsed.range().end as usize - 48].to_vec();
    // What stands for its end is taken away, and one more block is told by all of block 7.
    let end = parsed.entries().last().unwrap();
    more.truncate(end.offset as usize - 24);
    let mut entries: Vec<usize> = parsed.entries()[..8]
        .iter()
        .map(|entry| entry.offset as usize - if entry.digest.is_some() { 24 } else { 8 })
        .collect();
    entries.push(more.len());
    let size = 9 * BLOCK as u64;
    more[24..32].copy_from_slice(&size.to_le_bytes());
    let mut lists = vec![1, 0];
    number(&mut lists, 2 * BLOCK as u64 - 1);
    number(&mut lists, 2 * BLOCK as u64 + 1);
    let mut copy = vec![lists.len() as u8, 0];
    copy.extend(lists);
    more.extend([17, 0, 0, 0]);
    more.extend((copy.len() as u32).to_le_bytes());
    more.extend([0; 16]);
    more.extend(&copy);
    more.extend(&patch[patch.len() - 48..]);
    let tail = more.len() - 48;
    more[tail + 4] = 9;
    seal(&mut more, &entries);
    assert_eq!(parse(&more), PatchError::NestedSegment { used: 7 });
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn bomb_takes_no_memory_before_it_is_proven() {
    // A patch of 88 bytes that promises 2^62 bytes the base is said to have.
    let mut patch = encode(b"", b"", &small()).unwrap();
    patch.truncate(HEAD);
    patch[8..12].copy_from_slice(&MAX_BLOCK_BYTES.to_le_bytes());
    let size = 1_u64 << 53;
    patch[16..24].copy_from_slice(&size.to_le_bytes());
    patch[24..32].copy_from_slice(&size.to_le_bytes());
    patch.extend([16, 0, 0, 0]);
    patch.extend(((size / u64::from(MAX_BLOCK_BYTES)) as u32).to_le_bytes());
    patch.extend([255, 0, 0, 0, 1, 0, 0, 0]);
    patch.extend([0; 40]);
    seal(&mut patch, &[HEAD]);
    let patch = Patch::parse(&patch).unwrap();
    let refused = PatchError::BaseSize { expected: size, actual: 5 };
    assert_eq!(patch.verify_base(&b"small"[..], 1), Err(refused.clone()));
    assert_eq!(patch.apply_in_place(&mut [0; 5], 1), Err(refused));
    assert!(matches!(patch.apply(&b"small"[..], &mut [0; 5], 1), Err(PatchError::Length { .. })));
}

#[test]
fn damaged_payload_leaves_the_buffer_as_it_was() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let entries = Patch::parse(&patch).unwrap().entries().to_vec();
    for entry in entries.iter().filter(|entry| entry.length > 0) {
        let mut damaged = patch.clone();
        damaged[(entry.offset + u64::from(entry.length)) as usize - 1] ^= 0x10;
        let mut buf = old.clone();
        let refused = Patch::parse(&damaged).and_then(|patch| patch.apply_in_place(&mut buf, 1)).unwrap_err();
        let known = matches!(
            refused,
            PatchError::BlockMismatch { index, .. } | PatchError::Codec { index, .. } if index == entry.first
        );
        assert!(known, "{refused}");
        assert!(buf == old);
    }
    let mut buf = old.clone();
    Patch::parse(&patch).unwrap().apply_in_place(&mut buf, 1).unwrap();
    assert!(buf == new);
}

#[test]
fn what_was_changed_in_place_before_a_damaged_block_is_changed_back() {
    let old = noise(1, 6 * BLOCK);
    // Sparse blocks, one that is all differences, one that is written last.
    let mut new = old.clone();
    for (i, element) in new.chunks_exact_mut(2).enumerate() {
        let step = if i / (BLOCK / 2) == 2 { 1 } else { 9 };
        if i % step == 0 {
            let value = u16::from_le_bytes([element[0], element[1]]).wrapping_add(1 + i as u16 % 300);
            element.copy_from_slice(&value.to_le_bytes());
        }
    }
    new[4 * BLOCK..5 * BLOCK].copy_from_slice(&text(BLOCK));
    let patch = encode(&old, &new, &PatchOptions { width: Some(2), ..small() }).unwrap();
    let entries = Patch::parse(&patch).unwrap().entries().to_vec();
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
    let [sparse, difference] = [BlockKind::Sparse, BlockKind::Difference].map(EntryKind::Block);
    assert_eq!(kinds[..4], [sparse, sparse, difference, sparse]);
    assert!(kinds[4] != sparse && kinds[5] == sparse, "{kinds:?}");
    for (entry, threads) in entries.iter().zip([1, 2, 3, 1, 2, 3]) {
        let mut damaged = patch.clone();
        damaged[(entry.offset + u64::from(entry.length)) as usize - 1] ^= 0x10;
        let mut buf = old.clone();
        let done = Patch::parse(&damaged).and_then(|patch| patch.apply_in_place(&mut buf, threads));
        assert!(done.is_err(), "{entry:?}");
        assert!(buf == old, "{entry:?}");
    }
    let patch = Patch::parse(&patch).unwrap();
    for (block, threads) in (0..6).zip([1, 2, 3, 1, 2, 3]) {
        let mut wrong = old.clone();
        wrong[block * BLOCK + 777] ^= 1;
        let mut buf = wrong.clone();
        let refused = patch.apply_in_place(&mut buf, threads);
        assert!(matches!(refused, Err(PatchError::BaseMismatch { .. })), "{block}: {refused:?}");
        assert!(buf == wrong, "{block}");
    }
    let leaves = patch.verify_base(&old[..], 1).unwrap();
    for calls in 0..6 {
        for known in [true, false] {
            let (count, mut buf) = (AtomicUsize::new(0), old.clone());
            let stop = PatchError::NoSuchBlock { index: 99, count: 0 };
            let check = || match count.fetch_add(1, Ordering::Relaxed) == calls {
                true => Err(stop.clone()),
                false => Ok(()),
            };
            let stopped = match known {
                true => {
                    let mut workers = crate::patch::parallel::states(2);
                    patch.begin(&mut workers, &mut buf, Some(&leaves), check).map(drop)
                }
                false => patch.apply_in_place_while(&mut buf, 2, check),
            };
            assert!(stopped == Err(stop) && buf == old, "{calls}, {known}");
        }
    }
    let mut buf = old.clone();
    patch.apply_in_place(&mut buf, 2).unwrap();
    assert!(buf == new);
}

#[test]
fn block_against_a_base_that_ends_before_it_is_refused() {
    // A sparse block (4) of three bytes where the base has none.
    let mut patch = encode(b"", b"end", &small()).unwrap();
    patch[HEAD] = 4;
    patch[HEAD + 4] = 2;
    patch.remove(HEAD + 24);
    seal(&mut patch, &[HEAD]);
    let refused = apply(&patch, b"").unwrap_err();
    let short = CodecError::ShortBase { length: 0, needed: 3 };
    assert_eq!(refused, PatchError::Codec { index: 0, source: short });
}

/// Where the entries of a patch seem to begin.
fn entries_of(patch: &[u8]) -> Vec<usize> {
    let mut entries = Vec::new();
    let mut at = HEAD;
    while at + 48 < patch.len() && patch[at] != 255 {
        entries.push(at);
        let length = u32::from_le_bytes([patch[at + 4], patch[at + 5], patch[at + 6], patch[at + 7]]);
        at += if patch[at] == 16 { 8 } else { 24 + length as usize };
    }
    entries
}

proptest! {
    #[test]
    fn patch_with_changed_fields_and_payloads_is_refused_or_applied_to_the_end(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, any::<u8>()), 1..5),
    ) {
        let (old, new) = versions();
        let mut patch = encode(&old, &new, &small()).unwrap();
        let entries = entries_of(&patch);
        for (entry, at, flip) in &changes {
            // Near the beginning of an entry: its fields, and the lists of its payload.
            let at = entries[entry.index(entries.len())] + at;
            patch[at] ^= flip;
        }
        let entries = entries_of(&patch);
        seal(&mut patch, &entries);
        if let Ok(parsed) = Patch::parse(&patch) {
            let mut made = vec![0; parsed.target_size() as usize];
            let applied = parsed.apply(&old[..], &mut made, 2);
            prop_assert!(applied.is_err() || made == new);
            let mut buf = old.clone();
            let applied = parsed.apply_in_place(&mut buf, 1);
            prop_assert!(buf == *if applied.is_ok() { &new } else { &old }, "a mix");
            let mut decoder = EntryDecoder::new();
            for (index, block) in (0..).zip(new.chunks(BLOCK)) {
                let mut made = vec![0; block.len()];
                let decoded = parsed.decode_block(&mut decoder, index, &old[..], &mut made);
                prop_assert!(decoded.is_err() || made.len() == block.len());
            }
        }
    }
}
