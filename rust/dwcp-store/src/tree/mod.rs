//! A directory as a sink.

mod admission;
mod bases;
mod placing;
mod present;
mod staged;
mod staging;
mod walker;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use dwcp_codec::digest::Digest;
use dwcp_proto::manifest::Manifest;

use crate::error::IoContext;
use crate::platform::Dir;
use crate::{Prepared, Sink, StoreError, SymlinkPolicy, Tick};
use staging::Staging;

pub use staged::{StagedTransfer, remove_staging, staged_transfers};

/// The directory in the target that holds all staging and the index.
const HOME: &[u8] = b".dwcp";

/// How a [`TreeSink`] treats what is in the target directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSinkOptions {
    /// Existing files and links are replaced; otherwise a transfer that would is refused. What is there already as the
    /// manifest has it, content, mode and time, is left in place: so a transfer that is repeated, because its commit
    /// was cut off or its answer was lost, ends as the first should have.
    pub overwrite: bool,
    /// What happens to symbolic links.
    pub symlinks: SymlinkPolicy,
    /// Files are flushed to the disk before they are renamed, and directories after.
    pub sync: bool,
    /// A transfer whose sizes sum up to more than is free is refused at once. Without it, sparse files larger than
    /// the disk can be received, and a disk that fills up is noticed when it does.
    pub check_space: bool,
}

impl Default for TreeSinkOptions {
    fn default() -> TreeSinkOptions {
        TreeSinkOptions { overwrite: true, symlinks: SymlinkPolicy::Keep, sync: true, check_space: true }
    }
}

/// Receives files, directories and links into a directory.
///
/// Files grow in `.dwcp/<transfer id>/` of that directory and are renamed into place by [`Sink::commit`]. Existing
/// directories are merged with, everything else is replaced or left as it is. No symbolic link in the target
/// directory is followed. Modes and modification times are set as the manifest says, except that the set-user-id and
/// set-group-id bits are never set.
pub struct TreeSink {
    dir: PathBuf,
    options: TreeSinkOptions,
    staging: RwLock<Option<Arc<Staging>>>,
}

impl TreeSink {
    /// A sink for `dir`, which is made when a transfer is prepared.
    #[must_use]
    pub fn new(dir: PathBuf, options: TreeSinkOptions) -> TreeSink {
        TreeSink { dir, options, staging: RwLock::new(None) }
    }

    fn staging(&self, action: &'static str) -> Result<Arc<Staging>, StoreError> {
        let slot = self.staging.read().unwrap_or_else(PoisonError::into_inner);
        slot.clone().ok_or(StoreError::NotPrepared { action })
    }
}

impl Sink for TreeSink {
    fn prepare(
        &self,
        manifest: &Arc<Manifest>,
        base_allowed: bool,
        tick: &mut Tick<'_>,
    ) -> Result<Prepared, StoreError> {
        let mut slot = self.staging.write().unwrap_or_else(PoisonError::into_inner);
        // Closes what an earlier session left open, and with it the lock of its staging.
        *slot = None;
        tick()?;
        fs::create_dir_all(&self.dir).on("create", &self.dir)?;
        let root = Dir::open(&self.dir).on("open", &self.dir)?;
        let needed = admission::check(&self.dir, &root, manifest, &self.options, tick)?;
        let (mut staging, recorded) = Staging::open(&self.dir, root, manifest, tick)?;
        let staged = staging.read_again(recorded, tick)?;
        let staged_bytes = staged.bytes();
        if self.options.check_space {
            staging.check_space(needed.saturating_sub(staged_bytes)).inspect_err(|_| {
                if staged_bytes == 0 {
                    // Nothing worth keeping; what cannot be removed is found by `staged_transfers`.
                    let _ = placing::remove(&staging);
                }
            })?;
        }
        let mut haves = staged.haves();
        if base_allowed {
            haves.extend(bases::find(&mut staging, &staged, tick)?);
            // The order of the entries, and for each what is staged before its base.
            haves.sort_by_key(|have| have.entry);
        }
        *slot = Some(Arc::new(staging));
        Ok(Prepared { haves, staged_bytes })
    }

    fn store(&self, entry: u32, offset: u64, block: &[u8], digest: Digest) -> Result<(), StoreError> {
        self.staging("store")?.store(entry, offset, block, digest)
    }

    fn base(&self, entry: u32, offset: u64, dst: &mut [u8]) -> Result<bool, StoreError> {
        bases::read(&*self.staging("read a base")?, entry, offset, dst)
    }

    fn commit(&self, tick: &mut Tick<'_>) -> Result<(), StoreError> {
        placing::place(&*self.staging("commit")?, &self.options, tick)
    }

    fn discard(&self, entries: &[u32]) -> Result<(), StoreError> {
        let staging = self.staging("discard")?;
        entries.iter().try_for_each(|entry| staging.discard(*entry))
    }

    fn abort(&self) {
        *self.staging.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The directory part of an entry's path (empty at the top) and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The path in the target directory, for people.
fn shown(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(
        crate::platform::path_of(path).unwrap_or_else(|| String::from_utf8_lossy(path).into_owned().into()),
    )
}
