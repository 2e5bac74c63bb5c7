//! `Cancel`.

use dwcp_net::Cancel as NetCancel;
use pyo3::prelude::*;

/// A request to stop, which every native call given it obeys within 100 ms.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Cancel(pub NetCancel);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Cancel {
        Cancel(NetCancel::new())
    }

    /// Make the request.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.0.cancel());
    }

    /// Whether the request was made.
    #[getter]
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
