//! Writing the fields of a patch around its payloads.

use super::error::PatchError;
use super::format::{Check, EntryKind, PatchHead, Tail, entry_bytes, same_bytes};
use super::parts::{Encoded, Part};
use crate::codec::CodecId;
use crate::digest::{self, Digest, TreeHasher};

/// Writes a patch from front to back through `emit`.
pub(super) struct Writer<F> {
    emit: F,
    head: PatchHead,
    check: Check,
    base_tree: TreeHasher,
    leaves: Vec<Digest>,
    changed: Vec<u32>,
    entries: u32,
    same: u32,
    length: u64,
}

impl<F> Writer<F> {
    pub(super) fn new<E>(head: PatchHead, emit: F) -> Result<Writer<F>, E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        let mut writer = Writer {
            emit,
            head,
            check: Check::new(),
            base_tree: TreeHasher::new(head.base_size(), head.block_bytes()),
            leaves: Vec::new(),
            changed: Vec::new(),
            entries: 0,
            same: 0,
            length: 0,
        };
        let bytes = head.to_bytes();
        writer.check.update(&bytes);
        writer.put(Part::Made(&bytes))?;
        Ok(writer)
    }

    /// Adds the digest of the next block of the base.
    pub(super) fn push_base(&mut self, leaf: Digest) {
        self.base_tree.push(leaf);
    }

    /// Adds a block that is as in the base.
    pub(super) fn push_same(&mut self, digest: Digest) {
        self.leaves.push(digest);
        self.same += 1;
    }

    /// Adds a block with a payload.
    pub(super) fn push_block<E>(
        &mut self,
        kind: EntryKind,
        codec: CodecId,
        digest: Digest,
        payload: Part<'_>,
    ) -> Result<(), E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        self.put_same()?;
        // The blocks of a target can be counted, and a payload is no longer than its block.
        self.changed.push(self.leaves.len() as u32);
        self.leaves.push(digest);
        let bytes = entry_bytes(kind, codec, payload.bytes().len() as u32, digest);
        self.put_fields(&bytes)?;
        self.put(payload)
    }

    /// Writes the tail.
    pub(super) fn finish<E>(mut self) -> Result<Encoded, E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
        E: From<PatchError>,
    {
        self.put_same()?;
        let base_digest = self.base_tree.finish();
        let target_digest = digest::tree(self.head.target_size(), self.head.block_bytes(), &self.leaves);
        let tail = Tail { entries: self.entries, base_digest, target_digest }.to_bytes(self.check.clone());
        self.put(Part::Made(&tail))?;
        Ok(Encoded { target_digest, leaves: self.leaves, changed: self.changed, length: self.length })
    }

    fn put_same<E>(&mut self) -> Result<(), E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        match std::mem::take(&mut self.same) {
            0 => Ok(()),
            blocks => self.put_fields(&same_bytes(blocks)),
        }
    }

    fn put_fields<E>(&mut self, bytes: &[u8]) -> Result<(), E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        self.check.update(bytes);
        self.entries += 1;
        self.put(Part::Made(bytes))
    }

    fn put<E>(&mut self, part: Part<'_>) -> Result<(), E>
    where
        F: FnMut(Part<'_>) -> Result<(), E>,
    {
        self.length += part.bytes().len() as u64;
        (self.emit)(part)
    }
}
