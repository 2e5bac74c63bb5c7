//! From paths to a manifest and the source of its blocks.

mod bases;
mod tree_source;
mod walk;

use std::path::PathBuf;

use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, Manifest};

pub use tree_source::TreeSource;

use crate::{StoreError, SymlinkPolicy, Tick};

/// Which files may serve as bases that the receiver might hold as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BaseChoice {
    /// None.
    #[default]
    None,
    /// Files sent earlier that are still as they were, found by name in the index; without one, none.
    Auto,
    /// A file: for every given path that is a file. A directory: for a file given as a path its file of that name,
    /// for a file in a given directory its file at the same place.
    Paths(Vec<PathBuf>),
}

/// How [`scan`] looks at files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// What happens to symbolic links.
    pub symlinks: SymlinkPolicy,
    /// The block size of the transfer in bytes.
    pub block_bytes: u32,
    /// Which bases are offered.
    pub bases: BaseChoice,
    /// The file that tells which files were sent earlier. [`crate::Source::remember`] adds these to it, whichever
    /// bases were offered.
    pub index: Option<PathBuf>,
}

/// The manifest of `paths` and the source of its blocks.
///
/// Each path becomes an entry named by its last component, directories with all that is in them, sorted by the bytes
/// of the names. Symbolic links, also those given as paths, are carried as links. A `.dwcp` directory directly in a
/// given directory is a receiver's own state and is left out.
///
/// # Errors
/// [`StoreError::Io`] (of kind `NotFound` for a path that is not there), [`StoreError::Refused`] for devices,
/// sockets, FIFOs, links if they are refused, and paths that share a name, [`StoreError::Limit`] and
/// [`StoreError::Manifest`] when there is too much.
pub fn scan(
    paths: &[PathBuf],
    options: &ScanOptions,
    limits: &Limits,
) -> Result<(Manifest, TreeSource), StoreError> {
    scan_with(paths, options, limits, &mut || Ok(()))
}

/// [`scan`] with a call between pieces of work: a directory read, or a block of a base hashed.
///
/// # Errors
/// As for [`scan`], and whatever `tick` returns.
pub fn scan_with(
    paths: &[PathBuf],
    options: &ScanOptions,
    limits: &Limits,
    tick: &mut Tick<'_>,
) -> Result<(Manifest, TreeSource), StoreError> {
    let found = walk::walk(paths, options.symlinks, limits, tick)?;
    let finder = bases::Finder::new(options)?;
    let mut entries = Vec::with_capacity(found.len());
    let mut objects = Vec::with_capacity(found.len());
    for item in found {
        let (candidates, bases) = finder.candidates(&item, tick)?.into_iter().unzip();
        objects.push(tree_source::Object { path: item.path, stat: item.stat, bases });
        entries.push(Entry { candidates, ..item.entry });
    }
    let manifest = Manifest::new(options.block_bytes, entries, limits)?;
    Ok((manifest, TreeSource::new(objects, options)))
}
