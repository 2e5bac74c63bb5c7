//! `digest`.

use dwcp_codec::digest::Digest;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::native;

/// XXH3-128 of a buffer, 16 bytes in canonical order.
#[pyfunction]
pub fn digest<'py>(py: Python<'py>, buf: Input) -> PyResult<Bound<'py, PyBytes>> {
    let src = buf.bytes();
    let digest = native::run(py, || Ok(Digest::of(src)))?;
    Ok(PyBytes::new(py, &digest.0))
}
