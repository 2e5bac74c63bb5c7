//! Chains of patches on files, the chain or the journal of a change damaged: a file is the old version or the new one.
#![no_main]

use std::fs;

use dwcp_codec::patch::{self, PatchOptions};
use dwcp_fuzz::patches::seal;
use dwcp_fuzz::versions::{change, noise};
use dwcp_store::StoreError;
use dwcp_store::patching::{apply_files, apply_in_place, read_chain, recover};
use libfuzzer_sys::fuzz_target;

fn go_on() -> Result<(), StoreError> {
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((&[seed, count, at_low, at_mid, at_high, flip, start], told)) = data.split_first_chunk() else {
        return;
    };
    let directory = tempfile::tempdir().expect("there is room");
    let at = |name: &str| directory.path().join(name);
    let options = PatchOptions { block_bytes: Some(0x1_0000), ..PatchOptions::default() };
    let mut versions = vec![noise(seed, usize::from(seed) * 600)];
    let mut chain = Vec::new();
    for step in told.as_chunks().0.iter().take(usize::from(count % 3) + 1) {
        let mut next = versions[versions.len() - 1].clone();
        change(&mut next, step);
        let mut encoded =
            patch::encode(&versions[versions.len() - 1], &next, &options).expect("options are valid");
        if usize::from(start) / 4 == versions.len() {
            let place = u32::from_le_bytes([at_low, at_mid, at_high, 0]) as usize % encoded.len();
            encoded[place] ^= flip;
            seal(&mut encoded);
        }
        chain.extend(encoded);
        versions.push(next);
    }
    let last = &versions[versions.len() - 1];
    let held = &versions[usize::from(start) % versions.len()];
    fs::write(at("chain"), &chain).expect("there is room");
    fs::write(at("held"), held).expect("there is room");
    fs::write(at("made"), b"").expect("there is room");
    let readable = read_chain(&at("chain"), &go_on).is_ok();

    let made = apply_files(&at("chain"), &at("held"), &at("made"), 1, &go_on);
    if made.is_ok() {
        assert!(readable && fs::read(at("made")).expect("it is there") == *last);
    }
    let done = apply_in_place(&at("chain"), &at("held"), 1, &go_on);
    let now = fs::read(at("held")).expect("it is there");
    if done.is_ok() {
        // A version that comes twice may be taken for the later.
        assert!(now == *last);
    } else {
        assert!(versions.contains(&now));
    }
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .expect("it is there")
        .map(|entry| entry.expect("it is there").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["chain", "held", "made"]);

    // Any bytes as a journal, and no damage by them.
    fs::write(at(".held.dwcp-journal"), &told[..told.len().min(4096)]).expect("there is room");
    let _ = recover(&at("held"), &go_on);
    assert!(fs::read(at("held")).expect("it is there") == now);
});
