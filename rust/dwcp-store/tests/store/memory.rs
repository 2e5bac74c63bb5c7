//! Buffers as the two ends of a transfer.

use std::sync::Arc;

use crate::support::*;
use dwcp_codec::digest::Digest;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::Manifest;
use dwcp_store::{
    BufferProvider, Claim, MemorySink, MemorySource, NamedBuffer, OwnedBuffer, Prepared, Proof, Refusal,
    SharedBytes, Sink, Source, StoreError, TargetBuffer,
};

fn buffers(named: &[(&str, &[u8])]) -> (Arc<Manifest>, MemorySource) {
    let shared = |bytes: &[u8]| -> SharedBytes { Arc::new(bytes.to_vec()) };
    let named = named.iter().map(|(name, bytes)| (name.to_string(), shared(bytes))).collect();
    let (manifest, source) = MemorySource::new(named, BLOCK as u32, &Limits::default()).unwrap();
    (Arc::new(manifest), source)
}

#[test]
fn buffers_arrive_by_name_and_only_when_committed() {
    let large = noise(3 * BLOCK + 1, 1);
    let (manifest, source) = buffers(&[("weights", &large), ("empty", b""), ("small", b"small")]);
    let sink = MemorySink::new(1 << 20);
    let prepared = prepare(&sink, &manifest).unwrap();
    fill(&manifest, &source, &sink, &prepared, usize::MAX);
    assert!(sink.take_buffers().is_err());
    commit(&sink).unwrap();
    let arrived: Vec<_> = sink
        .take_buffers()
        .unwrap()
        .into_iter()
        .map(|(name, buffer)| (name, buffer.into_vec().unwrap()))
        .collect();
    let expected = [("empty", vec![]), ("small", b"small".to_vec()), ("weights", large)];
    assert_eq!(arrived, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert!(sink.take_buffers().is_err() && commit(&sink).is_err());
    // A lane that dies may bring a block once more after the buffers were given out.
    sink.store(1, 0, b"small", Digest::of(b"small")).unwrap();
}

#[test]
fn width_of_elements_stays_with_its_buffer_when_buffers_are_sorted() {
    let named = [("c", None), ("a", Some(4)), ("b", Some(2))].map(|(name, width)| {
        let bytes: SharedBytes = Arc::new(name.as_bytes().to_vec());
        NamedBuffer { name: name.to_owned(), bytes, width }
    });
    let (_, source) = MemorySource::with_widths(named.into(), BLOCK as u32, &Limits::default()).unwrap();
    assert_eq!([0, 1, 2, 3].map(|entry| source.width(entry)), [Some(4), Some(2), None, None]);
}

#[test]
fn block_that_comes_from_many_threads_at_once_is_stored_whole() {
    let content = noise(4 * BLOCK, 1);
    let (manifest, source) = buffers(&[("buffer", &content)]);
    let sink = MemorySink::new(1 << 20);
    prepare(&sink, &manifest).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX));
        }
    });
    // The same session prepared again announces all of it.
    assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, content.len() as u64);
    sink.discard(&[0]).unwrap();
    assert_eq!(prepare(&sink, &manifest).unwrap(), Prepared::default());
    fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX);
    commit(&sink).unwrap();
    // Another transfer of the same shape begins with nothing, whatever became of the first.
    assert_eq!(prepare(&sink, &manifest).unwrap(), Prepared::default());
    assert!(sink.take_buffers().is_err());
    fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX);
    commit(&sink).unwrap();
    let (_, buffer) = sink.take_buffers().unwrap().remove(0);
    assert_eq!(buffer.into_vec().unwrap(), content);
}

/// Receives a block into its place as a lane does, in pieces. None: it was not lent, or not to the end.
fn receive_in_place(sink: &MemorySink, offset: usize, block: &[u8], digest: Digest) -> Option<Proof> {
    let claim = sink.claim(0, offset as u64, block.len() as u32)?;
    for at in (0..block.len()).step_by(1000) {
        let piece = &block[at..block.len().min(at + 1000)];
        if !sink.fill(&claim, at, &mut |place| place[..piece.len()].copy_from_slice(piece)) {
            return None;
        }
    }
    Some(sink.prove(claim, Digest::of(block), digest))
}

#[test]
fn block_received_in_its_place_counts_once_it_is_proven() {
    let content = noise(2 * BLOCK + 10, 1);
    let (manifest, source) = buffers(&[("buffer", &content)]);
    let sink = MemorySink::new(1 << 20);
    assert!(sink.claim(0, 0, BLOCK as u32).is_none(), "nothing is under way");
    prepare(&sink, &manifest).unwrap();
    let first = Digest::of(&content[..BLOCK]);
    assert_eq!(receive_in_place(&sink, 0, &noise(BLOCK, 2), first), Some(Proof::Differs));
    assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, 0);
    assert_eq!(receive_in_place(&sink, 0, &content[..BLOCK], first), Some(Proof::Stored));
    assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, BLOCK as u64);
    for (entry, offset, length) in
        [(0, 0, BLOCK), (0, 1, BLOCK), (0, BLOCK, 10), (0, 3 * BLOCK, 1), (1, 0, BLOCK)]
    {
        assert!(sink.claim(entry, offset as u64, length as u32).is_none(), "{entry} {offset} {length}");
    }
    let tail = &content[2 * BLOCK..];
    assert_eq!(receive_in_place(&sink, 2 * BLOCK, tail, Digest::of(tail)), Some(Proof::Stored));
    fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX);
    commit(&sink).unwrap();
    let (_, buffer) = sink.take_buffers().unwrap().remove(0);
    assert_eq!(buffer.into_vec().unwrap(), content);
}

#[test]
fn place_of_a_block_is_lent_to_one_and_no_longer_than_until_another_brings_it() {
    let content = noise(2 * BLOCK, 1);
    let (manifest, source) = buffers(&[("buffer", &content)]);
    let sink = MemorySink::new(1 << 20);
    prepare(&sink, &manifest).unwrap();
    let (first, garbage) = (Digest::of(&content[..BLOCK]), Digest::of(b"garbage"));
    let claim = || sink.claim(0, 0, BLOCK as u32);
    let spoil = |claim: &Claim| sink.fill(claim, 0, &mut |place| place.fill(7));
    let (slow, given_up) = (claim().unwrap(), sink.claim(0, BLOCK as u64, BLOCK as u32).unwrap());
    assert!(claim().is_none() && spoil(&slow) && spoil(&given_up));
    sink.store(0, 0, &content[..BLOCK], first).unwrap();
    assert!(!spoil(&slow), "the block that was proven is spoilt");
    assert_eq!(sink.prove(slow, garbage, first), Proof::Stored, "it is there");
    // What was begun and given up is brought by others.
    sink.store(0, BLOCK as u64, &content[BLOCK..], Digest::of(&content[BLOCK..])).unwrap();
    assert!(!spoil(&given_up));
    assert_eq!(sink.prove(given_up, garbage, garbage), Proof::Lost);
    sink.discard(&[0]).unwrap();
    let late = claim().unwrap();
    // An offer is repeated when its lane was lost, while blocks come on others.
    prepare(&sink, &manifest).unwrap();
    assert!(spoil(&late));
    fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX);
    commit(&sink).unwrap();
    assert!(!spoil(&late) && claim().is_none());
    let (_, buffer) = sink.take_buffers().unwrap().remove(0);
    assert!(!spoil(&late), "the buffer is the caller's");
    assert_eq!(sink.prove(late, first, first), Proof::Lost);
    assert_eq!(buffer.into_vec().unwrap(), content);
}

#[test]
fn blocks_that_come_in_their_places_and_copied_at_once_are_whole() {
    let content = noise(8 * BLOCK, 1);
    let garbage = noise(8 * BLOCK, 2);
    let (manifest, source) = buffers(&[("buffer", &content)]);
    for round in 0..50 {
        let sink = MemorySink::new(1 << 20);
        prepare(&sink, &manifest).unwrap();
        std::thread::scope(|scope| {
            for bytes in [&content, &garbage, &content, &garbage] {
                let (sink, content) = (&sink, &content);
                scope.spawn(move || {
                    for (block, (right, bytes)) in content.chunks(BLOCK).zip(bytes.chunks(BLOCK)).enumerate()
                    {
                        let proof = receive_in_place(sink, block * BLOCK, bytes, Digest::of(right));
                        assert_ne!(proof, Some(Proof::Lost));
                        assert!(right != bytes || proof != Some(Proof::Differs));
                    }
                });
            }
            scope.spawn(|| fill(&manifest, &source, &sink, &Prepared::default(), usize::MAX));
        });
        assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, content.len() as u64, "round {round}");
    }
}

#[test]
fn copy_that_comes_after_the_commit_does_not_touch_the_buffers() {
    let content = noise(BLOCK, 1);
    let (manifest, source) = buffers(&[("buffer", &content)]);
    let sink = MemorySink::new(1 << 20);
    fill(&manifest, &source, &sink, &prepare(&sink, &manifest).unwrap(), usize::MAX);
    commit(&sink).unwrap();
    sink.store(0, 0, &noise(BLOCK, 2), Digest::of(b"")).unwrap();
    let (_, buffer) = sink.take_buffers().unwrap().remove(0);
    assert_eq!(buffer.into_vec().unwrap(), content);
}

#[test]
fn of_two_copies_that_differ_buffer_and_record_tell_of_the_same_one() {
    let (manifest, _) = buffers(&[("buffer", &noise(BLOCK, 1))]);
    let copies = [1, 2, 3, 4].map(|seed| noise(BLOCK, seed));
    let sink = MemorySink::new(1 << 20);
    prepare(&sink, &manifest).unwrap();
    for round in 0..300 {
        let start = std::sync::Barrier::new(copies.len());
        std::thread::scope(|scope| {
            for copy in &copies {
                scope.spawn(|| {
                    start.wait();
                    sink.store(0, 0, copy, Digest::of(copy)).unwrap();
                });
            }
        });
        assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, BLOCK as u64, "round {round}");
    }
}

#[test]
fn transfer_larger_than_the_limit_is_refused_before_memory_is_taken() {
    struct Never;
    impl BufferProvider for Never {
        fn provide(&self, name: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError> {
            panic!("{name} of {size} bytes was asked for")
        }
    }
    let (manifest, _) = buffers(&[("a", &[0; 60]), ("b", &[0; 60])]);
    let refused = prepare(&MemorySink::with_provider(119, Box::new(Never)), &manifest);
    assert!(matches!(refused, Err(StoreError::Limit { value: 120, limit: 119, .. })));
    assert!(OwnedBuffer::zeroed(u64::MAX).is_err());
}

#[test]
fn provided_buffer_must_have_the_length_of_the_entry() {
    struct Short;
    impl BufferProvider for Short {
        fn provide(&self, _: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError> {
            Ok(Box::new(OwnedBuffer::zeroed(size - 1)?))
        }
    }
    let (manifest, _) = buffers(&[("a", &[0; 60])]);
    let refused = prepare(&MemorySink::with_provider(100, Box::new(Short)), &manifest);
    assert!(matches!(refused, Err(StoreError::Refused { reason: Refusal::BufferLength, .. })));
}

#[test]
fn files_are_not_received_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, _) = offer(&[dir.path()]);
    let refused = prepare(&MemorySink::new(100), &manifest);
    assert!(matches!(refused, Err(StoreError::Refused { reason: Refusal::FileInMemory, .. })));
}

#[test]
fn blocks_that_are_none_are_refused_by_source_and_sink() {
    let (manifest, source) = buffers(&[("a", &noise(BLOCK + 10, 1))]);
    let sink = MemorySink::new(1 << 20);
    let digest = Digest::of(b"");
    assert!(matches!(sink.store(0, 0, &[0; BLOCK], digest), Err(StoreError::NotPrepared { .. })));
    prepare(&sink, &manifest).unwrap();
    let mut scratch = Vec::new();
    let end = BLOCK as u64;
    for (entry, offset, length) in
        [(0, 1, BLOCK), (0, end, 11), (0, end, 9), (0, 2 * end, 1), (1, 0, 1), (0, u64::MAX, 1)]
    {
        let refused = sink.store(entry, offset, &vec![0; length], digest);
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })), "{entry} {offset} {length}");
    }
    for (entry, offset, length) in [(0, end, 11), (1, 0, 1), (0, u64::MAX, 1)] {
        assert!(matches!(
            source.block(entry, offset, length, &mut scratch),
            Err(StoreError::OutOfRange { .. })
        ));
    }
}
