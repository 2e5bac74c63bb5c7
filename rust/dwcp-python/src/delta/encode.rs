//! `patch_encode`.

use dwcp_codec::codec::Codec;
use dwcp_codec::patch::{self, PatchOptions};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::error::Failure;
use crate::native;

/// Make the patch that turns `old` into `new`.
#[pyfunction]
#[pyo3(signature = (old, new, width, codec, block_bytes))]
pub fn patch_encode<'py>(
    py: Python<'py>,
    old: Input,
    new: Input,
    width: u8,
    codec: &str,
    block_bytes: u32,
) -> PyResult<Bound<'py, PyBytes>> {
    let options = options(py, width, codec, block_bytes)?;
    let (old, new) = (old.bytes(), new.bytes());
    let made = native::run(py, || Ok(patch::encode(old, new, &options)?))?;
    Ok(PyBytes::new(py, &made))
}

/// Patch options from their Python form.
pub fn options(py: Python<'_>, width: u8, codec: &str, block_bytes: u32) -> PyResult<PatchOptions> {
    let codec: Codec = codec.parse().map_err(|error| Failure::from(error).raise(py))?;
    Ok(PatchOptions { block_bytes, width, codec })
}
