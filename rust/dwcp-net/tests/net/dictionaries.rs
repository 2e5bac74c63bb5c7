//! Transfers of small files with a dictionary.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use dwcp_codec::{Codec, CodecId, Dictionary, Digest};
use dwcp_net::security::{DialSecurity, ListenSecurity};
use dwcp_net::{
    Cancel, CodecChoice, FetchOptions, FetchSession, NetError, ReceiveOptions, ReceiveReport, SendOptions,
    SendReport, SendSession,
};
use dwcp_proto::frame::{BlockHead, DictionaryNote, DictionaryWord, ErrorCode, Frame};
use dwcp_proto::{Limits, SessionError};
use dwcp_store::{BaseChoice, Sink};

use super::fetching::{accepted, quick_fetch};
use super::hostile::{Hand, block};
use super::support::*;

fn record(number: usize) -> Vec<u8> {
    let (user, score) = (number * 7919 % 10_000, number * 31 % 997);
    format!(
        "{{\"user\": \"u{user:05}\", \"region\": \"eu-west-{}\", \"state\": \"ok\", \"score\": {score}}}",
        number % 3
    )
    .into_bytes()
}

fn trained() -> Arc<Dictionary> {
    let samples: Vec<Vec<u8>> = (0..500).map(record).collect();
    let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
    Arc::new(Dictionary::train(&samples.concat(), &lengths, 2_048).unwrap())
}

/// A tree of 200 records that are not among the samples.
fn make_tree(path: &Path) {
    fs::create_dir_all(path).unwrap();
    (1_000..1_200).for_each(|number| fs::write(path.join(format!("{number}.json")), record(number)).unwrap());
}

fn assert_arrived(into: &Path) {
    for number in 1_000..1_200 {
        assert_eq!(fs::read(into.join(format!("{number}.json"))).unwrap(), record(number));
    }
}

fn sending(dictionary: Option<Arc<Dictionary>>) -> SendOptions {
    SendOptions { codec: CodecChoice::Fixed(Codec::Zstd { level: 3 }), dictionary, ..quick_send() }
}

/// Blocks that were made with a dictionary.
fn with_dictionary(report: &SendReport) -> u64 {
    let made = report.codec_mix.iter().filter(|share| share.codec == CodecId::ZstdDictionary);
    made.map(|share| share.blocks).sum()
}

/// Sends the tree with `dictionary` to a receiver with these options.
fn transfer(options: ReceiveOptions, dictionary: Option<Arc<Dictionary>>) -> (SendReport, ReceiveReport) {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree(&from.path().join("tree"));
    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));
    let (manifest, source) = tree(&from.path().join("tree"), BaseChoice::None);
    let sent =
        send_once(&receiver.address(), &receiver.dial, sending(dictionary), &(manifest, source)).unwrap();
    let received = join(received).unwrap();
    assert_arrived(&to.path().join("tree"));
    assert_eq!(received.bytes_wire, sent.bytes_wire);
    (sent, received)
}

#[test]
fn small_files_take_less_with_a_dictionary_whether_or_not_the_receiver_knows_it() {
    let (plain, _) = transfer(quick_receive(), None);
    assert_eq!(with_dictionary(&plain), 0);
    let known = ReceiveOptions { dictionaries: [trained()].into(), ..quick_receive() };
    for options in [quick_receive(), known] {
        let (sent, received) = transfer(options, Some(trained()));
        assert_eq!(with_dictionary(&sent), 200);
        assert!(sent.bytes_wire * 2 < plain.bytes_wire, "{} {}", sent.bytes_wire, plain.bytes_wire);
        let share = received.codec_mix.iter().find(|share| share.codec == CodecId::ZstdDictionary).unwrap();
        assert_eq!(share.blocks, 200);
    }
}

#[test]
fn receiver_that_takes_no_dictionary_or_a_shorter_one_is_served_without() {
    for max_dictionary in [0, 100] {
        let limits = Limits { max_dictionary, ..Limits::default() };
        let (sent, _) = transfer(ReceiveOptions { limits, ..quick_receive() }, Some(trained()));
        assert_eq!((with_dictionary(&sent), sent.sessions, sent.lanes_lost), (0, 1, 0));
    }
}

#[test]
fn listener_that_serves_makes_blocks_with_its_dictionary_if_the_peer_takes_it() {
    let serving = ReceiveOptions { serve: Some(sending(Some(trained()))), ..quick_receive() };
    let server = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, serving);
    let takes_none = Limits { max_dictionary: 0, ..Limits::default() };
    let options = [
        quick_fetch(),
        FetchOptions { dictionaries: [trained()].into(), ..quick_fetch() },
        FetchOptions { limits: takes_none, ..quick_fetch() },
    ];
    for (options, blocks) in options.into_iter().zip([200, 200, 0]) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_tree(&from.path().join("tree"));
        let log = Arc::new(Log::default());
        let session =
            FetchSession::connect(&server.address(), server.dial.clone(), options, &Cancel::new(), log)
                .unwrap();
        std::thread::scope(|scope| {
            let answering = scope.spawn(|| {
                let peer = accepted(&server).unwrap();
                peer.next_request(Some(PATIENCE)).unwrap().unwrap();
                let (manifest, source) = tree(&from.path().join("tree"), BaseChoice::None);
                peer.send(manifest, source).unwrap()
            });
            let sink: Arc<dyn Sink> = tree_sink(to.path().to_path_buf());
            session.fetch(b"", &sink, Some(PATIENCE)).unwrap();
            session.close();
            assert_eq!(with_dictionary(&answering.join().unwrap()), blocks);
        });
        assert_arrived(&to.path().join("tree"));
    }
}

#[test]
fn dictionary_is_settled_again_in_the_session_that_follows_a_lost_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree(&from.path().join("tree"));
    let receiver = plain_receiver();
    let session = SendSession::connect(
        &receiver.address(),
        receiver.dial.clone(),
        sending(Some(trained())),
        &Cancel::new(),
        Arc::new(Log::default()),
    )
    .unwrap();
    // The receiver forgets the session before the first transfer, so that the sender has to open another.
    drop(receiver.listener.accept(Some(PATIENCE)).unwrap());
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));
    let (manifest, source) = tree(&from.path().join("tree"), BaseChoice::None);
    let sent = session.send(manifest, source).unwrap();
    join(received).unwrap();
    assert_eq!(with_dictionary(&sent), 200);
    assert_arrived(&to.path().join("tree"));
}

#[test]
fn dictionary_that_no_frame_can_hold_is_refused_before_anybody_is_dialled() {
    let long = Arc::new(Dictionary::new(noise(1, 1_048_553)).unwrap());
    let refused = send_once(
        "127.0.0.1:1",
        &DialSecurity::Insecure,
        sending(Some(long)),
        &buffers(&[("a", vec![1])], 65_536),
    );
    assert!(matches!(refused, Err(NetError::Option { name: "dictionary", value: 1_048_553, .. })));
}

fn note(content: &[u8], word: DictionaryWord) -> Frame {
    Frame::Dictionary(DictionaryNote { digest: Digest::of(content), length: content.len() as u32, word })
}

/// The block of these bytes, which says that it is made with the dictionary.
fn made_with_it(bytes: &[u8]) -> Frame {
    let Frame::Block(head) = block(bytes, 0, Digest::of(bytes)) else { unreachable!() };
    Frame::Block(BlockHead { codec: CodecId::ZstdDictionary, ..head })
}

#[test]
fn peers_that_lie_about_a_dictionary_end_the_session() {
    let content = b"what they have in common".to_vec();
    let bytes = record(1);
    let note = |word| note(&content, word);
    let made_with_it = made_with_it(&bytes);
    let forged: Vec<u8> = content.iter().map(|byte| byte ^ 1).collect();
    let announced = || vec![note(DictionaryWord::Announced)];
    // What stands behind OFFER, the answer to it, what comes then, and what ends the session.
    let cases = [
        ("never announced", vec![], "ACCEPT", made_with_it.clone(), ErrorCode::Format),
        (
            "a forged one",
            announced(),
            "DICTIONARY",
            note(DictionaryWord::Given(forged)),
            ErrorCode::Integrity,
        ),
        ("announced twice", announced(), "DICTIONARY", note(DictionaryWord::Announced), ErrorCode::Format),
        ("unasked", vec![], "ACCEPT", note(DictionaryWord::Given(content.clone())), ErrorCode::Format),
        ("too early", announced(), "DICTIONARY", made_with_it, ErrorCode::Format),
    ];
    for (case, behind_offer, answer, then, code) in cases {
        let receiver = plain_receiver();
        let received: JoinHandle<_> = receiver.receive_one(memory_sink());
        let mut hand = Hand::enter(&receiver);
        hand.offer_with(&bytes, &behind_offer);
        while hand.recv().name() != answer {}
        hand.send(&then, if matches!(then, Frame::Block(_)) { &[1, 2, 3] } else { &[] });
        let error = hand.error();
        assert_eq!((error.code, error.retryable), (code, false), "{case}: {error:?}");
        let failure = join(received).unwrap_err();
        assert!(
            matches!(failure, NetError::Session(error) if error != SessionError::TransferDigest),
            "{case}"
        );
    }
}

#[test]
fn body_that_is_not_made_with_the_dictionary_costs_the_lane() {
    let (content, bytes) = (record(7), record(1));
    let receiver = plain_receiver();
    let received = receiver.receive_one(memory_sink());
    let mut hand = Hand::enter(&receiver);
    hand.offer_with(&bytes, &[note(&content, DictionaryWord::Announced)]);
    while hand.recv().name() != "DICTIONARY" {}
    hand.send(&note(&content, DictionaryWord::Given(content.clone())), &[]);
    while hand.recv().name() != "ACCEPT" {}
    // What it refers to lies elsewhere in the dictionary that was agreed on.
    let other = Dictionary::new(content[..content.len() - 9].to_vec()).unwrap();
    let mut body = Vec::new();
    dwcp_codec::Compressor::new().compress_with(&other, 19, &bytes, &mut body).unwrap();
    hand.send(&made_with_it(&bytes), &body);
    let error = hand.error();
    assert_eq!((error.code, error.retryable), (ErrorCode::Integrity, true), "{error:?}");
    drop(hand);
    receiver.cancel.cancel();
    assert!(join(received).is_err());
}
