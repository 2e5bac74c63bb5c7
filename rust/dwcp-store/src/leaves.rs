//! Block digests of files.

use std::fs::File;
use std::path::Path;

use dwcp_codec::digest::Digest;

use crate::error::IoContext;
use crate::{StoreError, Tick, platform};

/// The size of the file at `path` (links are followed) and the digests of its blocks, the leaves of its tree digest.
///
/// # Errors
/// [`StoreError::Io`] when it cannot be read, [`StoreError::SourceChanged`] when its size changes meanwhile, and
/// whatever `tick` returns; it is called before each block.
pub fn file_leaves(
    path: &Path,
    block_bytes: u32,
    tick: &mut Tick<'_>,
) -> Result<(u64, Vec<Digest>), StoreError> {
    let file = File::open(path).on("open", path)?;
    let size = file.metadata().on("inspect", path)?.len();
    Ok((size, leaves_of_file(&file, path, size, block_bytes, tick)?))
}

/// The digests of the blocks of an open file of `size` bytes.
pub(crate) fn leaves_of_file(
    file: &File,
    path: &Path,
    size: u64,
    block_bytes: u32,
    tick: &mut Tick<'_>,
) -> Result<Vec<Digest>, StoreError> {
    let mut leaves = Vec::new();
    let mut scratch = Vec::new();
    let mut offset = 0;
    while offset < size {
        tick()?;
        let length = u64::from(block_bytes.max(1)).min(size - offset) as usize;
        scratch.resize(length, 0);
        if platform::read_up_to(file, &mut scratch, offset).on("read", path)? < length {
            return Err(StoreError::SourceChanged { path: path.to_path_buf() });
        }
        leaves.push(Digest::of(&scratch));
        offset += length as u64;
    }
    Ok(leaves)
}
