//! Prefaces and frames: arbitrary bytes as a stream, and as the head of any frame with a right check. What is taken can
//! be written and is read back the same.
#![no_main]

use dwcp_codec::digest::check64;
use dwcp_proto::frame::{Frame, FrameDecoder, FrameEncoder, SessionId};
use dwcp_proto::limits::{HEADER_BYTES, PREFACE_BYTES};
use dwcp_proto::{ProtoError, ledger, preface};
use libfuzzer_sys::fuzz_target;

const SESSION: SessionId = SessionId([7; 16]);

fn decode(bytes: &[u8], in_session: bool) -> Result<Option<(Frame, usize)>, ProtoError> {
    let mut decoder = FrameDecoder::new();
    if in_session {
        decoder.set_session(&SESSION);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let pending = decoder.header(header)?;
    let Some(head) = rest.get(..pending.head_len) else { return Ok(None) };
    let body_len = pending.body_len;
    decoder.head(pending, head).map(|frame| Some((frame, body_len)))
}

/// A frame with a right header around `head`.
fn sealed(kind: u8, body_len: u32, head: &[u8], in_session: bool) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend(body_len.to_le_bytes());
    bytes.extend([0; 4]);
    let check = check64(if in_session { SESSION.seed() } else { 0 }, &[&bytes, head]);
    bytes.extend(check.to_le_bytes());
    bytes.extend(head);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let _ = ledger::read(data);
    if let Some(opening) = data.first_chunk::<PREFACE_BYTES>()
        && let Ok((lowest, highest)) = preface::decode(opening)
    {
        assert_eq!(&preface::encode(lowest, highest), opening);
        if let Ok(version) = preface::agree(preface::VERSIONS, (lowest, highest)) {
            assert!((lowest..=highest).contains(&version));
        }
    }
    let Some((&[kind, flags, a, b, c], head)) = data.split_first_chunk() else { return };
    let in_session = flags & 1 == 1;
    let _ = decode(head, in_session);
    let body_len = u32::from_le_bytes([a, b, c, 0]);
    if let Ok(Some((frame, body_len))) = decode(&sealed(kind, body_len, head, in_session), in_session) {
        let mut encoder = FrameEncoder::new();
        if in_session {
            encoder.set_session(&SESSION);
        }
        let mut again = Vec::new();
        encoder.encode(&frame, body_len as u32, &mut again).expect("what was taken can be written");
        assert_eq!(decode(&again, in_session), Ok(Some((frame, body_len))));
    }
});
