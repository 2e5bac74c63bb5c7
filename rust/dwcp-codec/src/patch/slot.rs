//! Blocks on their way into a patch.

use super::format::EntryKind;
use crate::block::{BlockKind, EncodedBlock};
use crate::codec::CodecId;
use crate::digest::Digest;
use crate::matcher::Found;

/// A block of the base, of the target or of both, on its way into the patch.
pub(super) struct Slot {
    pub(super) index: u64,
    pub(super) base_leaf: Option<Digest>,
    pub(super) digest: Option<Digest>,
    pub(super) coded: Coded,
    /// The block is to be looked for elsewhere.
    pub(super) pending: bool,
    /// It has not been coded without that.
    pub(super) untried: bool,
    /// That would be for nothing, too.
    pub(super) is_noise: bool,
    /// What it could be made of, with parts of the target.
    pub(super) found: Option<Found>,
}

pub(super) enum Coded {
    /// As in the base, or past the end of the target.
    Same,
    /// The block itself.
    Raw,
    /// This payload.
    Payload(EntryKind, CodecId, Vec<u8>),
}

impl Coded {
    /// What a block was made, its payload in memory that `payload` gives, of any content.
    pub(super) fn of(made: EncodedBlock<'_>, payload: impl FnOnce() -> Vec<u8>) -> Coded {
        match (made.kind, made.codec) {
            (BlockKind::Plain, CodecId::None) => Coded::Raw,
            (kind, codec) => {
                let mut payload = payload();
                payload.clear();
                payload.extend_from_slice(made.wire);
                Coded::Payload(EntryKind::Block(kind), codec, payload)
            }
        }
    }

    /// A block, all of which is `byte`.
    pub(super) fn fill(byte: u8) -> Coded {
        Coded::Payload(EntryKind::Block(BlockKind::Fill), CodecId::None, vec![byte])
    }
}

impl Slot {
    pub(super) fn new(index: u64) -> Slot {
        Slot {
            index,
            base_leaf: None,
            digest: None,
            coded: Coded::Same,
            pending: false,
            untried: false,
            is_noise: false,
            found: None,
        }
    }

    /// Length of the payload of a block of `length` bytes.
    pub(super) fn payload_length(&self, length: usize) -> usize {
        match &self.coded {
            Coded::Same => 0,
            Coded::Raw => length,
            Coded::Payload(_, _, payload) => payload.len(),
        }
    }

    /// Whether the payload of a block of `length` bytes is longer than `most`.
    pub(super) fn is_over(&self, most: usize, length: usize) -> bool {
        self.payload_length(length) > most
    }
}
