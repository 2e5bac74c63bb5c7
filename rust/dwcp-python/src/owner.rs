//! The process that made a native object: its threads and sockets do not survive a fork.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

use crate::error::Failure;

/// A native object with threads, held until it is closed or dropped.
pub struct Owned<T: Send + Sync> {
    object: Mutex<Option<Arc<T>>>,
    /// The process that made it.
    owner: u32,
}

/// The object for the time of a call.
///
/// It may have been closed meanwhile, so that the end of the call is the end of the object, whose threads may be waiting
/// for the interpreter when they are joined.
pub struct Held<T: Send + Sync>(Option<Arc<T>>);

impl<T: Send + Sync> Deref for Held<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        match &self.0 {
            Some(object) => object,
            None => unreachable!("taken when it is dropped, and not before"),
        }
    }
}

impl<T: Send + Sync> Drop for Held<T> {
    fn drop(&mut self) {
        // To let go of the interpreter and wait for it again costs more than most calls, so that only the last does it.
        if let Some(last) = self.0.take().and_then(Arc::into_inner) {
            Python::try_attach(|py| py.detach(|| drop(last)));
        }
    }
}

impl<T: Send + Sync> Owned<T> {
    /// Hold an object of this process.
    pub fn new(object: T) -> Owned<T> {
        Owned { object: Mutex::new(Some(Arc::new(object))), owner: std::process::id() }
    }

    /// The object, unless it was closed. Use in a child of the process that made it is refused.
    pub fn object(&self, py: Python<'_>) -> PyResult<Held<T>> {
        if !self.is_here() {
            return Err(Failure::Forked { owner: self.owner }.raise(py));
        }
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner).clone();
        object.map(|object| Held(Some(object))).ok_or_else(|| Failure::Closed.raise(py))
    }

    /// Let go of the object; a second time does nothing.
    pub fn close(&self, py: Python<'_>) {
        self.close_with(py, |_| ());
    }

    /// The same after `end`, for calls that are under way on other threads: they hold the object too.
    pub fn close_with(&self, py: Python<'_>, end: impl FnOnce(&T) + Send) {
        let object = self.object.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.is_here() {
            // Its threads may be waiting for the interpreter.
            py.detach(|| {
                object.as_deref().map(end);
                drop(object);
            });
        } else {
            // The threads to join are the parent's.
            std::mem::forget(object);
        }
    }

    fn is_here(&self) -> bool {
        self.owner == std::process::id()
    }
}

impl<T: Send + Sync> Drop for Owned<T> {
    fn drop(&mut self) {
        // This may run anywhere, and closing needs the interpreter only where there is something to close.
        if self.object.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            Python::try_attach(|py| self.close(py));
        }
    }
}
