//! How much may be under way at once: enough to keep the link full, and little more.
//!
//! Whoever migrates a machine counts a byte as gone that the relay has taken. What waits here when the machine is
//! stopped makes the time longer for which it stands still.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dwcp_proto::relay::RecordId;

/// What may be under way on any link, and what is never exceeded.
const BOUNDS: (u64, u64) = (1 << 20, 64 << 20);

/// How much more than the link holds may be under way.
const GAIN: f64 = 1.5;

/// For how many of the shortest times a rate that was seen is believed in, and how long at least.
const MEMORY_TRIPS: u32 = 10;
const MEMORY: Duration = Duration::from_secs(1);

struct Sent {
    at: Instant,
    /// What had been delivered by then, and when that was.
    delivered: u64,
    delivered_at: Instant,
}

/// Measures what the other side takes.
pub(super) struct Backlog {
    sent: HashMap<RecordId, Sent>,
    delivered: u64,
    delivered_at: Instant,
    shortest: Option<Duration>,
    /// The largest rate of late, in bytes a second, and the one since a moment that will take its place.
    rate: f64,
    fresh_rate: f64,
    since: Instant,
}

impl Backlog {
    pub(super) fn new(now: Instant) -> Backlog {
        Backlog {
            sent: HashMap::new(),
            delivered: 0,
            delivered_at: now,
            shortest: None,
            rate: 0.0,
            fresh_rate: 0.0,
            since: now,
        }
    }

    /// A record is about to be written; `idle` if nothing else is under way.
    pub(super) fn sending(&mut self, id: RecordId, idle: bool, now: Instant) {
        if idle {
            self.delivered_at = now;
        }
        self.sent.insert(id, Sent { at: now, delivered: self.delivered, delivered_at: self.delivered_at });
    }

    /// A record was taken that had so many bytes on the wire.
    pub(super) fn taken(&mut self, id: RecordId, wire_len: u64, now: Instant) {
        self.delivered += wire_len;
        self.delivered_at = now;
        let Some(sent) = self.sent.remove(&id) else { return };
        let trip = now.saturating_duration_since(sent.at);
        self.shortest = Some(self.shortest.map_or(trip, |known| known.min(trip)));
        let span = now.saturating_duration_since(sent.delivered_at).max(trip).as_secs_f64();
        let rate = (self.delivered - sent.delivered) as f64 / span.max(1e-6);
        let memory = self.shortest.unwrap_or_default().saturating_mul(MEMORY_TRIPS).max(MEMORY);
        if now.saturating_duration_since(self.since) > memory {
            (self.rate, self.fresh_rate, self.since) = (self.fresh_rate, 0.0, now);
        }
        self.fresh_rate = self.fresh_rate.max(rate);
        self.rate = self.rate.max(rate);
    }

    /// How many bytes may be under way.
    pub(super) fn window(&self) -> u64 {
        let trip = self.shortest.unwrap_or_default().as_secs_f64();
        ((GAIN * self.rate * trip) as u64).saturating_add(BOUNDS.0).clamp(BOUNDS.0, BOUNDS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps a link of `rate` bytes a second and a round trip full for ten seconds; gives the window at the end, and how
    /// much was delivered.
    fn run(rate: f64, trip: Duration) -> (u64, u64) {
        let start = Instant::now();
        let mut backlog = Backlog::new(start);
        let record = 100_000_u64;
        let (mut free_at, mut under_way) = (0.0_f64, std::collections::VecDeque::new());
        let (mut number, mut at, mut done) = (0, 0.0, 0);
        while at < 10.0 {
            let now = start + Duration::from_secs_f64(at);
            while under_way.front().is_some_and(|(_, arrives)| *arrives <= at) {
                let (id, _) = under_way.pop_front().unwrap();
                backlog.taken(id, record, now);
                done += record;
            }
            while (under_way.len() as u64 + 1) * record <= backlog.window() {
                backlog.sending((0, number), under_way.is_empty(), now);
                free_at = free_at.max(at) + record as f64 / rate;
                under_way.push_back(((0, number), free_at + trip.as_secs_f64()));
                number += 1;
            }
            at += 0.001;
        }
        (backlog.window(), done)
    }

    #[test]
    fn link_is_kept_full_with_little_more_than_it_holds() {
        for (rate, trip_ms) in [(12.5e6, 200), (62.5e6, 100), (1.25e6, 20), (125e6, 2)] {
            let (window, done) = run(rate, Duration::from_millis(trip_ms));
            let held = rate * trip_ms as f64 / 1e3;
            assert!(window as f64 <= 2.2 * held + 2e6, "{rate} {trip_ms}: {window}");
            assert!(done as f64 >= 0.85 * rate * 10.0, "{rate} {trip_ms}: {done}");
        }
    }
}
