//! What is remembered of files that were sent or received, so that a later transfer finds bases by digest.
//!
//! One line of text per file, appended; damaged lines are skipped. The index is never proof: a file is used only if
//! it still has the recorded size, times and inode, and every block of it is proven by digest when it is used.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dwcp_codec::digest::{Digest, check64};

use crate::StoreError;
use crate::error::IoContext;
use crate::platform::{Kind, Stat};

/// Bytes of an index that are read at most, from its end; what is before them is forgotten when it is next rewritten.
const MAX_BYTES: u64 = 256 << 20;
/// An index with fewer lines is never rewritten.
const FEW_LINES: usize = 1_024;
/// Most files remembered.
const MAX_RECORDS: usize = 1 << 20;

/// A file whose content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRecord {
    /// Its path as bytes: absolute in a sender's index, relative to the target directory in a receiver's.
    pub path: Vec<u8>,
    /// Its tree digest with blocks of `block_bytes`.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The block size of the tree digest.
    pub block_bytes: u32,
    device: u64,
    inode: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl BaseRecord {
    pub(crate) fn new(path: Vec<u8>, stat: &Stat, block_bytes: u32, digest: Digest) -> BaseRecord {
        BaseRecord {
            path,
            digest,
            size: stat.size,
            block_bytes,
            device: stat.device,
            inode: stat.inode,
            mtime_ns: stat.mtime_ns,
            ctime_ns: stat.ctime_ns,
        }
    }

    /// Is the file, as far as the file system tells, the one that was recorded?
    pub(crate) fn matches(&self, stat: &Stat) -> bool {
        stat.kind == Kind::File
            && (self.size, self.device, self.inode) == (stat.size, stat.device, stat.inode)
            && (self.mtime_ns, self.ctime_ns) == (stat.mtime_ns, stat.ctime_ns)
    }

    fn encode(&self, out: &mut String) {
        let mut line = format!(
            "{} {} {} {} {} {} {} ",
            self.digest, self.size, self.block_bytes, self.device, self.inode, self.mtime_ns, self.ctime_ns
        );
        for byte in &self.path {
            // Writing to a string cannot fail.
            let _ = write!(line, "{byte:02x}");
        }
        let check = check64(0, &[line.as_bytes()]);
        let _ = writeln!(out, "{check:016x} {line}");
    }

    fn decode(line: &str) -> Option<BaseRecord> {
        let (check, line) = line.split_once(' ')?;
        if u64::from_str_radix(check, 16).ok()? != check64(0, &[line.as_bytes()]) {
            return None;
        }
        let mut fields = line.split(' ');
        let record = BaseRecord {
            digest: fields.next()?.parse().ok()?,
            size: fields.next()?.parse().ok()?,
            block_bytes: fields.next()?.parse().ok()?,
            device: fields.next()?.parse().ok()?,
            inode: fields.next()?.parse().ok()?,
            mtime_ns: fields.next()?.parse().ok()?,
            ctime_ns: fields.next()?.parse().ok()?,
            path: hex_bytes(fields.next()?)?,
        };
        fields.next().is_none().then_some(record)
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16);
    text.chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

/// The files remembered in one index file.
#[derive(Debug)]
pub struct BaseIndex {
    path: PathBuf,
    records: Vec<BaseRecord>,
    lines: usize,
}

impl BaseIndex {
    /// Reads the index at `path`; one that does not exist is empty.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read.
    pub fn load(path: &Path) -> Result<BaseIndex, StoreError> {
        BaseIndex::load_end(path, MAX_BYTES)
    }

    /// Reads the last `most` bytes; a line that they cut is skipped like any damaged one.
    fn load_end(path: &Path, most: u64) -> Result<BaseIndex, StoreError> {
        let mut bytes = Vec::new();
        match crate::platform::open_no_follow(path) {
            Ok(mut file) => {
                let length = file.seek(SeekFrom::End(0)).on("read", path)?;
                file.seek(SeekFrom::Start(length.saturating_sub(most))).on("read", path)?;
                file.take(most).read_to_end(&mut bytes).on("read", path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).on("open", path),
        }
        let lines: Vec<&str> =
            bytes.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()).collect();
        let mut seen = HashSet::new();
        let mut records: Vec<BaseRecord> = Vec::new();
        for record in lines.iter().rev().filter_map(|line| BaseRecord::decode(line)) {
            // The last word on a path counts.
            if records.len() < MAX_RECORDS && seen.insert((record.path.clone(), record.block_bytes)) {
                records.push(record);
            }
        }
        Ok(BaseIndex { path: path.to_path_buf(), lines: lines.len(), records })
    }

    /// The files, the one recorded last first, at most one for a path and block size.
    #[must_use]
    pub fn records(&self) -> &[BaseRecord] {
        &self.records
    }

    /// Adds records to the index and its file; the file is rewritten when most of it is outdated.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file cannot be written.
    pub fn append(&mut self, added: Vec<BaseRecord>) -> Result<(), StoreError> {
        if added.is_empty() {
            return Ok(());
        }
        let replaced: HashSet<_> =
            added.iter().map(|record| (record.path.as_slice(), record.block_bytes)).collect();
        self.records.retain(|record| !replaced.contains(&(record.path.as_slice(), record.block_bytes)));
        drop(replaced);
        self.lines += added.len() + 1;
        // A line that a crash cut off must not swallow the next one.
        let mut text = String::from("\n");
        added.iter().for_each(|record| record.encode(&mut text));
        self.records.splice(0..0, added.into_iter().rev());
        self.records.truncate(MAX_RECORDS);
        if self.lines > FEW_LINES + 2 * self.records.len() {
            return self.rewrite();
        }
        let mut file = private().append(true).open(&self.path).on("open", &self.path)?;
        file.write_all(text.as_bytes()).on("write", &self.path)
    }

    fn rewrite(&mut self) -> Result<(), StoreError> {
        let mut text = String::new();
        self.records.iter().rev().for_each(|record| record.encode(&mut text));
        // Named by the process: two that rewrite at once each rename a whole file, and the later one stands.
        let name = format!("{}.{}", self.path.file_name().unwrap_or_default().display(), std::process::id());
        let temporary = self.path.with_file_name(name);
        let _ = fs::remove_file(&temporary);
        let mut file = private().write(true).create_new(true).open(&temporary).on("create", &temporary)?;
        file.write_all(text.as_bytes()).on("write", &temporary)?;
        fs::rename(&temporary, &self.path).on("rename", &temporary)?;
        self.lines = self.records.len();
        Ok(())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &[u8], seed: u8) -> BaseRecord {
        BaseRecord {
            path: path.to_vec(),
            digest: Digest::of(&[seed]),
            size: u64::from(seed),
            block_bytes: 65_536,
            device: 1,
            inode: u64::from(seed),
            mtime_ns: -5,
            ctime_ns: i64::MAX,
        }
    }

    #[test]
    fn last_record_of_a_path_counts_and_torn_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let mut index = BaseIndex::load(&path).unwrap();
        assert!(index.records().is_empty());
        index.append(vec![record(b"a\xff/b", 1), record(b"c", 2)]).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"0123 torn"].concat()).unwrap();
        let mut index = BaseIndex::load(&path).unwrap();
        assert_eq!(index.records(), [record(b"c", 2), record(b"a\xff/b", 1)]);
        index.append(vec![record(b"c", 3)]).unwrap();
        assert_eq!(index.records(), [record(b"c", 3), record(b"a\xff/b", 1)]);
        assert_eq!(BaseIndex::load(&path).unwrap().records(), index.records());
        let altered = fs::read_to_string(&path).unwrap().replace(" 65536 ", " 65537 ");
        fs::write(&path, altered).unwrap();
        assert!(BaseIndex::load(&path).unwrap().records().is_empty());
    }

    #[test]
    fn newest_records_of_an_index_that_is_too_long_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let mut index = BaseIndex::load(&path).unwrap();
        index.append(vec![record(b"old", 1)]).unwrap();
        let old = fs::metadata(&path).unwrap().len();
        index.append(vec![record(b"new", 2)]).unwrap();
        let length = fs::metadata(&path).unwrap().len();
        let read = BaseIndex::load_end(&path, length - old + 20).unwrap();
        assert_eq!(read.records(), [record(b"new", 2)]);
        assert_eq!(BaseIndex::load_end(&path, length).unwrap().records().len(), 2);
    }

    #[test]
    fn outdated_lines_are_dropped_when_they_are_most_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let mut index = BaseIndex::load(&path).unwrap();
        for round in 0..600_u32 {
            index.append(vec![record(b"same", round as u8)]).unwrap();
        }
        assert!(fs::read(&path).unwrap().split(|byte| *byte == b'\n').count() < 300);
        assert_eq!(BaseIndex::load(&path).unwrap().records(), [record(b"same", 599_u32 as u8)]);
    }
}
