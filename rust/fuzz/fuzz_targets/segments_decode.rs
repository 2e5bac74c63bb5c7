//! Copies and splices: the first bytes choose kind, base and block, the rest is the payload.
#![no_main]

use dwcp_codec::matcher::{Memory, Origin};
use dwcp_codec::segments::{Bounds, SegmentCoder, SegmentKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, base_length, low, high, offset], payload)) = data.split_first_chunk() else { return };
    let kind = if kind % 2 == 0 { SegmentKind::Copy } else { SegmentKind::Splice };
    let (base, target) = (vec![0x55; usize::from(base_length) * 16], vec![0xaa; usize::from(offset) * 16]);
    let block_bytes = usize::from(u16::from_le_bytes([low, high]));
    let (base_size, block_offset) = (base.len() as u64, target.len() as u64);
    let mut coder = SegmentCoder::new();
    let parsed = coder.parse(kind, payload, Bounds { base_size, block_offset, block_bytes });
    for segment in parsed.iter().flatten() {
        let size = if segment.origin == Origin::Base { base_size } else { block_offset };
        assert!(segment.length > 0 && segment.end() <= size);
    }
    let mut decode = |fill| {
        let mut memory = Memory { base: &base, target: &target };
        let mut dst = vec![fill; block_bytes];
        coder.decode(kind, payload, base_size, block_offset, &mut memory, &mut dst).map(|()| dst)
    };
    // What was in the output before must not show.
    let decoded = decode(0x00);
    assert_eq!(decoded, decode(0xff));
    assert!(decoded.is_err() || parsed.is_ok());
});
