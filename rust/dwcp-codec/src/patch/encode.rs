//! Making patches.

use super::error::PatchError;
use super::head::{PatchHead, Record, RecordKind, block_range, expect_length, expect_shape, head_length};
use crate::block::BlockEncoder;
use crate::codec::{Codec, CodecId};
use crate::digest::{Digest, TreeHasher};

/// How a patch is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatchOptions {
    /// Size of a block in bytes: a power of two from 64 KiB to 4 MiB.
    pub block_bytes: u32,
    /// Bytes per element of the data (1, 2, 4 or 8). Differences of wider elements compress better when like bytes
    /// stand together.
    pub width: u8,
    /// The codec of blocks and of differences; differences always use zstd.
    pub codec: Codec,
}

impl Default for PatchOptions {
    /// Blocks of 1 MiB, no elements, zstd level 1.
    fn default() -> PatchOptions {
        PatchOptions { block_bytes: 0x10_0000, width: 1, codec: Codec::Zstd { level: 1 } }
    }
}

/// The patch that turns `old` into `new`.
///
/// # Errors
///
/// [`PatchError::BlockBytes`], [`PatchError::Width`], [`PatchError::TooManyBlocks`] or [`PatchError::Codec`].
pub fn encode(old: &[u8], new: &[u8], options: &PatchOptions) -> Result<Vec<u8>, PatchError> {
    let mut encoder = PatchEncoder::new(old.len() as u64, new.len() as u64, options)?;
    let block_bytes = options.block_bytes as usize;
    // The head is known last and stands first.
    let mut patch = vec![0; encoder.head_length() as usize];
    let (mut old, mut new) = (old.chunks(block_bytes), new.chunks(block_bytes));
    for _ in 0..encoder.block_count() {
        let payload = encoder.push(old.next().unwrap_or_default(), new.next().unwrap_or_default())?;
        patch.extend_from_slice(payload);
    }
    let head = encoder.finish()?;
    patch[..head.len()].copy_from_slice(&head);
    Ok(patch)
}

/// Makes a patch block by block.
///
/// The caller leaves [`PatchEncoder::head_length`] bytes free, writes what each [`PatchEncoder::push`] returns behind
/// them, and what [`PatchEncoder::finish`] returns into the gap.
pub struct PatchEncoder {
    head: PatchHead,
    codec: Codec,
    blocks: BlockEncoder,
    base_tree: TreeHasher,
    target_tree: TreeHasher,
    pushed: u64,
    offset: u64,
}

impl PatchEncoder {
    /// An encoder for a base and a target of these sizes in bytes.
    ///
    /// # Errors
    ///
    /// [`PatchError::BlockBytes`], [`PatchError::Width`] or [`PatchError::TooManyBlocks`].
    pub fn new(base_size: u64, target_size: u64, options: &PatchOptions) -> Result<PatchEncoder, PatchError> {
        let PatchOptions { block_bytes, width, codec } = *options;
        expect_shape(block_bytes, width)?;
        let blocks = target_size.div_ceil(block_bytes.into());
        let limit = u64::from(u32::MAX);
        let Ok(count) = u32::try_from(blocks) else {
            return Err(PatchError::TooManyBlocks { target_size, blocks, limit });
        };
        let base_tree = TreeHasher::new(base_size, block_bytes);
        let target_tree = TreeHasher::new(target_size, block_bytes);
        let head = PatchHead {
            width,
            block_bytes,
            base_size,
            target_size,
            base_digest: base_tree.finish(),
            target_digest: target_tree.finish(),
            records: Vec::new(),
        };
        let offset = head_length(count);
        Ok(PatchEncoder {
            head,
            codec,
            blocks: BlockEncoder::new(),
            base_tree,
            target_tree,
            pushed: 0,
            offset,
        })
    }

    /// Length in bytes of the head.
    #[must_use]
    pub fn head_length(&self) -> u64 {
        self.target_blocks() * (head_length(1) - head_length(0)) + head_length(0)
    }

    /// How many blocks have to be pushed: those of the base or those of the target, whichever are more.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.head.base_size.div_ceil(self.head.block_bytes.into()).max(self.target_blocks())
    }

    fn target_blocks(&self) -> u64 {
        self.head.target_size.div_ceil(self.head.block_bytes.into())
    }

    /// Takes the next block of the base and of the target, empty past the end of either, and returns the payload to
    /// write, which may be empty.
    ///
    /// # Errors
    ///
    /// [`PatchError::Length`] if a block has another length than the sizes say, [`PatchError::NoSuchBlock`] after the
    /// last, [`PatchError::Codec`].
    pub fn push<'a>(&'a mut self, old: &[u8], new: &'a [u8]) -> Result<&'a [u8], PatchError> {
        let (index, count) = (self.pushed, self.block_count());
        if index >= count {
            return Err(PatchError::NoSuchBlock { index, count });
        }
        let base_range = self.head.base_range(index);
        let range = block_range(index, self.head.block_bytes, self.head.target_size);
        expect_length("base block", base_range.end - base_range.start, old.len())?;
        expect_length("target block", range.end - range.start, new.len())?;
        let old_digest = Digest::of(old);
        let same = old.get(..new.len()) == Some(new);
        let (kind, codec, payload, digest) = if new.is_empty() {
            (RecordKind::Same, CodecId::None, &new[..0], None)
        } else if same {
            let digest = if old.len() == new.len() { old_digest } else { Digest::of(new) };
            (RecordKind::Same, CodecId::None, &new[..0], Some(digest))
        } else {
            let block = self
                .blocks
                .encode_elements(self.codec, new, Some(old), Some(self.head.width))
                // The constructor has made sure that block numbers of the target fit.
                .map_err(|source| PatchError::Codec { index: index as u32, source })?;
            (RecordKind::Block(block.kind), block.codec, block.wire, Some(Digest::of(new)))
        };
        if !old.is_empty() {
            self.base_tree.push(old_digest);
        }
        if let Some(digest) = digest {
            self.target_tree.push(digest);
            // A payload is never longer than its block.
            let length = payload.len() as u32;
            self.head.records.push(Record { kind, codec, offset: self.offset, length, digest });
            self.offset += u64::from(length);
        }
        self.pushed += 1;
        Ok(payload)
    }

    /// The head of the patch.
    ///
    /// # Errors
    ///
    /// [`PatchError::Incomplete`] if blocks are missing.
    pub fn finish(mut self) -> Result<Vec<u8>, PatchError> {
        let expected = self.block_count();
        if self.pushed != expected {
            return Err(PatchError::Incomplete { pushed: self.pushed, expected });
        }
        self.head.base_digest = self.base_tree.finish();
        self.head.target_digest = self.target_tree.finish();
        Ok(self.head.to_bytes())
    }
}
