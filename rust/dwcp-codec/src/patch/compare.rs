//! Hashing blocks while they are at hand.

use std::mem::MaybeUninit;

use crate::digest::{BlockHasher, Digest};
use crate::error::CodecError;
use crate::raw;

/// How many bytes are hashed before they are copied. Memory is read ahead of hashing, and the second reader of it is in
/// step: with longer pieces, or in the other order, both together take a fifth more.
const HASHED_BYTES: usize = 8 << 10;

/// The digest of `old`, and `dst`, filled with its start, for which there is enough of it.
pub(super) fn hash_and_copy<'d>(
    old: &[u8],
    dst: &'d mut [MaybeUninit<u8>],
) -> (Digest, Result<&'d mut [u8], CodecError>) {
    let mut hasher = BlockHasher::new();
    let mut copied = 0;
    let filled = raw::fill_exactly(dst, |rest| {
        let piece = &old[copied..old.len().min(copied + HASHED_BYTES.min(rest.len()))];
        hasher.update(piece);
        copied += piece.len();
        raw::copy(piece, rest)
    });
    (hasher.digest_with(&old[copied..]), filled)
}

/// Digests of blocks of one byte, most of which are alike: the last one is kept.
#[derive(Default)]
pub(super) struct FillDigests(Option<(u8, usize, Digest)>);

impl FillDigests {
    /// The digest of a block, all of which is `byte`.
    pub(super) fn digest(&mut self, byte: u8, block: &[u8]) -> Digest {
        match self.0 {
            Some((known, length, digest)) if (known, length) == (byte, block.len()) => digest,
            _ => self.0.insert((byte, block.len(), Digest::of(block))).2,
        }
    }
}
