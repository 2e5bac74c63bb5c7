//! While a peer is known to be away, one lane of a session at a time finds out whether it is back.

use std::time::{Duration, Instant};

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::sync::{Condvar, Mutex};

/// Whether the peer answered when it was last tried.
pub(crate) struct Breaker {
    state: Mutex<State>,
    changed: Condvar,
    /// How long to let a peer be that was away so often in a row.
    delay: fn(u32) -> Duration,
}

/// What is known of the peer. All of it is read and changed under one lock, so that whatever lanes do is a sequence of
/// the four functions here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    /// How often in a row it was away.
    failures: u32,
    /// When it may be tried again.
    retry_at: Option<Instant>,
    /// A lane tries it now.
    probing: bool,
}

/// What a lane that wants to try the peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Try: it is thought to be there.
    Free,
    /// Try, the only one to do so.
    Probe,
    /// Wait for what comes of a probe, or until one may be made.
    Wait(Duration),
}

impl State {
    fn enter(&mut self, now: Instant) -> Turn {
        let Some(retry_at) = self.retry_at else { return Turn::Free };
        let left = retry_at.saturating_duration_since(now);
        if !left.is_zero() || self.probing {
            return Turn::Wait(left);
        }
        self.probing = true;
        Turn::Probe
    }

    fn found(&mut self) {
        (self.failures, self.retry_at) = (0, None);
    }

    fn missed(&mut self, is_probe: bool, now: Instant, delay: impl FnOnce(u32) -> Duration) {
        // Those that set out while it was still thought to be there have nothing to add.
        if is_probe || self.retry_at.is_none() {
            self.failures += 1;
            self.retry_at = Some(now + delay(self.failures));
        }
    }

    fn leave(&mut self, is_probe: bool) {
        if is_probe {
            self.probing = false;
        }
    }
}

/// The leave to try the peer once. One that is dropped without a word has found nothing out.
pub(crate) struct Leave<'a> {
    breaker: &'a Breaker,
    /// Whether no other lane tries the peer meanwhile.
    pub(crate) is_probe: bool,
}

impl Breaker {
    /// Takes the peer to be there.
    pub(crate) fn new(delay: fn(u32) -> Duration) -> Breaker {
        Breaker { state: Mutex::default(), changed: Condvar::default(), delay }
    }

    /// Waits until this lane may try the peer: at once while it is there; while it is away, until it was found to be
    /// back, or the time has come to try it and no other lane does.
    pub(crate) fn enter(&self, cancel: &Cancel) -> Result<Leave<'_>, NetError> {
        let mut has_waited = false;
        let mut state = lock(&self.state);
        loop {
            cancel.check()?;
            let left = match state.enter(Instant::now()) {
                Turn::Free => break,
                Turn::Probe => return Ok(Leave { breaker: self, is_probe: true }),
                Turn::Wait(left) => left,
            };
            has_waited = true;
            let slice = if left.is_zero() { CANCEL_SLICE } else { left.min(CANCEL_SLICE) };
            state = wait(&self.changed, state, slice);
        }
        drop(state);
        if has_waited {
            // Not all lanes at once fall upon a peer that has just come back.
            cancel.sleep((self.delay)(0))?;
        }
        Ok(Leave { breaker: self, is_probe: false })
    }

    /// Whether nothing tells against the peer being there.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).retry_at.is_none()
    }

    /// A lane that was taken for made was not let in: the peer is away.
    pub(crate) fn miss(&self) {
        lock(&self.state).missed(false, Instant::now(), self.delay);
    }
}

impl Leave<'_> {
    /// The peer is there, whatever it said.
    pub(crate) fn found(self) {
        lock(&self.breaker.state).found();
    }

    /// The peer is away, or does not let anybody in.
    pub(crate) fn missed(self) {
        lock(&self.breaker.state).missed(self.is_probe, Instant::now(), self.breaker.delay);
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        lock(&self.breaker.state).leave(self.is_probe);
        self.breaker.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::dial::backoff;

    /// Has `lanes` threads try the peer until `tell` says that it is there, and gives how many tries went on at most
    /// at once.
    fn most_at_once(breaker: &Breaker, lanes: usize, tell: &(dyn Fn(usize) -> bool + Sync)) -> usize {
        let (tries, now, most) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    loop {
                        let leave = breaker.enter(&Cancel::new()).unwrap();
                        let there = tell(tries.fetch_add(1, Ordering::SeqCst));
                        if there {
                            return leave.found();
                        }
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                        now.fetch_sub(1, Ordering::SeqCst);
                        leave.missed();
                    }
                });
            }
        });
        most.into_inner()
    }

    #[test]
    fn one_lane_at_a_time_tries_a_peer_that_is_away_and_all_do_when_it_is_back() {
        let breaker = Breaker::new(backoff);
        breaker.enter(&Cancel::new()).unwrap().missed();
        assert_eq!(most_at_once(&breaker, 8, &|tried| tried >= 3), 1);
        assert_eq!(lock(&breaker.state).failures, 0);
    }

    #[test]
    fn hundred_lanes_make_one_probe_for_each_time_that_the_peer_is_away_and_one_that_finds_it() {
        const LANES: usize = 100;
        const AWAY: usize = 4;
        let breaker = Breaker::new(backoff);
        breaker.enter(&Cancel::new()).unwrap().missed();
        let (probes, at_work, others) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..LANES {
                scope.spawn(|| {
                    loop {
                        let leave = breaker.enter(&Cancel::new()).unwrap();
                        if !leave.is_probe {
                            others.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(probes.load(Ordering::SeqCst), AWAY + 1, "it was not found yet");
                            return leave.found();
                        }
                        assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "two probes at once");
                        let number = probes.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                        at_work.fetch_sub(1, Ordering::SeqCst);
                        if number == AWAY {
                            return leave.found();
                        }
                        leave.missed();
                    }
                });
            }
        });
        assert_eq!((probes.into_inner(), others.into_inner()), (AWAY + 1, LANES - 1));
    }

    /// What one lane of the model below is at.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum At {
        Outside,
        Waiting,
        Trying { is_probe: bool },
    }

    /// Every order in which three lanes can come, wait, find, miss and give up, with time passing in between: as all
    /// happens under one lock, there is nothing else that threads could do to each other.
    #[test]
    fn in_no_order_of_events_are_there_two_probes_or_a_lane_that_waits_for_nothing() {
        const STEP: Duration = Duration::from_secs(1);
        let begin = Instant::now();
        let mut seen = HashSet::new();
        let mut open = vec![(State::default(), [At::Outside; 3], begin, 0_u32)];
        while let Some((state, lanes, now, depth)) = open.pop() {
            let key = (state.clone(), lanes, now);
            if depth > 12 || !seen.insert(key) {
                continue;
            }
            let probes = lanes.iter().filter(|at| matches!(at, At::Trying { is_probe: true })).count();
            assert_eq!(probes, usize::from(state.probing), "{state:?} {lanes:?}");
            // Whoever waits is let in at the latest when the probe under way has ended and the time has come.
            if probes == 0 && lanes.contains(&At::Waiting) {
                let due = state.retry_at.map_or(now, |at| at.max(now));
                assert!(!matches!(state.clone().enter(due), Turn::Wait(_)), "{state:?} {lanes:?}");
            }
            if state.retry_at.is_some_and(|at| at > now) {
                open.push((state.clone(), lanes, now + STEP, depth + 1));
            }
            for (index, at) in lanes.iter().enumerate() {
                let mut with = |state: State, at: At| {
                    let mut next = lanes;
                    next[index] = at;
                    open.push((state, next, now, depth + 1));
                };
                match *at {
                    At::Outside | At::Waiting => {
                        let mut next = state.clone();
                        match next.enter(now) {
                            Turn::Free => {
                                assert!(state.retry_at.is_none());
                                with(next, At::Trying { is_probe: false });
                            }
                            Turn::Probe => {
                                assert!(state.retry_at.is_some_and(|at| at <= now));
                                with(next, At::Trying { is_probe: true });
                            }
                            Turn::Wait(_) => with(next, At::Waiting),
                        }
                    }
                    At::Trying { is_probe } => {
                        let (mut found, mut missed, mut dropped) =
                            (state.clone(), state.clone(), state.clone());
                        found.found();
                        missed.missed(is_probe, now, |_| STEP);
                        missed.failures = missed.failures.min(1);
                        for next in [&mut found, &mut missed, &mut dropped] {
                            next.leave(is_probe);
                        }
                        assert!(missed.retry_at.is_some());
                        for next in [found, missed, dropped] {
                            with(next, At::Outside);
                        }
                    }
                }
            }
        }
        assert!(seen.len() > 100, "{} states", seen.len());
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = Arc::new(Breaker::new(backoff));
        breaker.enter(&Cancel::new()).unwrap().missed();
        drop(breaker.enter(&Cancel::new()).unwrap());
        assert!(breaker.enter(&Cancel::new()).unwrap().is_probe);
        let cancel = Cancel::new();
        let held = breaker.enter(&Cancel::new()).unwrap();
        let waiting = {
            let (breaker, cancel) = (Arc::clone(&breaker), cancel.clone());
            std::thread::spawn(move || breaker.enter(&cancel).map(drop))
        };
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(NetError::Cancelled)));
        drop(held);
    }
}
