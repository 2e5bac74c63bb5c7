//! What the operating system is asked for. Everything above works on [`Dir`] handles and never follows a link.

use std::fs::File;
use std::io;
use std::ops::Deref;

#[cfg(any(not(unix), test))]
mod portable;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
use portable as system;
#[cfg(unix)]
use unix as system;

pub(crate) use system::{
    Dir, bytes_of, is_hole, open_no_follow, open_read, path_of, punch_hole, read_at, stat_file, stat_path,
    write_all_at,
};
use system::{try_lock, unlock};

/// A file whose lock is held until this is dropped.
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of a file; `None` if somebody else has it.
    pub(crate) fn take(file: File) -> io::Result<Option<Lock>> {
        Ok(try_lock(&file)?.then_some(Lock(file)))
    }
}

impl Deref for Lock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that is just being started may have the file open, too, and would keep the
        // lock until it runs another program.
        let _ = unlock(&self.0);
    }
}

/// The kind of a thing in a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Special(&'static str),
}

/// What the file system says of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    /// Less room is allocated than the size asks for, so that there may be holes.
    pub(crate) sparse: bool,
}

impl Stat {
    /// Same file and, as far as size and modification time tell, same content.
    pub(crate) fn same_content(&self, other: &Stat) -> bool {
        self.kind == other.kind
            && self.size == other.size
            && self.device == other.device
            && self.inode == other.inode
            && self.mtime_ns == other.mtime_ns
    }
}

/// Reads into `dst` until it is full or the file ends; the number of bytes read.
pub(crate) fn read_up_to(file: &File, dst: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < dst.len() {
        match read_at(file, &mut dst[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
