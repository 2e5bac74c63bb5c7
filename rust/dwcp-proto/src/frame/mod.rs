//! The frames of a lane.

mod head;
mod relay;
mod stream;

use std::fmt;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};

pub use crate::id::{SessionId, TransferId};
use crate::limits::MAX_TEXT;
pub use crate::manifest::ManifestPart;
pub use relay::{BasePart, FEATURE_RELAY, RecordHead, RecordWord, Relay, Taken};
pub use stream::{FrameDecoder, FrameEncoder, Pending};

/// One frame without the body of a BLOCK or RECORD, which the driver moves by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First on every lane, from the side that dials.
    Hello(Hello),
    /// Answers HELLO.
    Welcome(Welcome),
    /// Opens a transfer.
    Offer(Offer),
    /// Entries of the transfer.
    Manifest(ManifestPart),
    /// Blocks that the receiver holds.
    Have(Have),
    /// Blocks may flow.
    Accept(Accept),
    /// One block; its body follows the head.
    Block(BlockHead),
    /// Blocks that equal the receiver's base.
    Same(Same),
    /// How many BLOCK and SAME frames of the lane are done with.
    Ack(u32),
    /// A block has to be sent again, in full.
    Nack(Nack),
    /// Tree digests of entries.
    Digests(Digests),
    /// Everything was sent.
    Finish(Finish),
    /// Everything is in place.
    Committed(Committed),
    /// The end of the session, with a reason.
    Error(ErrorFrame),
    /// The peaceful end of a lane.
    Close,
    /// A sign of life.
    KeepAlive,
    /// The receiver that has dialled asks for a transfer.
    Fetch(Fetch),
    /// The dictionary of the transfer, or a word about it.
    Dictionary(DictionaryNote),
    /// So many bytes that mean nothing, to see how fast they pass.
    Fill(u32),
    /// Begins a relay, or answers that.
    Relay(Relay),
    /// Pages of the base of a relay.
    Base(BasePart),
    /// One record of a stream; its body follows the head.
    Record(RecordHead),
    /// How many records of a stream are done with.
    Taken(Taken),
}

impl Frame {
    /// The name in the wire document.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    fn kind(&self) -> FrameKind {
        match self {
            Frame::Hello(_) => FrameKind::Hello,
            Frame::Welcome(_) => FrameKind::Welcome,
            Frame::Offer(_) => FrameKind::Offer,
            Frame::Manifest(_) => FrameKind::Manifest,
            Frame::Have(_) => FrameKind::Have,
            Frame::Accept(_) => FrameKind::Accept,
            Frame::Block(_) => FrameKind::Block,
            Frame::Same(_) => FrameKind::Same,
            Frame::Ack(_) => FrameKind::Ack,
            Frame::Nack(_) => FrameKind::Nack,
            Frame::Digests(_) => FrameKind::Digests,
            Frame::Finish(_) => FrameKind::Finish,
            Frame::Committed(_) => FrameKind::Committed,
            Frame::Error(_) => FrameKind::Error,
            Frame::Close => FrameKind::Close,
            Frame::KeepAlive => FrameKind::KeepAlive,
            Frame::Fetch(_) => FrameKind::Fetch,
            Frame::Dictionary(_) => FrameKind::Dictionary,
            Frame::Fill(_) => FrameKind::Fill,
            Frame::Relay(_) => FrameKind::Relay,
            Frame::Base(_) => FrameKind::Base,
            Frame::Record(_) => FrameKind::Record,
            Frame::Taken(_) => FrameKind::Taken,
        }
    }
}

/// The type byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum FrameKind {
    Hello = 0x01,
    Welcome = 0x02,
    Offer = 0x03,
    Manifest = 0x04,
    Have = 0x05,
    Accept = 0x06,
    Block = 0x07,
    Same = 0x08,
    Ack = 0x09,
    Nack = 0x0A,
    Digests = 0x0B,
    Finish = 0x0C,
    Committed = 0x0D,
    Error = 0x0E,
    Close = 0x0F,
    KeepAlive = 0x10,
    Fetch = 0x11,
    Dictionary = 0x12,
    Fill = 0x13,
    Relay = 0x14,
    Base = 0x15,
    Record = 0x16,
    Taken = 0x17,
}

impl FrameKind {
    const ALL: [FrameKind; 23] = [
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Offer,
        FrameKind::Manifest,
        FrameKind::Have,
        FrameKind::Accept,
        FrameKind::Block,
        FrameKind::Same,
        FrameKind::Ack,
        FrameKind::Nack,
        FrameKind::Digests,
        FrameKind::Finish,
        FrameKind::Committed,
        FrameKind::Error,
        FrameKind::Close,
        FrameKind::KeepAlive,
        FrameKind::Fetch,
        FrameKind::Dictionary,
        FrameKind::Fill,
        FrameKind::Relay,
        FrameKind::Base,
        FrameKind::Record,
        FrameKind::Taken,
    ];

    fn name(self) -> &'static str {
        match self {
            FrameKind::Hello => "HELLO",
            FrameKind::Welcome => "WELCOME",
            FrameKind::Offer => "OFFER",
            FrameKind::Manifest => "MANIFEST",
            FrameKind::Have => "HAVE",
            FrameKind::Accept => "ACCEPT",
            FrameKind::Block => "BLOCK",
            FrameKind::Same => "SAME",
            FrameKind::Ack => "ACK",
            FrameKind::Nack => "NACK",
            FrameKind::Digests => "DIGESTS",
            FrameKind::Finish => "FINISH",
            FrameKind::Committed => "COMMITTED",
            FrameKind::Error => "ERROR",
            FrameKind::Close => "CLOSE",
            FrameKind::KeepAlive => "KEEPALIVE",
            FrameKind::Fetch => "FETCH",
            FrameKind::Dictionary => "DICTIONARY",
            FrameKind::Fill => "FILL",
            FrameKind::Relay => "RELAY",
            FrameKind::Base => "BASE",
            FrameKind::Record => "RECORD",
            FrameKind::Taken => "TAKEN",
        }
    }
}

/// 32 secret bytes: a pairing token or a join key. Never shown by `Debug`; `==` is not constant-time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// No secret.
    pub const NONE: Secret = Secret([0; 32]);
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Secret::NONE { "Secret(none)" } else { "Secret(..)" })
    }
}

/// What a lane runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Security {
    /// TCP alone.
    Plaintext = 0,
    /// TLS 1.3.
    Tls = 1,
}

/// The bit of [`Welcome::features`] by which the listening side takes the part of the sender. In HELLO the bit goes
/// with [`Hello::fetches`].
pub const FEATURE_FETCH: u32 = 1;

/// The bit of [`Hello::features`] and [`Welcome::features`] by which a side knows of dictionaries.
pub const FEATURE_DICTIONARY: u32 = 2;

/// The bit of [`Hello::features`] and [`Welcome::features`] by which a side knows of FILL.
pub const FEATURE_FILL: u32 = 4;

/// What the side that dials takes as a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Most entries of a transfer.
    pub max_entries: u32,
    /// Largest object.
    pub max_object: u64,
}

/// The side that dials introduces a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version in force.
    pub version: u8,
    /// What the lane runs over.
    pub security: Security,
    /// The number that the side that dials gives this lane, 0 to 255.
    pub lane: u16,
    /// Feature bits besides [`FEATURE_FETCH`].
    pub features: u32,
    /// The session to join; none opens one.
    pub session: Option<SessionId>,
    /// Opening: the pairing token or none; joining: the join key.
    pub secret: Secret,
    /// Largest block size that the side that dials uses, or takes if it fetches.
    pub max_block: u32,
    /// The side that dials is the receiver of this session, and this is what it takes; otherwise it sends.
    pub fetches: Option<Takes>,
}

/// The listening side lets a lane in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version in force.
    pub version: u8,
    /// What the lane runs over.
    pub security: Security,
    /// Most lanes of the session at once.
    pub max_lanes: u16,
    /// The feature bits of HELLO that the listening side takes too.
    pub features: u32,
    /// The session.
    pub session: SessionId,
    /// What further lanes show to join.
    pub join_key: Secret,
    /// Largest block size that the receiver takes.
    pub max_block: u32,
    /// Most entries of a transfer.
    pub max_entries: u32,
    /// Largest object.
    pub max_object: u64,
}

/// Opens a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The id that the manifest must yield.
    pub transfer_id: TransferId,
    /// The block size.
    pub block_bytes: u32,
    /// How many entries the manifest has.
    pub entries: u32,
    /// The sum of all sizes.
    pub total_bytes: u64,
    /// Whether the receiver may announce bases.
    pub base_allowed: bool,
    /// How many OFFER frames of the same transfer went right before it, 255 if there were more.
    pub repeats: u8,
    /// How many OFFER frames went before it in this session.
    pub number: u32,
}

/// Where announced blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaveSource {
    /// They are in place, in staging.
    Staged,
    /// They are in an object at the path of the entry.
    SamePath,
    /// They are in the candidate of this number, as a whole.
    Candidate(u8),
}

/// Blocks that the receiver holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Have {
    /// The entry they are for.
    pub entry: u32,
    /// Where they come from.
    pub source: HaveSource,
    /// The first block.
    pub first_block: u32,
    /// The digest of each block; empty for a candidate.
    pub digests: Vec<Digest>,
}

/// Ends the announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The transfer.
    pub transfer_id: TransferId,
    /// Bytes of the staged blocks announced.
    pub staged_bytes: u64,
}

/// The head of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// The entry.
    pub entry: u32,
    /// Length of the block.
    pub raw_len: u32,
    /// Where it lies in the object.
    pub offset: u64,
    /// How the body represents it.
    pub kind: BlockKind,
    /// How the body is compressed.
    pub codec: CodecId,
    /// The digest of the block.
    pub digest: Digest,
    /// The digest of the base block; there for kinds that [need one](BlockKind::needs_base) only.
    pub base_digest: Option<Digest>,
}

/// Blocks that equal the receiver's base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Same {
    /// The entry.
    pub entry: u32,
    /// The first block.
    pub first_block: u32,
    /// The digest of each block.
    pub digests: Vec<Digest>,
}

/// The receiver that has dialled asks for a transfer.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetch {
    /// How many FETCH went before it in this session, repetitions not counted.
    pub number: u32,
    /// What it asks for, in words that only the two applications know; at most 65,536 bytes.
    pub request: Vec<u8>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch")
            .field("number", &self.number)
            .field("request_bytes", &self.request.len())
            .finish()
    }
}

/// The dictionary of a transfer, or a word about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DictionaryNote {
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many bytes it has, 1 to 1,048,552.
    pub length: u32,
    /// What is said of it.
    pub word: DictionaryWord,
}

/// What is said of a dictionary.
#[derive(Clone, PartialEq, Eq)]
pub enum DictionaryWord {
    /// The sender: blocks may be made with it.
    Announced,
    /// The receiver: it is not known here and to be given.
    Wanted,
    /// The sender: here it is.
    Given(Vec<u8>),
    /// The receiver: it is too long, so no block may be made with it.
    Declined,
}

impl fmt::Debug for DictionaryWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DictionaryWord::Announced => "Announced",
            DictionaryWord::Wanted => "Wanted",
            DictionaryWord::Given(_) => "Given(..)",
            DictionaryWord::Declined => "Declined",
        })
    }
}

/// Why a block has to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NackReason {
    /// The receiver's base block is not what the sender takes it for.
    BaseDiffers = 1,
    /// The receiver has no such base.
    NoBase = 2,
}

/// A block has to be sent again, in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The entry.
    pub entry: u32,
    /// Why.
    pub reason: NackReason,
    /// Where the block lies in the object.
    pub offset: u64,
}

/// Tree digests of entries in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// The first entry; 0 starts anew.
    pub first_entry: u32,
    /// The tree digest of each; zero for an entry without an object.
    pub digests: Vec<Digest>,
}

/// Everything was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The transfer.
    pub transfer_id: TransferId,
    /// Its digest.
    pub transfer_digest: Digest,
}

/// Everything is in place: the only sign of success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The transfer.
    pub transfer_id: TransferId,
    /// Its digest.
    pub transfer_digest: Digest,
    /// Bytes of the BLOCK bodies that were stored in this session.
    pub body_bytes: u64,
}

/// What went wrong at the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// Bytes outside the format, or frames out of order.
    Format = 1,
    /// The peer is not who it has to be.
    Auth = 2,
    /// Bytes do not match their digest or check.
    Integrity = 3,
    /// More than was agreed.
    Limit = 4,
    /// A version or feature that is not spoken.
    Unsupported = 5,
    /// A base is not what it has to be.
    BaseMismatch = 6,
    /// Reading or writing failed.
    Storage = 7,
    /// Somebody stopped it.
    Cancelled = 8,
    /// It took too long.
    Deadline = 9,
    /// The receiver may not or cannot create what was offered.
    Refused = 10,
    /// Anything else.
    Internal = 11,
}

impl From<u16> for ErrorCode {
    /// Unknown codes are read as [`ErrorCode::Internal`].
    fn from(code: u16) -> ErrorCode {
        match code {
            1 => ErrorCode::Format,
            2 => ErrorCode::Auth,
            3 => ErrorCode::Integrity,
            4 => ErrorCode::Limit,
            5 => ErrorCode::Unsupported,
            6 => ErrorCode::BaseMismatch,
            7 => ErrorCode::Storage,
            8 => ErrorCode::Cancelled,
            9 => ErrorCode::Deadline,
            10 => ErrorCode::Refused,
            _ => ErrorCode::Internal,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorCode::Format => "format error",
            ErrorCode::Auth => "authentication failure",
            ErrorCode::Integrity => "integrity failure",
            ErrorCode::Limit => "limit exceeded",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::BaseMismatch => "base mismatch",
            ErrorCode::Storage => "storage failure",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::Deadline => "deadline passed",
            ErrorCode::Refused => "refused",
            ErrorCode::Internal => "internal error",
        })
    }
}

/// The end of a session, with a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFrame {
    /// What went wrong.
    pub code: ErrorCode,
    /// Whether trying again may help.
    pub retryable: bool,
    /// Text for people, at most 1,024 bytes.
    pub message: String,
}

impl ErrorFrame {
    /// An ERROR whose text is cut to what fits.
    #[must_use]
    pub fn new(code: ErrorCode, retryable: bool, message: &str) -> ErrorFrame {
        let end =
            (0..=message.len().min(MAX_TEXT)).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        ErrorFrame { code, retryable, message: message[..end].to_owned() }
    }
}
