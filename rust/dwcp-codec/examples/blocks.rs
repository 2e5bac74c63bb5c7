//! Measures the loops over blocks, and each kind of block from end to end, beside what the C library and plain loops do.
//!
//! `cargo run --release -p dwcp-codec --example blocks` makes its data: bf16 weights before and after an optimizer step
//! of several sizes, memory of which little changed, floats, text and noise. `... blocks OLD NEW [WIDTH]` takes two
//! files of one size. The environment variable BLOCK_KIB sets the size of a block. Each figure is the median of rounds in
//! which all cases take turns; GB/s are bytes of one version by seconds of processor time.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

// The loops are private to the crate; here they are compiled once more.
#[allow(dead_code)]
#[path = "../src/digest.rs"]
mod digest;
#[allow(dead_code, unused_imports)]
#[path = "../src/kernel/mod.rs"]
mod kernel;
mod error {
    pub use dwcp_codec::CodecError;
}

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::LazyLock;

use dwcp_codec::block::{BlockDecoder, BlockEncoder, BlockKind};
use dwcp_codec::{Codec, CodecId, Compressor, Digest};
use rustix::time::{ClockId, clock_gettime};

use kernel::{LINE_BYTES, Level, changes, lines, planes};

const ROUNDS: usize = 9;
static BLOCK_BYTES: LazyLock<usize> =
    LazyLock::new(|| std::env::var("BLOCK_KIB").map_or(256, |kib| kib.parse::<usize>().unwrap()) << 10);
const BYTES: usize = 32 << 20;

/// A small generator with a fixed seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The upper half of a float, rounded to even.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// bf16 weights with single-precision masters, and those after moving each by about `step`.
fn weights(step: f64) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(7);
    let (mut old, mut new) = (Vec::with_capacity(BYTES), Vec::with_capacity(BYTES));
    for _ in 0..BYTES / 2 {
        let master = (random.normal() * 0.02) as f32;
        let moved = master - (random.normal() * step) as f32;
        old.extend(bf16(master).to_le_bytes());
        new.extend(bf16(moved).to_le_bytes());
    }
    (old, new)
}

/// Single-precision weights, and those after moving each a little.
fn floats() -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(8);
    let (mut old, mut new) = (Vec::with_capacity(BYTES), Vec::with_capacity(BYTES));
    for _ in 0..BYTES / 4 {
        let master = (random.normal() * 0.02) as f32;
        old.extend(master.to_le_bytes());
        new.extend((master - (random.normal() * 1e-5) as f32).to_le_bytes());
    }
    (old, new)
}

/// Pages of zeros, pointers, text and noise, and the same after a while: counters went on, lists were linked anew, a
/// few pages were written anew.
fn memory() -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(9);
    let mut old = vec![0; BYTES];
    for page in old.chunks_mut(4096) {
        match random.below(10) {
            0..=3 => {}
            4..=6 => page.chunks_mut(8).for_each(|word| {
                let pointer = 0x7f00_1000_0000 + (random.below(1 << 24) as u64 & !15);
                word.copy_from_slice(&if random.below(3) == 0 { 0 } else { pointer }.to_le_bytes());
            }),
            7 | 8 => page.iter_mut().for_each(|byte| *byte = b"etaoin shrdlu\n"[random.below(14)]),
            _ => page.iter_mut().for_each(|byte| *byte = random.next() as u8),
        }
    }
    let mut new = old.clone();
    for page in new.chunks_mut(4096) {
        match random.below(100) {
            0 => page.chunks_mut(8).step_by(1 + random.below(60)).for_each(|word| {
                let count = u64::from_le_bytes(word.try_into().unwrap()) + 1 + random.below(900) as u64;
                word.copy_from_slice(&count.to_le_bytes());
            }),
            1 => (0..4).for_each(|_| {
                let at = random.below(4000);
                page[at..at + 40].iter_mut().for_each(|byte| *byte = b"0123456789abcdef"[random.below(16)]);
            }),
            2 if random.below(20) == 0 => page.iter_mut().for_each(|byte| *byte = random.next() as u8),
            _ => {}
        }
    }
    (old, new)
}

fn text() -> Vec<u8> {
    let mut random = Random(10);
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| (0..2 + random.below(8)).map(|_| b'a' + random.below(26) as u8).chain([b' ']).collect())
        .collect();
    let mut text = Vec::with_capacity(BYTES);
    while text.len() < BYTES {
        let rare = random.unit();
        text.extend(&words[(rare * rare * rare * 4000.0) as usize]);
    }
    text.truncate(BYTES);
    text
}

fn noise() -> Vec<u8> {
    let mut random = Random(11);
    (0..BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// The bytes that a perfect coder of order zero takes for which elements changed, and by how much.
fn bound(old: &[u8], new: &[u8], width: usize) -> f64 {
    let value = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let mut counts = BTreeMap::<u64, f64>::new();
    for (old, new) in old.chunks_exact(width).zip(new.chunks_exact(width)) {
        if old != new {
            let mask = u64::MAX >> (64 - 8 * width);
            *counts.entry(value(new).wrapping_sub(value(old)) & mask).or_default() += 1.0;
        }
    }
    let (changed, all) = (counts.values().sum::<f64>(), (new.len() / width) as f64);
    let term = |count: f64, of: f64| if count > 0.0 { count * (of / count).log2() } else { 0.0 };
    let values = counts.values().map(|count| term(*count, changed)).sum::<f64>();
    (values + term(changed, all) + term(all - changed, all)) / 8.0
}

/// What is measured, by name.
type Case<'a> = (String, Box<dyn FnMut() + 'a>);

/// Processor time of this thread: others may run on the machine.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs all cases in turns and returns the median of each, in seconds of processor time.
fn medians(cases: &mut [Case<'_>]) -> Vec<f64> {
    let mut seconds = vec![vec![]; cases.len()];
    for _ in 0..ROUNDS {
        for ((_, case), seconds) in cases.iter_mut().zip(&mut seconds) {
            let start = processor_seconds();
            case();
            seconds.push(processor_seconds() - start);
        }
    }
    seconds
        .into_iter()
        .map(|mut rounds| {
            rounds.sort_by(f64::total_cmp);
            rounds[ROUNDS / 2]
        })
        .collect()
}

fn measure_loops(name: &str, old: &[u8], new: &[u8], width: usize) {
    let blocks = || old.chunks(*BLOCK_BYTES).zip(new.chunks(*BLOCK_BYTES));
    let mut cases: Vec<Case> = vec![];
    let copy = old.to_vec();
    cases.push((
        "memcmp (equal)".into(),
        Box::new(move || {
            black_box(black_box(old) == black_box(&copy[..]));
        }),
    ));
    let mut out = vec![0; *BLOCK_BYTES];
    cases.push((
        "memcpy by blocks".into(),
        Box::new(move || {
            for (_, new) in blocks() {
                out[..new.len()].copy_from_slice(new);
                black_box(&out);
            }
        }),
    ));
    cases.push((
        "xxh3-128".into(),
        Box::new(move || {
            for (_, new) in blocks() {
                black_box(Digest::of(new));
            }
        }),
    ));
    for level in Level::available() {
        let mut dirty = vec![0; lines::words_for(*BLOCK_BYTES)];
        cases.push((
            format!("dirty lines, {level:?}"),
            Box::new(move || {
                for (old, new) in blocks() {
                    black_box(lines::dirty_lines(level, old, new, &mut dirty));
                }
            }),
        ));
        let mut dirty = vec![0; lines::words_for(*BLOCK_BYTES)];
        let mut mask = vec![0; changes::words_for(*BLOCK_BYTES / width)];
        let mut zigzags = vec![0; *BLOCK_BYTES + LINE_BYTES];
        cases.push((
            format!("dirty lines + changes, {level:?}"),
            Box::new(move || {
                for (old, new) in blocks() {
                    lines::dirty_lines(level, old, new, &mut dirty);
                    mask.fill(0);
                    black_box(changes::find(level, width, old, new, &dirty, &mut mask, &mut zigzags));
                }
            }),
        ));
        let mut dirty = vec![0; lines::words_for(*BLOCK_BYTES)];
        let mut masks = vec![];
        cases.push((
            format!("dirty lines + byte masks, {level:?}"),
            Box::new(move || {
                for (old, new) in blocks() {
                    lines::dirty_lines(level, old, new, &mut dirty);
                    masks.clear();
                    lines::byte_masks(level, old, new, &dirty, &mut masks);
                    black_box(&masks);
                }
            }),
        ));
        for transform in [planes::Transform::Rotate, planes::Transform::Zigzag] {
            let mut split = vec![0; *BLOCK_BYTES];
            cases.push((
                format!("split {transform:?}, {level:?}"),
                Box::new(move || {
                    for (old, new) in blocks() {
                        planes::split(level, transform, width, new, old, &mut split[..new.len()]);
                        black_box(&split);
                    }
                }),
            ));
            let (split, mut joined) = (vec![0; *BLOCK_BYTES], vec![0; *BLOCK_BYTES]);
            cases.push((
                format!("join {transform:?}, {level:?}"),
                Box::new(move || {
                    let mut parts: [&[u8]; 8] = [&[]; 8];
                    for (part, plane) in parts.iter_mut().zip(split.chunks(*BLOCK_BYTES / width)) {
                        *part = plane;
                    }
                    for _ in 0..BYTES / *BLOCK_BYTES {
                        planes::join(level, transform, width, &parts, &mut joined);
                        black_box(&joined);
                    }
                }),
            ));
        }
    }
    let seconds = medians(&mut cases);
    println!("loops over {name}, blocks of {} KiB, elements of {width} bytes", *BLOCK_BYTES >> 10);
    for ((case, _), seconds) in cases.iter().zip(seconds) {
        println!("  {case:36} {:6.2} GB/s", new.len() as f64 / seconds / 1e9);
    }
}

type Coded = (BlockKind, CodecId, Vec<u8>);

fn encode(encoder: &mut BlockEncoder, new: &[u8], old: Option<&[u8]>, width: Option<u8>) -> Vec<Coded> {
    let mut bases = old.map(|old| old.chunks(*BLOCK_BYTES));
    new.chunks(*BLOCK_BYTES)
        .map(|block| {
            let base = bases.as_mut().and_then(|bases| bases.next());
            if base == Some(block) {
                return (BlockKind::Plain, CodecId::None, vec![]);
            }
            let coded = encoder.encode_elements(Codec::Zstd { level: 1 }, block, base, width).unwrap();
            (coded.kind, coded.codec, coded.wire.to_vec())
        })
        .collect()
}

fn measure_kinds(name: &str, old: Option<&[u8]>, new: &[u8], width: Option<u8>) {
    let mut encoder = BlockEncoder::new();
    let coded = encode(&mut encoder, new, old, width);
    let wire: usize = coded.iter().map(|(_, _, wire)| wire.len()).sum();
    let mut kinds = BTreeMap::<String, usize>::new();
    for (kind, codec, wire) in &coded {
        let name = if wire.is_empty() { "Same".to_owned() } else { format!("{kind:?} {codec}") };
        *kinds.entry(name).or_default() += 1;
    }
    // Each decoding begins with the base in place, as an application in place does.
    let mut held = old.unwrap_or(new).to_vec();
    let (mut decoder, mut onto) = (BlockDecoder::new(), BlockDecoder::new());
    let (mut out, mut zstd, mut xored, mut sink) = (vec![0; *BLOCK_BYTES], Compressor::new(), vec![], vec![]);
    let mut verified = vec![0; *BLOCK_BYTES];
    let mut cases: Vec<Case> = vec![
        (
            "encode".into(),
            Box::new(|| {
                let mut bases = old.map(|old| old.chunks(*BLOCK_BYTES));
                for block in new.chunks(*BLOCK_BYTES) {
                    let base = bases.as_mut().and_then(|bases| bases.next());
                    if base != Some(block) {
                        let codec = Codec::Zstd { level: 1 };
                        black_box(encoder.encode_elements(codec, block, base, width).unwrap());
                    }
                }
            }),
        ),
        (
            "decode".into(),
            Box::new(|| {
                let mut bases = old.map(|old| old.chunks(*BLOCK_BYTES));
                for ((kind, codec, wire), block) in coded.iter().zip(new.chunks(*BLOCK_BYTES)) {
                    let base = bases.as_mut().and_then(|bases| bases.next());
                    let out = &mut out[..block.len()];
                    if wire.is_empty() {
                        out.copy_from_slice(base.unwrap());
                    } else {
                        decoder.decode(*kind, *codec, wire, base, out).unwrap();
                    }
                    black_box(&out);
                }
            }),
        ),
        (
            "decode in place".into(),
            Box::new(|| {
                for ((kind, codec, wire), block) in coded.iter().zip(held.chunks_mut(*BLOCK_BYTES)) {
                    if !wire.is_empty() {
                        onto.decode_onto(*kind, *codec, wire, block).unwrap();
                    }
                }
            }),
        ),
        (
            "hash + memcpy".into(),
            Box::new(|| {
                for block in new.chunks(*BLOCK_BYTES) {
                    black_box(Digest::of(block));
                    verified[..block.len()].copy_from_slice(block);
                    black_box(&verified);
                }
            }),
        ),
        (
            "xor + zstd-1".into(),
            Box::new(|| {
                for (old, new) in old.unwrap_or(new).chunks(*BLOCK_BYTES).zip(new.chunks(*BLOCK_BYTES)) {
                    xored.clear();
                    sink.clear();
                    xored.extend(old.iter().zip(new).map(|(old, new)| old ^ new));
                    zstd.compress(Codec::Zstd { level: 1 }, &xored, &mut sink).unwrap();
                    black_box(&sink);
                }
            }),
        ),
    ];
    let seconds = medians(&mut cases);
    let ratio = new.len() as f64 / wire as f64;
    print!("{name:26} {ratio:8.2}x ({:7.3} %)", 100.0 / ratio);
    if let Some(old) = old {
        let width = usize::from(width.unwrap_or(1));
        let pairs = old.chunks_exact(width).zip(new.chunks_exact(width));
        let changed = pairs.filter(|(old, new)| old != new).count() as f64 / (new.len() / width) as f64;
        print!(" {:.2} % changed,", 100.0 * changed);
        let bound = bound(old, new, width);
        print!(" {:5.3} of the bound", wire as f64 / bound);
    }
    for ((case, _), seconds) in cases.iter().zip(seconds) {
        print!(", {case} {:.2}", new.len() as f64 / seconds / 1e9);
    }
    println!(" GB/s {kinds:?}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [old, new, rest @ ..] = &arguments[..] {
        let (old, new) = (std::fs::read(old).unwrap(), std::fs::read(new).unwrap());
        let length = old.len().min(new.len());
        let width = rest.first().map(|width| width.parse().unwrap());
        measure_kinds("files", Some(&old[..length]), &new[..length], width);
        return;
    }
    let only = arguments.first().map_or("", String::as_str);
    if only.is_empty() || only == "loops" {
        let (old, new) = weights(1e-6);
        measure_loops("weights, 1 %", &old, &new, 2);
        let (old, new) = floats();
        measure_loops("floats, all changed", &old, &new, 4);
        let (old, new) = memory();
        measure_loops("memory", &old, &new, 8);
    }
    if only == "loops" {
        return;
    }
    for (name, step) in [
        ("bf16, step 3e-7", 3e-7),
        ("bf16, step 2e-6", 2.2e-6),
        ("bf16, step 4e-5", 4e-5),
        ("bf16, step 3e-4", 3e-4),
    ] {
        let (old, new) = weights(step);
        measure_kinds(name, Some(&old), &new, Some(2));
    }
    let (old, new) = weights(2.2e-6);
    measure_kinds("bf16, width not told", Some(&old), &new, None);
    measure_kinds("bf16, no base", None, &new, Some(2));
    let (old, new) = floats();
    measure_kinds("fp32", Some(&old), &new, Some(4));
    measure_kinds("fp32, no base", None, &new, Some(4));
    let (old, new) = memory();
    measure_kinds("memory", Some(&old), &new, None);
    measure_kinds("memory, no base", None, &new, None);
    let (text, noise) = (text(), noise());
    measure_kinds("text, no base", None, &text, None);
    measure_kinds("noise, no base", None, &noise, None);
    measure_kinds("noise, base of text", Some(&text), &noise, None);
}
