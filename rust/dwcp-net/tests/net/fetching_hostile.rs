//! Peers of fetching sessions that are let in and then do what they must not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_net::security::DialSecurity;
use dwcp_net::{Cancel, Event, FetchOptions, FetchSession, NetError};
use dwcp_proto::frame::{ErrorCode, Fetch, Frame, Hello, Offer, Secret, Security, SessionId, Takes, Welcome};
use dwcp_proto::{FrameDecoder, FrameEncoder, preface};
use dwcp_store::Sink;

use super::fetching::{DELAY, accepted, fetch, plain_server, quick_fetch};
use super::support::*;

/// A peer made by hand that fetches.
struct Hand {
    stream: TcpStream,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
}

impl Hand {
    fn enter(server: &Receiver, lane: u16, session: Option<SessionId>, secret: Secret) -> (Hand, Frame) {
        let mut stream = TcpStream::connect(server.listener.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&preface::encode(3, 3)).unwrap();
        let mut hand = Hand { stream, encoder: FrameEncoder::new(), decoder: FrameDecoder::new() };
        hand.send(&Frame::Hello(Hello {
            version: 3,
            security: Security::Plaintext,
            lane,
            features: 0,
            session,
            secret,
            max_block: 65_536,
            fetches: Some(Takes { max_entries: 10, max_object: 1 << 30 }),
        }));
        hand.stream.read_exact(&mut [0; 8]).unwrap();
        let answer = hand.recv();
        if let Frame::Welcome(welcome) = &answer {
            hand.encoder.set_session(&welcome.session);
            hand.decoder.set_session(&welcome.session);
        }
        (hand, answer)
    }

    fn opened(server: &Receiver) -> (Hand, Welcome) {
        match Hand::enter(server, 0, None, Secret::NONE) {
            (hand, Frame::Welcome(welcome)) => (hand, welcome),
            (_, answer) => panic!("{answer:?}"),
        }
    }

    fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        self.encoder.encode(frame, 0, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn recv(&mut self) -> Frame {
        loop {
            let mut header = [0; 24];
            self.stream.read_exact(&mut header).unwrap();
            let pending = self.decoder.header(&header).unwrap();
            let mut head = vec![0; pending.head_len];
            self.stream.read_exact(&mut head).unwrap();
            let frame = self.decoder.head(pending, &head).unwrap();
            if frame != Frame::KeepAlive {
                return frame;
            }
        }
    }
}

fn asks(number: u32) -> Frame {
    Frame::Fetch(Fetch { number, request: b"x".to_vec() })
}

#[test]
fn requests_that_break_the_rules_end_the_session() {
    type Case = (&'static str, ErrorCode, fn(&mut Hand));
    let cases: [Case; 4] = [
        ("two at once", ErrorCode::Format, |hand| hand.send(&asks(1))),
        ("a number left out", ErrorCode::Format, |hand| hand.send(&asks(7))),
        ("a request that is too long", ErrorCode::Format, |hand| {
            let mut header = [0_u8; 24];
            header[0] = 0x11;
            header[4..8].copy_from_slice(&(4 + 65_537_u32).to_le_bytes());
            hand.stream.write_all(&header).unwrap();
        }),
        ("a frame of the other side", ErrorCode::Format, |hand| {
            let (manifest, _) = buffers(&[("a", noise(1, 10))], 65_536);
            let part = manifest.parts().next().unwrap();
            hand.send(&Frame::Manifest(part));
        }),
    ];
    for (case, code, act) in cases {
        let server = plain_server();
        let (mut hand, _) = Hand::opened(&server);
        hand.send(&asks(0));
        let incoming = accepted(&server).unwrap();
        act(&mut hand);
        let Frame::Error(error) = hand.recv() else { panic!("{case}") };
        assert_eq!(error.code, code, "{case}: {error:?}");
        // A lane may have been altered in plaintext; the session then ends since nobody comes back.
        let end = Instant::now() + PATIENCE;
        while incoming.request().is_some() && !matches!(incoming.next_request(None), Err(_) | Ok(None)) {
            assert!(Instant::now() < end, "{case}");
            std::thread::sleep(DELAY);
        }
    }
}

#[test]
fn a_request_told_twice_is_answered_once_and_a_lane_of_the_same_number_takes_over() {
    let server = plain_server();
    let (mut first, welcome) = Hand::opened(&server);
    first.send(&asks(0));
    let incoming = accepted(&server).unwrap();
    let (mut second, answer) = Hand::enter(&server, 0, Some(welcome.session), welcome.join_key);
    assert!(matches!(answer, Frame::Welcome(_)));
    // The first lane is shut, since its peer has lost it.
    let mut rest = Vec::new();
    let _ = first.stream.read_to_end(&mut rest);
    second.send(&asks(0));
    let sending = std::thread::spawn(move || {
        let (manifest, source) = buffers(&[("a", noise(1, 10))], 65_536);
        let outcome = incoming.send(manifest, source);
        (outcome, incoming.next_request(Some(Duration::from_millis(300))))
    });
    assert!(matches!(second.recv(), Frame::Offer(_)));
    second.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let (outcome, next) = join(sending);
    assert!(outcome.is_err());
    assert!(!matches!(next, Ok(Some(_))));
}

#[test]
fn lanes_that_are_lost_after_the_goodbye_on_another_are_not_waited_for() {
    let server = plain_server();
    let (mut first, welcome) = Hand::opened(&server);
    let (second, answer) = Hand::enter(&server, 1, Some(welcome.session), welcome.join_key);
    assert!(matches!(answer, Frame::Welcome(_)));
    first.send(&asks(0));
    let incoming = accepted(&server).unwrap();
    let lost = |event: &Event| matches!(event, Event::LaneDown { .. });
    first.send(&Frame::Close);
    server.log.wait_for(lost);
    drop(second);
    server.log.wait_for_some(2, lost);
    assert_eq!(incoming.next_request(Some(PATIENCE)).unwrap(), None);
}

#[test]
fn a_wrong_key_or_the_other_role_joins_no_session() {
    let server = plain_server();
    let (_hand, welcome) = Hand::opened(&server);
    for (session, key) in
        [(Some(welcome.session), Secret([9; 32])), (Some(SessionId([9; 16])), welcome.join_key)]
    {
        let (_, answer) = Hand::enter(&server, 0, session, key);
        let Frame::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!(error.code, ErrorCode::Auth);
    }
    assert!(!matches!(Hand::enter(&server, 0, Some(welcome.session), welcome.join_key).1, Frame::Error(_)));
}

/// A listener made by hand that sends, for one lane: its WELCOME has `features`, and `then` is what follows.
fn sends_by_hand(features: u32, then: impl FnOnce(&mut Hand) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        then(&mut welcomed(stream, features));
    });
    (address, thread)
}

/// The listener's end of a lane on which a peer that fetches was let in.
fn welcomed(mut stream: TcpStream, features: u32) -> Hand {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    stream.write_all(&preface::encode(3, 3)).unwrap();
    let mut hand = Hand { stream, encoder: FrameEncoder::new(), decoder: FrameDecoder::new() };
    let Frame::Hello(hello) = hand.recv() else { panic!("no greeting") };
    assert_eq!(hello.fetches, Some(Takes { max_entries: 1 << 20, max_object: 1 << 62 }));
    let session = SessionId([7; 16]);
    hand.send(&Frame::Welcome(Welcome {
        version: 3,
        security: Security::Plaintext,
        max_lanes: 4,
        features,
        session,
        join_key: Secret([8; 32]),
        max_block: 65_536,
        max_entries: 10,
        max_object: 1 << 30,
    }));
    hand.encoder.set_session(&session);
    hand.decoder.set_session(&session);
    hand
}

/// Fetches from a listener of which each lane is let in and then does what `then` does, until it is given up.
fn given_up(reconnect_for: Duration, then: impl Fn(Hand) + Send + 'static) -> NetError {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(|stream| then(welcomed(stream.unwrap(), 1))));
    let options = FetchOptions { reconnect_for, ..quick_fetch() };
    let (dial, log) = (DialSecurity::Insecure, Arc::new(Log::default()));
    let session = FetchSession::connect(&address, dial, options, &Cancel::new(), log).unwrap();
    let sink: Arc<dyn Sink> = memory_sink();
    join(std::thread::spawn(move || session.fetch(b"x", &sink, None))).unwrap_err()
}

fn dial_plain(address: &str) -> Result<FetchSession, NetError> {
    let options = FetchOptions { reconnect_for: Duration::from_millis(300), ..quick_fetch() };
    let log = Arc::new(Log::default());
    FetchSession::connect(address, DialSecurity::Insecure, options, &Cancel::new(), log)
}

#[test]
fn a_listener_that_does_not_say_that_it_sends_is_left() {
    let (address, listener) = sends_by_hand(0, |_| {});
    assert!(matches!(dial_plain(&address), Err(NetError::Auth { .. })));
    join(listener);
}

#[test]
fn an_offer_that_nobody_asked_for_ends_the_session() {
    let (address, listener) = sends_by_hand(1, |hand| {
        let (manifest, _) = buffers(&[("a", noise(1, 10))], 65_536);
        hand.send(&Frame::Offer(Offer {
            number: 0,
            transfer_id: manifest.transfer_id(),
            block_bytes: 65_536,
            entries: 1,
            total_bytes: 10,
            base_allowed: false,
            repeats: 0,
        }));
        manifest.parts().for_each(|part| hand.send(&Frame::Manifest(part)));
        let Frame::Error(error) = hand.recv() else { panic!("it was taken") };
        assert_eq!((error.code, error.retryable), (ErrorCode::Format, false));
    });
    let session = dial_plain(&address).unwrap();
    join(listener);
    // What is asked for later is asked for elsewhere, and there is nobody there.
    assert!(matches!(fetch(&session, b"x"), Err(NetError::Unreachable { .. })));
}

#[test]
fn a_listener_that_ends_the_session_without_an_answer_is_not_asked_for_ever() {
    let (address, listener) = sends_by_hand(1, |hand| {
        assert!(matches!(hand.recv(), Frame::Fetch(_)));
        hand.send(&Frame::Close);
        assert_eq!(hand.recv(), Frame::Close);
    });
    let session = dial_plain(&address).unwrap();
    let error = fetch(&session, b"x").unwrap_err();
    assert!(matches!(error, NetError::PeerClosed { .. } | NetError::Unreachable { .. }), "{error:?}");
    join(listener);
}

#[test]
fn a_listener_that_lets_every_session_last_and_never_answers_is_given_up() {
    let error = given_up(Duration::from_millis(500), |mut hand| {
        assert!(matches!(hand.recv(), Frame::Fetch(_)));
        std::thread::sleep(Duration::from_millis(1_050));
        hand.send(&Frame::Close);
        assert_eq!(hand.recv(), Frame::Close);
    });
    assert!(matches!(error, NetError::PeerClosed { .. }), "{error:?}");
}

#[test]
fn a_listener_that_ends_every_lane_at_once_is_given_up() {
    // Longer than any pause between two attempts.
    let error = given_up(Duration::from_secs(3), drop);
    assert!(error.resumable(), "{error:?}");
}
