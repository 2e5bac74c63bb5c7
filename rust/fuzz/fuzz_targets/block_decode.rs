//! Blocks: the first bytes choose kind, codec, lengths; the rest is split into base and wire bytes. What the codec of
//! transfers with a dictionary is given is the base for a dictionary.
#![no_main]

use dwcp_codec::{CodecId, Dictionary};
use dwcp_codec::block::{BlockDecoder, BlockKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, codec, low, high, base_length], rest)) = data.split_first_chunk() else { return };
    if codec == CodecId::ZstdDictionary as u8 {
        let (content, wire) = rest.split_at(rest.len().min(base_length.into()));
        let Ok(dictionary) = Dictionary::new(content.to_vec()) else { return };
        let decode = |fill| {
            let mut dst = vec![fill; usize::from(u16::from_le_bytes([low, high]))];
            BlockDecoder::new().decode_with(&dictionary, wire, &mut dst).map(|()| dst)
        };
        assert_eq!(decode(0x00), decode(0xff));
        return;
    }
    let (Ok(kind), Ok(codec)) = (BlockKind::try_from(kind), CodecId::try_from(codec)) else { return };
    let (base, wire) = rest.split_at(rest.len().min(base_length.into()));
    let length = usize::from(u16::from_le_bytes([low, high]));
    // A base that is there at all is repeated, so that kinds that need all of it get further.
    let base: Vec<u8> = base.iter().copied().cycle().take(length).collect();
    let base = (!base.is_empty()).then_some(&base[..]);
    let mut decoder = BlockDecoder::new();
    let mut decode = |fill| {
        let mut dst = vec![fill; length];
        decoder.decode(kind, codec, wire, base, &mut dst).map(|()| dst)
    };
    let decoded = decode(0x00);
    // What was in the output before must not show.
    assert_eq!(decoded, decode(0xff));
    if let Some(base) = base {
        let mut dst = base.to_vec();
        let done = decoder.decode_onto(kind, codec, wire, &mut dst);
        if kind.is_undoable() && done.is_err() {
            assert!(dst == base);
        }
        assert_eq!(done.map(|()| dst.clone()), decoded);
        if kind.is_undoable() && decoded.is_ok() && length.is_multiple_of(8) {
            assert_eq!(decoder.undo_onto(kind, wire, &mut dst), Ok(()));
            assert!(dst == base);
        }
    }
});
