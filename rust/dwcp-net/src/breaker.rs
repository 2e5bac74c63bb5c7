//! While a peer is known to be away, one lane of a session at a time finds out whether it is back.

use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::dial::backoff;
use crate::error::NetError;

/// Whether the peer answered when it was last tried.
#[derive(Default)]
pub(crate) struct Breaker {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How often in a row it was away.
    failures: u32,
    /// When it may be tried again.
    retry_at: Option<Instant>,
    /// A lane tries it now.
    probing: bool,
}

/// The leave to try the peer once. One that is dropped without a word has found nothing out.
pub(crate) struct Leave<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Breaker {
    /// Waits until this lane may try the peer: at once while it is there; while it is away, until it was found to be
    /// back, or the time has come to try it and no other lane does.
    pub(crate) fn enter(&self, cancel: &Cancel) -> Result<Leave<'_>, NetError> {
        let mut has_waited = false;
        let mut state = lock(&self.state);
        loop {
            cancel.check()?;
            let Some(retry_at) = state.retry_at else { break };
            let left = retry_at.saturating_duration_since(Instant::now());
            if left.is_zero() && !state.probing {
                state.probing = true;
                return Ok(Leave { breaker: self, is_probe: true });
            }
            has_waited = true;
            let slice = if left.is_zero() { CANCEL_SLICE } else { left.min(CANCEL_SLICE) };
            state = wait(&self.changed, state, slice);
        }
        drop(state);
        if has_waited {
            // Not all lanes at once fall upon a peer that has just come back.
            cancel.sleep(backoff(0))?;
        }
        Ok(Leave { breaker: self, is_probe: false })
    }
}

impl Leave<'_> {
    /// The peer is there, whatever it said.
    pub(crate) fn found(self) {
        let mut state = lock(&self.breaker.state);
        (state.failures, state.retry_at) = (0, None);
    }

    /// The peer is away, or does not let anybody in.
    pub(crate) fn missed(self) {
        let mut state = lock(&self.breaker.state);
        // Those that set out while it was still thought to be there have nothing to add.
        if self.is_probe || state.retry_at.is_none() {
            state.failures += 1;
            state.retry_at = Some(Instant::now() + backoff(state.failures));
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            lock(&self.breaker.state).probing = false;
        }
        self.breaker.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

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
        let breaker = Breaker::default();
        breaker.enter(&Cancel::new()).unwrap().missed();
        assert_eq!(most_at_once(&breaker, 8, &|tried| tried >= 3), 1);
        assert_eq!(lock(&breaker.state).failures, 0);
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = Arc::new(Breaker::default());
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
