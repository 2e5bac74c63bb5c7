//! A sender whose lanes lead nowhere.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_proto::frame::{Accept, Frame, Secret, SessionId};
use dwcp_proto::limits::MIN_BLOCK;
use dwcp_proto::sender::Step;
use dwcp_proto::{Limits, Manifest};
use dwcp_store::MemorySource;

use super::shared::{Job, Link, Shared, State};
use super::turns::Turn;
use super::{STALL_READ_BYTES_PER_S, SendOptions};
use crate::cancel::{Cancel, lock};
use crate::limiter::{Limiter, Seat};
use crate::report::Unobserved;
use crate::transport::{TcpTransport, Transport, wake_pair};

/// A sender with a job of 16 blocks and lanes 0 to 3.
pub(super) fn sender() -> (Shared, Arc<Manifest>) {
    let limiter = Arc::new(Limiter::new(None));
    let (id, key, limits) = (SessionId([1; 16]), Secret::NONE, Limits::default());
    let link = Link { id, key, max_lanes: 8, limits };
    let cancels = (Cancel::new(), Cancel::new());
    let shared = Shared::new(SendOptions::default(), limiter, cancels, Arc::new(Unobserved), link, None);
    let bytes = Arc::new(vec![1; 16 * MIN_BLOCK as usize]);
    let (manifest, source) = MemorySource::new(vec![("a".to_owned(), bytes)], MIN_BLOCK, &limits).unwrap();
    let manifest = Arc::new(manifest);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut state = lock(&shared.state);
    for number in 0..4 {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let closer = TcpTransport::new(stream).unwrap().closer();
        assert_eq!(state.attach(number, wake_pair().unwrap().0, closer), u32::from(number));
    }
    state.begin(Job::new(Arc::clone(&manifest), Arc::new(source), true, (Instant::now(), None)));
    drop(state);
    (shared, manifest)
}

#[test]
fn a_lane_is_looked_at_once_it_sends_as_the_session_is_to() {
    let (shared, _) = sender();
    let mut state = lock(&shared.state);
    assert!(state.telemetry.all().is_empty());
    state.watch(2, 1);
    assert!(state.telemetry.all().is_empty(), "it is a lane of another epoch");
    state.watch(2, 0);
    assert_eq!(state.telemetry.all().iter().map(|(lane, _)| *lane).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_lane_is_of_use_once_there_was_a_block_for_it() {
    let (shared, manifest) = sender();
    let mut state = lock(&shared.state);
    state.wanted = 24;
    assert_eq!(state.useful(), 1, "nothing was to be sent yet");
    state.expect(&manifest);
    assert_eq!(state.useful(), 16);
    assert_eq!([15, 16].map(|number| state.needs_lane(number)), [true, false]);
    state.wanted = 3;
    assert_eq!(state.useful(), 3);
}

#[test]
fn only_so_many_lanes_are_given_blocks_as_a_low_rate_keeps_moving() {
    let (shared, manifest) = sender();
    let limiter = &shared.limiter;
    let _seats: Vec<Seat> = (0..4).map(|_| limiter.seat()).collect();
    let mut state = lock(&shared.state);
    let step = |state: &mut State, lane| match state.turn(lane, 0, Duration::ZERO, limiter) {
        Turn::Step(step) => step,
        _ => panic!("lane {lane} has another turn"),
    };
    while step(&mut state, 0) != Step::Wait {}
    let accept = Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 };
    state.receive(0, 0, Frame::Accept(accept)).unwrap();
    // Of more than two lanes each would be silent for longer.
    limiter.set_rate(Some(1_000));
    let sends = |state: &mut State, lane| matches!(step(state, lane), Step::Block(_));
    assert_eq!([3, 2, 1, 0].map(|lane| sends(&mut state, lane)), [false, false, true, true]);
    state.detach(0, 0);
    assert_eq!([3, 2, 1].map(|lane| sends(&mut state, lane)), [false, true, true]);
    limiter.set_rate(None);
    assert!(sends(&mut state, 3));
}

#[test]
fn only_what_is_more_than_a_sign_of_life_moves_a_transfer() {
    let (shared, manifest) = sender();
    let mut state = lock(&shared.state);
    let limit = Duration::from_secs(1);
    let rest = |state: &mut State| state.moved = Instant::now().checked_sub(limit).unwrap();
    rest(&mut state);
    assert!(state.is_still(limit));
    while !matches!(state.turn(0, 0, Duration::ZERO, &shared.limiter), Turn::Step(Step::Wait)) {}
    state.receive(0, 0, Frame::KeepAlive).unwrap();
    assert!(state.is_still(limit), "the receiver is there, and that is all");
    let accept = Accept { transfer_id: manifest.transfer_id(), staged_bytes: 0 };
    state.receive(0, 0, Frame::Accept(accept)).unwrap();
    assert!(!state.is_still(limit));
    rest(&mut state);
    // However long a block takes at a low rate, its lane has a deadline of its own.
    state.moves(1, true);
    rest(&mut state);
    assert!(!state.is_still(limit) && !state.is_still(Duration::ZERO));
    let _ = state.turn(1, 0, Duration::ZERO, &shared.limiter);
    assert!(!state.is_still(limit) && state.is_still(Duration::ZERO));
    for lose in [|state: &mut State| state.detach(2, 0), |state: &mut State| state.renew(None)] {
        state.moves(2, true);
        state.moves(3, true);
        rest(&mut state);
        lose(&mut state);
        assert!(!state.is_still(limit), "a lane that is lost in the middle of a block did write until then");
    }
}

#[test]
fn what_a_receiver_reads_in_silence_is_no_stall() {
    let (shared, _) = sender();
    let mut state = lock(&shared.state);
    let limit = Some(Duration::from_secs(600));
    assert_eq!((state.stalls_after(None), state.stalls_after(limit)), (None, limit));
    let bytes = Arc::new(vec![0; 3 * STALL_READ_BYTES_PER_S as usize]);
    let large = MemorySource::new(vec![("a".to_owned(), bytes)], MIN_BLOCK, &Limits::default());
    let (manifest, source) = large.unwrap();
    state.begin(Job::new(Arc::new(manifest), Arc::new(source), true, (Instant::now(), None)));
    assert_eq!(state.stalls_after(limit), Some(Duration::from_secs(603)));
}
