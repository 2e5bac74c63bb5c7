//! Matching and segment coding together, through the public API.

use std::ops::Range;

use dwcp_codec::CodecError;
use dwcp_codec::matcher::{Found, Index, Memory, Origin, Origins, Piece, Segment};
use dwcp_codec::segments::{Bounds, MAX_BLOCK_BYTES, MAX_CONTEXT_BYTES, SegmentCoder, SegmentKind};
use proptest::prelude::*;

/// Memory of whose target only a range is usable.
struct Fenced<'a> {
    memory: Memory<'a>,
    allowed: Range<u64>,
}

impl Origins for Fenced<'_> {
    type Error = CodecError;

    fn usable(&self, origin: Origin, offset: u64) -> Range<u64> {
        match origin {
            Origin::Base => self.memory.usable(origin, offset),
            Origin::Target if self.allowed.contains(&offset) => self.allowed.clone(),
            Origin::Target => 0..0,
        }
    }

    fn bytes(&mut self, origin: Origin, offset: u64, length: usize) -> Result<&[u8], CodecError> {
        self.memory.bytes(origin, offset, length)
    }
}

/// Bytes that do not repeat.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

#[derive(Clone, Debug)]
enum Edit {
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    Replace(usize, Vec<u8>),
    Repeat(usize, usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0..200_000_usize;
    let bytes = prop::collection::vec(any::<u8>(), 1..300);
    let edit = prop_oneof![
        (at.clone(), bytes.clone()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at.clone(), 1..20_000_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (at.clone(), bytes).prop_map(|(at, bytes)| Edit::Replace(at, bytes)),
        (at.clone(), at, 1..30_000_usize).prop_map(|(from, to, length)| Edit::Repeat(from, to, length)),
    ];
    prop::collection::vec(edit, 0..12)
}

fn edit(bytes: &mut Vec<u8>, edit: &Edit) {
    let clip = |at: usize| at.min(bytes.len());
    match edit {
        Edit::Insert(at, more) => drop(bytes.splice(clip(*at)..clip(*at), more.iter().copied())),
        Edit::Delete(at, length) => drop(bytes.drain(clip(*at)..clip(at + length))),
        Edit::Replace(at, more) => drop(bytes.splice(clip(*at)..clip(at + more.len()), more.iter().copied())),
        Edit::Repeat(from, to, length) => {
            let copied = bytes[clip(*from)..clip(from + length)].to_vec();
            let to = clip(*to);
            drop(bytes.splice(to..to, copied));
        }
    }
}

/// Pieces are in order, hold the bytes of the block, and are as long as they can be.
fn check_pieces(found: &Found, base: &[u8], target: &[u8], start: usize, block: &[u8], allowed: &Range<u64>) {
    let mut end = 0;
    for Piece { at, segment } in found.pieces() {
        let (at, length) = (*at as usize, segment.length as usize);
        assert!(at >= end, "pieces overlap");
        let (origin, bounds) = match segment.origin {
            Origin::Base => (base, 0..base.len()),
            Origin::Target => (target, allowed.start as usize..start.min(allowed.end as usize)),
        };
        let offset = segment.offset as usize;
        assert!(offset >= bounds.start && offset + length <= bounds.end, "outside what is usable");
        assert!(origin[offset..offset + length] == block[at..at + length], "other bytes");
        let longer = |there: usize, here: usize| {
            bounds.contains(&there) && here < block.len() && origin[there] == block[here]
        };
        assert!(!longer(offset + length, at + length), "could go on");
        assert!(at == end || !longer(offset.wrapping_sub(1), at - 1), "could begin before");
        end = at + length;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn edited_bytes_come_back_and_are_told_the_same_each_time(
        seed in any::<u64>(),
        alphabet in prop_oneof![Just(256_u16), Just(2), Just(16)],
        edits in edits(),
        block_log in 16..=18_u32,
        level in prop_oneof![Just(1), Just(3), Just(-5)],
        fence in 0..4_u64,
    ) {
        let base: Vec<u8> = noise(200_000, seed).iter().map(|byte| (u16::from(*byte) % alphabet) as u8).collect();
        let mut target = base.clone();
        edits.iter().for_each(|one| edit(&mut target, one));
        let allowed = 0..fence * 65_536;
        let block_bytes = 1_usize << block_log;
        let mut coders = [SegmentCoder::new(), SegmentCoder::new()];
        let mut indexes = [(); 2].map(|()| Index::new(base.len() as u64, target.len() as u64));
        indexes.iter_mut().for_each(|index| index.add(Origin::Base, 0, &base));
        for (number, block) in target.chunks(block_bytes).enumerate() {
            let start = number * block_bytes;
            let memory = Memory { base: &base, target: &target };
            let mut origins = Fenced { memory, allowed: allowed.clone() };
            let mut payloads = Vec::new();
            let mut found = Found::default();
            for (index, coder) in indexes.iter_mut().zip(&mut coders) {
                index.find(start as u64, block, &mut origins, &mut found).unwrap();
                check_pieces(&found, &base, &target, start, block, &allowed);
                let coded = coder.encode(level, start as u64, block, &found, block.len(), &mut origins).unwrap();
                payloads.push(coded.map(|(kind, payload)| (kind, payload.to_vec())));
                index.add(Origin::Target, start as u64, block);
            }
            prop_assert_eq!(&payloads[0], &payloads[1]);
            let Some((kind, payload)) = &payloads[0] else { continue };
            let bounds = Bounds { base_size: base.len() as u64, block_offset: start as u64, block_bytes: block.len() };
            let told = coders[0].parse(*kind, payload, bounds).unwrap();
            prop_assert!(told.iter().zip(found.pieces()).all(|(segment, piece)| *segment == piece.segment));
            let mut made = vec![0xaa; block.len()];
            coders[1].decode(*kind, payload, bounds.base_size, start as u64, &mut origins, &mut made).unwrap();
            prop_assert!(made == block);
        }
    }
}

#[test]
fn a_shift_of_any_length_leaves_only_the_inserted_bytes_to_tell() {
    let base = noise(1 << 20, 1);
    for inserted in [1_usize, 7, 4096, 65_537] {
        let mut target = base[..300_001].to_vec();
        target.extend(noise(inserted, 2));
        target.extend(&base[300_001..]);
        let mut index = Index::new(base.len() as u64, target.len() as u64);
        index.add(Origin::Base, 0, &base);
        let mut found = Found::default();
        let mut memory = Memory { base: &base, target: &target };
        index.find(0, &target, &mut memory, &mut found).unwrap();
        assert_eq!(found.covered_bytes(), base.len(), "{inserted}");
        let mut coder = SegmentCoder::new();
        let (kind, payload) = coder.encode(1, 0, &target, &found, usize::MAX, &mut memory).unwrap().unwrap();
        assert_eq!(kind, SegmentKind::Splice);
        assert!(payload.len() <= inserted + 30, "{inserted}: {}", payload.len());
    }
}

#[test]
fn content_that_came_before_in_the_target_is_copied() {
    let block = noise(100_000, 3);
    let target = [block.as_slice(), &block].concat();
    let mut memory = Memory { base: &[], target: &target };
    let mut index = Index::new(0, target.len() as u64);
    let mut found = Found::default();
    index.find(0, &block, &mut memory, &mut found).unwrap();
    index.add(Origin::Target, 0, &block);
    index.find(100_000, &block, &mut memory, &mut found).unwrap();
    assert!(found.target_bytes() > 0);
    let mut coder = SegmentCoder::new();
    let (kind, payload) = coder.encode(1, 100_000, &block, &found, 100, &mut memory).unwrap().unwrap();
    assert_eq!(kind, SegmentKind::Copy);
    let bounds = Bounds { base_size: 0, block_offset: 100_000, block_bytes: block.len() };
    let whole = Segment { origin: Origin::Target, offset: 0, length: 100_000 };
    let payload = payload.to_vec();
    assert_eq!(coder.parse(kind, &payload, bounds), Ok(vec![whole]));
}

#[test]
fn what_would_not_be_shorter_than_the_limit_is_not_told() {
    let (base, block) = (noise(100_000, 4), noise(100_000, 5));
    let mut memory = Memory { base: &base, target: &block };
    let mut coder = SegmentCoder::new();
    assert_eq!(coder.encode(1, 0, &block, &Found::default(), usize::MAX, &mut memory), Ok(None));
}

#[test]
fn an_index_is_bounded_whatever_the_sizes() {
    for log in [0, 20, 30, 40, 47, 62] {
        assert!(Index::new(1 << log, 1 << log).memory_bytes() <= 64 << 20, "{log}");
    }
    let bytes = noise(1 << 20, 6);
    let mut index = Index::new(i64::MAX as u64, i64::MAX as u64);
    index.add(Origin::Base, 0, &bytes);
    let mut found = Found::default();
    index.find(0, &bytes, &mut Memory { base: &bytes, target: &bytes }, &mut found).unwrap();
    assert_eq!(found.covered_bytes(), 0);
}

/// Lists of these numbers, stored, and bytes behind them.
fn payload(numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let lists = encode_numbers(numbers);
    [&encode_numbers(&[lists.len() as u64]), &[0_u8][..], &lists, rest].concat()
}

fn encode_numbers(numbers: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    for &number in numbers {
        let mut number = number;
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }
    out
}

#[test]
fn payloads_that_lie_are_refused() {
    use SegmentKind::{Copy, Splice};
    const FAR: u64 = u64::MAX;
    let refused: &[(&str, SegmentKind, &[u64], &[u8])] = &[
        ("nothing", Copy, &[], &[]),
        ("no piece in a copy", Copy, &[0], &[]),
        ("a copy with a gap", Copy, &[1, 1, 0, 2 * 99], &[]),
        ("a copy that ends early", Copy, &[1, 0, 0, 2 * 99], &[]),
        ("a copy past the block", Copy, &[1, 0, 0, 2 * 101], &[]),
        ("bytes behind a copy", Copy, &[1, 0, 0, 2 * 100, 0], &[]),
        ("a segment of no bytes", Copy, &[2, 0, 0, 0, 0, 0, 2 * 100], &[]),
        ("a segment past the base", Copy, &[1, 0, 2 * 901, 2 * 100], &[]),
        ("a segment before the base", Copy, &[1, 0, 2 * 50 + 1, 2 * 100], &[]),
        ("a segment far before the base", Copy, &[1, 0, FAR, 2 * 100], &[]),
        ("a segment of the block itself", Copy, &[1, 0, 0, 2 * 100 + 1], &[]),
        ("more pieces than may be", Splice, &[65_537], &[]),
        ("fewer pieces than said", Splice, &[2, 0, 0, 0, 0, 2 * 50], &[]),
        ("a gap past the block", Splice, &[1, 101, 0, 2], &[]),
        ("a length that overflows", Splice, &[1, 0, 0, FAR], &[]),
        ("more contexts than may be", Splice, &[0, 1025], &[]),
        ("a context past the base", Splice, &[0, 1, 2 * 1000, 2], &[1, 0]),
        ("contexts that are too long", Splice, &[0, 1, 0, 2 * (MAX_CONTEXT_BYTES as u64 + 1)], &[1, 0]),
        ("no fresh bytes", Splice, &[0, 0], &[]),
        ("an unknown coder", Splice, &[0, 0], &[2; 50]),
        ("contexts of stored bytes", Splice, &[1, 0, 0, 2 * 90, 1, 0, 2], &[0; 11]),
        ("stored bytes that are too few", Splice, &[1, 0, 0, 2 * 90, 0], &[0; 10]),
        ("stored bytes that are too many", Splice, &[1, 0, 0, 2 * 90, 0], &[0; 12]),
        ("a frame that is none", Splice, &[1, 0, 0, 2 * 90, 0], &[1; 11]),
        ("a payload as long as the block", Splice, &[1, 0, 0, 2, 0], &[0; 95]),
    ];
    // 100 bytes at 50 of the target; the base has 1000.
    let base = noise(1000, 7);
    let decode = |kind, payload: &[u8]| {
        let mut memory = Memory { base: &base, target: &base[..50] };
        let mut made = vec![0; 100];
        SegmentCoder::new().decode(kind, payload, 1000, 50, &mut memory, &mut made).map(|()| made)
    };
    assert!(decode(Copy, &payload(&[1, 0, 0, 2 * 100], &[])).is_ok());
    assert!(decode(Splice, &payload(&[1, 0, 0, 2 * 90, 0], &[0; 11])).is_ok());
    for (what, kind, numbers, rest) in refused {
        assert!(decode(*kind, &payload(numbers, rest)).is_err(), "{what}");
    }
    let refused: &[(&str, &[u8])] = &[
        ("a number in more bytes than it needs", &[5, 0, 0x81, 0, 0, 0, 0xc8, 1]),
        ("a number without an end", &[0xff; 40]),
        ("a number of 65 bits", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
        ("lists longer than the block", &[101, 1, 0]),
        ("lists past the payload", &[9, 0, 1, 0, 0, 0xc8, 1]),
        ("lists without a coder", &[5]),
        ("lists of an unknown coder", &[5, 3, 1, 0, 0, 0xc8, 1]),
        ("lists with something behind them", &[6, 0, 1, 0, 0, 0xc8, 1, 0]),
        ("a frame of lists that is none", &[5, 2, 4, 1, 2, 3, 4]),
    ];
    for (what, payload) in refused {
        assert!(decode(Copy, payload).is_err(), "{what}");
    }
    // One repeated byte: no pieces and no contexts, and 100 fresh bytes are too long for the payload.
    assert!(matches!(decode(Splice, &[2, 1, 0, 0, 7]), Err(CodecError::RawLength { expected: 100 })));
}

#[test]
fn frames_that_decode_to_another_length_are_refused() {
    let (base, mut target) = (noise(50_000, 8), noise(50_000, 8));
    let fresh = b"fresh bytes that zstd makes smaller ".repeat(20);
    target.splice(20_000..20_000, fresh);
    let mut memory = Memory { base: &base, target: &target };
    let mut index = Index::new(base.len() as u64, target.len() as u64);
    index.add(Origin::Base, 0, &base);
    let mut found = Found::default();
    index.find(0, &target, &mut memory, &mut found).unwrap();
    let mut coder = SegmentCoder::new();
    let (kind, payload) = coder.encode(1, 0, &target, &found, usize::MAX, &mut memory).unwrap().unwrap();
    let payload = payload.to_vec();
    let mut decode = |payload: &[u8], length: usize| {
        coder.decode(kind, payload, base.len() as u64, 0, &mut memory, &mut vec![0; length])
    };
    assert_eq!(decode(&payload, target.len()), Ok(()));
    for length in [target.len() - 1, target.len() + 1, MAX_BLOCK_BYTES + 1] {
        assert!(decode(&payload, length).is_err(), "{length}");
    }
    for cut in 0..payload.len() {
        assert!(decode(&payload[..cut], target.len()).is_err(), "cut at {cut}");
    }
    let twice = [payload.as_slice(), &payload[payload.len() - 20..]].concat();
    assert!(decode(&twice, target.len()).is_err());
}
