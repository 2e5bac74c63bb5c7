//! Files as a source of blocks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_codec::digest::Digest;
use dwcp_proto::limits::MAX_BLOCK;

use super::ScanOptions;
use crate::error::IoContext;
use crate::index::{BaseIndex, BaseRecord};
use crate::open_files::OpenFiles;
use crate::platform::{self, Kind, Stat};
use crate::{Source, StoreError};

/// What every hole looks like.
static ZEROS: [u8; MAX_BLOCK as usize] = [0; MAX_BLOCK as usize];

/// The key of an object in the set of open files; candidates are keyed by their number.
const OBJECT: u8 = u8::MAX;

/// A file that may serve as a base.
pub(super) struct Base {
    pub(super) path: PathBuf,
    pub(super) stat: Stat,
}

/// What an entry of the manifest is on disk.
pub(super) struct Object {
    pub(super) path: PathBuf,
    pub(super) stat: Stat,
    pub(super) bases: Vec<Base>,
}

/// The files of a scan.
pub struct TreeSource {
    objects: Vec<Object>,
    block_bytes: u32,
    index: Option<PathBuf>,
    files: OpenFiles<(u32, u8)>,
}

impl TreeSource {
    pub(super) fn new(objects: Vec<Object>, options: &ScanOptions) -> TreeSource {
        let index = options.index.clone();
        TreeSource { objects, block_bytes: options.block_bytes, index, files: OpenFiles::new() }
    }

    /// The open file at `path`, if it is still the one of `stat`.
    fn open(&self, key: (u32, u8), path: &Path, stat: &Stat) -> Result<Arc<File>, StoreError> {
        self.files.open(key, || {
            let file = platform::open_no_follow(path).on("open", path)?;
            match platform::stat_file(&file).on("inspect", path)?.same_content(stat) {
                true => Ok(file),
                false => Err(StoreError::SourceChanged { path: path.to_path_buf() }),
            }
        })
    }
}

impl Source for TreeSource {
    fn block<'a>(
        &'a self,
        entry: u32,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        let out_of_range = StoreError::OutOfRange { entry, offset, length: u64::from(len) };
        let Some(Object { path, stat, .. }) = self.objects.get(entry as usize) else {
            return Err(out_of_range);
        };
        let end = offset.checked_add(u64::from(len));
        if stat.kind != Kind::File || end.is_none_or(|end| end > stat.size) {
            return Err(out_of_range);
        }
        let file = self.open((entry, OBJECT), path, stat)?;
        let length = len as usize;
        if stat.sparse && length <= ZEROS.len() && platform::is_hole(&file, offset, u64::from(len)) {
            return Ok(&ZEROS[..length]);
        }
        scratch.resize(length, 0);
        if platform::read_up_to(&file, scratch, offset).on("read", path)? < length {
            return Err(StoreError::SourceChanged { path: path.clone() });
        }
        Ok(scratch)
    }

    fn base<'a>(
        &'a self,
        entry: u32,
        candidate: u8,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        let object = self.objects.get(entry as usize);
        let Some(Base { path, stat }) = object.and_then(|object| object.bases.get(usize::from(candidate)))
        else {
            return Err(StoreError::OutOfRange { entry, offset, length: u64::from(len) });
        };
        let length = stat.size.saturating_sub(offset).min(u64::from(len)) as usize;
        scratch.resize(length, 0);
        let file = self.open((entry, candidate), path, stat)?;
        if platform::read_up_to(&file, scratch, offset).on("read", path)? < length {
            return Err(StoreError::SourceChanged { path: path.clone() });
        }
        Ok(scratch)
    }

    fn confirm(&self) -> Result<(), StoreError> {
        for Object { path, stat, .. } in self.objects.iter().filter(|object| object.stat.kind == Kind::File) {
            if !platform::stat_path(path).is_ok_and(|now| now.same_content(stat)) {
                return Err(StoreError::SourceChanged { path: path.clone() });
            }
        }
        Ok(())
    }

    fn remember(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let Some(index) = &self.index else { return Ok(()) };
        let mut records = Vec::new();
        for (object, digest) in self.objects.iter().zip(digests) {
            let path = platform::bytes_of(object.path.as_os_str());
            if let (Kind::File, 1.., Some(path)) = (object.stat.kind, object.stat.size, path) {
                records.push(BaseRecord::new(path.into_owned(), &object.stat, self.block_bytes, *digest));
            }
        }
        if let Some(directory) = index.parent() {
            std::fs::create_dir_all(directory).on("create", directory)?;
        }
        BaseIndex::load(index)?.append(records)
    }
}
