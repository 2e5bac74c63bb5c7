//! `compress_pages` and `decompress_pages_into`.

use dwcp_codec::CodecError;
use dwcp_codec::container;
use dwcp_codec::pages;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::{Input, Output};
use crate::error::Failure;
use crate::{compress, contexts, native};

/// Compress pages of a memory, given by their numbers, into one container.
#[pyfunction]
#[pyo3(signature = (memory, numbers, page_bytes, codec, checksum, max_length))]
pub fn compress_pages<'py>(
    py: Python<'py>,
    memory: Input,
    numbers: Input,
    page_bytes: usize,
    codec: &str,
    checksum: bool,
    max_length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let options = compress::options(py, codec, checksum, None)?;
    let (memory, numbers) = (memory.bytes(), words(&numbers)?);
    length_of(numbers.len(), page_bytes, max_length).map_err(|failure| failure.raise(py))?;
    compress::in_kept_room(py, |contexts, room| {
        let mut together = std::mem::take(&mut contexts.pages);
        together.clear();
        pages::gather(memory, page_bytes, numbers, &mut together)?;
        container::compress(&mut contexts.compressor, &options, &together, room)?;
        contexts.pages = compress::kept(together);
        Ok(())
    })
}

/// Decompress what `compress_pages` made to the places that the numbers say.
#[pyfunction]
#[pyo3(signature = (packed, memory, numbers, page_bytes, max_length))]
pub fn decompress_pages_into(
    py: Python<'_>,
    packed: Input,
    mut memory: Output,
    numbers: Input,
    page_bytes: usize,
    max_length: usize,
) -> PyResult<()> {
    memory.refuse_overlap(&packed)?;
    memory.refuse_overlap(&numbers)?;
    let (packed, memory, numbers) = (packed.bytes(), memory.bytes_mut(), words(&numbers)?);
    let length = length_of(numbers.len(), page_bytes, max_length).map_err(|failure| failure.raise(py))?;
    native::run(py, || {
        if container::read_header(packed)?.raw_length != length as u64 {
            return Err(CodecError::RawLength { expected: length }.into());
        }
        contexts::with(|contexts| {
            let mut together = std::mem::take(&mut contexts.pages);
            together.clear();
            let decompressor = &mut contexts.decompressor;
            container::decompress(decompressor, None, packed, length as u64, &mut together)?;
            pages::scatter(&together, page_bytes, numbers, memory)?;
            contexts.pages = compress::kept(together);
            Ok(())
        })
    })
}

/// How many bytes the pages have together.
fn length_of(count: usize, page_bytes: usize, limit: usize) -> Result<usize, Failure> {
    match count.saturating_mul(page_bytes) {
        length if length > limit => Err(Failure::OverLimit { length: length as u64, limit: limit as u64 }),
        length => Ok(length),
    }
}

/// Page numbers as the machine keeps them.
fn words(buffer: &Input) -> PyResult<impl ExactSizeIterator<Item = u64> + Clone + '_> {
    let (words, rest) = buffer.bytes().as_chunks();
    if rest.is_empty() {
        return Ok(words.iter().map(|word| u64::from_ne_bytes(*word)));
    }
    Err(PyValueError::new_err(format!(
        "page numbers have 8 bytes each, not {} together",
        buffer.bytes().len()
    )))
}
