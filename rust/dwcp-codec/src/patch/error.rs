//! What can be wrong with a patch or with what it is applied to.

use crate::digest::Digest;
use crate::error::CodecError;

/// A failure to make, read or apply a patch. Messages name the value and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// A block size that is not a power of two from 64 KiB to 4 MiB.
    #[error("patch block size of {block_bytes} bytes is not a power of two from {min} to {max}")]
    BlockBytes {
        /// The block size.
        block_bytes: u32,
        /// The smallest allowed.
        min: u32,
        /// The largest allowed.
        max: u32,
    },
    /// An element width that is not supported.
    #[error("element width of {width} bytes is not one of 1, 2, 4, 8")]
    Width {
        /// The width.
        width: u8,
    },
    /// More blocks than a patch can list.
    #[error("target of {target_size} bytes needs {blocks} blocks, over the limit of {limit}")]
    TooManyBlocks {
        /// Size of the target.
        target_size: u64,
        /// Number of blocks.
        blocks: u64,
        /// The limit.
        limit: u64,
    },
    /// The patch is shorter than it says.
    #[error("patch of {length} bytes is shorter than the {needed} bytes it says it has")]
    Truncated {
        /// Length of what is there.
        length: u64,
        /// Length needed.
        needed: u64,
    },
    /// The patch is longer than its records say.
    #[error("patch of {length} bytes is longer than the {expected} bytes its records say")]
    TrailingBytes {
        /// Length of the patch.
        length: u64,
        /// Length by its records.
        expected: u64,
    },
    /// The patch does not begin with its magic.
    #[error("not a DWCD patch: it begins with {found:02x?}")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The patch is of another version.
    #[error("patch version {version} is not supported, the highest known is {max}")]
    UnsupportedVersion {
        /// The version as read.
        version: u8,
        /// The highest known version.
        max: u8,
    },
    /// A field that must be zero is not.
    #[error("reserved patch field at byte {offset} is {value:#06x}, it must be zero")]
    ReservedNotZero {
        /// Where the field is.
        offset: u64,
        /// The value as read.
        value: u16,
    },
    /// The block count does not follow from target size and block size.
    #[error("patch lists {count} blocks, its target of {target_size} bytes has {expected}")]
    BlockCount {
        /// The count as read.
        count: u32,
        /// The count that follows from the sizes.
        expected: u64,
        /// Size of the target.
        target_size: u64,
    },
    /// The head of the patch is damaged.
    #[error("check of the patch head is {actual:016x}, expected {expected:016x}")]
    HeadCheck {
        /// The check as read.
        expected: u64,
        /// The check as computed.
        actual: u64,
    },
    /// The digests of the blocks do not make the digest of the target.
    #[error("block digests of the patch make {actual}, its target is {expected}")]
    TargetDigest {
        /// The target's tree digest as read.
        expected: Digest,
        /// The tree digest over the records.
        actual: Digest,
    },
    /// A record of an unknown kind.
    #[error("block {index} has unknown kind {kind}: the highest known is {max}")]
    UnknownKind {
        /// The block.
        index: u32,
        /// The kind as read.
        kind: u8,
        /// The highest known kind.
        max: u8,
    },
    /// A record whose codec or length does not go with its kind.
    #[error(
        "block {index}: {length} payload bytes of codec {codec} cannot make {block_length} bytes of kind {kind}"
    )]
    Record {
        /// The block.
        index: u32,
        /// The kind as read.
        kind: u8,
        /// The codec id as read.
        codec: u8,
        /// The payload length as read.
        length: u32,
        /// The length of the block.
        block_length: u32,
    },
    /// A block that is said to be in the base reaches past its end.
    #[error("block {index} is to be taken from the base up to byte {end}, the base has {base_size}")]
    PastBase {
        /// The block.
        index: u32,
        /// End of the block.
        end: u64,
        /// Size of the base.
        base_size: u64,
    },
    /// The base is not the one the patch was made for.
    #[error("base has digest {actual}, the patch is for {expected}")]
    BaseMismatch {
        /// The digest the patch asks for.
        expected: Digest,
        /// The digest of the base given.
        actual: Digest,
    },
    /// A block of the target came out wrong.
    #[error("block {index} came out with digest {actual}, expected {expected}")]
    BlockMismatch {
        /// The block.
        index: u32,
        /// The digest in the patch.
        expected: Digest,
        /// The digest of what was decoded.
        actual: Digest,
    },
    /// A buffer is not as long as what it stands for.
    #[error("{what} has {actual} bytes, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// The length it must have.
        expected: u64,
        /// The length it has.
        actual: u64,
    },
    /// A patch that changes the size cannot be applied in place.
    #[error(
        "patch changes the size from {base_size} to {target_size} bytes, so it cannot be applied in place"
    )]
    SizeChanged {
        /// Size of the base.
        base_size: u64,
        /// Size of the target.
        target_size: u64,
    },
    /// A block number beyond the last.
    #[error("block {index} is beyond the last of {count}")]
    NoSuchBlock {
        /// The block asked for.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// An encoder was finished before it had all blocks.
    #[error("patch encoder was given {pushed} of {expected} blocks")]
    Incomplete {
        /// Blocks given.
        pushed: u64,
        /// Blocks there are.
        expected: u64,
    },
    /// Memory could not be had.
    #[error("out of memory asking for {bytes} bytes")]
    OutOfMemory {
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// A block could not be encoded or decoded.
    #[error("block {index}: {source}")]
    Codec {
        /// The block.
        index: u32,
        /// What went wrong.
        source: CodecError,
    },
}
