//! `RegisteredMemory`.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_net::RegisteredMemory as Memory;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::buffer::{Input, export};
use crate::native;

/// Memory that lanes over RDMA send from where it is; a class of Python's is made of it.
#[pyclass(frozen, subclass, module = "dwcp_fast._core")]
pub struct RegisteredMemory {
    held: Mutex<Held>,
}

struct Held {
    /// None once it was closed.
    memory: Option<Memory>,
    /// How many views there are.
    views: usize,
}

// SAFETY: nothing here reads or writes the memory, and where it is does not depend on the thread.
unsafe impl Send for Held {}

/// What memory is made of.
#[derive(FromPyObject)]
pub enum Content {
    /// So many zeros.
    Length(usize),
    /// A copy of these bytes.
    Data(Input),
}

#[pymethods]
impl RegisteredMemory {
    /// Make memory of zeros of a length, or with a copy of bytes.
    #[new]
    #[pyo3(signature = (content))]
    fn new(py: Python<'_>, content: Content) -> PyResult<RegisteredMemory> {
        let (length, bytes) = match &content {
            Content::Length(length) => (*length, None),
            Content::Data(data) => (data.bytes().len(), Some(data.bytes())),
        };
        if length == 0 {
            return Err(PyBufferError::new_err("there is no byte to make a registered buffer of"));
        }
        let memory = native::run(py, || {
            let memory = Memory::new(length)?;
            if let Some(bytes) = bytes {
                // SAFETY: the memory is as long as the bytes, and nobody else knows of it yet.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.pointer(), length) };
            }
            Ok(memory)
        })?;
        Ok(RegisteredMemory { held: Mutex::new(Held { memory: Some(memory), views: 0 }) })
    }

    /// With how many devices it is registered at present.
    #[getter]
    fn registrations(&self) -> usize {
        self.lock().memory.as_ref().map_or(0, Memory::registrations)
    }

    /// Whether it was given back.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().memory.is_none()
    }

    /// Give the memory back, unless somebody looks at it; a second time does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let memory = {
            let mut held = self.lock();
            if held.views > 0 {
                return Err(PyBufferError::new_err("somebody holds a view of the buffer: release it first"));
            }
            held.memory.take()
        };
        py.detach(|| drop(memory));
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.lock().memory.as_ref().map_or(0, Memory::length)
    }

    // SAFETY: called by the interpreter only, with a view that is valid for writes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let mut held = slf.get().lock();
        let Some(memory) = &held.memory else {
            return Err(PyValueError::new_err("the buffer was closed"));
        };
        let place = (memory.pointer(), memory.length());
        // SAFETY: the view is the interpreter's; the memory stays until there are no views, and what a device reads of it
        // meanwhile is for whoever sends it to leave as it is.
        unsafe { export(slf.as_any(), view, flags, place, false) }?;
        held.views += 1;
        Ok(())
    }

    // SAFETY: called by the interpreter only, once for each view that was filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lock().views -= 1;
    }
}

impl RegisteredMemory {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
