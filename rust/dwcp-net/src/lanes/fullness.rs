//! Whether a link that was full has become free, which cannot wait for the end of a window.
//!
//! That there is no queue any more says little: there is none either while lanes have slowed down since something was
//! lost. A link that has become free carries more than it did while there was one.

use std::collections::VecDeque;

use super::{LINK_BOUND, SETTLE_S, Sample};

/// A link has become free if it has no queue for so many round trips, and carries so much more meanwhile than it did
/// while there was one.
const CLEAR_TRIPS: f64 = 1.5;
const FREER: f64 = 1.07;
/// What a link has carried while it was full is a measure once it was for so many round trips and seconds, and for how
/// many round trips. Before, lanes find their pace.
const FULL_TRIPS: f64 = 8.0;
const FULL_S: f64 = 1.0;
const MEMORY_TRIPS: f64 = 30.0;
/// For how many round trips lanes hurry.
const HURRY_TRIPS: f64 = 8.0;

/// What is known of the queue in front of the link, and of what the link carries with it and without.
#[derive(Debug, Default)]
pub(super) struct Fullness {
    /// Since when round trips have not queued.
    clear_since_s: Option<f64>,
    /// What the link has lately carried at most while round trips queued, and when that was last looked at.
    full_rate: f64,
    queued_at_s: Option<f64>,
    /// For how long round trips have queued.
    queued_s: f64,
    /// What was delivered by moments of late.
    lately: VecDeque<(f64, u64)>,
    /// When the link was found to have become free, until a queue shows.
    freed_at_s: Option<f64>,
}

impl Fullness {
    /// Takes what was seen, and whether round trips have queued. Tells whether the link has become free since it was
    /// full; once, until it is full again.
    pub(super) fn see(&mut self, sample: &Sample, queued: bool, trip_s: f64) -> bool {
        let rate = self.carry(sample, trip_s);
        self.follow(sample.at_s, queued, (rate, trip_s));
        let freed = self.is_freed(sample, (rate, trip_s));
        if freed {
            *self = Fullness { freed_at_s: Some(sample.at_s), ..Fullness::default() };
        }
        freed
    }

    /// Lanes come or go: a queue that has gone may have gone with them.
    pub(super) fn unsettle(&mut self) {
        self.clear_since_s = None;
    }

    /// Lanes need not hurry any more.
    pub(super) fn calm(&mut self) {
        self.freed_at_s = None;
    }

    /// Whether lanes are to fill the link at once: it has become free, and no queue has shown since.
    pub(super) fn hurries(&self, at_s: f64, trip_s: f64) -> bool {
        self.freed_at_s.is_some_and(|freed_s| at_s - freed_s < HURRY_TRIPS * trip_s)
    }

    /// What was carried in the last round trips, in bytes a second; none while that is not known for so long.
    fn carry(&mut self, sample: &Sample, trip_s: f64) -> Option<f64> {
        let length_s = (CLEAR_TRIPS * trip_s).max(SETTLE_S);
        self.lately.push_back((sample.at_s, sample.delivered));
        while self.lately.get(1).is_some_and(|(at_s, _)| sample.at_s - at_s >= length_s) {
            self.lately.pop_front();
        }
        let (from_s, from) = *self.lately.front()?;
        let passed_s = sample.at_s - from_s;
        (passed_s >= length_s).then(|| sample.delivered.saturating_sub(from) as f64 / passed_s)
    }

    /// Notes whether something stands in the queue, and what the link carries while something does.
    fn follow(&mut self, at_s: f64, queued: bool, (rate, trip_s): (Option<f64>, f64)) {
        if !queued {
            self.clear_since_s.get_or_insert(at_s);
            return;
        }
        let passed_s = self.queued_at_s.replace(at_s).map_or(0.0, |before_s| at_s - before_s);
        // While there is no queue, nothing is learned of what the link carries when it is full, and nothing forgotten.
        let queued_s = if self.clear_since_s.is_none() { passed_s } else { 0.0 };
        self.queued_s += queued_s;
        (self.clear_since_s, self.freed_at_s) = (None, None);
        let kept = (-queued_s / (MEMORY_TRIPS * trip_s)).exp();
        self.full_rate = rate.unwrap_or(0.0).max(kept * self.full_rate);
    }

    fn is_freed(&self, sample: &Sample, (rate, trip_s): (Option<f64>, f64)) -> bool {
        let clear_s = self.clear_since_s.map_or(0.0, |since_s| sample.at_s - since_s);
        let was_full = self.queued_s >= (FULL_TRIPS * trip_s).max(FULL_S);
        let freer = rate.is_some_and(|rate| rate >= FREER * self.full_rate);
        was_full && freer && clear_s >= CLEAR_TRIPS * trip_s && sample.waiting >= LINK_BOUND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP_S: f64 = 0.3;

    fn sample(at_s: f64, delivered: f64) -> Sample {
        let trip = Some(TRIP_S);
        let delivered = delivered as u64;
        Sample { at_s, delivered, lanes: 8, trip_s: trip, shortest_trip_s: trip, waiting: 1.0 }
    }

    #[test]
    fn what_a_full_link_carries_is_not_forgotten_while_there_is_no_queue() {
        let mut fullness = Fullness::default();
        let mut delivered = 0.0;
        for step in 1..500 {
            let at_s = 0.05 * f64::from(step);
            // Full at 12 MB/s; then lanes have slowed down, queue for a moment, and find back to what they carried.
            let (rate, queued) = match at_s {
                ..8.0 => (12e6, true),
                ..20.0 => (10e6, (15.0..15.2).contains(&at_s)),
                _ => (12e6, false),
            };
            delivered += 0.05 * rate;
            let sample = sample(at_s, delivered);
            assert!(!fullness.see(&sample, queued, TRIP_S), "it carries what it did, at {at_s} s");
        }
    }

    #[test]
    fn link_that_became_free_is_told_of_once_and_hurried_into_for_eight_round_trips() {
        let mut fullness = Fullness::default();
        let (mut told, mut hurried) = (Vec::new(), 0.0);
        let mut delivered = 0.0;
        for step in 1..400 {
            let at_s = 0.05 * f64::from(step);
            let queued = at_s < 5.0;
            delivered += 0.05 * if queued { 12e6 } else { 30e6 };
            let sample = sample(at_s, delivered);
            if fullness.see(&sample, queued, TRIP_S) {
                told.push(at_s);
            }
            hurried += 0.05 * f64::from(u8::from(fullness.hurries(at_s, TRIP_S)));
        }
        assert!(told.len() == 1 && told[0] < 5.6, "{told:?}");
        assert!((hurried - HURRY_TRIPS * TRIP_S).abs() < 0.11, "{hurried} s");
    }
}
