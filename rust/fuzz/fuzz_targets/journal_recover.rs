//! Journals with right digests and a right check, whatever they say: a file becomes what the journal ends with, or
//! stays what it is.
#![no_main]

use std::fs;

use dwcp_codec::Digest;
use dwcp_codec::digest::{self, check64};
use dwcp_fuzz::versions::noise;
use dwcp_store::StoreError;
use dwcp_store::patching::{Recovery, recover};
use libfuzzer_sys::fuzz_target;

const SEED: u64 = 0x6477_636a;

fn tree(bytes: &[u8], block_bytes: u32) -> Digest {
    digest::tree(bytes.len() as u64, block_bytes, &digest::leaves_of(bytes, block_bytes))
}

fuzz_target!(|data: &[u8]| {
    let Some((&[file, block, base, target, knobs, flip, at_low, at_high], rest)) = data.split_first_chunk()
    else {
        return;
    };
    let directory = tempfile::tempdir().expect("there is room");
    let (path, journal) = (directory.path().join("held"), directory.path().join(".held.dwcp-journal"));
    // Small blocks are as good as large ones, and quicker.
    let block_bytes = u32::from(block) * 16 + u32::from(knobs & 1);
    let held = noise(file, usize::from(file) * 40);
    let (base_size, target_size) = (usize::from(base) * 40, usize::from(target) * 40);
    let mut records = Vec::new();
    let mut made = held.clone();
    made.resize(target_size, 0);
    for &[index, value] in rest.as_chunks().0.iter().take(20) {
        let start = usize::from(index) * block_bytes as usize;
        let length = target_size.saturating_sub(start).min(block_bytes as usize);
        let bytes = noise(value, length);
        records.push((u32::from(index), bytes));
    }
    for (index, bytes) in &records {
        if !bytes.is_empty() {
            made[*index as usize * block_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    let mut head = b"DWCJ\x01\0\0\0".to_vec();
    head.extend(block_bytes.to_le_bytes());
    head.extend([0; 4]);
    head.extend((base_size as u64).to_le_bytes());
    head.extend((target_size as u64).to_le_bytes());
    let base_digest = if knobs & 2 == 0 { tree(&held, block_bytes.max(1)) } else { Digest([base; 16]) };
    let target_digest = if knobs & 4 == 0 { tree(&made, block_bytes.max(1)) } else { Digest([target; 16]) };
    head.extend(base_digest.0);
    head.extend(target_digest.0);
    let mut bytes = head.clone();
    let mut fields = head;
    for (index, block) in &records {
        let mut record = index.to_le_bytes().to_vec();
        record.extend((block.len() as u32).to_le_bytes());
        record.extend(Digest::of(block).0);
        bytes.extend(&record);
        bytes.extend(block);
        fields.extend(record);
    }
    let count = (records.len() as u32).to_le_bytes();
    bytes.extend(b"DONE");
    bytes.extend(count);
    bytes.extend(check64(SEED, &[&fields, &count]).to_le_bytes());
    let at = usize::from(u16::from_le_bytes([at_low, at_high])) % bytes.len();
    if knobs & 8 == 0 {
        bytes[at] ^= flip;
    } else {
        bytes.truncate(at);
    }
    fs::write(&path, &held).expect("there is room");
    fs::write(&journal, &bytes).expect("there is room");
    let recovery = recover(&path, &|| Ok::<(), StoreError>(()));
    let now = fs::read(&path).expect("it is there");
    match recovery {
        Ok(Recovery::Finished) => {
            assert!(
                !journal.exists() && tree(&now, block_bytes) == target_digest && now.len() == target_size
            );
        }
        Ok(Recovery::Discarded) => assert!(!journal.exists() && now == held),
        Ok(Recovery::Nothing) => panic!("there was a journal"),
        Err(_) => assert!(journal.exists() && now == held),
    }
});
