use super::planes::append as append_planes;
use super::runs::RunsEncoder;
use super::sparse::SparseEncoder;
use super::values::{ValueScratch, ValueWriter, change_mantissa, read};
use super::*;
use crate::codec::{Codec, Compressor, Decompressor};
use crate::kernel::planes::Transform;
use crate::kernel::{Level, lines};
use crate::probe::tests::{noise, text, weights};
use crate::select::Action;
use crate::stream::{Content, PayloadReader, StreamEncoder};
use proptest::prelude::*;

const ZSTD: Codec = Codec::Zstd { level: 1 };

fn roundtrip(
    codec: Codec,
    src: &[u8],
    base: Option<&[u8]>,
    width: Option<u8>,
) -> (BlockKind, CodecId, usize) {
    let mut encoder = BlockEncoder::new();
    let block = encoder.encode_elements(codec, src, base, width).unwrap();
    assert!(block.wire.len() <= src.len(), "{codec} made {} bytes of {}", block.wire.len(), src.len());
    let mut back = vec![0xee; src.len()];
    let mut decoder = BlockDecoder::new();
    decoder.decode(block.kind, block.codec, block.wire, base, &mut back).unwrap();
    assert!(back == src);
    (block.kind, block.codec, block.wire.len())
}

/// Every form in which a block against `base` can be coded, whatever suits it.
fn all_forms(src: &[u8], base: &[u8]) -> Vec<(BlockKind, Vec<u8>)> {
    let mut dirty = vec![0; lines::words_for(src.len())];
    lines::dirty_lines(Level::detected(), base, src, &mut dirty);
    let mut streams = StreamEncoder::default();
    let mut forms = vec![(BlockKind::Runs, vec![])];
    RunsEncoder::default().append(src, base, &dirty, &mut streams, &mut forms[0].1).unwrap();
    let mut sparse = SparseEncoder::default();
    for width in [1, 2, 4, 8] {
        let mut payload = vec![];
        sparse.append(width, src, base, &dirty, &mut streams, &mut payload).unwrap();
        forms.push((BlockKind::Sparse, payload));
        for (kind, transform) in [
            (BlockKind::Planes, Transform::Keep),
            (BlockKind::Planes, Transform::Rotate),
            (BlockKind::Difference, Transform::Xor),
            (BlockKind::Difference, Transform::Zigzag),
        ] {
            let mut payload = vec![];
            append_planes(transform, width, src, base, &mut vec![], &mut streams, &mut payload).unwrap();
            forms.push((kind, payload));
        }
    }
    forms
}

/// A block and a base of its length, which differs from it.
fn pairs() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..2_000),
        (1..2_000_usize, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..200_usize), 0..40);
    (bytes, edits, any::<prop::sample::Index>()).prop_map(|(base, edits, certain)| {
        let mut src = base.clone();
        for (at, byte, count) in edits {
            let at = at.index(src.len());
            src[at..].iter_mut().take(count).for_each(|b| *b = b.wrapping_mul(3).wrapping_add(byte));
        }
        let at = certain.index(src.len());
        src[at] = !base[at];
        (src, base)
    })
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
        assert_eq!(roundtrip(codec, &src, None, None), (BlockKind::Fill, CodecId::None, 1));
        assert_eq!(
            roundtrip(codec, &src, Some(&noise(1, 70_000)), None),
            (BlockKind::Fill, CodecId::None, 1)
        );
    }
}

#[test]
fn incompressible_block_is_the_source_itself() {
    let src = noise(5, 100_000);
    for base in [None, Some(&noise(6, 100_000)[..])] {
        for width in [None, Some(1), Some(2), Some(8)] {
            let mut encoder = BlockEncoder::new();
            let block = encoder.encode_elements(ZSTD, &src, base, width).unwrap();
            assert_eq!((block.kind, block.codec), (BlockKind::Plain, CodecId::None));
            assert!(std::ptr::eq(block.wire, &src[..]));
        }
    }
}

#[test]
fn block_that_changed_little_takes_little_in_a_kind_that_suits_the_change() {
    let base = noise(5, 1 << 20);
    let mut byte = base.clone();
    byte[77_777] ^= 1;
    let mut strings = base.clone();
    strings[500..40_000].chunks_mut(1_000).for_each(|s| s[..60].copy_from_slice(&text(4_000)[300..360]));
    let mut counters = base.clone();
    for counter in counters.chunks_exact_mut(8).step_by(100) {
        let count = u64::from_le_bytes(counter.try_into().unwrap()).wrapping_add(300);
        counter.copy_from_slice(&count.to_le_bytes());
    }
    for codec in [Codec::None, Codec::Lz4, ZSTD] {
        let (kind, _, length) = roundtrip(codec, &byte, Some(&base), None);
        assert!(kind.needs_base() && length < 20, "{kind:?} {length}");
        let (kind, _, length) = roundtrip(codec, &strings, Some(&base), None);
        assert!(kind == BlockKind::Runs && length < 400, "{kind:?} {length}");
        let (kind, _, length) = roundtrip(codec, &counters, Some(&base), None);
        assert!(kind == BlockKind::Sparse && length < 3_000, "{kind:?} {length}");
    }
}

#[test]
fn weights_that_all_moved_take_less_than_half_and_their_width_is_found() {
    let base = weights(1 << 20);
    let mut src = base.clone();
    for (element, step) in src.chunks_exact_mut(2).zip(noise(8, 1 << 19)) {
        let moved = u16::from_le_bytes([element[0], element[1]]).wrapping_add(u16::from(step % 7));
        element.copy_from_slice(&moved.to_le_bytes());
    }
    let (kind, _, given) = roundtrip(ZSTD, &src, Some(&base), Some(2));
    assert_eq!(roundtrip(ZSTD, &src, Some(&base), None), (kind, CodecId::None, given));
    assert!(given < 250_000, "{given}");
}

#[test]
fn unrelated_base_does_not_stop_plain_compression() {
    let (src, base) = (text(100_000), noise(5, 100_000));
    assert_eq!(roundtrip(ZSTD, &src, Some(&base), None).0, BlockKind::Plain);
    assert_eq!(roundtrip(Codec::Lz4, &src, Some(&base), None).1, CodecId::Lz4);
    // A base of the same nature makes differences that compress, but worse than the block itself does.
    let (kind, _, length) = roundtrip(ZSTD, &src, Some(&text(100_100)[50..]), None);
    assert!(kind == BlockKind::Plain || length < 60_000);
}

#[test]
fn weights_without_a_base_go_as_planes_and_text_does_not() {
    for width in [None, Some(2)] {
        let (kind, codec, length) = roundtrip(ZSTD, &weights(1 << 20), None, width);
        assert_eq!((kind, codec), (BlockKind::Planes, CodecId::None));
        assert!(length < 740_000, "{length}");
        assert_eq!(roundtrip(ZSTD, &text(1 << 20), None, width).0, BlockKind::Plain);
    }
}

#[test]
fn what_contradicts_the_kind_is_refused() {
    let mut dst = [0; 8];
    let mut decoder = BlockDecoder::new();
    for (codec, wire) in [(CodecId::None, &b""[..]), (CodecId::None, b"ab"), (CodecId::Lz4, b"a")] {
        let refused = decoder.decode(BlockKind::Fill, codec, wire, None, &mut dst);
        assert_eq!(refused, Err(CodecError::FillBlock { length: wire.len(), codec }));
    }
    for kind in [BlockKind::Difference, BlockKind::Sparse, BlockKind::Runs] {
        assert_eq!(
            decoder.decode(kind, CodecId::None, &[0; 4], None, &mut dst),
            Err(CodecError::MissingBase)
        );
        for (codec, wire) in [(CodecId::Zstd, &[0; 4][..]), (CodecId::None, &[]), (CodecId::None, &[0; 8])] {
            let refused = decoder.decode(kind, codec, wire, Some(&[0; 8]), &mut dst);
            assert!(matches!(refused, Err(CodecError::CodedBlock { .. })), "{kind:?} {refused:?}");
        }
    }
    let refused = decoder.decode(BlockKind::Sparse, CodecId::None, &[0; 4], Some(&[0; 7]), &mut dst);
    assert_eq!(refused, Err(CodecError::ShortBase { length: 7, needed: 8 }));
    let mut too_long = vec![0; MAX_BLOCK_BYTES + 1];
    let refused = decoder.decode(BlockKind::Planes, CodecId::None, &[0, 1, 0], None, &mut too_long);
    assert!(matches!(refused, Err(CodecError::CodedBlock { .. })), "{refused:?}");
    assert_eq!(BlockKind::try_from(6), Err(CodecError::UnknownBlockKind { kind: 6, max: 5 }));
    assert_eq!(
        BlockEncoder::new().encode_elements(ZSTD, &[1, 2], None, Some(3)),
        Err(CodecError::ElementWidth { width: 3 })
    );
}

#[test]
fn runs_take_little_if_they_resemble_what_stood_there() {
    let base = noise(5, 1 << 16);
    let mut block = base.clone();
    block.copy_within(1_000..9_000, 1_003);
    let mut encoder = BlockEncoder::new();
    let made = encoder.encode_elements(ZSTD, &block, Some(&base), Some(1)).unwrap();
    assert!(made.kind == BlockKind::Runs && made.wire.len() < 200, "{:?} {}", made.kind, made.wire.len());
    let (mut decoder, mut decoded) = (BlockDecoder::new(), vec![0; base.len()]);
    decoder.decode(made.kind, made.codec, made.wire, Some(&base), &mut decoded).unwrap();
    assert!(decoded == block);
}

#[test]
fn each_lie_in_a_payload_is_refused() {
    use BlockKind::{Difference, Planes, Runs, Sparse};
    // A block of 16 bytes; values of up to 127 are their own codes.
    let as_it_is: &[(BlockKind, &[u8])] = &[
        // Elements 1 and 3 of 8, by gaps and by mask; the zigzags 1 and 2.
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 2, 0]),
        (Sparse, &[5, 2, 0, 10, 0, 1, 2, 0]),
        // Bytes 2..4 and 15.
        (Runs, &[2, 0, 2, 11, 0, 0, 1, 0, 0, 0, 9, 9, 9]),
        (Planes, &[0, 1, 7]),
        (Difference, &[5, 1, 7, 1, 0]),
    ];
    let lies: &[(BlockKind, &[u8])] = &[
        // Modes.
        (Sparse, &[9, 2, 0, 1, 1, 0, 0, 1, 2, 0]),
        (Planes, &[8, 1, 7]),
        (Difference, &[16, 1, 7]),
        // More elements than there are, and fewer than the mask has.
        (Sparse, &[1, 9, 0, 1, 1, 0, 0, 1, 2, 0]),
        (Sparse, &[5, 1, 0, 10, 0, 1, 0]),
        (Sparse, &[4, 0]),
        // The last gap leads past the end.
        (Sparse, &[1, 2, 0, 1, 6, 0, 0, 1, 2, 0]),
        // A change by nothing.
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 0, 0]),
        // A code of more than 16 bits, extra bits of nothing, and too few of them.
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 200, 0]),
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 2, 1, 0]),
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 199, 1, 0]),
        // Extra bits past the last.
        (Sparse, &[1, 2, 0, 1, 1, 0, 0, 1, 128, 1, 0x10]),
        // An unknown coder, a frame longer than what it holds, a number that is too long.
        (Planes, &[0, 3, 7]),
        (Planes, &[0, 2, 17, 0]),
        (Sparse, &[1, 0x82, 0, 0, 1, 1, 0, 0, 1, 2, 0]),
        // No run, a gap of nothing, an end past the block, more bytes than the block has.
        (Runs, &[0, 0]),
        (Runs, &[2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9]),
        (Runs, &[2, 0, 2, 12, 0, 0, 1, 0, 0, 0, 9, 9, 9]),
        (Runs, &[1, 0, 0, 0, 0, 16, 0, 1, 9]),
        // A frame behind the base that is none, one longer than what it holds, one where it may not be.
        (Runs, &[1, 0, 0, 0, 0, 9, 0, 3, 2, 9, 9]),
        (Runs, &[1, 0, 0, 0, 0, 9, 0, 3, 11, 0]),
        (Runs, &[1, 3, 1, 0, 0, 0, 9, 0, 1, 9]),
        // Something behind the end.
        (Planes, &[0, 1, 7, 0]),
        (Runs, &[2, 0, 2, 11, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9]),
    ];
    let mut decoder = BlockDecoder::new();
    for (kind, payload) in as_it_is {
        decoder.decode(*kind, CodecId::None, payload, Some(&[0; 16]), &mut [0; 16]).unwrap();
        for length in 1..payload.len() {
            let refused =
                decoder.decode(*kind, CodecId::None, &payload[..length], Some(&[0; 16]), &mut [0; 16]);
            assert!(refused.is_err(), "{kind:?} cut to {length}");
        }
    }
    for (kind, payload) in lies {
        let refused = decoder.decode(*kind, CodecId::None, payload, Some(&[0; 16]), &mut [0; 16]);
        assert!(refused.is_err(), "{kind:?} {payload:?}");
    }
}

/// Values of all lengths of at most `bits` bits.
fn values(bits: u32) -> impl Strategy<Value = Vec<u64>> {
    let value = (any::<u64>(), 0..bits).prop_map(move |(value, shift)| value >> (64 - bits) >> shift);
    prop::collection::vec(value, 1..300)
}

proptest! {
    #[test]
    fn values_of_every_length_are_read_back(
        (width, values) in prop::sample::select(vec![2, 4, 8_usize])
            .prop_flat_map(|width| (Just(width), values(8 * width as u32))),
    ) {
        let (mut one_by_one, mut together) = (vec![], vec![]);
        let (mut writer, mut streams) = (ValueWriter::default(), StreamEncoder::default());
        writer.start(change_mantissa(width), values.len());
        values.iter().for_each(|value| writer.push(*value));
        writer.finish(Content::Codes, &mut streams, &mut one_by_one).unwrap();
        let elements: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect();
        writer.start(change_mantissa(width), values.len());
        let mut back = vec![0xee; elements.len()];
        match width {
            2 => writer.extend::<u16>(&elements),
            4 => writer.extend::<u32>(&elements),
            _ => writer.extend::<u64>(&elements),
        }
        writer.finish(Content::Codes, &mut streams, &mut together).unwrap();
        prop_assert_eq!(&one_by_one, &together);
        let mut reader = PayloadReader::new(&together);
        let (mut decompressor, mut scratch) = (Decompressor::new(), ValueScratch::default());
        let (count, mantissa, bits) = (values.len(), change_mantissa(width), 8 * width as u32);
        let found = read("values", &mut reader, count, mantissa, bits, &mut decompressor, &mut scratch).unwrap();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), &values[..]);
        let has_zero = match width {
            2 => found.write::<u16>(&mut back),
            4 => found.write::<u32>(&mut back),
            _ => found.write::<u64>(&mut back),
        };
        prop_assert_eq!(&back, &elements);
        prop_assert_eq!(has_zero, values.contains(&0));
        reader.finish().unwrap();
    }

    #[test]
    fn every_form_of_a_block_gives_it_back((src, base) in pairs()) {
        let mut decoder = BlockDecoder::new();
        for (kind, payload) in all_forms(&src, &base) {
            // A payload that is not shorter is never sent.
            if payload.len() < src.len() {
                let mut back = base.clone();
                decoder.decode_onto(kind, CodecId::None, &payload, &mut back).unwrap();
                prop_assert_eq!(&back, &src, "{:?} {:?}", kind, payload);
                // What it was made from, whatever that was: a payload may not be for it.
                if kind.is_undoable() && src.len().is_multiple_of(8) {
                    for held in [&base, &src] {
                        let mut back = held.clone();
                        decoder.decode_onto(kind, CodecId::None, &payload, &mut back).unwrap();
                        decoder.undo_onto(kind, &payload, &mut back).unwrap();
                        prop_assert_eq!(&back, held, "{:?} {:?}", kind, payload);
                    }
                }
            }
        }
    }

    #[test]
    fn every_block_is_given_back(
        src in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3_000),
            (0..9_000_usize).prop_map(text),
            (0..9_000_usize).prop_map(weights),
            (any::<u8>(), 0..3_000_usize).prop_map(|(byte, length)| vec![byte; length]),
        ],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..50),
        base_length in prop::option::of(0..9_000_usize),
        codec in prop::sample::select(vec![Codec::None, Codec::Lz4, ZSTD, Codec::Zstd { level: 9 }]),
        width in prop::option::of(prop::sample::select(&WIDTHS[..])),
    ) {
        let base = base_length.map(|length| {
            let mut base = src.clone();
            for (at, byte) in changes.iter().filter(|_| !src.is_empty()) {
                base[at.index(src.len())] = *byte;
            }
            base.resize(length, 1);
            base
        });
        roundtrip(codec, &src, base.as_deref(), width);
    }

    #[test]
    fn altered_payload_never_panics_the_decoder_and_shows_nothing_of_the_output(
        (src, base) in pairs(),
        alterations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        for (kind, mut payload) in all_forms(&src, &base) {
            for (at, byte) in &alterations {
                let at = at.index(payload.len().min(12));
                payload[at] = *byte;
            }
            let cut = cut.index(2 * payload.len());
            let payload = &payload[..cut.min(payload.len())];
            let decode = |fill| {
                let mut dst = vec![fill; src.len()];
                BlockDecoder::new().decode(kind, CodecId::None, payload, Some(&base), &mut dst).map(|()| dst)
            };
            prop_assert_eq!(decode(0), decode(0xff));
        }
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

#[test]
fn a_short_block_is_made_smaller_by_a_dictionary_and_decoded_with_it_only() {
    let dictionary = crate::dictionary::tests::trained();
    let (mut encoder, mut decoder) = (BlockEncoder::new(), BlockDecoder::new());
    for src in crate::dictionary::tests::records(500).split_off(400) {
        let alone = encoder.encode(Codec::Zstd { level: 19 }, &src, None).unwrap().wire.len();
        for codec in [Codec::None, Codec::Lz4, ZSTD] {
            let made = encoder.encode_with(&dictionary, codec, &src, None, None).unwrap();
            assert_eq!((made.kind, made.codec), (BlockKind::Plain, CodecId::ZstdDictionary));
            assert!(made.wire.len() < alone / 2, "{} {alone}", made.wire.len());
            let mut back = vec![0; src.len()];
            decoder.decode_with(&dictionary, made.wire, &mut back).unwrap();
            assert_eq!(back, src);
            let without = decoder.decode(made.kind, made.codec, made.wire, None, &mut back);
            assert_eq!(without, Err(CodecError::NoDictionary));
            assert!(decoder.decode(made.kind, CodecId::Zstd, made.wire, None, &mut back).is_err());
        }
    }
}

#[test]
fn a_dictionary_is_not_used_where_something_else_is_better() {
    let dictionary = crate::dictionary::tests::trained();
    let mut encoder = BlockEncoder::new();
    let mut made = |src: &[u8], base: Option<&[u8]>| {
        let made = encoder.encode_with(&dictionary, ZSTD, src, base, None).unwrap();
        (made.kind, made.codec)
    };
    let record = crate::dictionary::tests::records(1).remove(0);
    let changed: Vec<u8> = record.iter().map(|byte| if *byte == b'1' { b'2' } else { *byte }).collect();
    assert_eq!(made(&[7; 300], None), (BlockKind::Fill, CodecId::None));
    assert_eq!(made(&noise(5, 4_000), None), (BlockKind::Plain, CodecId::None));
    let mut long = noise(6, 60_000);
    let base = long.clone();
    long[40_000] ^= 1;
    assert_eq!(made(&long, Some(&base)).1, CodecId::None, "a changed byte against a base");
    let long = record.repeat(MAX_DICTIONARY_BLOCK_BYTES / record.len() + 1);
    assert_eq!(made(&long, None), (BlockKind::Plain, CodecId::Zstd), "too long for a dictionary");
    assert_eq!(made(&changed, None), (BlockKind::Plain, CodecId::ZstdDictionary));
}

#[test]
fn chosen_action_is_what_is_done_unless_it_gains_nothing_or_the_base_gains_more() {
    let (text, noise, weights) = (text(1 << 20), noise(5, 1 << 20), weights(1 << 20));
    let mut changed = noise.clone();
    changed[777] ^= 1;
    let (mut encoder, mut decoder) = (BlockEncoder::new(), BlockDecoder::new());
    let mut do_it = |action: Action, src: &[u8], base: Option<&[u8]>, width| {
        let block = encoder.encode_action(action, src, base, width).unwrap();
        let mut decoded = vec![0; src.len()];
        decoder.decode(block.kind, block.codec, block.wire, base, &mut decoded).unwrap();
        assert!(decoded == src, "{action}");
        (block.kind, block.codec, block.wire.len())
    };
    for action in Action::ALL {
        let raw = (BlockKind::Plain, CodecId::None, 1 << 20);
        if let Some(codec) = action.codec() {
            let (kind, id, length) = do_it(action, &text, None, None);
            assert_eq!((kind, id), (BlockKind::Plain, codec.id()), "{action}");
            let mut plain = Vec::new();
            Compressor::new().compress(codec, &text, &mut plain).unwrap();
            assert_eq!(length, plain.len(), "{action}");
            assert_eq!(do_it(action, &noise, None, None), raw, "{action}");
        } else {
            for width in [2, 4, 8] {
                let (kind, _, length) = do_it(action, &weights, None, Some(width));
                assert!(kind == BlockKind::Planes && length < 800_000, "{width}: {length}");
                assert_eq!(do_it(action, &noise, None, Some(width)), raw);
            }
        }
        assert_eq!(do_it(action, &vec![7; 9_999], None, Some(2)), (BlockKind::Fill, CodecId::None, 1));
        let (kind, _, length) = do_it(action, &changed, Some(&noise), Some(2));
        assert!(kind.needs_base() && length < 20, "{action}: {length}");
    }
    for width in [None, Some(1)] {
        let refused = encoder.encode_action(Action::Planes, &text, None, width).unwrap_err();
        assert_eq!(refused, CodecError::NoPlanes { width: 1 });
    }
}

#[test]
fn unknown_coder_is_refused_by_the_highest_that_may_stand_there() {
    let cases: [(BlockKind, &[u8], u8); 2] =
        [(BlockKind::Planes, &[0, 3, 7], 2), (BlockKind::Runs, &[1, 0, 0, 0, 0, 9, 0, 4, 9], 3)];
    for (kind, payload, highest) in cases {
        let refused = BlockDecoder::new().decode(kind, CodecId::None, payload, Some(&[0; 16]), &mut [0; 16]);
        let told = matches!(refused, Err(CodecError::UnknownCoder { max, .. }) if max == highest);
        assert!(told, "{kind:?} {refused:?}");
    }
}
