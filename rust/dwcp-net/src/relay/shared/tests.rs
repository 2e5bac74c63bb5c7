//! What the two sides of a relay know of their streams.

use dwcp_proto::frame::{RecordWord, Taken};
use dwcp_proto::relay::Record;

use super::*;
use crate::report::Unobserved;

/// A side without lanes and streams.
pub(in crate::relay) fn alone(side: Side) -> Shared {
    let names = (SessionId([0; 16]), Secret::NONE);
    let halts = (Cancel::new(), Cancel::new());
    Shared::new(side, names, RelayOptions::default(), halts, Arc::new(Unobserved), None)
}

fn push(shared: &Shared, state: &mut State) {
    let bytes = Arc::new(shared.pool.empty());
    state.outbox.push(0, Record { word: RecordWord::Data, bytes, raw_len: 0 });
}

#[test]
fn pages_are_those_of_the_connection_that_was_opened_first_whichever_is_heard_of_first() {
    let shared = alone(Side::Source);
    let mut state = lock(&shared.state);
    assert_eq!([2, 0, 1, 2, 0].map(|number| state.has_pages(number)), [true, true, false, false, true]);
}

/// Two lanes of a path of 100 ms, where TCP waits for 300 ms. The second asks for what is late every 50 ms while the
/// first has a record from 1.0 on that comes at `at_s`. Tells how often it was sent, and when for the second time.
fn sent_by(at_s: f64, is_busy: bool) -> (u32, Option<f64>) {
    let shared = alone(Side::Source);
    let mut state = lock(&shared.state);
    state.timeout = Some(Duration::from_millis(300));
    push(&shared, &mut state);
    state.outbox.next(1, 0.0).unwrap();
    state.outbox.taken(1, Taken { stream: 0, count: 1, come: 1 }, 0.1).unwrap();
    push(&shared, &mut state);
    state.outbox.next(1, 1.0).unwrap();
    if is_busy {
        push(&shared, &mut state);
    }
    for step in 0..100 {
        let now_s = 1.0 + f64::from(step) * 0.05;
        if now_s >= at_s {
            state.outbox.taken(1, Taken { stream: 0, count: 2, come: 2 }, now_s).unwrap();
        }
        let patience_s = state.patience_s();
        if state.outbox.help(2, now_s, patience_s).is_some() {
            return (2, Some(now_s));
        }
    }
    (1, None)
}

#[test]
fn stream_that_the_machine_there_is_late_with_gets_no_more_until_it_has_caught_up() {
    let shared = alone(Side::Source);
    let mut state = lock(&shared.state);
    let room = |state: &State, at_s| state.has_room(Side::Source, 0, 100, at_s);
    push(&shared, &mut state);
    push(&shared, &mut state);
    state.outbox.next(1, 0.0).unwrap();
    state.outbox.next(1, 0.0).unwrap();
    // However long it is on its way, that says nothing of the machine.
    assert!(room(&state, 9.0));
    state.outbox.taken(1, Taken { stream: 0, count: 0, come: 2 }, 0.1).unwrap();
    assert!(room(&state, 0.2) && !room(&state, 0.3));
    assert!(state.has_room(Side::Source, 1, 100, 0.3), "it is another stream's machine");
    state.outbox.taken(1, Taken { stream: 0, count: 1, come: 2 }, 0.3).unwrap();
    assert!(!room(&state, 0.3), "the next one has come as long ago");
    state.outbox.taken(1, Taken { stream: 0, count: 2, come: 2 }, 0.4).unwrap();
    assert!(room(&state, 0.4));
}

#[test]
fn stream_that_is_alone_has_most_of_the_room_and_another_always_some() {
    let shared = alone(Side::Source);
    let mut state = lock(&shared.state);
    let fill = |stream, state: &mut State| {
        let mut bytes = 0;
        while state.has_room(Side::Source, stream, 1 << 20, 0.0) {
            let record =
                Record { word: RecordWord::Data, bytes: Arc::new(shared.pool.empty()), raw_len: 1 << 20 };
            state.outbox.push(stream, record);
            state.outbox.next(1, 0.0).unwrap();
            bytes += 1 << 20;
        }
        bytes
    };
    let (alone, next, third) = (fill(0, &mut state), fill(1, &mut state), fill(2, &mut state));
    assert!(
        alone > MAX_PENDING_BYTES * 3 / 4 && next > 16 << 20 && third > 2 << 20,
        "{alone} {next} {third}"
    );
    assert!(alone + next + third <= MAX_PENDING_BYTES);
}

#[test]
fn what_tcp_sends_again_itself_does_not_go_twice() {
    // Lost once and found by what came behind it, lost for a timeout, and lost a second time.
    for (at_s, is_busy) in [(1.25, false), (1.25, true), (1.4, false), (1.4, true), (1.95, true)] {
        assert_eq!(sent_by(at_s, is_busy), (1, None), "{at_s} {is_busy}");
    }
    // A lane that stands still is not waited for.
    let (idle, busy) = (sent_by(9.0, false).1.unwrap(), sent_by(9.0, true).1.unwrap());
    assert!(idle < 1.5 && 2.0 < busy && busy < 2.2, "{idle} {busy}");
}
