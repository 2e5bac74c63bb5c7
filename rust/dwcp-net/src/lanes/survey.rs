//! What the connections of all lanes tell, taken together.

use std::collections::HashMap;
use std::time::Instant;

use super::{Baseline, Sample};
use crate::transport::Closer;

/// A lane from whose socket less than this waits to be read is waited for by this side.
const MOST_UNREAD: u64 = 256 << 10;

/// What one connection tells.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Bytes that have arrived at the other end, or at this one.
    moved: u64,
    trip_s: Option<f64>,
    shortest_trip_s: Option<f64>,
    /// It is the link that this lane waits for.
    waiting: bool,
}

/// Adds up what lanes carry, though they come and go.
#[derive(Debug)]
pub(crate) struct Survey {
    receives: bool,
    moved: HashMap<u32, u64>,
    delivered: u64,
    shortest_trip_s: Option<f64>,
    /// Lanes that were made before the way became another.
    older: HashMap<u32, Baseline>,
}

impl Survey {
    /// A survey of lanes on which this side `receives`, or sends.
    pub(crate) fn new(receives: bool) -> Survey {
        Survey { receives, moved: HashMap::new(), delivered: 0, shortest_trip_s: None, older: HashMap::new() }
    }

    /// The way of all lanes is another from now on.
    pub(crate) fn relocate(&mut self, lanes: &[(u32, Closer)]) {
        self.older = lanes.iter().map(|(lane, _)| (*lane, Baseline::default())).collect();
    }

    /// Looks at the lanes at a moment. None where the system tells nothing of connections, or there are none.
    pub(crate) fn look(&mut self, at_s: f64, lanes: &[(u32, Closer)]) -> Option<Sample> {
        let readings: Vec<_> =
            lanes.iter().filter_map(|(lane, closer)| Some((*lane, self.read(*lane, closer)?))).collect();
        self.add(at_s, &readings)
    }

    fn read(&mut self, lane: u32, closer: &Closer) -> Option<Reading> {
        let path = closer.path()?;
        let (moved, waiting) = if self.receives {
            (path.received_bytes?, closer.unread() < MOST_UNREAD)
        } else {
            (path.delivered_bytes.or(path.acked_bytes)?, path.unsent_bytes.is_none_or(|bytes| bytes > 0))
        };
        let shortest = match self.older.get_mut(&lane) {
            Some(baseline) => baseline.see(path.rtt, Instant::now()),
            None => path.min_rtt,
        };
        let seconds = |time: std::time::Duration| time.as_secs_f64();
        Some(Reading {
            moved,
            trip_s: path.rtt.map(seconds),
            shortest_trip_s: shortest.map(seconds),
            waiting,
        })
    }

    fn add(&mut self, at_s: f64, readings: &[(u32, Reading)]) -> Option<Sample> {
        if readings.is_empty() {
            self.moved.clear();
            return None;
        }
        let before = std::mem::take(&mut self.moved);
        for (lane, reading) in readings {
            // What a lane has moved before it was first seen is its greeting.
            let known = before.get(lane).copied().unwrap_or(reading.moved);
            self.delivered += reading.moved.saturating_sub(known);
            self.moved.insert(*lane, reading.moved);
        }
        let shortest = readings.iter().filter_map(|(_, reading)| reading.shortest_trip_s);
        // What smoothed round trips have shown since the way became another is not to be kept for ever.
        let known = self.shortest_trip_s.filter(|_| self.older.is_empty());
        self.shortest_trip_s = shortest.chain(known).reduce(f64::min);
        let mut trips: Vec<f64> = readings.iter().filter_map(|(_, reading)| reading.trip_s).collect();
        trips.sort_by(f64::total_cmp);
        let waiting = readings.iter().filter(|(_, reading)| reading.waiting).count();
        Some(Sample {
            at_s,
            delivered: self.delivered,
            lanes: readings.len() as u16,
            trip_s: trips.get(trips.len() / 2).copied(),
            shortest_trip_s: self.shortest_trip_s,
            waiting: waiting as f64 / readings.len() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_come_and_go_are_added_up_once() {
        let reading = |moved, trip_s, waiting| Reading {
            moved,
            trip_s: Some(trip_s),
            shortest_trip_s: Some(trip_s / 2.0),
            waiting,
        };
        let mut survey = Survey::new(false);
        assert!(survey.add(0.0, &[]).is_none());
        let first = survey.add(1.0, &[(0, reading(700, 0.1, true)), (1, reading(500, 0.2, false))]).unwrap();
        assert_eq!((first.delivered, first.lanes, first.waiting), (0, 2, 0.5));
        assert_eq!((first.trip_s, first.shortest_trip_s), (Some(0.2), Some(0.05)));
        let second = survey.add(2.0, &[(1, reading(900, 0.2, true)), (2, reading(90, 0.3, true))]).unwrap();
        assert_eq!((second.delivered, second.lanes, second.waiting), (400, 2, 1.0));
        assert_eq!(second.shortest_trip_s, Some(0.05));
        let third = survey.add(3.0, &[(2, reading(100, 0.3, true))]).unwrap();
        assert_eq!(third.delivered, 410);
    }
}
