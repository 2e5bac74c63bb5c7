//! `SelectorModel`, `select_features`, `select_feature_names` and `select_actions`.

use std::sync::Arc;

use dwcp_codec::select::{Action, FEATURES, Features, Model, Prediction};
use pyo3::prelude::*;

use crate::buffer::Input;
use crate::error::Failure;
use crate::native;

/// What can be told of a block in a few microseconds.
#[pyfunction]
#[pyo3(signature = (buf, width = None))]
pub fn select_features(py: Python<'_>, buf: Input, width: Option<u8>) -> PyResult<Vec<f32>> {
    let src = buf.bytes();
    native::run(py, || Ok(Features::of(src, width).values().to_vec()))
}

/// The names of these numbers, in order.
#[pyfunction]
pub fn select_feature_names() -> Vec<&'static str> {
    FEATURES.to_vec()
}

/// The names of the actions to choose among, in order.
#[pyfunction]
pub fn select_actions() -> Vec<String> {
    Action::ALL.iter().map(Action::to_string).collect()
}

/// A trained model of what each action does with a block.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct SelectorModel(Arc<Model>);

impl SelectorModel {
    /// The model, to be shared.
    pub fn shared(&self) -> Arc<Model> {
        Arc::clone(&self.0)
    }
}

#[pymethods]
impl SelectorModel {
    /// Read one from the bytes of its file.
    #[new]
    fn new(py: Python<'_>, data: Input) -> PyResult<SelectorModel> {
        let data = data.bytes();
        native::run(py, || Ok(SelectorModel(Arc::new(Model::read(data)?))))
    }

    /// The names of the actions it predicts for, in order.
    #[getter]
    fn actions(&self) -> Vec<String> {
        select_actions()
    }

    /// The names of the features it predicts from, in order.
    #[getter]
    fn features(&self) -> Vec<&'static str> {
        select_feature_names()
    }

    /// For each action the ns per byte of compressing and of decompressing where it was trained.
    #[getter]
    fn reference(&self) -> Vec<(f32, f32)> {
        let references = Action::ALL.into_iter().map(|action| self.0.reference(action));
        references.map(|times| (times.compress_ns_per_byte, times.decompress_ns_per_byte)).collect()
    }

    /// The digest of its bytes, in hex.
    #[getter]
    fn digest(&self) -> String {
        self.0.digest().to_string()
    }

    /// For each action wire bytes for each raw byte, and ns per byte of compressing and of decompressing.
    fn predict(&self, py: Python<'_>, features: Vec<f32>) -> PyResult<Vec<(f32, f32, f32)>> {
        let wrong = Failure::Features { needed: FEATURES.len(), given: features.len() };
        let values = features.try_into().map_err(|_| wrong.raise(py))?;
        let tuple = |told: Prediction| (told.ratio, told.compress_ns_per_byte, told.decompress_ns_per_byte);
        Ok(self.0.predict(&Features::from_values(values)).map(tuple).to_vec())
    }
}
