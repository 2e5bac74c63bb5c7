//! Transfers between two ends in one process, over real sockets.
#![allow(clippy::unwrap_used)] // A helper of a test may fail it.

mod admission;
mod dictionaries;
mod faults;
mod fetching;
mod fetching_hostile;
mod hostile;
mod joining;
mod link;
mod paths;
mod probing;
mod relay;
mod support;
mod transfer;
