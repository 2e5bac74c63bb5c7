//! `patch_apply` and `patch_apply_in_place`.

use dwcp_codec::patch::Patch;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, NewBytes, Output, zeroed};
use crate::native;

/// Make the new version from a patch and the old one.
#[pyfunction]
#[pyo3(signature = (patch, old))]
pub fn patch_apply<'py>(py: Python<'py>, patch: Input, old: Input) -> PyResult<Bound<'py, PyBytes>> {
    let (patch, old) = (patch.bytes(), old.bytes());
    let parsed = native::run(py, || {
        let parsed = Patch::parse(patch)?;
        // Before memory is taken for a target whose length the patch only claims.
        parsed.verify_base(old)?;
        Ok(parsed)
    })?;
    let length = usize::try_from(parsed.target_size())?;
    let mut out = NewBytes::new(py, length)?;
    let memory = out.memory();
    native::run(py, || Ok(parsed.apply(old, zeroed(memory))?))?;
    // SAFETY: `zeroed` wrote all of it, and `apply` again.
    Ok(unsafe { out.finish() })
}

/// Turn `old` into the new version; it is unchanged if that fails.
#[pyfunction]
#[pyo3(signature = (patch, old))]
pub fn patch_apply_in_place(py: Python<'_>, patch: Input, mut old: Output) -> PyResult<()> {
    old.refuse_overlap(&patch)?;
    let (patch, held) = (patch.bytes(), old.bytes_mut());
    native::run(py, || Ok(Patch::parse(patch)?.apply_in_place(held)?))
}
