//! Streams go through both sides and come out as they were, and pages are told in the way that is expected.

use std::sync::{Arc, Mutex};

use dwcp_codec::Digest;
use proptest::prelude::*;

use super::*;

type Kept = Arc<Mutex<Vec<(Vec<u8>, u64, Option<Page>)>>>;

/// Keeps all that it is told.
struct Notes(Kept);

impl Keep for Notes {
    fn page(&mut self, block: &[u8], number: u64, content: Option<&[u8]>) {
        let content = content.map(|content| content.try_into().unwrap());
        self.0.lock().unwrap().push((block.to_vec(), number, content));
    }
}

/// A stream as QEMU makes it.
struct Stream {
    bytes: Vec<u8>,
}

fn noise(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

impl Stream {
    fn new(blocks: &[(&str, u64)]) -> Stream {
        let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        let total: u64 = blocks.iter().map(|(_, size)| size).sum();
        bytes.extend((total | 0x04).to_be_bytes());
        for (name, size) in blocks {
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
            bytes.extend(size.to_be_bytes());
        }
        bytes.extend(0x10_u64.to_be_bytes());
        bytes.extend(b"\x7e\0\0\0\x02");
        Stream { bytes }
    }

    fn round(mut self, kind: u8, pages: &[(&str, u64, Option<Page>)]) -> Stream {
        self.bytes.extend([kind, 0, 0, 0, 2]);
        let mut current = "";
        for (name, number, content) in pages {
            let word = (number * 4_096) | if content.is_some() { 0x08 } else { 0x02 };
            if *name == current {
                self.bytes.extend((word | 0x20).to_be_bytes());
            } else {
                self.bytes.extend(word.to_be_bytes());
                self.bytes.push(name.len() as u8);
                self.bytes.extend(name.as_bytes());
                current = name;
            }
            match content {
                Some(content) => self.bytes.extend(content),
                None => self.bytes.push(0),
            }
        }
        self.bytes.extend(0x10_u64.to_be_bytes());
        self.bytes.extend(b"\x7e\0\0\0\x02");
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.extend(b"\x04\0\0\0\x05\x03apic");
        self.bytes.extend(noise(99));
        self.bytes
    }
}

fn encode(encoder: &mut PageEncoder, bytes: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
    let (mut chunks, mut held, mut rest) = (Vec::new(), Vec::new(), bytes);
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() || !held.is_empty() {
        let (piece, tail) = rest.split_at(rest.len().min(pieces.next().unwrap_or(usize::MAX).max(1)));
        held.extend_from_slice(piece);
        rest = tail;
        let mut chunk = Vec::new();
        let taken = encoder.encode(&held, rest.is_empty(), &mut chunk);
        assert!(taken > 0 || held.len() < MAX_ITEM_BYTES, "{} bytes are held", held.len());
        assert!(chunk.len() <= MAX_CHUNK_BYTES);
        held.drain(..taken);
        chunks.extend((taken > 0).then_some(chunk));
    }
    chunks
}

fn decode(decoder: &mut PageDecoder, chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    chunks.iter().for_each(|chunk| decoder.decode(chunk, &mut out).unwrap());
    out
}

const CACHE: u64 = 64 << 20;

fn through(bytes: &[u8], pieces: &[usize]) -> (PageCounts, usize) {
    let mut encoder = PageEncoder::new(CACHE, None, None);
    let chunks = encode(&mut encoder, bytes, pieces);
    let mut decoder = PageDecoder::new(CACHE, Box::new(NoBase), None);
    assert!(decode(&mut decoder, &chunks) == bytes);
    assert_eq!(decoder.counts(), encoder.counts());
    (encoder.counts(), chunks.iter().map(Vec::len).sum())
}

fn two_rounds() -> Vec<u8> {
    let mut changed = noise(1);
    changed[100..140].fill(7);
    Stream::new(&[("pc.ram", 64 << 12), ("vga", 8 << 12)])
        .round(
            2,
            &[
                ("pc.ram", 0, Some(noise(0))),
                ("pc.ram", 1, Some(noise(1))),
                ("pc.ram", 2, None),
                ("pc.ram", 3, None),
                ("vga", 0, Some(noise(1))),
                ("pc.ram", 9, Some(noise(9))),
            ],
        )
        .round(2, &[("pc.ram", 0, Some(noise(0))), ("pc.ram", 1, Some(changed)), ("vga", 4, Some(noise(9)))])
        .round(3, &[("pc.ram", 0, Some(noise(0)))])
        .end()
}

#[test]
fn pages_are_told_by_what_both_sides_hold() {
    let bytes = two_rounds();
    let (counts, length) = through(&bytes, &[usize::MAX]);
    assert_eq!(counts, PageCounts { zero: 2, same: 2, copy: 2, delta: 1, base: 0, full: 3 });
    assert!(length < 4 * PAGE_BYTES + 600, "{length}");
    // However it comes, in pieces of any length.
    for piece in [1, 7, 4_096, 5_000] {
        assert_eq!(through(&bytes, &[piece]).0, counts, "{piece}");
    }
}

#[test]
fn encoder_tells_when_the_stream_has_come_back_to_its_pages() {
    let rounds = [
        vec![("pc.ram", 0, Some(noise(1))), ("pc.ram", 2, None)],
        // The pages of another block begin anew, and are the first of it.
        vec![("vga", 0, Some(noise(2))), ("vga", 1, Some(noise(3)))],
        vec![("pc.ram", 3, Some(noise(4)))],
        vec![("pc.ram", 2, Some(noise(5)))],
    ];
    for passes in [false, true] {
        let mut encoder = PageEncoder::new(1 << 20, None, None);
        let (mut fed, mut stream, mut told) =
            (0, Stream::new(&[("pc.ram", 16_384), ("vga", 8_192)]), Vec::new());
        for pages in &rounds {
            stream = stream.round(2, pages);
            while fed < stream.bytes.len() {
                let read = if passes {
                    encoder.pass(&stream.bytes[fed..], false)
                } else {
                    encoder.encode(&stream.bytes[fed..], false, &mut Vec::new())
                };
                if read == 0 {
                    break;
                }
                fed += read;
            }
            told.push(encoder.returns());
        }
        assert_eq!(told, [false, false, false, true], "{passes}");
    }
}

#[test]
fn what_qemu_compresses_itself_is_passed_on_and_told() {
    let mut bytes = Stream::new(&[("pc.ram", 64 << 12)]).bytes;
    bytes.extend([2, 0, 0, 0, 2]);
    bytes.extend(0x40_u64.to_be_bytes());
    bytes.extend(b"\x06pc.ram\x01\0\x05delta");
    bytes.extend((0x1000_u64 | 0x120).to_be_bytes());
    bytes.extend(b"\0\0\0\x04zlib");
    bytes.extend((0x2000_u64 | 0x28).to_be_bytes());
    bytes.extend(noise(3));
    let mut encoder = PageEncoder::new(CACHE, None, None);
    let chunks = encode(&mut encoder, &bytes, &[64]);
    assert!(decode(&mut PageDecoder::new(CACHE, Box::new(NoBase), None), &chunks) == bytes);
    assert!(encoder.compressed() && encoder.reason().is_none());
    assert_eq!(encoder.counts(), PageCounts { full: 1, ..PageCounts::default() });
}

#[test]
fn stream_of_another_kind_is_passed_on_at_once() {
    for (bytes, reason) in [
        (&b"QEVM\0\0\0\x04rest"[..], Some("another kind or version of stream")),
        (&b"\x11\x22\x33\x44"[..], Some("another kind or version of stream")),
        (
            &b"QEVM\0\0\0\x03\x01\0\0\0\x02\x05slirp\0\0\0\0\0\0\0\x01"[..],
            Some("a live section that is not of ram"),
        ),
        (&b"QEVM\0\0\0\x03\x08\0\x06\0\x04abcd"[..], Some("postcopy")),
        (&b"QEVM\0\0\0\x03\x04\0\0\0\x02"[..], None),
    ] {
        let mut encoder = PageEncoder::new(CACHE, None, None);
        let mut chunk = Vec::new();
        assert_eq!(encoder.encode(bytes, false, &mut chunk), bytes.len());
        assert_eq!(encoder.reason(), reason);
        // Nothing is held back from then on.
        chunk.clear();
        assert_eq!(encoder.encode(b"x", false, &mut chunk), 1);
    }
}

/// Pages in memory.
struct Memory(Vec<(Vec<u8>, Vec<Page>)>);

impl BasePages for Memory {
    fn read(&mut self, name: &[u8], number: u64, page: &mut Page) -> Result<(), VmError> {
        *page = self.0.iter().find(|(block, _)| block == name).unwrap().1[number as usize];
        Ok(())
    }

    fn read_at(&mut self, block: u16, number: u32, page: &mut Page) -> Result<(), VmError> {
        *page = self.0[usize::from(block)].1[number as usize];
        Ok(())
    }
}

#[test]
fn pages_of_the_base_are_not_sent_and_a_base_that_has_changed_is_found() {
    let held: Vec<Page> = (0..8).map(noise).collect();
    let index = || {
        let mut index = BaseIndex::new();
        index.push(b"pc.ram".to_vec(), held.iter().map(|page| Digest::of(page)).collect());
        index
    };
    let bytes = Stream::new(&[("pc.ram", 64 << 12)])
        .round(
            2,
            &[
                ("pc.ram", 0, Some(noise(0))),
                ("pc.ram", 1, Some(noise(1))),
                ("pc.ram", 30, Some(noise(5))),
                ("pc.ram", 31, Some(noise(77))),
            ],
        )
        .end();
    let kept = Kept::default();
    let mut encoder = PageEncoder::new(CACHE, Some(index()), Some(Box::new(Notes(Arc::clone(&kept)))));
    let chunks = encode(&mut encoder, &bytes, &[usize::MAX]);
    assert_eq!(encoder.counts(), PageCounts { base: 3, full: 1, ..PageCounts::default() });
    assert_eq!(index().pages(), 8);
    let at_peer = Kept::default();
    let memory = Memory(vec![(b"pc.ram".to_vec(), held.clone())]);
    let keep = Notes(Arc::clone(&at_peer));
    let mut decoder = PageDecoder::new(CACHE, Box::new(memory), Some(Box::new(keep)));
    assert!(decode(&mut decoder, &chunks) == bytes);
    // Both sides keep the same, in the same order.
    assert_eq!(kept.lock().unwrap().len(), 4);
    assert!(*kept.lock().unwrap() == *at_peer.lock().unwrap());
    let mut other = held;
    other[1][17] ^= 1;
    let memory = Memory(vec![(b"pc.ram".to_vec(), other)]);
    let mut decoder = PageDecoder::new(CACHE, Box::new(memory), None);
    let mut out = b"before".to_vec();
    assert!(matches!(decoder.decode(&chunks[0], &mut out), Err(VmError::Differs { .. })));
    assert_eq!(out, b"before");
}

#[test]
fn cache_is_bounded_and_both_sides_give_up_the_same_pages() {
    let pages: Vec<_> = (0..600).map(|at| ("pc.ram", at * 7919 % 90, Some(noise(at * 7919 % 90)))).collect();
    let bytes = Stream::new(&[("pc.ram", 4_096 << 12)]).round(2, &pages).round(3, &pages).end();
    for cache in [0, 4_192 * 2, 4_192 * 40] {
        let mut encoder = PageEncoder::new(cache, None, None);
        let chunks = encode(&mut encoder, &bytes, &[100_000]);
        assert!(decode(&mut PageDecoder::new(cache, Box::new(NoBase), None), &chunks) == bytes, "{cache}");
        let full = encoder.counts().full;
        assert!(if cache < 100_000 { full <= 1_200 } else { full < 1_100 }, "{full} with {cache}");
    }
}

/// Streams that are mostly what QEMU makes, with damage.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let page = prop_oneof![
        3 => (0_u64..6).prop_map(|seed| Some(noise(seed))),
        1 => (0_u64..6, 0_usize..4_096).prop_map(|(seed, at)| {
            let mut page = noise(seed);
            page[at] ^= 0x55;
            Some(page)
        }),
        1 => Just(None),
    ];
    let names = prop_oneof![4 => Just("pc.ram"), 1 => Just("vga.vram")];
    let pages = prop::collection::vec((names, 0_u64..12, page), 0..30);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (pages, damage, any::<bool>()).prop_map(|(pages, damage, cut)| {
        let stream = Stream::new(&[("pc.ram", 64 << 12), ("vga.vram", 16 << 12)]);
        let mut bytes = stream.round(2, &pages).round(3, &pages).end();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if cut {
                bytes.truncate(at + 1);
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_stream_comes_out_as_it_was(
        bytes in prop_oneof![4 => streams(), 1 => prop::collection::vec(any::<u8>(), 0..9_000)],
        pieces in prop::collection::vec((1_usize..20_000, any::<bool>()), 1..5),
        cache in prop_oneof![Just(0_u64), Just(4_192 * 3), Just(CACHE)],
    ) {
        let (here, there) = (Kept::default(), Kept::default());
        let mut encoder = PageEncoder::new(cache, None, Some(Box::new(Notes(Arc::clone(&here)))));
        let keep = Some(Box::new(Notes(Arc::clone(&there))) as Box<dyn Keep>);
        let mut decoder = PageDecoder::new(cache, Box::new(NoBase), keep);
        let (mut out, mut held, mut rest) = (Vec::new(), Vec::new(), &bytes[..]);
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() || !held.is_empty() {
            let (piece, passes) = *pieces.next().unwrap();
            let (piece, tail) = rest.split_at(rest.len().min(piece));
            held.extend_from_slice(piece);
            rest = tail;
            let mut chunk = Vec::new();
            let taken = if passes {
                let taken = encoder.pass(&held, rest.is_empty());
                decoder.pass(&held[..taken]);
                out.extend_from_slice(&held[..taken]);
                taken
            } else {
                let taken = encoder.encode(&held, rest.is_empty(), &mut chunk);
                if taken > 0 {
                    decoder.decode(&chunk, &mut out).unwrap();
                }
                taken
            };
            prop_assert!(taken > 0 || held.len() < MAX_ITEM_BYTES);
            held.drain(..taken);
        }
        prop_assert!(out == bytes);
        // Whatever was passed on as it is, both sides have seen the same pages.
        prop_assert!(*here.lock().unwrap() == *there.lock().unwrap());
        prop_assert_eq!(encoder.counts(), decoder.counts());
    }

    #[test]
    fn altered_chunks_are_refused_or_give_the_same_bytes(
        bytes in streams(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        length in any::<Option<prop::sample::Index>>(),
    ) {
        let mut chunks = encode(&mut PageEncoder::new(CACHE, None, None), &bytes, &[30_000]);
        prop_assume!(!chunks.is_empty());
        let which = at.index(chunks.len());
        let chunk = &mut chunks[which];
        let place = at.index(chunk.len());
        chunk[place] = value;
        if let Some(length) = length {
            let length = length.index(chunk.len());
            chunk.truncate(length);
        }
        let (mut decoder, mut out) = (PageDecoder::new(CACHE, Box::new(NoBase), None), Vec::new());
        let all = chunks.iter().all(|chunk| decoder.decode(chunk, &mut out).is_ok());
        prop_assert!(bytes.starts_with(&out));
        prop_assert!(!all || out == bytes);
    }
}

/// Chunks that were made by hand as `docs/format.md` has them; `tests/oracle/making.py` says what they are.
#[test]
fn golden_chunks_are_read_as_the_stream_that_they_stand_for() {
    const CHUNKS: &[u8] = include_bytes!("../../../tests/golden/relay/chunks.bin");
    const MIGRATION: &[u8] = include_bytes!("../../../tests/golden/relay/migration.bin");
    let base = vec![
        (b"pc.ram".to_vec(), (0..3).map(noise).collect()),
        (b"vga".to_vec(), (3..5).map(noise).collect()),
    ];
    let mut decoder = PageDecoder::new(3 * 4_192, Box::new(Memory(base)), None);
    let (mut rest, mut out) = (CHUNKS, Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (chunk, after) = tail.split_at(u32::from_le_bytes(*length) as usize);
        decoder.decode(chunk, &mut out).unwrap();
        rest = after;
    }
    assert!(out == MIGRATION);
    assert_eq!(decoder.counts(), PageCounts { zero: 3, same: 1, copy: 1, delta: 1, base: 3, full: 3 });
}
