//! Patches whose blocks are made with a dictionary.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::dictionary::Dictionary;
use crate::dictionary::tests::{records, trained};
use crate::error::CodecError;

fn applied(patch: &[u8], old: &[u8], dictionary: &Arc<Dictionary>) -> Result<Vec<u8>, PatchError> {
    let patch = Patch::parse(patch)?.with_dictionary(Some(dictionary))?;
    let mut new = vec![0xee; patch.target_size() as usize];
    patch.apply(old, &mut new, 1).map(|()| new)
}

/// A record that has no base, with a dictionary for such records, and the patch that tells it.
fn sample() -> (Vec<u8>, Arc<Dictionary>, Vec<u8>) {
    let (record, dictionary) = (records(450).remove(449), Arc::new(trained()));
    let with_it = PatchOptions { dictionary: Some(&dictionary), ..small() };
    let patch = encode(b"", &record, &with_it).unwrap();
    (record, dictionary, patch)
}

#[test]
fn patch_names_the_dictionary_that_it_needs_and_is_applied_with_no_other() {
    let (record, dictionary, patch) = sample();
    let alone = encode(b"", &record, &small()).unwrap();
    assert!(patch.len() + 30 < alone.len(), "{} {}", patch.len(), alone.len());
    assert!(applied(&patch, b"", &dictionary).unwrap() == record);
    let parsed = Patch::parse(&patch).unwrap();
    let needed = dictionary.digest();
    assert_eq!((parsed.head().dictionary(), parsed.needed_dictionary()), (Some(needed), Some(needed)));
    assert_eq!(parsed.clone().with_dictionary(None), Err(PatchError::DictionaryMissing { needed }));
    let other = Arc::new(Dictionary::new(b"another".to_vec()).unwrap());
    let given = other.digest();
    let refused = parsed.clone().with_dictionary(Some(&other));
    assert_eq!(refused, Err(PatchError::DictionaryMismatch { needed, given }));
    // Nor is it decoded by those who never asked.
    let mut new = vec![0; record.len()];
    let missing = Err(PatchError::DictionaryMissing { needed });
    assert_eq!(parsed.apply(&b""[..], &mut new, 1), missing);
    let mut decoder = EntryDecoder::new();
    assert_eq!(parsed.decode_block(&mut decoder, 0, &b""[..], &mut new), missing);
}

#[test]
fn patch_without_a_block_for_a_dictionary_needs_none() {
    let dictionary = trained();
    let with_it = PatchOptions { dictionary: Some(&dictionary), ..small() };
    let (old, new) = (noise(1, 3 * BLOCK), [noise(1, 3 * BLOCK), noise(2, 100)].concat());
    let patch = encode(&old, &new, &with_it).unwrap();
    let parsed = Patch::parse(&patch).unwrap();
    assert_eq!((parsed.head().dictionary(), parsed.needed_dictionary()), (Some(dictionary.digest()), None));
    assert!(apply(&patch, &old).unwrap() == new);
    // None of the blocks is short, so that nothing is said of it.
    let large = PatchOptions { block_bytes: Some(MAX_BLOCK_BYTES), ..with_it };
    let patch = encode(&old, &text(MAX_BLOCK_BYTES as usize), &large).unwrap();
    assert_eq!(Patch::parse(&patch).unwrap().head().dictionary(), None);
}

#[test]
fn codec_of_a_dictionary_in_a_patch_that_names_none_is_refused_and_so_is_a_name_cut_short() {
    let (_, _, patch) = sample();
    for length in 0..patch.len() {
        assert!(matches!(Patch::parse(&patch[..length]), Err(PatchError::Truncated { .. })), "{length}");
    }
    let mut nameless = [&patch[..32], &patch[48..]].concat();
    nameless[5] = 0;
    let refused = Patch::parse(&nameless).unwrap_err();
    assert!(matches!(refused, PatchError::Entry { entry: 0, kind: 0, codec: 3, .. }), "{refused:?}");
}

#[test]
fn damage_to_what_a_dictionary_made_is_found() {
    let (record, dictionary, patch) = sample();
    let mut refused = 0;
    for bit in 0..patch.len() * 8 {
        let mut damaged = patch.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match applied(&damaged, b"", &dictionary) {
            Ok(made) => assert!(made == record),
            Err(PatchError::Codec { source: CodecError::OutOfMemory { .. }, .. }) => panic!("bit {bit}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > patch.len() * 6);
}

proptest! {
    #[test]
    fn every_target_is_given_back_by_a_patch_that_may_use_a_dictionary(
        old in prop::collection::vec(0..450_usize, 0..40),
        new in prop::collection::vec(0..450_usize, 0..40),
        more in prop::collection::vec(any::<u8>(), 0..300),
        search in any::<bool>(),
    ) {
        let all = records(450);
        let join = |numbers: &[usize]| numbers.iter().flat_map(|number| all[*number].clone()).collect::<Vec<u8>>();
        let (old, mut new) = (join(&old), join(&new));
        new.extend(more);
        let dictionary = Arc::new(trained());
        let options = PatchOptions { dictionary: Some(&dictionary), search, ..small() };
        let patch = encode(&old, &new, &options).unwrap();
        prop_assert!(applied(&patch, &old, &dictionary).unwrap() == new);
        let mut held = old.clone();
        held.resize(new.len(), b'x');
        let patch_in_place = encode(&held, &new, &options).unwrap();
        let parsed = Patch::parse(&patch_in_place).unwrap();
        let uses_it = parsed.needed_dictionary().is_some();
        let without = parsed.clone().apply_in_place(&mut held.clone(), 2);
        prop_assert_eq!(without.is_err(), uses_it);
        parsed.with_dictionary(Some(&dictionary)).unwrap().apply_in_place(&mut held, 2).unwrap();
        prop_assert!(held == new);
        prop_assert!(patch.len() <= encode(&old, &new, &small()).unwrap().len() + 16 + 64);
    }
}
