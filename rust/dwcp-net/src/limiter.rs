//! Keeps all lanes of a sender together below a rate, which may change at any time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, lock};
use crate::error::NetError;

/// How much time's worth of bytes may go out at once.
const BURST_S: f64 = 0.05;

/// The least to ask for at once: less is not worth a packet.
const LEAST_PIECE: u64 = 1_024;

/// For how long a lane may be silent in the middle of a block, since the others have their turns: well within what peers
/// wait for, and what is taken for a stall.
const SILENCE_S: f64 = 2.5;

/// How often a lane that waits looks whether the rate is another by now.
const SLICE: Duration = Duration::from_millis(100);

/// What a single lane is paced at, as a multiple of the rate: more, since TCP's own bytes and those of TLS count there.
const ALONE: f64 = 1.25;

/// What each of several lanes is paced at, as a multiple of its share: others may be on slower paths.
const AMONG_OTHERS: f64 = 2.0;

/// Lets bytes pass at a rate, or as they come.
pub(crate) struct Limiter {
    epoch: Instant,
    budget: Mutex<Budget>,
    lanes: AtomicUsize,
}

impl Limiter {
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Limiter {
        let budget = Mutex::new(Budget::new(bytes_per_s));
        Limiter { epoch: Instant::now(), budget, lanes: AtomicUsize::new(0) }
    }

    /// From now on, this is the rate; lanes that wait go on at it at once.
    pub(crate) fn set_rate(&self, bytes_per_s: Option<u64>) {
        lock(&self.budget).set_rate(bytes_per_s, self.epoch.elapsed());
    }

    pub(crate) fn rate(&self) -> Option<u64> {
        lock(&self.budget).bytes_per_s
    }

    /// How many bytes a lane is to ask for at once: all lanes together a burst's worth, so that the stream is even on
    /// each and a cancel is noticed. None while there is no rate to keep.
    pub(crate) fn piece(&self) -> Option<usize> {
        let share = |rate| (rate / 20 / self.senders(rate)).clamp(LEAST_PIECE, 1 << 20) as usize;
        self.rate().map(share)
    }

    /// How many of the `lanes` of a session may be given blocks, so that none is silent for long in the middle of one.
    pub(crate) fn room(&self, lanes: usize) -> usize {
        let Some(rate) = self.rate() else { return lanes };
        let all = self.lanes.load(Ordering::SeqCst).max(lanes).max(1) as u64;
        ((self.senders(rate).min(all) * lanes as u64).div_ceil(all)) as usize
    }

    /// How many lanes share a rate: those that there are, as far as their turns come often enough.
    fn senders(&self, bytes_per_s: u64) -> u64 {
        let most = (bytes_per_s as f64 * SILENCE_S / LEAST_PIECE as f64) as u64;
        most.min(self.lanes.load(Ordering::SeqCst) as u64).max(1)
    }

    /// Waits until `count` bytes may go out. On a cancel they are left to others.
    pub(crate) fn pass(&self, count: usize, cancel: &Cancel) -> Result<(), NetError> {
        let turn = lock(&self.budget).ask(count as u64, self.epoch.elapsed());
        loop {
            let early = {
                let mut budget = lock(&self.budget);
                let early = budget.until(turn, self.epoch.elapsed());
                if early.is_zero() {
                    budget.leave(turn);
                    return Ok(());
                }
                early
            };
            if let Err(error) = cancel.sleep(early.min(SLICE)) {
                lock(&self.budget).give_up(turn);
                return Err(error);
            }
        }
    }

    /// Counts a lane among those that share the rate, for as long as the seat is kept.
    pub(crate) fn seat(self: &Arc<Limiter>) -> Seat {
        self.lanes.fetch_add(1, Ordering::SeqCst);
        Seat(Arc::clone(self))
    }

    /// What the system should pace each lane at, in bytes a second, so that a burst does not go out at once: never less
    /// than the limiter lets the lane have, if others have their share.
    pub(crate) fn pace(&self) -> Option<u64> {
        self.rate().map(|rate| pace(rate, self.senders(rate)))
    }
}

/// A lane that shares the rate.
pub(crate) struct Seat(Arc<Limiter>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.lanes.fetch_sub(1, Ordering::SeqCst);
    }
}

fn pace(bytes_per_s: u64, lanes: u64) -> u64 {
    let share = (AMONG_OTHERS / lanes as f64).min(ALONE);
    ((bytes_per_s as f64 * share) as u64).max(1)
}

/// The arithmetic, in a time that is told: bytes that were asked for, and those that may have gone out by then. Who asks
/// gets a place in the row of bytes, so that a change of the rate moves all that wait.
struct Budget {
    bytes_per_s: Option<u64>,
    /// Counts of all bytes since the beginning.
    asked: f64,
    allowed: f64,
    at: Duration,
    next: u64,
    /// Who waits, in the order of turns.
    row: VecDeque<Waiting>,
}

/// A place in the row.
#[derive(Clone, Copy)]
struct Turn(u64);

/// Who has it.
struct Waiting {
    turn: u64,
    count: f64,
    /// The number of the last byte that was asked for.
    last: f64,
}

impl Budget {
    fn new(bytes_per_s: Option<u64>) -> Budget {
        Budget { bytes_per_s, asked: 0.0, allowed: 0.0, at: Duration::ZERO, next: 0, row: VecDeque::new() }
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        // Idle time is not saved up beyond a burst.
        self.allowed = match self.bytes_per_s {
            Some(rate) => {
                let rate = rate.max(1) as f64;
                (self.allowed + rate * passed).min(self.asked + rate * BURST_S)
            }
            None => self.asked,
        };
    }

    fn set_rate(&mut self, bytes_per_s: Option<u64>, now: Duration) {
        self.advance(now);
        self.bytes_per_s = bytes_per_s;
        // What was saved up at a higher rate is more than a burst at a lower one.
        self.advance(now);
    }

    fn ask(&mut self, count: u64, now: Duration) -> Turn {
        self.advance(now);
        let count = count as f64;
        self.asked += count;
        let turn = self.next;
        self.next += 1;
        self.row.push_back(Waiting { turn, count, last: self.asked });
        Turn(turn)
    }

    fn place(&self, turn: Turn) -> Option<usize> {
        self.row.binary_search_by_key(&turn.0, |waiting| waiting.turn).ok()
    }

    /// The bytes of that turn go out.
    fn leave(&mut self, turn: Turn) {
        self.place(turn).and_then(|place| self.row.remove(place));
    }

    /// The bytes of that turn do not go out, and those behind it move up.
    fn give_up(&mut self, turn: Turn) {
        let Some(place) = self.place(turn) else { return };
        let Some(Waiting { count, .. }) = self.row.remove(place) else { return };
        self.asked -= count;
        self.row.range_mut(place..).for_each(|behind| behind.last -= count);
    }

    /// How long it is until that turn comes, as things stand.
    fn until(&mut self, turn: Turn, now: Duration) -> Duration {
        self.advance(now);
        let Some(place) = self.place(turn) else { return Duration::ZERO };
        let missing = self.row[place].last - self.allowed;
        match self.bytes_per_s {
            // A millionth of a byte is what arithmetic has lost.
            Some(rate) if missing > 1e-6 => Duration::from_secs_f64(missing / rate.max(1) as f64),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has lanes send pieces of 1,000 bytes one after the other from `from_ms` to `to_ms`; gives how many passed.
    fn send(budget: &mut Budget, from_ms: u64, to_ms: u64) -> u64 {
        let (mut now, end) = (Duration::from_millis(from_ms), Duration::from_millis(to_ms));
        let mut passed = 0;
        loop {
            let turn = budget.ask(1_000, now);
            now += budget.until(turn, now);
            if now > end {
                budget.give_up(turn);
                return passed;
            }
            assert!(budget.until(turn, now + Duration::from_nanos(2)).is_zero());
            budget.leave(turn);
            passed += 1_000;
        }
    }

    #[test]
    fn no_more_passes_in_any_time_than_the_rate_and_a_burst() {
        let mut budget = Budget::new(Some(1_000_000));
        let first = send(&mut budget, 0, 500);
        assert!((499_000..=501_000).contains(&first), "{first}");
        // An idle hour is worth a burst of 50 ms.
        let after = send(&mut budget, 3_600_000, 3_600_100);
        assert!((149_000..=151_000).contains(&after), "{after}");
    }

    #[test]
    fn a_change_of_the_rate_moves_those_that_wait() {
        let mut budget = Budget::new(Some(1_000));
        let start = Duration::from_secs(1);
        let turns: Vec<Turn> = (0..4).map(|_| budget.ask(1_000, start)).collect();
        let waits =
            |budget: &mut Budget, now| turns.iter().map(|turn| budget.until(*turn, now)).collect::<Vec<_>>();
        let seconds = |ms: [u64; 4]| ms.map(Duration::from_millis).to_vec();
        assert_eq!(waits(&mut budget, start), seconds([950, 1_950, 2_950, 3_950]));
        budget.set_rate(Some(10_000), start);
        assert_eq!(waits(&mut budget, start), seconds([95, 195, 295, 395]));
        let later = start + Duration::from_millis(95);
        budget.set_rate(Some(500), later);
        assert_eq!(waits(&mut budget, later), seconds([0, 2_000, 4_000, 6_000]));
        budget.set_rate(None, later);
        assert_eq!(waits(&mut budget, later), seconds([0, 0, 0, 0]));
        // What passed without a rate is not made up for when there is one again.
        let turn = budget.ask(1_000_000, later);
        assert!(budget.until(turn, later).is_zero());
        budget.set_rate(Some(1_000), later);
        let turn = budget.ask(1_000, later);
        assert_eq!(budget.until(turn, later), Duration::from_secs(1));
    }

    #[test]
    fn what_is_given_up_is_left_to_those_behind() {
        let mut budget = Budget::new(Some(1_000));
        let start = Duration::from_secs(1);
        let [first, second, third] = [400, 3_000, 250].map(|count| budget.ask(count, start));
        budget.give_up(second);
        // A burst of 50 ms had been saved up.
        assert_eq!(budget.until(first, start), Duration::from_millis(350));
        assert_eq!(budget.until(third, start), Duration::from_millis(600));
        let later = start + Duration::from_millis(600);
        assert!(budget.until(first, later).is_zero() && budget.until(third, later).is_zero());
        [first, third].into_iter().for_each(|turn| budget.leave(turn));
        assert!(budget.row.is_empty());

        let limiter = Limiter::new(Some(1_000));
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(limiter.pass(1_000_000, &cancel), Err(NetError::Cancelled)));
        let mut budget = lock(&limiter.budget);
        let now = limiter.epoch.elapsed();
        let turn = budget.ask(1_000, now);
        assert!(budget.until(turn, now) <= Duration::from_secs(1));
    }

    #[test]
    fn pacing_leaves_lanes_room_for_what_others_do_not_use() {
        assert_eq!(pace(1_000_000, 1), 1_250_000);
        assert_eq!(pace(1_000_000, 4), 500_000);
        assert_eq!(pace(1, 256), 1);
        let limiter = Arc::new(Limiter::new(Some(10_000)));
        let seats: Vec<Seat> = (0..4).map(|_| limiter.seat()).collect();
        assert_eq!(limiter.pace(), Some(5_000));
        drop(seats);
        limiter.set_rate(Some(2_000));
        assert_eq!((limiter.pace(), limiter.piece()), (Some(2_500), Some(1_024)));
        limiter.set_rate(None);
        assert_eq!((limiter.pace(), limiter.piece()), (None, None));
    }

    #[test]
    fn no_lane_is_silent_for_long_while_the_others_have_their_turns() {
        let limiter = Arc::new(Limiter::new(None));
        let _seats: Vec<Seat> = (0..256).map(|_| limiter.seat()).collect();
        assert_eq!(limiter.room(256), 256);
        for rate in [1_000, 20_000, 100_000, 1_000_000, 1 << 30, 1 << 40] {
            limiter.set_rate(Some(rate));
            let (piece, room) = (limiter.piece().unwrap(), limiter.room(256));
            let round = piece as f64 * room as f64 / rate as f64;
            assert!(round <= 2.5, "{room} lanes send {piece} bytes in {round} s");
            // TCP lets each have its share.
            assert!(limiter.pace().unwrap() * room as u64 >= rate);
            // A session that has some of the lanes has as large a part of the room.
            assert_eq!(limiter.room(64), room.div_ceil(4));
        }
        assert_eq!((limiter.piece(), limiter.room(256)), (Some(1 << 20), 256));
        limiter.set_rate(Some(1));
        assert_eq!((limiter.room(256), limiter.room(1), limiter.pace()), (1, 1, Some(1)));
    }
}
