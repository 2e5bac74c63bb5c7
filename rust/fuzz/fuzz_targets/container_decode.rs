//! Containers: no input panics, decodes past the limit, or decodes differently in the two ways of reading it.
#![no_main]

use std::mem::MaybeUninit;

use dwcp_codec::{Decompressor, container};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut decompressor = Decompressor::new();
    let mut appended = Vec::new();
    let by_appending = container::decompress(&mut decompressor, None, data, LIMIT as u64, &mut appended);
    assert!(appended.len() <= LIMIT);
    let mut buffer = vec![MaybeUninit::uninit(); LIMIT];
    let into_buffer = container::decompress_into(&mut decompressor, None, data, &mut buffer);
    if by_appending.is_ok() {
        assert_eq!(into_buffer.expect("the same bytes were decoded before"), appended.len());
    }
});
