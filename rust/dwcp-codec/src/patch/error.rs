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
    /// An object that is larger than a patch can tell of.
    #[error("{what} has {size} bytes, over the limit of {limit}")]
    Size {
        /// Which object.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The largest size.
        limit: u64,
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
    #[error("patch ends at byte {length}, its part at byte {at} goes on to byte {needed} at least")]
    Truncated {
        /// Where the bytes end.
        length: u64,
        /// Where the part begins that is cut short.
        at: u64,
        /// How far it goes.
        needed: u64,
    },
    /// There are bytes behind the tail.
    #[error("patch of {length} bytes ends at byte {expected}")]
    TrailingBytes {
        /// Length of what is there.
        length: u64,
        /// Where the tail ends.
        expected: u64,
    },
    /// The patch does not begin with its magic.
    #[error("not a DWCD patch: it begins with {found:02x?}")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The patch is of another version.
    #[error("patch version {version} is not supported, only {supported} is")]
    UnsupportedVersion {
        /// The version as read.
        version: u8,
        /// The version that is read.
        supported: u8,
    },
    /// A patch whose blocks are made with a dictionary, which was not given.
    #[error("the patch needs dictionary {needed}")]
    DictionaryMissing {
        /// Digest of the dictionary.
        needed: Digest,
    },
    /// A patch whose blocks are made with another dictionary than the one given.
    #[error("the patch needs dictionary {needed}, not {given}")]
    DictionaryMismatch {
        /// Digest of the dictionary that is needed.
        needed: Digest,
        /// Digest of the one given.
        given: Digest,
    },
    /// A field that must be zero is not.
    #[error("reserved patch field at byte {at} is {value:#x}, it must be zero")]
    ReservedNotZero {
        /// Where the field is.
        at: u64,
        /// The value as read.
        value: u32,
    },
    /// An entry of an unknown kind.
    #[error("patch entry {entry} has unknown kind {kind}")]
    UnknownKind {
        /// The entry, counted from 0.
        entry: u32,
        /// The kind as read.
        kind: u8,
    },
    /// An entry whose codec or length does not go with its kind.
    #[error(
        "patch entry {entry}: {length} payload bytes of codec {codec} cannot make {block_length} bytes of kind {kind}"
    )]
    Entry {
        /// The entry, counted from 0.
        entry: u32,
        /// The kind as read.
        kind: u8,
        /// The codec id as read.
        codec: u8,
        /// The payload length as read.
        length: u32,
        /// The length of the block.
        block_length: u32,
    },
    /// Entries that tell of more blocks than the target has.
    #[error("patch entry {entry} tells of {blocks} blocks from {first} on, the target has {count}")]
    PastTarget {
        /// The entry, counted from 0.
        entry: u32,
        /// The first block of the entry.
        first: u32,
        /// How many blocks it tells of.
        blocks: u32,
        /// How many there are.
        count: u32,
    },
    /// Blocks of the target that no entry tells of.
    #[error("patch tells of {told} blocks, the target has {count}")]
    MissingBlocks {
        /// Blocks told of.
        told: u32,
        /// Blocks there are.
        count: u32,
    },
    /// The tail counts other entries than there are.
    #[error("patch says that it has {count} entries, there are {entries}")]
    EntryCount {
        /// The count as read.
        count: u32,
        /// Entries there are.
        entries: u32,
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
    /// A block is made of a part of the target that is itself made of parts of the target.
    #[error("block {used} is made of other blocks, so that no block can be made of it")]
    NestedSegment {
        /// The block that is used.
        used: u32,
    },
    /// The fields of the patch are damaged.
    #[error("check of the patch is {actual:016x}, expected {expected:016x}")]
    Check {
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
        /// The tree digest over the blocks.
        actual: Digest,
    },
    /// The base is not the one the patch was made for.
    #[error("base has digest {actual}, the patch is for {expected}")]
    BaseMismatch {
        /// The digest the patch asks for.
        expected: Digest,
        /// The digest of the base given.
        actual: Digest,
    },
    /// The base has not the size of the one the patch was made for.
    #[error("base has {actual} bytes, the patch is for one of {expected}")]
    BaseSize {
        /// The size the patch asks for.
        expected: u64,
        /// The size of the base given.
        actual: u64,
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
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// An element number beyond the last.
    #[error("element {index} is beyond the last of {count}")]
    NoSuchElement {
        /// The element named.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// An element that is named twice.
    #[error("element {index} is named more than once")]
    DuplicateElement {
        /// The element named.
        index: u64,
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

impl PatchError {
    /// Whether the object is another than the patch's base. It may be the target already, or another patch's base.
    #[must_use]
    pub fn is_other_base(&self) -> bool {
        matches!(self, PatchError::BaseMismatch { .. } | PatchError::BaseSize { .. })
    }
}
