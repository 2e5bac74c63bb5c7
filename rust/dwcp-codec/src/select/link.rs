//! What the link is taken to carry.

use super::controller::{Delivery, Outcome};

/// The share of its time that a lane has to be kept waiting for, for the link to be what everything waits for; and
/// the share from which on that holds even where lanes wait for processors, too.
const BLOCKED: f64 = 0.1;
const BLOCKED_ANYWAY: f64 = 0.6;
/// From this ratio of time to processor time on, lanes wait for processors, and so would a receiver on this machine.
const CONTENDED: f64 = 1.25;
/// How long blocks must be under way for the link to have a queue: so many times the least, and this much longer.
const QUEUED_TIMES: f64 = 3.0;
const QUEUED_S: f64 = 0.01;
/// How fast the estimate grows by itself with each block while the link keeps nobody waiting: before it ever did,
/// after that, and where it may be the receiver's want of processors that does.
const FIRST_GROWTH: f64 = 1.25;
const GROWTH: f64 = 1.04;
const DOUBTFUL_GROWTH: f64 = 1.01;
/// How far it grows beyond what was ever seen.
const MOST_GROWTH: f64 = 8.0;
/// How fast it follows what is seen while the link does.
const FOLLOW: f64 = 0.3;

/// What everything waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    Link,
    /// The link, or a receiver that has no processor because this side has them.
    Doubtful,
    Other,
}

/// Watches the link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The receiver works on the processors of this machine.
    is_local: bool,
    /// What is allowed on it, in bytes a second.
    allowed: f64,
    rate: Option<f64>,
    /// The link was what everything waited for at least once.
    was_limit: bool,
    /// What is left of sums over blocks with each new one.
    decay: f64,
    /// Sums over the last blocks, in seconds and bytes.
    busy_wall_s: f64,
    busy_cpu_s: f64,
    blocked_s: f64,
    cycle_s: f64,
    acked_bytes: f64,
    acked_s: f64,
    last_ack_s: Option<f64>,
    /// The least, and a mean of the last, that blocks were under way.
    least_latency_s: f64,
    latency_s: f64,
    most_seen: f64,
}

impl Link {
    pub(super) fn new(lanes: u32, is_local: bool, allowed: Option<f64>) -> Link {
        Link {
            is_local,
            allowed: allowed.map_or(f64::INFINITY, |rate| rate.max(1.0)),
            rate: allowed,
            was_limit: false,
            decay: 1.0 - 1.0 / f64::from(4 + 2 * lanes.min(64)),
            busy_wall_s: 0.0,
            busy_cpu_s: 0.0,
            blocked_s: 0.0,
            cycle_s: 0.0,
            acked_bytes: 0.0,
            acked_s: 0.0,
            last_ack_s: None,
            least_latency_s: f64::INFINITY,
            latency_s: 0.0,
            most_seen: 0.0,
        }
    }

    pub(super) fn resume(&mut self) {
        self.last_ack_s = None;
    }

    /// Bytes a second; none before anything was acknowledged.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// How much longer than its processor time work takes.
    pub(super) fn contention(&self) -> f64 {
        if self.busy_cpu_s > 0.0 { (self.busy_wall_s / self.busy_cpu_s).max(1.0) } else { 1.0 }
    }

    /// The share of the lanes' time in which they were kept waiting.
    pub(super) fn blocked_share(&self) -> f64 {
        if self.cycle_s > 0.0 { (self.blocked_s / self.cycle_s).min(1.0) } else { 0.0 }
    }

    /// What everything waits for.
    fn limit(&self) -> Limit {
        let blocked = self.blocked_share();
        let queued = self.latency_s > QUEUED_TIMES * self.least_latency_s + QUEUED_S;
        if blocked > BLOCKED_ANYWAY {
            Limit::Link
        } else if blocked <= BLOCKED && !queued {
            Limit::Other
        } else if self.is_local && self.contention() > CONTENDED {
            Limit::Doubtful
        } else {
            Limit::Link
        }
    }

    /// Takes note of a block that was written; `grows` if a faster link could make a difference.
    pub(super) fn observe(&mut self, outcome: &Outcome, grows: bool) {
        for sum in [&mut self.busy_wall_s, &mut self.busy_cpu_s, &mut self.blocked_s, &mut self.cycle_s] {
            *sum *= self.decay;
        }
        self.busy_wall_s += outcome.busy_wall_s;
        self.busy_cpu_s += outcome.busy_cpu_s;
        self.cycle_s += outcome.cycle_s;
        self.blocked_s += (outcome.write_wall_s - outcome.write_cpu_s * self.contention()).max(0.0);
        let (Some(rate), true) = (self.rate, grows) else { return };
        let growth = match self.limit() {
            Limit::Link => return,
            Limit::Doubtful => DOUBTFUL_GROWTH,
            Limit::Other if self.was_limit => GROWTH,
            Limit::Other => FIRST_GROWTH,
        };
        let grown = (rate.max(self.seen()) * growth).min(MOST_GROWTH * self.most_seen);
        self.rate = Some(rate.max(grown).min(self.allowed));
    }

    /// Takes note of a block that was acknowledged, and tells how long after the one before.
    pub(super) fn delivered(&mut self, delivery: &Delivery) -> Option<f64> {
        let between = self.last_ack_s.map(|last| (delivery.at_s - last).max(0.0));
        self.last_ack_s = Some(delivery.at_s);
        self.acked_bytes = self.acked_bytes * self.decay + delivery.wire_bytes as f64;
        self.acked_s = self.acked_s * self.decay + between.unwrap_or(delivery.since_s);
        self.least_latency_s = self.least_latency_s.min(delivery.since_s);
        self.latency_s += 0.3 * (delivery.latency_s - self.latency_s);
        let seen = self.seen();
        self.most_seen = (self.most_seen * 0.999).max(seen);
        let rate = self.rate.unwrap_or_else(|| {
            // The first acknowledgement came at some time between two looks.
            let least = delivery.latency_s.max(delivery.since_s / 16.0);
            delivery.wire_bytes as f64 / (least * delivery.since_s).sqrt().max(1e-6)
        });
        let is_limit = self.limit() == Limit::Link;
        self.was_limit |= is_limit;
        let followed = if is_limit { rate + FOLLOW * (seen - rate) } else { rate };
        self.rate = Some(followed.min(self.allowed));
        between
    }

    /// What the link took lately, in bytes a second.
    fn seen(&self) -> f64 {
        self.acked_bytes / self.acked_s.max(1e-6)
    }
}
