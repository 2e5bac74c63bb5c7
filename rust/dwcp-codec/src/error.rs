//! What can be wrong with a block, a container or the name of a codec.

use crate::codec::CodecId;
use crate::digest::Digest;

/// A failure to encode or decode bytes. Messages name the value and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A codec name that is not one of the known ones.
    #[error("unknown codec {name:?}: expected none, lz4, lz4:ACCELERATION, zstd or zstd:LEVEL")]
    UnknownCodecName {
        /// The name as given, cut to 64 characters.
        name: String,
    },
    /// A zstd level outside what the library supports.
    #[error("zstd level {level} is outside {min}..={max}")]
    LevelOutOfRange {
        /// The level asked for.
        level: i32,
        /// The lowest level supported.
        min: i32,
        /// The highest level supported.
        max: i32,
    },
    /// An acceleration of LZ4 that makes no difference.
    #[error("lz4 acceleration {acceleration} is outside {min}..={max}")]
    AccelerationOutOfRange {
        /// The acceleration asked for.
        acceleration: i32,
        /// The lowest.
        min: i32,
        /// The highest.
        max: i32,
    },
    /// A codec id this version does not know.
    #[error("unknown codec id {id}: the highest known is {max}")]
    UnknownCodecId {
        /// The id as read.
        id: u8,
        /// The highest known id.
        max: u8,
    },
    /// A block kind this version does not know.
    #[error("unknown block kind {kind}: the highest known is {max}")]
    UnknownBlockKind {
        /// The kind as read.
        kind: u8,
        /// The highest known kind.
        max: u8,
    },
    /// A text that is not a digest.
    #[error("a digest is 32 hexadecimal digits, got {length} characters that are not")]
    InvalidDigest {
        /// Length of the text in bytes.
        length: usize,
    },
    /// The input is longer than the codec can take in one piece.
    #[error("input of {length} bytes is over the {codec} limit of {limit} bytes")]
    InputTooLarge {
        /// The codec.
        codec: CodecId,
        /// Length of the input in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The encoded data does not fit the output buffer.
    #[error("output buffer of {capacity} bytes is too small for what has to be written")]
    OutputTooSmall {
        /// Size of the buffer in bytes.
        capacity: usize,
    },
    /// Data decoded to another length than was promised.
    #[error("data does not decode to the {expected} bytes promised")]
    RawLength {
        /// The promised length in bytes.
        expected: usize,
    },
    /// The compressed data is damaged.
    #[error("damaged {codec} data of {length} bytes: {reason}")]
    Corrupt {
        /// The codec.
        codec: CodecId,
        /// Length of the compressed data in bytes.
        length: usize,
        /// What the decoder said.
        reason: &'static str,
    },
    /// A number in a block told by segments is out of its range.
    #[error("{field} is {value}, over the limit of {limit}")]
    SegmentField {
        /// What the number tells.
        field: &'static str,
        /// The number.
        value: u64,
        /// The highest it may be.
        limit: u64,
    },
    /// Memory could not be had.
    #[error("out of memory asking for {bytes} bytes")]
    OutOfMemory {
        /// How many bytes were asked for (0: a codec's own state).
        bytes: usize,
    },
    /// A fill block is not one uncompressed byte.
    #[error("fill block has {length} bytes of codec {codec}, it must have 1 of codec none")]
    FillBlock {
        /// Length of the wire bytes.
        length: usize,
        /// The codec named.
        codec: CodecId,
    },
    /// A block that is coded against a base came without it.
    #[error("block is coded against a base and none is given")]
    MissingBase,
    /// The base is shorter than the block, in a kind that needs all of it.
    #[error("base block of {length} bytes is shorter than the {needed} bytes of the block coded against it")]
    ShortBase {
        /// Length of the base in bytes.
        length: usize,
        /// Length of the block in bytes.
        needed: usize,
    },
    /// A width of elements that there is not.
    #[error("elements of {width} bytes: expected 1, 2, 4 or 8")]
    ElementWidth {
        /// The width in bytes.
        width: u8,
    },
    /// An action that needs elements was asked of bytes.
    #[error("byte planes need elements of 2, 4 or 8 bytes, not of {width}")]
    NoPlanes {
        /// The width in bytes; 1 where none was given.
        width: u8,
    },
    /// The length or the codec of a coded block is not one it can have.
    #[error(
        "coded block has {length} bytes of codec {codec} for {raw_length} bytes of at most {limit}: expected fewer, \
         of codec none"
    )]
    CodedBlock {
        /// The codec named.
        codec: CodecId,
        /// Length of the wire bytes.
        length: usize,
        /// Length of the block in bytes.
        raw_length: usize,
        /// The longest block in bytes.
        limit: usize,
    },
    /// The mode of a coded block is none of its kind.
    #[error("unknown mode {mode:#04x} of a coded block")]
    UnknownMode {
        /// The mode as read.
        mode: u8,
    },
    /// The coder of a stream is not known.
    #[error("{what}: unknown stream coder {coder}, the highest known is {max}")]
    UnknownCoder {
        /// The part of the payload.
        what: &'static str,
        /// The coder as read.
        coder: u8,
        /// The highest known coder.
        max: u8,
    },
    /// A payload ends within one of its parts.
    #[error("{what}: {length} bytes are needed and {left} are left of the payload")]
    PayloadEnds {
        /// The part of the payload.
        what: &'static str,
        /// Length needed in bytes.
        length: usize,
        /// Length of what is left in bytes.
        left: usize,
    },
    /// Something follows the last part of a payload.
    #[error("{bytes} bytes follow the last part of the payload")]
    PayloadLeft {
        /// How many bytes.
        bytes: usize,
    },
    /// A number in a payload is outside its range.
    #[error("{what}: {value} is outside {low}..={high}")]
    PayloadNumber {
        /// The part of the payload.
        what: &'static str,
        /// The number as read.
        value: u64,
        /// The least it can be.
        low: usize,
        /// The most it can be.
        high: usize,
    },
    /// A number in a payload takes more bytes than it needs, or more bits than there are.
    #[error("{what}: a number takes more bytes than it needs, or more than 64 bits")]
    LongNumber {
        /// The part of the payload.
        what: &'static str,
    },
    /// The container is shorter than its header.
    #[error("container of {length} bytes is shorter than its header of {needed} bytes")]
    Truncated {
        /// Length of what is there in bytes.
        length: usize,
        /// Length needed in bytes.
        needed: usize,
    },
    /// The container does not begin with its magic.
    #[error("not a DWCB container: it begins with {found:02x?}")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The container is of another version.
    #[error("container version {version} is not supported, the highest known is {max}")]
    UnsupportedVersion {
        /// The version as read.
        version: u8,
        /// The highest known version.
        max: u8,
    },
    /// Bits or bytes that must be zero are not.
    #[error("reserved header field is {value:#04x}, it must be zero")]
    ReservedNotZero {
        /// The value as read.
        value: u8,
    },
    /// The container promises more than the caller allows.
    #[error("container promises {length} bytes, over the limit of {limit} bytes")]
    OverLimit {
        /// The promised length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A page that the memory does not have.
    #[error("there is no page {number}: the memory has {pages}")]
    Page {
        /// Its number.
        number: u64,
        /// How many pages there are.
        pages: usize,
    },
    /// Bytes that cannot be used as a dictionary.
    #[error("{length} bytes cannot be used as a dictionary: {reason}")]
    Dictionary {
        /// How many bytes there are.
        length: usize,
        /// Why not.
        reason: &'static str,
    },
    /// No dictionary can be made of these samples.
    #[error("cannot train a dictionary on {samples} samples of {bytes} bytes in all: {reason}")]
    Training {
        /// How many samples there are.
        samples: usize,
        /// How many bytes they have together.
        bytes: usize,
        /// Why not.
        reason: &'static str,
    },
    /// A codec that takes no dictionary was asked to use one.
    #[error("codec {codec} takes no dictionary, only zstd does")]
    DictionaryCodec {
        /// The codec.
        codec: CodecId,
    },
    /// What is to be decoded was made with a dictionary, and there is none.
    #[error("the data was made with a dictionary, and none is given")]
    NoDictionary,
    /// The container was made with a dictionary, which was not given.
    #[error("the container needs dictionary {needed}")]
    DictionaryMissing {
        /// Digest of the dictionary.
        needed: Digest,
    },
    /// The container was made with another dictionary than the one given.
    #[error("the container needs dictionary {needed}, not {given}")]
    DictionaryMismatch {
        /// Digest of the dictionary that is needed.
        needed: Digest,
        /// Digest of the one given.
        given: Digest,
    },
    /// The decoded bytes are not those that were encoded.
    #[error("digest of the decoded bytes is {actual}, expected {expected}")]
    DigestMismatch {
        /// The digest in the header.
        expected: Digest,
        /// The digest of what was decoded.
        actual: Digest,
    },
}
