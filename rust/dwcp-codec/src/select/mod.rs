//! What a choice among compressors is made from: the actions to choose among, what can be told of a block in a few
//! microseconds, and a trained model of what each action would make of such a block and how long it would take.

mod actions;
mod calibration;
mod features;
mod forest;
mod model;
mod sample;

pub use actions::{Action, UnknownAction};
pub use calibration::calibration_sample;
pub use features::{FEATURES, Features};
pub use model::{MAX_MODEL_BYTES, Model, ModelError, Prediction, Reference};
