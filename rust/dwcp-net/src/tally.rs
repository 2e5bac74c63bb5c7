//! Counts events, so that whoever wants totals need not be told each of them.

use crate::cancel::lock;
use crate::report::Event;
use crate::sync::Mutex;

/// How often what has happened, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Lanes that came up.
    pub lanes_opened: u64,
    /// Lanes that ended with a failure.
    pub lanes_lost: u64,
    /// Attempts to make a lane again.
    pub reconnects: u64,
    /// Times that altered bytes were found and refused.
    pub integrity_failures: u64,
    /// Connections that were turned away.
    pub peers_refused: u64,
}

/// Counts the events of any number of sessions and listeners.
///
/// One lock guards all counts: who reads them never sees that a lane was lost and not that it had come up.
#[derive(Debug, Default)]
pub struct Tally(Mutex<EventCounts>);

impl Tally {
    /// Counts an event.
    pub fn count(&self, event: &Event) {
        let mut counts = lock(&self.0);
        match event {
            Event::LaneUp { .. } => counts.lanes_opened += 1,
            Event::LaneDown { reason: Some(_), .. } => counts.lanes_lost += 1,
            Event::Reconnecting { .. } => counts.reconnects += 1,
            Event::IntegrityFailure { .. } => counts.integrity_failures += 1,
            Event::Refused { .. } | Event::V1Refused { .. } => counts.peers_refused += 1,
            _ => {}
        }
    }

    /// Gives the counts as they are together.
    #[must_use]
    pub fn counts(&self) -> EventCounts {
        *lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    #[test]
    fn counts_read_while_others_count_fit_together() {
        let (tally, done) = (Tally::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for lane in 0..20_000 {
                        tally.count(&Event::LaneUp { lane, peer: PEER });
                        tally.count(&Event::LaneDown { lane, reason: Some("cut".to_owned()) });
                    }
                    done.store(true, Ordering::SeqCst);
                });
            }
            while !done.load(Ordering::SeqCst) {
                let counts = tally.counts();
                assert!((0..=4).contains(&(counts.lanes_opened - counts.lanes_lost)), "{counts:?}");
            }
        });
        assert_eq!(
            tally.counts(),
            EventCounts { lanes_opened: 80_000, lanes_lost: 80_000, ..EventCounts::default() }
        );
    }

    #[test]
    fn what_ends_in_peace_and_what_is_only_news_is_not_counted() {
        let tally = Tally::default();
        tally.count(&Event::LaneDown { lane: 0, reason: None });
        tally.count(&Event::SessionOpened { peer: PEER });
        tally.count(&Event::V1HandedOver { peer: PEER });
        assert_eq!(tally.counts(), EventCounts::default());
        let after = Duration::from_secs(1);
        tally.count(&Event::Reconnecting { attempt: 1, after, reason: "gone".to_owned() });
        tally.count(&Event::IntegrityFailure { reason: "altered".to_owned() });
        tally.count(&Event::Refused { peer: PEER, reason: "no".to_owned() });
        tally.count(&Event::V1Refused { peer: PEER });
        let told = tally.counts();
        assert_eq!((told.reconnects, told.integrity_failures, told.peers_refused), (1, 1, 2));
    }
}
