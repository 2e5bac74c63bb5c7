//! What a choice among compressors is made from and how it is made.

mod actions;
mod controller;
mod correction;
mod guard;
mod link;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use controller::{
    ActionShare, Controller, Decision, Delivery, Estimate, Look, Outcome, Reason, Settings, Summary,
};
