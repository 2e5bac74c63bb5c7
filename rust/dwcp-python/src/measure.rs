//! `measure_action` and `calibration_sample`.

use std::cell::RefCell;
use std::time::Duration;

use dwcp_codec::block::{BlockDecoder, BlockEncoder};
use dwcp_codec::select::{self, Action};
use dwcp_net::thread_cpu;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffer::Input;
use crate::error::Failure;
use crate::native;

/// What the thread keeps between measurements, so that none pays for memory that a session would have.
#[derive(Default)]
struct Bench {
    encoder: BlockEncoder,
    decoder: BlockDecoder,
    restored: Vec<u8>,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::default();
}

/// Code a block by an action and decode it again, `repeats` times: the coded length in bytes, and the least
/// processor time of this thread for coding and for decoding, in nanoseconds.
#[pyfunction]
#[pyo3(signature = (buf, action, width, repeats))]
pub fn measure_action(
    py: Python<'_>,
    buf: Input,
    action: &str,
    width: Option<u8>,
    repeats: u32,
) -> PyResult<(usize, u64, u64)> {
    let src = buf.bytes();
    let action = action.parse::<Action>().map_err(|error| Failure::Action(error).raise(py))?;
    native::run(py, || {
        BENCH.with_borrow_mut(|bench| {
            let Bench { encoder, decoder, restored } = bench;
            restored.resize(src.len(), 0);
            let mut best = (0, u64::MAX, u64::MAX);
            for _ in 0..repeats.max(1) {
                let begun = thread_cpu();
                let block = encoder.encode_action(action, src, None, width)?;
                let coded = thread_cpu();
                decoder.decode(block.kind, block.codec, block.wire, None, restored)?;
                let decoded = thread_cpu();
                let (coding, decoding) = (nanoseconds(coded - begun), nanoseconds(decoded - coded));
                best = (block.wire.len(), best.1.min(coding), best.2.min(decoding));
            }
            if restored != src { Err(Failure::Changed) } else { Ok(best) }
        })
    })
}

/// What codecs are timed on to compare one processor with another.
#[pyfunction]
pub fn calibration_sample(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &select::calibration_sample())
}

/// At least one: a copy that takes no time is shorter than the clock can tell.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1)
}
