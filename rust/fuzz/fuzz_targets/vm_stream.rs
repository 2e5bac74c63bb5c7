//! Streams of a migration: whatever the bytes are and in whatever pieces they come, they come out as they were. The
//! first two bytes choose the length of the pieces and how many pages are held.
#![no_main]

use dwcp_vm::{MAX_CHUNK_BYTES, MAX_ITEM_BYTES, NoBase, PageDecoder, PageEncoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[piece, slots], stream)) = data.split_first_chunk() else { return };
    let cache = u64::from(slots) * 4_192;
    let mut encoder = PageEncoder::new(cache, None, None);
    let mut decoder = PageDecoder::new(cache, Box::new(NoBase), None);
    let (mut held, mut out) = (Vec::new(), Vec::new());
    let mut rest = stream;
    while !rest.is_empty() || !held.is_empty() {
        let (next, tail) = rest.split_at(rest.len().min(usize::from(piece) * 40 + 1));
        held.extend_from_slice(next);
        rest = tail;
        let mut chunk = Vec::new();
        let taken = encoder.encode(&held, rest.is_empty(), &mut chunk);
        assert!(taken > 0 || held.len() < MAX_ITEM_BYTES);
        assert!(chunk.len() <= MAX_CHUNK_BYTES);
        held.drain(..taken);
        if taken > 0 {
            decoder.decode(&chunk, &mut out).unwrap();
        }
    }
    assert!(out == stream);
});
