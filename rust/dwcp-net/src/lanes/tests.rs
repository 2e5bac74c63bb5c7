//! Lanes that are added and given up while blocks flow over real sockets.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_proto::{Limits, Manifest};
use dwcp_store::{MemorySink, MemorySource, Source};

use super::{LaneRange, LaneReason};
use crate::cancel::Cancel;
use crate::distance::{Distance, Relocation};
use crate::fetch::{FetchOptions, FetchSession};
use crate::listen::{Arrival, Listener};
use crate::receive::ReceiveOptions;
use crate::report::{SendReport, Unobserved};
use crate::security::{DialSecurity, ListenSecurity};
use crate::send::{SendOptions, SendSession};

const PATIENCE: Duration = Duration::from_secs(20);
/// The most lanes that there are.
const LANES: u16 = 8;

/// What goes out in a second while lanes come and go: of a state that lasts longer than those take on any machine.
const SLOW: Option<u64> = Some(500_000);

fn options() -> SendOptions {
    SendOptions { lanes: LANES, block_bytes: 65_536, bandwidth_limit: SLOW, ..SendOptions::default() }
}

fn state() -> (Arc<Manifest>, Arc<dyn Source>) {
    let bytes: Vec<u8> = (0..6_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (manifest, source) =
        MemorySource::new(vec![("a".to_owned(), Arc::new(bytes))], 65_536, &Limits::default()).unwrap();
    (Arc::new(manifest), Arc::new(source))
}

fn listener(options: ReceiveOptions) -> Listener {
    let observer = Arc::new(Unobserved);
    Listener::bind("127.0.0.1:0", ListenSecurity::Insecure, options, &Cancel::new(), observer, None).unwrap()
}

fn await_that(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn join<T>(thread: JoinHandle<T>) -> T {
    await_that("a thread does not end", || thread.is_finished());
    thread.join().unwrap()
}

/// Blocks that were sent; an idle lane may have sent the last ones a second time.
fn once(report: &SendReport) -> u64 {
    report.blocks_sent - report.blocks_helped
}

/// Has lanes given up and made again; `lanes` counts them.
fn vary(want: impl Fn(u16), lanes: impl Fn() -> u32) {
    for count in [LANES, 2, 5, 1] {
        want(count);
        await_that("the number of lanes is not what is wanted", || lanes() == u32::from(count));
    }
}

#[test]
fn sender_gives_lanes_up_and_makes_them_again_at_no_cost() {
    let listener = listener(ReceiveOptions::default());
    let address = listener.local_addr().to_string();
    let receiving = std::thread::spawn(move || {
        let session = listener.accept(Some(PATIENCE)).unwrap();
        let mut reports = Vec::new();
        while let Some(report) = session.receive(Arc::new(MemorySink::new(1 << 24)), Some(PATIENCE)).unwrap()
        {
            reports.push(report);
        }
        reports
    });
    let session = SendSession::connect(
        &address,
        DialSecurity::Insecure,
        options(),
        &Cancel::new(),
        Arc::new(Unobserved),
    );
    let session = Arc::new(session.unwrap());
    for _ in 0..2 {
        session.set_bandwidth_limit(SLOW);
        let sending = Arc::clone(&session);
        let sent = std::thread::spawn(move || {
            let (manifest, source) = state();
            sending.send(manifest, source).unwrap()
        });
        vary(|count| session.want(count), || session.progress().lanes);
        session.set_bandwidth_limit(None);
        let sent = join(sent);
        assert_eq!((sent.sessions, sent.lanes_lost, sent.blocks_resent, once(&sent)), (1, 0, 0, 92));
    }
    session.close();
    let received = join(receiving);
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|report| (report.lanes_lost, report.blocks_received) == (0, 92)));
}

#[test]
fn side_that_fetches_gives_lanes_up_and_makes_them_again_at_no_cost() {
    let listener =
        listener(ReceiveOptions { senders: false, serve: Some(options()), ..ReceiveOptions::default() });
    let listener = Arc::new(listener);
    let address = listener.local_addr().to_string();
    let serves = Arc::clone(&listener);
    let serving = std::thread::spawn(move || {
        let Arrival::Fetcher(session) = serves.accept_any(Some(PATIENCE)).unwrap() else {
            return Vec::new();
        };
        let mut reports = Vec::new();
        while session.next_request(Some(PATIENCE)).unwrap().is_some() {
            let (manifest, source) = state();
            reports.push(session.send(manifest, source).unwrap());
        }
        reports
    });
    let options = FetchOptions { lanes: LANES, ..FetchOptions::default() };
    let session = FetchSession::connect(
        &address,
        DialSecurity::Insecure,
        options,
        &Cancel::new(),
        Arc::new(Unobserved),
    );
    let session = Arc::new(session.unwrap());
    for _ in 0..2 {
        listener.set_bandwidth_limit(SLOW);
        let fetching = Arc::clone(&session);
        let received = std::thread::spawn(move || {
            let sink: Arc<dyn dwcp_store::Sink> = Arc::new(MemorySink::new(1 << 24));
            fetching.fetch(b"", &sink, Some(PATIENCE)).unwrap()
        });
        vary(|count| session.want(count), || session.progress().lanes);
        listener.set_bandwidth_limit(None);
        let received = join(received);
        assert_eq!((received.lanes_lost, received.blocks_received), (0, 92));
    }
    session.close();
    let sent = join(serving);
    assert_eq!(sent.len(), 2);
    for report in sent {
        assert_eq!((report.lanes_lost, report.blocks_resent, once(&report)), (0, 0, 92));
    }
}

#[test]
fn sender_whose_way_becomes_another_under_way_loses_and_repeats_nothing() {
    let listener = listener(ReceiveOptions::default());
    let address = listener.local_addr().to_string();
    let receiving = std::thread::spawn(move || {
        let session = listener.accept(Some(PATIENCE)).unwrap();
        session.receive(Arc::new(MemorySink::new(1 << 24)), Some(PATIENCE)).unwrap().unwrap()
    });
    let fixed = |lanes| LaneRange { least: lanes, start: lanes, most: lanes };
    // Near, and so with a number of lanes that nobody looks for to begin with.
    let options = SendOptions { lanes: 2, adaptive: Some(fixed(2)), ..options() };
    let security = DialSecurity::Insecure;
    let session =
        SendSession::connect(&address, security, options, &Cancel::new(), Arc::new(Unobserved)).unwrap();
    let session = Arc::new(session);
    let sending = Arc::clone(&session);
    let sent = std::thread::spawn(move || {
        let (manifest, source) = state();
        sending.send(manifest, source).unwrap()
    });
    let lanes = || session.progress().lanes;
    await_that("the lanes do not come", || lanes() == 2);
    for (distance, round_trip_ms, count) in [(Distance::Far, 80, 6), (Distance::Near, 1, 3)] {
        let round_trip = Duration::from_millis(round_trip_ms);
        session.relocate(Relocation { lanes: fixed(count), distance, round_trip }).unwrap();
        await_that("the number of lanes is not what is wanted", || lanes() == u32::from(count));
    }
    let wrong = Relocation { lanes: fixed(0), distance: Distance::Near, round_trip: Duration::ZERO };
    assert!(session.relocate(wrong).is_err());
    session.set_bandwidth_limit(None);
    let sent = join(sent);
    assert_eq!((sent.sessions, sent.lanes_lost, sent.blocks_resent, once(&sent)), (1, 0, 0, 92));
    let changes: Vec<_> = sent.lane_changes.iter().map(|change| (change.lanes, change.reason)).collect();
    assert_eq!(changes, [(2, LaneReason::Start), (6, LaneReason::Moved), (3, LaneReason::Moved)]);
    session.close();
    let received = join(receiving);
    assert_eq!((received.lanes_lost, received.blocks_received), (0, 92));
    assert_eq!(received.transfer_digest, sent.transfer_digest);
}
