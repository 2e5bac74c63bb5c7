//! The patches in `tests/golden/patches`, which a second decoder reads, too: see `tests/test_oracle_patches.py`.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use dwcp_codec::Dictionary;
use dwcp_codec::block::BlockKind;
use dwcp_codec::codec::{Codec, CodecId};
use dwcp_codec::patch::{EntryKind, MIN_BLOCK_BYTES, Patch, PatchOptions, encode};

const BLOCK: usize = MIN_BLOCK_BYTES as usize;

/// Content that the text blocks have in common; `tests/test_oracle_patches.py` has the same.
static DICTIONARY: LazyLock<Arc<Dictionary>> = LazyLock::new(|| {
    Arc::new(
        Dictionary::new(b"lane block frame entry digest base of the lane of the block ".to_vec())
            .expect("any content will do"),
    )
});

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/patches")
}

fn noise(mut state: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn text(seed: u64, length: usize) -> Vec<u8> {
    let words = ["lane ", "block ", "frame ", "entry ", "digest ", "base ", "of ", "the "];
    let noise = noise(seed, length);
    noise.iter().flat_map(|byte| words[usize::from(byte % 8)].bytes()).take(length).collect()
}

/// Weights in bf16.
fn weights(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = noise(seed, length);
    for pair in bytes.chunks_exact_mut(2) {
        // Few mantissas, for the files to be small.
        pair[0] &= 0xe0;
        pair[1] = 0x3c + (pair[1].trailing_zeros() as u8) / 2;
    }
    bytes
}

/// Adds to some bf16 weights: to one in `every` on average.
fn train(weights: &mut [u8], every: u64, seed: u64) {
    let steps = noise(seed, weights.len() / 2 * 8);
    for (pair, step) in weights.as_chunks_mut().0.iter_mut().zip(steps.as_chunks().0) {
        let step = u64::from_le_bytes(*step);
        if step % every == 0 {
            let up = u16::from_le_bytes(*pair).wrapping_add(((step >> 32) % 5 + 1) as u16);
            *pair = up.to_le_bytes();
        }
    }
}

fn versions() -> Vec<Vec<u8>> {
    let first = [
        text(1, BLOCK),
        vec![0; BLOCK],
        weights(2, BLOCK),
        weights(3, BLOCK),
        weights(4, BLOCK),
        text(5, BLOCK),
        text(6, BLOCK),
        noise(7, 1_001),
    ]
    .concat();
    let mut second = first.clone();
    train(&mut second[2 * BLOCK..3 * BLOCK], 100, 8);
    train(&mut second[3 * BLOCK..4 * BLOCK], 3, 9);
    train(&mut second[4 * BLOCK..5 * BLOCK], 1, 10);
    for at in [17, 3_000, 40_000] {
        second[5 * BLOCK + at..5 * BLOCK + at + 50].copy_from_slice(&noise(at as u64, 50));
    }
    second[7 * BLOCK + 1_000] ^= 1;
    // Moved in the base, moved with changes, made of the block before, and filled.
    let mut third = second.clone();
    third.truncate(7 * BLOCK);
    third.extend(&second[100..BLOCK + 100]);
    third.extend(&second[5 * BLOCK + 300..6 * BLOCK + 300]);
    third[8 * BLOCK + 5_000..8 * BLOCK + 5_200].copy_from_slice(&text(11, 200));
    third.extend(text(12, BLOCK));
    third.extend_from_within(9 * BLOCK + 10..10 * BLOCK);
    third.extend(text(13, 200));
    third.extend([7; BLOCK]);
    // Moved by a byte for a while, and back.
    let mut fourth = first.clone();
    let moved = 5 * BLOCK + 10_000;
    fourth.copy_within(moved..moved + 4_000, moved + 1);
    vec![Vec::new(), first, second, third, fourth]
}

/// The name of a golden patch, the versions it is between, and its options.
fn patches() -> [(&'static str, usize, usize, PatchOptions<'static>); 8] {
    let zstd = PatchOptions { block_bytes: Some(MIN_BLOCK_BYTES), ..PatchOptions::default() };
    let typed = PatchOptions { width: Some(2), ..zstd };
    let lz4 = PatchOptions { codec: Codec::Lz4, search: false, ..zstd };
    let in_place = PatchOptions { search: false, ..zstd };
    let dictionary = PatchOptions { dictionary: Some(&DICTIONARY), search: false, ..zstd };
    [
        ("full-dictionary", 0, 1, dictionary),
        ("full", 0, 1, zstd),
        ("full-lz4", 0, 1, lz4),
        ("step-typed", 1, 2, typed),
        ("step", 1, 2, zstd),
        ("moved", 2, 3, zstd),
        ("shrunk", 3, 1, zstd),
        ("shifted", 1, 4, in_place),
    ]
}

#[test]
#[ignore = "writes the golden files"]
fn write_golden() {
    let versions = versions();
    fs::create_dir_all(directory()).unwrap();
    for (name, from, to, options) in patches() {
        let patch = encode(&versions[from], &versions[to], &options).unwrap();
        fs::write(directory().join(name).with_extension("dwcd"), patch).unwrap();
    }
}

#[test]
fn golden_patches_lead_from_version_to_version_in_every_way_there_is() {
    let versions = versions();
    let mut kinds = Vec::new();
    for (name, from, to, _) in patches() {
        let bytes = fs::read(directory().join(name).with_extension("dwcd")).unwrap();
        let patch = Patch::parse(&bytes).unwrap();
        let patch = patch.with_dictionary(Some(&DICTIONARY)).unwrap();
        kinds.extend(patch.entries().iter().map(|entry| (entry.kind, entry.codec)));
        let mut made = vec![0xee; patch.target_size() as usize];
        patch.apply(&versions[from][..], &mut made, 1).unwrap();
        assert!(made == versions[to], "{name}");
    }
    let blocks = BlockKind::ALL.map(|kind| (EntryKind::Block(kind), CodecId::None));
    let plain = [CodecId::Lz4, CodecId::Zstd, CodecId::ZstdDictionary]
        .map(|codec| (EntryKind::Block(BlockKind::Plain), codec));
    let others = [EntryKind::Same, EntryKind::Copy, EntryKind::Splice].map(|kind| (kind, CodecId::None));
    for kind in [&blocks[..], &plain, &others].concat() {
        assert!(kinds.contains(&kind), "{kind:?} is missing");
    }
}
