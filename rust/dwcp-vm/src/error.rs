//! What can be wrong with chunks.

use dwcp_codec::CodecError;

/// Why a chunk cannot be decoded. The decoder is of no more use then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// A chunk ends in the middle of something.
    #[error("a chunk of {length} bytes ends within {what}")]
    Short {
        /// What is missing.
        what: &'static str,
        /// The length of the chunk.
        length: usize,
    },
    /// A number is out of its range.
    #[error("{what} is {value}, the most is {limit}")]
    Range {
        /// What is told.
        what: &'static str,
        /// What it says.
        value: u64,
        /// The most that it may be.
        limit: u64,
    },
    /// A chunk has bytes that nothing refers to.
    #[error("{count} bytes are left over in a chunk")]
    LeftOver {
        /// How many.
        count: usize,
    },
    /// A page is told by one that is not held.
    #[error("page {number} of block {block} is told by one that is not held")]
    NotHeld {
        /// The number of the block of RAM.
        block: u64,
        /// The number of the page in it.
        number: u64,
    },
    /// What a chunk decodes to is not what it was made of.
    #[error("a chunk does not decode to the {length} bytes that it was made of")]
    Differs {
        /// How many bytes.
        length: usize,
    },
    /// The base cannot be read.
    #[error("page {number} of the base {block:?} cannot be read: {reason}")]
    Base {
        /// The name of the block of RAM.
        block: String,
        /// The number of the page.
        number: u64,
        /// What the system says.
        reason: String,
    },
    /// What differs from an earlier version cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
}
