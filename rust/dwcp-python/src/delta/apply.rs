//! `patch_apply`, `patch_apply_onto` and `patch_apply_in_place`.

use std::sync::atomic::AtomicBool;

use dwcp_codec::patch::{Patch, PatchError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::watch::{self, Watched};
use crate::buffer::{Input, NewBytes, Output};
use crate::error::Failure;

/// Memory of up to so many times the size of the old version is taken before that is proven to be the patch's base.
const UNPROVEN_TIMES: u64 = 2;

/// Make the new version from a patch and the old one.
#[pyfunction]
#[pyo3(signature = (patch, old, threads))]
pub fn patch_apply<'py>(
    py: Python<'py>,
    patch: Input,
    old: Input,
    threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let (patch, old) = (patch.bytes(), old.bytes());
    let (last, before, is_proven) = watch::run(py, old.len(), |stop| {
        let (before, last) = chain(patch)?;
        let before = through(&before, old, threads, stop)?;
        let held = Watched { bytes: before.as_deref().unwrap_or(old), stop };
        last.expect_base_size(held.bytes.len() as u64)?;
        // Before memory is taken for a target whose length, out of all proportion, the patch only claims.
        let is_proven = last.target_size() / UNPROVEN_TIMES > last.base_size();
        if is_proven {
            last.verify_base(&held, threads)?;
        }
        Ok((last, before, is_proven))
    })?;
    let held = before.as_deref().unwrap_or(old);
    let mut out = NewBytes::new(py, usize::try_from(last.target_size())?)?;
    let memory = out.memory();
    watch::run(py, memory.len(), |stop| {
        let held = Watched { bytes: held, stop };
        if is_proven {
            last.apply_proven_to_new(&held, memory, threads)
        } else {
            last.apply_to_new(&held, memory, threads)
        }
    })?;
    // SAFETY: the patch was applied, which wrote all of it.
    Ok(unsafe { out.finish() })
}

/// Write the new version to a buffer of its length, which shares no memory with the others.
#[pyfunction]
#[pyo3(signature = (patch, old, out, threads))]
pub fn patch_apply_onto(
    py: Python<'_>,
    patch: Input,
    old: Input,
    mut out: Output,
    threads: usize,
) -> PyResult<()> {
    out.refuse_overlap(&patch)?;
    out.refuse_overlap(&old)?;
    let (patch, old, out) = (patch.bytes(), old.bytes(), out.bytes_mut());
    watch::run(py, old.len() + out.len(), |stop| {
        let (before, last) = chain(patch)?;
        let before = through(&before, old, threads, stop)?;
        last.apply(&Watched { bytes: before.as_deref().unwrap_or(old), stop }, out, threads)
    })
}

/// Turn `old` into the new version; it is unchanged if that fails.
#[pyfunction]
#[pyo3(signature = (patch, old, threads))]
pub fn patch_apply_in_place(py: Python<'_>, patch: Input, mut old: Output, threads: usize) -> PyResult<()> {
    old.refuse_overlap(&patch)?;
    let (patch, held) = (patch.bytes(), old.bytes_mut());
    watch::run(py, held.len(), |stop| {
        let (mut chain, last) = chain(patch)?;
        let base_size = chain.first().unwrap_or(&last).base_size();
        let target_size = last.target_size();
        if base_size != target_size {
            return Err(PatchError::SizeChanged { base_size, target_size }.into());
        }
        if chain.is_empty() {
            return last.apply_in_place_while(held, threads, || watch::check(stop));
        }
        // No version in the middle is ever to be seen.
        chain.push(last);
        if let Some(made) = through(&chain, held, threads, stop)? {
            held.copy_from_slice(&made);
        }
        Ok(())
    })
}

/// The patches that stand one behind the other, each for what the one before makes: the last, and those before it.
pub fn chain(bytes: &[u8]) -> Result<(Vec<Patch<'_>>, Patch<'_>), PatchError> {
    let mut before = Vec::new();
    let (mut last, mut rest) = Patch::parse_next(bytes)?;
    while !rest.is_empty() {
        let patch;
        (patch, rest) = Patch::parse_next(rest)?;
        patch.expect_base_size(last.target_size())?;
        before.push(std::mem::replace(&mut last, patch));
    }
    Ok((before, last))
}

/// The version that patches lead to; `None` if there are none.
fn through(
    chain: &[Patch<'_>],
    old: &[u8],
    threads: usize,
    stop: &AtomicBool,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut held: Option<Vec<u8>> = None;
    for patch in chain {
        let base = Watched { bytes: held.as_deref().unwrap_or(old), stop };
        patch.verify_base(&base, threads)?;
        let length = usize::try_from(patch.target_size());
        let out_of_memory = PatchError::OutOfMemory { bytes: patch.target_size() };
        let mut made = Vec::new();
        match length.map(|length| made.try_reserve_exact(length).map(|()| length)) {
            Ok(Ok(length)) => made.resize(length, 0),
            _ => return Err(out_of_memory.into()),
        }
        patch.apply_proven(&base, &mut made, threads)?;
        held = Some(made);
    }
    Ok(held)
}
