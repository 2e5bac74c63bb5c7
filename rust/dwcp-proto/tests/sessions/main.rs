//! Sessions and manifests against peers that do not keep the rules.
#![allow(clippy::unwrap_used)]

mod dictionary;
mod early;
mod ops;
mod sender;

use std::sync::Arc;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::error::{PathFault, ProtoError, SessionError};
use dwcp_proto::frame::{
    Accept, BlockHead, Committed, Digests, ErrorCode, ErrorFrame, Finish, Frame, Have, HaveSource,
    ManifestPart, Nack, NackReason, Offer, Same,
};
use dwcp_proto::limits::{HEADER_BYTES, Limits, MAX_BLOCKS};
use dwcp_proto::manifest::{Candidate, Entry, EntryKind, Manifest, ManifestAssembly};
use dwcp_proto::receiver::{Action, ReceiverSession};
use dwcp_proto::sender::{BlockTask, Resolution, SenderOptions, SenderSession, Step};
use dwcp_proto::{FrameEncoder, TransferId};
use proptest::collection::vec;
use proptest::prelude::*;

const BLOCK: u32 = 65_536;
const SIZE: u64 = BLOCK as u64;

fn entry(kind: EntryKind, path: &str, size: u64) -> Entry {
    Entry {
        kind,
        path: path.as_bytes().to_vec(),
        mode: 0,
        mtime_ns: 0,
        size,
        target: if kind == EntryKind::Symlink { b"t".to_vec() } else { vec![] },
        candidates: vec![],
    }
}

fn manifest_of(entries: Vec<Entry>) -> Result<Manifest, ProtoError> {
    Manifest::new(BLOCK, entries, &Limits::default())
}

/// A file of two blocks with a candidate, and a directory.
fn sample() -> Arc<Manifest> {
    let candidates = vec![Candidate { size: 5, digest: Digest([5; 16]) }];
    let file = Entry { candidates, ..entry(EntryKind::File, "f", SIZE + 1) };
    Arc::new(manifest_of(vec![file, entry(EntryKind::Directory, "d", 0)]).unwrap())
}

fn offer(manifest: &Manifest, number: u32) -> Frame {
    repeated(manifest, 0, number)
}

fn repeated(manifest: &Manifest, repeats: u8, number: u32) -> Frame {
    Frame::Offer(Offer {
        transfer_id: manifest.transfer_id(),
        block_bytes: manifest.block_bytes(),
        entries: manifest.entries().len() as u32,
        total_bytes: manifest.total_bytes(),
        base_allowed: true,
        repeats,
        number,
    })
}

fn whole(manifest: &Manifest) -> Frame {
    Frame::Manifest(manifest.parts().next().unwrap())
}

/// A receiver with lanes 0 and 1 that was offered the sample on lane 0 and holds nothing.
fn receiver_with_blocks_due() -> (ReceiverSession, Arc<Manifest>) {
    let manifest = sample();
    let mut receiver = ReceiverSession::new(Limits::default());
    receiver.attach(0);
    receiver.attach(1);
    assert_eq!(receiver.receive(0, offer(&manifest, 0)), Ok(Action::None));
    assert_eq!(receiver.receive(0, whole(&manifest)), Ok(Action::Prepare(Arc::clone(&manifest), true)));
    assert_eq!(receiver.prepared(0, vec![], 0).unwrap().len(), 1);
    (receiver, manifest)
}

fn block(number: u64, raw_len: u32, fill: u8) -> BlockHead {
    BlockHead {
        entry: 0,
        raw_len,
        offset: number * SIZE,
        kind: BlockKind::Fill,
        codec: CodecId::None,
        digest: Digest([fill; 16]),
        base_digest: None,
    }
}

/// A sender with lanes 0 and 1 whose offer went over lane 0, and was accepted after `haves`.
fn sender_with_blocks_due(haves: Vec<Have>, staged_bytes: u64) -> (SenderSession, Arc<Manifest>) {
    let manifest = sample();
    (sender_of(&manifest, haves, staged_bytes), manifest)
}

/// A sender of `manifest` with lanes 0 and 1 whose blocks may flow.
fn sender_of(manifest: &Arc<Manifest>, haves: Vec<Have>, staged_bytes: u64) -> SenderSession {
    let mut sender = SenderSession::new(Arc::clone(manifest), true, SenderOptions::default());
    sender.attach(0);
    sender.attach(1);
    assert_eq!(sender.next(0), Step::Send(offer(manifest, 0)));
    assert_eq!(sender.next(1), Step::Wait);
    assert_eq!(sender.next(0), Step::Send(whole(manifest)));
    for have in haves {
        sender.receive(0, Frame::Have(have)).unwrap();
    }
    let transfer_id = manifest.transfer_id();
    sender.receive(0, Frame::Accept(Accept { transfer_id, staged_bytes })).unwrap();
    sender
}

fn task(step: Step) -> BlockTask {
    match step {
        Step::Block(task) => task,
        other => panic!("{other:?}"),
    }
}

fn in_full(digest: u8) -> Resolution {
    let (kind, codec) = (BlockKind::Fill, CodecId::None);
    Resolution::Block { digest: Digest([digest; 16]), base_digest: None, kind, codec, wire_len: 1 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn no_sequence_of_operations_panics_or_commits_too_early(bytes in vec(any::<u8>(), 0..2_000)) {
        ops::run(&bytes);
    }
}

#[test]
fn some_sequences_of_operations_end_in_a_commit() {
    // Otherwise the property above would only ever look at the first phases.
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let commits = (0..300).filter(|_| ops::run(&(0..4_000).map(|_| draw()).collect::<Vec<u8>>())).count();
    assert!(commits > 0);
}

#[test]
fn paths_outside_the_rules_are_refused() {
    let long = "x".repeat(256);
    let deep = "x/".repeat(2_048) + "x";
    for (path, fault) in [
        ("", PathFault::Empty),
        ("/a", PathFault::EmptyComponent),
        ("a/", PathFault::EmptyComponent),
        ("a//b", PathFault::EmptyComponent),
        (".", PathFault::Dots),
        ("a/../b", PathFault::Dots),
        ("a/./b", PathFault::Dots),
        ("a\0b", PathFault::Nul),
        (".dwcp", PathFault::Reserved),
        (".dwcp/x", PathFault::Reserved),
        (&long, PathFault::LongComponent),
        (&deep, PathFault::TooLong),
    ] {
        let refused = manifest_of(vec![entry(EntryKind::File, path, 0)]).unwrap_err();
        assert_eq!(refused, ProtoError::Path { entry: 0, fault }, "{path:?}");
    }
    for path in [".dwcpx", "a/.dwcp", "...", "a b/ü"] {
        assert!(manifest_of(vec![entry(EntryKind::Buffer, path, 0)]).is_ok(), "{path:?}");
    }
}

#[test]
fn manifest_is_a_tree_told_from_the_top() {
    use EntryKind::{Buffer, Directory, File, Symlink};
    let of = |list: &[(EntryKind, &str)]| {
        manifest_of(list.iter().map(|(kind, path)| entry(*kind, path, 0)).collect())
    };
    assert!(
        of(&[(Directory, "a"), (File, "a/b"), (File, "a-"), (Directory, "a/c"), (File, "a/c/d")]).is_ok()
    );
    assert!(of(&[(File, "a/b/c"), (File, "a.b")]).is_ok(), "parents need not be told");
    assert_eq!(
        of(&[(File, "x"), (File, "a"), (File, "a-"), (Symlink, "a")]).unwrap_err(),
        ProtoError::DuplicatePath { first: 1, second: 3 }
    );
    for (list, entry, parent) in [
        (vec![(File, "a"), (File, "a/b")], 1, 0),
        (vec![(Symlink, "a"), (File, "a/b/c")], 1, 0),
        (vec![(File, "a/b"), (Directory, "a")], 0, 1),
        (vec![(Directory, "a"), (File, "a/x"), (File, "a-"), (Directory, "a/x/y")], 3, 1),
    ] {
        assert_eq!(of(&list).unwrap_err(), ProtoError::Parent { entry, parent }, "{list:?}");
    }
    assert_eq!(of(&[(Buffer, "a"), (File, "b")]).unwrap_err(), ProtoError::MixedKinds { entry: 1 });
    assert!(matches!(of(&[]), Err(ProtoError::Range { field: "entry count", .. })));
}

#[test]
fn fields_that_a_kind_does_not_have_are_refused() {
    let file = || entry(EntryKind::File, "f", 0);
    let candidate = Candidate { size: 0, digest: Digest([0; 16]) };
    for bad in [
        Entry { mode: 0o10000, ..file() },
        Entry { size: (1 << 62) + 1, ..file() },
        Entry { size: u64::MAX, ..file() },
        Entry { target: b"t".to_vec(), ..file() },
        Entry { candidates: vec![candidate; 9], ..file() },
        Entry { size: 1, ..entry(EntryKind::Directory, "d", 0) },
        Entry { mode: 1, ..entry(EntryKind::Symlink, "l", 0) },
        Entry { target: vec![], ..entry(EntryKind::Symlink, "l", 0) },
        Entry { target: b"a\0".to_vec(), ..entry(EntryKind::Symlink, "l", 0) },
        Entry { mtime_ns: -1, ..entry(EntryKind::Buffer, "b", 0) },
        Entry { candidates: vec![candidate], ..entry(EntryKind::Buffer, "b", 0) },
    ] {
        assert!(manifest_of(vec![bad.clone()]).is_err(), "{bad:?}");
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused_before_anything_is_allocated() {
    let most = MAX_BLOCKS * SIZE;
    assert!(manifest_of(vec![entry(EntryKind::File, "f", most)]).is_ok());
    let more = manifest_of(vec![entry(EntryKind::File, "f", most), entry(EntryKind::File, "g", 1)]);
    assert_eq!(
        more,
        Err(ProtoError::Limit { what: "block count", value: MAX_BLOCKS + 1, limit: MAX_BLOCKS })
    );
    let limits = Limits { max_object: 10, max_entries: 1, ..Limits::default() };
    assert!(Manifest::new(BLOCK, vec![entry(EntryKind::File, "f", 11)], &limits).is_err());
    let two = vec![entry(EntryKind::File, "f", 1), entry(EntryKind::File, "g", 1)];
    assert!(Manifest::new(BLOCK, two, &limits).is_err());
    for block_bytes in [0, 65_535, 32_768, 98_304, 8_388_608] {
        let refused = Manifest::new(block_bytes, vec![entry(EntryKind::File, "f", 1)], &Limits::default());
        assert!(matches!(refused, Err(ProtoError::Range { .. })), "{block_bytes}");
    }
}

#[test]
fn parts_of_a_large_manifest_fit_and_make_it_again() {
    let entries: Vec<Entry> =
        (0..1_000).map(|i| entry(EntryKind::File, &format!("{i:04}{}", "/xxxxxxx".repeat(300)), i)).collect();
    let manifest = manifest_of(entries).unwrap();
    let mut receiver = ReceiverSession::new(Limits::default());
    receiver.attach(0);
    receiver.receive(0, offer(&manifest, 0)).unwrap();
    let parts: Vec<ManifestPart> = manifest.parts().collect();
    assert!(parts.len() > 2);
    let mut last = Action::None;
    for part in parts {
        assert_eq!(last, Action::None);
        // A slow link has to carry each within an idle deadline.
        let mut bytes = Vec::new();
        FrameEncoder::new().encode(&Frame::Manifest(part.clone()), 0, &mut bytes).unwrap();
        assert!(bytes.len() <= HEADER_BYTES + 65_536);
        last = receiver.receive(0, Frame::Manifest(part)).unwrap();
    }
    assert_eq!(last, Action::Prepare(Arc::new(manifest), true));
}

#[test]
fn manifest_that_is_almost_too_long_is_told_in_fewer_parts() {
    // Each takes 8,192 bytes of a head; heads of 64 KiB would be a little too long altogether.
    let link = |number: usize| Entry {
        target: vec![b't'; 4_095],
        ..entry(EntryKind::Symlink, &format!("{number:07}{}", "/xxxxxxx".repeat(508)), 0)
    };
    let manifest = manifest_of((0..8_191).map(link).collect()).unwrap();
    let Frame::Offer(offer) = offer(&manifest, 0) else { panic!() };
    let mut assembly = ManifestAssembly::new(offer, &Limits::default()).unwrap();
    let mut is_whole = false;
    for part in manifest.parts() {
        is_whole = assembly.push(part).unwrap();
    }
    assert!(is_whole);
    assert_eq!(assembly.finish(), Ok(manifest));
    assert!(manifest_of((0..8_192).map(link).collect()).is_err());
}

#[test]
fn candidates_do_not_change_the_transfer_id() {
    let with = sample();
    let mut entries = with.entries().to_vec();
    entries[0].candidates.clear();
    assert_eq!(manifest_of(entries.clone()).unwrap().transfer_id(), with.transfer_id());
    entries[0].mtime_ns = 1;
    assert_ne!(manifest_of(entries).unwrap().transfer_id(), with.transfer_id());
}

#[test]
fn manifest_other_than_offered_is_refused() {
    let manifest = sample();
    for (number, change) in (0..).zip([
        (|offer: &mut Offer| offer.transfer_id.0[0] ^= 1) as fn(&mut Offer),
        |offer| offer.total_bytes += 1,
        |offer| offer.entries -= 1,
        |offer| offer.block_bytes *= 2,
    ]) {
        let mut receiver = ReceiverSession::new(Limits::default());
        receiver.attach(0);
        let Frame::Offer(mut changed) = offer(&manifest, number) else { panic!() };
        change(&mut changed);
        receiver.receive(0, Frame::Offer(changed)).unwrap();
        assert!(receiver.receive(0, whole(&manifest)).is_err(), "{number}");
    }
}

#[test]
fn offer_above_the_limits_of_the_receiver_is_refused() {
    let manifest = Manifest::new(131_072, sample().entries().to_vec(), &Limits::default()).unwrap();
    for limits in
        [Limits { max_block: BLOCK, ..Limits::default() }, Limits { max_entries: 1, ..Limits::default() }]
    {
        let mut receiver = ReceiverSession::new(limits);
        receiver.attach(0);
        assert!(receiver.receive(0, offer(&manifest, 0)).is_err());
    }
}

#[test]
fn block_outside_its_object_is_refused() {
    let (mut receiver, _) = receiver_with_blocks_due();
    for head in [
        BlockHead { entry: 1, ..block(0, BLOCK, 1) },
        BlockHead { entry: 2, ..block(0, BLOCK, 1) },
        BlockHead { entry: u32::MAX, ..block(0, BLOCK, 1) },
        block(2, 1, 1),
        block(0, BLOCK - 1, 1),
        block(1, 2, 1),
        BlockHead { offset: 1, ..block(0, BLOCK, 1) },
        BlockHead { offset: (1 << 62) - 1, ..block(0, BLOCK, 1) },
    ] {
        let refused = receiver.receive(0, Frame::Block(head.clone()));
        assert!(matches!(refused, Err(SessionError::OutOfRange { .. })), "{head:?}");
    }
    let same = |first_block, count| {
        Frame::Same(Same { entry: 0, first_block, digests: vec![Digest([0; 16]); count] })
    };
    for frame in [same(0, 3), same(2, 1), same(u32::MAX, 2)] {
        assert!(matches!(receiver.receive(0, frame), Err(SessionError::OutOfRange { .. })));
    }
    assert_eq!(receiver.acknowledge(0), None);
}

#[test]
fn acknowledgements_follow_the_order_of_the_lane() {
    let (mut receiver, _) = receiver_with_blocks_due();
    let (first, second) = (block(0, BLOCK, 1), block(1, 1, 2));
    receiver.receive(0, Frame::Block(first.clone())).unwrap();
    receiver.receive(0, Frame::Block(second.clone())).unwrap();
    receiver.stored(0, 0, second.offset, second.digest, 1);
    assert_eq!(receiver.acknowledge(0), None);
    receiver.stored(1, 0, first.offset, first.digest, 1);
    assert_eq!(receiver.missing_blocks(), 1, "nobody sent it on lane 1");
    receiver.stored(0, 0, first.offset, first.digest, 1);
    assert_eq!(receiver.acknowledge(0), Some(Frame::Ack(2)));
    assert_eq!(receiver.acknowledge(0), None);
    assert_eq!(receiver.missing_blocks(), 0);
}

#[test]
fn too_many_unacknowledged_frames_are_refused() {
    let (mut receiver, _) = receiver_with_blocks_due();
    for _ in 0..4_096 {
        receiver.receive(1, Frame::Block(block(0, BLOCK, 1))).unwrap();
    }
    let refused = receiver.receive(1, Frame::Block(block(0, BLOCK, 1)));
    assert!(matches!(refused, Err(SessionError::OutOfRange { limit: 4_096, .. })));
    // Late copies behind a block that is not done with are kept in mind like others.
    let (mut receiver, _) = receiver_with_blocks_due();
    let known = block(1, 1, 2);
    receiver.receive(0, Frame::Block(known.clone())).unwrap();
    receiver.stored(0, 0, known.offset, known.digest, 1);
    receiver.receive(1, Frame::Block(block(0, BLOCK, 1))).unwrap();
    for _ in 1..4_096 {
        assert_eq!(receiver.receive(1, Frame::Block(known.clone())), Ok(Action::None));
    }
    let refused = receiver.receive(1, Frame::Block(known));
    assert!(matches!(refused, Err(SessionError::OutOfRange { limit: 4_096, .. })));
}

#[test]
fn different_copies_of_a_block_under_way_are_refused() {
    let (mut receiver, _) = receiver_with_blocks_due();
    receiver.receive(0, Frame::Block(block(0, BLOCK, 1))).unwrap();
    receiver.receive(1, Frame::Block(block(0, BLOCK, 1))).unwrap();
    let refused = receiver.receive(1, Frame::Block(block(0, BLOCK, 2)));
    assert_eq!(refused, Err(SessionError::DigestMismatch { entry: 0, offset: 0 }));
}

#[test]
fn finish_may_come_before_the_last_block_and_other_digests_are_a_mismatch() {
    let (mut receiver, manifest) = receiver_with_blocks_due();
    let finish =
        |digest| Frame::Finish(Finish { transfer_id: manifest.transfer_id(), transfer_digest: digest });
    let digests = |list: &[Digest]| Frame::Digests(Digests { first_entry: 0, digests: list.to_vec() });
    let heads = [block(0, BLOCK, 1), block(1, 1, 2)];
    let leaves = heads.clone().map(|head| head.digest);
    let trees = [dwcp_codec::digest::tree(u64::from(BLOCK) + 1, BLOCK, &leaves), Digest([0; 16])];
    let all = manifest.transfer_digest(&trees);
    receiver.receive(0, Frame::Block(heads[0].clone())).unwrap();
    receiver.stored(0, 0, heads[0].offset, heads[0].digest, 1);
    assert!(
        matches!(receiver.receive(0, finish(all)), Err(SessionError::OutOfRange { .. })),
        "no digests told"
    );
    assert_eq!(receiver.receive(0, digests(&trees)), Ok(Action::None));
    assert_eq!(receiver.receive(0, finish(Digest([1; 16]))), Err(SessionError::TransferDigest));
    assert_eq!(receiver.receive(0, finish(all)), Ok(Action::None), "a block is missing");
    assert_eq!(receiver.settle(), Action::None);
    assert!(receiver.committed().is_err());
    let others = [Digest([9; 16]), Digest([9; 16])];
    assert_eq!(receiver.receive(0, digests(&others)), Ok(Action::None));
    assert_eq!(receiver.receive(0, finish(manifest.transfer_digest(&others))), Ok(Action::None));
    receiver.receive(1, Frame::Block(heads[1].clone())).unwrap();
    receiver.stored(1, 0, heads[1].offset, heads[1].digest, 1);
    assert_eq!(receiver.settle(), Action::Mismatch { entries: vec![0, 1] });
    assert_eq!(receiver.receive(0, digests(&trees)), Ok(Action::None));
    assert_eq!(receiver.receive(0, finish(all)), Ok(Action::Commit));
    let committed = receiver.committed().unwrap();
    // The same on another lane, whose digests come anew, and a late copy of a block.
    assert_eq!(receiver.receive(1, Frame::Block(block(0, BLOCK, 7))), Ok(Action::None));
    assert_eq!(receiver.acknowledge(1), Some(Frame::Ack(2)));
    assert_eq!(receiver.receive(1, digests(&trees)), Ok(Action::None));
    assert_eq!(receiver.receive(1, finish(all)), Ok(Action::Recommitted(committed)));
}

#[test]
fn overtaken_offer_and_its_manifest_are_ignored() {
    let manifest = sample();
    let mut receiver = ReceiverSession::new(Limits::default());
    receiver.attach(0);
    receiver.attach(1);
    receiver.receive(1, offer(&manifest, 1)).unwrap();
    assert_eq!(receiver.receive(0, offer(&manifest, 0)), Ok(Action::None));
    assert_eq!(receiver.receive(0, whole(&manifest)), Ok(Action::None));
    assert!(matches!(receiver.receive(1, whole(&manifest)), Ok(Action::Prepare(..))));
    assert_eq!(receiver.prepared(0, vec![], 0), Ok(vec![]), "nothing is prepared for lane 0");
    assert_eq!(receiver.prepared(1, vec![], 0).unwrap().len(), 1);
    let mut entries = manifest.entries().to_vec();
    entries[0].size += 1;
    let other = manifest_of(entries).unwrap();
    assert!(matches!(receiver.receive(0, offer(&other, 2)), Err(SessionError::TransferMismatch { .. })));
}

#[test]
fn announcements_that_do_not_fit_are_refused_on_both_sides() {
    let have = |entry, source, first_block, count| Have {
        entry,
        source,
        first_block,
        digests: vec![Digest([0; 16]); count],
    };
    for bad in [
        vec![have(1, HaveSource::Staged, 0, 1)],
        vec![have(2, HaveSource::Staged, 0, 1)],
        vec![have(0, HaveSource::Staged, 1, 2)],
        vec![have(0, HaveSource::SamePath, u32::MAX, 1)],
        vec![have(0, HaveSource::Candidate(1), 0, 0)],
        vec![have(0, HaveSource::Candidate(0), 0, 0), have(0, HaveSource::SamePath, 0, 1)],
    ] {
        let manifest = sample();
        let mut sender = SenderSession::new(Arc::clone(&manifest), true, SenderOptions::default());
        sender.attach(0);
        sender.next(0);
        sender.next(0);
        let refused = bad.iter().try_for_each(|have| sender.receive(0, Frame::Have(have.clone())));
        assert!(matches!(refused, Err(SessionError::OutOfRange { .. })), "{bad:?}");
        let mut receiver = ReceiverSession::new(Limits::default());
        receiver.attach(0);
        receiver.receive(0, offer(&manifest, 0)).unwrap();
        receiver.receive(0, whole(&manifest)).unwrap();
        assert!(receiver.prepared(0, bad, 0).is_err());
    }
}

#[test]
fn frames_of_the_own_side_and_of_unknown_lanes_are_refused() {
    let (mut sender, manifest) = sender_with_blocks_due(vec![], 0);
    let (mut receiver, _) = receiver_with_blocks_due();
    let accept = Frame::Accept(Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 });
    assert!(matches!(sender.receive(0, offer(&manifest, 0)), Err(SessionError::Unexpected { .. })));
    assert!(matches!(sender.receive(0, accept.clone()), Err(SessionError::Unexpected { .. })));
    assert!(matches!(receiver.receive(0, accept), Err(SessionError::Unexpected { .. })));
    assert!(matches!(receiver.receive(0, Frame::Ack(0)), Err(SessionError::Unexpected { .. })));
    assert_eq!(sender.receive(9, Frame::KeepAlive), Err(SessionError::UnknownLane { lane: 9 }));
    assert_eq!(receiver.receive(9, Frame::KeepAlive), Err(SessionError::UnknownLane { lane: 9 }));
}

#[test]
fn error_of_the_peer_is_told_without_control_characters() {
    let (mut sender, _) = sender_with_blocks_due(vec![], 0);
    let error = ErrorFrame::new(ErrorCode::Storage, true, "disk\u{1b}[2J full\n");
    let told = sender.receive(0, Frame::Error(error)).unwrap_err();
    assert_eq!(
        told,
        SessionError::Peer {
            code: ErrorCode::Storage,
            retryable: true,
            message: "disk\u{fffd}[2J full\u{fffd}".to_owned()
        }
    );
    assert_eq!(told.code(), ErrorCode::Storage);
}
