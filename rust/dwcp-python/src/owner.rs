//! The process that made a native object: its threads and sockets do not survive a fork.

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
