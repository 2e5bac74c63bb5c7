//! Files as what patches are made of.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use dwcp_codec::patch::{Contents, PatchError, Source};

use super::Check;
use super::journal::journal_of;
use crate::error::{IoContext, StoreError};
use crate::platform;

/// A regular file to read from.
pub(super) struct FileSource<'a> {
    path: PathBuf,
    file: File,
    size: u64,
    check: &'a Check<'a>,
}

impl<'a> FileSource<'a> {
    pub(super) fn open(path: &Path, check: &'a Check<'a>) -> Result<FileSource<'a>, StoreError> {
        FileSource::of(path, platform::open_read(path).on("open", path)?, check)
    }

    /// An open file; its size is looked at now.
    pub(super) fn of(path: &Path, file: File, check: &'a Check<'a>) -> Result<FileSource<'a>, StoreError> {
        let about = file.metadata().on("look at", path)?;
        if !about.is_file() {
            return Err(io::Error::other("not a regular file")).on("read", path);
        }
        Ok(FileSource { path: path.to_path_buf(), file, size: about.len(), check })
    }

    /// Refuses a file that a journal lies beside: it may be a mix of two versions.
    pub(super) fn refuse_unfinished(&self) -> Result<(), StoreError> {
        // It lies beside the file itself, not beside a link to it.
        let journal = journal_of(&self.path.canonicalize().on("look at", &self.path)?)?;
        if journal.try_exists().on("look at", &journal)? {
            return Err(StoreError::Unfinished { path: self.path.clone(), journal });
        }
        Ok(())
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Source for FileSource<'_> {
    type Error = StoreError;

    fn size(&self) -> u64 {
        self.size
    }

    fn read<'b>(
        &'b self,
        offset: u64,
        length: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], StoreError> {
        (self.check)()?;
        if buffer.len() < length {
            let more = length - buffer.len();
            buffer.try_reserve(more).map_err(|_| StoreError::OutOfMemory { needed: length as u64 })?;
            buffer.resize(length, 0);
        }
        let buffer = &mut buffer[..length];
        if platform::read_up_to(&self.file, buffer, offset).on("read", &self.path)? != length {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter meanwhile");
            return Err(cut).on("read", &self.path);
        }
        Ok(buffer)
    }
}

/// What is in the patches that fill a file.
pub(super) fn chain(patch: &FileSource<'_>) -> Result<Vec<Contents>, StoreError> {
    let mut chain = Vec::new();
    let mut at = 0;
    while at < patch.size() || chain.is_empty() {
        let contents = Contents::scan(patch, at)?;
        at = contents.range().end;
        let before: Option<&Contents> = chain.last();
        if let Some(before) = before {
            let fits = before.target_size() == contents.base_size()
                && (before.block_bytes() != contents.block_bytes()
                    || before.target_digest() == contents.base_digest());
            if !fits {
                let (expected, actual) = (contents.base_digest(), before.target_digest());
                return Err(PatchError::BaseMismatch { expected, actual }.into());
            }
        }
        chain.push(contents);
    }
    Ok(chain)
}

/// Writes a file from front to back.
pub(super) struct Writer(BufWriter<File>);

impl Writer {
    /// Overwrites an existing file.
    pub(super) fn create(path: &Path) -> Result<Writer, StoreError> {
        let file = File::options().write(true).truncate(true).open(path).on("open", path)?;
        Ok(Writer(BufWriter::with_capacity(1 << 20, file)))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner().map(drop).map_err(|error| error.into_error())
    }
}
