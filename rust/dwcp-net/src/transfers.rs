//! Counts transfers, so that whoever wants totals pays for them when it reads them, and hardly each transfer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Weak;

use crate::cancel::lock;
use crate::report::{CodecShare, LivePath, Progress, ReceiveReport, SendReport};
use crate::sync::{AtomicBool, Mutex, Ordering};

/// Something that shows where its transfer stands.
pub trait Watched: Send + Sync {
    /// Where it stands.
    fn progress(&self) -> Progress;
}

/// Whether this side sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It sends.
    Sent,
    /// It receives.
    Received,
}

/// The transfers of one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowCounts {
    /// Those under way.
    pub active: u64,
    /// Those that ended well.
    pub completed: u64,
    /// Those that did not.
    pub failed: u64,
    /// Waits that ended without a transfer.
    pub withdrawn: u64,
    /// Bytes of the states of completed ones.
    pub state_bytes: u64,
    /// Bytes of BLOCK bodies, those of unfinished ones included.
    pub wire_bytes: u64,
    /// The part of these that belongs to transfers which failed or are under way.
    pub unfinished_wire_bytes: u64,
    /// Bytes that staging held.
    pub held_bytes: u64,
    /// Bytes that a base held.
    pub same_bytes: u64,
    /// Blocks sent again.
    pub blocks_resent: u64,
    /// Blocks that a base did not fit.
    pub nacks: u64,
    /// The time of completed ones.
    pub seconds: f64,
    /// The processor time of their lanes.
    pub cpu_seconds: f64,
    /// Bytes that TCP sent for completed ones.
    pub tcp_sent_bytes: u64,
    /// The part of these that was sent again.
    pub tcp_retransmitted_bytes: u64,
    /// Segments sent again.
    pub tcp_retransmitted_segments: u64,
    /// How the blocks of completed ones were represented.
    pub shares: Vec<CodecShare>,
}

/// All transfers, at one moment.
#[derive(Clone, Debug, Default)]
pub struct TransferCounts {
    /// Those that this process sent.
    pub sent: FlowCounts,
    /// Those that it received.
    pub received: FlowCounts,
    /// Failures, by the code that they were told with.
    pub errors: BTreeMap<String, u64>,
    /// Lanes of those under way.
    pub lanes: u64,
    /// What TCP shows of each of them that sends.
    pub paths: Vec<LivePath>,
}

/// A transfer under way, which is to be told the end of.
#[derive(Debug)]
pub struct Running {
    id: u64,
    direction: Direction,
}

/// Counts the transfers of any number of sessions.
///
/// One lock guards all counts: a transfer is under way or has ended, in whatever is read. It is never held while
/// a session is asked where it stands, which takes locks of its own.
#[derive(Default)]
pub struct TransferTally {
    is_off: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: u64,
    running: HashMap<u64, Entry>,
    sent: FlowCounts,
    received: FlowCounts,
    errors: BTreeMap<String, u64>,
}

struct Entry {
    direction: Direction,
    session: Weak<dyn Watched>,
    /// Bytes on the wire that are counted already.
    credited: u64,
    /// Where it stood when it was last looked at, if it had begun by then.
    last: Option<Progress>,
}

impl TransferTally {
    /// Counts from now on, or no more; what is under way is counted to its end.
    pub fn set_enabled(&self, on: bool) {
        self.is_off.store(!on, Ordering::SeqCst);
    }

    /// Counts a transfer as under way; nothing while nothing is to be counted.
    #[must_use]
    pub fn begin(&self, direction: Direction, session: Weak<dyn Watched>) -> Option<Running> {
        if self.is_off.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = lock(&self.state);
        let id = state.begun;
        state.begun += 1;
        state.running.insert(id, Entry { direction, session, credited: 0, last: None });
        Some(Running { id, direction })
    }

    /// Counts one that was sent.
    pub fn sent(&self, running: Running, report: &SendReport) {
        let path = report.path.as_ref();
        self.complete(running, |flow| {
            flow.state_bytes += report.bytes_raw;
            flow.wire_bytes += report.bytes_wire;
            flow.held_bytes += report.bytes_held;
            flow.same_bytes += report.bytes_same;
            flow.blocks_resent += report.blocks_resent;
            flow.nacks += report.nacks;
            flow.seconds += report.seconds;
            flow.cpu_seconds += report.cpu_seconds;
            flow.tcp_sent_bytes += path.and_then(|path| path.sent_bytes).unwrap_or(0);
            flow.tcp_retransmitted_bytes += path.and_then(|path| path.retransmitted_bytes).unwrap_or(0);
            flow.tcp_retransmitted_segments += path.map_or(0, |path| path.retransmitted_segments);
            flow.add_shares(&report.codec_mix);
        });
    }

    /// Counts one that was received.
    pub fn received(&self, running: Running, report: &ReceiveReport) {
        self.complete(running, |flow| {
            flow.state_bytes += report.bytes_raw;
            flow.wire_bytes += report.bytes_wire;
            flow.held_bytes += report.bytes_held;
            flow.same_bytes += report.bytes_same;
            flow.nacks += report.nacks;
            flow.seconds += report.seconds;
            flow.cpu_seconds += report.cpu_seconds;
            flow.add_shares(&report.codec_mix);
        });
    }

    /// Counts a wait for a transfer that ended without one.
    pub fn withdrawn(&self, running: &Running) {
        let mut state = lock(&self.state);
        state.running.remove(&running.id);
        state.flow(running.direction).withdrawn += 1;
    }

    /// Counts one that failed.
    ///
    /// `is_idle`: that it failed so is no failure if nothing had begun. What was never told to have begun is
    /// counted too, unless nothing is to be.
    pub fn failed(&self, running: Option<&Running>, direction: Direction, code: &str, is_idle: bool) {
        if running.is_none() && self.is_off.load(Ordering::SeqCst) {
            return;
        }
        let mut state = lock(&self.state);
        let entry = running.and_then(|running| state.running.remove(&running.id));
        let has_begun = entry.is_some_and(|entry| entry.last.is_some());
        let flow = state.flow(direction);
        if is_idle && !has_begun {
            flow.withdrawn += 1;
            return;
        }
        flow.failed += 1;
        match state.errors.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(state.errors.insert(code.to_owned(), 1)),
        }
    }

    /// Counts what has gone over the wire of a transfer that will not complete.
    pub fn stands(&self, running: &Running, progress: Progress) {
        lock(&self.state).credit(running.id, progress);
    }

    /// Gives the counts as they are together. It may be what ends a session that was closed meanwhile.
    #[must_use]
    pub fn counts(&self) -> TransferCounts {
        let running: Vec<(u64, Weak<dyn Watched>)> = {
            let state = lock(&self.state);
            state.running.iter().map(|(id, entry)| (*id, Weak::clone(&entry.session))).collect()
        };
        let shown: Vec<(u64, Progress)> = running
            .into_iter()
            .filter_map(|(id, session)| session.upgrade().map(|session| (id, session.progress())))
            .collect();
        let mut state = lock(&self.state);
        for (id, progress) in shown {
            // One that has ended meanwhile was counted to its end.
            state.credit(id, progress);
        }
        let last: Vec<Progress> = state.running.values().filter_map(|entry| entry.last).collect();
        TransferCounts {
            sent: state.told(Direction::Sent),
            received: state.told(Direction::Received),
            errors: state.errors.clone(),
            lanes: last.iter().map(|progress| u64::from(progress.lanes)).sum(),
            paths: last.iter().filter_map(|progress| progress.path).collect(),
        }
    }

    fn complete(&self, running: Running, add: impl FnOnce(&mut FlowCounts)) {
        let mut state = lock(&self.state);
        let credited = state.running.remove(&running.id).map_or(0, |entry| entry.credited);
        let flow = state.flow(running.direction);
        flow.completed += 1;
        flow.wire_bytes -= credited;
        flow.unfinished_wire_bytes -= credited;
        add(flow);
    }
}

impl State {
    fn flow(&mut self, direction: Direction) -> &mut FlowCounts {
        match direction {
            Direction::Sent => &mut self.sent,
            Direction::Received => &mut self.received,
        }
    }

    fn credit(&mut self, id: u64, progress: Progress) {
        let Some(entry) = self.running.get_mut(&id) else { return };
        if progress.state_bytes_total == 0 {
            return;
        }
        entry.last = Some(progress);
        let more = progress.wire_bytes.saturating_sub(entry.credited);
        entry.credited += more;
        let direction = entry.direction;
        let flow = self.flow(direction);
        flow.wire_bytes += more;
        flow.unfinished_wire_bytes += more;
    }

    fn told(&self, direction: Direction) -> FlowCounts {
        let flow = match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        };
        let active = self.running.values().filter(|entry| entry.direction == direction).count() as u64;
        FlowCounts { active, ..flow.clone() }
    }
}

impl FlowCounts {
    /// Adds how the blocks of a transfer were represented. There are few ways, and most transfers go the same one.
    fn add_shares(&mut self, shares: &[CodecShare]) {
        for share in shares {
            match self.shares.iter_mut().find(|sum| (sum.kind, sum.codec) == (share.kind, share.codec)) {
                Some(sum) => {
                    sum.blocks += share.blocks;
                    sum.raw_bytes += share.raw_bytes;
                    sum.wire_bytes += share.wire_bytes;
                }
                None => self.shares.push(*share),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    /// A session whose transfer gets on whenever somebody looks.
    struct Growing {
        shown: AtomicU64,
        wire: u64,
    }

    impl Watched for Growing {
        fn progress(&self) -> Progress {
            let wire = self.wire.min(self.shown.fetch_add(self.wire / 3 + 1, Ordering::SeqCst));
            Progress { state_bytes_total: 2 * self.wire, wire_bytes: wire, lanes: 3, ..Progress::default() }
        }
    }

    /// A session that stands still.
    struct Still(Progress);

    impl Watched for Still {
        fn progress(&self) -> Progress {
            self.0
        }
    }

    fn begin(tally: &TransferTally, session: &Arc<impl Watched + 'static>) -> Running {
        let watched = Arc::downgrade(session);
        tally.begin(Direction::Sent, watched).unwrap()
    }

    fn of_bytes(wire: u64) -> impl FnOnce(&mut FlowCounts) {
        move |flow| {
            flow.wire_bytes += wire;
            flow.state_bytes += 2 * wire;
        }
    }

    fn check_sums(counts: &TransferCounts) {
        let sent = &counts.sent;
        assert_eq!(counts.errors.values().sum::<u64>(), sent.failed, "{counts:?}");
        assert_eq!(sent.state_bytes, 2 * (sent.wire_bytes - sent.unfinished_wire_bytes), "{counts:?}");
    }

    fn started(counts: &TransferCounts) -> u64 {
        let FlowCounts { active, completed, failed, withdrawn, .. } = counts.sent;
        active + completed + failed + withdrawn
    }

    #[test]
    fn what_is_read_while_many_threads_count_fits_together() {
        const TRANSFERS: u64 = 3_000;
        let (tally, done) = (TransferTally::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for wire in 1..=TRANSFERS {
                            let session = Arc::new(Growing { shown: AtomicU64::new(0), wire });
                            let running = begin(&tally, &session);
                            match wire % 3 {
                                0 => tally.failed(Some(&running), Direction::Sent, "cut", false),
                                1 => tally.withdrawn(&running),
                                _ => tally.complete(running, of_bytes(wire)),
                            }
                        }
                    })
                })
                .collect();
            let looker = scope.spawn(|| {
                let mut before = tally.counts();
                while !done.load(Ordering::SeqCst) {
                    let now = tally.counts();
                    check_sums(&now);
                    assert!(started(&now) >= started(&before) && now.sent.active <= 4);
                    assert!(now.sent.wire_bytes >= before.sent.wire_bytes);
                    before = now;
                }
            });
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            done.store(true, Ordering::SeqCst);
            looker.join().unwrap();
        });
        let all = tally.counts();
        check_sums(&all);
        assert_eq!((all.sent.active, all.lanes), (0, 0));
        assert_eq!((all.sent.completed, all.sent.failed, all.sent.withdrawn), (4_000, 4_000, 4_000));
    }

    #[test]
    fn bytes_of_a_transfer_under_way_are_counted_once() {
        let tally = TransferTally::default();
        let session = Arc::new(Growing { shown: AtomicU64::new(10), wire: 60 });
        let running = begin(&tally, &session);
        for wire in [10, 31, 52, 60, 60] {
            let now = tally.counts();
            assert_eq!((now.sent.wire_bytes, now.sent.unfinished_wire_bytes), (wire, wire));
            assert_eq!((now.sent.active, now.lanes), (1, 3));
        }
        // It may have taken fewer bytes than it showed.
        tally.complete(running, of_bytes(50));
        let now = tally.counts();
        assert_eq!((now.sent.wire_bytes, now.sent.unfinished_wire_bytes, now.lanes), (50, 0, 0));
    }

    #[test]
    fn bytes_of_a_transfer_that_failed_stay_counted() {
        let tally = TransferTally::default();
        let session = Arc::new(Still(Progress::default()));
        let running = begin(&tally, &session);
        tally.stands(&running, Progress { state_bytes_total: 9, wire_bytes: 7, ..Progress::default() });
        tally.failed(Some(&running), Direction::Sent, "cut", false);
        let now = tally.counts();
        assert_eq!((now.sent.wire_bytes, now.sent.unfinished_wire_bytes), (7, 7));
        assert_eq!((now.sent.failed, now.errors["cut"]), (1, 1));
    }

    #[test]
    fn a_wait_that_ends_before_anything_begins_is_no_failure() {
        let tally = TransferTally::default();
        let begun = Progress { state_bytes_total: 9, ..Progress::default() };
        for (progress, is_idle) in
            [(Progress::default(), true), (Progress::default(), false), (begun, true), (begun, false)]
        {
            let session = Arc::new(Still(progress));
            let running = begin(&tally, &session);
            tally.stands(&running, session.progress());
            tally.failed(Some(&running), Direction::Sent, "deadline", is_idle);
        }
        let now = tally.counts();
        assert_eq!((now.sent.withdrawn, now.sent.failed, now.errors["deadline"]), (1, 3, 3));
    }

    #[test]
    fn what_is_under_way_when_counting_ends_is_counted_and_nothing_else() {
        let tally = TransferTally::default();
        let session = Arc::new(Still(Progress::default()));
        let running = begin(&tally, &session);
        tally.set_enabled(false);
        let watched = Arc::downgrade(&session);
        assert!(tally.begin(Direction::Sent, watched).is_none());
        tally.failed(None, Direction::Sent, "cut", false);
        tally.complete(running, of_bytes(5));
        let now = tally.counts();
        assert_eq!((now.sent.completed, now.sent.failed, now.sent.wire_bytes), (1, 0, 5));
    }

    #[test]
    fn a_session_is_not_kept_for_being_counted() {
        let tally = TransferTally::default();
        let session =
            Arc::new(Still(Progress { state_bytes_total: 9, wire_bytes: 7, ..Progress::default() }));
        let running = begin(&tally, &session);
        drop(session);
        assert_eq!((tally.counts().sent.wire_bytes, tally.counts().sent.active), (0, 1));
        tally.complete(running, of_bytes(7));
        assert_eq!((tally.counts().sent.wire_bytes, tally.counts().sent.active), (7, 0));
    }
}
