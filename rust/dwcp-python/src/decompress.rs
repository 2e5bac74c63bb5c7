//! `decompress` and `decompress_into`.

use dwcp_codec::container;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, NewBytes, Output, uninit};
use crate::dictionary::Dictionary;
use crate::error::Failure;
use crate::{contexts, native};

/// Decompress a container; refused before any memory is taken if it promises more than `max_length` bytes.
#[pyfunction]
#[pyo3(signature = (buf, max_length, dictionary))]
pub fn decompress<'py>(
    py: Python<'py>,
    buf: Input,
    max_length: u64,
    dictionary: Option<PyRef<'_, Dictionary>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let dictionary = dictionary.as_deref().map(Dictionary::inner);
    let src = buf.bytes();
    let length = promised(py, src, max_length)?;
    let mut out = NewBytes::new(py, length)?;
    let memory = out.memory();
    native::run(py, || {
        let written = contexts::with(|contexts| {
            container::decompress_into(&mut contexts.decompressor, dictionary, src, memory)
                .map_err(Failure::from)
        })?;
        // Another thread may have changed the header meanwhile; then not every byte was written.
        if written == length { Ok(()) } else { Err(Failure::Changed) }
    })?;
    // SAFETY: decompress_into wrote `length` bytes.
    Ok(unsafe { out.finish() })
}

/// Decompress a container into a buffer of the caller's; the number of bytes written.
#[pyfunction]
#[pyo3(signature = (buf, out, dictionary))]
pub fn decompress_into(
    py: Python<'_>,
    buf: Input,
    mut out: Output,
    dictionary: Option<PyRef<'_, Dictionary>>,
) -> PyResult<usize> {
    let dictionary = dictionary.as_deref().map(Dictionary::inner);
    out.refuse_overlap(&buf)?;
    let (src, dst) = (buf.bytes(), out.bytes_mut());
    let length = promised(py, src, u64::MAX)?;
    if length > dst.len() {
        return Err(Failure::TooSmall { needed: length, given: dst.len() }.raise(py));
    }
    native::run(py, || {
        contexts::with(|contexts| {
            let dst = uninit(&mut dst[..length]);
            Ok(container::decompress_into(&mut contexts.decompressor, dictionary, src, dst)?)
        })
    })
}

/// How many bytes a container decompresses to, from its header.
#[pyfunction]
pub fn raw_length(py: Python<'_>, buf: Input) -> PyResult<u64> {
    let header = container::read_header(buf.bytes()).map_err(|error| Failure::from(error).raise(py))?;
    Ok(header.raw_length)
}

/// Digest, in hex, of the dictionary that a container needs, if it does.
#[pyfunction]
pub fn needed_dictionary(py: Python<'_>, buf: Input) -> PyResult<Option<String>> {
    let header = container::read_header(buf.bytes()).map_err(|error| Failure::from(error).raise(py))?;
    Ok(header.dictionary.map(|digest| digest.to_string()))
}

fn promised(py: Python<'_>, src: &[u8], max_length: u64) -> PyResult<usize> {
    let header = container::read_header(src).map_err(|error| Failure::from(error).raise(py))?;
    let fits = usize::try_from(header.raw_length).ok().filter(|_| header.raw_length <= max_length);
    fits.ok_or_else(|| Failure::OverLimit { length: header.raw_length, limit: max_length }.raise(py))
}
