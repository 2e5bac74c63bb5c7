//! Sequences of changes to a held version: whole versions, masks, sparse assignments, and patches, true or changed.
#![no_main]

use dwcp_codec::PatchError;
use dwcp_codec::digest;
use dwcp_codec::patch::{self, Mask, Patch, PatchOptions, Snapshot, SnapshotOptions};
use dwcp_fuzz::patches::seal;
use dwcp_fuzz::versions::{change, noise};
use libfuzzer_sys::fuzz_target;

fn go_on() -> Result<(), PatchError> {
    Ok(())
}

/// Proves that the snapshot holds `new`, and that `patch` leads there from `old`.
fn expect(snapshot: &Snapshot, old: &[u8], new: &[u8], patch: &[u8]) {
    assert!(snapshot.bytes() == new);
    assert_eq!(
        snapshot.digest(),
        digest::tree(new.len() as u64, 0x1_0000, &digest::leaves_of(new, 0x1_0000))
    );
    let mut made = vec![0; new.len()];
    assert_eq!(Patch::parse(patch).and_then(|patch| patch.apply(old, &mut made, 1)), Ok(()));
    assert!(made == new);
}

fuzz_target!(|data: &[u8]| {
    let Some((&[seed, width], told)) = data.split_first_chunk() else { return };
    let width = [None, Some(1), Some(2), Some(4), Some(8)][usize::from(width % 5)];
    let options =
        SnapshotOptions { block_bytes: 0x1_0000, width, search: seed % 2 == 0, ..SnapshotOptions::default() };
    let mut held = noise(seed, usize::from(seed) * 800);
    let mut snapshot = Snapshot::new(held.clone(), options, 1).expect("options are valid");
    for step in told.as_chunks::<7>().0.iter().take(6) {
        let [how, extra, step @ ..] = step;
        let mut new = held.clone();
        change(&mut new, step);
        let elements = held.len() / usize::from(width.unwrap_or(1));
        let as_long = new.len() == held.len();
        match how % 5 {
            0 => {
                let patch = snapshot.advance::<PatchError>(&new, 2, go_on).expect("any version can be next");
                expect(&snapshot, &held, &new, &patch);
            }
            1 | 2 => {
                // What the mask does not name is not to be taken.
                let named = noise(*extra, elements);
                let bits: Vec<u8> = named
                    .chunks(8)
                    .map(|group| {
                        group.iter().zip(0..).fold(0, |bits, (byte, bit)| bits | u8::from(*byte > 200) << bit)
                    })
                    .collect();
                let bytes: Vec<u8> = named.iter().map(|byte| u8::from(*byte > 200)).collect();
                let mask = if how % 5 == 1 { Mask::Bytes(&bytes) } else { Mask::Bits(&bits) };
                let done = snapshot.advance_masked::<PatchError>(&new, mask, 1, go_on);
                assert_eq!(done.is_ok(), as_long);
                let Ok(patch) = done else { continue };
                let mut masked = held.clone();
                let width = usize::from(width.unwrap_or(1));
                for (element, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                    let at = element * width;
                    masked[at..at + width].copy_from_slice(&new[at..at + width]);
                }
                expect(&snapshot, &held, &masked, &patch);
                new = masked;
            }
            3 => {
                let width = usize::from(width.unwrap_or(1));
                let index: Vec<u64> = noise(*extra, usize::from(step[4]) * 8)
                    .as_chunks()
                    .0
                    .iter()
                    .map(|word| u64::from_le_bytes(*word) % (elements as u64 + u64::from(*extra == 7)).max(1))
                    .collect();
                let values = noise(step[0], index.len() * width);
                let mut named = index.clone();
                named.sort_unstable();
                let is_valid = named.windows(2).all(|pair| pair[0] != pair[1])
                    && named.last().is_none_or(|last| *last < elements as u64);
                let done = snapshot.advance_sparse::<_, PatchError>(&index, &values, 1, go_on);
                assert_eq!(done.is_ok(), is_valid, "{done:?}");
                let Ok(patch) = done else { continue };
                new = held.clone();
                for (element, value) in index.iter().zip(values.chunks_exact(width)) {
                    new[*element as usize * width..][..width].copy_from_slice(value);
                }
                expect(&snapshot, &held, &new, &patch);
            }
            _ => {
                let options = PatchOptions { block_bytes: Some(0x1_0000), ..PatchOptions::default() };
                let mut encoded = patch::encode(&held, &new, &options).expect("options are valid");
                let at = usize::from(*extra) * 7919 % encoded.len();
                encoded[at] ^= step[4] & 0x11;
                seal(&mut encoded);
                let done =
                    Patch::parse(&encoded).and_then(|patch| snapshot.apply::<PatchError>(&patch, 2, go_on));
                if done.is_err() {
                    assert!(snapshot.bytes() == held);
                    continue;
                }
                assert!(snapshot.bytes() == new);
                // Once more changes nothing.
                let again =
                    Patch::parse(&encoded).and_then(|patch| snapshot.apply::<PatchError>(&patch, 1, go_on));
                assert!(again == Ok(()) && snapshot.bytes() == new);
            }
        }
        held = new;
    }
});
