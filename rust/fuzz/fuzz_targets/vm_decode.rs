//! Chunks of a migration, one after the other, each behind its length in two bytes. The digest is checked last, so that the
//! operations are reached without it.
#![no_main]

use dwcp_vm::{MAX_STREAM_BYTES, NoBase, PageDecoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut decoder = PageDecoder::new(8 * 4_192, Box::new(NoBase), None);
    let mut rest = data;
    while let Some((&[low, high], tail)) = rest.split_first_chunk() {
        let (chunk, after) = tail.split_at(tail.len().min(usize::from(u16::from_le_bytes([low, high]))));
        rest = after;
        let mut out = Vec::new();
        // What was decoded before a fault stays in the decoder, which is of no more use; here it is used all the same.
        match decoder.decode(chunk, &mut out) {
            Ok(()) => assert!(out.len() <= MAX_STREAM_BYTES),
            Err(_) => assert!(out.is_empty()),
        }
    }
});
