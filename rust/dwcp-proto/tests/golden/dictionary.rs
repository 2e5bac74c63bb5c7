//! A transfer whose one block is made with a dictionary, and one whose dictionary is declined.

use dwcp_codec::{CodecId, Dictionary};
use dwcp_proto::frame::{DictionaryNote, DictionaryWord, FEATURE_DICTIONARY};

use super::*;

pub const CONTENT: &[u8] = br#"{"user": 0, "region": "eu-west", "state": "ok", "score": 0}"#;
pub const RECORD: &[u8] = br#"{"user": 7, "region": "eu-west", "state": "ok", "score": 512}"#;

/// The record as zstd makes it with the content for a dictionary.
const BODY: [u8; 23] =
    *b"\x28\xb5\x2f\xfd\x20\x3d\x75\x00\x00\x30\x7b\x37\x35\x31\x32\x7d\x02\x00\x80\x28\x9e\x50\x57";

fn manifest() -> Manifest {
    let entry = Entry {
        kind: EntryKind::File,
        path: b"record.json".to_vec(),
        mode: 0o644,
        mtime_ns: 7,
        size: RECORD.len() as u64,
        target: vec![],
        candidates: vec![],
    };
    Manifest::new(BLOCK, vec![entry], &Limits::default()).unwrap()
}

fn note(content: &[u8], word: DictionaryWord) -> Frame {
    Frame::Dictionary(DictionaryNote { digest: Digest::of(content), length: content.len() as u32, word })
}

fn trees() -> [Digest; 1] {
    [tree(RECORD.len() as u64, BLOCK, &[Digest::of(RECORD)])]
}

fn record(codec: CodecId) -> Frame {
    Frame::Block(BlockHead {
        entry: 0,
        raw_len: RECORD.len() as u32,
        offset: 0,
        kind: BlockKind::Plain,
        codec,
        digest: Digest::of(RECORD),
        base_digest: None,
    })
}

pub fn sender() -> Stream {
    let manifest = manifest();
    let plain = |frame| Told { frame, body: vec![] };
    let end = || {
        let (transfer_id, trees) = (manifest.transfer_id(), trees());
        [
            plain(Frame::Digests(Digests { first_entry: 0, digests: trees.to_vec() })),
            plain(Frame::Finish(Finish { transfer_id, transfer_digest: manifest.transfer_digest(&trees) })),
        ]
    };
    let part = || plain(Frame::Manifest(manifest.parts().next().unwrap()));
    let mut frames = vec![
        plain(Frame::Hello(Hello {
            version: 3,
            security: Security::Tls,
            lane: 0,
            features: FEATURE_DICTIONARY,
            session: None,
            secret: Secret(*b"pairing token of thirty-two byte"),
            max_block: 1_048_576,
            fetches: None,
        })),
        plain(offer(&manifest, true, 0)),
        plain(note(CONTENT, DictionaryWord::Announced)),
        part(),
        plain(note(CONTENT, DictionaryWord::Given(CONTENT.to_vec()))),
        Told { frame: record(CodecId::ZstdDictionary), body: BODY.to_vec() },
    ];
    frames.extend(end());
    frames.extend([
        plain(offer(&manifest, true, 1)),
        plain(note(RECORD, DictionaryWord::Announced)),
        part(),
        Told { frame: record(CodecId::None), body: RECORD.to_vec() },
    ]);
    frames.extend(end());
    frames.push(plain(Frame::Close));
    Stream { name: "dictionary-sender", preface: preface::encode(3, 3), unseeded: 1, frames }
}

pub fn receiver() -> Stream {
    let manifest = manifest();
    let (transfer_id, transfer_digest) = (manifest.transfer_id(), manifest.transfer_digest(&trees()));
    let accept = || Frame::Accept(Accept { transfer_id, staged_bytes: 0 });
    let committed =
        |bytes: usize| Frame::Committed(Committed { transfer_id, transfer_digest, body_bytes: bytes as u64 });
    let frames = [
        Frame::Welcome(Welcome {
            version: 3,
            security: Security::Tls,
            max_lanes: 16,
            features: FEATURE_DICTIONARY,
            session: SESSION,
            join_key: Secret(*b"join key of exactly 32 bytes ..."),
            max_block: 1_048_576,
            max_entries: 100_000,
            max_object: 1 << 40,
        }),
        note(CONTENT, DictionaryWord::Wanted),
        accept(),
        Frame::Ack(1),
        committed(BODY.len()),
        note(RECORD, DictionaryWord::Declined),
        accept(),
        Frame::Ack(2),
        committed(BODY.len() + RECORD.len()),
        Frame::Close,
    ];
    let frames = frames.into_iter().map(|frame| Told { frame, body: vec![] }).collect();
    Stream { name: "dictionary-receiver", preface: preface::encode(3, 3), unseeded: 1, frames }
}

#[test]
fn body_that_was_made_with_a_dictionary_decodes_with_it_only() {
    let mut block = vec![0; RECORD.len()];
    let mut decoder = BlockDecoder::new();
    let dictionary = Dictionary::new(CONTENT.to_vec()).unwrap();
    decoder.decode_with(&dictionary, &BODY, &mut block).unwrap();
    assert_eq!(block, RECORD);
    let other = Dictionary::new(RECORD.to_vec()).unwrap();
    assert!(decoder.decode_with(&other, &BODY, &mut block).is_err() || block != RECORD);
}
