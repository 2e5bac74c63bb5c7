use proptest::prelude::*;

use super::*;

fn options(width: u8) -> SnapshotOptions {
    SnapshotOptions { block_bytes: MIN_BLOCK_BYTES, width: Some(width), ..SnapshotOptions::default() }
}

fn held(bytes: &[u8], width: u8) -> Snapshot {
    Snapshot::new(bytes.to_vec(), options(width), 2).unwrap()
}

fn go_on() -> Result<(), PatchError> {
    Ok(())
}

fn stop() -> Result<(), PatchError> {
    Err(PatchError::OutOfMemory { bytes: 0 })
}

/// Refuses the call number `calls`, counted from 0, and all that follow.
fn stop_after(calls: usize) -> impl Fn() -> Result<(), PatchError> + Sync {
    let count = AtomicUsize::new(0);
    move || if count.fetch_add(1, Ordering::SeqCst) < calls { Ok(()) } else { stop() }
}

fn assert_holds(snapshot: &Snapshot, bytes: &[u8]) {
    assert!(snapshot.bytes() == bytes);
    let leaves = digest::leaves_of(bytes, MIN_BLOCK_BYTES);
    assert_eq!(snapshot.digest(), digest::tree(bytes.len() as u64, MIN_BLOCK_BYTES, &leaves));
}

#[test]
fn snapshot_makes_the_patches_that_encode_makes_and_its_twin_takes_them() {
    let (first, second) = versions();
    let third = second[..5 * BLOCK + 7].to_vec();
    let (mut sender, mut receiver) = (held(&first, 1), held(&first, 1));
    let mut before = first;
    for next in [&second, &third, &second] {
        let patch = sender.advance(next, 2, go_on).unwrap();
        let same = encode(&before, next, &PatchOptions { width: Some(1), ..small() }).unwrap();
        assert!(patch == same);
        assert_holds(&sender, next);
        receiver.apply(&Patch::parse(&patch).unwrap(), 2, go_on).unwrap();
        assert_holds(&receiver, next);
        before.clone_from(next);
    }
}

#[test]
fn snapshot_that_cannot_go_on_holds_what_it_held() {
    let (old, new) = versions();
    let patch = encode(&old, &new, &small()).unwrap();
    let patch = Patch::parse(&patch).unwrap();
    let mut snapshot = held(&old, 1);
    for calls in 0..7 {
        assert_eq!(snapshot.advance(&new, 1, stop_after(calls)), Err(stop().unwrap_err()));
        assert_holds(&snapshot, &old);
        assert_eq!(snapshot.apply(&patch, 1, stop_after(calls)), stop());
        assert_holds(&snapshot, &old);
    }
    snapshot.apply(&patch, 1, go_on).unwrap();
    // Again there is nothing to be done.
    assert_eq!(snapshot.apply(&patch, 1, stop), Ok(()));
    assert_holds(&snapshot, &new);
    let other = [&old[1..], &[0][..]].concat();
    assert!(matches!(held(&other, 1).apply(&patch, 1, go_on), Err(PatchError::BaseMismatch { .. })));
}

#[test]
fn patch_with_other_blocks_is_refused_by_a_snapshot() {
    let patch = encode(b"old", b"new", &PatchOptions::default()).unwrap();
    let refused = held(b"old", 1).apply(&Patch::parse(&patch).unwrap(), 1, go_on);
    assert!(matches!(refused, Err(PatchError::BlockBytes { block_bytes: 0x10_0000, .. })));
}

#[test]
fn index_named_twice_or_past_the_end_is_refused() {
    let mut snapshot = held(&[0; 21], 4);
    let refused = snapshot.advance_sparse(&[3, 1, 3], &[1; 12], 1, go_on);
    assert_eq!(refused, Err(PatchError::DuplicateElement { index: 3 }));
    let refused = snapshot.advance_sparse(&[0, 5], &[1; 8], 1, go_on);
    assert_eq!(refused, Err(PatchError::NoSuchElement { index: 5, count: 5 }));
    let refused = snapshot.advance_sparse(&[0, 4], &[1; 7], 1, go_on);
    assert_eq!(refused, Err(PatchError::Length { what: "values", expected: 8, actual: 7 }));
    assert_holds(&snapshot, &[0; 21]);
}

#[test]
fn mask_of_another_length_is_refused() {
    let mut snapshot = held(&[0; 21], 2);
    for (mask, expected) in [(Mask::Bytes(&[0; 9]), 10), (Mask::Bits(&[0; 3]), 2)] {
        let actual = snapshot.advance_masked(&[1; 21], mask, 1, go_on).unwrap_err();
        assert!(matches!(actual, PatchError::Length { what: "mask", expected: e, .. } if e == expected));
    }
    assert!(snapshot.advance_masked(&[1; 20], Mask::Bytes(&[0; 10]), 1, go_on).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn masked_and_sparse_changes_are_those_of_the_whole_version(
        width in prop::sample::select(vec![1_usize, 2, 4, 8]),
        length in 1..300_000_usize,
        changed in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        reversed in any::<bool>(),
    ) {
        let old = noise(5, length);
        let elements = length / width;
        let mut changed: Vec<usize> =
            changed.iter().filter(|_| elements > 0).map(|at| at.index(elements)).collect();
        changed.sort_unstable();
        changed.dedup();
        let mut new = old.clone();
        // What no mask names may be anything: it is not read.
        let mut given = noise(6, length);
        let (mut bytes, mut bits) = (vec![0; elements], vec![0; elements.div_ceil(8)]);
        for &at in &changed {
            let range = at * width..(at + 1) * width;
            new[range.clone()].copy_from_slice(&given[range]);
            bytes[at] = 1;
            bits[at / 8] |= 1 << (at % 8);
        }
        if reversed {
            changed.reverse();
        }
        let index: Vec<u64> = changed.iter().map(|at| *at as u64).collect();
        let values: Vec<u8> =
            changed.iter().flat_map(|at| new[at * width..(at + 1) * width].to_vec()).collect();
        let width = width as u8;
        let mut whole = held(&old, width);
        let patch = whole.advance(&new, 1, go_on).unwrap();
        for mask in [Mask::Bytes(&bytes), Mask::Bits(&bits)] {
            let mut snapshot = held(&old, width);
            prop_assert!(snapshot.advance_masked(&given, mask, 2, go_on).unwrap() == patch);
            assert_holds(&snapshot, &new);
        }
        let mut snapshot = held(&old, width);
        prop_assert!(snapshot.advance_sparse(&index, &values, 2, go_on).unwrap() == patch);
        assert_holds(&snapshot, &new);
        given.clear();
    }
}
