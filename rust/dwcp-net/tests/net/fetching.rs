//! Sessions in which the side that dials receives.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_codec::block::BlockKind;
use dwcp_net::security::{DialSecurity, Identity, ListenSecurity};
use dwcp_net::{
    Arrival, Cancel, Event, FetchOptions, FetchSession, NetError, ReceiveOptions, SendOptions, ServeSession,
};
use dwcp_proto::frame::{ErrorCode, Fetch, Frame, Hello, Secret, Security, SessionId, Takes, Welcome};
use dwcp_proto::{FrameDecoder, FrameEncoder, preface};
use dwcp_store::{BaseChoice, Sink, Source};

use super::link::{Fault, Link};
use super::support::*;

const DELAY: Duration = Duration::from_millis(1);

fn quick_fetch() -> FetchOptions {
    FetchOptions {
        idle_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        reconnect_for: Duration::from_secs(5),
        ..FetchOptions::default()
    }
}

fn serving() -> ReceiveOptions {
    ReceiveOptions { senders: false, serve: Some(quick_send()), ..quick_receive() }
}

fn server() -> Receiver {
    let (listen, dial) = pairing();
    receiver(listen, dial, serving())
}

fn plain_server() -> Receiver {
    receiver(ListenSecurity::Insecure, DialSecurity::Insecure, serving())
}

fn dial(address: &str, server: &Receiver, options: FetchOptions) -> Result<FetchSession, NetError> {
    let log = Arc::new(Log::default());
    FetchSession::connect(address, server.dial.clone(), options, &Cancel::new(), log)
}

fn accepted(server: &Receiver) -> Result<ServeSession, NetError> {
    match server.listener.accept_any(Some(PATIENCE))? {
        Arrival::Fetcher(session) => Ok(session),
        Arrival::Sender(_) => panic!("a sender came"),
    }
}

/// What a request is answered with: a buffer whose content is its seed's noise.
fn answer(request: &[u8]) -> (String, Vec<u8>) {
    let seed = request.iter().map(|byte| u64::from(*byte)).sum();
    ("a".to_owned(), noise(seed, 2_000_000))
}

/// Answers whoever comes until the server is cancelled, each peer on a thread of its own; gives what failed.
fn serve(server: &Receiver) -> JoinHandle<Vec<NetError>> {
    let listener = Arc::clone(&server.listener);
    std::thread::spawn(move || {
        let mut threads = Vec::new();
        while let Ok(Arrival::Fetcher(session)) = listener.accept_any(Some(PATIENCE)) {
            threads.push(std::thread::spawn(move || -> Result<(), NetError> {
                while let Some(request) = session.next_request(Some(PATIENCE))? {
                    assert_eq!(session.request().as_deref(), Some(request.as_slice()));
                    let (name, bytes) = answer(&request);
                    let (manifest, source) = buffers(&[(&name, bytes)], 65_536);
                    session.send(manifest, source)?;
                }
                Ok(())
            }));
        }
        threads.into_iter().filter_map(|thread| join(thread).err()).collect()
    })
}

fn fetch(session: &FetchSession, request: &[u8]) -> Result<Vec<(String, Vec<u8>)>, NetError> {
    let sink = memory_sink();
    session.fetch(request, &(Arc::clone(&sink) as Arc<dyn Sink>), Some(PATIENCE))?;
    Ok(contents(&sink))
}

#[test]
fn fetches_follow_each_other_on_one_session() {
    for server in [server(), plain_server()] {
        let serving = serve(&server);
        let session = dial(&server.address(), &server, quick_fetch()).unwrap();
        for request in [&b"one"[..], b"", &[7; 65_536]] {
            assert!(fetch(&session, request).unwrap() == [answer(request)]);
        }
        assert!(matches!(fetch(&session, &[0; 65_537]), Err(NetError::Option { value: 65_537, .. })));
        session.close();
        assert!(matches!(fetch(&session, b"one"), Err(NetError::Cancelled)));
        assert_eq!(server.log.count(|event| matches!(event, Event::SessionOpened { .. })), 1);
        server.cancel.cancel();
        let failures = join(serving);
        assert!(failures.is_empty(), "{failures:?}");
    }
}

#[test]
fn several_lanes_carry_a_large_answer_and_one_a_small_one() {
    let server = server();
    let log = Arc::new(Log::default());
    let session = FetchSession::connect(
        &server.address(),
        server.dial.clone(),
        quick_fetch(),
        &Cancel::new(),
        log.clone(),
    )
    .unwrap();
    let lengths = [1_000, 24_000_000];
    let sending = {
        let listener = Arc::clone(&server.listener);
        std::thread::spawn(move || {
            let Arrival::Fetcher(session) = listener.accept_any(Some(PATIENCE)).unwrap() else { panic!() };
            for length in lengths {
                session.next_request(Some(PATIENCE)).unwrap().unwrap();
                let (manifest, source) = buffers(&[("a", noise(3, length))], 65_536);
                session.send(manifest, source).unwrap();
            }
            session
        })
    };
    let up = lengths.map(|length| {
        assert_eq!(fetch(&session, b"").unwrap()[0].1.len(), length);
        log.count(|event| matches!(event, Event::LaneUp { .. }))
    });
    assert!(up[0] == 1 && up[1] > 1, "{up:?}");
    drop(join(sending));
}

/// Fetches 2 MB over a path with `faults`, and checks that they arrive.
fn survives(server: &Receiver, faults: &[Fault]) -> dwcp_net::ReceiveReport {
    let serving = serve(server);
    let link = Link::back(server.listener.local_addr(), DELAY, faults);
    let session = dial(&link.address(), server, quick_fetch()).unwrap();
    let sink = memory_sink();
    let report = session.fetch(b"x", &(Arc::clone(&sink) as Arc<dyn Sink>), Some(PATIENCE)).unwrap();
    assert!(contents(&sink) == [answer(b"x")]);
    drop(session);
    server.cancel.cancel();
    join(serving);
    report
}

#[test]
fn a_lane_that_is_cut_or_falls_silent_is_dialled_again_by_the_receiver() {
    for fault in [Fault::CutOne(900_000), Fault::Stall(900_000), Fault::Abandon(900_000)] {
        let server = server();
        let report = survives(&server, &[fault]);
        // One that is abandoned ends for the other side only.
        let lost = u32::from(!matches!(fault, Fault::Abandon(_)));
        assert!(report.lanes_lost >= lost && report.lanes_used >= 2, "{fault:?}: {report:?}");
        assert_eq!(server.log.count(|event| matches!(event, Event::SessionOpened { .. })), 1, "{fault:?}");
    }
}

#[test]
fn a_flipped_bit_costs_a_lane_and_nothing_else() {
    for server in [server(), plain_server()] {
        let report = survives(&server, &[Fault::Flip(900_000)]);
        assert!(report.integrity_failures >= 1, "{report:?}");
    }
}

#[test]
fn the_first_lane_may_break_at_any_byte_of_the_greeting_and_the_request() {
    let server = plain_server();
    let serving = serve(&server);
    let trying: Vec<_> = (0..12)
        .map(|step| {
            let link = Link::new(server.listener.local_addr(), Duration::ZERO, &[Fault::CutOne(step * 14)]);
            let log = Arc::new(Log::default());
            std::thread::spawn(move || {
                let connected = FetchSession::connect(
                    &link.address(),
                    DialSecurity::Insecure,
                    quick_fetch(),
                    &Cancel::new(),
                    log,
                );
                match connected.and_then(|session| fetch(&session, b"twenty bytes or more")) {
                    Ok(got) => assert!(got == [answer(b"twenty bytes or more")], "{step}"),
                    // Nothing is retried before the session is there.
                    Err(error) => assert!(matches!(error, NetError::PeerClosed { .. }), "{step}: {error:?}"),
                }
            })
        })
        .collect();
    trying.into_iter().for_each(join);
    server.cancel.cancel();
    join(serving);
}

#[test]
fn an_answer_may_take_longer_than_the_idle_deadline_and_the_wait_for_it_has_a_deadline_of_its_own() {
    let mut options = serving();
    let idle = Duration::from_millis(400);
    options.idle_timeout = idle;
    options.serve = Some(SendOptions { idle_timeout: idle, ..quick_send() });
    let server = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let session =
        dial(&server.address(), &server, FetchOptions { idle_timeout: idle, ..quick_fetch() }).unwrap();
    let fetching = std::thread::spawn(move || (fetch(&session, b"x"), session));
    let incoming = accepted(&server).unwrap();
    std::thread::sleep(idle * 3);
    let (name, bytes) = answer(b"x");
    let (manifest, source) = buffers(&[(&name, bytes)], 65_536);
    incoming.send(manifest, source).unwrap();
    let (got, session) = join(fetching);
    assert!(got.unwrap() == [answer(b"x")]);
    assert_eq!(server.log.count(|event| matches!(event, Event::LaneDown { .. })), 0);

    let sink: Arc<dyn Sink> = memory_sink();
    let error = session.fetch(b"y", &sink, Some(idle)).unwrap_err();
    assert!(matches!(error, NetError::Deadline { .. }), "{error:?}");
    // Whoever answers late hears that nobody waits any more.
    let (manifest, source) = buffers(&[("a", noise(1, 10))], 65_536);
    let error = incoming.send(manifest, source).unwrap_err();
    assert!(matches!(error, NetError::Peer { code: ErrorCode::Deadline, .. }), "{error:?}");
    drop(incoming);
    // The next fetch finds a session of its own.
    let serving = serve(&server);
    assert!(fetch(&session, b"z").unwrap() == [answer(b"z")]);
    drop(session);
    server.cancel.cancel();
    join(serving);
}

#[test]
fn a_tree_is_resumed_where_it_was_when_the_listener_is_started_again() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("image");
    fs::write(&file, noise(9, 4_000_000)).unwrap();
    let (listen, paired) = pairing();
    let first = receiver(listen.clone(), paired.clone(), serving());
    let link = Link::back(first.listener.local_addr(), DELAY, &[]);
    let send = |server: &Receiver| {
        let (listener, file) = (Arc::clone(&server.listener), file.clone());
        std::thread::spawn(move || {
            let Arrival::Fetcher(session) = listener.accept_any(Some(PATIENCE))? else { panic!() };
            session.next_request(Some(PATIENCE))?;
            let (manifest, source) = tree(&file, BaseChoice::None);
            session.send(manifest, source)
        })
    };
    let interrupted = send(&first);
    let session = dial(&link.address(), &first, quick_fetch()).unwrap();
    let sink: Arc<dyn Sink> = tree_sink(to.path().to_path_buf());
    let fetching = std::thread::spawn(move || session.fetch(b"", &sink, Some(PATIENCE)));
    link.wait_for(2_000_000);
    first.cancel.cancel();
    assert!(join(interrupted).is_err());
    let second = receiver(listen, paired, serving());
    link.retarget(second.listener.local_addr());
    link.cut();
    let sending = send(&second);
    let report = join(fetching).unwrap();
    let sent = join(sending).unwrap();
    assert!(fs::read(to.path().join("image")).unwrap() == fs::read(&file).unwrap());
    assert!(report.bytes_held >= 1_000_000, "{report:?}");
    assert_eq!(report.bytes_held + report.bytes_received_raw, 4_000_000);
    assert_eq!(sent.bytes_held, report.bytes_held);
}

#[test]
fn a_changed_file_is_pulled_as_its_difference_to_what_is_there() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = from.path().join("image");
    let mut bytes = noise(5, 2_000_000);
    fs::write(&image, &bytes).unwrap();
    let server = server();
    let session = dial(&server.address(), &server, quick_fetch()).unwrap();
    let sink: Arc<dyn Sink> = tree_sink(to.path().to_path_buf());
    let fetching = std::thread::spawn(move || {
        session.fetch(b"", &sink, Some(PATIENCE)).unwrap();
        session.fetch(b"", &sink, Some(PATIENCE)).unwrap()
    });
    let incoming = accepted(&server).unwrap();
    let (manifest, source) = tree(&image, BaseChoice::None);
    incoming.send(manifest, source).unwrap();
    fs::rename(&image, from.path().join("old")).unwrap();
    for at in (0..bytes.len()).step_by(500_000) {
        bytes[at] ^= 0xFF;
    }
    fs::write(&image, &bytes).unwrap();
    incoming.next_request(Some(PATIENCE)).unwrap().unwrap();
    let (manifest, source) = tree(&image, BaseChoice::Paths(vec![from.path().join("old")]));
    let sent = incoming.send(manifest, source as Arc<dyn Source>).unwrap();
    join(fetching);
    assert!(fs::read(to.path().join("image")).unwrap() == bytes);
    let xor = sent.codec_mix.iter().find(|share| share.kind == BlockKind::Xor).unwrap();
    assert_eq!((xor.blocks, sent.blocks_sent, sent.blocks_same), (4, 4, 27));
}

#[test]
fn a_peer_that_reads_nothing_holds_nobody_up() {
    let server = plain_server();
    let serving = serve(&server);
    let link = Link::back(server.listener.local_addr(), Duration::ZERO, &[]);
    let slow = dial(&link.address(), &server, quick_fetch()).unwrap();
    link.freeze();
    let stuck = std::thread::spawn(move || fetch(&slow, b"slow"));
    server.log.wait_for(|event| matches!(event, Event::SessionOpened { .. }));
    let quick: Vec<_> = (0..6_u8)
        .map(|seed| {
            let (address, dial) = (server.address(), server.dial.clone());
            std::thread::spawn(move || {
                let log = Arc::new(Log::default());
                let session =
                    FetchSession::connect(&address, dial, quick_fetch(), &Cancel::new(), log).unwrap();
                assert!(fetch(&session, &[seed]).unwrap() == [answer(&[seed])]);
            })
        })
        .collect();
    quick.into_iter().for_each(join);
    assert!(!stuck.is_finished(), "the slow one is done or has failed already");
    server.cancel.cancel();
    link.cut();
    join(stuck).unwrap_err();
    join(serving);
}

#[test]
fn what_the_application_refuses_is_told_and_not_asked_for_again() {
    let server = server();
    let session = dial(&server.address(), &server, quick_fetch()).unwrap();
    let fetching = std::thread::spawn(move || fetch(&session, b"x").unwrap_err());
    let incoming = accepted(&server).unwrap();
    incoming.refuse("no such version");
    let error = join(fetching);
    assert!(
        matches!(&error, NetError::Peer { code: ErrorCode::Refused, message, .. } if message == "no such version"),
        "{error:?}"
    );
    assert!(incoming.next_request(Some(PATIENCE)).unwrap().is_none());
    let (manifest, source) = buffers(&[("a", noise(1, 10))], 65_536);
    assert!(matches!(incoming.send(manifest, source), Err(NetError::PeerClosed { .. })));
}

#[test]
fn a_listener_lets_in_only_those_it_has_a_use_for() {
    let receives = paired_receiver();
    let refused = |error: NetError, words: &str| {
        let NetError::Peer { code: ErrorCode::Refused, retryable: false, message } = error else {
            panic!("{error:?}")
        };
        assert!(message.contains(words), "{message}");
    };
    refused(dial(&receives.address(), &receives, quick_fetch()).err().unwrap(), "sends nothing");
    let serves = server();
    let log = Arc::new(Log::default());
    let connected = dwcp_net::SendSession::connect(
        &serves.address(),
        serves.dial.clone(),
        quick_send(),
        &Cancel::new(),
        log.clone(),
    );
    refused(connected.err().unwrap(), "takes nothing");
    // Whoever may not come in learns nothing of that.
    let DialSecurity::Paired { fingerprint, .. } = serves.dial.clone() else { unreachable!() };
    let token = dwcp_net::security::Token::from_bytes([1; 32]);
    let stranger = DialSecurity::Paired { fingerprint, token, identity: Identity::generate().unwrap() };
    for receiver in [&serves, &receives] {
        let DialSecurity::Paired { fingerprint, .. } = receiver.dial.clone() else { unreachable!() };
        let DialSecurity::Paired { token, identity, .. } = stranger.clone() else { unreachable!() };
        let stranger = DialSecurity::Paired { fingerprint, token, identity };
        let error =
            FetchSession::connect(&receiver.address(), stranger, quick_fetch(), &Cancel::new(), log.clone());
        assert!(matches!(error.err(), Some(NetError::Auth { .. })));
    }
}

/// A peer made by hand that fetches.
struct Hand {
    stream: TcpStream,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
}

impl Hand {
    fn enter(server: &Receiver, session: Option<SessionId>, secret: Secret) -> (Hand, Frame) {
        let mut stream = TcpStream::connect(server.listener.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&preface::encode(3, 3)).unwrap();
        let mut hand = Hand { stream, encoder: FrameEncoder::new(), decoder: FrameDecoder::new() };
        hand.send(&Frame::Hello(Hello {
            version: 3,
            security: Security::Plaintext,
            lane: 0,
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
        match Hand::enter(server, None, Secret::NONE) {
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
    let (mut second, answer) = Hand::enter(&server, Some(welcome.session), welcome.join_key);
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
fn a_wrong_key_or_the_other_role_joins_no_session() {
    let server = plain_server();
    let (_hand, welcome) = Hand::opened(&server);
    for (session, key) in
        [(Some(welcome.session), Secret([9; 32])), (Some(SessionId([9; 16])), welcome.join_key)]
    {
        let (_, answer) = Hand::enter(&server, session, key);
        let Frame::Error(error) = answer else { panic!("{answer:?}") };
        assert_eq!(error.code, ErrorCode::Auth);
    }
    assert!(!matches!(Hand::enter(&server, Some(welcome.session), welcome.join_key).1, Frame::Error(_)));
}
