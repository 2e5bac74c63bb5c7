//! Applying patches to files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_codec::patch::{Contents, EntryKind, MIN_BLOCK_BYTES, Source, decode_each};
use dwcp_codec::{Dictionary, page};

use super::disk::{Disk, System};
use super::file::{self, FileSource};
use super::journal::{self, Journal, Recovery};
use super::{ApplyOptions, Check};
use crate::error::{IoContext, StoreError};
use crate::platform::Lock;

/// Writes the new version of file `old` to the existing file `out`, another file, and tells what was in the patches.
///
/// Of a chain all versions but the last are kept in a file beside `out` meanwhile. The base is proven before a block is
/// decoded, every block afterwards; on an error the contents of `out` are unspecified. If `old` is the new version
/// already it is copied, and if it is one in the middle of a chain it goes on from there. Blocks of zeros are not
/// written: they are holes in `out` where the system has such.
///
/// # Errors
///
/// [`StoreError::Io`], [`StoreError::Unfinished`], [`StoreError::Patch`], and those of `check`.
pub fn apply_files<'a>(
    patch: &Path,
    old: &Path,
    out: &Path,
    options: impl Into<ApplyOptions<'a>>,
    check: &Check<'_>,
) -> Result<Vec<Contents>, StoreError> {
    let ApplyOptions { threads, dictionary } = options.into();
    let patch = FileSource::open(patch, check)?;
    let chain = with_dictionary(file::chain(&patch)?, dictionary)?;
    let base = FileSource::open(old, check)?;
    base.refuse_unfinished()?;
    let refused = match apply_chain(&chain, &patch, base, out, threads, check) {
        Err(StoreError::Patch(refused)) if refused.is_other_base() => refused,
        done => return done.map(|()| chain),
    };
    let now = FileSource::open(old, check)?;
    match place_in(&chain, &now, threads)? {
        // It was refused as the base, and is it now.
        Some(0) => Err(refused.into()),
        Some(start) => apply_chain(&chain[start..], &patch, now, out, threads, check).map(|()| chain),
        None => copy_to(&now, overwrite(out)?, out).map(|()| chain),
    }
}

/// What is in patches, for decoding with a dictionary where they need one.
fn with_dictionary(
    chain: Vec<Contents>,
    dictionary: Option<&Arc<Dictionary>>,
) -> Result<Vec<Contents>, StoreError> {
    let chain = chain.into_iter().map(|contents| contents.with_dictionary(dictionary));
    chain.collect::<Result<_, _>>().map_err(StoreError::from)
}

fn apply_chain<'a>(
    chain: &[Contents],
    patch: &FileSource<'a>,
    mut base: FileSource<'a>,
    out: &Path,
    threads: usize,
    check: &'a Check<'a>,
) -> Result<(), StoreError> {
    for (number, contents) in chain.iter().enumerate() {
        if number + 1 == chain.len() {
            apply_one(contents, patch, &base, overwrite(out)?, out, threads, check)?;
        } else {
            let step = Step::create(out, number)?;
            apply_one(contents, patch, &base, step.open()?, &step.path, threads, check)?;
            // Open, it outlives its name.
            base = FileSource::open(&step.path, check)?;
        }
    }
    Ok(())
}

/// Turns a file from the base of a patch into its target, where it is, and tells what was in the patches.
///
/// An unfinished change is finished first. A file that is the target already is left as it is, and one that is the
/// target of a patch of the chain goes on from there, so that the same call can be made until it succeeds. While it
/// works, others that change this file in place are refused. Readers may see a mix meanwhile.
///
/// # Errors
///
/// [`StoreError::Io`], [`StoreError::Busy`], [`StoreError::Patch`], those of [`recover`](super::recover), and those of
/// `check`.
pub fn apply_in_place<'a>(
    patch: &Path,
    file: &Path,
    options: impl Into<ApplyOptions<'a>>,
    check: &Check<'_>,
) -> Result<Vec<Contents>, StoreError> {
    apply_in_place_on(&System, patch, file, options, check)
}

pub(super) fn apply_in_place_on<'a, D: Disk>(
    disk: &D,
    patch: &Path,
    file: &Path,
    options: impl Into<ApplyOptions<'a>>,
    check: &Check<'_>,
) -> Result<Vec<Contents>, StoreError> {
    let ApplyOptions { threads, dictionary } = options.into();
    let patch = FileSource::open(patch, check)?;
    let chain = with_dictionary(file::chain(&patch)?, dictionary)?;
    let held = Held::open(file)?;
    held.recover(disk, check)?;
    let Some(start) = place_in(&chain, &held.source(check)?, threads)? else { return Ok(chain) };
    for (number, contents) in chain.iter().enumerate().skip(start) {
        let base = held.source(check)?;
        if number > start {
            contents.verify_base(&base, threads)?;
        }
        let path = journal::journal_of(&held.path)?;
        let mut journal = Journal::create(disk, &path, contents)?;
        let made = fill_journal(disk, &mut journal, contents, &patch, &base, threads, check);
        // What the journal leaves to the file has to be there with it: the base may have been written just now.
        let made = made.and_then(|()| disk.sync(&held.file).on("sync", &held.path));
        if let Err(error) = made.and_then(|()| journal.commit(disk)) {
            // The file was not written to. If the journal cannot be removed, the next call does it.
            let _ = disk.remove(&path);
            return Err(error);
        }
        // From here on only going on leads to one of the versions: nobody is asked any more.
        journal.redo(disk, &held.file, &held.path)?;
        journal.remove(disk)?;
    }
    Ok(chain)
}

fn fill_journal<D: Disk>(
    disk: &D,
    journal: &mut Journal,
    contents: &Contents,
    patch: &FileSource<'_>,
    base: &FileSource<'_>,
    threads: usize,
    check: &Check<'_>,
) -> Result<(), StoreError> {
    decode_each(contents, contents.independent(), patch, base, base, threads, |entry, block| {
        journal.add(disk, entry.first, block)
    })?;
    // No block is made of those that follow.
    let target = journal.target(base, check)?;
    decode_each(contents, contents.dependent(), patch, base, &target, threads, |entry, block| {
        journal.add(disk, entry.first, block)
    })
}

/// Writes the target of one patch to `out`, which is empty.
fn apply_one(
    contents: &Contents,
    patch: &FileSource<'_>,
    base: &FileSource<'_>,
    out: File,
    path: &Path,
    threads: usize,
    check: &Check<'_>,
) -> Result<(), StoreError> {
    System.set_size(&out, contents.target_size()).on("resize", path)?;
    contents.verify_base_with(base, threads, |index, block| {
        let range = contents.target_range(index);
        let same =
            index < contents.block_count().into() && contents.entry_of(index as u32)?.kind == EntryKind::Same;
        if same {
            // An entry was refused unless its blocks lie within the base.
            let length = (range.end - range.start) as usize;
            write_unless_zero(&out, &block[..length], range.start).on("write", path)?;
        }
        Ok(())
    })?;
    let target = FileSource::of(path, out.try_clone().on("open", path)?, check)?;
    for entries in [contents.independent().collect::<Vec<_>>(), contents.dependent().collect()] {
        decode_each(contents, entries.into_iter(), patch, base, &target, threads, |entry, block| {
            let at = contents.target_range(entry.first.into()).start;
            write_unless_zero(target.file(), block, at).on("write", path)
        })?;
    }
    Ok(())
}

/// Which patch of a chain is the next for an object; `None` if it is the target of the last.
fn place_in(chain: &[Contents], now: &FileSource<'_>, threads: usize) -> Result<Option<usize>, StoreError> {
    let mut refused = None;
    for (number, contents) in chain.iter().enumerate() {
        match contents.verify_base(now, threads) {
            Ok(_) => return Ok(Some(number)),
            Err(StoreError::Patch(error)) if error.is_other_base() => refused = refused.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match (chain.last(), refused) {
        (Some(last), Some(refused)) if !last.is_target(now, threads)? => Err(refused.into()),
        _ => Ok(None),
    }
}

/// Copies an object to `out`, which is empty.
fn copy_to(object: &FileSource<'_>, out: File, path: &Path) -> Result<(), StoreError> {
    System.set_size(&out, object.size()).on("resize", path)?;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < object.size() {
        let length = (object.size() - at).min(MIN_BLOCK_BYTES.into());
        let part = object.read(at, length as usize, &mut buffer)?;
        write_unless_zero(&out, part, at).on("write", path)?;
        at += length;
    }
    Ok(())
}

/// Writes a part of a file that is all zeros so far.
fn write_unless_zero(out: &File, part: &[u8], at: u64) -> io::Result<()> {
    if page::fill_byte(part) == Some(0) { Ok(()) } else { System.write(out, part, at) }
}

fn overwrite(path: &Path) -> Result<File, StoreError> {
    File::options().read(true).write(true).truncate(true).open(path).on("open", path)
}

/// A version in the middle of a chain, in a file that goes with this.
struct Step {
    path: PathBuf,
}

impl Step {
    fn create(out: &Path, number: usize) -> Result<Step, StoreError> {
        let mut path = out.as_os_str().to_owned();
        path.push(format!(".{number}"));
        let path = PathBuf::from(path);
        File::options().write(true).create_new(true).open(&path).on("create", &path)?;
        Ok(Step { path })
    }

    fn open(&self) -> Result<File, StoreError> {
        overwrite(&self.path)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // What is left is a file too many beside one that is staged too.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file that nobody else changes in place.
pub(super) struct Held {
    pub(super) path: PathBuf,
    file: Lock,
}

impl Held {
    pub(super) fn open(path: &Path) -> Result<Held, StoreError> {
        // Beside a link to it, its journal would not be found.
        let path = path.canonicalize().on("open", path)?;
        let file = File::options().read(true).write(true).open(&path).on("open", &path)?;
        match Lock::take(file).on("lock", &path)? {
            Some(file) => Ok(Held { path, file }),
            None => Err(StoreError::Busy { path }),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file as it is now.
    pub(super) fn source<'a>(&self, check: &'a Check<'a>) -> Result<FileSource<'a>, StoreError> {
        FileSource::of(&self.path, self.file.try_clone().on("open", &self.path)?, check)
    }

    pub(super) fn recover<D: Disk>(&self, disk: &D, check: &Check<'_>) -> Result<Recovery, StoreError> {
        Journal::recover(disk, self, check)
    }
}
