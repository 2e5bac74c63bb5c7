//! Measures what it takes to look at a block and to predict what each action would do with it.
//!
//! `cargo run --release -p dwcp-codec --example select FILE[:WIDTH]...` prints the time for the features of a block of
//! 1 MiB, which is in the second cache, and the time to predict for all actions by a model of 60 trees of depth 5 for
//! each number predicted (the environment variables TREES and DEPTH change that). The blocks are spread over the file;
//! each figure is the least of several rounds for a block, and of these the median and the most.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use dwcp_codec::Digest;
use dwcp_codec::select::{Action, FEATURES, Features, Model};

const BLOCK_BYTES: usize = 1 << 20;
const BLOCKS: usize = 60;
const ROUNDS: usize = 15;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A small generator with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % limit
    }
}

/// A model of complete trees, each threshold one of the values that `seen` has of the feature, so that walks go
/// everywhere.
fn model(seen: &[Features], trees: usize, depth: usize) -> Model {
    let mut random = Random(1);
    let mut bytes = b"DWSM\x01".to_vec();
    let actions = Action::ALL.map(|action| action.to_string());
    for names in [FEATURES.to_vec(), actions.iter().map(String::as_str).collect()] {
        bytes.push(names.len() as u8);
        for name in names {
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
        }
    }
    bytes.extend(vec![0; 8 * Action::ALL.len()]);
    for _ in 0..3 * Action::ALL.len() {
        // It starts from no other action.
        bytes.push(255);
        bytes.extend(0.0_f32.to_le_bytes());
        bytes.extend(1.0_f32.to_le_bytes());
        bytes.extend([0, depth as u8]);
        bytes.extend((trees as u16).to_le_bytes());
        for _ in 0..trees {
            let branches = (1_usize << depth) - 1;
            bytes.extend((2 * branches as u16 + 1).to_le_bytes());
            for node in 0..2 * branches + 1 {
                let (feature, value, next) = if node < branches {
                    let feature = random.below(FEATURES.len());
                    (feature as u8, seen[random.below(seen.len())].values()[feature], 2 * node as u16 + 1)
                } else {
                    (255, random.below(100) as f32 / 1e4, 0)
                };
                bytes.push(feature);
                bytes.extend(value.to_le_bytes());
                bytes.extend(next.to_le_bytes());
                bytes.extend((if next == 0 { 0 } else { next + 1 }).to_le_bytes());
            }
        }
    }
    bytes.extend(Digest::of(&bytes).0);
    Model::read(&bytes).unwrap()
}

/// The least time of a round in microseconds.
fn least(mut work: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e6
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn print(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!("{name:40} {:6.1} us, at most {:6.1} us", times[times.len() / 2], times[times.len() - 1]);
}

fn main() {
    let mut seen = Vec::new();
    for argument in std::env::args().skip(1) {
        let (file, width) = match argument.rsplit_once(':') {
            Some((file, width)) => (file, Some(width.parse().unwrap())),
            None => (&argument[..], None),
        };
        let bytes = std::fs::read(file).unwrap();
        let step = (bytes.len() / BLOCK_BYTES).div_ceil(BLOCKS).max(1);
        let mut times = Vec::new();
        for block in bytes.chunks(BLOCK_BYTES).step_by(step) {
            let block = block.to_vec();
            times.push(least(|| {
                black_box(Features::of(black_box(&block), width));
            }));
            seen.push(Features::of(&block, width));
        }
        print(&format!("features of {}", file.rsplit('/').next().unwrap_or(file)), times);
    }
    if seen.is_empty() {
        return;
    }
    let (trees, depth) = (setting("TREES", 60), setting("DEPTH", 5));
    let model = model(&seen, trees, depth);
    let times = seen.iter().map(|features| {
        least(|| {
            black_box(model.predict(black_box(features)));
        })
    });
    let times = times.collect();
    print(&format!("prediction by 3 x {} x {trees} trees of depth {depth}", Action::ALL.len()), times);
}
