//! The steps that change what is on disk while a file is changed in place, in one place, for tests to end them early.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::platform::{self, Dir};

/// What changes files. Every method is one step, after which the system may be gone.
pub(super) trait Disk {
    /// Makes a file that must not exist, to write and to read.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Writes all of `bytes` at `offset`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends a file.
    fn set_size(&self, file: &File, size: u64) -> io::Result<()>;

    /// Returns when all that was written to the file is on disk.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns when the names in the directory of `path` are on disk.
    fn sync_names(&self, path: &Path) -> io::Result<()>;
}

/// The disk itself.
pub(super) struct System;

impl Disk for System {
    fn create(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(path)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        platform::write_all_at(file, bytes, offset)
    }

    fn set_size(&self, file: &File, size: u64) -> io::Result<()> {
        file.set_len(size)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Dir::open(directory.unwrap_or(Path::new(".")))?.sync()
    }
}
