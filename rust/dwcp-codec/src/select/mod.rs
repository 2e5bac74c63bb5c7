//! What a choice among compressors is made from: the actions to choose among, what can be told of a block in a few
//! microseconds, and a trained model of what each action would make of such a block and how long it would take; and
//! how it is made, from that and from what link and processors show.

mod actions;
mod calibration;
#[cfg(test)]
mod contents;
mod controller;
mod correction;
mod features;
mod forest;
mod guard;
mod link;
mod model;
mod sample;
#[cfg(test)]
mod simulation;
mod summary;
#[cfg(test)]
mod tests;
mod told;

pub use actions::{Action, UnknownAction};
pub use calibration::calibration_sample;
pub use controller::Controller;
pub use features::{FEATURES, Features};
pub use model::{Model, ModelError, Prediction, Reference};
pub use summary::{ActionShare, Summary};
pub use told::{Decision, Delivery, Estimate, KnownLink, Look, Outcome, Reason, Settings};
