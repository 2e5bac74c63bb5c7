//! A transfer without a network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_codec::digest::{Digest, tree};
use dwcp_proto::frame::HaveSource;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::Manifest;
use dwcp_store::{
    BaseChoice, Prepared, ScanOptions, Sink, Source, StoreError, SymlinkPolicy, TreeSink, TreeSinkOptions,
    TreeSource, scan,
};

pub const BLOCK: usize = 65_536;

pub fn scan_options(bases: BaseChoice) -> ScanOptions {
    ScanOptions { symlinks: SymlinkPolicy::Keep, block_bytes: BLOCK as u32, bases, index: None }
}

pub fn offer(paths: &[&Path]) -> (Arc<Manifest>, TreeSource) {
    offer_with(paths, &scan_options(BaseChoice::None))
}

pub fn offer_with(paths: &[&Path], options: &ScanOptions) -> (Arc<Manifest>, TreeSource) {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let (manifest, source) = scan(&paths, options, &Limits::default()).unwrap();
    (Arc::new(manifest), source)
}

pub fn sink(dir: &Path) -> TreeSink {
    TreeSink::new(dir.to_path_buf(), TreeSinkOptions::default())
}

pub fn prepare(sink: &dyn Sink, manifest: &Arc<Manifest>) -> Result<Prepared, StoreError> {
    sink.prepare(manifest, true, &mut || Ok(()))
}

/// Is the block announced as staged?
pub fn is_staged(prepared: &Prepared, entry: u32, block: u32) -> bool {
    prepared.haves.iter().any(|have| {
        have.entry == entry
            && have.source == HaveSource::Staged
            && (have.first_block..have.first_block + have.digests.len() as u32).contains(&block)
    })
}

/// Stores the blocks that are not staged, at most `most` of them; how many it were.
pub fn fill(
    manifest: &Manifest,
    source: &dyn Source,
    sink: &dyn Sink,
    prepared: &Prepared,
    most: usize,
) -> usize {
    let mut stored = 0;
    let mut scratch = Vec::new();
    for entry in 0..manifest.entries().len() as u32 {
        for block in 0..manifest.blocks_of(entry) {
            if stored < most && !is_staged(prepared, entry, block) {
                let offset = u64::from(block) * BLOCK as u64;
                let length = manifest.block_len(entry, block);
                let bytes = source.block(entry, offset, length, &mut scratch).unwrap();
                sink.store(entry, offset, bytes, Digest::of(bytes)).unwrap();
                stored += 1;
            }
        }
    }
    stored
}

pub fn commit(sink: &dyn Sink) -> Result<(), StoreError> {
    sink.commit(&mut || Ok(()))
}

/// A whole transfer.
pub fn transfer(manifest: &Arc<Manifest>, source: &dyn Source, sink: &dyn Sink) -> Prepared {
    let prepared = prepare(sink, manifest).unwrap();
    fill(manifest, source, sink, &prepared, usize::MAX);
    source.confirm().unwrap();
    commit(sink).unwrap();
    prepared
}

/// The tree digests of the manifest's entries.
pub fn trees(manifest: &Manifest, source: &dyn Source) -> Vec<Digest> {
    let mut scratch = Vec::new();
    let mut trees = Vec::new();
    for (number, entry) in (0_u32..).zip(manifest.entries()) {
        let mut leaves = Vec::new();
        for block in 0..manifest.blocks_of(number) {
            let offset = u64::from(block) * BLOCK as u64;
            leaves.push(Digest::of(
                source.block(number, offset, manifest.block_len(number, block), &mut scratch).unwrap(),
            ));
        }
        trees.push(tree(entry.size, manifest.block_bytes(), &leaves));
    }
    trees
}

/// Bytes that differ from block to block.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| step()).collect()
}
