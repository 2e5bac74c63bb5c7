//! A scripted exchange encodes to exactly the bytes in `tests/golden/v3`.
//!
//! `cargo test -p dwcp-proto --test golden -- --ignored write_golden` writes the files anew; only a new version of
//! the format is a reason to do that.
#![allow(clippy::unwrap_used)]

mod describe;
mod dictionary;
mod relay;

use std::path::PathBuf;

use dwcp_codec::block::{BlockDecoder, BlockKind};
use dwcp_codec::digest::tree;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::frame::{
    Accept, BlockHead, Committed, Digests, ErrorCode, ErrorFrame, FEATURE_FILL, Fetch, Finish, Frame,
    FrameDecoder, FrameEncoder, Have, HaveSource, Hello, Nack, NackReason, Offer, Same, Secret, Security,
    SessionId, Takes, Welcome,
};
use dwcp_proto::ledger::{LedgerHeader, Record, encode_header, encode_record};
use dwcp_proto::limits::{HEADER_BYTES, Limits, PREFACE_BYTES};
use dwcp_proto::manifest::{Candidate, Entry, EntryKind, Manifest};
use dwcp_proto::preface;

use describe::{describe, hex, object, text};

const BLOCK: u32 = 65_536;
const SESSION: SessionId = SessionId(*b"\x01\x23\x45\x67\x89\xab\xcd\xefgolden!!");

/// One frame of a stream with what a reader should find.
struct Told {
    frame: Frame,
    body: Vec<u8>,
}

/// A stream of one direction of a lane.
struct Stream {
    name: &'static str,
    preface: [u8; PREFACE_BYTES],
    /// How many frames are checked with seed 0.
    unseeded: usize,
    frames: Vec<Told>,
}

/// A block of 64 KiB of one byte.
fn block_of(byte: u8) -> Digest {
    Digest::of(&vec![byte; BLOCK as usize])
}

const TAIL: [u8; 100] = [0xE7; 100];

/// An LZ4 block of 65,536 times `byte`: a literal, a match of 65,530 bytes at distance 1, five literals.
fn lz4_body(byte: u8) -> Vec<u8> {
    let mut body = vec![0x1F, byte, 1, 0];
    body.extend([0xFF; 256]);
    body.push(231);
    body.push(0x50);
    body.extend([byte; 5]);
    body
}

/// A zstd frame of 65,536 times `byte`: one run-length block.
fn zstd_body(byte: u8) -> Vec<u8> {
    vec![0x28, 0xB5, 0x2F, 0xFD, 0xA0, 0, 0, 1, 0, 0x03, 0, 0x08, byte]
}

/// The blocks of entry 1, all but the last of one byte each.
const BYTES: [u8; 6] = [0x00, 0x41, 0x5A, 0x11, 0x22, 0x33];

fn tree_manifest() -> Manifest {
    let base =
        [block_of(0x77), block_of(0x41), block_of(0x00), block_of(0x10), block_of(0x22), block_of(0x33)];
    let candidate =
        Candidate { size: 6 * u64::from(BLOCK), digest: tree(6 * u64::from(BLOCK), BLOCK, &base) };
    let entry = |kind, path: &[u8], mode, mtime_ns, size| Entry {
        kind,
        path: path.to_vec(),
        mode,
        mtime_ns,
        size,
        target: vec![],
        candidates: vec![],
    };
    let entries = vec![
        entry(EntryKind::Directory, b"d", 0o755, 1_700_000_000_123_456_789, 0),
        Entry {
            candidates: vec![candidate],
            ..entry(EntryKind::File, b"d/\xff\xfe name", 0o4644, -1, 6 * u64::from(BLOCK) + 100)
        },
        entry(EntryKind::File, b"d/empty", 0, 0, 0),
        Entry { target: b"../d/\xff".to_vec(), ..entry(EntryKind::Symlink, b"d/link", 0, 5, 0) },
        entry(EntryKind::File, "d-\u{fc}ber".as_bytes(), 0o600, 2, 2 * u64::from(BLOCK)),
    ];
    Manifest::new(BLOCK, entries, &Limits::default()).unwrap()
}

fn buffer_manifest() -> Manifest {
    let entry = Entry {
        kind: EntryKind::Buffer,
        path: b"weights/0".to_vec(),
        mode: 0,
        mtime_ns: 0,
        size: 100,
        target: vec![],
        candidates: vec![],
    };
    Manifest::new(131_072, vec![entry], &Limits::default()).unwrap()
}

fn offer(manifest: &Manifest, base_allowed: bool, number: u32) -> Frame {
    Frame::Offer(Offer {
        transfer_id: manifest.transfer_id(),
        block_bytes: manifest.block_bytes(),
        entries: manifest.entries().len() as u32,
        total_bytes: manifest.total_bytes(),
        base_allowed,
        repeats: 0,
        number,
    })
}

/// The tree digests of both manifests.
fn trees() -> ([Digest; 5], Digest) {
    let none = Digest([0; 16]);
    let mut leaves: Vec<Digest> = BYTES.iter().map(|byte| block_of(*byte)).collect();
    leaves.push(Digest::of(&TAIL));
    let named = tree(6 * u64::from(BLOCK) + 100, BLOCK, &leaves);
    let second = tree(2 * u64::from(BLOCK), BLOCK, &[block_of(0x61), block_of(0x62)]);
    ([none, named, tree(0, BLOCK, &[]), none, second], tree(100, 131_072, &[Digest::of(&TAIL)]))
}

fn block(
    entry: u32,
    number: u32,
    kind: BlockKind,
    codec: CodecId,
    digest: Digest,
    base: Option<Digest>,
) -> Frame {
    let offset = u64::from(number) * u64::from(BLOCK);
    Frame::Block(BlockHead { entry, raw_len: BLOCK, offset, kind, codec, digest, base_digest: base })
}

fn sender() -> Stream {
    let (tree_transfer, buffer_transfer) = (tree_manifest(), buffer_manifest());
    let (trees, buffer_tree) = trees();
    let plain = |frame| Told { frame, body: vec![] };
    let told = |frame, body| Told { frame, body };
    let tail = |entry, offset| {
        Frame::Block(BlockHead {
            entry,
            raw_len: 100,
            offset,
            kind: BlockKind::Plain,
            codec: CodecId::None,
            digest: Digest::of(&TAIL),
            base_digest: None,
        })
    };
    let mut frames = vec![
        plain(Frame::Hello(Hello {
            version: 3,
            security: Security::Tls,
            lane: 7,
            features: 0,
            session: None,
            secret: Secret(*b"pairing token of thirty-two byte"),
            max_block: 4_194_304,
            fetches: None,
        })),
        plain(offer(&tree_transfer, true, 0)),
    ];
    frames.extend(tree_transfer.parts().map(|part| plain(Frame::Manifest(part))));
    frames.extend([
        told(block(1, 0, BlockKind::Fill, CodecId::None, block_of(0x00), None), vec![0x00]),
        told(block(1, 1, BlockKind::Plain, CodecId::Lz4, block_of(0x41), None), lz4_body(0x41)),
        told(block(1, 2, BlockKind::Plain, CodecId::Zstd, block_of(0x5A), None), zstd_body(0x5A)),
        told(
            block(1, 3, BlockKind::Difference, CodecId::None, block_of(0x11), Some(block_of(0x10))),
            // Bytes, XOR; a stream that repeats one byte.
            vec![0x00, 0x01, 0x01],
        ),
        plain(Frame::KeepAlive),
        plain(Frame::Same(Same { entry: 1, first_block: 4, digests: vec![block_of(0x22), block_of(0x33)] })),
        told(tail(1, 6 * u64::from(BLOCK)), TAIL.to_vec()),
        plain(Frame::Same(Same { entry: 4, first_block: 1, digests: vec![block_of(0x62)] })),
        told(block(1, 3, BlockKind::Plain, CodecId::Zstd, block_of(0x11), None), zstd_body(0x11)),
        plain(Frame::Digests(Digests { first_entry: 0, digests: trees[..3].to_vec() })),
        plain(Frame::Digests(Digests { first_entry: 3, digests: trees[3..].to_vec() })),
        plain(Frame::Finish(Finish {
            transfer_id: tree_transfer.transfer_id(),
            transfer_digest: tree_transfer.transfer_digest(&trees),
        })),
        plain(offer(&buffer_transfer, false, 1)),
    ]);
    frames.extend(buffer_transfer.parts().map(|part| plain(Frame::Manifest(part))));
    frames.extend([
        told(tail(0, 0), TAIL.to_vec()),
        plain(Frame::Digests(Digests { first_entry: 0, digests: vec![buffer_tree] })),
        plain(Frame::Finish(Finish {
            transfer_id: buffer_transfer.transfer_id(),
            transfer_digest: buffer_transfer.transfer_digest(&[buffer_tree]),
        })),
        plain(Frame::Close),
    ]);
    Stream { name: "sender", preface: preface::encode(3, 3), unseeded: 1, frames }
}

fn receiver() -> Stream {
    let (tree_transfer, buffer_transfer) = (tree_manifest(), buffer_manifest());
    let (trees, buffer_tree) = trees();
    let have =
        |entry, source, first_block, digests| Frame::Have(Have { entry, source, first_block, digests });
    let accept = |manifest: &Manifest, staged_bytes| {
        Frame::Accept(Accept { transfer_id: manifest.transfer_id(), staged_bytes })
    };
    let bodies: u64 = 1 + lz4_body(0).len() as u64 + 2 * zstd_body(0).len() as u64 + 100;
    let frames = [
        Frame::Welcome(Welcome {
            version: 3,
            security: Security::Tls,
            max_lanes: 16,
            features: 0,
            session: SESSION,
            join_key: Secret(*b"join key of exactly 32 bytes ..."),
            max_block: 1_048_576,
            max_entries: 100_000,
            max_object: 1 << 40,
        }),
        have(4, HaveSource::Staged, 0, vec![block_of(0x61)]),
        have(4, HaveSource::SamePath, 1, vec![block_of(0x62)]),
        have(1, HaveSource::Candidate(0), 0, vec![]),
        accept(&tree_transfer, u64::from(BLOCK)),
        Frame::Ack(2),
        Frame::Nack(Nack { entry: 1, reason: NackReason::BaseDiffers, offset: 3 * u64::from(BLOCK) }),
        Frame::Ack(7),
        Frame::KeepAlive,
        Frame::Ack(8),
        Frame::Committed(Committed {
            transfer_id: tree_transfer.transfer_id(),
            transfer_digest: tree_transfer.transfer_digest(&trees),
            body_bytes: bodies,
        }),
        accept(&buffer_transfer, 0),
        Frame::Ack(9),
        Frame::Committed(Committed {
            transfer_id: buffer_transfer.transfer_id(),
            transfer_digest: buffer_transfer.transfer_digest(&[buffer_tree]),
            body_bytes: bodies + 100,
        }),
        Frame::Error(ErrorFrame::new(ErrorCode::Storage, true, "no space left on the device: 5 µB free")),
    ];
    let frames = frames.into_iter().map(|frame| Told { frame, body: vec![] }).collect();
    Stream { name: "receiver", preface: preface::encode(3, 3), unseeded: 1, frames }
}

/// A second lane that joins, and a receiver that refuses it.
fn joining() -> [Stream; 2] {
    let hello = Frame::Hello(Hello {
        version: 3,
        security: Security::Plaintext,
        lane: 255,
        features: 0x8000_0002,
        session: Some(SESSION),
        secret: Secret(*b"join key of exactly 32 bytes ..."),
        max_block: 65_536,
        fetches: None,
    });
    let error =
        Frame::Error(ErrorFrame::new(ErrorCode::Auth, false, "the join key is not that of the session"));
    let stream = |name, preface, frame| Stream {
        name,
        preface,
        unseeded: 1,
        frames: vec![Told { frame, body: vec![] }],
    };
    [stream("joining", preface::encode(1, 3), hello), stream("refusing", preface::encode(3, 255), error)]
}

/// A receiver that has dialled, and asks twice.
fn fetching() -> Stream {
    let hello = Frame::Hello(Hello {
        version: 3,
        security: Security::Tls,
        lane: 0,
        features: 0,
        session: None,
        secret: Secret(*b"pairing token of thirty-two byte"),
        max_block: 1_048_576,
        fetches: Some(Takes { max_entries: 1_000, max_object: 1 << 40 }),
    });
    let frames = [
        hello,
        Frame::Fetch(Fetch { number: 0, request: b"{\"have\": 41}".to_vec() }),
        Frame::KeepAlive,
        Frame::Fetch(Fetch { number: 1, request: vec![] }),
        Frame::Close,
    ];
    let frames = frames.into_iter().map(|frame| Told { frame, body: vec![] }).collect();
    Stream { name: "fetching", preface: preface::encode(3, 3), unseeded: 1, frames }
}

/// A sender that looks how fast bytes pass.
fn filling() -> Stream {
    let hello = Frame::Hello(Hello {
        version: 3,
        security: Security::Tls,
        lane: 0,
        features: FEATURE_FILL,
        session: None,
        secret: Secret(*b"pairing token of thirty-two byte"),
        max_block: 65_536,
        fetches: None,
    });
    let frames = [hello, Frame::Fill(1), Frame::Fill(21), Frame::Close];
    let frames = frames.into_iter().map(|frame| Told { frame, body: vec![] }).collect();
    Stream { name: "filling", preface: preface::encode(3, 3), unseeded: 1, frames }
}

fn ledger() -> (LedgerHeader, Vec<Record>, Vec<u8>) {
    let header = LedgerHeader { transfer_id: tree_manifest().transfer_id(), block_bytes: BLOCK };
    let record = |entry, block, byte| Record { entry, block, digest: block_of(byte) };
    let records = vec![record(4, 0, 0x61), record(1, 2, 0x5A)];
    let mut bytes = encode_header(&header).to_vec();
    records.iter().for_each(|record| bytes.extend(encode_record(record)));
    bytes.extend(&encode_record(&record(1, 3, 0x11))[..20]);
    (header, records, bytes)
}

/// The bytes of a stream, and its description with the place of each frame.
fn encode(stream: &Stream) -> (Vec<u8>, String) {
    let mut bytes = stream.preface.to_vec();
    let mut encoder = FrameEncoder::new();
    let mut lines = vec![];
    for (sequence, Told { frame, body }) in stream.frames.iter().enumerate() {
        if sequence == stream.unseeded {
            encoder.set_session(&SESSION);
        }
        let offset = bytes.len();
        encoder.encode(frame, body.len() as u32, &mut bytes).unwrap();
        let head_bytes = bytes.len() - offset - HEADER_BYTES;
        bytes.extend(body);
        let mut members = vec![
            ("type", text(frame.name())),
            ("offset", offset.to_string()),
            ("sequence", sequence.to_string()),
            ("seeded", (sequence >= stream.unseeded).to_string()),
            ("head_bytes", head_bytes.to_string()),
            ("body_hex", text(hex(body))),
            ("fields", describe(frame)),
        ];
        if let Frame::Block(head) = frame
            && head.digest != Digest::of(dictionary::RECORD)
        {
            members.push(("raw_byte", raw_byte(head).to_string()));
        }
        lines.push(format!("      {}", object(&members)));
    }
    let [.., lowest, highest] = stream.preface;
    let text = format!(
        "    \"{}\": {{\"file\": \"{}.bin\", \"bytes\": {}, \"lowest_version\": {lowest}, \
         \"highest_version\": {highest}, \"frames\": [\n{}\n    ]}}",
        stream.name,
        stream.name,
        bytes.len(),
        lines.join(",\n"),
    );
    (bytes, text)
}

/// The byte that the block of this head consists of.
fn raw_byte(head: &BlockHead) -> u8 {
    if head.raw_len == 100 { TAIL[0] } else { BYTES[(head.offset / u64::from(BLOCK)) as usize] }
}

fn streams() -> Vec<Stream> {
    let mut streams = vec![sender(), receiver()];
    streams.extend(joining());
    streams.push(fetching());
    streams.extend([dictionary::sender(), dictionary::receiver()]);
    streams.push(filling());
    streams
}

/// All files, by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![];
    let mut described = vec![];
    for stream in streams() {
        let (bytes, text) = encode(&stream);
        files.push((format!("{}.bin", stream.name), bytes));
        described.push(text);
    }
    let (header, records, bytes) = ledger();
    let records: Vec<String> = records
        .iter()
        .map(|record| {
            object(&[
                ("entry", record.entry.to_string()),
                ("block", record.block.to_string()),
                ("digest", text(record.digest)),
            ])
        })
        .collect();
    let ledger = object(&[
        ("file", text("ledger.bin")),
        ("bytes", bytes.len().to_string()),
        ("transfer_id", text(header.transfer_id)),
        ("block_bytes", header.block_bytes.to_string()),
        ("records", format!("[{}]", records.join(", "))),
        ("torn", true.to_string()),
    ]);
    files.push(("ledger.bin".to_owned(), bytes));
    let json = format!(
        "{{\n  \"format\": \"dwcp v3\",\n  \"session_id\": \"{SESSION}\",\n  \"streams\": {{\n{}\n  }},\n  \
         \"ledger\": {ledger}\n}}\n",
        described.join(",\n"),
    );
    files.push(("manifest.json".to_owned(), json.into_bytes()));
    files
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/v3")
}

#[test]
fn scripted_exchange_encodes_to_the_golden_bytes() {
    for (name, bytes) in files() {
        let golden = std::fs::read(directory().join(&name)).unwrap();
        let differs = golden.iter().zip(&bytes).position(|(a, b)| a != b);
        assert!(
            golden == bytes,
            "{name}: {} and {} bytes, first difference {differs:?}",
            golden.len(),
            bytes.len()
        );
    }
}

#[test]
fn golden_bytes_are_read_as_the_script() {
    for stream in streams() {
        let bytes = std::fs::read(directory().join(format!("{}.bin", stream.name))).unwrap();
        let (preface, mut rest) = bytes.split_at(PREFACE_BYTES);
        assert_eq!(preface, stream.preface);
        let mut decoder = FrameDecoder::new();
        for (sequence, told) in stream.frames.iter().enumerate() {
            if sequence == stream.unseeded {
                decoder.set_session(&SESSION);
            }
            let (header, after) = rest.split_at(HEADER_BYTES);
            let pending = decoder.header(header.try_into().unwrap()).unwrap();
            let (head, after) = after.split_at(pending.head_len);
            let (body, after) = after.split_at(pending.body_len);
            assert_eq!(decoder.head(pending, head).unwrap(), told.frame);
            assert_eq!(body, told.body);
            rest = after;
        }
        assert_eq!(rest, []);
    }
}

#[test]
fn bodies_of_the_script_decode_to_their_digests() {
    let base = vec![0x10; BLOCK as usize];
    for Told { frame, body } in sender().frames {
        let Frame::Block(head) = frame else { continue };
        let mut block = vec![0; head.raw_len as usize];
        let base = head.base_digest.is_some().then_some(base.as_slice());
        BlockDecoder::new().decode(head.kind, head.codec, &body, base, &mut block).unwrap();
        assert_eq!(Digest::of(&block), head.digest);
        assert!(block.iter().all(|byte| *byte == raw_byte(&head)));
    }
}

#[test]
#[ignore = "writes the golden files"]
fn write_golden() {
    std::fs::create_dir_all(directory()).unwrap();
    for (name, bytes) in files() {
        std::fs::write(directory().join(name), bytes).unwrap();
    }
}
