//! Every order in which threads can come to the counters, the breaker and the cancelling of `dwcp-net`.
//!
//! The files under test are those of the crate, as they are; what they use of it is given here without sockets, and
//! its locks are those of loom. A wait never ends by its time here, so one that nobody wakes is told as a deadlock.

// What is under test has more than what the models below use.
#![allow(dead_code, missing_docs)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::model::Builder;
use loom::thread;

use crate::breaker::Breaker;
use crate::cancel::Cancel;
use crate::error::NetError;
use crate::report::{Event, Progress, SendReport};
use crate::tally::{EventCounts, Tally};
use crate::transfers::{Direction, TransferTally, Watched};
use crate::transport::Closer;

#[path = "../../dwcp-net/src/breaker.rs"]
mod breaker;
#[path = "../../dwcp-net/src/cancel.rs"]
mod cancel;
#[path = "../../dwcp-net/src/tally.rs"]
mod tally;
#[path = "../../dwcp-net/src/transfers.rs"]
mod transfers;

/// The locks of the files under test.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
}

/// What the files under test tell of errors.
mod error {
    #[derive(Debug)]
    pub(crate) enum NetError {
        Cancelled,
    }
}

/// The events that are counted, and what is counted of transfers.
mod report {
    use std::net::SocketAddr;

    pub(crate) enum Event {
        LaneUp { lane: u32, peer: SocketAddr },
        LaneDown { lane: u32, reason: Option<String> },
        Reconnecting { attempt: u32 },
        IntegrityFailure { reason: String },
        Refused { peer: SocketAddr },
        V1Refused { peer: SocketAddr },
        SessionOpened { peer: SocketAddr },
    }

    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Progress {
        pub(crate) state_bytes_total: u64,
        pub(crate) wire_bytes: u64,
        pub(crate) lanes: u32,
        pub(crate) path: Option<LivePath>,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LivePath;

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct CodecShare {
        pub(crate) kind: u8,
        pub(crate) codec: u8,
        pub(crate) blocks: u64,
        pub(crate) raw_bytes: u64,
        pub(crate) wire_bytes: u64,
    }

    #[derive(Default)]
    pub(crate) struct PathReport {
        pub(crate) sent_bytes: Option<u64>,
        pub(crate) retransmitted_bytes: Option<u64>,
        pub(crate) retransmitted_segments: u64,
    }

    #[derive(Default)]
    pub(crate) struct SendReport {
        pub(crate) bytes_raw: u64,
        pub(crate) bytes_wire: u64,
        pub(crate) bytes_held: u64,
        pub(crate) bytes_same: u64,
        pub(crate) blocks_resent: u64,
        pub(crate) nacks: u64,
        pub(crate) seconds: f64,
        pub(crate) cpu_seconds: f64,
        pub(crate) path: Option<PathReport>,
        pub(crate) codec_mix: Vec<CodecShare>,
    }

    #[derive(Default)]
    pub(crate) struct ReceiveReport {
        pub(crate) bytes_raw: u64,
        pub(crate) bytes_wire: u64,
        pub(crate) bytes_held: u64,
        pub(crate) bytes_same: u64,
        pub(crate) nacks: u64,
        pub(crate) seconds: f64,
        pub(crate) cpu_seconds: f64,
        pub(crate) codec_mix: Vec<CodecShare>,
    }
}

/// A socket that only tells whether it was shut.
mod transport {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Clone, Default)]
    pub(crate) struct Closer(Arc<AtomicBool>);

    impl Closer {
        pub(crate) fn close(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        pub(crate) fn is_closed(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
}

/// How often a thread may be interrupted where it need not wait: what bounds the time that all orders take.
const PREEMPTIONS: usize = 3;
const MOST: Duration = Duration::from_secs(60);
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

const MODELS: [(&str, fn()); 7] = [
    ("who_reads_counts_never_sees_more_lanes_lost_than_came_up", counts_fit_together),
    ("a_transfer_is_under_way_or_has_ended_and_its_bytes_are_counted_once", transfers_fit_together),
    ("a_peer_that_is_away_is_tried_by_one_lane_at_a_time_and_nobody_waits_for_nothing", one_probe),
    ("a_probe_that_is_given_up_makes_room_for_another", given_up),
    ("a_sleeper_is_woken_by_a_cancel", sleeper_wakes),
    ("a_child_made_while_its_parent_is_cancelled_is_cancelled_too", child_is_told),
    ("a_socket_made_known_while_all_is_cancelled_is_shut", socket_is_shut),
];

fn main() {
    for (name, model) in MODELS {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let mut builder = Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        builder.max_duration = Some(MOST);
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        println!("{name}: held in {} orders", runs.load(Ordering::Relaxed));
    }
}

fn counts_fit_together() {
    let tally = Arc::new(Tally::default());
    let lanes: Vec<_> = (0..2)
        .map(|lane| {
            let tally = Arc::clone(&tally);
            thread::spawn(move || {
                tally.count(&Event::LaneUp { lane, peer: PEER });
                tally.count(&Event::LaneDown { lane, reason: Some("cut".to_owned()) });
            })
        })
        .collect();
    let mut before = EventCounts::default();
    for _ in 0..2 {
        let now = tally.counts();
        assert!((0..=2).contains(&(now.lanes_opened - now.lanes_lost)), "{now:?}");
        assert!(now.lanes_opened >= before.lanes_opened && now.lanes_lost >= before.lanes_lost);
        before = now;
    }
    for lane in lanes {
        lane.join().unwrap();
    }
    let all = tally.counts();
    assert_eq!((all.lanes_opened, all.lanes_lost), (2, 2));
}

/// A session that shows bytes on the wire of a transfer of which more come.
struct Shown;

impl Watched for Shown {
    fn progress(&self) -> Progress {
        Progress { state_bytes_total: 9, wire_bytes: 3, lanes: 1, path: None }
    }
}

fn transfers_fit_together() {
    let tally = Arc::new(TransferTally::default());
    let ends: Vec<_> = [true, false]
        .map(|ends_well| {
            let tally = Arc::clone(&tally);
            thread::spawn(move || {
                let session = Arc::new(Shown);
                let watched = Arc::downgrade(&session);
                let running = tally.begin(Direction::Sent, watched).unwrap();
                if ends_well {
                    tally.sent(running, &SendReport { bytes_wire: 4, bytes_raw: 8, ..SendReport::default() });
                } else {
                    tally.stands(&running, session.progress());
                    tally.failed(Some(&running), Direction::Sent, "cut", false);
                }
            })
        })
        .into_iter()
        .collect();
    let now = tally.counts();
    let sent = &now.sent;
    assert!(sent.active + sent.completed + sent.failed <= 2, "{now:?}");
    assert_eq!(sent.state_bytes, 2 * (sent.wire_bytes - sent.unfinished_wire_bytes), "{now:?}");
    assert_eq!(now.errors.get("cut").copied().unwrap_or(0), sent.failed, "{now:?}");
    for end in ends {
        end.join().unwrap();
    }
    let all = tally.counts().sent;
    assert_eq!((all.active, all.completed, all.failed, all.wire_bytes), (0, 1, 1, 7));
}

/// A breaker that knows its peer to be away, and that the time to try it has come.
fn away() -> Arc<Breaker> {
    let breaker = Arc::new(Breaker::new(|_| Duration::ZERO));
    breaker.enter(&Cancel::new()).unwrap().missed();
    breaker
}

fn one_probe() {
    let breaker = away();
    let (tries, at_work) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let lanes: Vec<_> = (0..2)
        .map(|_| {
            let (breaker, tries, at_work) = (Arc::clone(&breaker), Arc::clone(&tries), Arc::clone(&at_work));
            thread::spawn(move || {
                loop {
                    let leave = breaker.enter(&Cancel::new()).unwrap();
                    if !leave.is_probe {
                        assert!(tries.load(Ordering::SeqCst) >= 2, "it was not found yet");
                        return leave.found();
                    }
                    assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "two probes at once");
                    thread::yield_now();
                    at_work.fetch_sub(1, Ordering::SeqCst);
                    if tries.fetch_add(1, Ordering::SeqCst) == 1 {
                        return leave.found();
                    }
                    leave.missed();
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.join().unwrap();
    }
    assert_eq!(tries.load(Ordering::SeqCst), 2, "one probe found it away, the next one found it");
}

fn given_up() {
    let breaker = away();
    let other = Arc::clone(&breaker);
    let giving_up = thread::spawn(move || drop(other.enter(&Cancel::new()).unwrap()));
    let leave = breaker.enter(&Cancel::new()).unwrap();
    assert!(leave.is_probe, "nobody has found the peer");
    drop(leave);
    giving_up.join().unwrap();
}

fn sleeper_wakes() {
    let cancel = Cancel::new();
    let other = cancel.clone();
    let sleeper = thread::spawn(move || other.sleep(Duration::from_secs(600)));
    cancel.cancel();
    assert!(matches!(sleeper.join().unwrap(), Err(NetError::Cancelled)));
}

fn child_is_told() {
    let cancel = Cancel::new();
    let other = cancel.clone();
    let parent = thread::spawn(move || other.child());
    cancel.cancel();
    assert!(parent.join().unwrap().is_cancelled());
}

fn socket_is_shut() {
    let cancel = Cancel::new();
    let other = cancel.clone();
    let socket = Closer::default();
    let known = socket.clone();
    let registering = thread::spawn(move || other.register(known));
    cancel.cancel();
    drop(registering.join().unwrap());
    assert!(socket.is_closed());
}
