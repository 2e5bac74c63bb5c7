//! `patch_encode` and `patch_encode_into`.

use std::mem::MaybeUninit;
use std::ops::Range;

use dwcp_codec::codec::Codec;
use dwcp_codec::patch::{Buffer, Part, PatchOptions, encode_into, give_back, max_length, room};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::watch::{self, Watched};
use crate::buffer::{Input, NewBytes, Output, uninit_copy};
use crate::dictionary::Dictionary;
use crate::error::Failure;
use crate::native;

/// Make the patch that turns `old` into `new`.
#[pyfunction]
#[pyo3(signature = (old, new, width, codec, dictionary, block_bytes, search, threads))]
#[allow(clippy::too_many_arguments)] // The options, one by one, as all of the binding takes them.
pub fn patch_encode<'py>(
    py: Python<'py>,
    old: Input,
    new: Input,
    width: Option<u8>,
    codec: &str,
    dictionary: Option<&Dictionary>,
    block_bytes: Option<u32>,
    search: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let dictionary = dictionary.map(Dictionary::inner);
    let options = PatchOptions { block_bytes, width, codec: parse(py, codec)?, dictionary, threads, search };
    let (old, new) = (old.bytes(), new.bytes());
    let parts = watch::run(py, old.len() + new.len(), |stop| {
        let mut parts = Parts { made: room(), ..Parts::default() };
        let (old, new) = (Watched { bytes: old, stop }, Watched { bytes: new, stop });
        encode_into(&old, &new, None, &options, |part| {
            parts.add(part);
            Ok(())
        })?;
        Ok(parts)
    })?;
    let mut patch = NewBytes::new(py, parts.length)?;
    let memory = patch.memory();
    native::run(py, || {
        parts.write(new, memory);
        give_back(parts.made);
        Ok(())
    })?;
    // SAFETY: `write` wrote as many bytes as there are.
    Ok(unsafe { patch.finish() })
}

/// Write the patch that turns `old` into `new` to the start of a buffer that shares no memory with them; its length.
#[pyfunction]
#[pyo3(signature = (old, new, out, width, codec, dictionary, block_bytes, search, threads))]
#[allow(clippy::too_many_arguments)] // As above.
pub fn patch_encode_into(
    py: Python<'_>,
    old: Input,
    new: Input,
    mut out: Output,
    width: Option<u8>,
    codec: &str,
    dictionary: Option<&Dictionary>,
    block_bytes: Option<u32>,
    search: bool,
    threads: usize,
) -> PyResult<usize> {
    out.refuse_overlap(&old)?;
    out.refuse_overlap(&new)?;
    let dictionary = dictionary.map(Dictionary::inner);
    let options = PatchOptions { block_bytes, width, codec: parse(py, codec)?, dictionary, threads, search };
    let (old, new, out) = (old.bytes(), new.bytes(), out.bytes_mut());
    watch::run(py, old.len() + new.len(), |stop| {
        let mut patch = Buffer::new(out);
        let (old, new) = (Watched { bytes: old, stop }, Watched { bytes: new, stop });
        encode_into(&old, &new, None, &options, |part| Ok(patch.put(part)?))?;
        Ok(patch.length())
    })
}

/// The most bytes of a patch to a version of `length` bytes.
#[pyfunction]
pub fn max_patch_length(length: u64) -> u64 {
    max_length(length)
}

/// The parts of a patch: what was made for it, and where parts of the new version go, which are not copied twice.
#[derive(Default)]
struct Parts {
    made: Vec<u8>,
    /// How much of what was made comes before a range of the new version.
    ranges: Vec<(usize, Range<usize>)>,
    length: usize,
}

impl Parts {
    fn add(&mut self, part: Part<'_>) {
        self.length += part.bytes().len();
        match part {
            Part::Made(bytes) => self.made.extend_from_slice(bytes),
            Part::Target(offset, bytes) => {
                // Within a buffer.
                let start = offset as usize;
                self.ranges.push((self.made.len(), start..start + bytes.len()));
            }
        }
    }

    /// Writes them one behind the other to memory of their length.
    fn write(&self, new: &[u8], memory: &mut [MaybeUninit<u8>]) {
        let (mut at, mut done) = (0, 0);
        let mut put = |bytes: &[u8]| {
            uninit_copy(bytes, &mut memory[at..at + bytes.len()]);
            at += bytes.len();
        };
        for (before, range) in &self.ranges {
            put(&self.made[done..*before]);
            put(&new[range.clone()]);
            done = *before;
        }
        put(&self.made[done..]);
    }
}

/// A codec from its name.
pub fn parse(py: Python<'_>, codec: &str) -> PyResult<Codec> {
    codec.parse().map_err(|error| Failure::Codec(error).raise(py))
}
