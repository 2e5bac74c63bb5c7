//! The heads of frames as bytes.

use std::ops::RangeInclusive;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};

use super::{
    Accept, BlockHead, Committed, DictionaryNote, DictionaryWord, Digests, ErrorCode, ErrorFrame,
    FEATURE_FETCH, Fetch, Finish, Frame, FrameKind, Have, HaveSource, Hello, Nack, NackReason, Offer, Same,
    Secret, Security, SessionId, Taken, Takes, TransferId, Welcome, relay,
};
use crate::error::ProtoError;
use crate::limits::{
    MAX_BLOCK, MAX_CANDIDATES, MAX_DICTIONARY, MAX_ENTRIES, MAX_FILL, MAX_HEAD, MAX_LANES, MAX_OBJECT,
    MAX_REQUEST, MAX_RUN, MAX_TEXT, MIN_BLOCK,
};
use crate::manifest::{MIN_ENTRY_BYTES, ManifestPart};
use crate::preface::VERSIONS;
use crate::wire::{Reader, Writer};

const BLOCK_SIZES: RangeInclusive<u64> = MIN_BLOCK as u64..=MAX_BLOCK as u64;
const RUN: RangeInclusive<u64> = 1..=MAX_RUN as u64;
const VERSION_RANGE: RangeInclusive<u64> = VERSIONS.0 as u64..=VERSIONS.1 as u64;

/// The lengths that a head of this kind can have.
pub(super) fn head_lengths(kind: FrameKind) -> (usize, usize) {
    let runs = |fixed: usize, least: usize| (fixed + 16 * least, fixed + 16 * MAX_RUN);
    match kind {
        FrameKind::Hello => (92, 92),
        FrameKind::Welcome => (72, 72),
        FrameKind::Offer => (40, 40),
        FrameKind::Manifest => (8 + MIN_ENTRY_BYTES, MAX_HEAD),
        FrameKind::Have => runs(16, 0),
        FrameKind::Accept => (24, 24),
        FrameKind::Block => (52, 52),
        FrameKind::Same => runs(12, 1),
        FrameKind::Ack => (4, 4),
        FrameKind::Nack => (16, 16),
        FrameKind::Digests => runs(8, 1),
        FrameKind::Finish => (32, 32),
        FrameKind::Committed => (40, 40),
        FrameKind::Error => (4, 4 + MAX_TEXT),
        FrameKind::Close | FrameKind::KeepAlive => (0, 0),
        FrameKind::Fetch => (4, 4 + MAX_REQUEST),
        FrameKind::Dictionary => (24, 24 + MAX_DICTIONARY),
        FrameKind::Fill => (1, MAX_FILL),
        FrameKind::Relay | FrameKind::Base | FrameKind::Record | FrameKind::Taken => {
            relay::head_lengths(kind)
        }
    }
}

/// Refuses a body that the head does not allow.
pub(super) fn check_body(frame: &Frame, length: u32) -> Result<(), ProtoError> {
    let (low, high) = match frame {
        Frame::Block(BlockHead { kind: BlockKind::Fill, .. }) => (1, 1),
        Frame::Block(BlockHead { kind: BlockKind::Plain, codec, raw_len, .. }) => {
            (if *codec == CodecId::None { *raw_len } else { 1 }, *raw_len)
        }
        Frame::Block(BlockHead { raw_len, .. }) => (1, raw_len.saturating_sub(1)),
        Frame::Record(record) => record.body_lengths(),
        _ => (0, 0),
    };
    if (low..=high).contains(&length) {
        return Ok(());
    }
    Err(ProtoError::BodyLength { frame: frame.name(), length, low, high })
}

/// Appends bytes that nothing on the way makes shorter.
fn fill(length: usize, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    if length > MAX_FILL {
        return Err(ProtoError::Limit {
            what: "bytes of a FILL",
            value: length as u64,
            limit: MAX_FILL as u64,
        });
    }
    let end = out.len() + length;
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    while out.len() < end {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        out.extend_from_slice(&noise.to_le_bytes());
    }
    out.truncate(end);
    Ok(())
}

fn run_length(what: &'static str, digests: &[Digest], least: usize) -> Result<u32, ProtoError> {
    let count = digests.len();
    if (least..=MAX_RUN).contains(&count) {
        return Ok(count as u32);
    }
    Err(ProtoError::Limit { what, value: count as u64, limit: MAX_RUN as u64 })
}

/// Appends the head.
pub(super) fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    let mut w = Writer(out);
    match frame {
        Frame::Hello(hello) => {
            w.u8(hello.version);
            w.u8(hello.security as u8);
            w.u16(hello.lane);
            w.u32(hello.features | if hello.fetches.is_some() { FEATURE_FETCH } else { 0 });
            w.bytes(&hello.session.unwrap_or(SessionId([0; 16])).0);
            w.bytes(&hello.secret.0);
            let Takes { max_entries, max_object } =
                hello.fetches.unwrap_or(Takes { max_entries: 0, max_object: 0 });
            w.u32(max_entries);
            w.u64(max_object);
            w.zeros(20);
            w.u32(hello.max_block);
        }
        Frame::Welcome(welcome) => {
            w.u8(welcome.version);
            w.u8(welcome.security as u8);
            w.u16(welcome.max_lanes);
            w.u32(welcome.features);
            w.bytes(&welcome.session.0);
            w.bytes(&welcome.join_key.0);
            w.u32(welcome.max_block);
            w.u32(welcome.max_entries);
            w.u64(welcome.max_object);
        }
        Frame::Offer(offer) => {
            w.bytes(&offer.transfer_id.0);
            w.u32(offer.block_bytes);
            w.u32(offer.entries);
            w.u64(offer.total_bytes);
            w.u8(u8::from(offer.base_allowed));
            w.u8(offer.repeats);
            w.zeros(2);
            w.u32(offer.number);
        }
        Frame::Manifest(part) => part.encode(&mut w),
        Frame::Have(have) => {
            w.u32(have.entry);
            let (source, candidate) = match have.source {
                HaveSource::Staged => (0, 0),
                HaveSource::SamePath => (1, 0),
                HaveSource::Candidate(number) => (2, number),
            };
            w.u8(source);
            w.u8(candidate);
            w.u16(0);
            w.u32(have.first_block);
            w.u32(run_length("digests of a HAVE", &have.digests, usize::from(source != 2))?);
            w.digests(&have.digests);
        }
        Frame::Accept(accept) => {
            w.bytes(&accept.transfer_id.0);
            w.u64(accept.staged_bytes);
        }
        Frame::Block(block) => {
            w.u32(block.entry);
            w.u32(block.raw_len);
            w.u64(block.offset);
            w.u8(block.kind as u8);
            w.u8(block.codec as u8);
            w.u16(0);
            w.bytes(&block.digest.0);
            w.bytes(&block.base_digest.unwrap_or(Digest([0; 16])).0);
        }
        Frame::Same(same) => {
            w.u32(same.entry);
            w.u32(same.first_block);
            w.u32(run_length("digests of a SAME", &same.digests, 1)?);
            w.digests(&same.digests);
        }
        Frame::Ack(count) => w.u32(*count),
        Frame::Nack(nack) => {
            w.u32(nack.entry);
            w.u32(nack.reason as u32);
            w.u64(nack.offset);
        }
        Frame::Digests(digests) => {
            w.u32(digests.first_entry);
            w.u32(run_length("digests of a DIGESTS", &digests.digests, 1)?);
            w.digests(&digests.digests);
        }
        Frame::Finish(finish) => {
            w.bytes(&finish.transfer_id.0);
            w.bytes(&finish.transfer_digest.0);
        }
        Frame::Committed(committed) => {
            w.bytes(&committed.transfer_id.0);
            w.bytes(&committed.transfer_digest.0);
            w.u64(committed.body_bytes);
        }
        Frame::Error(error) => {
            w.u16(error.code as u16);
            w.u8(u8::from(error.retryable));
            w.u8(0);
            w.bytes(error.message.as_bytes());
        }
        Frame::Close | Frame::KeepAlive => {}
        Frame::Fill(length) => fill(*length as usize, out)?,
        Frame::Fetch(fetch) => {
            w.u32(fetch.number);
            w.bytes(&fetch.request);
        }
        Frame::Dictionary(note) => {
            w.bytes(&note.digest.0);
            let (word, bytes): (u8, &[u8]) = match &note.word {
                DictionaryWord::Announced => (0, &[]),
                DictionaryWord::Wanted => (1, &[]),
                DictionaryWord::Given(bytes) => (2, bytes),
                DictionaryWord::Declined => (3, &[]),
            };
            w.u32(note.length);
            w.u8(word);
            w.zeros(3);
            w.bytes(bytes);
        }
        Frame::Relay(note) => relay::put_relay(note, &mut w),
        Frame::Base(part) => relay::put_base(part, &mut w)?,
        Frame::Record(record) => relay::put_record(record, &mut w),
        Frame::Taken(taken) => {
            w.u32(taken.stream);
            w.u64(taken.count);
            w.u64(taken.come);
        }
    }
    Ok(())
}

/// Reads the head of a frame of this kind; all bytes have to be used.
pub(super) fn decode(kind: FrameKind, head: &[u8]) -> Result<Frame, ProtoError> {
    let mut r = Reader::new(kind.name(), head);
    let frame = match kind {
        FrameKind::Hello => Frame::Hello(hello(&mut r)?),
        FrameKind::Welcome => Frame::Welcome(welcome(&mut r)?),
        FrameKind::Offer => Frame::Offer(offer(&mut r)?),
        FrameKind::Manifest => Frame::Manifest(ManifestPart::decode(&mut r)?),
        FrameKind::Have => Frame::Have(have(&mut r)?),
        FrameKind::Accept => {
            let transfer_id = TransferId(r.array()?);
            Frame::Accept(Accept { transfer_id, staged_bytes: r.number("staged bytes", 8, 0..=MAX_OBJECT)? })
        }
        FrameKind::Block => Frame::Block(block(&mut r)?),
        FrameKind::Same => {
            let (entry, first_block) = (r.u32()?, r.u32()?);
            let count = r.number("count", 4, RUN)? as usize;
            Frame::Same(Same { entry, first_block, digests: r.digests(count)? })
        }
        FrameKind::Ack => Frame::Ack(r.u32()?),
        FrameKind::Nack => {
            let entry = r.u32()?;
            let reason = match r.number("reason", 4, 1..=2)? {
                1 => NackReason::BaseDiffers,
                _ => NackReason::NoBase,
            };
            Frame::Nack(Nack { entry, reason, offset: r.u64()? })
        }
        FrameKind::Digests => {
            let first_entry = r.u32()?;
            let count = r.number("count", 4, RUN)? as usize;
            Frame::Digests(Digests { first_entry, digests: r.digests(count)? })
        }
        FrameKind::Finish => {
            Frame::Finish(Finish { transfer_id: TransferId(r.array()?), transfer_digest: r.digest()? })
        }
        FrameKind::Committed => Frame::Committed(Committed {
            transfer_id: TransferId(r.array()?),
            transfer_digest: r.digest()?,
            body_bytes: r.u64()?,
        }),
        FrameKind::Error => Frame::Error(error(&mut r)?),
        FrameKind::Close => Frame::Close,
        FrameKind::KeepAlive => Frame::KeepAlive,
        FrameKind::Fetch => {
            let number = r.u32()?;
            Frame::Fetch(Fetch { number, request: r.bytes(r.left())?.to_vec() })
        }
        FrameKind::Dictionary => Frame::Dictionary(dictionary(&mut r)?),
        FrameKind::Fill => Frame::Fill(r.bytes(r.left())?.len() as u32),
        FrameKind::Relay => Frame::Relay(relay::relay(&mut r)?),
        FrameKind::Base => Frame::Base(relay::base(&mut r)?),
        FrameKind::Record => Frame::Record(relay::record(&mut r)?),
        FrameKind::Taken => Frame::Taken(Taken { stream: r.u32()?, count: r.u64()?, come: r.u64()? }),
    };
    r.finish()?;
    Ok(frame)
}

fn security(r: &mut Reader<'_>) -> Result<Security, ProtoError> {
    Ok(match r.number("security", 1, 0..=1)? {
        0 => Security::Plaintext,
        _ => Security::Tls,
    })
}

fn hello(r: &mut Reader<'_>) -> Result<Hello, ProtoError> {
    let version = r.number("version", 1, VERSION_RANGE)? as u8;
    let security = security(r)?;
    let lane = r.number("lane", 2, 0..=u64::from(MAX_LANES - 1))? as u16;
    let features = r.u32()?;
    let session = SessionId(r.array()?);
    let session = (session.0 != [0; 16]).then_some(session);
    let secret = Secret(r.array()?);
    let fetches = if features & FEATURE_FETCH == 0 {
        r.zeros("reserved", 12)?;
        None
    } else {
        Some(Takes {
            max_entries: r.number("most entries", 4, 1..=u64::from(MAX_ENTRIES))? as u32,
            max_object: r.number("largest object", 8, 1..=MAX_OBJECT)?,
        })
    };
    r.zeros("reserved", 20)?;
    let max_block = r.number("largest block", 4, BLOCK_SIZES)? as u32;
    let features = features & !FEATURE_FETCH;
    Ok(Hello { version, security, lane, features, session, secret, max_block, fetches })
}

fn welcome(r: &mut Reader<'_>) -> Result<Welcome, ProtoError> {
    let version = r.number("version", 1, VERSION_RANGE)? as u8;
    let security = security(r)?;
    let max_lanes = r.number("most lanes", 2, 1..=u64::from(MAX_LANES))? as u16;
    let features = r.u32()?;
    let session = SessionId(r.array()?);
    if session.0 == [0; 16] {
        return Err(ProtoError::Range {
            what: FrameKind::Welcome.name(),
            field: "session id",
            value: 0,
            low: 1,
            high: u64::MAX,
            offset: 8,
        });
    }
    let join_key = Secret(r.array()?);
    let max_block = r.number("largest block", 4, BLOCK_SIZES)? as u32;
    let max_entries = r.number("most entries", 4, 1..=u64::from(MAX_ENTRIES))? as u32;
    let max_object = r.number("largest object", 8, 1..=MAX_OBJECT)?;
    Ok(Welcome {
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
}

fn offer(r: &mut Reader<'_>) -> Result<Offer, ProtoError> {
    let transfer_id = TransferId(r.array()?);
    let block_bytes = r.number("block_bytes", 4, BLOCK_SIZES)? as u32;
    crate::manifest::check_block_bytes(block_bytes, MAX_BLOCK)?;
    let entries = r.number("entry count", 4, 1..=u64::from(MAX_ENTRIES))? as u32;
    let total_bytes = r.number("total bytes", 8, 0..=MAX_OBJECT)?;
    let base_allowed = r.number("base", 1, 0..=1)? == 1;
    let repeats = r.u8()?;
    r.zeros("reserved", 2)?;
    let number = r.u32()?;
    Ok(Offer { transfer_id, block_bytes, entries, total_bytes, base_allowed, repeats, number })
}

fn have(r: &mut Reader<'_>) -> Result<Have, ProtoError> {
    let entry = r.u32()?;
    let source = r.number("source", 1, 0..=2)?;
    let most = if source == 2 { MAX_CANDIDATES as u64 - 1 } else { 0 };
    let candidate = r.number("candidate", 1, 0..=most)? as u8;
    r.zeros("reserved", 2)?;
    let first_block =
        r.number("first block", 4, 0..=if source == 2 { 0 } else { u64::from(u32::MAX) })? as u32;
    let count = r.number("count", 4, if source == 2 { 0..=0 } else { RUN })? as usize;
    let source = match source {
        0 => HaveSource::Staged,
        1 => HaveSource::SamePath,
        _ => HaveSource::Candidate(candidate),
    };
    Ok(Have { entry, source, first_block, digests: r.digests(count)? })
}

fn block(r: &mut Reader<'_>) -> Result<BlockHead, ProtoError> {
    let entry = r.u32()?;
    let raw_len = r.number("raw length", 4, 1..=u64::from(MAX_BLOCK))? as u32;
    let offset = r.number("offset", 8, 0..=MAX_OBJECT - 1)?;
    let kind = BlockKind::ALL[r.number("kind", 1, 0..=5)? as usize];
    let codec = match r.number("codec", 1, if kind == BlockKind::Plain { 0..=3 } else { 0..=0 })? {
        0 => CodecId::None,
        1 => CodecId::Lz4,
        2 => CodecId::Zstd,
        _ => CodecId::ZstdDictionary,
    };
    r.zeros("reserved", 2)?;
    let digest = r.digest()?;
    let base_digest = if kind.needs_base() {
        Some(r.digest()?)
    } else {
        r.zeros("base digest", 16)?;
        None
    };
    Ok(BlockHead { entry, raw_len, offset, kind, codec, digest, base_digest })
}

fn dictionary(r: &mut Reader<'_>) -> Result<DictionaryNote, ProtoError> {
    let digest = r.digest()?;
    let length = r.number("length", 4, 1..=MAX_DICTIONARY as u64)? as u32;
    let word = r.number("word", 1, 0..=3)?;
    r.zeros("reserved", 3)?;
    let word = match word {
        0 => DictionaryWord::Announced,
        1 => DictionaryWord::Wanted,
        // What is left over or missing is found by the reader.
        2 => DictionaryWord::Given(r.bytes(length as usize)?.to_vec()),
        _ => DictionaryWord::Declined,
    };
    Ok(DictionaryNote { digest, length, word })
}

fn error(r: &mut Reader<'_>) -> Result<ErrorFrame, ProtoError> {
    let code = ErrorCode::from(r.u16()?);
    let retryable = r.number("retryable", 1, 0..=1)? == 1;
    r.zeros("reserved", 1)?;
    let text = r.bytes(r.left())?;
    let message =
        std::str::from_utf8(text).map_err(|error| ProtoError::Text { valid: error.valid_up_to() })?;
    Ok(ErrorFrame { code, retryable, message: message.to_owned() })
}
