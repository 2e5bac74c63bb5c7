//! The process that made a native object: its threads and sockets do not survive a fork.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::error::Failure;

/// The process that made an object.
#[derive(Clone, Copy)]
pub struct Owner(u32);

impl Owner {
    /// This process.
    pub fn new() -> Owner {
        Owner(std::process::id())
    }

    /// Whether this process made the object.
    pub fn is_here(self) -> bool {
        self.0 == std::process::id()
    }

    /// Refuse use in a child of the process that made the object.
    pub fn check(self, py: Python<'_>) -> PyResult<()> {
        if self.is_here() { Ok(()) } else { Err(Failure::Forked { owner: self.0 }.raise(py)) }
    }
}

/// Let go of a native object whose threads may be waiting for the interpreter.
pub fn part<T: Send>(py: Python<'_>, owner: Owner, object: Option<Arc<T>>)
where
    Arc<T>: Send,
{
    if owner.is_here() {
        py.detach(|| drop(object));
    } else {
        // The threads to join are the parent's.
        std::mem::forget(object);
    }
}

/// The same from a destructor, which may run anywhere.
pub fn part_from_drop<T: Send + Sync>(owner: Owner, object: Option<Arc<T>>) {
    if object.is_some() {
        Python::try_attach(|py| part(py, owner, object));
    }
}
