//! Patches: arbitrary bytes as a patch, and a true patch with bytes changed, which must be refused or change nothing.
#![no_main]

use dwcp_codec::PatchError;
use dwcp_codec::patch::{self, EntryDecoder, Patch, PatchOptions};
use libfuzzer_sys::fuzz_target;

const TARGET_LIMIT: u64 = 1 << 20;

fn apply(patch: &[u8], old: &[u8]) -> Result<Vec<u8>, PatchError> {
    let patch = Patch::parse(patch)?;
    let mut new = vec![0; patch.target_size().min(TARGET_LIMIT) as usize];
    patch.apply(old, &mut new, 1).map(|()| new)
}

fuzz_target!(|data: &[u8]| {
    let _ = apply(data, b"");

    let Some((&[width, at_low, at_high, flip, cut], rest)) = data.split_first_chunk() else { return };
    let (old, new) = rest.split_at(rest.len() * usize::from(cut) / 256);
    let width = [None, Some(1), Some(2), Some(4), Some(8)][usize::from(width % 5)];
    let options = PatchOptions { block_bytes: Some(0x1_0000), width, ..PatchOptions::default() };
    let mut encoded = patch::encode(old, new, &options).expect("options are valid");
    assert!(apply(&encoded, old).as_deref() == Ok(new));
    let at = usize::from(u16::from_le_bytes([at_low, at_high])) % encoded.len();
    encoded[at] ^= flip;
    if let Ok(read) = apply(&encoded, old) {
        assert!(read == new);
    }
    if old.len() == new.len() {
        let mut held = old.to_vec();
        let done = Patch::parse(&encoded).and_then(|patch| patch.apply_in_place(&mut held, 1));
        assert!(held == if done.is_ok() { new } else { old });
    }
    if let Ok(patch) = Patch::parse(&encoded)
        && patch.target_size() == new.len() as u64
    {
        let mut decoder = EntryDecoder::new();
        for (index, block) in (0..).zip(new.chunks(patch.block_bytes() as usize)) {
            let mut made = vec![0; block.len()];
            let _ = patch.decode_block(&mut decoder, index, old, &mut made);
        }
    }
});
