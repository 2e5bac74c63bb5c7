//! Patches whose digests and check are made right again after they were changed, so that what lies behind is reached.

use std::ops::Range;

use dwcp_codec::Digest;
use dwcp_codec::digest::{self, check64};
use dwcp_codec::patch::{EntryDecoder, Patch, PatchError};

/// Bytes before the first entry.
pub const HEAD: usize = 32;
/// Bytes of the fields of an entry, and of one whose blocks are as in the base.
pub const ENTRY: usize = 24;
const SAME: usize = 8;
/// Bytes behind the last entry.
pub const TAIL: usize = 48;
const SEED: u64 = 0x6477_6364;

/// Where the fields of the entries are, as far as there are any; the last is where they end.
fn entries(patch: &[u8]) -> Vec<Range<usize>> {
    let mut entries = Vec::new();
    let mut at = HEAD;
    while at + TAIL <= patch.len() && patch[at] != 255 {
        let length =
            u32::from_le_bytes([patch[at + 4], patch[at + 5], patch[at + 6], patch[at + 7]]) as usize;
        let (fields, payload) = if patch[at] == 16 { (SAME, 0) } else { (ENTRY, length) };
        entries.push(at..at + fields);
        at = at.saturating_add(fields).saturating_add(payload);
    }
    entries.push(at..at);
    entries
}

/// Writes the check that goes with what is found in a patch.
pub fn seal(patch: &mut [u8]) {
    if patch.len() < HEAD {
        return;
    }
    let mut parts = entries(patch);
    let at = parts.pop().map_or(HEAD, |end| end.start);
    if at + TAIL <= patch.len() {
        parts.insert(0, 0..HEAD);
        parts.push(at..at + TAIL - 8);
        let slices: Vec<&[u8]> = parts.into_iter().map(|range| &patch[range]).collect();
        let check = check64(SEED, &slices);
        patch[at + TAIL - 8..at + TAIL].copy_from_slice(&check.to_le_bytes());
    }
}

/// Makes a patch of this base consistent, whatever its payloads say, and gives the target that it then leads to; `None`
/// if it is refused or has a target longer than `limit`.
pub fn make_consistent(encoded: &mut [u8], old: &[u8], limit: u64) -> Option<Vec<u8>> {
    seal(encoded);
    let (blocks, block_bytes) = {
        let patch = Patch::parse(encoded).ok()?;
        if patch.target_size() > limit || patch.base_size() != old.len() as u64 {
            return None;
        }
        (patch.block_count(), patch.block_bytes())
    };
    let mut made = Vec::new();
    for index in 0..blocks {
        let patch = Patch::parse(encoded).ok()?;
        let range = patch.target_range(index.into());
        let mut block = vec![0; (range.end - range.start) as usize];
        match patch.decode_block(&mut EntryDecoder::new(), index, old, &mut block) {
            Ok(()) => {}
            Err(PatchError::BlockMismatch { index: wrong, actual, .. }) if wrong == index => {
                let number = patch.entries().iter().position(|entry| entry.first == index)?;
                let fields = entries(encoded).into_iter().nth(number)?;
                encoded[fields.start + 8..fields.end].copy_from_slice(&actual.0);
                seal(encoded);
            }
            Err(_) => return None,
        }
        made.extend(block);
    }
    let end = entries(encoded).pop()?.start;
    for (at, object) in [(end + 8, old), (end + 24, &made[..])] {
        let Digest(tree) =
            digest::tree(object.len() as u64, block_bytes, &digest::leaves_of(object, block_bytes));
        encoded[at..at + 16].copy_from_slice(&tree);
    }
    seal(encoded);
    Some(made)
}
