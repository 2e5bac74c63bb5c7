//! What is known of each block of a transfer: 17 bytes for each, in one table.

use std::sync::Arc;

use dwcp_codec::Digest;
use dwcp_codec::digest::TreeHasher;

use crate::error::SessionError;
use crate::frame::{Have, HaveSource};
use crate::manifest::Manifest;

/// The number of a block among those of all entries.
pub(crate) type BlockIndex = u64;

/// The digest of the block is known to this side: its bytes went through here, or (receiver) are in place.
pub(crate) const KNOWN: u8 = 1;
/// The receiver announced a digest for the block.
pub(crate) const HELD: u8 = 2;
/// That digest is of a staged block.
pub(crate) const STAGED: u8 = 4;
/// The block needs nothing more.
pub(crate) const DONE: u8 = 8;
/// The block has to be sent in full.
pub(crate) const PLAIN: u8 = 16;
/// The receiver has another block staged in its place, and takes that for the block until this one is there.
pub(crate) const REPLACES: u8 = 32;
/// The block was sent a second time on a faster lane, which is done once for each block.
pub(crate) const HELPED: u8 = 64;

/// The blocks of a manifest with a digest and flags for each.
#[derive(Debug)]
pub(crate) struct BlockTable {
    manifest: Arc<Manifest>,
    // Arrays of bytes and not digests: their zeroes come from the system unpaged, however many there are.
    digests: Vec<[u8; 16]>,
    flags: Vec<u8>,
}

impl BlockTable {
    pub(crate) fn new(manifest: Arc<Manifest>) -> BlockTable {
        // Manifest::new bounds the number of blocks.
        let count = manifest.total_blocks() as usize;
        BlockTable { manifest, digests: vec![[0; 16]; count], flags: vec![0; count] }
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The number of the block of `entry` at `offset`.
    pub(crate) fn at(&self, entry: u32, offset: u64) -> Option<BlockIndex> {
        let block = self.manifest.block_at(entry, offset)?;
        Some(self.manifest.start_of(entry) + u64::from(block))
    }

    /// Entry, offset and length of a block.
    pub(crate) fn place(&self, index: BlockIndex) -> (u32, u64, u32) {
        let (entry, block) = self.manifest.locate(index);
        let offset = u64::from(block) * u64::from(self.manifest.block_bytes());
        (entry, offset, self.manifest.block_len(entry, block))
    }

    pub(crate) fn has(&self, index: BlockIndex, flag: u8) -> bool {
        self.flags[index as usize] & flag != 0
    }

    pub(crate) fn set(&mut self, index: BlockIndex, flags: u8) {
        self.flags[index as usize] |= flags;
    }

    pub(crate) fn clear(&mut self, index: BlockIndex, flags: u8) {
        self.flags[index as usize] &= !flags;
    }

    pub(crate) fn clear_all(&mut self) {
        self.flags.fill(0);
    }

    pub(crate) fn digest(&self, index: BlockIndex) -> Digest {
        Digest(self.digests[index as usize])
    }

    pub(crate) fn set_digest(&mut self, index: BlockIndex, digest: Digest) {
        self.digests[index as usize] = digest.0;
    }

    /// The indices of the blocks of an entry.
    pub(crate) fn range(&self, entry: u32) -> std::ops::Range<BlockIndex> {
        let start = self.manifest.start_of(entry);
        start..start + u64::from(self.manifest.blocks_of(entry))
    }

    /// The tree digest of an entry whose blocks are all known; none without an object.
    pub(crate) fn tree(&self, entry: u32) -> Option<Digest> {
        let object = self.manifest.entry(entry).filter(|entry| entry.kind.has_object())?;
        let range = self.range(entry);
        if !range.clone().all(|index| self.has(index, KNOWN)) {
            return None;
        }
        let mut hasher = TreeHasher::new(object.size, self.manifest.block_bytes());
        range.for_each(|index| hasher.push(self.digest(index)));
        Some(hasher.finish())
    }

    /// The tree digests of `entries` as DIGESTS tells them: zero without an object.
    pub(crate) fn trees(&self, entries: std::ops::Range<u32>) -> Vec<Digest> {
        entries.map(|entry| self.tree(entry).unwrap_or(Digest([0; 16]))).collect()
    }
}

/// Which base the receiver announced for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    SamePath,
    Candidate(u8),
}

/// What HAVE frames have announced so far.
#[derive(Debug)]
pub(crate) struct Announced {
    base_allowed: bool,
    pub(crate) bases: Vec<Base>,
    pub(crate) staged_bytes: u64,
}

impl Announced {
    pub(crate) fn new(manifest: &Manifest, base_allowed: bool) -> Announced {
        Announced { base_allowed, bases: vec![Base::None; manifest.entries().len()], staged_bytes: 0 }
    }

    /// Checks a HAVE and enters its digests into `table`.
    pub(crate) fn take(&mut self, table: &mut BlockTable, have: &Have) -> Result<(), SessionError> {
        let manifest = Arc::clone(&table.manifest);
        let count = manifest.entries().len() as u64;
        let entry = manifest.entry(have.entry).filter(|entry| entry.kind.has_object());
        let Some(entry) = entry else { return out_of_range("entry of a HAVE", u64::from(have.entry), count) };
        if have.source != HaveSource::Staged && !self.base_allowed {
            return out_of_range("base of a HAVE", u64::from(have.entry), 0);
        }
        let base = match have.source {
            HaveSource::Staged => None,
            HaveSource::SamePath => Some(Base::SamePath),
            HaveSource::Candidate(number) if usize::from(number) >= entry.candidates.len() => {
                return out_of_range("candidate of a HAVE", u64::from(number), entry.candidates.len() as u64);
            }
            HaveSource::Candidate(number) => Some(Base::Candidate(number)),
        };
        if let Some(base) = base {
            let known = &mut self.bases[have.entry as usize];
            if *known != Base::None && *known != base {
                return out_of_range("number of bases announced for an entry", 2, 1);
            }
            *known = base;
        }
        let blocks = u64::from(manifest.blocks_of(have.entry));
        let end = u64::from(have.first_block) + have.digests.len() as u64;
        if end > blocks {
            return out_of_range("end of a HAVE", end, blocks);
        }
        let first = manifest.start_of(have.entry) + u64::from(have.first_block);
        for (index, digest) in (first..).zip(&have.digests) {
            if have.source == HaveSource::Staged {
                if !table.has(index, STAGED) {
                    self.staged_bytes += u64::from(table.place(index).2);
                }
                table.set(index, HELD | STAGED);
                table.set_digest(index, *digest);
            } else if !table.has(index, STAGED) {
                // A staged block is in place already, which is better than a base.
                table.set(index, HELD);
                table.set_digest(index, *digest);
            }
        }
        Ok(())
    }
}

pub(crate) fn out_of_range<T>(what: &'static str, value: u64, limit: u64) -> Result<T, SessionError> {
    Err(SessionError::OutOfRange { what, value, limit })
}
