//! `patch_encode_files` and its kin: files of any length.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_codec::patch::PatchOptions;
use dwcp_store::StoreError;
use dwcp_store::patching::{self, ApplyOptions, Check, Recovery};
use pyo3::prelude::*;

use super::encode::parse;
use super::info::PatchInfo;
use crate::dictionary::Dictionary;
use crate::error::Failure;
use crate::native;

/// Write the patch that turns file `old` into file `new` to the existing file `out`.
#[pyfunction]
#[pyo3(signature = (old, new, out, width, codec, dictionary, block_bytes, search, threads))]
#[allow(clippy::too_many_arguments)] // The options, one by one, as all of the binding takes them.
pub fn patch_encode_files(
    py: Python<'_>,
    old: PathBuf,
    new: PathBuf,
    out: PathBuf,
    width: Option<u8>,
    codec: &str,
    dictionary: Option<&Dictionary>,
    block_bytes: Option<u32>,
    search: bool,
    threads: usize,
) -> PyResult<PatchInfo> {
    let dictionary = dictionary.map(Dictionary::inner);
    let options = PatchOptions { block_bytes, width, codec: parse(py, codec)?, dictionary, threads, search };
    run(py, |check| {
        patching::diff_files(&old, &new, &out, &options, check).map(|contents| PatchInfo::of([&contents]))
    })
}

/// Write the new version to the existing file `out`; the base is proven first, and every block afterwards.
#[pyfunction]
#[pyo3(signature = (patch, old, out, threads, dictionary))]
pub fn patch_apply_files(
    py: Python<'_>,
    patch: PathBuf,
    old: PathBuf,
    out: PathBuf,
    threads: usize,
    dictionary: Option<&Dictionary>,
) -> PyResult<PatchInfo> {
    let options = ApplyOptions { threads, dictionary: dictionary.map(Dictionary::shared) };
    run(py, |check| {
        patching::apply_files(&patch, &old, &out, options, check).map(|chain| PatchInfo::of(&chain))
    })
}

/// Turn a file into the new version where it is, with a journal beside it.
#[pyfunction]
#[pyo3(signature = (patch, file, threads, dictionary))]
pub fn patch_apply_in_place_files(
    py: Python<'_>,
    patch: PathBuf,
    file: PathBuf,
    threads: usize,
    dictionary: Option<&Dictionary>,
) -> PyResult<PatchInfo> {
    let options = ApplyOptions { threads, dictionary: dictionary.map(Dictionary::shared) };
    run(py, |check| {
        patching::apply_in_place(&patch, &file, options, check).map(|chain| PatchInfo::of(&chain))
    })
}

/// Finish or discard what a change of a file in place left unfinished, and say which.
#[pyfunction]
#[pyo3(signature = (file))]
pub fn patch_recover(py: Python<'_>, file: PathBuf) -> PyResult<&'static str> {
    let done = run(py, |check| patching::recover(&file, check))?;
    Ok(match done {
        Recovery::Nothing => "nothing",
        Recovery::Discarded => "discarded",
        Recovery::Finished => "finished",
    })
}

/// Runs `work` while signals are looked for; the first that raises ends it.
fn run<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Check<'_>) -> Result<T, StoreError> + Send,
) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    let check = || if stop.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) };
    native::run_interruptibly(
        py,
        || stop.store(true, Ordering::Relaxed),
        || work(&check).map_err(Failure::Source),
    )
}
