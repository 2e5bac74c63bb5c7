//! `Snapshot`.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_codec::patch::{self, Mask, Patch, PatchError, SnapshotOptions};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::encode::parse;
use super::watch;
use crate::buffer::{Input, export, prefer_huge_pages};
use crate::error::Failure;

/// A held version, for the patches of the next one.
///
/// Its memory may be looked at through the buffer protocol at any time, and changes under whoever looks when the
/// version does; it stays where it is while somebody looks.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Snapshot {
    held: Mutex<patch::Snapshot>,
    views: AtomicUsize,
}

#[pymethods]
impl Snapshot {
    #[new]
    #[pyo3(signature = (data, width, codec, block_bytes, search, threads))]
    fn new(
        py: Python<'_>,
        data: Input,
        width: Option<u8>,
        codec: &str,
        block_bytes: u32,
        search: bool,
        threads: usize,
    ) -> PyResult<Snapshot> {
        let options = SnapshotOptions { block_bytes, width, codec: parse(py, codec)?, search };
        let data = data.bytes();
        let held = watch::run(py, data.len(), |_| {
            let mut bytes = Vec::with_capacity(data.len());
            prefer_huge_pages(bytes.spare_capacity_mut());
            bytes.extend_from_slice(data);
            Ok(patch::Snapshot::new(bytes, options, threads)?)
        })?;
        Ok(Snapshot { held: Mutex::new(held), views: AtomicUsize::new(0) })
    }

    /// Make the patch to `new`, and hold `new`.
    fn advance<'py>(&self, py: Python<'py>, new: Input, threads: usize) -> PyResult<Bound<'py, PyBytes>> {
        let new = new.bytes();
        let made = watch::run(py, new.len(), |stop| {
            let mut held = self.lock();
            self.refuse_other_length(&held, new.len() as u64)?;
            held.advance(new, threads, || watch::check(stop))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// Make the patch to a version of which only the elements named by `mask` are read.
    fn advance_masked<'py>(
        &self,
        py: Python<'py>,
        new: Input,
        mask: Input,
        packed: bool,
        threads: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (new, mask) = (new.bytes(), mask.bytes());
        let mask = if packed { Mask::Bits(mask) } else { Mask::Bytes(mask) };
        let made = watch::run(py, new.len(), |stop| {
            self.lock().advance_masked(new, mask, threads, || watch::check(stop))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// Make the patch to a version in which the elements of these numbers have these values.
    fn advance_sparse<'py>(
        &self,
        py: Python<'py>,
        index: Input,
        values: Input,
        threads: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (index, values) = (index.bytes(), values.bytes());
        let made = watch::run(py, values.len(), |stop| {
            let mut held = self.lock();
            let width = usize::from(held.options().width.unwrap_or(1));
            let index = numbers(index, values.len() / width)?;
            held.advance_sparse(&index, values, threads, || watch::check(stop))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// Hold the version that a patch makes of the one held.
    fn apply(&self, py: Python<'_>, patch: Input, threads: usize) -> PyResult<()> {
        let patch = patch.bytes();
        watch::run(py, usize::MAX, |stop| {
            let patch = Patch::parse(patch)?;
            let mut held = self.lock();
            self.refuse_other_length(&held, patch.target_size())?;
            held.apply(&patch, threads, || watch::check(stop))
        })
    }

    /// Tree digest of the version, in hex.
    #[getter]
    fn digest(&self, py: Python<'_>) -> String {
        py.detach(|| self.lock().digest().to_string())
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().bytes().len())
    }

    // SAFETY: called by the interpreter only, with a view that is valid for writes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let (start, length) = slf.py().detach(|| {
            let held = this.lock();
            // Under the lock: nobody is about to hold the version elsewhere.
            this.views.fetch_add(1, Ordering::SeqCst);
            (held.bytes().as_ptr() as usize, held.bytes().len())
        });
        // SAFETY: the view is the interpreter's; the memory stays where it is while there are views, and lives as long
        // as this object, to which the filled view holds a reference.
        let filled = unsafe { export(slf.as_any(), view, flags, (start as *mut u8, length), true) };
        if filled.is_err() {
            this.views.fetch_sub(1, Ordering::SeqCst);
        }
        filled
    }

    // SAFETY: called by the interpreter only, once for every view filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Snapshot {
    fn lock(&self) -> MutexGuard<'_, patch::Snapshot> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to hold a version elsewhere while somebody looks at this one.
    fn refuse_other_length(&self, held: &patch::Snapshot, length: u64) -> Result<(), Failure> {
        let now = held.bytes().len() as u64;
        if now == length || self.views.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        Err(Failure::Viewed { held: now, wanted: length })
    }
}

/// `count` numbers of 4 or 8 bytes each.
fn numbers(bytes: &[u8], count: usize) -> Result<Vec<u64>, PatchError> {
    if bytes.len() == 8 * count {
        return Ok(bytes.as_chunks().0.iter().map(|number| u64::from_ne_bytes(*number)).collect());
    }
    if bytes.len() == 4 * count {
        return Ok(bytes.as_chunks().0.iter().map(|number| u32::from_ne_bytes(*number).into()).collect());
    }
    let (expected, actual) = (8 * count as u64, bytes.len() as u64);
    Err(PatchError::Length { what: "index", expected, actual })
}
