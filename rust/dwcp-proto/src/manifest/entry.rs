//! One entry of a manifest, and its bytes.

use dwcp_codec::Digest;

use crate::error::{PathFault, ProtoError};
use crate::limits::{MAX_CANDIDATES, MAX_COMPONENT, MAX_OBJECT, MAX_PATH, MAX_TARGET};
use crate::wire::{Reader, Writer};

/// Bytes of an entry without path, target and candidates.
const FIXED_BYTES: usize = 26;
/// Fewest bytes of an entry: its path has at least one.
pub(crate) const MIN_ENTRY_BYTES: usize = FIXED_BYTES + 1;
const CANDIDATE_BYTES: usize = 24;
const MAX_MODE: u32 = 0o7777;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A regular file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named piece of memory.
    Buffer = 3,
}

impl EntryKind {
    /// Whether entries of this kind have bytes of their own.
    #[must_use]
    pub fn has_object(self) -> bool {
        matches!(self, EntryKind::File | EntryKind::Buffer)
    }
}

/// An object that the sender holds and that may serve as a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its size in bytes.
    pub size: u64,
    /// Its tree digest, with the block size of the transfer.
    pub digest: Digest,
}

/// One file, directory, symbolic link or buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its path below the target, components joined by `/`; any bytes but NUL.
    pub path: Vec<u8>,
    /// Permission bits; 0 for a symbolic link or buffer.
    pub mode: u32,
    /// Time of the last change in nanoseconds since 1970-01-01 UTC; 0 for a buffer.
    pub mtime_ns: i64,
    /// Size in bytes; 0 without an object.
    pub size: u64,
    /// What a symbolic link points to; else empty.
    pub target: Vec<u8>,
    /// Bases that the sender holds; for files only.
    pub candidates: Vec<Candidate>,
}

impl Entry {
    /// Whether the path may stand in a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_path(path: &[u8]) -> Result<(), PathFault> {
        if path.is_empty() {
            return Err(PathFault::Empty);
        }
        if path.len() > MAX_PATH {
            return Err(PathFault::TooLong);
        }
        if path.contains(&0) {
            return Err(PathFault::Nul);
        }
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" => return Err(PathFault::EmptyComponent),
                b"." | b".." => return Err(PathFault::Dots),
                _ if component.len() > MAX_COMPONENT => return Err(PathFault::LongComponent),
                _ => {}
            }
        }
        if path == b".dwcp" || path.starts_with(b".dwcp/") {
            return Err(PathFault::Reserved);
        }
        Ok(())
    }

    /// Checks everything that can be told from this entry alone; `index` is for the error.
    pub(super) fn check(&self, index: u32, max_object: u64) -> Result<(), ProtoError> {
        Entry::check_path(&self.path).map_err(|fault| ProtoError::Path { entry: index, fault })?;
        let is_link = self.kind == EntryKind::Symlink;
        let max_mode = if matches!(self.kind, EntryKind::File | EntryKind::Directory) { MAX_MODE } else { 0 };
        let max_size = if self.kind.has_object() { max_object.min(MAX_OBJECT) } else { 0 };
        let max_candidates = if self.kind == EntryKind::File { MAX_CANDIDATES } else { 0 };
        let bounds = [
            ("mode", u64::from(self.mode), u64::from(max_mode)),
            ("size", self.size, max_size),
            ("candidate count", self.candidates.len() as u64, max_candidates as u64),
        ];
        for (field, value, limit) in bounds {
            if value > limit {
                let (value, limit) = (value.try_into().unwrap_or(i64::MAX), limit as i64);
                return Err(ProtoError::EntryField { entry: index, field, value, limit });
            }
        }
        if self.kind == EntryKind::Buffer && self.mtime_ns != 0 {
            return Err(ProtoError::EntryField {
                entry: index,
                field: "mtime",
                value: self.mtime_ns,
                limit: 0,
            });
        }
        let length = self.target.len();
        let fits = if is_link {
            (1..=MAX_TARGET).contains(&length) && !self.target.contains(&0)
        } else {
            length == 0
        };
        if fits { Ok(()) } else { Err(ProtoError::Target { entry: index, length }) }
    }

    /// Length of the entry in a MANIFEST head.
    pub(crate) fn wire_bytes(&self) -> usize {
        FIXED_BYTES + self.path.len() + self.target.len() + CANDIDATE_BYTES * self.candidates.len()
    }

    /// Appends the entry; without its candidates for the transfer id.
    pub(super) fn encode(&self, w: &mut Writer<'_>, with_candidates: bool) {
        w.u8(self.kind as u8);
        w.u16(self.path.len() as u16);
        w.bytes(&self.path);
        w.u32(self.mode);
        w.i64(self.mtime_ns);
        w.u64(self.size);
        w.u16(self.target.len() as u16);
        w.bytes(&self.target);
        if with_candidates {
            w.u8(self.candidates.len() as u8);
            for candidate in &self.candidates {
                w.u64(candidate.size);
                w.bytes(&candidate.digest.0);
            }
        }
    }

    /// Reads and checks the entry of this index.
    pub(super) fn decode(index: u32, r: &mut Reader<'_>) -> Result<Entry, ProtoError> {
        let kind = match r.number("kind", 1, 0..=3)? {
            0 => EntryKind::File,
            1 => EntryKind::Directory,
            2 => EntryKind::Symlink,
            _ => EntryKind::Buffer,
        };
        let length = r.number("path length", 2, 1..=MAX_PATH as u64)? as usize;
        let path = r.bytes(length)?.to_vec();
        let (mode, mtime_ns, size) = (r.u32()?, r.i64()?, r.u64()?);
        let length = r.number("target length", 2, 0..=MAX_TARGET as u64)? as usize;
        let target = r.bytes(length)?.to_vec();
        let count = r.number("candidates", 1, 0..=MAX_CANDIDATES as u64)?;
        let candidates = (0..count)
            .map(|_| Ok(Candidate { size: r.u64()?, digest: r.digest()? }))
            .collect::<Result<_, ProtoError>>()?;
        let entry = Entry { kind, path, mode, mtime_ns, size, target, candidates };
        entry.check(index, MAX_OBJECT)?;
        Ok(entry)
    }
}
