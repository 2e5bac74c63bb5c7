//! Python buffers as slices, and `bytes` objects filled in place.
//!
//! # Soundness
//!
//! A buffer export is held for as long as its [`Input`] or [`Output`] lives, so the exporter can neither
//! free nor resize the memory, also while the interpreter is released. An `Input` is only read.
//!
//! Nothing can stop another thread from writing to a mutable exporter (a `bytearray`, an array, a shared
//! mapping) during the call. The rule told to callers is that they must not; if they do, the result has
//! unspecified *bytes*: block digests and payload may describe different moments, which a reader then
//! refuses. Decoders bound every length that they use against the slice, and the C codecs read with
//! bounds, so no such race turns into an access outside the exported memory. A private copy would remove
//! the caveat for the price of one pass over every input, and is not made.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// One export of a contiguous buffer. The view is boxed because an exporter may keep its address.
struct Export(Box<ffi::Py_buffer>);

// SAFETY: the view is plain data; the memory it names stays put and alive until the release, and the release
// in `drop` happens attached to the interpreter, whatever thread that is on.
unsafe impl Send for Export {}
// SAFETY: as above; shared use only ever reads the view.
unsafe impl Sync for Export {}

impl Export {
    fn new(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Export> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: `view` is valid for writes and `object` is alive; on success the view is released in `drop`.
        let status = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *view, flags) };
        if status == 0 { Ok(Export(view)) } else { Err(PyErr::fetch(object.py())) }
    }

    /// As `new`, and for a tensor, which exports no buffer, through a view of its memory that does.
    fn of(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Export> {
        Export::new(object, flags).or_else(|error| {
            let py = object.py();
            if !error.is_instance_of::<PyTypeError>(py) {
                return Err(error);
            }
            let view = py.import("dwcp_fast.buffers")?.call_method1("view_tensor", (object,))?;
            if view.is_none() { Err(error) } else { Export::new(&view, flags) }
        })
    }

    fn len(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }

    fn start(&self) -> NonNull<u8> {
        // An empty exporter may give a null pointer, which no slice may have.
        NonNull::new(self.0.buf.cast()).unwrap_or(NonNull::dangling())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // At the end of the process there may be no interpreter to attach to; then the memory dies with it.
        Python::try_attach(|_| {
            // SAFETY: the view was filled by PyObject_GetBuffer and is released once, attached.
            unsafe { ffi::PyBuffer_Release(&mut *self.0) }
        });
    }
}

/// A C-contiguous buffer to read, as raw bytes whatever its item type.
pub struct Input(Export);

impl Input {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the export covers `len` bytes from `start`, held while `self` lives; see the module text
        // for writers on other threads.
        unsafe { std::slice::from_raw_parts(self.0.start().as_ptr(), self.0.len()) }
    }

    /// How many bytes an item has, if these are numbers of more than one byte.
    pub fn width(&self) -> Option<u8> {
        // Exporters tell this whether or not they are asked for their format.
        u8::try_from(self.0.0.itemsize).ok().filter(|width| matches!(width, 2 | 4 | 8))
    }
}

impl AsRef<[u8]> for Input {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl<'py> FromPyObject<'_, 'py> for Input {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Input> {
        Export::of(&object, ffi::PyBUF_SIMPLE).map(Input).map_err(|error| explain(&object, error))
    }
}

/// A C-contiguous buffer to write.
pub struct Output(Export);

impl Output {
    /// The bytes, to be overwritten.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the export was asked for writable and covers `len` bytes from `start`; `&mut self` makes
        // this the only slice made from this export.
        unsafe { std::slice::from_raw_parts_mut(self.0.start().as_ptr(), self.0.len()) }
    }

    /// Where it begins.
    pub fn pointer(&self) -> *mut u8 {
        self.0.start().as_ptr()
    }

    /// How many bytes there are.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Refuse an input that shares memory with this output: a slice to read and one to write must not.
    pub fn refuse_overlap(&self, input: &Input) -> PyResult<()> {
        let (ours, theirs) = (self.0.start().as_ptr() as usize, input.0.start().as_ptr() as usize);
        if ours < theirs + input.0.len() && theirs < ours + self.0.len() {
            return Err(PyValueError::new_err("input and output share memory"));
        }
        Ok(())
    }
}

impl<'py> FromPyObject<'_, 'py> for Output {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Output> {
        Export::of(&object, ffi::PyBUF_WRITABLE).map(Output).map_err(|error| {
            if Export::new(&object, ffi::PyBUF_SIMPLE).is_ok() {
                return PyBufferError::new_err(format!("{} is read-only", type_name(&object)));
            }
            explain(&object, error)
        })
    }
}

/// Give exporters that refuse with errors of their own (numpy: `ValueError`) one kind of error.
fn explain(object: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let py = object.py();
    if error.is_instance_of::<PyBufferError>(py) || error.is_instance_of::<PyValueError>(py) {
        let text = format!("{} cannot be used as contiguous bytes: {}", type_name(object), error.value(py));
        return PyBufferError::new_err(text);
    }
    error
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

/// A `bytes` object that nobody else has seen yet, to be filled without the interpreter.
pub struct NewBytes<'py> {
    object: Bound<'py, PyBytes>,
    length: usize,
}

impl<'py> NewBytes<'py> {
    /// Make one with unspecified content; `MemoryError` when there is no room.
    pub fn new(py: Python<'py>, length: usize) -> PyResult<NewBytes<'py>> {
        let size = ffi::Py_ssize_t::try_from(length)?;
        // SAFETY: a null source leaves the content unset, which is what NewBytes is about; the result is a
        // new reference to a `bytes` or null with an exception set.
        let object = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?
                .cast_into_unchecked()
        };
        let mut made = NewBytes { object, length };
        prefer_huge_pages(made.memory());
        Ok(made)
    }

    /// The memory to fill.
    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: PyBytes_AsString gives the object's own memory of `length` bytes; the object is not shared
        // with anybody before `finish`, except the empty one, which has no byte to write.
        unsafe {
            let start = ffi::PyBytes_AsString(self.object.as_ptr());
            std::slice::from_raw_parts_mut(start.cast(), self.length)
        }
    }

    /// Hand the object over.
    ///
    /// # Safety
    /// Every byte of [`Self::memory`] was written.
    pub unsafe fn finish(self) -> Bound<'py, PyBytes> {
        self.object
    }
}

/// A buffer to overwrite, as the codecs take it: they only ever write initialised bytes to it.
pub fn uninit(dst: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: same layout, and no caller passes it to code that would write uninitialised bytes.
    unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) }
}

/// Write bytes to memory of their length.
pub fn uninit_copy(bytes: &[u8], memory: &mut [MaybeUninit<u8>]) {
    // SAFETY: same layout, and what is initialised may be seen as what may be not.
    let bytes: &[MaybeUninit<u8>] = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) };
    memory.copy_from_slice(bytes);
}

/// Have new memory come in few large pages: it is written at twice the speed, and read faster.
pub fn prefer_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    /// Below this, page faults are not what counts.
    const WORTH_BYTES: usize = 4 << 20;
    const PAGE_BYTES: usize = 4 << 10;
    #[cfg(target_os = "linux")]
    if memory.len() >= WORTH_BYTES {
        let ahead = memory.as_ptr().align_offset(PAGE_BYTES);
        let inner = memory.get_mut(ahead..).unwrap_or_default();
        let length = inner.len() / PAGE_BYTES * PAGE_BYTES;
        let start = inner.as_mut_ptr().cast();
        // SAFETY: whole pages of memory that the caller has for itself; their content does not change. That the advice
        // is not taken does no harm.
        let _ = unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxHugepage) };
    }
}

/// Fill a view that the interpreter wants of `length` bytes at `start`, which `owner` keeps.
///
/// # Safety
/// `view` is the interpreter's. The bytes stay where they are, initialised, while `owner` lives and has views; if
/// they are not `read_only`, nobody else uses them.
pub unsafe fn export(
    owner: &Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    (start, length): (*mut u8, usize),
    read_only: bool,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no view to fill"));
    }
    let length = ffi::Py_ssize_t::try_from(length)?;
    // SAFETY: as the caller says; nobody writes through the pointer of a view that is read-only.
    let status = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start.cast(), length, c_int::from(read_only), flags)
    };
    if status == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
