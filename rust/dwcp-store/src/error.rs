//! What can go wrong with files and buffers.

use std::io;
use std::path::{Path, PathBuf};

use dwcp_codec::PatchError;
use dwcp_proto::error::ProtoError;

/// Why a path or an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a file, directory or symbolic link.
    #[error("a {0} cannot be carried")]
    Special(&'static str),
    /// Symbolic links were to be refused.
    #[error("symbolic links are refused by option")]
    Symlink,
    /// A symbolic link stands where a directory is needed.
    #[error("a symbolic link stands where a directory is needed")]
    SymlinkedParent,
    /// Something that is no directory stands where a directory is needed.
    #[error("something else stands where a directory is needed")]
    NotADirectory,
    /// A directory stands where a file or link must go.
    #[error("a directory stands where a file or link must go")]
    IsADirectory,
    /// A directory of the target is another mounted file system, into which staging cannot be renamed.
    #[error("another file system is mounted there, so nothing can be renamed into it")]
    OtherFileSystem,
    /// The link is absolute or leads out of the tree.
    #[error("the link leads out of the target directory")]
    EscapingLink,
    /// The name is kept for the receiver's own state.
    #[error("the name .dwcp is kept for staging")]
    ReservedName,
    /// The path has no last component to name the entry by.
    #[error("the path has no base name")]
    NoName,
    /// Two given paths have the same base name.
    #[error("two paths have this base name")]
    DuplicateName,
    /// The name cannot be expressed on this system.
    #[error("the name cannot be expressed here")]
    Name,
    /// A buffer was offered to a directory.
    #[error("a buffer cannot be stored in a directory")]
    BufferInTree,
    /// A file, directory or link was offered to memory.
    #[error("only buffers can be received into memory")]
    FileInMemory,
    /// No buffer was provided for the entry.
    #[error("no buffer was provided under this name")]
    NoBuffer,
    /// A provided buffer does not have the length of the entry.
    #[error("the provided buffer does not have the length of the entry")]
    BufferLength,
    /// A base that was asked for is no regular file or directory.
    #[error("a base must be a regular file or a directory")]
    Base,
}

/// What can go wrong with files and buffers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system said no; its error is the source.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A source file is not what it was when it was scanned.
    #[error("{path:?} changed while it was being sent")]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// The target exists and was not to be overwritten.
    #[error("{path:?} exists and is not to be overwritten")]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A path or an entry that is not taken.
    #[error("{path:?} is refused: {reason}")]
    Refused {
        /// The path or the name of the entry.
        path: PathBuf,
        /// Why.
        reason: Refusal,
    },
    /// The file system has less room than the transfer needs.
    #[error("the transfer needs {needed} bytes of disk and {free} are free")]
    NoSpace {
        /// Bytes that are still to be staged.
        needed: u64,
        /// Bytes that the file system says are free.
        free: u64,
    },
    /// The memory for a buffer cannot be had.
    #[error("no memory for a buffer of {needed} bytes")]
    OutOfMemory {
        /// The length of the buffer.
        needed: u64,
    },
    /// Something is larger than its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The largest value taken.
        limit: u64,
    },
    /// A block that is no block of its entry.
    #[error("entry {entry} has no block of {length} bytes at {offset}")]
    OutOfRange {
        /// The entry's index in the manifest.
        entry: u32,
        /// Where the block was to be.
        offset: u64,
        /// How long it was to be.
        length: u64,
    },
    /// Another receiver works on the same staging, or somebody changes the same file in place.
    #[error("another process is using {path:?}")]
    Busy {
        /// The staging directory, or a file that is changed in place.
        path: PathBuf,
    },
    /// A method was called before `prepare`, or after the work was committed or aborted.
    #[error("{action} without a prepared transfer")]
    NotPrepared {
        /// What was called.
        action: &'static str,
    },
    /// The entries do not make a manifest.
    #[error(transparent)]
    Manifest(#[from] ProtoError),
    /// A patch, or what it was to be applied to.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// A change of a file in place was not finished.
    #[error("{path:?} may be a mix of two versions: its journal {journal:?} has to be recovered first")]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Its journal.
        journal: PathBuf,
    },
    /// A journal that cannot be followed.
    #[error("the journal {journal:?} {reason}")]
    Journal {
        /// The journal.
        journal: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The caller wished to stop.
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    /// The operating system's error below this one, if there is one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            StoreError::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The path this error is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            StoreError::Io { path, .. }
            | StoreError::SourceChanged { path }
            | StoreError::Exists { path }
            | StoreError::Refused { path, .. }
            | StoreError::Unfinished { path, .. }
            | StoreError::Journal { journal: path, .. }
            | StoreError::Busy { path } => Some(path),
            _ => None,
        }
    }
}

/// Gives an `io::Result` the action and path that [`StoreError::Io`] wants.
pub(crate) trait IoContext<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_path_buf(), source })
    }
}

pub(crate) fn refuse(path: impl Into<PathBuf>, reason: Refusal) -> StoreError {
    StoreError::Refused { path: path.into(), reason }
}
