//! Sessions in which the side that dials receives.

use std::fs;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_net::security::{DialSecurity, Identity, ListenSecurity};
use dwcp_net::{
    Arrival, Cancel, Event, FetchOptions, FetchSession, NetError, ReceiveOptions, SendOptions, ServeSession,
};
use dwcp_proto::frame::ErrorCode;
use dwcp_store::{BaseChoice, Sink, Source};

use super::link::{Fault, Link};
use super::support::*;

pub const DELAY: Duration = Duration::from_millis(1);

pub fn quick_fetch() -> FetchOptions {
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

pub fn plain_server() -> Receiver {
    receiver(ListenSecurity::Insecure, DialSecurity::Insecure, serving())
}

fn dial(address: &str, server: &Receiver, options: FetchOptions) -> Result<FetchSession, NetError> {
    let log = Arc::new(Log::default());
    FetchSession::connect(address, server.dial.clone(), options, &Cancel::new(), log)
}

pub fn accepted(server: &Receiver) -> Result<ServeSession, NetError> {
    match server.listener.accept_any(Some(PATIENCE))? {
        Arrival::Fetcher(session) => Ok(session),
        Arrival::Sender(_) | Arrival::Relay(_) => panic!("another peer came"),
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
        let failed = threads.into_iter().filter_map(|thread| join(thread).err());
        // The test cancels, perhaps before the goodbye of a peer was read.
        failed.filter(|error| !matches!(error, NetError::Cancelled)).collect()
    })
}

pub fn fetch(session: &FetchSession, request: &[u8]) -> Result<Vec<(String, Vec<u8>)>, NetError> {
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
fn a_lane_that_is_cut_is_dialled_again_by_the_receiver_and_a_silent_one_is_not_waited_for() {
    for fault in [Fault::CutOne(900_000), Fault::Stall(900_000), Fault::Abandon(900_000)] {
        let server = server();
        let report = survives(&server, &[fault]);
        // One that is abandoned ends for the other side only, and what was on a silent one comes on others.
        let lost = u32::from(matches!(fault, Fault::CutOne(_)));
        assert!(report.lanes_lost >= lost && report.lanes_used >= 2, "{fault:?}: {report:?}");
        assert_eq!(server.log.count(|event| matches!(event, Event::SessionOpened { .. })), 1, "{fault:?}");
    }
}

#[test]
fn what_is_fetched_after_the_loss_of_a_lane_comes_in_a_session_of_its_own() {
    let server = plain_server();
    let serving = serve(&server);
    let link = Link::back(server.listener.local_addr(), DELAY, &[Fault::CutOne(900_000)]);
    let session = dial(&link.address(), &server, quick_fetch()).unwrap();
    for request in [b"x", b"y", b"z"] {
        assert!(fetch(&session, request).unwrap() == [answer(request)]);
    }
    assert_eq!(server.log.count(|event| matches!(event, Event::SessionOpened { .. })), 2);
    drop(session);
    server.cancel.cancel();
    let failures = join(serving);
    assert!(failures.is_empty(), "{failures:?}");
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
    link.hold_at(2_000_000);
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
    link.cut_and_go_on();
    let sending = send(&second);
    let report = join(fetching).unwrap();
    let sent = join(sending).unwrap();
    assert!(fs::read(to.path().join("image")).unwrap() == fs::read(&file).unwrap());
    assert!(report.bytes_held >= 1_000_000, "{report:?}");
    assert_eq!(report.bytes_held + report.bytes_received_raw, 4_000_000);
    assert_eq!(sent.bytes_held, report.bytes_held);
}

#[test]
fn a_listener_that_starts_again_in_the_middle_of_a_long_wait_is_asked_again() {
    let (listen, paired) = pairing();
    // The patience for a lost listener is not used up by one that is only silent.
    let reconnect_for = Duration::from_millis(1_000);
    for politely in [false, true] {
        let first = receiver(listen.clone(), paired.clone(), serving());
        let link = Link::back(first.listener.local_addr(), Duration::ZERO, &[]);
        let session = dial(&link.address(), &first, FetchOptions { reconnect_for, ..quick_fetch() }).unwrap();
        let fetching = std::thread::spawn(move || fetch(&session, b"x"));
        let incoming = accepted(&first).unwrap();
        std::thread::sleep(reconnect_for + Duration::from_millis(200));
        assert!(!fetching.is_finished());
        let second = receiver(listen.clone(), paired.clone(), serving());
        link.retarget(second.listener.local_addr());
        if politely {
            incoming.close();
        } else {
            link.cut();
        }
        let serving = serve(&second);
        assert!(join(fetching).unwrap() == [answer(b"x")], "{politely}");
        second.cancel.cancel();
        join(serving);
        drop((incoming, first));
    }
}

#[test]
fn a_peer_that_vanishes_between_fetches_is_no_failure_and_may_come_back() {
    let brief = Duration::from_millis(200);
    let serve_options = SendOptions { reconnect_for: brief, ..quick_send() };
    let options = ReceiveOptions { serve: Some(serve_options), ..serving() };
    let server = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let link = Link::back(server.listener.local_addr(), Duration::ZERO, &[]);
    let session = dial(&link.address(), &server, quick_fetch()).unwrap();
    let fetching = std::thread::spawn(move || (fetch(&session, b"x").unwrap(), session));
    let incoming = accepted(&server).unwrap();
    let (manifest, source) = buffers(&[("a", noise(1, 10))], 65_536);
    incoming.send(manifest, source).unwrap();
    let (_, session) = join(fetching);
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    link.retarget(nowhere);
    link.cut();
    assert!(incoming.next_request(Some(PATIENCE)).unwrap().is_none());
    link.retarget(server.listener.local_addr());
    let serving = serve(&server);
    assert!(fetch(&session, b"y").unwrap() == [answer(b"y")]);
    drop(session);
    server.cancel.cancel();
    join(serving);
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
    let against_base = sent.codec_mix.iter().filter(|share| share.kind.needs_base());
    let against_base: u64 = against_base.map(|share| share.blocks).sum();
    // An idle lane may have sent the last ones a second time.
    assert_eq!((against_base, sent.blocks_sent - sent.blocks_helped), (sent.blocks_sent, 4));
    assert_eq!(sent.blocks_same, 27);
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
fn an_answer_beyond_what_the_peer_takes_is_an_error_on_both_sides() {
    let server = server();
    let mut options = quick_fetch();
    options.limits.max_object = 9;
    let session = dial(&server.address(), &server, options).unwrap();
    let fetching = std::thread::spawn(move || fetch(&session, b"x").unwrap_err());
    let incoming = accepted(&server).unwrap();
    let (manifest, source) = buffers(&[("a", noise(1, 10))], 65_536);
    let error = incoming.send(manifest, source).unwrap_err();
    assert!(matches!(&error, NetError::Proto(_)) && error.code() == ErrorCode::Limit, "{error:?}");
    let error = join(fetching);
    assert!(matches!(error, NetError::Peer { code: ErrorCode::Limit, .. }), "{error:?}");
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
    // Here it is not what a peer has reported.
    serves.log.wait_for(|event| {
        matches!(event, Event::Refused { reason, .. } if reason == "this listener sends, and takes nothing")
    });
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

#[test]
fn a_listener_that_vanishes_at_any_byte_ends_in_an_error_or_a_transfer_on_both_sides() {
    // The bytes of a whole answer, about: handshake, manifest, three blocks, digests, finish.
    let total = 137_000;
    let tries: Vec<u64> =
        (0..10).map(|step| step * 40).chain((1..=10).map(|step| step * total / 10)).collect();
    for pairs in tries.chunks(10) {
        let trying: Vec<_> = pairs
            .iter()
            .map(|&at| {
                std::thread::spawn(move || {
                    let brief = Duration::from_millis(200);
                    let serve = SendOptions { reconnect_for: brief, idle_timeout: brief * 3, ..quick_send() };
                    let options = ReceiveOptions { serve: Some(serve), ..serving() };
                    let server = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
                    let listener = Arc::clone(&server.listener);
                    let sending = std::thread::spawn(move || {
                        let Arrival::Fetcher(session) = listener.accept_any(Some(brief * 5))? else {
                            panic!("a sender came")
                        };
                        let (manifest, source) = buffers(&[("a", noise(13, 135_000))], 65_536);
                        session.send(manifest, source).map(|_| true)
                    });
                    let cuts = [Fault::CutAll(at)];
                    let link = Link::back(server.listener.local_addr(), Duration::ZERO, &cuts);
                    let options = FetchOptions { lanes: 1, reconnect_for: brief, ..quick_fetch() };
                    let fetched = dial(&link.address(), &server, options).and_then(|session| {
                        let sink: Arc<dyn Sink> = memory_sink();
                        session.fetch(b"x", &sink, Some(PATIENCE))
                    });
                    let sent = join(sending);
                    // The receiver knows first, and its word may be lost.
                    assert!(sent.is_err() || fetched.is_ok(), "cut at {at}: {sent:?} {fetched:?}");
                    for error in [sent.err(), fetched.err()].into_iter().flatten() {
                        assert!(tells_of_loss(&error), "cut at {at}: {error:?}");
                    }
                })
            })
            .collect();
        trying.into_iter().for_each(join);
    }
}
