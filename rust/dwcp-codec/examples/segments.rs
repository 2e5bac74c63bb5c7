//! Encodes a file by segments of another and of itself, block by block, and decodes it again; says sizes and times.
//!
//! `segments OLD NEW [BLOCK_BYTES [LEVEL [REPEATS]]]`

use std::error::Error;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

use dwcp_codec::matcher::{Found, Index, Memory, Origin, Origins};
use dwcp_codec::segments::{SegmentCoder, SegmentKind};
use dwcp_codec::{Codec, CodecError, CodecId, Compressor, Decompressor};

/// Base and target in memory; of the target only blocks without segments of the target are usable.
struct Checked<'a> {
    memory: Memory<'a>,
    block_bytes: u64,
    free: &'a [bool],
}

impl Origins for Checked<'_> {
    type Error = CodecError;

    fn usable(&self, origin: Origin, offset: u64) -> Range<u64> {
        if origin == Origin::Base {
            return self.memory.usable(origin, offset);
        }
        let block = offset / self.block_bytes;
        let start = block * self.block_bytes;
        if self.free.get(block as usize) == Some(&true) { start..start + self.block_bytes } else { 0..0 }
    }

    fn bytes(&mut self, origin: Origin, offset: u64, length: usize) -> Result<&[u8], CodecError> {
        self.memory.bytes(origin, offset, length)
    }
}

/// Time this thread has run, which other processes on a busy machine do not add to. Linux only.
struct Instant(Duration);

impl Instant {
    fn now() -> Instant {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let run = text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
        Instant(Duration::from_nanos(run.unwrap_or(0)))
    }

    fn elapsed(&self) -> Duration {
        Instant::now().0.saturating_sub(self.0)
    }
}

enum Entry {
    Same,
    Plain(Vec<u8>),
    Segments(SegmentKind, Vec<u8>),
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [old, new, options @ ..] = arguments.as_slice() else { return Err("OLD NEW expected".into()) };
    let option = |at: usize, default: usize| options.get(at).map_or(Ok(default), |text| text.parse());
    let (block_bytes, level, repeats) = (option(0, 1 << 20)?, option(1, 3)? as i32, option(2, 1)?);
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    for _ in 0..repeats {
        run(&old, &new, block_bytes, level)?;
    }
    Ok(())
}

fn run(old: &[u8], new: &[u8], block_bytes: usize, level: i32) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let (mut searching, mut coding, mut plain_coding) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    let mut index = Index::new(old.len() as u64, new.len() as u64);
    index.add(Origin::Base, 0, old);
    let indexing = begun.elapsed();
    let mut free = vec![false; new.len().div_ceil(block_bytes)];
    let (mut coder, mut found, mut compressor) = (SegmentCoder::new(), Found::default(), Compressor::new());
    let mut entries = Vec::new();
    let (mut size, mut pieces, mut covered, mut plain) = (0, 0, 0, 0);
    for (number, block) in new.chunks(block_bytes).enumerate() {
        let start = number * block_bytes;
        if old.get(start..start + block.len()) == Some(block) {
            free[number] = true;
            entries.push(Entry::Same);
            continue;
        }
        let offset = start as u64;
        let memory = Memory { base: old, target: new };
        let mut origins = Checked { memory, block_bytes: block_bytes as u64, free: &free };
        let now = Instant::now();
        index.find(offset, block, &mut origins, &mut found)?;
        searching += now.elapsed();
        pieces += found.pieces().len();
        covered += found.covered_bytes();
        let now = Instant::now();
        let coded = coder.encode(level, offset, block, &found, block.len(), &mut origins)?;
        let coded = coded.map(|(kind, payload)| Entry::Segments(kind, payload.to_vec()));
        coding += now.elapsed();
        let now = Instant::now();
        let entry = match coded {
            Some(entry) if found.covered_bytes() > 0 => entry,
            _ => {
                let mut payload = Vec::new();
                compressor.compress(Codec::Zstd { level }, block, &mut payload)?;
                plain += 1;
                Entry::Plain(payload)
            }
        };
        plain_coding += now.elapsed();
        if matches!(entry, Entry::Plain(_)) || found.target_bytes() == 0 {
            free[number] = true;
            let now = Instant::now();
            index.add(Origin::Target, offset, block);
            searching += now.elapsed();
        }
        size += match &entry {
            Entry::Same => 8,
            Entry::Plain(payload) | Entry::Segments(_, payload) => 24 + payload.len(),
        };
        entries.push(entry);
    }
    let encoding = begun.elapsed();

    let mut made = vec![1_u8; new.len()];
    let mut decompressor = Decompressor::new();
    let begun = Instant::now();
    for ((number, block), entry) in made.chunks_mut(block_bytes).enumerate().zip(&entries) {
        let start = number * block_bytes;
        match entry {
            Entry::Same => block.copy_from_slice(&old[start..start + block.len()]),
            Entry::Plain(payload) => decompressor.decompress_into_slice(CodecId::Zstd, payload, block)?,
            Entry::Segments(kind, payload) => {
                // What is decoded refers to the finished target: blocks come in any order here.
                let mut origins = Memory { base: old, target: new };
                coder.decode(*kind, payload, old.len() as u64, start as u64, &mut origins, block)?;
            }
        }
    }
    let decoding = begun.elapsed();
    if made != new {
        return Err("decoded something else".into());
    }
    let rate = |time: Duration| new.len() as f64 / time.as_secs_f64() / 1e6;
    writeln!(
        out,
        "size {size} ({:.3} %) encode {:.0} MB/s decode {:.0} MB/s; index {} MiB in {:.0} ms, search {:.0} ms, code {:.0} ms, \
         plain {:.0} ms ({plain} of {} blocks), {pieces} pieces cover {:.2} %",
        size as f64 * 100.0 / new.len() as f64,
        rate(encoding),
        rate(decoding),
        index.memory_bytes() >> 20,
        indexing.as_secs_f64() * 1e3,
        searching.as_secs_f64() * 1e3,
        coding.as_secs_f64() * 1e3,
        plain_coding.as_secs_f64() * 1e3,
        entries.len(),
        covered as f64 * 100.0 / new.len() as f64,
    )?;
    Ok(())
}
