//! Dictionaries: any bytes as one, and containers that claim to be made with it.
#![no_main]

use std::mem::MaybeUninit;

use dwcp_codec::container::{self, CodecChoice, ContainerOptions};
use dwcp_codec::{Compressor, Decompressor, Dictionary};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((&[cut, flip, at_low, at_high], rest)) = data.split_first_chunk() else { return };
    let (dictionary, content) = rest.split_at(rest.len() * usize::from(cut) / 256);
    let Ok(dictionary) = Dictionary::new(dictionary.to_vec()) else { return };
    let mut decompressor = Decompressor::new();
    let mut decode = |bytes: &[u8]| {
        let mut out = Vec::new();
        let done = container::decompress(&mut decompressor, Some(&dictionary), bytes, LIMIT as u64, &mut out);
        assert!(out.len() <= LIMIT);
        let mut buffer = vec![MaybeUninit::uninit(); LIMIT];
        let into = container::decompress_into(&mut decompressor, Some(&dictionary), bytes, &mut buffer);
        if done.is_ok() {
            assert_eq!(into, Ok(out.len()));
        }
        done.map(|()| out)
    };
    let options =
        ContainerOptions { choice: CodecChoice::Auto, checksum: true, dictionary: Some(&dictionary) };
    let mut made = Vec::new();
    if container::compress(&mut Compressor::new(), &options, content, &mut made).is_ok() {
        assert!(decode(&made).as_deref() == Ok(content));
        let at = usize::from(u16::from_le_bytes([at_low, at_high])) % made.len();
        made[at] ^= flip;
        // Its flag may be what was changed: then nothing proves it.
        if at != 6
            && let Ok(read) = decode(&made)
        {
            assert!(read == content);
        }
    }
    // A right head in front of any payload.
    let mut claimed = b"DWCB\x01\x02\x02\0".to_vec();
    claimed.extend(u64::from(u16::from_le_bytes([at_low, at_high])).to_le_bytes());
    claimed.extend(dictionary.digest().0);
    claimed.extend(content);
    let _ = decode(&claimed);
});
