//! Whether what a lane sends arrives, and when one is to be given up.

use std::time::{Duration, Instant};

use crate::transport::PathInfo;

/// A lane from which no acknowledgement comes for so long, and for so many round trips, is stalled if others are not:
/// by then TCP has tried again several times. A receiver that has no room on it for blocks is given twice as long.
pub(super) const STALLED: Duration = Duration::from_secs(4);
const STALLED_TRIPS: u32 = 8;
const SHUT_PATIENCE: u32 = 2;
/// Where a queue is full, whoever has lost more than others waits for longer before TCP tries again. To give up a lane there
/// throws away what it has brought of its block, and has another one begin anew in the same queue.
const CROWDED_PATIENCE: u32 = 5;
/// Well before a peer from which nothing comes is given up.
const CROWDED_MOST: Duration = Duration::from_secs(20);

/// A lane that has worked, and was well within this time, still does; one that is done waits for the others.
pub(super) const LATELY: Duration = Duration::from_secs(1);

/// More bytes than a lane takes in a second that has nothing to send, and fewer than any that is worth waiting for.
const LEAST_MOVED: u64 = 1_000;

/// Whether what a lane sends arrives.
#[derive(Clone, Copy)]
pub(super) struct Pulse {
    /// Something was acknowledged.
    has_worked: bool,
    /// When something was last, or nothing was under way that could have been.
    well_at: Instant,
    /// Blocks wait, and the receiver has no room for them.
    is_shut: bool,
    /// When more than what keeps a lane alive was last acknowledged, and how much was by then.
    moved: Option<(Instant, u64)>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Pulse {
        Pulse { has_worked: false, well_at: now, is_shut: false, moved: None }
    }

    /// Takes what TCP tells, and whether blocks wait for their acknowledgement.
    pub(super) fn see(&mut self, before: &PathInfo, path: &PathInfo, owes: bool, now: Instant) {
        let acked = path.acked_bytes.unwrap_or(0);
        if acked >= self.moved.map_or(0, |(_, acked)| acked) + LEAST_MOVED {
            self.moved = Some((now, acked));
        }
        self.is_shut = owes && path.acked_bytes.is_some() && !is_under_way(path);
        if path.acked_bytes > before.acked_bytes {
            (self.has_worked, self.well_at) = (true, now);
        } else if !is_under_way(path) && !self.is_shut {
            self.well_at = now;
        }
    }

    pub(super) fn moves(&self, now: Instant) -> bool {
        self.moved.is_some_and(|(at, _)| now.saturating_duration_since(at) <= LATELY)
    }

    pub(super) fn works(&self, now: Instant) -> bool {
        self.has_worked && now.saturating_duration_since(self.well_at) <= LATELY
    }

    pub(super) fn is_stalled(&self, rtt: Option<Duration>, crowded: bool, now: Instant) -> bool {
        let limit = rtt.map_or(STALLED, |rtt| STALLED.max(rtt * STALLED_TRIPS));
        let limit = if crowded { limit.max(CROWDED_MOST.min(limit * CROWDED_PATIENCE)) } else { limit };
        let limit = if self.is_shut { limit * SHUT_PATIENCE } else { limit };
        now.saturating_duration_since(self.well_at) >= limit
    }
}

/// Whether something was sent that has no acknowledgement. What a receiver has no room for is not sent.
fn is_under_way(path: &PathInfo) -> bool {
    let counts = path.sent_bytes.zip(path.retransmitted_bytes).zip(path.acked_bytes);
    counts.is_some_and(|((sent, again), acked)| sent.saturating_sub(again) > acked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lane_with_bytes_under_way_and_no_answer_for_long_is_stalled() {
        let acked = |acked, sent| PathInfo {
            sent_bytes: Some(sent),
            retransmitted_bytes: Some(0),
            acked_bytes: Some(acked),
            ..PathInfo::default()
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        pulse.see(&acked(0, 0), &acked(100, 900), true, at(1));
        assert!(pulse.works(at(1)) && !pulse.is_stalled(None, false, at(4)));
        pulse.see(&acked(100, 900), &acked(100, 900), true, at(5));
        assert!(!pulse.works(at(5)) && pulse.is_stalled(None, false, at(5)));
        // A long way takes longer to answer.
        assert!(!pulse.is_stalled(Some(Duration::from_secs(1)), false, at(8)));
        assert!(pulse.is_stalled(Some(Duration::from_secs(1)), false, at(9)));
        assert!(!pulse.is_stalled(None, true, at(20)) && pulse.is_stalled(None, true, at(21)));
        let (second, four) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(4)));
        assert!(!pulse.is_stalled(second, true, at(20)) && pulse.is_stalled(second, true, at(21)));
        assert!(!pulse.is_stalled(four, true, at(32)) && pulse.is_stalled(four, true, at(33)));
        // One that has nothing to send may be silent for ever.
        pulse.see(&acked(900, 900), &acked(900, 900), false, at(60));
        assert!(!pulse.is_stalled(None, false, at(61)) && pulse.works(at(61)));
        // A receiver with no room for blocks that wait is waited for, but not for ever.
        pulse.see(&acked(900, 900), &acked(900, 900), true, at(62));
        assert!(!pulse.is_stalled(None, false, at(67)) && pulse.is_stalled(None, false, at(68)));
        // What keeps a lane alive moves nothing.
        pulse.see(&acked(900, 900), &acked(1_900, 1_900), true, at(80));
        assert!(pulse.moves(at(81)) && !pulse.moves(at(82)));
        pulse.see(&acked(1_900, 1_900), &acked(1_950, 1_950), true, at(82));
        assert!(pulse.works(at(82)) && !pulse.moves(at(82)));
        // Nor does a kernel that tells less make a lane stalled.
        let old = PathInfo::default();
        pulse.see(&old, &old, true, at(90));
        assert!(!pulse.is_stalled(None, false, at(91)));
    }
}
