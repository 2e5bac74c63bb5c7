//! The shortest round trip on a way that has become another.

use std::time::{Duration, Instant};

/// For how long, and for as long again at most, a round trip stays the shortest that is known.
const KEPT: Duration = Duration::from_secs(15);

/// Finds the shortest round trip of a connection that was made before its way became another.
///
/// The system remembers the shortest one for minutes, and one of the old way would make every round trip on a longer
/// one look as if it had stood in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Baseline {
    since: Option<Instant>,
    shortest: Option<Duration>,
    before: Option<Duration>,
}

impl Baseline {
    /// Takes the round trip of `now`, smoothed, and gives the shortest of late.
    pub(crate) fn see(&mut self, trip: Option<Duration>, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= KEPT {
            // What was smoothed while the way changed is short of both, and to be forgotten.
            (self.before, self.shortest, self.since) = (self.shortest, None, Some(now));
        }
        self.shortest = self.shortest.into_iter().chain(trip).min();
        self.shortest.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_from_between_two_ways_is_forgotten_and_one_of_late_is_not() {
        let start = Instant::now();
        let mut baseline = Baseline::default();
        let mut see = |ms, at_s| {
            let trip = Some(Duration::from_millis(ms));
            baseline.see(trip, start + Duration::from_secs(at_s)).map(|trip| trip.as_millis())
        };
        assert_eq!((see(40, 0), see(80, 1), see(130, 14)), (Some(40), Some(40), Some(40)));
        assert_eq!((see(95, 15), see(90, 29), see(120, 30)), (Some(40), Some(40), Some(90)));
        assert_eq!(see(1, 31), Some(1));
    }
}
