//! One block of an object, coded in one of six kinds: "Coded blocks" of docs/format-files.md.

mod choose;
mod decode;
mod encode;
mod planes;
mod runs;
mod sparse;
#[cfg(test)]
mod tests;
mod values;

pub use decode::BlockDecoder;
pub use encode::BlockEncoder;

use crate::codec::CodecId;
use crate::error::CodecError;

/// The longest block that is coded in a kind other than [`BlockKind::Plain`] and [`BlockKind::Fill`], in bytes.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;

/// The longest block for which a dictionary is of use: in a longer one the little that it saves at the beginning is
/// made up for by what the block itself repeats.
pub const MAX_DICTIONARY_BLOCK_BYTES: usize = 128 << 10;

/// Widths of elements in bytes.
pub(crate) const WIDTHS: [u8; 4] = [1, 2, 4, 8];

/// How a block is represented.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BlockKind {
    /// The block's bytes, compressed by the codec.
    Plain = 0,
    /// One byte that every byte of the block equals.
    Fill = 1,
    /// The bytes of its elements, grouped by their place in the element.
    Planes = 2,
    /// The difference of its elements from those of the base, grouped likewise. Where the base ends early it counts
    /// as zero bytes.
    Difference = 3,
    /// The places and the differences of the elements that are not those of the base.
    Sparse = 4,
    /// The places and the bytes of what is not the base's. Where the base ends early it counts as zero bytes.
    Runs = 5,
}

impl BlockKind {
    /// All kinds, by number.
    pub const ALL: [BlockKind; 6] = [
        BlockKind::Plain,
        BlockKind::Fill,
        BlockKind::Planes,
        BlockKind::Difference,
        BlockKind::Sparse,
        BlockKind::Runs,
    ];

    /// Whether a block of this kind is coded against a base block.
    #[must_use]
    pub fn needs_base(self) -> bool {
        matches!(self, BlockKind::Difference | BlockKind::Sparse | BlockKind::Runs)
    }

    /// Whether the base block can be made of the block and its payload again.
    #[must_use]
    pub fn is_undoable(self) -> bool {
        matches!(self, BlockKind::Difference | BlockKind::Sparse)
    }
}

impl TryFrom<u8> for BlockKind {
    type Error = CodecError;

    fn try_from(kind: u8) -> Result<BlockKind, CodecError> {
        let max = BlockKind::Runs as u8;
        BlockKind::ALL.get(usize::from(kind)).copied().ok_or(CodecError::UnknownBlockKind { kind, max })
    }
}

/// The lines in which a block differs from its base block: a bit for each, and how many are set.
#[derive(Clone, Copy)]
pub(crate) struct DirtyLines<'a> {
    pub words: &'a [u64],
    pub count: usize,
}

/// What a block is coded against.
#[derive(Clone, Copy)]
pub(crate) struct Base<'a> {
    pub bytes: &'a [u8],
    /// If they were compared already, as far as both go.
    pub dirty: Option<DirtyLines<'a>>,
    /// Only the lines that differ are there; what stands for the others is of any content.
    pub is_partial: bool,
}

impl<'a> Base<'a> {
    /// What stands for a base that there is not: zero bytes. `used` are the lines of the block that have others.
    pub(crate) fn nothing(used: DirtyLines<'a>) -> Base<'a> {
        Base { bytes: &[], dirty: Some(used), is_partial: false }
    }
}

impl<'a> From<&'a [u8]> for Base<'a> {
    fn from(bytes: &'a [u8]) -> Base<'a> {
        Base { bytes, dirty: None, is_partial: false }
    }
}

/// A block ready to be sent or stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncodedBlock<'a> {
    /// How the block is represented.
    pub kind: BlockKind,
    /// The codec of `wire`; [`CodecId::None`] for all kinds but [`BlockKind::Plain`].
    pub codec: CodecId,
    /// The bytes to send: those of the encoder, or the source itself when nothing makes it smaller. Never longer
    /// than the source, and as long only if it is the source.
    pub wire: &'a [u8],
}
