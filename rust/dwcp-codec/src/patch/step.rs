//! Making the patch of a held version that becomes the new one on the way, block by block.

use std::sync::atomic::{AtomicBool, Ordering};

use super::compare::FillDigests;
use super::encode::{NEAR_SHARE, may_be_elsewhere};
use super::error::PatchError;
use super::format::{EntryKind, PatchHead};
use super::in_place::is_undone_in_place;
use super::parallel::{self, Kept};
use super::parts::{Encoded, Part, append};
use super::room::room;
use super::scout::{ALL_SHARES, share_elsewhere_before};
use super::slot::Coded;
use super::snapshot::SnapshotOptions;
use super::write::Writer;
use crate::block::{Base, BlockDecoder, BlockEncoder, BlockKind, DirtyLines};
use crate::codec::CodecId;
use crate::digest::Digest;
use crate::kernel::{LINE_BYTES, Level, lines, pair};
use crate::page;

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
    index: u32,
    /// The digest of the held one.
    leaf: Digest,
    /// The digest of the new one.
    digest: Digest,
    told: Coded,
    /// It is the new one already, and its payload makes it the old one again.
    is_new: bool,
}

/// What one thread keeps.
#[derive(Default)]
struct Worker {
    buffer: Vec<u8>,
    tools: Tools,
}

/// What blocks are coded with.
#[derive(Default)]
struct Tools {
    encoder: BlockEncoder,
    fills: FillDigests,
    /// What lines of the held block were.
    old: Vec<u8>,
    dirty: Vec<u64>,
    /// Memory of payloads that were written.
    spare: Vec<Vec<u8>>,
}

/// Of the lines of a block those that are as held are copied as well if they are fewer than one in this many.
const FEW_SHARE: usize = 16;

/// So many bytes of payloads are kept for the next ones.
const MOST_SPARE_BYTES: usize = 32 << 20;

static WORKERS: Kept<Worker> = Kept::new();

/// The patch from `held`, whose blocks have the digests `leaves`, to `next`. Most blocks of `held` are those of `next`
/// afterwards; on an error all are as they were, and so they are if `None` is returned: then `options` want blocks to be
/// looked for elsewhere, which cannot be done once others are changed.
pub(super) fn step<N: Next>(
    held: &mut [u8],
    next: &N,
    leaves: &[Digest],
    options: &SnapshotOptions,
    threads: usize,
) -> Result<Option<Step>, N::Error> {
    let head = PatchHead::new(options.block_bytes, held.len() as u64, held.len() as u64)?;
    let mut workers = WORKERS.take(threads);
    let length = options.block_bytes as usize;
    let known = (0..).zip(leaves);
    let mut blocks: Vec<Block> = known.map(|(index, leaf)| Block::of(index, *leaf)).collect();
    let jobs = blocks.iter_mut().zip(held.chunks_mut(length));
    let has_moved = AtomicBool::new(false);
    let coded = parallel::for_each(&mut workers, jobs, |worker, (block, held)| {
        if has_moved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Worker { buffer, tools } = worker;
        let at = block.index as usize * length;
        let new = next.block(at, held, buffer)?;
        let Some(new) = new.filter(|new| *new != held) else { return Ok(()) };
        if block.code(tools, options, held, new)? {
            has_moved.store(true, Ordering::Relaxed);
        }
        Ok(())
    });
    if coded.is_ok() && has_moved.into_inner() {
        undo(&blocks, held, length)?;
        keep_payloads(&mut workers, blocks);
        WORKERS.put_back(workers, options.block_bytes);
        return Ok(None);
    }
    let written = coded.and_then(|()| write(head, &blocks, held, next, &mut workers[0].buffer));
    let (patch, made) = match written {
        Ok(written) => written,
        Err(error) => {
            undo(&blocks, held, length)?;
            return Err(error);
        }
    };
    let left = blocks.iter().filter(|block| !block.is_new && !matches!(block.told, Coded::Same));
    let left = left.map(|block| block.index).collect();
    keep_payloads(&mut workers, blocks);
    WORKERS.put_back(workers, options.block_bytes);
    Ok(Some(Step { patch, made, left }))
}

/// Keeps the memory of payloads for the next ones.
fn keep_payloads(workers: &mut [Worker], blocks: Vec<Block>) {
    let count = workers.len();
    let mut bytes: usize = workers.iter().flat_map(|worker| &worker.tools.spare).map(Vec::capacity).sum();
    for (number, block) in blocks.into_iter().enumerate() {
        if let Coded::Payload(_, _, payload) = block.told {
            bytes += payload.capacity();
            if bytes > MOST_SPARE_BYTES {
                return;
            }
            workers[number % count].tools.spare.push(payload);
        }
    }
}

impl Block {
    fn of(index: u32, leaf: Digest) -> Block {
        Block { index, leaf, digest: leaf, told: Coded::Same, is_new: false }
    }

    /// Codes the new block, `new`, and makes it of `held` if that can be undone. Says whether it is to be looked for
    /// elsewhere: then `held` is as it was.
    fn code(
        &mut self,
        tools: &mut Tools,
        options: &SnapshotOptions,
        held: &mut [u8],
        new: &[u8],
    ) -> Result<bool, PatchError> {
        let Tools { encoder, fills, old, dirty, spare } = tools;
        if let Some(byte) = page::fill_byte(new) {
            self.digest = fills.digest(byte, new);
            self.told = Coded::fill(byte);
            return Ok(false);
        }
        let length = held.len();
        if old.len() < length {
            old.resize(length, 0);
        }
        let old = &mut old[..length];
        // The payload tells of what is held from here on, even if somebody writes to the new version meanwhile.
        let (digest, count) = pair::hash_and_take(Level::detected(), held, new, old, dirty);
        self.digest = digest;
        let is_near = count * LINE_BYTES < length / NEAR_SHARE;
        let elsewhere = if options.search && !is_near {
            share_elsewhere_before(old, dirty, held, options.width)
        } else {
            0
        };
        if elsewhere == ALL_SHARES {
            lines::put_lines(old, dirty, held);
            return Ok(true);
        }
        let is_partial = count * LINE_BYTES <= length - length / FEW_SHARE;
        if !is_partial {
            // The few others, so that all of what was held is at hand.
            lines::put_other_lines(held, dirty, old);
        }
        let dirty_lines = DirtyLines { words: dirty, count };
        let base = Base { bytes: old, dirty: Some(dirty_lines), is_partial };
        let made = encoder.encode_compared(None, options.codec, held, Some(base), options.width);
        let told = made
            .map(|made| (made.kind, made.wire.len(), Coded::of(made, || spare.pop().unwrap_or_default())));
        let is_moved = told.as_ref().is_ok_and(|(kind, payload_bytes, _)| {
            options.search && may_be_elsewhere(*kind, *payload_bytes, length, elsewhere, options.width)
        });
        self.is_new = !is_moved && told.as_ref().is_ok_and(|(kind, ..)| is_undone_in_place(*kind, length));
        if !self.is_new {
            lines::put_lines(old, dirty, held);
        }
        let (_, _, told) = told.map_err(|source| PatchError::Codec { index: self.index, source })?;
        if !is_moved {
            self.told = told;
        }
        Ok(is_moved)
    }
}

fn write<N: Next>(
    head: PatchHead,
    blocks: &[Block],
    held: &[u8],
    next: &N,
    buffer: &mut Vec<u8>,
) -> Result<(Vec<u8>, Encoded), N::Error> {
    let length = head.block_bytes() as usize;
    let mut patch = room();
    let mut writer =
        Writer::new(head, |part: Part<'_>| append(&mut patch, part.bytes()).map_err(N::Error::from))?;
    for (block, held) in blocks.iter().zip(held.chunks(length)) {
        writer.push_base(block.leaf);
        match &block.told {
            Coded::Same => writer.push_same(block.digest),
            Coded::Payload(kind, codec, payload) => {
                writer.push_block(*kind, *codec, block.digest, Part::Made(payload))?;
            }
            Coded::Raw => {
                let at = block.index as usize * length;
                // It is not as held, since it was coded.
                let new = next.block(at, held, buffer)?.unwrap_or(held);
                let part = Part::Target(at as u64, new);
                writer.push_block(EntryKind::Block(BlockKind::Plain), CodecId::None, block.digest, part)?;
            }
        }
    }
    let made = writer.finish()?;
    Ok((patch, made))
}

/// Makes the blocks that are new those that they were.
fn undo(blocks: &[Block], held: &mut [u8], length: usize) -> Result<(), PatchError> {
    let mut decoder = BlockDecoder::new();
    for (block, held) in blocks.iter().zip(held.chunks_mut(length)).filter(|(block, _)| block.is_new) {
        if let Coded::Payload(EntryKind::Block(kind), _, payload) = &block.told {
            let undone = decoder.undo_onto(*kind, payload, held);
            undone.map_err(|source| PatchError::Codec { index: block.index, source })?;
        }
    }
    Ok(())
}
