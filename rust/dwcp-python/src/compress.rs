//! `compress` and `compress_into`.

use std::mem::MaybeUninit;

use dwcp_codec::codec::Codec;
use dwcp_codec::container::{self, CodecChoice, ContainerOptions};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, NewBytes, Output, uninit};
use crate::contexts::{self, Contexts};
use crate::dictionary::Dictionary;
use crate::error::Failure;
use crate::native;

/// Length of a stored container's header without and with a digest: what it is longer than its content.
const HEADERS: [usize; 2] = [16, 32];

/// A copy this short takes less time than to give the interpreter away and take it back.
const COPIED_AT_ONCE: usize = 64 << 10;

/// Up to this length results are made in memory that the thread keeps. It is there already, it has room for any result,
/// which the codecs are faster with, and the result is copied in any case.
const KEPT_ROOM: usize = 4 << 20;

/// Compress a buffer into a self-describing container.
#[pyfunction]
#[pyo3(signature = (buf, codec, checksum, dictionary))]
pub fn compress<'py>(
    py: Python<'py>,
    buf: Input,
    codec: &str,
    checksum: bool,
    dictionary: Option<PyRef<'_, Dictionary>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let src = buf.bytes();
    let options = options(py, codec, checksum, dictionary.as_deref())?;
    if src.len() <= KEPT_ROOM && options.choice != CodecChoice::Fixed(Codec::None) {
        return in_kept_room(py, |contexts, room| {
            Ok(container::compress(&mut contexts.compressor, &options, src, room)?)
        });
    }
    // As long as a stored container, which is the longest there is and is then not copied again. The stable ABI
    // cannot shrink a `bytes`, so a shorter one is copied: cheaper than the compression was, as it is short.
    let mut whole = NewBytes::new(py, src.len().saturating_add(HEADERS[usize::from(checksum)]))?;
    let memory = whole.memory();
    let capacity = memory.len();
    let length = native::run(py, || {
        contexts::with(|contexts| {
            Ok(container::compress_into(&mut contexts.compressor, &options, src, memory)?)
        })
    })?;
    if length == capacity {
        // SAFETY: compress_into wrote `length` bytes.
        return Ok(unsafe { whole.finish() });
    }
    copied(py, &whole.memory()[..length])
}

/// A `bytes` of what `make` appends to room that the thread keeps.
pub fn in_kept_room<'py>(
    py: Python<'py>,
    make: impl FnOnce(&mut Contexts, &mut Vec<u8>) -> Result<(), Failure> + Send,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut made = native::run(py, || {
        contexts::with(|contexts| {
            let mut room = std::mem::take(&mut contexts.scratch);
            room.clear();
            make(contexts, &mut room)?;
            Ok(room)
        })
    })?;
    let bytes = copied(py, uninit(&mut made));
    contexts::with(|contexts| contexts.scratch = kept(made));
    bytes
}

/// `room` for the next call, unless it is so long that threads should not sit on it.
pub fn kept(room: Vec<u8>) -> Vec<u8> {
    if room.capacity() <= 2 * KEPT_ROOM { room } else { Vec::new() }
}

/// A `bytes` with a copy of `made`, all of which was written.
fn copied<'py>(py: Python<'py>, made: &[MaybeUninit<u8>]) -> PyResult<Bound<'py, PyBytes>> {
    let mut bytes = NewBytes::new(py, made.len())?;
    let target = bytes.memory();
    if made.len() < COPIED_AT_ONCE {
        target.copy_from_slice(made);
    } else {
        py.detach(|| target.copy_from_slice(made));
    }
    // SAFETY: all of it was copied from what the callers have written.
    Ok(unsafe { bytes.finish() })
}

/// Compress a buffer into one of the caller's; the number of bytes written.
#[pyfunction]
#[pyo3(signature = (buf, out, codec, checksum, dictionary))]
pub fn compress_into(
    py: Python<'_>,
    buf: Input,
    mut out: Output,
    codec: &str,
    checksum: bool,
    dictionary: Option<PyRef<'_, Dictionary>>,
) -> PyResult<usize> {
    out.refuse_overlap(&buf)?;
    let options = options(py, codec, checksum, dictionary.as_deref())?;
    let (src, dst) = (buf.bytes(), out.bytes_mut());
    native::run(py, || {
        contexts::with(|contexts| {
            Ok(container::compress_into(&mut contexts.compressor, &options, src, uninit(dst))?)
        })
    })
}

/// The most bytes that `compress` makes of a buffer of `length` bytes.
#[pyfunction]
pub fn max_compressed_length(length: usize) -> usize {
    container::max_compressed_length(length)
}

/// How to compress, from what Python says.
pub fn options<'d>(
    py: Python<'_>,
    codec: &str,
    checksum: bool,
    dictionary: Option<&'d Dictionary>,
) -> PyResult<ContainerOptions<'d>> {
    let choice = codec.parse().map_err(|error| Failure::Codec(error).raise(py))?;
    Ok(ContainerOptions { choice, checksum, dictionary: dictionary.map(Dictionary::inner) })
}
