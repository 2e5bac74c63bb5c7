//! Whether what gets lost on the way is lost at random, or since a queue is full.
//!
//! A full queue makes round trips longer before it drops anything. Where segments are lost and round trips are as short
//! as they ever were, nobody stands in a queue whom a congestion control that does not mind losses could harm.

use std::time::{Duration, Instant};

use crate::lanes::has_queued;
use crate::transport::PathInfo;

/// What is lost is missed a round trip later, and sent again for some more.
const MEMORY_TRIPS: u32 = 2;
const MEMORY: Duration = Duration::from_millis(200);
/// So many looks that show losses, one after the other, have to show random ones.
const ENOUGH: u32 = 3;

/// What looks at the lanes of a session have shown.
#[derive(Debug, Default)]
pub(crate) struct LossWatch {
    queued_at: Option<Instant>,
    /// Looks that showed random losses since the last that showed others; what was found stays.
    at_random: u32,
}

impl LossWatch {
    /// Takes what lanes showed at the look before, and show `now`.
    pub(crate) fn see<'a>(
        &mut self,
        lanes: impl Iterator<Item = (&'a PathInfo, &'a PathInfo)> + Clone,
        now: Instant,
    ) {
        // A queue is the queue of all. The round trips of a single lane are long, too, where the peer waits for more
        // before it acknowledges the little that comes.
        let queued = lanes.clone().filter(|(_, path)| stands_in_queue(path)).count();
        if queued > 0 && 2 * queued >= lanes.clone().count() {
            self.queued_at = Some(now);
        }
        let lossy = |(before, path): &(&PathInfo, &'a PathInfo)| {
            path.retransmitted_segments > before.retransmitted_segments
        };
        let Some(trip) = lanes.filter(lossy).map(|(_, path)| path.rtt.unwrap_or_default()).max() else {
            return;
        };
        let memory = MEMORY + trip * MEMORY_TRIPS;
        let queued = self.queued_at.is_some_and(|at| now.saturating_duration_since(at) <= memory);
        if !self.are_random() {
            self.at_random = if queued { 0 } else { self.at_random + 1 };
        }
    }

    /// Whether lanes stood in a queue so shortly before.
    pub(crate) fn has_queued_within(&self, time: Duration, now: Instant) -> bool {
        self.queued_at.is_some_and(|at| now.saturating_duration_since(at) <= time)
    }

    /// Whether losses have shown to be random.
    pub(crate) fn are_random(&self) -> bool {
        self.at_random >= ENOUGH
    }
}

/// Whether a lane with such a path has packets in a queue.
pub(super) fn stands_in_queue(path: &PathInfo) -> bool {
    path.rtt
        .zip(path.min_rtt)
        .is_some_and(|(trip, shortest)| has_queued(trip.as_secs_f64(), shortest.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(rtt_ms: u64, lost: u32) -> PathInfo {
        PathInfo {
            rtt: Some(Duration::from_millis(rtt_ms)),
            min_rtt: Some(Duration::from_millis(50)),
            retransmitted_segments: lost,
            ..PathInfo::default()
        }
    }

    /// Looks at one lane every 100 ms: its round trip and what it has lost by then.
    fn looks(told: impl IntoIterator<Item = (u64, u32)>) -> LossWatch {
        let (mut losses, mut now, mut before) = (LossWatch::default(), Instant::now(), path(50, 0));
        for (rtt_ms, lost) in told {
            let seen = path(rtt_ms, lost);
            losses.see([(&before, &seen)].into_iter(), now);
            (before, now) = (seen, now + Duration::from_millis(100));
        }
        losses
    }

    #[test]
    fn losses_on_a_way_without_a_queue_are_random() {
        assert!(looks([(51, 1), (54, 2), (50, 2), (52, 8)]).are_random());
        assert!(!looks([(51, 1), (54, 2), (50, 2), (52, 2)]).are_random(), "too few to tell");
    }

    #[test]
    fn one_lane_with_long_round_trips_among_others_is_no_queue() {
        let look = |queued: usize| {
            let (mut losses, now) = (LossWatch::default(), Instant::now());
            let before = [path(50, 0); 4];
            for step in 1..=3 {
                let seen = [0, 1, 2, 3].map(|lane| path(if lane < queued { 90 } else { 50 }, step));
                let earlier = before.map(|path| PathInfo { retransmitted_segments: step - 1, ..path });
                losses.see(earlier.iter().zip(&seen), now + Duration::from_millis(100) * step);
            }
            losses
        };
        assert!(look(0).are_random() && look(1).are_random());
        assert!(!look(2).are_random() && !look(4).are_random());
    }

    #[test]
    fn losses_behind_a_queue_are_not_even_when_they_are_seen_once_it_is_gone() {
        assert!(!looks([(80, 0), (95, 40), (70, 90), (52, 120), (50, 130), (50, 131)]).are_random());
        // A connection beside this one fills the queue and drains it, over and over.
        let wave = (0..40).map(|step| if step % 20 < 17 { (70 + step % 20, 0) } else { (50, 1) });
        let mut lost = 0;
        let wave = wave.map(|(rtt, more)| {
            lost += more;
            (rtt, lost)
        });
        assert!(!looks(wave).are_random());
    }

    #[test]
    fn what_was_lost_behind_a_queue_does_not_count_once_losses_go_on_without() {
        let overshoot = (1..=10).map(|step| (90, 50 * step));
        let random = (1..=8).map(|step| (50, 500 + step));
        let queue = (1..=10).map(|step| (90, 600 + step));
        assert!(!looks(overshoot.clone()).are_random());
        assert!(looks(overshoot.clone().chain(random.clone())).are_random());
        assert!(looks(overshoot.chain(random).chain(queue)).are_random(), "the way loses them even so");
    }
}
