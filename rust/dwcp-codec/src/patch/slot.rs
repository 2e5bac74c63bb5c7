//! What becomes of one block while a patch is made.

use super::encode::Part;
use super::format::EntryKind;
use super::write::Writer;
use crate::block::BlockKind;
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

    /// Notes that it is as in the base, where the digest is `leaf`.
    pub(super) fn keep(&mut self, leaf: Digest) {
        (self.base_leaf, self.digest) = (Some(leaf), Some(leaf));
    }

    /// Length of the payload of a block of `length` bytes.
    pub(super) fn payload_length(&self, length: usize) -> usize {
        match &self.coded {
            Coded::Same => 0,
            Coded::Raw => length,
            Coded::Payload(_, _, payload) => payload.len(),
        }
    }

    /// Adds it to a patch; `raw` is the block itself if that is how it is told.
    pub(super) fn write<F, E>(&self, raw: Option<Part<'_>>, writer: &mut Writer<F>) -> Result<(), E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        if let Some(leaf) = self.base_leaf {
            writer.push_base(leaf);
        }
        match (self.digest, &self.coded, raw) {
            (None, ..) => Ok(()),
            (Some(digest), Coded::Payload(kind, codec, payload), _) => {
                writer.push_block(*kind, *codec, digest, Part::Made(payload))
            }
            (Some(digest), Coded::Raw, Some(raw)) => {
                writer.push_block(EntryKind::Block(BlockKind::Plain), CodecId::None, digest, raw)
            }
            (Some(digest), ..) => {
                writer.push_same(digest);
                Ok(())
            }
        }
    }

    /// Whether the payload of a block of `length` bytes is longer than `most`.
    pub(super) fn is_over(&self, most: usize, length: usize) -> bool {
        self.payload_length(length) > most
    }
}
