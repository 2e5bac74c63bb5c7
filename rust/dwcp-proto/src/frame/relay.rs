//! The frames of relay sessions, which carry streams both ways.

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};

use super::FrameKind;
use crate::error::ProtoError;
use crate::limits::{MAX_BLOCK, MAX_CHANNEL, MAX_HEAD, MAX_OBJECT, MAX_RUN};
use crate::wire::{Reader, Writer};

/// The bit of [`Hello::features`](super::Hello::features) and [`Welcome::features`](super::Welcome::features) by which a
/// session is one of a relay.
pub const FEATURE_RELAY: u32 = 8;

/// What both sides of a relay have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The listening side is ready; otherwise the side that dials begins.
    pub ready: bool,
    /// Bytes of pages that each side holds of a stream.
    pub cache_bytes: u64,
    /// Pages of the base that the listening side has told; 0 from the side that dials.
    pub base_pages: u64,
}

/// Pages of the base that the listening side of a relay holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePart {
    /// The first page, counted from the beginning of its block of RAM; 0 begins a block.
    pub first_page: u32,
    /// The name of the block, 1 to 255 bytes.
    pub name: Vec<u8>,
    /// The digest of each page.
    pub digests: Vec<Digest>,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordWord {
    /// The first of a stream that the side that dials opens: its bytes are the name of the channel.
    Opens = 0,
    /// Bytes of the stream.
    Data = 1,
    /// A chunk of a stream with the pages of a machine.
    Pages = 2,
    /// No more bytes follow.
    End = 3,
    /// The stream was reset.
    Reset = 4,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// The stream, numbered by the side that dials.
    pub stream: u32,
    /// What it is.
    pub word: RecordWord,
    /// How the body represents it.
    pub kind: BlockKind,
    /// How the body is compressed.
    pub codec: CodecId,
    /// How many records of this stream and direction went before it.
    pub number: u64,
    /// How many bytes it has.
    pub raw_len: u32,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// How many records of a stream the peer is done with, and how many came over a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The stream.
    pub stream: u32,
    /// How many records, counted from its first.
    pub count: u64,
    /// How many records of any stream have come over the lane that carries this.
    pub come: u64,
}

impl RecordHead {
    /// The lengths that its body may have.
    pub(super) fn body_lengths(&self) -> (u32, u32) {
        match (self.kind, self.codec) {
            _ if self.raw_len == 0 => (0, 0),
            (BlockKind::Fill, _) => (1, 1),
            (BlockKind::Plain, CodecId::None) => (self.raw_len, self.raw_len),
            (BlockKind::Plain, _) => (1, self.raw_len),
            _ => (1, self.raw_len - 1),
        }
    }
}

pub(super) fn put_relay(relay: &Relay, w: &mut Writer<'_>) {
    w.u8(u8::from(relay.ready));
    w.zeros(7);
    w.u64(relay.cache_bytes);
    w.u64(relay.base_pages);
}

pub(super) fn relay(r: &mut Reader<'_>) -> Result<Relay, ProtoError> {
    let ready = r.number("word", 1, 0..=1)? == 1;
    r.zeros("reserved", 7)?;
    let cache_bytes = r.number("cache", 8, 0..=MAX_OBJECT)?;
    let base_pages = r.number("pages", 8, 0..=if ready { MAX_OBJECT } else { 0 })?;
    Ok(Relay { ready, cache_bytes, base_pages })
}

pub(super) fn put_base(part: &BasePart, w: &mut Writer<'_>) -> Result<(), ProtoError> {
    let what = "digests of a BASE";
    let (count, length) = (part.digests.len(), part.name.len());
    if !(1..=MAX_RUN).contains(&count) {
        return Err(ProtoError::Limit { what, value: count as u64, limit: MAX_RUN as u64 });
    }
    if !(1..=255).contains(&length) {
        return Err(ProtoError::Limit { what: "the name of a block", value: length as u64, limit: 255 });
    }
    w.u32(part.first_page);
    w.u32(count as u32);
    w.u8(length as u8);
    w.bytes(&part.name);
    w.digests(&part.digests);
    Ok(())
}

pub(super) fn base(r: &mut Reader<'_>) -> Result<BasePart, ProtoError> {
    let first_page = r.u32()?;
    let count = r.number("count", 4, 1..=MAX_RUN as u64)? as usize;
    let length = r.number("name length", 1, 1..=255)? as usize;
    let name = r.bytes(length)?.to_vec();
    Ok(BasePart { first_page, name, digests: r.digests(count)? })
}

pub(super) fn put_record(record: &RecordHead, w: &mut Writer<'_>) {
    w.u32(record.stream);
    w.u8(record.word as u8);
    w.u8(record.kind as u8);
    w.u8(record.codec as u8);
    w.u8(0);
    w.u64(record.number);
    w.u32(record.raw_len);
    w.bytes(&record.digest.0);
}

pub(super) fn record(r: &mut Reader<'_>) -> Result<RecordHead, ProtoError> {
    let stream = r.u32()?;
    let word = match r.number("word", 1, 0..=4)? {
        0 => RecordWord::Opens,
        1 => RecordWord::Data,
        2 => RecordWord::Pages,
        3 => RecordWord::End,
        _ => RecordWord::Reset,
    };
    let kind = BlockKind::ALL[r.number("kind", 1, 0..=2)? as usize];
    let codec = match r.number("codec", 1, if kind == BlockKind::Plain { 0..=2 } else { 0..=0 })? {
        0 => CodecId::None,
        1 => CodecId::Lz4,
        _ => CodecId::Zstd,
    };
    r.zeros("reserved", 1)?;
    let number = r.u64()?;
    let lengths = match word {
        RecordWord::Opens => 1..=MAX_CHANNEL as u64,
        RecordWord::Data | RecordWord::Pages => 1..=u64::from(MAX_BLOCK),
        RecordWord::End | RecordWord::Reset => 0..=0,
    };
    let raw_len = r.number("raw length", 4, lengths)? as u32;
    Ok(RecordHead { stream, word, kind, codec, number, raw_len, digest: r.digest()? })
}

pub(super) fn head_lengths(kind: FrameKind) -> (usize, usize) {
    match kind {
        FrameKind::Base => (9 + 1 + 16, MAX_HEAD),
        FrameKind::Record => (36, 36),
        FrameKind::Taken => (20, 20),
        _ => (24, 24),
    }
}
