//! Patches whose check is made right after they were changed, so that what lies behind the check is reached.
#![no_main]

use dwcp_codec::digest::check64;
use dwcp_codec::patch::{self, EntryDecoder, Patch, PatchOptions};
use libfuzzer_sys::fuzz_target;

const HEAD: usize = 32;
const TAIL: usize = 48;
const SEED: u64 = 0x6477_6364;

/// Walks over entries as far as there are any, and writes the check that goes with what was found.
fn seal(patch: &mut [u8]) {
    let mut parts = vec![0..HEAD];
    let mut at = HEAD;
    while at + TAIL <= patch.len() && patch[at] != 255 {
        let length = u32::from_le_bytes([patch[at + 4], patch[at + 5], patch[at + 6], patch[at + 7]]) as usize;
        let (fields, payload) = if patch[at] == 16 { (8, 0) } else { (24, length) };
        parts.push(at..at + fields);
        at = at.saturating_add(fields).saturating_add(payload);
    }
    if at + TAIL <= patch.len() {
        parts.push(at..at + TAIL - 8);
        let slices: Vec<&[u8]> = parts.into_iter().map(|range| &patch[range]).collect();
        let check = check64(SEED, &slices);
        patch[at + TAIL - 8..at + TAIL].copy_from_slice(&check.to_le_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[cut, changes, ref places @ ..], rest)) = data.split_first_chunk::<18>() else { return };
    let (old, new) = rest.split_at(rest.len() * usize::from(cut) / 256);
    let options = PatchOptions { block_bytes: Some(0x1_0000), ..PatchOptions::default() };
    let mut encoded = patch::encode(old, new, &options).expect("options are valid");
    for place in places.chunks(4).take(usize::from(changes % 5)) {
        let at = usize::from(u16::from_le_bytes([place[0], place[1]])) % encoded.len();
        encoded[at] ^= place[2];
    }
    seal(&mut encoded);
    let Ok(patch) = Patch::parse(&encoded) else { return };
    if patch.target_size() > 1 << 22 {
        return;
    }
    let mut made = vec![0; patch.target_size() as usize];
    let _ = patch.apply(old, &mut made, 2);
    let mut held = old.to_vec();
    if patch.apply_in_place(&mut held, 1).is_err() {
        assert!(held == old);
    }
    let mut decoder = EntryDecoder::new();
    let mut block = Vec::new();
    for index in 0..patch.block_count() {
        let range = patch.target_range(index.into());
        block.resize((range.end - range.start) as usize, 0);
        let _ = patch.decode_block(&mut decoder, index, old, &mut block);
    }
});
