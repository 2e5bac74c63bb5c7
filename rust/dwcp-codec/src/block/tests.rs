use super::*;
use crate::codec::Codec;
use crate::probe::tests::{noise, text, weights};
use proptest::prelude::*;

const ZSTD: Codec = Codec::Zstd { level: 1 };

fn roundtrip(codec: Codec, src: &[u8], base: Option<&[u8]>) -> (BlockKind, CodecId, usize) {
    let mut encoder = BlockEncoder::new();
    let block = encoder.encode(codec, src, base).unwrap();
    assert!(block.wire.len() <= src.len(), "{codec} made {} bytes of {}", block.wire.len(), src.len());
    let mut back = vec![0xee; src.len()];
    BlockDecoder::new().decode(block.kind, block.codec, block.wire, base, &mut back).unwrap();
    assert!(back == src);
    (block.kind, block.codec, block.wire.len())
}

#[test]
fn coders_move_between_threads() {
    fn moves<T: Send>() {}
    moves::<BlockEncoder>();
    moves::<BlockDecoder>();
}

#[test]
fn constant_block_is_one_byte_even_with_a_base() {
    for codec in [Codec::None, Codec::Lz4, ZSTD] {
        let src = vec![9; 70_000];
        assert_eq!(roundtrip(codec, &src, None), (BlockKind::Fill, CodecId::None, 1));
        assert_eq!(roundtrip(codec, &src, Some(&noise(1, 70_000))), (BlockKind::Fill, CodecId::None, 1));
    }
}

#[test]
fn incompressible_block_is_the_source_itself() {
    let src = noise(5, 100_000);
    for base in [None, Some(&noise(6, 100_000)[..])] {
        let mut encoder = BlockEncoder::new();
        let block = encoder.encode(ZSTD, &src, base).unwrap();
        assert_eq!((block.kind, block.codec), (BlockKind::Plain, CodecId::None));
        assert!(std::ptr::eq(block.wire, &src[..]));
    }
}

#[test]
fn block_that_changed_little_is_sent_as_its_difference() {
    let base = noise(5, 1 << 20);
    let mut src = base.clone();
    src[77_777] ^= 1;
    for codec in [Codec::None, Codec::Lz4, ZSTD] {
        let (kind, codec, length) = roundtrip(codec, &src, Some(&base));
        assert_eq!((kind, codec), (BlockKind::Difference, CodecId::None));
        assert!(length < 500, "{length}");
    }
}

#[test]
fn unrelated_base_does_not_stop_plain_compression() {
    let (src, base) = (text(100_000), noise(5, 100_000));
    assert_eq!(roundtrip(ZSTD, &src, Some(&base)).0, BlockKind::Plain);
    assert_eq!(roundtrip(Codec::Lz4, &src, Some(&base)).1, CodecId::Lz4);
    // An equal-natured base makes a difference that compresses, but worse than the block itself does.
    let (kind, _, length) = roundtrip(ZSTD, &src, Some(&text(100_100)[50..]));
    assert!(kind == BlockKind::Plain || length < 60_000);
    let (kind, codec, length) = roundtrip(ZSTD, &weights(1 << 20), None);
    assert_eq!((kind, codec), (BlockKind::Plain, CodecId::Zstd));
    assert!(length < 900_000, "{length}");
}

#[test]
fn malformed_fill_and_difference_without_base_are_refused() {
    let mut dst = [0; 8];
    let mut decoder = BlockDecoder::new();
    for (codec, wire) in [(CodecId::None, &b""[..]), (CodecId::None, b"ab"), (CodecId::Lz4, b"a")] {
        let refused = decoder.decode(BlockKind::Fill, codec, wire, None, &mut dst);
        assert_eq!(refused, Err(CodecError::FillBlock { length: wire.len(), codec }));
    }
    let refused = decoder.decode(BlockKind::Difference, CodecId::None, &[0; 8], None, &mut dst);
    assert_eq!(refused, Err(CodecError::MissingBase));
    assert_eq!(BlockKind::try_from(6), Err(CodecError::UnknownBlockKind { kind: 6, max: 5 }));
}

proptest! {
    #[test]
    fn every_block_is_given_back(
        src in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3_000),
            (0..9_000_usize).prop_map(text),
            (any::<u8>(), 0..3_000_usize).prop_map(|(byte, length)| vec![byte; length]),
        ],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        base_length in prop::option::of(0..9_000_usize),
        codec in prop::sample::select(vec![Codec::None, Codec::Lz4, ZSTD, Codec::Zstd { level: 9 }]),
        width in prop::sample::select(&WIDTHS[..]),
    ) {
        let base = base_length.map(|length| {
            let mut base = src.clone();
            for (at, byte) in changes.iter().filter(|_| !src.is_empty()) {
                base[at.index(src.len())] = *byte;
            }
            base.resize(length, 1);
            base
        });
        let mut encoder = BlockEncoder::new();
        let block = encoder.encode_elements(codec, &src, base.as_deref(), Some(width)).unwrap();
        prop_assert!(block.wire.len() <= src.len());
        let mut back = vec![0xee; src.len()];
        let mut decoder = BlockDecoder::new();
        decoder
            .decode(block.kind, block.codec, block.wire, base.as_deref(), &mut back)
            .unwrap();
        prop_assert_eq!(back, src);
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_decoder(
        wire in prop::collection::vec(any::<u8>(), 0..300),
        base in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        length in 0..5_000_usize,
    ) {
        let mut dst = vec![0; length];
        for kind in BlockKind::ALL {
            for codec in [CodecId::None, CodecId::Lz4, CodecId::Zstd] {
                let _ = BlockDecoder::new().decode(kind, codec, &wire, base.as_deref(), &mut dst);
            }
        }
    }
}
