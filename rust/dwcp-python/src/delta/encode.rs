//! `patch_encode`.

use dwcp_codec::codec::Codec;
use dwcp_codec::patch::{PatchOptions, encode_into};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::watch::{self, Watched};
use crate::buffer::Input;
use crate::error::Failure;

/// Make the patch that turns `old` into `new`.
#[pyfunction]
#[pyo3(signature = (old, new, width, codec, block_bytes, search, threads))]
#[allow(clippy::too_many_arguments)] // The options, one by one, as all of the binding takes them.
pub fn patch_encode<'py>(
    py: Python<'py>,
    old: Input,
    new: Input,
    width: Option<u8>,
    codec: &str,
    block_bytes: u32,
    search: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let options = PatchOptions { block_bytes, width, codec: parse(py, codec)?, threads, search };
    let (old, new) = (old.bytes(), new.bytes());
    let made = watch::run(py, old.len() + new.len(), |stop| {
        let mut patch = Vec::new();
        let (old, new) = (Watched { bytes: old, stop }, Watched { bytes: new, stop });
        encode_into(&old, &new, None, &options, |part| {
            patch.extend_from_slice(part);
            Ok(())
        })?;
        Ok(patch)
    })?;
    Ok(PyBytes::new(py, &made))
}

/// A codec from its name.
pub fn parse(py: Python<'_>, codec: &str) -> PyResult<Codec> {
    codec.parse().map_err(|error| Failure::Codec(error).raise(py))
}
