//! `select_features`, `select_feature_names` and `select_actions`.

use dwcp_codec::select::{Action, FEATURES, Features};
use pyo3::prelude::*;

use crate::buffer::Input;
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
