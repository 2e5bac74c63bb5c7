//! A state that goes right behind its offer.

use dwcp_proto::limits::{MAX_EARLY_BYTES, MAX_EARLY_ENTRIES};

use super::*;

/// One buffer of so many bytes.
fn buffer(size: u64) -> Arc<Manifest> {
    Arc::new(manifest_of(vec![entry(EntryKind::Buffer, "b", size)]).unwrap())
}

fn sender(manifest: &Arc<Manifest>) -> SenderSession {
    let mut sender = SenderSession::new(Arc::clone(manifest), true, SenderOptions::default());
    sender.attach(0);
    sender.attach(1);
    sender
}

fn sent(step: Step) -> Frame {
    match step {
        Step::Send(frame) => frame,
        other => panic!("{other:?}"),
    }
}

/// Lets a lane say what it may without an answer, and gives that.
fn said(sender: &mut SenderSession, lane: u32) -> Vec<Frame> {
    let mut frames = vec![];
    loop {
        match sender.next(lane) {
            Step::Send(frame) => frames.push(frame),
            Step::Block(task) => frames.extend(sender.resolve(lane, &task, in_full(7)).unwrap()),
            Step::Wait | Step::Done => return frames,
        }
    }
}

fn names(frames: &[Frame]) -> Vec<&'static str> {
    frames.iter().map(Frame::name).collect()
}

/// A receiver with lanes 0 and 1 that has taken what a sender of `manifest` says on lane 0, up to the commit.
fn receiver_of(manifest: &Arc<Manifest>, frames: Vec<Frame>) -> ReceiverSession {
    let mut receiver = ReceiverSession::new(Limits::default());
    receiver.attach(0);
    receiver.attach(1);
    for frame in frames {
        match receiver.receive(0, frame).unwrap() {
            Action::Prepare(..) => drop(receiver.prepared(0, vec![], 0).unwrap()),
            Action::Store(head) => receiver.stored(0, head.entry, head.offset, head.digest, 1),
            Action::None => {}
            Action::Commit => return receiver,
            other => panic!("{other:?}"),
        }
    }
    panic!("{} is not all there", manifest.transfer_id())
}

#[test]
fn small_state_goes_with_its_offer_on_one_lane_and_a_larger_one_is_asked_for() {
    let mut small = sender(&buffer(MAX_EARLY_BYTES - 200));
    let frames = said(&mut small, 0);
    assert_eq!(names(&frames), ["OFFER", "MANIFEST", "BLOCK", "DIGESTS", "FINISH"]);
    assert_eq!((small.next(1), small.teller()), (Step::Wait, None));
    let many = (0..=MAX_EARLY_ENTRIES).map(|at| entry(EntryKind::Directory, &format!("{at:03}"), 0));
    for manifest in [buffer(MAX_EARLY_BYTES), Arc::new(manifest_of(many.collect()).unwrap())] {
        assert_eq!(names(&said(&mut sender(&manifest), 0)), ["OFFER", "MANIFEST"]);
    }
}

#[test]
fn answers_to_what_went_with_its_offer_come_in_order() {
    let manifest = buffer(100);
    let mut sender = sender(&manifest);
    let frames = said(&mut sender, 0);
    let mut receiver = receiver_of(&manifest, frames);
    let committed = receiver.committed().unwrap();
    assert!(matches!(sender.receive(0, committed.clone()), Err(SessionError::Unexpected { .. })));
    let accept = Frame::Accept(Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 });
    assert_eq!(sender.receive(1, accept.clone()), Err(SessionError::WrongLane { frame: "ACCEPT", lane: 1 }));
    sender.receive(0, accept).unwrap();
    sender.receive(0, committed).unwrap();
    assert_eq!((sender.next(0), sender.is_reusable()), (Step::Done, true));
    assert_eq!(sender.progress().sent_raw_bytes, 100);
}

#[test]
fn state_in_place_is_not_taken_again_when_it_is_offered_again() {
    let manifest = buffer(100);
    let mut sender = sender(&manifest);
    let frames = said(&mut sender, 0);
    for is_committed in [true, false] {
        let mut receiver = receiver_of(&manifest, frames.clone());
        if is_committed {
            receiver.committed().unwrap();
        }
        // An offer of another transfer of the same names and lengths is one, and so is one that repeats that.
        let mut other = receiver_of(&manifest, frames.clone());
        other.committed().unwrap();
        assert_eq!(other.receive(1, offer(&manifest, 1)), Ok(Action::None));
        let mut other = receiver_of(&manifest, frames.clone());
        other.committed().unwrap();
        assert_eq!(other.receive(1, repeated(&manifest, 1, 2)), Ok(Action::None));
        let answer = receiver.receive(1, repeated(&manifest, 2, 2)).unwrap();
        assert_eq!(matches!(answer, Action::Recommitted(_)), is_committed);
        assert_eq!(answer == Action::Commit, !is_committed);
        assert_eq!(receiver.receive(1, whole(&manifest)), Ok(Action::None));
    }
    sender.detach(0);
    assert_eq!(sent(sender.next(1)), repeated(&manifest, 1, 1));
    assert_eq!(names(&said(&mut sender, 1)), ["MANIFEST"]);
    sender.receive(1, receiver_of(&manifest, frames).committed().unwrap()).unwrap();
    let progress = sender.progress();
    assert_eq!((progress.sent_raw_bytes, progress.resent_blocks), (100, 1));
    assert!(sender.tree_digest(0).is_some() && !sender.is_reusable());
}

#[test]
fn what_replaces_a_staged_block_is_there_before_the_end_is_told_on_another_lane() {
    let manifest = buffer(100);
    let mut sender = sender(&manifest);
    said(&mut sender, 0);
    let have = Have { entry: 0, source: HaveSource::Staged, first_block: 0, digests: vec![Digest([1; 16])] };
    sender.receive(0, Frame::Have(have)).unwrap();
    let transfer_id = manifest.transfer_id();
    sender.receive(0, Frame::Accept(Accept { transfer_id, staged_bytes: 100 })).unwrap();
    sender.detach(0);
    assert_eq!(names(&said(&mut sender, 1)), ["BLOCK"]);
    sender.receive(1, Frame::Ack(1)).unwrap();
    assert_eq!(names(&said(&mut sender, 1)), ["DIGESTS", "FINISH"]);
}

#[test]
fn nothing_is_taken_of_an_offer_that_was_given_up() {
    let manifest = buffer(100);
    let frames = said(&mut sender(&manifest), 0);
    // Its sender is gone, or has offered it again.
    for again in [false, true] {
        let mut receiver = ReceiverSession::new(Limits::default());
        receiver.attach(0);
        receiver.attach(1);
        for frame in &frames[..2] {
            receiver.receive(0, frame.clone()).unwrap();
        }
        if again {
            assert_eq!(receiver.receive(1, repeated(&manifest, 1, 1)), Ok(Action::None));
        } else {
            receiver.give_up(0);
        }
        for frame in &frames[2..] {
            assert_eq!(receiver.receive(0, frame.clone()), Ok(Action::None));
        }
        if again {
            assert!(matches!(receiver.receive(1, whole(&manifest)), Ok(Action::Prepare(..))));
            receiver.prepared(1, vec![], 0).unwrap();
            assert_eq!(receiver.missing_blocks(), 1);
        }
    }
}
