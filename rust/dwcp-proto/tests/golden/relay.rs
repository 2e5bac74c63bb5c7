//! The frames of a relay that were made by hand as `docs/format.md` has them; `tests/oracle/making.py` says what they are.

use dwcp_proto::frame::{FEATURE_RELAY, RecordWord};

use super::*;

fn frames(name: &str) -> Vec<(Frame, Vec<u8>)> {
    let bytes = std::fs::read(directory().join("../relay").join(name)).unwrap();
    let (preface, mut rest) = bytes.split_at(PREFACE_BYTES);
    assert_eq!(preface, preface::encode(3, 3));
    let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
    let (mut read, mut again) = (vec![], preface.to_vec());
    while !rest.is_empty() {
        let (header, after) = rest.split_at(HEADER_BYTES);
        let pending = decoder.header(header.try_into().unwrap()).unwrap();
        let (head, after) = after.split_at(pending.head_len);
        let (body, after) = after.split_at(pending.body_len);
        let frame = decoder.head(pending, head).unwrap();
        encoder.encode(&frame, body.len() as u32, &mut again).unwrap();
        again.extend(body);
        if read.is_empty() {
            decoder.set_session(&SESSION);
            encoder.set_session(&SESSION);
        }
        read.push((frame, body.to_vec()));
        rest = after;
    }
    // There is one way to write a frame.
    assert!(again == bytes, "{name} is written differently");
    read
}

#[test]
fn frames_of_relays_that_were_made_by_hand_are_read_and_written_the_same() {
    let (sent, back) = (frames("source.bin"), frames("target.bin"));
    assert!(matches!(&sent[0].0, Frame::Hello(hello) if hello.features == FEATURE_RELAY));
    assert!(matches!(&back[0].0, Frame::Welcome(welcome) if welcome.features == FEATURE_RELAY));
    let pages: usize = back
        .iter()
        .map(|(frame, _)| if let Frame::Base(part) = frame { part.digests.len() } else { 0 })
        .sum();
    assert!(back.iter().any(
        |(frame, _)| matches!(frame, Frame::Relay(relay) if relay.ready && relay.base_pages == pages as u64)
    ));
    let mut words = vec![];
    for (frame, body) in sent.iter().chain(&back) {
        let Frame::Record(head) = frame else { continue };
        words.push(head.word as u8);
        let mut raw = vec![0; head.raw_len as usize];
        if head.raw_len > 0 {
            BlockDecoder::new().decode(head.kind, head.codec, body, None, &mut raw).unwrap();
        }
        assert_eq!(Digest::of(&raw), head.digest);
    }
    words.sort_unstable();
    words.dedup();
    assert_eq!(words, (RecordWord::Opens as u8..=RecordWord::Reset as u8).collect::<Vec<_>>());
}
