//! Measures what it takes to look at blocks and to choose for them.
//!
//! `cargo run --release -p dwcp-codec --example select FILE[:WIDTH]...` prints the time for the features of a block of
//! 1 MiB; with the environment variable TABLE set, all features and the lengths and times of all actions, as CSV.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use dwcp_codec::Compressor;
use dwcp_codec::select::{Action, FEATURES, Features};

const BLOCK_BYTES: usize = 1 << 20;

fn main() {
    let table = std::env::var_os("TABLE").is_some();
    if table {
        print!("file");
        FEATURES.iter().for_each(|name| print!(",{name}"));
        for action in Action::ALL {
            print!(",size.{action},ns.{action}");
        }
        println!();
    }
    for argument in std::env::args().skip(1) {
        let (file, width) = match argument.split_once(':') {
            Some((file, width)) => (file.to_owned(), Some(width.parse().unwrap())),
            None => (argument, None),
        };
        let bytes = std::fs::read(&file).unwrap();
        let name = file.rsplit('/').next().unwrap();
        let blocks: Vec<&[u8]> = bytes.chunks_exact(BLOCK_BYTES).collect();
        let step = blocks.len().div_ceil(60);
        let mut times = Vec::new();
        let mut compressor = Compressor::new();
        for block in blocks.into_iter().step_by(step) {
            let mut warm = block.to_vec();
            warm.reverse();
            warm.reverse();
            let mut best = f64::INFINITY;
            for _ in 0..9 {
                let start = Instant::now();
                black_box(Features::of(black_box(&warm), width));
                best = best.min(start.elapsed().as_secs_f64());
            }
            times.push(best * 1e6);
            if table {
                print!("{name}");
                Features::of(block, width).values().iter().for_each(|value| print!(",{value}"));
                for action in Action::ALL {
                    let Some(codec) = action.codec() else {
                        print!(",,");
                        continue;
                    };
                    let mut out = Vec::new();
                    let mut best = f64::INFINITY;
                    for _ in 0..3 {
                        out.clear();
                        let start = Instant::now();
                        compressor.compress(codec, &warm, &mut out).unwrap();
                        best = best.min(start.elapsed().as_secs_f64());
                    }
                    print!(",{},{}", out.len().min(block.len()), best * 1e9 / block.len() as f64);
                }
                println!();
            }
        }
        times.sort_by(f64::total_cmp);
        if !table {
            println!(
                "{name:24} {:6.1} us median, {:6.1} us most",
                times[times.len() / 2],
                times.last().unwrap()
            );
        }
    }
}
