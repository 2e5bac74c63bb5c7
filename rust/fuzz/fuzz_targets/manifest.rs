//! Manifests: the heads of MANIFEST frames put together; one that is taken is cut into the same frames again.
#![no_main]

use dwcp_codec::digest::check64;
use dwcp_proto::frame::{Frame, FrameDecoder, FrameEncoder, ManifestPart, Offer};
use dwcp_proto::limits::{HEADER_BYTES, Limits, MAX_HEAD};
use dwcp_proto::manifest::{Entry, Manifest, ManifestAssembly};
use libfuzzer_sys::fuzz_target;

const KIND: u8 = 4;

fn part(head: &[u8]) -> Option<ManifestPart> {
    let mut bytes = vec![KIND, 0, 0, 0];
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(check64(0, &[&bytes, head]).to_le_bytes());
    let mut decoder = FrameDecoder::new();
    let pending = decoder.header(bytes.first_chunk()?).ok()?;
    match decoder.head(pending, head) {
        Ok(Frame::Manifest(part)) => Some(part),
        _ => None,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[block, cut_low, cut_high], heads)) = data.split_first_chunk() else { return };
    let block_bytes = 1_u32.checked_shl(u32::from(block)).unwrap_or(3);
    let cut = usize::from(u16::from_le_bytes([cut_low, cut_high])).min(heads.len());
    let parts = [&heads[..cut], &heads[cut..]].map(part);
    let entries: Vec<Entry> = parts.iter().flatten().flat_map(|part| part.entries.clone()).collect();
    let Ok(manifest) = Manifest::new(block_bytes, entries.clone(), &Limits::default()) else { return };
    assert_eq!(manifest.entries(), entries);
    let blocks: u64 = (0..entries.len() as u32).map(|index| u64::from(manifest.blocks_of(index))).sum();
    assert_eq!(blocks, manifest.total_blocks());
    for index in 0..entries.len() as u32 {
        let count = manifest.blocks_of(index);
        if let Some(last) = count.checked_sub(1) {
            assert!(manifest.block_len(index, last) > 0 && manifest.block_len(index, count) == 0);
        }
    }
    let offer = Offer {
        transfer_id: manifest.transfer_id(),
        block_bytes,
        entries: entries.len() as u32,
        total_bytes: manifest.total_bytes(),
        base_allowed: false,
        repeats: 0,
        number: 0,
    };
    let mut assembly = ManifestAssembly::new(offer, &Limits::default()).expect("it is within the limits");
    let mut is_whole = false;
    for part in manifest.parts() {
        let mut bytes = Vec::new();
        FrameEncoder::new().encode(&Frame::Manifest(part.clone()), 0, &mut bytes).expect("a part fits");
        assert!(!is_whole && bytes.len() <= HEADER_BYTES + MAX_HEAD);
        assert_eq!(self::part(&bytes[HEADER_BYTES..]).as_ref(), Some(&part));
        is_whole = assembly.push(part).expect("it follows the one before");
    }
    assert!(is_whole && assembly.finish().as_ref() == Ok(&manifest));
});
