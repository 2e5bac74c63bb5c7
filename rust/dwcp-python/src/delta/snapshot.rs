//! `Snapshot`.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_codec::patch::{self, Mask, Patch, PatchError, SnapshotOptions};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::encode::parse;
use super::watch;
use crate::buffer::{Input, NewBytes, export, prefer_huge_pages, uninit_copy};
use crate::error::Failure;
use crate::native;

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
            refuse_own(&held, &[new])?;
            self.refuse_other_length(&held, new.len() as u64)?;
            held.advance(new, threads, || watch::check(stop))
        })?;
        told(py, made)
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
        let (new, named) = (new.bytes(), mask.bytes());
        let mask = if packed { Mask::Bits(named) } else { Mask::Bytes(named) };
        let made = watch::run(py, new.len(), |stop| {
            let mut held = self.lock();
            refuse_own(&held, &[new, named])?;
            held.advance_masked(new, mask, threads, || watch::check(stop))
        })?;
        told(py, made)
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
            refuse_own(&held, &[index, values])?;
            let width = usize::from(held.options().width.unwrap_or(1));
            let (count, check) = (values.len() / width, || watch::check(stop));
            if index.len() == 4 * count {
                held.advance_sparse(index.as_chunks::<4>().0, values, threads, check)
            } else if index.len() == 8 * count {
                held.advance_sparse(index.as_chunks::<8>().0, values, threads, check)
            } else {
                let (expected, actual) = (8 * count as u64, index.len() as u64);
                Err(PatchError::Length { what: "index", expected, actual }.into())
            }
        })?;
        told(py, made)
    }

    /// Hold the version that a patch makes of the one held.
    fn apply(&self, py: Python<'_>, patch: Input, threads: usize) -> PyResult<()> {
        let patch = patch.bytes();
        watch::run(py, self.__len__(py), |stop| {
            let mut held = self.lock();
            refuse_own(&held, &[patch])?;
            let patch = Patch::parse(patch)?;
            self.refuse_other_length(&held, patch.target_size())?;
            held.apply(&patch, threads, || watch::check(stop))
        })
    }

    /// Hold the version that a patch makes of the one held in another snapshot, in the memory of `reuse` if that is not
    /// looked at; it is empty then.
    fn fork(
        &self,
        py: Python<'_>,
        patch: Input,
        reuse: Option<&Snapshot>,
        threads: usize,
    ) -> PyResult<Snapshot> {
        let patch = patch.bytes();
        let reuse = reuse.filter(|reuse| !std::ptr::eq(*reuse, self));
        let forked = watch::run(py, self.__len__(py).max(patch.len()), |stop| {
            let patch = Patch::parse(patch)?;
            let memory =
                |length| reuse.and_then(|reuse| reuse.give_up(length)).unwrap_or_else(|| fresh(length));
            self.lock().fork(&patch, memory, threads, || watch::check(stop))
        })?;
        Ok(Snapshot { held: Mutex::new(forked), views: AtomicUsize::new(0) })
    }

    /// Length of a block.
    #[getter]
    fn block_bytes(&self, py: Python<'_>) -> u32 {
        py.detach(|| self.lock().options().block_bytes)
    }

    /// Whether somebody looks at the version.
    #[getter]
    fn is_viewed(&self) -> bool {
        self.views.load(Ordering::SeqCst) > 0
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

    /// The memory of the version if it is as long and nobody looks at it; the version is lost then.
    fn give_up(&self, length: usize) -> Option<Vec<u8>> {
        // Whoever works with it may want the one that this is for.
        let mut held = self.held.try_lock().ok()?;
        let is_ours = held.bytes().len() == length && !self.is_viewed();
        is_ours.then(|| held.take_bytes())
    }

    /// Refuses to hold a version elsewhere while somebody looks at this one.
    fn refuse_other_length(&self, held: &patch::Snapshot, length: u64) -> Result<(), Failure> {
        let now = held.bytes().len() as u64;
        if now == length || !self.is_viewed() {
            return Ok(());
        }
        Err(Failure::Viewed { held: now, wanted: length })
    }
}

/// Apply patches to as many snapshots, none of which is looked at: to all of them or, on an error, to none.
#[pyfunction]
#[pyo3(signature = (parts, threads))]
pub fn snapshots_apply(py: Python<'_>, parts: Vec<(Py<Snapshot>, Input)>, threads: usize) -> PyResult<()> {
    let mut order: Vec<(&Snapshot, &[u8])> =
        parts.iter().map(|(snapshot, patch)| (snapshot.get(), patch.bytes())).collect();
    // Locks are taken in one order, whoever else takes some of them.
    order.sort_by_key(|(snapshot, _)| std::ptr::from_ref(*snapshot));
    if order.windows(2).any(|pair| std::ptr::eq(pair[0].0, pair[1].0)) {
        return Err(PyValueError::new_err("a snapshot is named twice"));
    }
    let bytes = order.iter().map(|(snapshot, _)| snapshot.__len__(py)).sum();
    watch::run(py, bytes, |stop| {
        let patches: Vec<Patch<'_>> =
            order.iter().map(|(_, patch)| Patch::parse(patch)).collect::<Result<_, _>>()?;
        let mut guards: Vec<_> = order.iter().map(|(snapshot, _)| snapshot.lock()).collect();
        let told: Vec<&[u8]> = order.iter().map(|(_, patch)| *patch).collect();
        guards.iter().try_for_each(|held| refuse_own(held, &told))?;
        for ((snapshot, _), (held, patch)) in order.iter().zip(guards.iter().zip(&patches)) {
            if snapshot.is_viewed() {
                let held = held.bytes().len() as u64;
                return Err(Failure::Viewed { held, wanted: patch.target_size() });
            }
        }
        let mut held: Vec<_> = guards.iter_mut().map(|held| &mut **held).zip(&patches).collect();
        patch::Snapshot::apply_together(&mut held, threads, || watch::check(stop))
    })
}

/// Refuses to read what is about to be changed: a view of the version itself.
fn refuse_own(held: &patch::Snapshot, inputs: &[&[u8]]) -> Result<(), Failure> {
    let own = held.bytes().as_ptr_range();
    let overlaps = |input: &&[u8]| {
        let input = input.as_ptr_range();
        input.start < own.end && own.start < input.end
    };
    if inputs.iter().any(overlaps) { Err(Failure::OwnView) } else { Ok(()) }
}

/// New memory of `length` bytes.
fn fresh(length: usize) -> Vec<u8> {
    let mut memory = Vec::new();
    // If there is no room, whoever fills it says so.
    if memory.try_reserve_exact(length).is_ok() {
        prefer_huge_pages(memory.spare_capacity_mut());
    }
    memory
}

/// The bytes of a patch, whose memory is kept for the next one.
fn told(py: Python<'_>, made: Vec<u8>) -> PyResult<Bound<'_, PyBytes>> {
    let mut bytes = NewBytes::new(py, made.len())?;
    let memory = bytes.memory();
    native::run(py, || {
        uninit_copy(&made, memory);
        patch::give_back(made);
        Ok(())
    })?;
    // SAFETY: the patch is as long as the memory, and was copied to it.
    Ok(unsafe { bytes.finish() })
}
