//! How fast this machine compresses.

use std::sync::OnceLock;

use dwcp_codec::block::BlockEncoder;
use dwcp_codec::select::{Action, Model, calibration_sample};

use crate::report::thread_cpu;

/// What is timed to compare this machine with that of a model's times.
const CALIBRATED: [Action; 2] = [Action::Lz4, Action::Zstd1];

/// How many nanoseconds compressing takes here for each byte of the sample, measured once in a process.
pub(super) fn measured() -> &'static [f64; CALIBRATED.len()] {
    static MEASURED: OnceLock<[f64; CALIBRATED.len()]> = OnceLock::new();
    const REPEATS: usize = 3;
    MEASURED.get_or_init(|| {
        let sample = calibration_sample();
        let mut encoder = BlockEncoder::new();
        CALIBRATED.map(|action| {
            let once = || {
                let begin = thread_cpu();
                // Compressing cannot fail but for want of memory, of which the first block would tell.
                let _ = encoder.encode_action(action, &sample, None, None);
                thread_cpu().saturating_sub(begin).as_nanos() as f64 / sample.len() as f64
            };
            std::iter::repeat_with(once).take(REPEATS).fold(f64::INFINITY, f64::min)
        })
    })
}

/// How many times as long as in a model's times compressing takes here.
pub(super) fn slowness(model: &Model) -> f64 {
    let there = CALIBRATED.map(|action| f64::from(model.reference(action).compress_ns_per_byte));
    let logarithms = measured().iter().zip(there).map(|(here, there)| (here / there.max(1e-3)).ln());
    (logarithms.sum::<f64>() / CALIBRATED.len() as f64).exp()
}
