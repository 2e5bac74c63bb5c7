//! A patch of several blocks, changed and made consistent: every way of applying it gives the same, or changes nothing.
#![no_main]

use std::mem::MaybeUninit;

use dwcp_codec::patch::{
    self, EntryDecoder, Patch, PatchError, PatchOptions, Snapshot, SnapshotOptions, decode_each,
};
use dwcp_fuzz::patches::make_consistent;
use dwcp_fuzz::versions::pair;
use libfuzzer_sys::fuzz_target;

const LIMIT: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&[seed, width, changes, ref places @ ..], told)) = data.split_first_chunk::<19>() else {
        return;
    };
    let (old, new) = pair(seed, told);
    let width = [None, Some(1), Some(2), Some(4), Some(8)][usize::from(width % 5)];
    let options = PatchOptions { block_bytes: Some(0x1_0000), width, ..PatchOptions::default() };
    let mut encoded = patch::encode(&old, &new, &options).expect("options are valid");
    for place in places.chunks_exact(4).take(usize::from(changes % 5)) {
        let at = u32::from_le_bytes([place[0], place[1], place[2], 0]) as usize % encoded.len();
        encoded[at] ^= place[3];
    }
    let Some(made) = make_consistent(&mut encoded, &old, LIMIT) else { return };
    let patch = Patch::parse(&encoded).expect("it was made consistent");

    for threads in [1, 2] {
        let mut whole = vec![0xee; made.len()];
        assert_eq!(patch.apply(&old[..], &mut whole, threads), Ok(()));
        assert!(whole == made);
        let mut proven = vec![0xee; made.len()];
        assert_eq!(patch.apply_proven(&old[..], &mut proven, threads), Ok(()));
        assert!(proven == made);
    }
    let mut fresh = vec![MaybeUninit::new(0xee); made.len()];
    assert_eq!(patch.apply_to_new(&old[..], &mut fresh, 1), Ok(()));
    // SAFETY: all of it was initialised above.
    assert!(fresh.iter().map(|byte| unsafe { byte.assume_init() }).eq(made.iter().copied()));

    let mut held = old.clone();
    let in_place = patch.apply_in_place(&mut held, 1);
    assert_eq!(in_place.is_ok(), old.len() == made.len(), "{in_place:?}");
    assert!(held == if in_place.is_ok() { &made[..] } else { &old[..] });

    let held = SnapshotOptions { block_bytes: 0x1_0000, ..SnapshotOptions::default() };
    let mut snapshot = Snapshot::new(old.clone(), held, 1).expect("options are valid");
    assert_eq!(snapshot.apply::<PatchError>(&patch, 1, || Ok(())), Ok(()));
    assert!(snapshot.bytes() == made && snapshot.digest() == patch.target_digest());

    // As files are applied: what is as in the base, then what is not made of other blocks, then the rest.
    let mut target = vec![0xee; made.len()];
    for (index, entry) in patch.blocks() {
        let range = patch.target_range(index.into());
        let range = range.start as usize..range.end as usize;
        if entry.digest.is_none() {
            target[range.clone()].copy_from_slice(&old[range]);
        }
    }
    for entries in [patch.independent().collect::<Vec<_>>(), patch.dependent().collect()] {
        let before = target.clone();
        let done = decode_each(
            &patch,
            entries.into_iter(),
            &encoded[..],
            &old[..],
            &before[..],
            2,
            |entry, block| {
                let at = patch.target_range(entry.first.into()).start as usize;
                target[at..at + block.len()].copy_from_slice(block);
                Ok(())
            },
        );
        assert_eq!(done, Ok(()));
    }
    assert!(target == made);
    let mut decoder = EntryDecoder::new();
    for (index, block) in (0..).zip(made.chunks(patch.block_bytes() as usize)) {
        let mut alone = vec![0xee; block.len()];
        assert_eq!(patch.decode_block(&mut decoder, index, &old[..], &mut alone), Ok(()));
        assert!(alone == block);
    }
});
