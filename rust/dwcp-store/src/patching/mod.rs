//! Patches between files, of any size, in bounded memory.
//!
//! [`diff_files`] and [`apply_files`] write to a file that the caller stages and renames. [`apply_in_place`] changes a
//! file where it is, with a journal beside it: however it ends, the file is the old version or the new one, or its
//! journal is there and the next call, or [`recover`], makes it so.

mod apply;
mod disk;
mod file;
mod journal;
#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use dwcp_codec::Dictionary;
use dwcp_codec::patch::{Contents, PatchOptions, encode_into};

pub use apply::{apply_files, apply_in_place};
pub use journal::{Recovery, recover};

use crate::error::{IoContext, StoreError};
use file::FileSource;

/// What is called between pieces of long work from every thread that works: an error ends the work and is passed on.
pub type Check<'a> = dyn Fn() -> Result<(), StoreError> + Sync + 'a;

/// How patches are applied to files. A number of threads is enough to make it of.
#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions<'a> {
    /// How many threads work on it. 0 counts as 1.
    pub threads: usize,
    /// What blocks were made with, if they were.
    pub dictionary: Option<&'a Arc<Dictionary>>,
}

impl From<usize> for ApplyOptions<'_> {
    fn from(threads: usize) -> Self {
        ApplyOptions { threads, dictionary: None }
    }
}

/// Writes the patch that turns file `old` into file `new` to the existing file `out`, and tells what is in it.
///
/// # Errors
///
/// [`StoreError::Io`], [`StoreError::Unfinished`] if a journal lies beside `old` or `new`, [`StoreError::Patch`], and
/// those of `check`.
pub fn diff_files(
    old: &Path,
    new: &Path,
    out: &Path,
    options: &PatchOptions<'_>,
    check: &Check<'_>,
) -> Result<Contents, StoreError> {
    let (old, new) = (FileSource::open(old, check)?, FileSource::open(new, check)?);
    old.refuse_unfinished()?;
    new.refuse_unfinished()?;
    let mut writer = file::Writer::create(out)?;
    encode_into(&old, &new, None, options, |part| writer.write(part.bytes()).on("write", out))?;
    writer.finish().on("write", out)?;
    Contents::scan(&FileSource::open(out, check)?, 0)
}

/// Tells what is in the patches of a file, which stand one behind the other.
///
/// # Errors
///
/// [`StoreError::Io`], [`StoreError::Patch`], and those of `check`.
pub fn read_chain(patch: &Path, check: &Check<'_>) -> Result<Vec<Contents>, StoreError> {
    file::chain(&FileSource::open(patch, check)?)
}
