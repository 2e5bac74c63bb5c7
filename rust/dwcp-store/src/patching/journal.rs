//! The redo journal of a file that is changed in place: the blocks that are to be written, all there before the first
//! of them is. `docs/format-files.md` has the bytes.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use dwcp_codec::digest::{Digest, TreeHasher, check64};
use dwcp_codec::patch::{Contents, MAX_BLOCK_BYTES, PatchError, Source};

use super::Check;
use super::apply::Held;
use super::disk::{Disk, System};
use super::file::FileSource;
use crate::error::{IoContext, Refusal, StoreError, refuse};
use crate::platform;

const MAGIC: [u8; 4] = *b"DWCJ";
const VERSION: u8 = 1;
const HEAD_BYTES: u64 = 64;
const RECORD_BYTES: u64 = 24;
/// Number of records and check.
const END_BYTES: u64 = 16;
/// Seed of the check: "dwcj" in ASCII.
const CHECK_SEED: u64 = 0x6477_636a;

/// What [`recover`] found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// There was no journal: the file is what it was.
    Nothing,
    /// The journal was not complete, so that the file is the old version still. The journal is gone.
    Discarded,
    /// The journal was complete: the file is the new version now. The journal is gone.
    Finished,
}

/// Finishes or discards what a change of `file` in place left unfinished.
///
/// # Errors
///
/// [`StoreError::Io`], [`StoreError::Busy`] if the file is being changed in place, [`StoreError::Journal`] if the journal
/// is none of this file, which is left as it is with its journal then, and those of `check`.
pub fn recover(file: &Path, check: &Check<'_>) -> Result<Recovery, StoreError> {
    Held::open(file)?.recover(&System, check)
}

/// Where the journal of a file is.
pub(super) fn journal_of(file: &Path) -> Result<PathBuf, StoreError> {
    let name = file.file_name().ok_or_else(|| refuse(file, Refusal::NoName))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".dwcp-journal");
    Ok(file.with_file_name(hidden))
}

/// A block of the new version, kept in a journal.
#[derive(Clone, Copy)]
struct Record {
    index: u32,
    length: u32,
    digest: Digest,
    /// Where its bytes are in the journal.
    offset: u64,
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES as usize] {
        let mut bytes = [0; RECORD_BYTES as usize];
        bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..].copy_from_slice(&self.digest.0);
        bytes
    }
}

/// The two versions that a journal leads from and to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ends {
    block_bytes: u32,
    base_size: u64,
    target_size: u64,
    base_digest: Digest,
    target_digest: Digest,
}

impl Ends {
    fn to_bytes(self) -> [u8; HEAD_BYTES as usize] {
        let mut bytes = [0; HEAD_BYTES as usize];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[8..12].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.target_size.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.base_digest.0);
        bytes[48..].copy_from_slice(&self.target_digest.0);
        bytes
    }

    /// `None` if these bytes are no head of a journal.
    fn read(bytes: &[u8; HEAD_BYTES as usize]) -> Option<Ends> {
        let ends = Ends {
            block_bytes: u32::from_le_bytes(part(bytes, 8)),
            base_size: u64::from_le_bytes(part(bytes, 16)),
            target_size: u64::from_le_bytes(part(bytes, 24)),
            base_digest: Digest(part(bytes, 32)),
            target_digest: Digest(part(bytes, 48)),
        };
        let plausible = (1..=MAX_BLOCK_BYTES).contains(&ends.block_bytes) && ends.to_bytes() == *bytes;
        plausible.then_some(ends)
    }
}

/// A journal, while it is written or after it was found whole.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    ends: Ends,
    records: Vec<Record>,
    end: u64,
}

impl Journal {
    /// Begins the journal of a change.
    pub(super) fn create<D: Disk>(disk: &D, path: &Path, contents: &Contents) -> Result<Journal, StoreError> {
        let ends = Ends {
            block_bytes: contents.block_bytes(),
            base_size: contents.base_size(),
            target_size: contents.target_size(),
            base_digest: contents.base_digest(),
            target_digest: contents.target_digest(),
        };
        let file = disk.create(path).on("create", path)?;
        disk.write(&file, &ends.to_bytes(), 0).on("write", path)?;
        Ok(Journal { path: path.to_path_buf(), file, ends, records: Vec::new(), end: HEAD_BYTES })
    }

    /// Adds a block of the new version.
    pub(super) fn add<D: Disk>(&mut self, disk: &D, index: u32, block: &[u8]) -> Result<(), StoreError> {
        let record = Record {
            index,
            // A block is no longer than MAX_BLOCK_BYTES.
            length: block.len() as u32,
            digest: Digest::of(block),
            offset: self.end + RECORD_BYTES,
        };
        disk.write(&self.file, &record.to_bytes(), self.end).on("write", &self.path)?;
        disk.write(&self.file, block, record.offset).on("write", &self.path)?;
        self.end = record.offset + block.len() as u64;
        self.records.push(record);
        Ok(())
    }

    /// The new version as far as it is known: what was added, and the base elsewhere.
    pub(super) fn target<'a>(
        &self,
        base: &'a FileSource<'a>,
        check: &'a Check<'a>,
    ) -> Result<Added<'a>, StoreError> {
        let file = self.file.try_clone().on("open", &self.path)?;
        let mut records = self.records.clone();
        records.sort_unstable_by_key(|record| record.index);
        let journal = FileSource::of(&self.path, file, check)?;
        Ok(Added { journal, base, records, ends: self.ends })
    }

    /// Makes the journal whole, on disk: from now on the change is going to happen.
    pub(super) fn commit<D: Disk>(&mut self, disk: &D) -> Result<(), StoreError> {
        let end = end_bytes(self.ends, &self.records);
        disk.write(&self.file, &end, self.end).on("write", &self.path)?;
        self.sync(disk)
    }

    /// Returns when the journal and its name are on disk.
    fn sync<D: Disk>(&self, disk: &D) -> Result<(), StoreError> {
        disk.sync(&self.file).on("sync", &self.path)?;
        disk.sync_names(&self.path).on("sync the directory of", &self.path)
    }

    /// Writes all blocks to where they belong in `file`.
    pub(super) fn redo<D: Disk>(&self, disk: &D, file: &File, path: &Path) -> Result<(), StoreError> {
        disk.set_size(file, self.ends.target_size).on("resize", path)?;
        let mut block = Vec::new();
        for record in &self.records {
            block.resize(record.length as usize, 0);
            if platform::read_up_to(&self.file, &mut block, record.offset).on("read", &self.path)?
                < block.len()
                || Digest::of(&block) != record.digest
            {
                return Err(self.refuse("was damaged meanwhile"));
            }
            let at = u64::from(record.index) * u64::from(self.ends.block_bytes);
            disk.write(file, &block, at).on("write", path)?;
        }
        disk.sync(file).on("sync", path)
    }

    /// Removes the journal of a change that has happened, or will not.
    pub(super) fn remove<D: Disk>(self, disk: &D) -> Result<(), StoreError> {
        let Journal { path, file, .. } = self;
        // Open files cannot be removed everywhere.
        drop(file);
        disk.remove(&path).on("remove", &path)?;
        disk.sync_names(&path).on("sync the directory of", &path)
    }

    /// Finishes or discards the change of `held` that a journal tells of.
    pub(super) fn recover<D: Disk>(disk: &D, held: &Held, check: &Check<'_>) -> Result<Recovery, StoreError> {
        let path = journal_of(&held.path)?;
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Recovery::Nothing),
            opened => opened.on("open", &path)?,
        };
        let source = FileSource::of(&path, file.try_clone().on("open", &path)?, check)?;
        let mut buffer = Vec::new();
        let head = if source.size() < HEAD_BYTES {
            None
        } else {
            let head = source.read(0, HEAD_BYTES as usize, &mut buffer)?;
            head.first_chunk().and_then(Ends::read)
        };
        let Some(ends) = head else {
            // The head is on disk before the first block of the file is written: it was not.
            drop((source, file));
            disk.remove(&path).on("remove", &path)?;
            return Ok(Recovery::Discarded);
        };
        let (records, end, whole) = read_records(&source, ends)?;
        drop(source);
        let journal = Journal { path, file, ends, records, end };
        let now = held.source(check)?;
        if whole {
            journal.prove_result(&now)?;
            // Whoever made it whole may have ended before it was on disk.
            journal.sync(disk)?;
            journal.redo(disk, held.file(), &held.path)?;
            journal.remove(disk)?;
            return Ok(Recovery::Finished);
        }
        if now.size() != ends.base_size || tree_of(&now, ends.block_bytes)? != ends.base_digest {
            return Err(
                journal.refuse("is not complete, yet the file is not the version that it begins with")
            );
        }
        journal.remove(disk)?;
        Ok(Recovery::Discarded)
    }

    /// Refuses to write blocks to a file that would not become the new version by them.
    fn prove_result(&self, now: &FileSource<'_>) -> Result<(), StoreError> {
        let Ends { block_bytes, target_size, target_digest, .. } = self.ends;
        let mut records: Vec<&Record> = self.records.iter().collect();
        records.sort_unstable_by_key(|record| record.index);
        let mut records = records.into_iter().peekable();
        let mut tree = TreeHasher::new(target_size, block_bytes);
        let mut buffer = Vec::new();
        for index in 0..target_size.div_ceil(block_bytes.into()) {
            let at = index * u64::from(block_bytes);
            let length = (target_size - at).min(block_bytes.into());
            if let Some(record) = records.next_if(|record| u64::from(record.index) == index) {
                tree.push(record.digest);
            } else if at + length <= now.size() {
                tree.push(Digest::of(now.read(at, length as usize, &mut buffer)?));
            }
        }
        if tree.finish() != target_digest || records.next().is_some() {
            return Err(self.refuse("does not lead from what the file is to the version that it ends with"));
        }
        Ok(())
    }

    fn refuse(&self, reason: &'static str) -> StoreError {
        StoreError::Journal { journal: self.path.clone(), reason }
    }
}

/// What ends a journal of these records.
fn end_bytes(ends: Ends, records: &[Record]) -> [u8; END_BYTES as usize] {
    // The number of blocks of a target fits.
    let count = (records.len() as u32).to_le_bytes();
    let mut fields = ends.to_bytes().to_vec();
    records.iter().for_each(|record| fields.extend(record.to_bytes()));
    let check = check64(CHECK_SEED, &[&fields, &count]);
    let mut bytes = [0; END_BYTES as usize];
    bytes[..4].copy_from_slice(b"DONE");
    bytes[4..8].copy_from_slice(&count);
    bytes[8..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// The records of a journal as far as they are whole, where they end, and whether the journal ends there as it should.
fn read_records(source: &FileSource<'_>, ends: Ends) -> Result<(Vec<Record>, u64, bool), StoreError> {
    let mut records: Vec<Record> = Vec::new();
    let mut buffer = Vec::new();
    let mut at = HEAD_BYTES;
    loop {
        if at + END_BYTES == source.size() {
            let whole = source.read(at, END_BYTES as usize, &mut buffer)? == end_bytes(ends, &records);
            return Ok((records, at, whole));
        }
        if at + RECORD_BYTES > source.size() {
            return Ok((records, at, false));
        }
        let fields: [u8; RECORD_BYTES as usize] =
            part(source.read(at, RECORD_BYTES as usize, &mut buffer)?, 0);
        let record = Record {
            index: u32::from_le_bytes(part(&fields, 0)),
            length: u32::from_le_bytes(part(&fields, 4)),
            digest: Digest(part(&fields, 8)),
            offset: at + RECORD_BYTES,
        };
        let start = u64::from(record.index) * u64::from(ends.block_bytes);
        let expected = ends.target_size.saturating_sub(start).min(ends.block_bytes.into());
        let end = record.offset + u64::from(record.length);
        if expected == 0 || u64::from(record.length) != expected || end > source.size() {
            return Ok((records, at, false));
        }
        if Digest::of(source.read(record.offset, record.length as usize, &mut buffer)?) != record.digest {
            return Ok((records, at, false));
        }
        records.push(record);
        at = end;
    }
}

/// The tree digest of a file.
fn tree_of(file: &FileSource<'_>, block_bytes: u32) -> Result<Digest, StoreError> {
    let mut tree = TreeHasher::new(file.size(), block_bytes);
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < file.size() {
        let length = (file.size() - at).min(block_bytes.into());
        tree.push(Digest::of(file.read(at, length as usize, &mut buffer)?));
        at += length;
    }
    Ok(tree.finish())
}

/// A new version of which some blocks are in a journal; the others are as in the base.
pub(super) struct Added<'a> {
    journal: FileSource<'a>,
    base: &'a FileSource<'a>,
    /// In the order of their blocks.
    records: Vec<Record>,
    ends: Ends,
}

impl Source for Added<'_> {
    type Error = StoreError;

    fn size(&self) -> u64 {
        self.ends.target_size
    }

    fn read<'b>(
        &'b self,
        offset: u64,
        length: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], StoreError> {
        let (mut at, end) = (offset, offset.saturating_add(length as u64));
        if end > self.ends.target_size {
            return Err(PatchError::Truncated { length: self.ends.target_size, at, needed: end }.into());
        }
        buffer.clear();
        let mut part = Vec::new();
        while at < end {
            let index = at / u64::from(self.ends.block_bytes);
            let start = index * u64::from(self.ends.block_bytes);
            let length = end.min(start + u64::from(self.ends.block_bytes)) - at;
            let found = self.records.binary_search_by_key(&index, |record| record.index.into());
            let bytes = match found {
                Ok(number) => {
                    let place = self.records[number].offset + (at - start);
                    self.journal.read(place, length as usize, &mut part)?
                }
                Err(_) => self.base.read(at, length as usize, &mut part)?,
            };
            buffer.extend_from_slice(bytes);
            at += length;
        }
        Ok(buffer)
    }
}

/// `N` bytes at `at`, where the callers know that there are as many.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
