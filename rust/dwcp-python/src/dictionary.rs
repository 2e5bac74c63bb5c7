//! `Dictionary`.

use std::sync::Arc;

use dwcp_codec::dictionary;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::error::Failure;
use crate::native;

/// A trained dictionary, ready for use.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Dictionary(Arc<dictionary::Dictionary>);

impl Dictionary {
    /// The dictionary.
    pub fn inner(&self) -> &dictionary::Dictionary {
        &self.0
    }

    /// The dictionary, for those who keep it.
    pub fn shared(&self) -> &Arc<dictionary::Dictionary> {
        &self.0
    }
}

#[pymethods]
impl Dictionary {
    /// Make one ready from its bytes.
    #[new]
    fn new(py: Python<'_>, data: Input) -> PyResult<Dictionary> {
        let data = data.bytes();
        native::run(py, || Ok(Dictionary(Arc::new(dictionary::Dictionary::new(data.to_vec())?))))
    }

    /// Train one on samples.
    #[staticmethod]
    fn train(py: Python<'_>, samples: Vec<Input>, max_bytes: usize) -> PyResult<Dictionary> {
        native::run(py, || {
            let lengths: Vec<usize> = samples.iter().map(|sample| sample.bytes().len()).collect();
            let joined: Vec<u8> = samples.iter().flat_map(|sample| sample.bytes()).copied().collect();
            // What another thread did meanwhile cannot change a length.
            let trained = dictionary::Dictionary::train(&joined, &lengths, max_bytes);
            Ok(Dictionary(Arc::new(trained.map_err(Failure::from)?)))
        })
    }

    /// Its bytes.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.bytes())
    }

    /// Its name: the digest of its bytes, in hex.
    #[getter]
    fn digest(&self) -> String {
        self.0.digest().to_string()
    }
}
