//! Versions of an object of several blocks, told by few bytes.

use dwcp_codec::patch::MIN_BLOCK_BYTES;

/// The size of their blocks.
pub const BLOCK: usize = MIN_BLOCK_BYTES as usize;

/// Bytes that do not repeat.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(seed) << 8 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Changes `object` as the five bytes of `step` say.
pub fn change(object: &mut Vec<u8>, step: &[u8; 5]) {
    let [what, block, low, high, value] = *step;
    let at =
        (usize::from(block % 6) * BLOCK + usize::from(u16::from_le_bytes([low, high]))).min(object.len());
    let length = (usize::from(value) * 311).min(object.len() - at);
    match what % 8 {
        0 => object[at..at + length].fill(value),
        1 => object[at..at + length].copy_from_slice(&noise(value, length)),
        // Elements here and there.
        2 => {
            object[at..].iter_mut().step_by(usize::from(value) * 2 + 2).take(500).for_each(|byte| *byte ^= 1)
        }
        // Moved down or up, which segments tell.
        3 => {
            let to = (usize::from(value) * 1009).min(object.len() - length);
            object.copy_within(at..at + length, to);
        }
        4 => drop(object.splice(at..at, noise(low, usize::from(value)))),
        5 => drop(object.drain(at..at + length.min(5_000))),
        6 => object.truncate(at),
        _ => object.extend(noise(value, usize::from(value) * 200)),
    }
    object.truncate(6 * BLOCK);
}

/// A version, and what the steps in `told` make of it.
pub fn pair(seed: u8, told: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let length = usize::from(seed) * 1200;
    let mut old = noise(seed, length);
    old[length / 2..].fill(seed);
    let mut new = old.clone();
    told.as_chunks().0.iter().for_each(|step| change(&mut new, step));
    (old, new)
}
