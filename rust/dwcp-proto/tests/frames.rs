//! Frames as bytes: what is written is read back, and nothing else is taken.
#![allow(clippy::unwrap_used)]

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::error::ProtoError;
use dwcp_proto::frame::{
    Accept, BasePart, BlockHead, Committed, DictionaryNote, DictionaryWord, Digests, ErrorCode, ErrorFrame,
    FEATURE_FETCH, Fetch, Finish, Frame, FrameDecoder, FrameEncoder, Have, HaveSource, Hello, ManifestPart,
    Nack, NackReason, Offer, RecordHead, RecordWord, Relay, Same, Secret, Security, SessionId, Taken, Takes,
    TransferId, Welcome,
};
use dwcp_proto::limits::{HEADER_BYTES, MAX_BLOCK, MAX_ENTRIES, MAX_FILL, MAX_OBJECT};
use dwcp_proto::manifest::{Candidate, Entry, EntryKind};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const SESSION: SessionId = SessionId(*b"a session of 16b");

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 16]>().prop_map(Digest)
}

fn security() -> impl Strategy<Value = Security> {
    prop_oneof![Just(Security::Plaintext), Just(Security::Tls)]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let component = vec(1_u8..=255, 1..20).prop_map(|bytes| {
        let clean: Vec<u8> = bytes.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect();
        if matches!(clean.as_slice(), b"." | b".." | b".dwcp") { b"x".to_vec() } else { clean }
    });
    vec(component, 1..5).prop_map(|components| components.join(&b'/'))
}

fn entry() -> impl Strategy<Value = Entry> {
    let candidates = vec((any::<u64>(), digest()), 0..=8)
        .prop_map(|all| all.into_iter().map(|(size, digest)| Candidate { size, digest }).collect());
    let target = vec(1_u8..=255, 1..50);
    (path(), 0..=0o7777_u32, any::<i64>(), 0..=MAX_OBJECT, target, candidates, 0..4_u8).prop_map(
        |(path, mode, mtime_ns, size, target, candidates, kind)| match kind {
            0 => Entry { kind: EntryKind::File, path, mode, mtime_ns, size, target: vec![], candidates },
            1 => Entry {
                kind: EntryKind::Directory,
                path,
                mode,
                mtime_ns,
                size: 0,
                target: vec![],
                candidates: vec![],
            },
            2 => Entry {
                kind: EntryKind::Symlink,
                path,
                mode: 0,
                mtime_ns,
                size: 0,
                target,
                candidates: vec![],
            },
            _ => Entry {
                kind: EntryKind::Buffer,
                path,
                mode: 0,
                mtime_ns: 0,
                size,
                target: vec![],
                candidates: vec![],
            },
        },
    )
}

fn block() -> impl Strategy<Value = (Frame, u32)> {
    let form = prop_oneof![
        proptest::sample::select(&BlockKind::ALL[1..]).prop_map(|kind| (kind, CodecId::None)),
        proptest::sample::select(vec![CodecId::None, CodecId::Lz4, CodecId::Zstd, CodecId::ZstdDictionary])
            .prop_map(|codec| (BlockKind::Plain, codec)),
    ];
    (any::<u32>(), 2..=MAX_BLOCK, 0..MAX_OBJECT, form, digest(), digest(), 0.0..1.0).prop_map(
        |(entry, raw_len, offset, (kind, codec), digest, base, share)| {
            let body = match (kind, codec) {
                (BlockKind::Fill, _) => 1,
                (BlockKind::Plain, CodecId::None) => raw_len,
                (BlockKind::Plain, _) => 1 + (f64::from(raw_len - 1) * share) as u32,
                _ => 1 + (f64::from(raw_len - 2) * share) as u32,
            };
            let base_digest = kind.needs_base().then_some(base);
            (Frame::Block(BlockHead { entry, raw_len, offset, kind, codec, digest, base_digest }), body)
        },
    )
}

/// Any frame of a session, with the length of its body.
fn session_frame() -> impl Strategy<Value = (Frame, u32)> {
    let id = || any::<[u8; 16]>().prop_map(TransferId);
    let sizes = (16..=22_u32, 1..=MAX_ENTRIES, 0..=MAX_OBJECT);
    let offer = (id(), sizes, any::<bool>(), any::<u8>(), any::<u32>()).prop_map(
        |(transfer_id, (power, entries, total_bytes), base_allowed, repeats, number)| {
            let block_bytes = 1 << power;
            Frame::Offer(Offer {
                transfer_id,
                block_bytes,
                entries,
                total_bytes,
                base_allowed,
                repeats,
                number,
            })
        },
    );
    let manifest = (0..1_000_u32, vec(entry(), 1..6))
        .prop_map(|(first_entry, entries)| Frame::Manifest(ManifestPart { first_entry, entries }));
    let run = (
        any::<u32>(),
        prop_oneof![Just(HaveSource::Staged), Just(HaveSource::SamePath)],
        vec(digest(), 1..40),
    );
    let have = prop_oneof![
        (run, any::<u32>()).prop_map(|((entry, source, digests), first_block)| Frame::Have(Have {
            entry,
            source,
            first_block,
            digests
        })),
        (any::<u32>(), 0..8_u8).prop_map(|(entry, number)| Frame::Have(Have {
            entry,
            source: HaveSource::Candidate(number),
            first_block: 0,
            digests: vec![]
        })),
    ];
    let same = (any::<u32>(), any::<u32>(), vec(digest(), 1..40))
        .prop_map(|(entry, first_block, digests)| Frame::Same(Same { entry, first_block, digests }));
    let nack = (any::<u32>(), any::<bool>(), any::<u64>()).prop_map(|(entry, differs, offset)| {
        Frame::Nack(Nack {
            entry,
            reason: if differs { NackReason::BaseDiffers } else { NackReason::NoBase },
            offset,
        })
    });
    let digests = (any::<u32>(), vec(digest(), 1..40))
        .prop_map(|(first_entry, digests)| Frame::Digests(Digests { first_entry, digests }));
    let finish = (id(), digest())
        .prop_map(|(transfer_id, transfer_digest)| Frame::Finish(Finish { transfer_id, transfer_digest }));
    let committed = (id(), digest(), any::<u64>()).prop_map(|(transfer_id, transfer_digest, body_bytes)| {
        Frame::Committed(Committed { transfer_id, transfer_digest, body_bytes })
    });
    let error = (1..=11_u16, any::<bool>(), ".{0,300}").prop_map(|(code, retryable, text)| {
        Frame::Error(ErrorFrame::new(ErrorCode::from(code), retryable, &text))
    });
    let accept = (id(), 0..=MAX_OBJECT)
        .prop_map(|(transfer_id, staged_bytes)| Frame::Accept(Accept { transfer_id, staged_bytes }));
    prop_oneof![
        block(),
        prop_oneof![
            offer,
            manifest,
            have,
            accept,
            same,
            any::<u32>().prop_map(Frame::Ack),
            nack,
            digests,
            finish,
            committed,
            error,
            Just(Frame::Close),
            Just(Frame::KeepAlive),
            (1..=MAX_FILL as u32).prop_map(Frame::Fill),
            (any::<u32>(), vec(any::<u8>(), 0..100))
                .prop_map(|(number, request)| Frame::Fetch(Fetch { number, request })),
            (digest(), vec(any::<u8>(), 1..100), 0..4_u8).prop_map(|(digest, bytes, word)| {
                let length = bytes.len() as u32;
                let word = match word {
                    0 => DictionaryWord::Announced,
                    1 => DictionaryWord::Wanted,
                    2 => DictionaryWord::Given(bytes),
                    _ => DictionaryWord::Declined,
                };
                Frame::Dictionary(DictionaryNote { digest, length, word })
            }),
        ]
        .prop_map(|frame| (frame, 0)),
        relay_frame(),
    ]
}

/// A frame of a relay, and the length of its body.
fn relay_frame() -> impl Strategy<Value = (Frame, u32)> {
    let record = (any::<u32>(), any::<u64>(), digest(), 2..=MAX_BLOCK, 0..6_u8);
    let record = record.prop_map(|(stream, number, digest, raw_len, form)| {
        let (word, kind, codec, raw_len, body) = match form {
            0 => (RecordWord::Opens, BlockKind::Plain, CodecId::None, raw_len % 32 + 1, raw_len % 32 + 1),
            1 => (RecordWord::Data, BlockKind::Plain, CodecId::None, raw_len, raw_len),
            2 => (RecordWord::Pages, BlockKind::Plain, CodecId::Zstd, raw_len, raw_len / 2),
            3 => (RecordWord::Data, BlockKind::Fill, CodecId::None, raw_len, 1),
            4 => (RecordWord::End, BlockKind::Plain, CodecId::None, 0, 0),
            _ => (RecordWord::Reset, BlockKind::Plain, CodecId::None, 0, 0),
        };
        (Frame::Record(RecordHead { stream, word, kind, codec, number, raw_len, digest }), body)
    });
    let relay = (any::<bool>(), 0..1_u64 << 62, 0..1_u64 << 40).prop_map(|(ready, cache_bytes, pages)| {
        Frame::Relay(Relay { ready, cache_bytes, base_pages: if ready { pages } else { 0 } })
    });
    let base = (any::<u32>(), vec(any::<u8>(), 1..40), vec(digest(), 1..20))
        .prop_map(|(first_page, name, digests)| Frame::Base(BasePart { first_page, name, digests }));
    let taken = (any::<u32>(), any::<u64>(), any::<u64>())
        .prop_map(|(stream, count, come)| Frame::Taken(Taken { stream, count, come }));
    prop_oneof![record, prop_oneof![relay, base, taken].prop_map(|frame| (frame, 0))]
}

fn handshake_frame() -> impl Strategy<Value = Frame> {
    let hello = (
        security(),
        0..256_u16,
        any::<u32>(),
        any::<Option<[u8; 16]>>(),
        any::<[u8; 32]>(),
        65_536..=MAX_BLOCK,
        option::of((1..=MAX_ENTRIES, 1..=MAX_OBJECT)),
    )
        .prop_map(|(security, lane, features, session, secret, max_block, takes)| {
            let session = session.filter(|id| *id != [0; 16]).map(SessionId);
            Frame::Hello(Hello {
                version: 3,
                security,
                lane,
                features: features & !FEATURE_FETCH,
                session,
                secret: Secret(secret),
                max_block,
                fetches: takes.map(|(max_entries, max_object)| Takes { max_entries, max_object }),
            })
        });
    let welcome = (security(), 1..=256_u16, any::<u32>(), any::<[u8; 32]>(), 1..=MAX_ENTRIES, 1..=MAX_OBJECT)
        .prop_map(|(security, max_lanes, features, key, max_entries, max_object)| {
            let (join_key, max_block) = (Secret(key), MAX_BLOCK);
            let (version, session) = (3, SESSION);
            Frame::Welcome(Welcome {
                version,
                security,
                max_lanes,
                features,
                session,
                join_key,
                max_block,
                max_entries,
                max_object,
            })
        });
    prop_oneof![hello, welcome]
}

fn encoded(frame: &Frame, body_len: u32, in_session: bool) -> Vec<u8> {
    let mut encoder = FrameEncoder::new();
    if in_session {
        encoder.set_session(&SESSION);
    }
    let mut bytes = vec![];
    encoder.encode(frame, body_len, &mut bytes).unwrap();
    bytes
}

/// Reads one frame as a lane would, with the next sequence number 0.
fn decoded(bytes: &[u8], in_session: bool) -> Result<(Frame, usize), ProtoError> {
    let mut decoder = FrameDecoder::new();
    if in_session {
        decoder.set_session(&SESSION);
    }
    let header: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
    let pending = decoder.header(&header)?;
    let (length, body_len) = (pending.head_len, pending.body_len);
    // A header that was altered may ask for more than there is; a lane would wait for it and then fail.
    let mut head = bytes[HEADER_BYTES..].to_vec();
    head.resize(length, 0);
    Ok((decoder.head(pending, &head)?, body_len))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn session_frame_is_read_back((frame, body_len) in session_frame()) {
        let bytes = encoded(&frame, body_len, true);
        prop_assert_eq!(decoded(&bytes, true), Ok((frame, body_len as usize)));
    }

    #[test]
    fn handshake_frame_is_read_back_before_the_session_only(frame in handshake_frame()) {
        let bytes = encoded(&frame, 0, false);
        prop_assert_eq!(decoded(&bytes, false), Ok((frame.clone(), 0)));
        prop_assert_eq!(
            decoded(&bytes, true),
            Err(ProtoError::OutOfPlace { frame: frame.name(), in_session: true })
        );
    }

    #[test]
    fn any_flipped_bit_is_refused((frame, body_len) in session_frame(), place in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&frame, body_len, true);
        let bit = place.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decoded(&bytes, true).is_err(), "bit {}", bit);
    }

    #[test]
    fn head_with_a_byte_more_or_less_is_refused((frame, body_len) in session_frame(), byte in any::<u8>()) {
        let bytes = encoded(&frame, body_len, true);
        let head = &bytes[HEADER_BYTES..];
        let longer = [head, &[byte]].concat();
        for head in [&longer[..], &head[..head.len().saturating_sub(1)]] {
            if head.len() != bytes.len() - HEADER_BYTES {
                let of_any_length = matches!(frame, Frame::Error(_) | Frame::Fetch(_) | Frame::Fill(_));
                let refused = decoded(&resealed(bytes[0], body_len, head), true).is_err();
                prop_assert!(refused || of_any_length);
            }
        }
    }

    #[test]
    fn arbitrary_head_with_a_valid_check_never_panics(
        kind in 0..=0x14_u8, body_len in 0..200_u32, head in vec(any::<u8>(), 0..300)
    ) {
        for in_session in [false, true] {
            if let Ok((frame, body_len)) = decoded(&resealed(kind, body_len, &head), in_session) {
                // What was taken can be written, and is the same when it is read again.
                let again = encoded(&frame, body_len as u32, in_session);
                prop_assert_eq!(decoded(&again, in_session), Ok((frame, body_len)));
            }
        }
    }

    #[test]
    fn arbitrary_header_never_panics(header in any::<[u8; HEADER_BYTES]>(), in_session in any::<bool>()) {
        let _ = decoded(&header, in_session);
    }
}

/// A frame with a right header and check around any head; its seed fits SESSION, or 0 for a handshake frame.
fn resealed(kind: u8, body_len: u32, head: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend(body_len.to_le_bytes());
    bytes.extend([0; 4]);
    let seed = if kind <= 2 { 0 } else { SESSION.seed() };
    let check = dwcp_codec::digest::check64(seed, &[&bytes, head]);
    bytes.extend(check.to_le_bytes());
    bytes.extend(head);
    bytes
}

#[test]
fn hostile_lengths_are_refused_by_the_header_alone() {
    let header = |kind: u8, head_len: u32, body_len: u32| {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&head_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&body_len.to_le_bytes());
        let mut decoder = FrameDecoder::new();
        decoder.set_session(&SESSION);
        decoder.header(&bytes)
    };
    for kind in 3..=0x16 {
        for length in [1 << 20 | 1, 1 << 31, u32::MAX] {
            assert!(matches!(header(kind, length, 0), Err(ProtoError::HeadLength { .. })), "{kind} {length}");
        }
    }
    for length in [0, MAX_BLOCK + 1, 1 << 31, u32::MAX] {
        assert!(matches!(header(0x07, 52, length), Err(ProtoError::BodyLength { .. })), "{length}");
    }
    assert!(matches!(header(0x09, 4, 1), Err(ProtoError::BodyLength { low: 0, high: 0, .. })));
    assert!(header(0x07, 52, MAX_BLOCK).is_ok());
}

#[test]
fn a_block_as_it_is_has_a_body_of_its_own_length() {
    let mut head = [0; 52];
    head[4..8].copy_from_slice(&1_000_u32.to_le_bytes());
    for length in [1, 999, 1_001] {
        let refused = decoded(&resealed(0x07, length, &head), true).unwrap_err();
        assert!(matches!(refused, ProtoError::BodyLength { low: 1_000, high: 1_000, .. }), "{length}");
    }
    assert!(decoded(&resealed(0x07, 1_000, &head), true).is_ok());
}

#[test]
fn hostile_counts_in_a_head_are_refused() {
    let refused = |kind: u8, head: &[u8]| decoded(&resealed(kind, 0, head), true).unwrap_err();
    let head = |fields: &[u32], length: usize| {
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        bytes.resize(length, 0);
        bytes
    };
    for count in [u32::MAX, 1 << 31, 65_536, 0] {
        assert!(matches!(refused(0x08, &head(&[0, 0, count], 28)), ProtoError::Range { field: "count", .. }));
        assert!(matches!(refused(0x0B, &head(&[0, count], 24)), ProtoError::Range { field: "count", .. }));
        assert!(matches!(
            refused(0x05, &head(&[0, 0, 0, count], 32)),
            ProtoError::Range { field: "count", .. }
        ));
        assert!(matches!(refused(0x04, &head(&[0, count], 64)), ProtoError::Range { field: "count", .. }));
    }
    assert!(matches!(refused(0x08, &head(&[0, 0, 65_535], 28)), ProtoError::Truncated { .. }));
}

#[test]
fn repeated_skipped_and_foreign_frames_are_refused() {
    let mut encoder = FrameEncoder::new();
    encoder.set_session(&SESSION);
    let frames: Vec<Vec<u8>> = (0..3)
        .map(|count| {
            let mut bytes = vec![];
            encoder.encode(&Frame::Ack(count), 0, &mut bytes).unwrap();
            bytes
        })
        .collect();
    let mut decoder = FrameDecoder::new();
    decoder.set_session(&SESSION);
    let mut read = |bytes: &[u8]| {
        let pending = decoder.header(bytes[..HEADER_BYTES].try_into().unwrap())?;
        decoder.head(pending, &bytes[HEADER_BYTES..])
    };
    assert_eq!(read(&frames[0]), Ok(Frame::Ack(0)));
    assert_eq!(read(&frames[0]), Err(ProtoError::Sequence { expected: 1, found: 0 }));
    assert_eq!(read(&frames[2]), Err(ProtoError::Sequence { expected: 1, found: 2 }));
    let mut other = FrameEncoder::new();
    other.set_session(&SessionId([9; 16]));
    let mut foreign = vec![];
    other.encode(&Frame::KeepAlive, 0, &mut foreign).unwrap();
    foreign.clear();
    other.encode(&Frame::Ack(1), 0, &mut foreign).unwrap();
    assert_eq!(read(&foreign), Err(ProtoError::Check { frame: "ACK" }));
    assert_eq!(read(&frames[1]), Ok(Frame::Ack(1)));
}

#[test]
fn failed_encoding_leaves_no_bytes_and_no_gap() {
    let mut encoder = FrameEncoder::new();
    encoder.set_session(&SESSION);
    let mut bytes = vec![];
    let empty = Frame::Same(Same { entry: 0, first_block: 0, digests: vec![] });
    assert!(matches!(encoder.encode(&empty, 0, &mut bytes), Err(ProtoError::Limit { .. })));
    assert!(matches!(encoder.encode(&Frame::Close, 1, &mut bytes), Err(ProtoError::BodyLength { .. })));
    assert!(bytes.is_empty());
    encoder.encode(&Frame::Close, 0, &mut bytes).unwrap();
    assert_eq!(decoded(&bytes, true), Ok((Frame::Close, 0)));
}

#[test]
fn error_before_welcome_needs_no_session() {
    let error = Frame::Error(ErrorFrame::new(ErrorCode::Auth, false, "no"));
    assert_eq!(decoded(&encoded(&error, 0, false), false), Ok((error.clone(), 0)));
    assert_eq!(decoded(&encoded(&error, 0, false), true), Err(ProtoError::Check { frame: "ERROR" }));
}

#[test]
fn long_error_text_is_cut_between_characters() {
    let error = ErrorFrame::new(ErrorCode::Internal, false, &"é".repeat(1_000));
    assert_eq!(error.message.len(), 1_024);
    let error = ErrorFrame::new(ErrorCode::Internal, false, &format!("x{}", "é".repeat(1_000)));
    assert_eq!(error.message.len(), 1_023);
}

#[test]
fn secrets_are_not_shown() {
    assert_eq!(format!("{:?} {:?}", Secret([7; 32]), Secret::NONE), "Secret(..) Secret(none)");
}
