//! The locks of what `rust/loom` runs in every order: there, these names are those of the model checker.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
