//! What can be wrong with bytes, and with the order in which they came.

use std::fmt;

use crate::LaneId;
use crate::frame::ErrorCode;
use crate::id::TransferId;
use dwcp_codec::Digest;

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// No bytes at all.
    Empty,
    /// Longer than [`MAX_PATH`](crate::limits::MAX_PATH).
    TooLong,
    /// Starts or ends with a slash, or has two in a row.
    EmptyComponent,
    /// A component is `.` or `..`.
    Dots,
    /// A component is longer than [`MAX_COMPONENT`](crate::limits::MAX_COMPONENT).
    LongComponent,
    /// Holds a NUL byte.
    Nul,
    /// The first component is `.dwcp`, where receivers keep their own files.
    Reserved,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathFault::Empty => "is empty",
            PathFault::TooLong => "is longer than 4096 bytes",
            PathFault::EmptyComponent => "has an empty component",
            PathFault::Dots => "has a component `.` or `..`",
            PathFault::LongComponent => "has a component longer than 255 bytes",
            PathFault::Nul => "holds a NUL byte",
            PathFault::Reserved => "starts with the reserved name `.dwcp`",
        })
    }
}

/// Bytes that are not the format, or a value outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtoError {
    /// The bytes end inside a field.
    #[error("{what} is cut short: {needed} bytes needed at offset {offset}, {left} left")]
    Truncated {
        /// The structure being read.
        what: &'static str,
        /// Bytes the field needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
        /// Where the field begins.
        offset: usize,
    },
    /// Bytes follow the last field.
    #[error("{what} has {left} bytes too many after offset {offset}")]
    Trailing {
        /// The structure being read.
        what: &'static str,
        /// Bytes that follow.
        left: usize,
        /// Where the last field ends.
        offset: usize,
    },
    /// A number is outside its range.
    #[error("{what}: {field} is {value}, the format allows {low} to {high} (offset {offset})")]
    Range {
        /// The structure being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// The least it may say.
        low: u64,
        /// The most it may say.
        high: u64,
        /// Where the field begins.
        offset: usize,
    },
    /// A field that has to be zero is not.
    #[error("{what}: {field} at offset {offset} is not zero")]
    NotZero {
        /// The structure being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Where the field begins.
        offset: usize,
    },
    /// A length or count is above its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The count.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// Not a v3 preface, or not a ledger.
    #[error("{what} does not begin with its magic")]
    Magic {
        /// The structure being read.
        what: &'static str,
    },
    /// No version is spoken by both sides.
    #[error(
        "no common protocol version: this side speaks {} to {}, the peer {} to {}",
        .ours.0, .ours.1, .theirs.0, .theirs.1
    )]
    Version {
        /// Lowest and highest version of this side.
        ours: (u8, u8),
        /// Lowest and highest version of the peer.
        theirs: (u8, u8),
    },
    /// No frame has this type.
    #[error("frame type {value:#04x} is unknown")]
    FrameType {
        /// The type byte.
        value: u8,
    },
    /// A handshake frame inside a session, or another frame before it.
    #[error("{frame} is not allowed {}", if *.in_session { "inside a session" } else { "before WELCOME" })]
    OutOfPlace {
        /// The frame.
        frame: &'static str,
        /// Whether the lane is in its session already.
        in_session: bool,
    },
    /// The head of a frame has a length that its type cannot have.
    #[error("{frame} has a head of {length} bytes, allowed are {low} to {high}")]
    HeadLength {
        /// The frame.
        frame: &'static str,
        /// What its header says.
        length: usize,
        /// The least for this type.
        low: usize,
        /// The most for this type.
        high: usize,
    },
    /// The body of a frame has a length that it cannot have.
    #[error("{frame} has a body of {length} bytes, allowed are {low} to {high}")]
    BodyLength {
        /// The frame.
        frame: &'static str,
        /// What its header says.
        length: u32,
        /// The least.
        low: u32,
        /// The most.
        high: u32,
    },
    /// A frame was lost, repeated or moved.
    #[error("frame sequence is {found}, expected {expected}")]
    Sequence {
        /// The number that comes next.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// The lane has carried as many frames as the sequence can count.
    #[error("the lane has used up its sequence numbers")]
    SequenceExhausted,
    /// The header or the head of a frame was altered, or is of another session.
    #[error("the check of a {frame} frame does not match its bytes")]
    Check {
        /// The frame, as its header says.
        frame: &'static str,
    },
    /// The text of an ERROR is not UTF-8.
    #[error("the text of an ERROR is not UTF-8 after {valid} bytes")]
    Text {
        /// Bytes that are.
        valid: usize,
    },
    /// An entry has a path it must not have.
    #[error("the path of entry {entry} {fault}")]
    Path {
        /// The entry.
        entry: u32,
        /// What is wrong.
        fault: PathFault,
    },
    /// A field of an entry has a value it must not have.
    #[error("entry {entry}: {field} is {value}, the limit for its kind is {limit}")]
    EntryField {
        /// The entry.
        entry: u32,
        /// The field.
        field: &'static str,
        /// What it says.
        value: i64,
        /// The most it may say.
        limit: i64,
    },
    /// The target of a symbolic link is empty, too long or has a NUL.
    #[error(
        "the link target of entry {entry} has {length} bytes or a NUL, allowed are 1 to 4095 bytes without"
    )]
    Target {
        /// The entry.
        entry: u32,
        /// Length of the target.
        length: usize,
    },
    /// Two entries have the same path.
    #[error("entries {first} and {second} have the same path")]
    DuplicatePath {
        /// The one.
        first: u32,
        /// The other.
        second: u32,
    },
    /// An entry lies below one that is no directory, or comes before its directory.
    #[error("entry {entry} lies below entry {parent}, which is no directory or comes later")]
    Parent {
        /// The entry.
        entry: u32,
        /// The entry whose path is a prefix of it.
        parent: u32,
    },
    /// Buffers and other entries in one transfer.
    #[error("entry {entry} mixes buffers with other entries")]
    MixedKinds {
        /// The first entry that differs from entry 0.
        entry: u32,
    },
    /// The manifest is not the one that was offered.
    #[error("the manifest has the transfer id {actual}, offered was {expected}")]
    TransferId {
        /// The id in OFFER or ledger.
        expected: TransferId,
        /// The id that follows from the entries.
        actual: TransferId,
    },
    /// Parts of the manifest are missing, repeated or out of order.
    #[error("a part of the manifest begins at entry {found}, expected {expected}")]
    ManifestOrder {
        /// The number of entries told before.
        expected: u32,
        /// Where the part begins.
        found: u32,
    },
    /// The sizes do not add up to what was offered.
    #[error("the manifest has {actual} bytes, offered were {expected}")]
    TotalBytes {
        /// What OFFER says.
        expected: u64,
        /// The sum.
        actual: u64,
    },
}

impl ProtoError {
    /// The code by which the peer is told.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            ProtoError::Version { .. } => ErrorCode::Unsupported,
            ProtoError::Limit { .. } => ErrorCode::Limit,
            ProtoError::Check { .. } | ProtoError::Sequence { .. } => ErrorCode::Integrity,
            _ => ErrorCode::Format,
        }
    }
}

/// A frame that is well formed but must not come here and now, or a report of the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Bytes or values outside the format.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// The peer ended the session with an ERROR.
    #[error("the peer reports {code}: {message}")]
    Peer {
        /// What it says went wrong.
        code: ErrorCode,
        /// Whether it says that trying again may help.
        retryable: bool,
        /// Its text, without control characters.
        message: String,
    },
    /// The frame has no place in this phase, or on this side.
    #[error("{frame} has no place in phase {phase}")]
    Unexpected {
        /// The frame.
        frame: &'static str,
        /// The phase.
        phase: &'static str,
    },
    /// A frame that has to come on another lane.
    #[error("{frame} came on lane {lane}, its exchange is on another")]
    WrongLane {
        /// The frame.
        frame: &'static str,
        /// The lane it came on.
        lane: LaneId,
    },
    /// The lane was never attached, or is detached.
    #[error("lane {lane} is not attached")]
    UnknownLane {
        /// The lane.
        lane: LaneId,
    },
    /// A value that does not fit this transfer.
    #[error("{what} is {value}, the limit here is {limit}")]
    OutOfRange {
        /// What it is.
        what: &'static str,
        /// What the frame says.
        value: u64,
        /// What the transfer allows.
        limit: u64,
    },
    /// A frame about another transfer.
    #[error("the peer speaks of transfer {actual}, this is {expected}")]
    TransferMismatch {
        /// This transfer.
        expected: TransferId,
        /// The other.
        actual: TransferId,
    },
    /// Two copies of a block have different digests.
    #[error("entry {entry}: two different blocks at offset {offset}")]
    DigestMismatch {
        /// The entry.
        entry: u32,
        /// Where the block lies.
        offset: u64,
    },
    /// The transfer digests of the two sides differ.
    #[error("the transfer digest of the peer differs")]
    TransferDigest,
    /// The source gave other bytes for a block than before.
    #[error("entry {entry} changed while it was sent: the block at offset {offset} differs")]
    SourceChanged {
        /// The entry.
        entry: u32,
        /// Where the block lies.
        offset: u64,
    },
    /// The driver resolved a block in a way that its task does not allow.
    #[error("the block at offset {offset} of entry {entry} cannot be resolved this way")]
    Resolution {
        /// The entry.
        entry: u32,
        /// Where the block lies.
        offset: u64,
    },
    /// A block that was made with a dictionary, in a transfer that has none.
    #[error("the block at offset {offset} of entry {entry} is made with a dictionary that was not agreed on")]
    NoDictionary {
        /// The entry.
        entry: u32,
        /// Where the block lies.
        offset: u64,
    },
    /// A dictionary that is announced twice, given unasked, or is another than the one asked for.
    #[error("dictionary {digest} has no place here: it is announced once, and given once if it is asked for")]
    DictionaryOrder {
        /// Which one the frame is about.
        digest: Digest,
    },
    /// The bytes of a dictionary are not those that were announced.
    #[error("the dictionary has digest {actual}, announced was {expected}")]
    DictionaryDigest {
        /// What was announced.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Bytes that are no dictionary, though they are those that were announced.
    #[error("the {length} bytes of dictionary {digest} cannot be used as a dictionary")]
    UnusableDictionary {
        /// Which one it is.
        digest: Digest,
        /// How long it is.
        length: u32,
    },
    /// The session cannot carry another transfer, since frames of a lost lane may still arrive.
    #[error("the session lost a lane with unacknowledged frames; the next transfer needs a new session")]
    NotReusable,
}

impl SessionError {
    /// The code by which the peer is told.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            SessionError::Proto(error) => error.code(),
            SessionError::Peer { code, .. } => *code,
            SessionError::OutOfRange { .. } => ErrorCode::Format,
            SessionError::Unexpected { .. } | SessionError::WrongLane { .. } => ErrorCode::Format,
            SessionError::TransferMismatch { .. } => ErrorCode::Format,
            SessionError::NoDictionary { .. }
            | SessionError::DictionaryOrder { .. }
            | SessionError::UnusableDictionary { .. } => ErrorCode::Format,
            SessionError::DigestMismatch { .. }
            | SessionError::TransferDigest
            | SessionError::DictionaryDigest { .. }
            | SessionError::SourceChanged { .. } => ErrorCode::Integrity,
            SessionError::UnknownLane { .. }
            | SessionError::Resolution { .. }
            | SessionError::NotReusable => ErrorCode::Internal,
        }
    }
}
