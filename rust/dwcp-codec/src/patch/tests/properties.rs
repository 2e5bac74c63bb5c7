use proptest::prelude::*;

use super::*;

/// What happens to a version: bytes are flipped, put in, taken out, moved or filled.
#[derive(Clone, Debug)]
enum Edit {
    Flip,
    Insert(u64),
    Delete,
    Copy(prop::sample::Index),
    Fill(u8),
}

fn edits() -> impl Strategy<Value = Vec<(Edit, prop::sample::Index, usize)>> {
    let edit = prop_oneof![
        Just(Edit::Flip),
        (1..u64::MAX).prop_map(Edit::Insert),
        Just(Edit::Delete),
        any::<prop::sample::Index>().prop_map(Edit::Copy),
        any::<u8>().prop_map(Edit::Fill),
    ];
    prop::collection::vec((edit, any::<prop::sample::Index>(), 1..90_000_usize), 0..6)
}

fn edited(old: &[u8], edits: &[(Edit, prop::sample::Index, usize)]) -> Vec<u8> {
    let mut new = old.to_vec();
    for (edit, at, length) in edits {
        let at = at.index(new.len() + 1);
        let end = new.len().min(at + length);
        match edit {
            Edit::Flip => new[at..end].iter_mut().step_by(97).for_each(|byte| *byte ^= 0x11),
            Edit::Insert(seed) => drop(new.splice(at..at, noise(*seed, *length))),
            Edit::Delete => drop(new.drain(at..end)),
            Edit::Copy(from) => {
                let from = from.index(new.len() + 1);
                let part = new[from..new.len().min(from + length)].to_vec();
                drop(new.splice(at..at, part));
            }
            Edit::Fill(byte) => new[at..end].fill(*byte),
        }
    }
    new
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    (0..4_u8, 0..400_000_usize).prop_map(|(kind, length)| match kind {
        0 => noise(11, length),
        1 => text(length),
        2 => weights(length),
        _ => [noise(12, length / 2), vec![0; length / 2]].concat(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_change_is_told_exactly_whatever_the_options(
        old in content(),
        edits in edits(),
        width in prop::sample::select(vec![None, Some(1), Some(2), Some(4), Some(8)]),
        codec in prop::sample::select(vec![Codec::None, Codec::Lz4, Codec::Zstd { level: 1 }]),
        block_log in 16..19_u32,
        search in any::<bool>(),
    ) {
        let new = edited(&old, &edits);
        let one = PatchOptions { block_bytes: Some(1 << block_log), width, codec, threads: 1, search, dictionary: None };
        let patch = encode(&old, &new, &one).unwrap();
        let three = encode(&old, &new, &PatchOptions { threads: 3, ..one }).unwrap();
        prop_assert!(patch.len() as u64 <= max_length(new.len() as u64));
        prop_assert!(patch == three);
        let parsed = Patch::parse(&patch).unwrap();
        for threads in [1, 3] {
            let mut made = vec![0xee; new.len()];
            parsed.apply(&old[..], &mut made, threads).unwrap();
            prop_assert!(made == new);
            // As new memory it is filled too: it would be seen in the bytes if it were not.
            made.fill(0xee);
            parsed.apply_to_new(&old[..], crate::raw::as_output(&mut made), threads).unwrap();
            prop_assert!(made == new);
            if old.len() == new.len() {
                let mut buf = old.clone();
                parsed.apply_in_place(&mut buf, threads).unwrap();
                prop_assert!(buf == new);
            }
        }
        let mut decoder = EntryDecoder::new();
        for (index, block) in (0..).zip(new.chunks(1 << block_log)) {
            let mut made = vec![0xee; block.len()];
            parsed.decode_block(&mut decoder, index, &old[..], &mut made).unwrap();
            prop_assert!(made == block);
        }
        // Payloads are shorter than their blocks, or as long.
        prop_assert!(patch.len() <= new.len() + 80 + 24 * parsed.block_count() as usize);
    }

    #[test]
    fn patch_of_a_changed_byte_is_refused_or_right(
        edits in edits(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let old = noise(1, 3 * BLOCK);
        let new = edited(&old, &edits);
        let mut patch = encode(&old, &new, &small()).unwrap();
        let at = at.index(patch.len());
        patch[at] ^= flip;
        if let Ok(made) = apply(&patch, &old) {
            prop_assert!(made == new);
        }
        if old.len() == new.len() {
            let mut buf = old.clone();
            let done = Patch::parse(&patch).and_then(|patch| patch.apply_in_place(&mut buf, 1));
            let expected = if done.is_ok() { new } else { old };
            prop_assert!(buf == expected);
        }
    }
}
