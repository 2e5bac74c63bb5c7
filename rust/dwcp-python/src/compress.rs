//! `compress` and `compress_into`.

use dwcp_codec::container::{self, CodecChoice};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, NewBytes, Output, fill, uninit};
use crate::error::Failure;
use crate::{contexts, native};

/// Compress a buffer into a self-describing container.
#[pyfunction]
#[pyo3(signature = (buf, codec, checksum))]
pub fn compress<'py>(
    py: Python<'py>,
    buf: Input,
    codec: &str,
    checksum: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let src = buf.bytes();
    let choice: CodecChoice = codec.parse().map_err(|error| Failure::from(error).raise(py))?;
    // The stable ABI cannot shrink a `bytes`, so the container is made in kept scratch memory and copied:
    // cheaper than the page faults of a fresh worst-case buffer that would be cut down afterwards.
    let made = native::run(py, || {
        contexts::with(|contexts| {
            let most = container::max_compressed_length(src.len());
            let mut scratch = contexts::take_scratch(contexts, most)?;
            let length = container::compress_into(
                &mut contexts.compressor,
                choice,
                checksum,
                src,
                scratch.spare_capacity_mut(),
            )?;
            // SAFETY: compress_into wrote that many bytes at the start of the spare capacity.
            unsafe { scratch.set_len(length) };
            Ok(scratch)
        })
    })?;
    let mut out = NewBytes::new(py, made.len())?;
    let memory = out.memory();
    py.detach(|| {
        fill(memory, &made);
        contexts::keep_scratch(made);
    });
    // SAFETY: `fill` wrote all of it.
    Ok(unsafe { out.finish() })
}

/// Compress a buffer into one of the caller's; the number of bytes written.
#[pyfunction]
#[pyo3(signature = (buf, out, codec, checksum))]
pub fn compress_into(
    py: Python<'_>,
    buf: Input,
    mut out: Output,
    codec: &str,
    checksum: bool,
) -> PyResult<usize> {
    out.refuse_overlap(&buf)?;
    let choice: CodecChoice = codec.parse().map_err(|error| Failure::from(error).raise(py))?;
    let (src, dst) = (buf.bytes(), out.bytes_mut());
    native::run(py, || {
        contexts::with(|contexts| {
            let dst = uninit(dst);
            Ok(container::compress_into(&mut contexts.compressor, choice, checksum, src, dst)?)
        })
    })
}

/// The most bytes that `compress` makes of a buffer of `length` bytes.
#[pyfunction]
pub fn max_compressed_length(length: usize) -> usize {
    container::max_compressed_length(length)
}
