//! Peers that are let in and then do what they must not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_net::security::{DialSecurity, ListenSecurity};
use dwcp_net::{Event, NetError, SendOptions};
use dwcp_proto::frame::{
    BlockHead, Digests, ErrorCode, ErrorFrame, Finish, Frame, Hello, Offer, Secret, Security, SessionId,
    Welcome,
};
use dwcp_proto::{FrameDecoder, FrameEncoder, preface};

use super::support::*;

/// A sender made by hand.
pub struct Hand {
    pub stream: TcpStream,
    pub encoder: FrameEncoder,
    decoder: FrameDecoder,
    pub welcome: Option<Welcome>,
}

impl Hand {
    pub fn connect(receiver: &Receiver) -> Hand {
        let mut stream = TcpStream::connect(receiver.listener.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&preface::encode(3, 3)).unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        Hand { stream, encoder: FrameEncoder::new(), decoder: FrameDecoder::new(), welcome: None }
    }

    pub fn enter(receiver: &Receiver) -> Hand {
        Hand::enter_with(receiver, &hello(None, Secret::NONE))
    }

    /// Lane 1 of the session in which `first` is lane 0.
    fn join(receiver: &Receiver, first: &Hand) -> Hand {
        let welcome = first.welcome.as_ref().unwrap();
        Hand::enter_with(receiver, &numbered_hello(1, Some(welcome.session), welcome.join_key))
    }

    fn enter_with(receiver: &Receiver, hello: &Frame) -> Hand {
        let mut hand = Hand::connect(receiver);
        hand.send(hello, &[]);
        let Frame::Welcome(welcome) = hand.recv() else { panic!("no welcome") };
        hand.encoder.set_session(&welcome.session);
        hand.decoder.set_session(&welcome.session);
        hand.welcome = Some(welcome);
        hand
    }

    pub fn encode(&mut self, frame: &Frame, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encoder.encode(frame, body.len() as u32, &mut bytes).unwrap();
        bytes.extend(body);
        bytes
    }

    pub fn send(&mut self, frame: &Frame, body: &[u8]) {
        let bytes = self.encode(frame, body);
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn recv(&mut self) -> Frame {
        let mut header = [0; 24];
        self.stream.read_exact(&mut header).unwrap();
        let pending = self.decoder.header(&header).unwrap();
        let mut head = vec![0; pending.head_len];
        self.stream.read_exact(&mut head).unwrap();
        self.decoder.head(pending, &head).unwrap()
    }

    /// The ERROR that ends the lane, after any number of other frames.
    pub fn error(&mut self) -> ErrorFrame {
        loop {
            if let Frame::Error(error) = self.recv() {
                return error;
            }
        }
    }

    /// The next frame that is no sign of life.
    fn word(&mut self) -> Frame {
        loop {
            let frame = self.recv();
            if frame != Frame::KeepAlive {
                return frame;
            }
        }
    }

    /// Offers one buffer of `bytes` and waits until blocks may flow.
    pub fn offer(&mut self, bytes: &[u8]) {
        self.offer_with(bytes, &[]);
        while !matches!(self.recv(), Frame::Accept(_)) {}
    }

    /// Sends `bytes` as the first block.
    fn put(&mut self, bytes: &[u8]) {
        self.send(&block(bytes, 0, Digest::of(bytes)), bytes);
    }

    /// Tells the end of a transfer of `bytes`.
    pub fn finish(&mut self, bytes: &[u8]) {
        ending(bytes).iter().for_each(|frame| self.send(frame, &[]));
    }

    /// Waits for the answer of a receiver that leaves.
    fn expect_parting(&mut self, case: &str) {
        assert!(matches!(self.word(), Frame::Committed(_)), "{case}");
        assert_eq!(self.word(), Frame::Close, "{case}");
    }

    /// Offers one buffer of `bytes`, with `frames` behind OFFER.
    pub fn offer_with(&mut self, bytes: &[u8], frames: &[Frame]) {
        let (manifest, _) = buffers(&[("a", bytes.to_vec())], 65_536);
        let offer = Frame::Offer(Offer {
            number: 0,
            transfer_id: manifest.transfer_id(),
            block_bytes: 65_536,
            entries: 1,
            total_bytes: bytes.len() as u64,
            base_allowed: false,
            repeats: 0,
        });
        let parts = manifest.parts().map(Frame::Manifest);
        for frame in [offer].into_iter().chain(frames.iter().cloned()).chain(parts) {
            self.send(&frame, &[]);
        }
    }
}

/// What ends the transfer of one buffer: its digest tree, and that of the whole transfer.
fn ending(bytes: &[u8]) -> [Frame; 2] {
    let (manifest, _) = buffers(&[("a", bytes.to_vec())], 65_536);
    let tree = dwcp_codec::digest::tree(
        bytes.len() as u64,
        65_536,
        &bytes.chunks(65_536).map(Digest::of).collect::<Vec<_>>(),
    );
    let transfer_digest = manifest.transfer_digest(&[tree]);
    [
        Frame::Digests(Digests { first_entry: 0, digests: vec![tree] }),
        Frame::Finish(Finish { transfer_id: manifest.transfer_id(), transfer_digest }),
    ]
}

fn hello(session: Option<SessionId>, secret: Secret) -> Frame {
    numbered_hello(0, session, secret)
}

pub fn numbered_hello(lane: u16, session: Option<SessionId>, secret: Secret) -> Frame {
    let (version, security) = (3, Security::Plaintext);
    Frame::Hello(Hello {
        version,
        security,
        lane,
        features: 0,
        session,
        secret,
        max_block: 65_536,
        fetches: None,
    })
}

pub fn block(bytes: &[u8], offset: u64, digest: Digest) -> Frame {
    Frame::Block(BlockHead {
        entry: 0,
        raw_len: bytes.len() as u32,
        offset,
        kind: BlockKind::Plain,
        codec: CodecId::None,
        digest,
        base_digest: None,
    })
}

#[test]
fn frames_that_break_the_rules_end_the_session() {
    let bytes = noise(1, 100_000);
    type Case = (&'static str, ErrorCode, fn(&mut Hand, &[u8]));
    let cases: [Case; 3] = [
        ("an unexpected frame", ErrorCode::Format, |hand, _| hand.send(&Frame::Ack(1), &[])),
        ("a block outside the object", ErrorCode::Format, |hand, bytes| {
            let frame = block(&bytes[..65_536], 1 << 40, Digest::of(&bytes[..65_536]));
            hand.send(&frame, &bytes[..65_536]);
        }),
        ("another transfer", ErrorCode::Format, |hand, _| {
            let offer = Offer {
                number: 1,
                transfer_id: dwcp_proto::TransferId([9; 16]),
                block_bytes: 65_536,
                entries: 1,
                total_bytes: 1,
                base_allowed: false,
                repeats: 0,
            };
            hand.send(&Frame::Offer(offer), &[]);
        }),
    ];
    for (case, code, act) in cases {
        let receiver = plain_receiver();
        let received = receiver.receive_one(memory_sink());
        let mut hand = Hand::enter(&receiver);
        hand.offer(&bytes);
        act(&mut hand, &bytes);
        let error = hand.error();
        assert_eq!((error.code, error.retryable), (code, false), "{case}: {error:?}");
        let failure = join(received).unwrap_err();
        assert!(matches!(failure, NetError::Session(_) | NetError::Proto(_)), "{case}: {failure:?}");
    }
}

#[test]
fn bytes_that_are_damaged_end_the_lane_and_are_not_kept() {
    let bytes = noise(2, 100_000);
    let good = Digest::of(&bytes[..65_536]);
    type Case = (&'static str, ErrorCode, fn(&mut Hand, &[u8], Digest));
    let cases: [Case; 6] = [
        ("a second greeting", ErrorCode::Format, |hand, _, _| {
            let mut frame = Vec::new();
            FrameEncoder::new().encode(&hello(None, Secret::NONE), 0, &mut frame).unwrap();
            hand.stream.write_all(&frame).unwrap();
        }),
        ("a frame sent twice", ErrorCode::Integrity, |hand, bytes, digest| {
            let frame = hand.encode(&block(&bytes[..65_536], 0, digest), &bytes[..65_536]);
            hand.stream.write_all(&frame).unwrap();
            hand.stream.write_all(&frame).unwrap();
        }),
        ("a head longer than allowed", ErrorCode::Format, |hand, _, _| {
            let mut header = [0_u8; 24];
            header[0] = 7;
            header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            header[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
            hand.stream.write_all(&header).unwrap();
        }),
        ("an altered head", ErrorCode::Integrity, |hand, bytes, digest| {
            let mut frame = hand.encode(&block(&bytes[..65_536], 0, digest), &bytes[..65_536]);
            frame[30] ^= 1;
            hand.stream.write_all(&frame).unwrap();
        }),
        ("an altered body", ErrorCode::Integrity, |hand, bytes, digest| {
            let mut body = bytes[..65_536].to_vec();
            body[7] ^= 1;
            hand.send(&block(&body, 0, digest), &body);
        }),
        ("a bomb", ErrorCode::Integrity, |hand, bytes, digest| {
            let Frame::Block(head) = block(&bytes[..65_536], 0, digest) else { unreachable!() };
            // 4 MiB of zeros as one zstd frame, for a block of 64 KiB.
            let mut bomb = Vec::new();
            let mut compressor = dwcp_codec::Compressor::new();
            let level = dwcp_codec::Codec::Zstd { level: 1 };
            compressor.compress(level, &vec![0; 4 << 20], &mut bomb).unwrap();
            hand.send(&Frame::Block(BlockHead { codec: CodecId::Zstd, ..head }), &bomb);
        }),
    ];
    let trying: Vec<_> = cases
        .into_iter()
        .map(|(case, code, act)| {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut options = quick_receive();
                options.idle_timeout = Duration::from_millis(600);
                let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
                let received = receiver.receive_one(memory_sink());
                let mut hand = Hand::enter(&receiver);
                hand.offer(&bytes);
                act(&mut hand, &bytes, good);
                let error = hand.error();
                assert_eq!((error.code, error.retryable), (code, true), "{case}: {error:?}");
                // Nobody joins again, so the session ends with what ended its last lane.
                let failure = join(received).unwrap_err();
                assert!(
                    matches!(failure, NetError::Proto(_) | NetError::Integrity { .. }),
                    "{case}: {failure:?}"
                );
            })
        })
        .collect();
    trying.into_iter().for_each(join);
}

#[test]
fn a_stranger_cannot_join_a_session() {
    let receiver = plain_receiver();
    let hand = Hand::enter(&receiver);
    let id = hand.welcome.as_ref().unwrap().session;
    for (session, secret) in
        [(id, Secret([7; 32])), (SessionId([1; 16]), hand.welcome.as_ref().unwrap().join_key)]
    {
        let mut stranger = Hand::connect(&receiver);
        stranger.send(&hello(Some(session), secret), &[]);
        assert_eq!(stranger.error().code, ErrorCode::Auth);
    }
}

#[test]
fn the_words_of_a_peer_cannot_steer_a_terminal() {
    let receiver = plain_receiver();
    let received = receiver.receive_one(memory_sink());
    let mut hand = Hand::enter(&receiver);
    hand.send(&Frame::Error(ErrorFrame::new(ErrorCode::Storage, false, "\u{1b}[2Jgone\n")), &[]);
    let Err(NetError::Peer { code: ErrorCode::Storage, message, .. }) = join(received) else {
        panic!("no report")
    };
    assert!(message.contains("gone") && !message.chars().any(char::is_control), "{message:?}");
}

#[test]
fn more_lanes_than_allowed_are_refused() {
    let mut options = quick_receive();
    options.limits.max_lanes = 2;
    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let hand = Hand::enter(&receiver);
    let welcome = hand.welcome.clone().unwrap();
    assert_eq!(welcome.max_lanes, 2);
    let join_one = |number| {
        let mut lane = Hand::connect(&receiver);
        lane.send(&numbered_hello(number, Some(welcome.session), welcome.join_key), &[]);
        let answer = lane.recv();
        (lane, answer)
    };
    let (_second, answer) = join_one(1);
    assert!(matches!(answer, Frame::Welcome(_)));
    let (_third, answer) = join_one(2);
    assert!(matches!(answer, Frame::Error(ErrorFrame { code: ErrorCode::Limit, .. })), "{answer:?}");
}

#[test]
fn lanes_that_are_lost_after_the_goodbye_on_another_are_not_waited_for() {
    let receiver = plain_receiver();
    let mut first = Hand::enter(&receiver);
    let second = Hand::join(&receiver, &first);
    let lost = |event: &Event| matches!(event, Event::LaneDown { .. });
    first.send(&Frame::Close, &[]);
    receiver.log.wait_for(lost);
    drop(second);
    receiver.log.wait_for_some(2, lost);
    let session = receiver.listener.accept(Some(PATIENCE)).unwrap();
    assert!(session.receive(memory_sink(), Some(PATIENCE)).unwrap().is_none());
}

#[test]
fn late_copies_on_a_lane_that_is_lost_do_not_take_a_goodbye_back() {
    let receiver = plain_receiver();
    let mut first = Hand::enter(&receiver);
    let mut second = Hand::join(&receiver, &first);
    let session = receiver.listener.accept(Some(PATIENCE)).unwrap();
    let receiving = std::thread::spawn(move || (session.receive(memory_sink(), Some(PATIENCE)), session));
    let bytes = noise(4, 60_000);
    first.offer(&bytes);
    first.put(&bytes);
    first.finish(&bytes);
    let (report, session) = join(receiving);
    report.unwrap();
    let lost = |event: &Event| matches!(event, Event::LaneDown { .. });
    first.send(&Frame::Close, &[]);
    receiver.log.wait_for(lost);
    second.put(&bytes);
    drop(second);
    receiver.log.wait_for_some(2, lost);
    assert!(session.receive(memory_sink(), Some(PATIENCE)).unwrap().is_none());
}

#[test]
fn a_block_whose_transfer_is_in_place_when_its_body_comes_disturbs_nothing() {
    let receiver = plain_receiver();
    let mut first = Hand::enter(&receiver);
    let mut second = Hand::join(&receiver, &first);
    let session = receiver.listener.accept(Some(PATIENCE)).unwrap();
    let sink = memory_sink();
    let bytes = noise(4, 60_000);
    let receiving = {
        let sink = sink.clone();
        std::thread::spawn(move || (session.receive(sink, Some(PATIENCE)), session))
    };
    first.offer(&bytes);
    let late = second.encode(&block(&bytes, 0, Digest::of(&bytes)), &bytes);
    let (begun, rest) = late.split_at(30_000);
    second.stream.write_all(begun).unwrap();
    first.put(&bytes);
    first.finish(&bytes);
    let (report, session) = join(receiving);
    report.unwrap();
    assert!(contents(&sink) == [("a".to_owned(), bytes.clone())]);
    second.stream.write_all(rest).unwrap();
    // It is done with like any other; a sender without this word could not go on with the session.
    assert_eq!(second.word(), Frame::Ack(1));
    second.send(&Frame::Close, &[]);
    receiver.log.wait_for(|event| matches!(event, Event::LaneDown { reason: None, .. }));
    first.send(&Frame::Close, &[]);
    assert!(session.receive(memory_sink(), Some(PATIENCE)).unwrap().is_none());
}

#[test]
fn a_sender_with_more_lanes_than_allowed_uses_fewer() {
    let mut options = quick_receive();
    options.limits.max_lanes = 1;
    let (listen, dial) = pairing();
    let receiver = receiver(listen, dial, options);
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let state = buffers(&[("a", noise(3, 500_000))], 65_536);
    let sent = send_once(&receiver.address(), &receiver.dial, quick_send(), &state).unwrap();
    assert_eq!(join(received).unwrap().lanes_used, 1);
    assert_eq!(sent.lanes_used, 1);
}

#[test]
fn a_sender_that_lost_the_answer_gets_it_from_a_receiver_that_is_leaving() {
    let receiver = plain_receiver();
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let bytes = noise(4, 60_000);
    let (manifest, _) = buffers(&[("a", bytes.clone())], 65_536);
    let mut hand = Hand::enter(&receiver);
    hand.offer(&bytes);
    hand.put(&bytes);
    assert_eq!(hand.word(), Frame::Ack(1));
    hand.finish(&bytes);
    // The receiver has its transfer and wants to leave, which it says on the lane; this sender never reads that.
    receiver.log.wait_for(|event| matches!(event, Event::Committed { .. }));
    let welcome = hand.welcome.clone().unwrap();
    drop(hand);
    let mut hand = Hand::enter_with(&receiver, &hello(Some(welcome.session), welcome.join_key));
    hand.finish(&bytes);
    let Frame::Committed(committed) = hand.word() else { panic!("no answer") };
    assert_eq!(committed.transfer_id, manifest.transfer_id());
    assert_eq!(hand.word(), Frame::Close);
    hand.send(&Frame::Close, &[]);
    join(received).unwrap();
    assert!(contents(&sink) == [("a".to_owned(), bytes)]);
}

#[test]
fn what_a_sender_sends_before_it_has_read_the_answer_does_not_pass_for_having_read_it() {
    let bytes = noise(4, 60_000);
    type Case = (&'static str, fn(&mut Hand, &[u8]));
    let cases: [Case; 3] = [
        ("a late copy", |hand, bytes| {
            hand.put(bytes);
            assert_eq!(hand.word(), Frame::Ack(2));
        }),
        ("the end told again", |hand, bytes| {
            hand.finish(bytes);
            hand.put(bytes);
            assert_eq!(hand.word(), Frame::Ack(2));
        }),
        ("an answer that was altered", |hand, _| {
            hand.send(&Frame::Error(ErrorFrame::new(ErrorCode::Integrity, true, "altered")), &[]);
            assert_eq!(hand.stream.read(&mut [0]).unwrap(), 0);
        }),
    ];
    for (case, act) in cases {
        let receiver = plain_receiver();
        let received = receiver.receive_one(memory_sink());
        let mut hand = Hand::enter(&receiver);
        hand.offer(&bytes);
        hand.put(&bytes);
        assert_eq!(hand.word(), Frame::Ack(1));
        hand.finish(&bytes);
        hand.expect_parting(case);
        act(&mut hand, &bytes);
        let welcome = hand.welcome.clone().unwrap();
        drop(hand);
        receiver.log.wait_for(|event| matches!(event, Event::LaneDown { .. }));
        let mut hand = Hand::enter_with(&receiver, &hello(Some(welcome.session), welcome.join_key));
        hand.finish(&bytes);
        hand.expect_parting(case);
        hand.send(&Frame::Close, &[]);
        join(received).unwrap();
    }
}

#[test]
fn a_sender_that_asks_for_the_answer_again_and_again_does_not_keep_a_receiver_that_is_leaving() {
    let mut options = quick_receive();
    options.idle_timeout = Duration::from_secs(1);
    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let received = receiver.receive_one(memory_sink());
    let bytes = noise(4, 60_000);
    let mut first = Hand::enter(&receiver);
    first.offer(&bytes);
    first.put(&bytes);
    first.finish(&bytes);
    receiver.log.wait_for(|event| matches!(event, Event::Committed { .. }));
    let welcome = first.welcome.clone().unwrap();
    let mut lanes = Vec::new();
    // The receiver waits for no longer than its idle deadline, and this goes on for many times that.
    let left = (1..50).any(|number| {
        std::thread::sleep(Duration::from_millis(200));
        let mut hand = Hand::connect(&receiver);
        hand.send(&numbered_hello(number, Some(welcome.session), welcome.join_key), &[]);
        if !matches!(hand.recv(), Frame::Welcome(_)) {
            return true;
        }
        hand.encoder.set_session(&welcome.session);
        hand.finish(&bytes);
        lanes.push(hand);
        false
    });
    assert!(left, "the receiver is still there");
    join(received).unwrap();
}

#[test]
fn a_head_that_does_not_end_is_not_waited_for() {
    let mut options = quick_receive();
    options.idle_timeout = Duration::from_millis(500);
    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let _received = receiver.receive_one(memory_sink());
    let mut hand = Hand::enter(&receiver);
    let mut header = [0_u8; 24];
    header[0] = 4;
    header[12] = 1;
    header[4..8].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    hand.stream.write_all(&header).unwrap();
    // Something comes far more often than the idle deadline asks for.
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        hand.stream.write_all(&[0]).is_err()
    });
    assert!(ended, "the receiver still waits");
}

#[test]
fn a_sender_in_its_handshake_is_turned_away_when_the_listener_ends() {
    let receiver = plain_receiver();
    let mut hand = Hand::connect(&receiver);
    drop(receiver.listener);
    hand.send(&hello(None, Secret::NONE), &[]);
    let Frame::Welcome(welcome) = hand.recv() else { panic!("no welcome") };
    hand.encoder.set_session(&welcome.session);
    hand.decoder.set_session(&welcome.session);
    assert_eq!(hand.word(), Frame::Close);
}

#[test]
fn a_receiver_that_ends_every_lane_at_once_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lanes = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lanes);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut greeting = [0; 8 + 24 + 92];
            if stream.read_exact(&mut greeting[..8]).is_err() {
                continue;
            }
            stream.write_all(&preface::encode(3, 3)).unwrap();
            stream.read_exact(&mut greeting[8..]).unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let (version, security, session) = (3, Security::Plaintext, SessionId([1; 16]));
            let welcome = Frame::Welcome(Welcome {
                version,
                security,
                max_lanes: 1,
                features: 0,
                session,
                join_key: Secret([2; 32]),
                max_block: 65_536,
                max_entries: 10,
                max_object: 1 << 30,
            });
            let (mut encoder, mut bytes) = (FrameEncoder::new(), Vec::new());
            encoder.encode(&welcome, 0, &mut bytes).unwrap();
            encoder.set_session(&session);
            encoder.encode(&Frame::Close, 0, &mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    let sending = std::thread::spawn(move || {
        let options = SendOptions { reconnect_for: Duration::from_secs(1), ..quick_send() };
        let state = buffers(&[("a", noise(5, 100_000))], 65_536);
        send_once(&address, &DialSecurity::Insecure, options, &state)
    });
    let error = join(sending).unwrap_err();
    assert!(error.resumable(), "{error:?}");
    // Without pauses it would be thousands.
    assert!(lanes.load(Ordering::SeqCst) < 100, "{lanes:?}");
}
