//! Times patches between two files, and where the time goes: `patches OLD NEW [BLOCK_BYTES]`.

use std::time::Instant;

use dwcp_codec::patch::{Patch, PatchOptions, encode};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, old, new, rest @ ..] = &arguments[..] else { return };
    let (old, new) = (std::fs::read(old).unwrap_or_default(), std::fs::read(new).unwrap_or_default());
    let block_bytes = rest.first().and_then(|text| text.parse().ok()).unwrap_or(1 << 20);
    let rate = |start: Instant| new.len() as f64 / 1e9 / start.elapsed().as_secs_f64();
    let mut out = vec![0; new.len()];
    for search in [true, false] {
        let options = PatchOptions { block_bytes: Some(block_bytes), search, ..PatchOptions::default() };
        let mut rates = [0.0_f64; 2];
        let mut length = 0;
        for _ in 0..3 {
            let start = Instant::now();
            let Ok(patch) = encode(&old, &new, &options) else { return };
            rates[0] = rates[0].max(rate(start));
            let start = Instant::now();
            let Ok(parsed) = Patch::parse(&patch) else { return };
            if parsed.apply(&old[..], &mut out, 1).is_err() || out != new {
                return;
            }
            rates[1] = rates[1].max(rate(start));
            length = patch.len();
        }
        #[allow(clippy::print_stdout)] // What an example is for.
        {
            println!(
                "search {search}: {:.3} %, encode {:.2} GB/s, apply {:.2} GB/s",
                100.0 * length as f64 / new.len() as f64,
                rates[0],
                rates[1]
            );
        }
    }
}
