//! Patches whose check is made right after they were changed, so that what lies behind the check is reached.
#![no_main]

use dwcp_codec::patch::{self, EntryDecoder, Patch, PatchOptions};
use dwcp_fuzz::patches::seal;
use libfuzzer_sys::fuzz_target;

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
