//! `patch_encode_files` and `patch_apply_files`: block by block, so that memory does not grow with the files.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_codec::block::BlockDecoder;
use dwcp_codec::digest::{Digest, TreeHasher};
use dwcp_codec::patch::{FIXED_BYTES, PatchEncoder, PatchError, PatchHead, PatchOptions};
use pyo3::prelude::*;

use super::encode::options;
use super::info::PatchInfo;
use crate::error::Failure;
use crate::native;

/// Write the patch that turns file `old` into file `new` to the existing file `out`.
#[pyfunction]
#[pyo3(signature = (old, new, out, width, codec, block_bytes))]
pub fn patch_encode_files(
    py: Python<'_>,
    old: PathBuf,
    new: PathBuf,
    out: PathBuf,
    width: u8,
    codec: &str,
    block_bytes: u32,
) -> PyResult<PatchInfo> {
    let options = options(py, width, codec, block_bytes)?;
    let stop = AtomicBool::new(false);
    native::run_interruptibly(
        py,
        || stop.store(true, Ordering::Relaxed),
        || encode(&old, &new, &out, &options, &stop),
    )
}

/// Write the new version to the existing file `out`; the base is proven first, and every block afterwards.
#[pyfunction]
#[pyo3(signature = (patch, old, out))]
pub fn patch_apply_files(py: Python<'_>, patch: PathBuf, old: PathBuf, out: PathBuf) -> PyResult<PatchInfo> {
    let stop = AtomicBool::new(false);
    native::run_interruptibly(py, || stop.store(true, Ordering::Relaxed), || apply(&patch, &old, &out, &stop))
}

fn encode(
    old: &Path,
    new: &Path,
    out: &Path,
    options: &PatchOptions,
    stop: &AtomicBool,
) -> Result<PatchInfo, Failure> {
    let (mut before, mut after) = (Blocks::open(old)?, Blocks::open(new)?);
    let mut encoder = PatchEncoder::new(before.length, after.length, options)?;
    let mut file = BufWriter::new(overwrite(out)?);
    let mut length = encoder.head_length();
    file.seek(SeekFrom::Start(length)).map_err(|error| failed(out, error))?;
    for _ in 0..encoder.block_count() {
        check(stop)?;
        let payload = encoder.push(before.next(options.block_bytes)?, after.next(options.block_bytes)?)?;
        file.write_all(payload).map_err(|error| failed(out, error))?;
        length += payload.len() as u64;
    }
    let head = encoder.finish()?;
    let mut file = file.into_inner().map_err(|error| failed(out, error.into_error()))?;
    file.rewind().and_then(|()| file.write_all(&head)).map_err(|error| failed(out, error))?;
    Ok(PatchInfo::of(&PatchHead::parse(&head, length)?, length))
}

fn apply(patch: &Path, old: &Path, out: &Path, stop: &AtomicBool) -> Result<PatchInfo, Failure> {
    let mut delta = Blocks::open(patch)?;
    let head = read_head(&mut delta)?;
    let mut base = Blocks::open(old)?;
    verify_base(&head, &mut base, stop)?;
    base.rewind()?;
    let mut file = overwrite(out)?;
    let mut decoder = BlockDecoder::new();
    let mut target = Vec::new();
    for (index, record) in (0..).zip(head.records()) {
        check(stop)?;
        let range = head.target_range(index.into())?;
        // At most one block, whose length the head was checked for.
        target.resize((range.end - range.start) as usize, 0);
        let payload = delta.next(record.length)?;
        head.decode_block(&mut decoder, index, payload, base.next(head.block_bytes())?, &mut target)?;
        file.write_all(&target).map_err(|error| failed(out, error))?;
    }
    Ok(PatchInfo::of(&head, delta.length))
}

fn read_head(delta: &mut Blocks<'_>) -> Result<PatchHead, Failure> {
    let all = delta.length;
    let length = PatchHead::length_of(delta.next(FIXED_BYTES as u32)?, all)?;
    delta.rewind()?;
    let mut head = Vec::new();
    // No more than the file has, as length_of promises.
    (&delta.file).take(length).read_to_end(&mut head).map_err(|error| failed(delta.path, error))?;
    Ok(PatchHead::parse(&head, all)?)
}

fn verify_base(head: &PatchHead, base: &mut Blocks<'_>, stop: &AtomicBool) -> Result<(), Failure> {
    let mut tree = TreeHasher::new(base.length, head.block_bytes());
    loop {
        check(stop)?;
        match base.next(head.block_bytes())? {
            [] => break,
            block => tree.push(Digest::of(block)),
        }
    }
    let (expected, actual) = (head.base_digest(), tree.finish());
    if expected != actual || base.length != head.base_size() {
        return Err(PatchError::BaseMismatch { expected, actual }.into());
    }
    Ok(())
}

fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::Cancelled) } else { Ok(()) }
}

fn failed(path: &Path, source: io::Error) -> Failure {
    Failure::Io { path: path.to_path_buf(), source }
}

fn overwrite(path: &Path) -> Result<File, Failure> {
    File::options().write(true).truncate(true).open(path).map_err(|error| failed(path, error))
}

/// A file read in pieces.
struct Blocks<'a> {
    path: &'a Path,
    file: File,
    length: u64,
    left: u64,
    block: Vec<u8>,
}

impl<'a> Blocks<'a> {
    fn open(path: &'a Path) -> Result<Blocks<'a>, Failure> {
        let opened = || {
            let file = File::open(path)?;
            let about = file.metadata()?;
            if !about.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            Ok((file, about.len()))
        };
        let (file, length) = opened().map_err(|error| failed(path, error))?;
        Ok(Blocks { path, file, length, left: length, block: Vec::new() })
    }

    /// The next piece, shorter at the end of the file and empty past it.
    fn next(&mut self, most: u32) -> Result<&[u8], Failure> {
        let length = self.left.min(u64::from(most));
        self.block.resize(length as usize, 0);
        // A file that shrank meanwhile ends in an error here, not in a short piece.
        self.file.read_exact(&mut self.block).map_err(|error| failed(self.path, error))?;
        self.left -= length;
        Ok(&self.block)
    }

    fn rewind(&mut self) -> Result<(), Failure> {
        self.left = self.length;
        self.file.rewind().map_err(|error| failed(self.path, error))
    }
}
