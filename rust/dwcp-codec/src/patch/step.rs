//! Making the patch of a held version that becomes the new one on the way, block by block.

use std::sync::atomic::{AtomicBool, Ordering};

use super::decode::EntryDecoder;
use super::encode::{Encoded, Maker, Part, PatchOptions, Worker, append};
use super::error::PatchError;
use super::format::{EntryKind, PatchHead};
use super::in_place::is_undone_in_place;
use super::parallel;
use super::slot::{Coded, Slot};
use super::write::Writer;
use crate::digest::{BlockHasher, Digest};

/// A new version of a held one, as long as that.
pub(super) trait Next: Sync {
    /// What can keep it from being read.
    type Error: From<PatchError> + Send;

    /// The block at `at`, where the held one is `held`. It may be put into `buffer`. `None` if it is as held.
    fn block<'a>(
        &'a self,
        at: usize,
        held: &[u8],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, Self::Error>;
}

/// What [`step`] made.
pub(super) struct Step {
    pub(super) patch: Vec<u8>,
    pub(super) made: Encoded,
    /// The blocks that differ and are still as they were, in order.
    pub(super) left: Vec<u32>,
}

/// What is known of a block.
struct Block {
    slot: Slot,
    /// It is the new one already, and its payload makes it the old one again.
    is_new: bool,
}

/// The patch from `held`, whose blocks have the digests `leaves`, to `next`. Most blocks of `held` are those of `next`
/// afterwards; on an error all are as they were.
///
/// Nothing is looked for elsewhere, as blocks are changed while others are still to be coded: `None`, and `held` as it
/// was, if `options` want that for one of the blocks.
pub(super) fn step<N: Next>(
    held: &mut [u8],
    next: &N,
    leaves: &[Digest],
    block_bytes: u32,
    options: &PatchOptions<'_>,
) -> Result<Option<Step>, N::Error> {
    let head = PatchHead::new(block_bytes, held.len() as u64, held.len() as u64)?;
    let nothing: &[u8] = &[];
    let mut maker = Maker::new(head, options, nothing, nothing, Some(leaves));
    maker.hashes = false;
    let mut workers = parallel::states::<Worker>(options.threads);
    let length = block_bytes as usize;
    let mut blocks: Vec<Block> =
        leaves.iter().zip(0..).map(|(_, index)| Block { slot: Slot::new(index), is_new: false }).collect();
    let has_moved = AtomicBool::new(false);
    let jobs = blocks.iter_mut().zip(leaves).zip(held.chunks_mut(length));
    let coded = parallel::for_each(&mut workers, jobs, |worker, ((block, leaf), held)| {
        if has_moved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(new) = next.block(block.slot.index as usize * length, held, &mut worker.new)? else {
            block.slot.keep(*leaf);
            return Ok(());
        };
        maker.compare_with(&mut worker.blocks, &mut worker.fills, &mut block.slot, held, new)?;
        if block.slot.pending {
            has_moved.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if let Coded::Payload(EntryKind::Block(kind), ..) = block.slot.coded
            && is_undone_in_place(kind, held.len())
        {
            // What is held has this digest, even if somebody wrote to the new version meanwhile.
            let mut hasher = BlockHasher::new();
            worker.blocks.carry_over(new, held, |piece| hasher.update(piece));
            block.is_new = true;
            block.slot.digest = Some(hasher.digest_with(&[]));
        } else if block.slot.digest.is_none() {
            block.slot.digest = Some(Digest::of(new));
        }
        Ok(())
    });
    if coded.is_ok() && has_moved.into_inner() {
        undo(&blocks, held, length)?;
        return Ok(None);
    }
    let written = coded.and_then(|()| write(head, &blocks, held, next, &mut workers[0].new));
    let (patch, made) = match written {
        Ok(written) => written,
        Err(error) => {
            undo(&blocks, held, length)?;
            return Err(error);
        }
    };
    let left = blocks.iter().filter(|block| !block.is_new && !matches!(block.slot.coded, Coded::Same));
    // The blocks of a target can be counted.
    let left = left.map(|block| block.slot.index as u32).collect();
    Ok(Some(Step { patch, made, left }))
}

fn write<N: Next>(
    head: PatchHead,
    blocks: &[Block],
    held: &[u8],
    next: &N,
    buffer: &mut Vec<u8>,
) -> Result<(Vec<u8>, Encoded), N::Error> {
    let length = head.block_bytes() as usize;
    let mut patch = Vec::new();
    let payloads = blocks.iter().map(|block| block.slot.payload_length(length) as u64);
    let bytes = payloads.sum::<u64>();
    patch.try_reserve(bytes as usize).map_err(|_| PatchError::OutOfMemory { bytes })?;
    let mut writer = Writer::new(head, |part| append(&mut patch, part.bytes()).map_err(N::Error::from))?;
    for (block, held) in blocks.iter().zip(held.chunks(length)) {
        let mut raw = None;
        if let Coded::Raw = block.slot.coded {
            let at = block.slot.index as usize * length;
            raw = next.block(at, held, buffer)?.map(|new| Part::Target(at as u64, new));
        }
        block.slot.write(raw, &mut writer)?;
    }
    let made = writer.finish()?;
    Ok((patch, made))
}

/// Makes the blocks that are new those that they were.
fn undo(blocks: &[Block], held: &mut [u8], length: usize) -> Result<(), PatchError> {
    let mut decoder = EntryDecoder::new();
    for (block, held) in blocks.iter().zip(held.chunks_mut(length)).filter(|(block, _)| block.is_new) {
        if let Coded::Payload(EntryKind::Block(kind), _, payload) = &block.slot.coded {
            decoder.undo_payload(block.slot.index as u32, *kind, payload, held)?;
        }
    }
    Ok(())
}
