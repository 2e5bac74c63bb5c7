use proptest::prelude::*;

use super::*;

fn held_with(bytes: &[u8], width: u8, search: bool) -> Snapshot {
    let options = SnapshotOptions {
        block_bytes: MIN_BLOCK_BYTES,
        width: Some(width),
        search,
        ..SnapshotOptions::default()
    };
    Snapshot::new(bytes.to_vec(), options, 2).unwrap()
}

fn held(bytes: &[u8], width: u8) -> Snapshot {
    held_with(bytes, width, true)
}

/// [`versions`], in which some blocks change in a few elements or in most.
fn typed_versions() -> (Vec<u8>, Vec<u8>) {
    let (old, mut new) = versions();
    new[..BLOCK].copy_from_slice(&old[..BLOCK]);
    new[5 * BLOCK..7 * BLOCK].copy_from_slice(&old[5 * BLOCK..7 * BLOCK]);
    new[5 * BLOCK..6 * BLOCK].iter_mut().step_by(2).for_each(|byte| *byte = byte.wrapping_add(1));
    new[6 * BLOCK..7 * BLOCK].iter_mut().step_by(202).for_each(|byte| *byte ^= 3);
    (old, new)
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
    for (moved, search, width) in [(true, true, 1), (true, false, 1), (false, true, 2), (false, false, 2)] {
        let (first, second) = if moved { versions() } else { typed_versions() };
        let third = second[..5 * BLOCK + 7].to_vec();
        let (mut sender, mut receiver) = (held_with(&first, width, search), held(&first, 1));
        let mut before = first.clone();
        for next in [&second, &first, &third, &second] {
            let patch = sender.advance(next, 2, go_on).unwrap();
            let same =
                encode(&before, next, &PatchOptions { width: Some(width), search, ..small() }).unwrap();
            assert!(patch == same);
            assert_holds(&sender, next);
            let patch = &Patch::parse(&patch).unwrap();
            assert_holds(&receiver.fork(patch, |_| vec![7; BLOCK], 2, go_on).unwrap(), next);
            assert_holds(&receiver, &before);
            receiver.apply(patch, 2, go_on).unwrap();
            assert_holds(&receiver, next);
            before.clone_from(next);
        }
    }
}

#[test]
fn snapshot_changed_on_the_way_is_changed_back_where_a_block_is_to_be_looked_for() {
    let old = noise(9, 64 * BLOCK);
    let mut new = old.clone();
    new.iter_mut().step_by(202).for_each(|byte| *byte ^= 3);
    // Between the places that are looked at beforehand.
    new[33 * BLOCK..34 * BLOCK].copy_from_slice(&old[5 * BLOCK..6 * BLOCK]);
    let expected = encode(&old, &new, &PatchOptions { width: Some(2), ..small() }).unwrap();
    let counts = Patch::parse(&expected).unwrap().counts();
    assert!(counts.sparse == 63 && counts.copy == 1, "{counts:?}");
    let mask: Vec<u8> =
        (0..old.len() as u32 / 2).map(|at| differs(&old, &new, at.to_ne_bytes()).into()).collect();
    for threads in [1, 2] {
        let mut snapshot = held(&old, 2);
        assert!(snapshot.advance(&new, threads, go_on).unwrap() == expected);
        assert_holds(&snapshot, &new);
        let mut snapshot = held(&old, 2);
        assert!(snapshot.advance_masked(&new, Mask::Bytes(&mask), threads, go_on).unwrap() == expected);
        assert_holds(&snapshot, &new);
    }
    let some: Vec<[u8; 4]> =
        (0..old.len() as u32 / 2).map(u32::to_ne_bytes).filter(|at| differs(&old, &new, *at)).collect();
    let values: Vec<u8> = some.iter().flat_map(|at| element_at(&new, *at)).collect();
    let mut snapshot = held(&old, 2);
    assert!(snapshot.advance_sparse(&some, &values, 1, go_on).unwrap() == expected);
    assert_holds(&snapshot, &new);
}

fn element_at(bytes: &[u8], at: [u8; 4]) -> [u8; 2] {
    let at = 2 * u32::from_ne_bytes(at) as usize;
    [bytes[at], bytes[at + 1]]
}

fn differs(old: &[u8], new: &[u8], at: [u8; 4]) -> bool {
    element_at(old, at) != element_at(new, at)
}

#[test]
fn snapshot_changed_on_the_way_is_changed_back_if_its_patch_cannot_be_made() {
    let (old, new) = typed_versions();
    let parts = Patch::parse(
        &encode(&old, &new, &PatchOptions { width: Some(2), search: false, ..small() }).unwrap(),
    )
    .map(|patch| patch.counts())
    .unwrap();
    // Both kinds that are changed on the way, and both that are not.
    assert!(parts.sparse > 0 && parts.difference > 0 && parts.plain > 0 && parts.fill > 0, "{parts:?}");
    let (mask, mut snapshot) = (vec![1; old.len() / 2], held_with(&old, 2, false));
    for calls in 0..10 {
        assert_eq!(snapshot.advance(&new, 1, stop_after(calls)), Err(stop().unwrap_err()));
        assert_holds(&snapshot, &old);
        let masked = snapshot.advance_masked(&new, Mask::Bytes(&mask), 1, stop_after(calls.min(8)));
        assert_eq!(masked, Err(stop().unwrap_err()));
        assert_holds(&snapshot, &old);
    }
    let made = snapshot.advance_masked(&new, Mask::Bytes(&mask), 1, go_on).unwrap();
    assert!(made == held_with(&old, 2, false).advance(&new, 1, go_on).unwrap());
    assert_holds(&snapshot, &new);
}

#[test]
fn patches_applied_together_change_all_snapshots_or_none() {
    let (old, new) = typed_versions();
    let options = PatchOptions { width: Some(2), search: false, ..small() };
    let good = encode(&old, &new, &options).unwrap();
    let mut wrong = good.clone();
    let middle =
        Patch::parse(&good).unwrap().entries().iter().rev().find(|entry| entry.length > 100).unwrap().offset;
    wrong[middle as usize + 50] ^= 1;
    let longer = encode(&old, &[&new[..], &[1; 100]].concat(), &options).unwrap();
    let [good, wrong, longer] = [&good, &wrong, &longer].map(|patch| Patch::parse(patch).unwrap());
    let mut three = [held(&old, 2), held(&old, 2), held(&old, 2)];
    let [a, b, c] = &mut three;
    assert!(Snapshot::apply_together(&mut [(a, &good), (b, &longer), (c, &wrong)], 2, go_on).is_err());
    three.iter().for_each(|one| assert_holds(one, &old));
    let [a, b, c] = &mut three;
    let parts = &mut [(a, &good), (b, &longer), (c, &good)];
    assert_eq!(Snapshot::apply_together(parts, 2, stop_after(20)), stop());
    three.iter().for_each(|one| assert_holds(one, &old));
    let [a, b, c] = &mut three;
    Snapshot::apply_together(&mut [(a, &good), (b, &longer), (c, &good)], 2, go_on).unwrap();
    [&three[0], &three[2]].iter().for_each(|one| assert_holds(one, &new));
    assert_holds(&three[1], &[&new[..], &[1; 100]].concat());
}

#[test]
fn version_that_was_altered_is_what_is_to_blame() {
    let (old, new) = typed_versions();
    let patch = encode(&old, &new, &PatchOptions { width: Some(2), search: false, ..small() }).unwrap();
    let patch = Patch::parse(&patch).unwrap();
    // In a block that is as in the base, and in one that differs.
    for at in [5, 6 * BLOCK + 5] {
        let mut snapshot = held(&old, 2);
        snapshot.bytes_mut()[at] ^= 1;
        let refused = snapshot.fork(&patch, |_| Vec::new(), 1, go_on).err();
        assert!(matches!(refused, Some(PatchError::BaseMismatch { .. })), "{refused:?}");
    }
    let mut snapshot = held(&old, 2);
    snapshot.bytes_mut()[6 * BLOCK + 5] ^= 1;
    let refused = snapshot.apply(&patch, 1, go_on);
    assert!(matches!(refused, Err(PatchError::BaseMismatch { .. })), "{refused:?}");
}

#[test]
fn patch_with_other_blocks_makes_a_snapshot_with_them() {
    let (old, new) = typed_versions();
    let patch = encode(&old, &new, &PatchOptions::default()).unwrap();
    let patch = Patch::parse(&patch).unwrap();
    let forked = held(&old, 1).fork(&patch, |length| vec![1; length], 1, go_on).unwrap();
    assert!(forked.bytes() == new && forked.digest() == patch.target_digest());
    assert_eq!(forked.options().block_bytes, patch.block_bytes());
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
        searched in any::<bool>(),
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
        let held = |bytes: &[u8], width| held_with(bytes, width, searched);
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
