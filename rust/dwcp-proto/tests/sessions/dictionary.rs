//! What both sides do about the dictionary of a transfer.

use dwcp_codec::Dictionary;
use dwcp_proto::frame::{DictionaryNote, DictionaryWord};
use dwcp_proto::limits::MAX_DICTIONARY;

use super::*;

fn dictionary(fill: u8) -> Arc<Dictionary> {
    Arc::new(Dictionary::new(vec![fill; 300]).unwrap())
}

fn note(dictionary: &Dictionary, word: DictionaryWord) -> Frame {
    let (digest, length) = (dictionary.digest(), dictionary.bytes().len() as u32);
    Frame::Dictionary(DictionaryNote { digest, length, word })
}

fn given(dictionary: &Dictionary) -> Frame {
    note(dictionary, DictionaryWord::Given(dictionary.bytes().to_vec()))
}

/// A block that says that it is made with the dictionary.
fn made_with_it() -> Frame {
    let (kind, codec) = (BlockKind::Plain, CodecId::ZstdDictionary);
    Frame::Block(BlockHead { kind, codec, ..block(1, 1, 9) })
}

/// A receiver on whose lane 0 the sample was offered and `announced`; and its answer.
fn receiver_that_heard_of(
    announced: &Dictionary,
    known: &[Arc<Dictionary>],
    max_dictionary: u32,
) -> (ReceiverSession, Action) {
    let limits = Limits { max_dictionary, ..Limits::default() };
    let mut receiver = ReceiverSession::new(limits).knowing(known.into());
    receiver.attach(0);
    receiver.attach(1);
    receiver.receive(0, offer(&sample(), 0)).unwrap();
    let answer = receiver.receive(0, note(announced, DictionaryWord::Announced)).unwrap();
    (receiver, answer)
}

/// Lets the receiver hear of all entries, and find nothing that it holds.
fn prepared(receiver: &mut ReceiverSession) -> Vec<Frame> {
    receiver.receive(0, whole(&sample())).unwrap();
    receiver.prepared(0, vec![], 0).unwrap()
}

fn accept() -> Frame {
    Frame::Accept(Accept { transfer_id: sample().transfer_id(), staged_bytes: 0 })
}

#[test]
fn dictionary_that_the_receiver_does_not_know_is_given_before_it_accepts() {
    let ours = dictionary(1);
    let (mut receiver, answer) = receiver_that_heard_of(&ours, &[dictionary(2)], 300);
    assert_eq!(answer, Action::Answer(note(&ours, DictionaryWord::Wanted)));
    assert_eq!(prepared(&mut receiver), []);
    assert!(matches!(receiver.receive(1, made_with_it()), Err(SessionError::Unexpected { .. })));
    assert_eq!(receiver.receive(0, given(&ours)), Ok(Action::Answer(accept())));
    assert_eq!(receiver.dictionary(), Some(ours));
    assert!(matches!(receiver.receive(1, made_with_it()), Ok(Action::Store(_))));
}

#[test]
fn dictionary_that_the_receiver_knows_is_not_asked_for() {
    let ours = dictionary(1);
    let (mut receiver, answer) = receiver_that_heard_of(&ours, &[dictionary(2), dictionary(1)], 300);
    assert_eq!(answer, Action::None);
    assert_eq!(prepared(&mut receiver), [accept()]);
    assert!(matches!(receiver.receive(1, made_with_it()), Ok(Action::Store(_))));
    assert_eq!(
        receiver.receive(0, given(&ours)),
        Err(SessionError::Unexpected { frame: "DICTIONARY", phase: "blocks" })
    );
}

#[test]
fn dictionary_that_is_too_long_is_declined_and_a_block_made_with_it_refused() {
    let ours = dictionary(1);
    let (mut receiver, answer) = receiver_that_heard_of(&ours, &[], 299);
    assert_eq!(answer, Action::Answer(note(&ours, DictionaryWord::Declined)));
    assert_eq!(
        receiver.receive(0, given(&ours)),
        Err(SessionError::DictionaryOrder { digest: ours.digest() })
    );
    assert_eq!(prepared(&mut receiver), [accept()]);
    assert_eq!(
        receiver.receive(0, made_with_it()),
        Err(SessionError::NoDictionary { entry: 0, offset: SIZE })
    );
}

#[test]
fn block_made_with_a_dictionary_that_was_never_announced_is_refused() {
    let (mut receiver, _) = receiver_with_blocks_due();
    let refused = receiver.receive(0, made_with_it()).unwrap_err();
    assert_eq!(refused, SessionError::NoDictionary { entry: 0, offset: SIZE });
    assert_eq!(refused.code(), ErrorCode::Format);
}

#[test]
fn dictionary_that_lies_about_itself_is_refused() {
    let (ours, other) = (dictionary(1), dictionary(2));
    let wanted = || receiver_that_heard_of(&ours, &[], 300).0;
    let forged = note(&ours, DictionaryWord::Given(other.bytes().to_vec()));
    let refused = wanted().receive(0, forged).unwrap_err();
    assert_eq!(refused, SessionError::DictionaryDigest { expected: ours.digest(), actual: other.digest() });
    assert_eq!(refused.code(), ErrorCode::Integrity);
    let order = |dictionary: &Dictionary| Err(SessionError::DictionaryOrder { digest: dictionary.digest() });
    assert_eq!(wanted().receive(0, given(&other)), order(&other));
    let longer = Frame::Dictionary(DictionaryNote {
        digest: ours.digest(),
        length: 301,
        word: DictionaryWord::Given(vec![1; 301]),
    });
    assert_eq!(wanted().receive(0, longer), order(&ours));
    // What is announced as a trained dictionary, by its magic, and is none.
    let damaged = [&[0x37, 0xA4, 0x30, 0xEC][..], &[0xFF; 20]].concat();
    let (digest, length) = (Digest::of(&damaged), damaged.len() as u32);
    let mut receiver = wanted();
    receiver.receive(1, offer(&sample(), 1)).unwrap();
    let word = DictionaryWord::Announced;
    receiver.receive(1, Frame::Dictionary(DictionaryNote { digest, length, word })).unwrap();
    let word = DictionaryWord::Given(damaged);
    assert_eq!(
        receiver.receive(1, Frame::Dictionary(DictionaryNote { digest, length, word })),
        Err(SessionError::UnusableDictionary { digest, length })
    );
}

#[test]
fn dictionary_is_announced_once_and_given_once_and_on_the_lane_of_the_offer() {
    let ours = dictionary(1);
    let announced = || note(&ours, DictionaryWord::Announced);
    let order = Err(SessionError::DictionaryOrder { digest: ours.digest() });
    let (mut receiver, _) = receiver_that_heard_of(&ours, &[], 300);
    assert_eq!(receiver.receive(0, announced()), order);
    assert_eq!(
        receiver.receive(1, given(&ours)),
        Err(SessionError::WrongLane { frame: "DICTIONARY", lane: 1 })
    );
    assert_eq!(receiver.receive(0, given(&ours)), Ok(Action::None));
    assert_eq!(receiver.receive(0, given(&ours)), order);
    assert_eq!(receiver.receive(0, note(&ours, DictionaryWord::Wanted)), order);
    receiver.receive(0, whole(&sample())).unwrap();
    assert!(matches!(receiver.receive(0, announced()), Err(SessionError::Unexpected { .. })), "too late");
}

#[test]
fn offer_that_is_repeated_settles_the_dictionary_anew() {
    let ours = dictionary(1);
    let (mut receiver, _) = receiver_that_heard_of(&ours, &[], 300);
    assert_eq!(prepared(&mut receiver), []);
    receiver.receive(1, offer(&sample(), 1)).unwrap();
    // What the lane that was given up still brings is not for this offer.
    assert_eq!(receiver.receive(0, given(&ours)), Ok(Action::None));
    assert_eq!(receiver.dictionary(), None);
    let answer = receiver.receive(1, note(&ours, DictionaryWord::Announced));
    assert_eq!(answer, Ok(Action::Answer(note(&ours, DictionaryWord::Wanted))));
    receiver.receive(1, given(&ours)).unwrap();
    receiver.receive(1, whole(&sample())).unwrap();
    assert_eq!(receiver.prepared(1, vec![], 0).unwrap(), [accept()]);
}

#[test]
fn session_keeps_the_last_four_dictionaries_that_it_was_given() {
    let (mut receiver, _) = receiver_that_heard_of(&dictionary(0), &[], 300);
    receiver.receive(0, given(&dictionary(0))).unwrap();
    let mut number = 0;
    let mut announce = |receiver: &mut ReceiverSession, dictionary: &Dictionary| {
        number += 1;
        receiver.receive(0, offer(&sample(), number)).unwrap();
        receiver.receive(0, note(dictionary, DictionaryWord::Announced)).unwrap()
    };
    for fill in 1..5 {
        assert!(matches!(announce(&mut receiver, &dictionary(fill)), Action::Answer(_)));
        receiver.receive(0, given(&dictionary(fill))).unwrap();
    }
    assert_eq!(announce(&mut receiver, &dictionary(1)), Action::None, "it is known by now");
    assert!(matches!(announce(&mut receiver, &dictionary(0)), Action::Answer(_)), "it was forgotten");
}

/// A sender with lanes 0 and 1 that has announced `ours` on lane 0.
fn sender_that_announced(ours: &Arc<Dictionary>) -> SenderSession {
    let mut sender =
        SenderSession::new(sample(), true, SenderOptions::default()).offering(Some(Arc::clone(ours)));
    sender.attach(0);
    sender.attach(1);
    assert_eq!(sender.next(0), Step::Send(offer(&sample(), 0)));
    assert_eq!(sender.next(0), Step::Send(note(ours, DictionaryWord::Announced)));
    assert_eq!(sender.next(0), Step::Send(whole(&sample())));
    sender
}

fn with_it() -> Resolution {
    let (kind, codec) = (BlockKind::Plain, CodecId::ZstdDictionary);
    Resolution::Block { digest: Digest([1; 16]), base_digest: None, kind, codec, wire_len: 1 }
}

#[test]
fn sender_gives_the_dictionary_once_if_it_is_wanted() {
    let ours = dictionary(1);
    let mut sender = sender_that_announced(&ours);
    let wanted = note(&ours, DictionaryWord::Wanted);
    assert_eq!(
        sender.receive(1, wanted.clone()),
        Err(SessionError::WrongLane { frame: "DICTIONARY", lane: 1 })
    );
    sender.receive(0, wanted.clone()).unwrap();
    assert!(
        matches!(sender.receive(0, accept()), Err(SessionError::Unexpected { .. })),
        "it has nothing yet"
    );
    assert_eq!(sender.next(1), Step::Wait);
    assert_eq!(sender.next(0), Step::Send(given(&ours)));
    assert_eq!(sender.next(0), Step::Wait);
    assert!(sender.receive(0, wanted).is_err(), "it was given");
    sender.receive(0, accept()).unwrap();
    let block = task(sender.next(1));
    assert!(block.dictionary);
    assert!(matches!(sender.resolve(1, &block, with_it()), Ok(Some(Frame::Block(_)))));
}

#[test]
fn sender_makes_no_block_with_a_dictionary_that_was_declined_or_not_offered() {
    let ours = dictionary(1);
    let mut declined = sender_that_announced(&ours);
    declined.receive(0, note(&ours, DictionaryWord::Declined)).unwrap();
    declined.receive(0, accept()).unwrap();
    let (without, _) = sender_with_blocks_due(vec![], 0);
    for mut sender in [declined, without] {
        let block = task(sender.next(0));
        assert!(!block.dictionary);
        assert!(matches!(sender.resolve(0, &block, with_it()), Err(SessionError::Resolution { .. })));
        assert!(sender.receive(0, note(&ours, DictionaryWord::Wanted)).is_err());
    }
}

#[test]
fn sender_announces_again_when_the_lane_is_lost_and_for_the_next_transfer() {
    let ours = dictionary(1);
    let mut sender = sender_that_announced(&ours);
    sender.receive(0, note(&ours, DictionaryWord::Declined)).unwrap();
    sender.detach(0);
    assert_eq!(sender.next(1), Step::Send(repeated(&sample(), 1, 1)));
    assert_eq!(sender.next(1), Step::Send(note(&ours, DictionaryWord::Announced)));
    assert_eq!(sender.next(1), Step::Send(whole(&sample())));
    sender.receive(1, accept()).unwrap();
    assert!(task(sender.next(1)).dictionary, "the receiver knows it by now");
}

#[test]
fn longest_dictionary_fills_a_head() {
    let bytes = vec![7; MAX_DICTIONARY];
    let (digest, length) = (Digest::of(&bytes), bytes.len() as u32);
    let mut out = vec![];
    let frame =
        |bytes| Frame::Dictionary(DictionaryNote { digest, length, word: DictionaryWord::Given(bytes) });
    let mut encoder = dwcp_proto::FrameEncoder::new();
    assert!(encoder.encode(&frame(vec![7; MAX_DICTIONARY + 1]), 0, &mut out).is_err());
    encoder.encode(&frame(bytes), 0, &mut out).unwrap();
    assert_eq!(out.len(), dwcp_proto::limits::HEADER_BYTES + dwcp_proto::limits::MAX_HEAD);
}
