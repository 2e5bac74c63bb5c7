//! Whole transfers between sources and sinks, without a network.

// The helpers of tests may panic as the tests do.
#![allow(clippy::unwrap_used)]

#[cfg(unix)]
mod faults;
mod memory;
#[cfg(unix)]
mod properties;
#[cfg(unix)]
mod retry;
#[cfg(unix)]
mod scan;
mod support;
#[cfg(unix)]
mod tree;
