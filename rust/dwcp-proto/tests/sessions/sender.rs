//! What a sender does with what the receiver tells it.

use dwcp_proto::sender::{Pace, Way};

use super::*;

#[test]
fn staged_block_that_is_equal_costs_nothing_and_one_that_differs_is_sent() {
    let have = |first_block, source, fill: u8| Have {
        entry: 0,
        source,
        first_block,
        digests: vec![Digest([fill; 16])],
    };
    let haves = vec![
        have(0, HaveSource::Staged, 1),
        have(1, HaveSource::Staged, 2),
        // A base never hides what is staged.
        have(0, HaveSource::SamePath, 9),
    ];
    let (mut sender, _) = sender_with_blocks_due(haves, SIZE + 1);
    let (first, second) = (task(sender.next(0)), task(sender.next(1)));
    assert_eq!((first.held, first.held_is_staged), (Some(Digest([1; 16])), true));
    let wrong = sender.resolve(0, &first, Resolution::Same { digest: Digest([1; 16]) });
    assert_eq!(wrong, Err(SessionError::Resolution { entry: 0, offset: 0 }));
    assert_eq!(sender.resolve(0, &first, Resolution::Held { digest: Digest([1; 16]) }), Ok(None));
    assert!(sender.resolve(1, &second, Resolution::Held { digest: Digest([7; 16]) }).is_err());
    assert!(matches!(sender.resolve(1, &second, in_full(7)), Ok(Some(Frame::Block(_)))));
    // The receiver would not wait for what replaces a staged block.
    assert_eq!(sender.next(0), Step::Wait);
    sender.receive(1, Frame::Ack(1)).unwrap();
    let trees = vec![sender.tree_digest(0).unwrap(), Digest([0; 16])];
    assert_eq!(sender.next(0), Step::Send(Frame::Digests(Digests { first_entry: 0, digests: trees })));
    let progress = sender.progress();
    assert_eq!((progress.held_bytes, progress.sent_raw_bytes, progress.blocks_held), (SIZE, 1, 1));
}

/// A sender that has sent two blocks, one on each lane, and FINISH on lane 0, which has the shorter; and the
/// receiver's answer.
fn sender_with_finish_sent() -> (SenderSession, Frame) {
    let (mut sender, manifest) = sender_with_blocks_due(vec![], 0);
    for lane in [1, 0] {
        let block = task(sender.next(lane));
        sender.resolve(lane, &block, in_full(lane as u8)).unwrap();
    }
    let (transfer_id, transfer_digest) = told(&mut sender, 0);
    assert_eq!(transfer_id, manifest.transfer_id());
    (sender, Frame::Committed(Committed { transfer_id, transfer_digest, body_bytes: 2 }))
}

/// Lets a lane tell the digests and FINISH.
fn told(sender: &mut SenderSession, lane: u32) -> (TransferId, Digest) {
    assert!(matches!(sender.next(lane), Step::Send(Frame::Digests(_))));
    match sender.next(lane) {
        Step::Send(Frame::Finish(finish)) => (finish.transfer_id, finish.transfer_digest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn committed_may_come_on_any_lane_before_the_last_acknowledgements() {
    let (mut sender, committed) = sender_with_finish_sent();
    assert_eq!(sender.next(1), Step::Wait);
    sender.receive(1, committed.clone()).unwrap();
    assert_eq!(sender.next(0), Step::Done);
    let progress = sender.progress();
    assert_eq!((progress.blocks_sent, progress.sent_raw_bytes), (2, progress.total_bytes));
    // What was under way is with the receiver, so that another transfer can follow; its ACKs come late.
    sender.begin(sample(), true).unwrap();
    for lane in [0, 1] {
        sender.receive(lane, Frame::Ack(1)).unwrap();
    }
    assert_eq!(sender.progress().blocks_sent, 0);
    assert!(matches!(sender.next(0), Step::Send(Frame::Offer(_))));
    assert!(sender.receive(1, committed).is_err(), "an answer to nothing");
}

#[test]
fn lane_lost_after_finish_has_its_blocks_and_the_digests_sent_again() {
    let (mut sender, committed) = sender_with_finish_sent();
    sender.detach(1);
    let again = task(sender.next(0));
    assert!(matches!(sender.next(0), Step::Send(Frame::Digests(_))), "FINISH is repeated meanwhile");
    assert!(matches!(sender.next(0), Step::Send(Frame::Finish(_))));
    sender.receive(0, committed.clone()).unwrap();
    assert_eq!(
        sender.begin(sample(), true),
        Err(SessionError::NotReusable),
        "a block is in the driver's hands"
    );
    assert_eq!(sender.resolve(0, &again, in_full(1)), Ok(None), "nobody needs it any more");
    sender.receive(0, committed).unwrap();
    let progress = sender.progress();
    assert_eq!((progress.blocks_sent, progress.sent_raw_bytes), (2, progress.total_bytes));
    assert_eq!(sender.begin(sample(), true), Err(SessionError::NotReusable), "lane 1 may still be read");
}

#[test]
fn lane_lost_before_finish_may_have_had_the_answer_so_that_it_is_asked_for_again() {
    let (mut sender, _) = sender_with_blocks_due(vec![], 0);
    for lane in [1, 0] {
        let block = task(sender.next(lane));
        sender.resolve(lane, &block, in_full(lane as u8)).unwrap();
    }
    sender.detach(1);
    let again = task(sender.next(0));
    sender.resolve(0, &again, in_full(1)).unwrap();
    told(&mut sender, 0);
    sender.receive(0, Frame::Ack(1)).unwrap();
    assert_eq!(sender.next(0), Step::Wait);
    // The receiver had the block from lane 1 when FINISH came, and has answered there.
    sender.receive(0, Frame::Ack(2)).unwrap();
    told(&mut sender, 0);
    assert_eq!(sender.next(0), Step::Wait, "once is enough: all was acknowledged before");
}

#[test]
fn end_that_was_told_on_a_lane_that_stands_still_is_told_again_on_another() {
    let (mut sender, _) = sender_with_blocks_due(vec![], 0);
    for lane in [0, 1] {
        let block = task(sender.next(lane));
        sender.resolve(lane, &block, in_full(lane as u8)).unwrap();
    }
    let still = |lane| Pace { bytes_per_s: 1e6, waited_s: if lane == 0 { 2.0 } else { 0.0 }, moves: false };
    sender.keep_pace(1, 1.0);
    told(&mut sender, 0);
    sender.receive(1, Frame::Ack(1)).unwrap();
    assert!(!sender.tell_for(1, still), "the block on lane 0 may still come");
    let copy = sender.help(1, still, 0.1, Way::Open).unwrap();
    sender.resolve(1, &copy, in_full(0)).unwrap();
    sender.receive(1, Frame::Ack(2)).unwrap();
    assert!(!sender.tell_for(0, still) && sender.tell_for(1, still));
    told(&mut sender, 1);
    assert!(!sender.tell_for(1, still), "once is enough");
    assert!(!sender.is_reusable(), "there may be two answers");
}

#[test]
fn another_transfer_may_follow_once_copies_are_answered_but_not_those_of_a_lost_lane() {
    for is_lost in [false, true] {
        let (mut sender, _) = sender_with_blocks_due(vec![], 0);
        for lane in [0, 1] {
            let block = task(sender.next(lane));
            sender.resolve(lane, &block, in_full(lane as u8)).unwrap();
        }
        sender.receive(1, Frame::Ack(1)).unwrap();
        let still =
            |lane| Pace { bytes_per_s: 1e6, waited_s: if lane == 0 { 2.0 } else { 0.0 }, moves: false };
        let copy = sender.help(1, still, 0.1, Way::Open).unwrap();
        sender.resolve(1, &copy, in_full(0)).unwrap();
        let (transfer_id, transfer_digest) = told(&mut sender, 1);
        assert!(!sender.awaits_copies(), "it is not over yet");
        let committed = Committed { transfer_id, transfer_digest, body_bytes: 2 };
        sender.receive(1, Frame::Committed(committed)).unwrap();
        assert!(sender.awaits_copies() && !sender.is_reusable());
        sender.receive(1, Frame::Ack(2)).unwrap();
        assert!(sender.awaits_copies(), "the block may still be read on lane 0");
        if is_lost {
            sender.detach(0);
            assert!(!sender.awaits_copies() && !sender.is_reusable(), "nobody answers on it any more");
        } else {
            sender.receive(0, Frame::Ack(1)).unwrap();
            assert!(!sender.awaits_copies() && sender.is_reusable());
            sender.begin(sample(), true).unwrap();
        }
    }
}

#[test]
fn few_blocks_are_sent_twice_where_lanes_seem_to_share_a_way() {
    // A lane that has had no block acknowledged in a while may be as fast, unless it stands still.
    for (blocks, way, rate, waited_s, moves, copies) in [
        (64, Way::Full, 1e6, 0.0, true, 2),
        (64, Way::Full, 1e5, 0.0, true, 4),
        (64, Way::Full, 0.0, 9.0, true, 2),
        (64, Way::Full, 0.0, 1.5, false, 4),
        (64, Way::Full, 0.0, 2.0, false, 63),
        (8, Way::Open, 1e6, 0.0, true, 2),
        (8, Way::Full, 1e6, 0.0, true, 0),
        (8, Way::Full, 1e5, 0.0, true, 2),
        (64, Way::Short, 1e6, 0.0, true, 0),
        (64, Way::Short, 1e5, 0.0, true, 0),
        (64, Way::Short, 0.0, 1.5, false, 4),
        (64, Way::Short, 0.0, 2.0, false, 63),
    ] {
        let file = entry(EntryKind::File, "f", u64::from(blocks) * u64::from(BLOCK));
        let manifest = Arc::new(manifest_of(vec![file]).unwrap());
        let mut sender = sender_of(&manifest, vec![], 0);
        for block in 0..blocks {
            let lane = u32::from(block > 0);
            let task = task(sender.next(lane));
            sender.resolve(lane, &task, in_full(block)).unwrap();
        }
        sender.receive(0, Frame::Ack(1)).unwrap();
        let pace = |lane| match lane {
            1 => Pace { bytes_per_s: rate, waited_s, moves },
            _ => Pace { bytes_per_s: 2e6, waited_s: 0.0, moves: true },
        };
        let mut helped = 0;
        while let Some(copy) = sender.help(0, pace, 0.0, way) {
            sender.resolve(0, &copy, in_full((copy.offset / u64::from(BLOCK)) as u8)).unwrap();
            helped += 1;
            sender.receive(0, Frame::Ack(1 + helped)).unwrap();
        }
        let case = format!("{blocks} blocks, {way:?}, {rate} bytes/s, moves: {moves}");
        assert_eq!(helped, copies, "{case}");
    }
}

#[test]
fn finish_waits_for_blocks_that_replace_staged_ones() {
    let other = Have {
        entry: 0,
        source: HaveSource::Staged,
        first_block: 0,
        digests: vec![Digest([1; 16]), Digest([2; 16])],
    };
    let (mut sender, _) = sender_with_blocks_due(vec![other], SIZE + 1);
    let (first, second) = (task(sender.next(0)), task(sender.next(1)));
    sender.resolve(0, &first, in_full(7)).unwrap();
    sender.resolve(1, &second, in_full(8)).unwrap();
    // The receiver has all blocks staged, and would not wait for these.
    assert_eq!((sender.next(0), sender.next(1)), (Step::Wait, Step::Wait));
    sender.receive(0, Frame::Ack(1)).unwrap();
    sender.detach(1);
    let second = task(sender.next(0));
    sender.resolve(0, &second, in_full(8)).unwrap();
    assert_eq!(sender.next(0), Step::Wait);
    sender.receive(0, Frame::Ack(2)).unwrap();
    assert!(matches!(sender.next(0), Step::Send(Frame::Digests(_))));
}

#[test]
fn refused_block_comes_in_full_once_and_cannot_be_refused_again() {
    let haves = vec![Have { entry: 0, source: HaveSource::Candidate(0), first_block: 0, digests: vec![] }];
    let (mut sender, _) = sender_with_blocks_due(haves, 0);
    let first = task(sender.next(0));
    assert_eq!((first.candidate, first.plain), (Some(0), false));
    let digest = Digest([1; 16]);
    sender.resolve(0, &first, Resolution::Same { digest }).unwrap();
    let nack = |offset| Frame::Nack(Nack { entry: 0, reason: NackReason::BaseDiffers, offset });
    assert!(sender.receive(1, nack(0)).is_err(), "it went over lane 0");
    assert!(sender.receive(0, nack(SIZE)).is_err(), "it was not sent");
    sender.receive(0, nack(0)).unwrap();
    assert!(sender.receive(0, nack(0)).is_err(), "it was refused before");
    let again = task(sender.next(1));
    assert_eq!(again, BlockTask { candidate: None, plain: true, ..first });
    assert!(sender.resolve(1, &again, Resolution::Same { digest }).is_err());
    sender.resolve(1, &again, in_full(1)).unwrap();
    assert!(sender.receive(1, nack(0)).is_err(), "it was sent in full");
    sender.receive(0, Frame::Ack(1)).unwrap();
    assert_eq!(sender.progress().blocks_same, 0, "the acknowledged frame was refused");
}

#[test]
fn acknowledgement_of_what_was_not_sent_is_refused() {
    let (mut sender, _) = sender_with_blocks_due(vec![], 0);
    let first = task(sender.next(0));
    assert!(sender.receive(0, Frame::Ack(1)).is_err());
    sender.resolve(0, &first, in_full(1)).unwrap();
    assert!(sender.receive(1, Frame::Ack(1)).is_err());
    sender.receive(0, Frame::Ack(1)).unwrap();
    assert!(matches!(sender.receive(0, Frame::Ack(0)), Err(SessionError::OutOfRange { .. })));
}

#[test]
fn window_holds_a_lane_back_but_not_the_others() {
    let manifest = sample();
    for options in [
        SenderOptions { max_unacked_frames: 1, max_unacked_bytes: u64::MAX },
        SenderOptions { max_unacked_frames: 100, max_unacked_bytes: 0 },
    ] {
        let mut sender = SenderSession::new(Arc::clone(&manifest), false, options);
        sender.attach(0);
        sender.attach(1);
        sender.next(0);
        sender.next(0);
        let transfer_id = manifest.transfer_id();
        sender.receive(0, Frame::Accept(Accept { transfer_id, staged_bytes: 0 })).unwrap();
        let first = task(sender.next(0));
        assert_eq!(sender.next(0), Step::Wait);
        sender.resolve(0, &first, in_full(1)).unwrap();
        assert_eq!(sender.next(0), Step::Wait);
        assert_eq!(task(sender.next(1)).offset, SIZE);
        sender.detach(1);
        sender.receive(0, Frame::Ack(1)).unwrap();
        assert_eq!(task(sender.next(0)).offset, SIZE, "the task of the lost lane");
    }
}

#[test]
fn source_that_changed_between_two_copies_is_told() {
    let (mut sender, _) = sender_with_blocks_due(vec![], 0);
    let first = task(sender.next(0));
    sender.resolve(0, &first, in_full(1)).unwrap();
    sender.detach(0);
    let again = task(sender.next(1));
    assert_eq!(again.offset, first.offset);
    let changed = sender.resolve(1, &again, in_full(2));
    assert_eq!(changed, Err(SessionError::SourceChanged { entry: 0, offset: 0 }));
}

#[test]
fn session_that_lost_frames_is_not_used_again() {
    let (mut sender, manifest) = sender_with_blocks_due(vec![], 0);
    assert!(matches!(sender.begin(Arc::clone(&manifest), true), Err(SessionError::Unexpected { .. })));
    let first = task(sender.next(0));
    sender.resolve(0, &first, in_full(1)).unwrap();
    sender.detach(0);
    for _ in 0..2 {
        let block = task(sender.next(1));
        sender.resolve(1, &block, in_full(1)).unwrap();
    }
    sender.receive(1, Frame::Ack(2)).unwrap();
    sender.next(1);
    let Step::Send(Frame::Finish(finish)) = sender.next(1) else { panic!() };
    let committed = dwcp_proto::frame::Committed {
        transfer_id: finish.transfer_id,
        transfer_digest: Digest([0; 16]),
        body_bytes: 0,
    };
    let refused = sender.receive(1, Frame::Committed(committed.clone()));
    assert_eq!(refused, Err(SessionError::TransferDigest));
    assert_eq!(sender.outcome(), None);
    let committed = dwcp_proto::frame::Committed { transfer_digest: finish.transfer_digest, ..committed };
    sender.receive(1, Frame::Committed(committed.clone())).unwrap();
    assert_eq!((sender.outcome(), sender.next(1)), (Some(committed), Step::Done));
    assert_eq!(sender.begin(manifest, true), Err(SessionError::NotReusable));
}

#[test]
fn digests_are_told_in_frames_that_a_slow_link_carries() {
    let directory = |number: usize| entry(EntryKind::Directory, &number.to_string(), 0);
    let manifest = Arc::new(manifest_of((0..=4_096).map(directory).collect()).unwrap());
    let mut sender = SenderSession::new(Arc::clone(&manifest), true, SenderOptions::default());
    sender.attach(0);
    while sender.next(0) != Step::Wait {}
    let accept = Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 };
    sender.receive(0, Frame::Accept(accept)).unwrap();
    let told = [(), ()].map(|()| match sender.next(0) {
        Step::Send(Frame::Digests(digests)) => (digests.first_entry as usize, digests.digests.len()),
        other => panic!("{other:?}"),
    });
    assert_eq!(told, [(0, 4_096), (4_096, 1)]);
}
