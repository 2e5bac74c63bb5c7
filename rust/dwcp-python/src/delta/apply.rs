//! `patch_apply`, `patch_apply_onto` and `patch_apply_in_place`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dwcp_codec::patch::{Patch, PatchError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::watch::{self, Watched};
use crate::buffer::{Input, NewBytes, Output};
use crate::dictionary::Dictionary;
use crate::error::Failure;

/// Memory of up to so many times the size of the old version is taken before that is proven to be the patch's base.
const UNPROVEN_TIMES: u64 = 2;

/// Make the new version from a patch and the old one.
#[pyfunction]
#[pyo3(signature = (patch, old, threads, dictionary))]
pub fn patch_apply<'py>(
    py: Python<'py>,
    patch: Input,
    old: Input,
    threads: usize,
    dictionary: Option<&Dictionary>,
) -> PyResult<Bound<'py, PyBytes>> {
    let dictionary = dictionary.map(Dictionary::shared);
    let (patch, old) = (patch.bytes(), old.bytes());
    let todo = watch::run(py, old.len(), |stop| {
        let (before, last) = known(patch, dictionary)?;
        let is_claimed = last.target_size() / UNPROVEN_TIMES > last.base_size();
        if before.is_empty() && last.base_size() == old.len() as u64 && !is_claimed {
            return Ok(Some((last, None)));
        }
        let Some(place) = place_in(&before, &last, old, threads, stop)? else { return Ok(None) };
        let before = through(&before[place..], old, threads, stop)?;
        if let Some(bytes) = before.as_deref().filter(|_| is_claimed) {
            // Before memory is taken for a target whose length, out of all proportion, the patch only claims.
            last.verify_base(&Watched { bytes, stop }, threads)?;
        }
        Ok(Some((last, before)))
    })?;
    let as_it_is = || {
        PyBytes::new_with(py, old.len(), |out| {
            out.copy_from_slice(old);
            Ok(())
        })
    };
    let Some((last, before)) = todo else { return as_it_is() };
    let mut out = NewBytes::new(py, usize::try_from(last.target_size())?)?;
    let memory = out.memory();
    let is_written = watch::run(py, memory.len(), |stop| {
        let held = Watched { bytes: before.as_deref().unwrap_or(old), stop };
        let done = last.apply_to_new(&held, memory, threads);
        if before.is_some() {
            // What is refused here was made on the way: `old` is no target.
            return done.map(|()| true);
        }
        Ok(!unless_made(done, &last, &held, threads)?)
    })?;
    if !is_written {
        return as_it_is();
    }
    // SAFETY: the patch was applied, which wrote all of it.
    Ok(unsafe { out.finish() })
}

/// Write the new version to a buffer of its length, which shares no memory with the others.
#[pyfunction]
#[pyo3(signature = (patch, old, out, threads, dictionary))]
pub fn patch_apply_onto(
    py: Python<'_>,
    patch: Input,
    old: Input,
    mut out: Output,
    threads: usize,
    dictionary: Option<&Dictionary>,
) -> PyResult<()> {
    out.refuse_overlap(&patch)?;
    out.refuse_overlap(&old)?;
    let dictionary = dictionary.map(Dictionary::shared);
    let (patch, old, out) = (patch.bytes(), old.bytes(), out.bytes_mut());
    watch::run(py, old.len() + out.len(), |stop| {
        let (before, last) = known(patch, dictionary)?;
        let held = Watched { bytes: old, stop };
        let is_made = if before.is_empty() {
            // In one pass with the proof of the base.
            unless_made(last.apply(&held, out, threads), &last, &held, threads)?
        } else if let Some(place) = place_in(&before, &last, old, threads, stop)? {
            let before = through(&before[place..], old, threads, stop)?;
            last.apply(&Watched { bytes: before.as_deref().unwrap_or(old), stop }, out, threads)?;
            false
        } else {
            true
        };
        if is_made {
            let (expected, actual) = (old.len() as u64, out.len() as u64);
            if expected != actual {
                return Err(PatchError::Length { what: "target buffer", expected, actual }.into());
            }
            out.copy_from_slice(old);
        }
        Ok(())
    })
}

/// Turn `old` into the new version; it is unchanged if that fails.
#[pyfunction]
#[pyo3(signature = (patch, old, threads, dictionary))]
pub fn patch_apply_in_place(
    py: Python<'_>,
    patch: Input,
    mut old: Output,
    threads: usize,
    dictionary: Option<&Dictionary>,
) -> PyResult<()> {
    let dictionary = dictionary.map(Dictionary::shared);
    old.refuse_overlap(&patch)?;
    let (patch, held) = (patch.bytes(), old.bytes_mut());
    watch::run(py, held.len(), |stop| {
        let (mut chain, last) = known(patch, dictionary)?;
        let base_size = chain.first().unwrap_or(&last).base_size();
        let target_size = last.target_size();
        if base_size != target_size {
            return Err(PatchError::SizeChanged { base_size, target_size }.into());
        }
        // The buffer keeps its length, whichever version in between has another.
        let actual = held.len() as u64;
        if actual != target_size {
            return Err(PatchError::BaseSize { expected: base_size, actual }.into());
        }
        if chain.is_empty() {
            let done = last.apply_in_place_while(held, threads, || watch::check(stop));
            return unless_made(done, &last, &Watched { bytes: held, stop }, threads).map(drop);
        }
        let Some(place) = place_in(&chain, &last, held, threads, stop)? else { return Ok(()) };
        // No version in the middle is ever to be seen.
        chain.push(last);
        if let Some(made) = through(&chain[place..], held, threads, stop)? {
            held.copy_from_slice(&made);
        }
        Ok(())
    })
}

/// The patches that stand one behind the other, for decoding with a dictionary where they need one.
fn known<'a>(
    bytes: &'a [u8],
    dictionary: Option<&Arc<dwcp_codec::Dictionary>>,
) -> Result<(Vec<Patch<'a>>, Patch<'a>), PatchError> {
    let (before, last) = chain(bytes)?;
    let before = before.into_iter().map(|patch| patch.with_dictionary(dictionary));
    Ok((before.collect::<Result<_, _>>()?, last.with_dictionary(dictionary)?))
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

/// How many patches of a chain, the last of which is `last`, have led to `old` already; `None` if all have.
fn place_in(
    before: &[Patch<'_>],
    last: &Patch<'_>,
    old: &[u8],
    threads: usize,
    stop: &AtomicBool,
) -> Result<Option<usize>, Failure> {
    let old = Watched { bytes: old, stop };
    let mut refused = None;
    for (number, patch) in before.iter().chain([last]).enumerate() {
        match patch.verify_base(&old, threads) {
            Ok(_) => return Ok(Some(number)),
            Err(error) if is_other_base(&error) => refused = refused.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(refused) if !last.is_target(&old, threads)? => Err(refused),
        _ => Ok(None),
    }
}

/// What came of applying a patch to `held`, but for one that was refused because `held` is what it makes: then true.
fn unless_made(
    done: Result<(), Failure>,
    patch: &Patch<'_>,
    held: &Watched<'_>,
    threads: usize,
) -> Result<bool, Failure> {
    match done {
        Err(refused) if is_other_base(&refused) && patch.is_target(held, threads)? => Ok(true),
        done => done.map(|()| false),
    }
}

fn is_other_base(failure: &Failure) -> bool {
    matches!(failure, Failure::Patch(error) if error.is_other_base())
}

/// The version that patches lead to, the first from `old`, which is proven to be its base; `None` if there are none.
fn through(
    chain: &[Patch<'_>],
    old: &[u8],
    threads: usize,
    stop: &AtomicBool,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut held: Option<Vec<u8>> = None;
    for patch in chain {
        let base = Watched { bytes: held.as_deref().unwrap_or(old), stop };
        if held.is_some() {
            patch.verify_base(&base, threads)?;
        }
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
