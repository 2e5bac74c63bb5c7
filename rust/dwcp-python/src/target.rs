//! Memory that buffers are received into, and the buffers given to Python.

use std::collections::HashMap;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use dwcp_net::NetError;
use dwcp_store::{BufferProvider, MemorySink, Refusal, StoreError, TargetBuffer};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::buffer::{Output, export};
use crate::native;

/// A caller's buffer, held while a transfer writes to it.
struct Lent(Output);

// SAFETY: the export keeps the memory where it is and alive until `Lent` is dropped, its length never changes, and
// the only slice of it is made by nobody. The caller promises not to touch the buffer before the call returns.
unsafe impl TargetBuffer for Lent {
    fn pointer(&self) -> *mut u8 {
        self.0.pointer()
    }

    fn length(&self) -> usize {
        self.0.length()
    }
}

/// The caller's buffers by name, each to be used once.
pub struct LentBuffers(Mutex<HashMap<String, Output>>);

impl LentBuffers {
    /// Lend these.
    pub fn new(buffers: HashMap<String, Output>) -> LentBuffers {
        LentBuffers(Mutex::new(buffers))
    }
}

impl BufferProvider for LentBuffers {
    fn provide(&self, name: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |reason| StoreError::Refused { path: PathBuf::from(name), reason };
        match buffers.get(name) {
            None => Err(refused(Refusal::NoBuffer)),
            Some(buffer) if buffer.length() as u64 != size => Err(refused(Refusal::BufferLength)),
            Some(_) => match buffers.remove(name) {
                Some(buffer) => Ok(Box::new(Lent(buffer))),
                None => Err(refused(Refusal::NoBuffer)),
            },
        }
    }
}

/// A received buffer, for `memoryview`.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct ReceivedBuffer(Memory);

/// Bytes that only Python uses from now on.
struct Memory {
    start: *mut u8,
    length: usize,
}

// SAFETY: the memory is owned, and this side never reads or writes it again before it is freed.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` came from a boxed slice in `ReceivedBuffer::new`, and are given back once.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start, self.length)) });
    }
}

impl ReceivedBuffer {
    /// Take what was received into memory.
    pub fn take(py: Python<'_>, sink: &MemorySink) -> PyResult<Vec<(String, ReceivedBuffer)>> {
        let buffers = native::run(py, || Ok(sink.take_buffers().map_err(NetError::from)?))?;
        let buffers = buffers.into_iter();
        Ok(buffers
            .filter_map(|(name, buffer)| Some((name, ReceivedBuffer::new(buffer.into_vec()?))))
            .collect())
    }

    /// Take over `bytes`.
    pub fn new(bytes: Vec<u8>) -> ReceivedBuffer {
        let bytes = Box::leak(bytes.into_boxed_slice());
        ReceivedBuffer(Memory { start: bytes.as_mut_ptr(), length: bytes.len() })
    }
}

#[pymethods]
impl ReceivedBuffer {
    fn __len__(&self) -> usize {
        self.0.length
    }

    // SAFETY: called by the interpreter only, with a view that is valid for writes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = &slf.get().0;
        // SAFETY: the view is the interpreter's; the memory lives as long as this object, to which the filled view
        // holds a reference, and this side never uses it again.
        unsafe { export(slf.as_any(), view, flags, (memory.start, memory.length), false) }
    }
}
