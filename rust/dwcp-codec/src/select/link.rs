//! What the link is taken to carry.

use super::controller::{Delivery, Outcome};

/// The share of its time that a lane has to be kept waiting for, for the link to be what everything waits for.
const BLOCKED: f64 = 0.1;
/// From this ratio of time to processor time on, lanes wait for processors, and so would a receiver on this machine.
const CONTENDED: f64 = 1.25;
/// A receiver that has to wait for processors is slower than it would be by at most this.
const EXPLAINED: f64 = 4.0;
/// How long blocks must be under way for the link to have a queue: so many times the least, and this much longer.
const QUEUED_TIMES: f64 = 3.0;
const QUEUED_S: f64 = 0.01;
/// By which share the estimate grows by itself with a block while the link keeps nobody waiting: right after it did,
/// how much more with each block since, and at most, as before it ever did.
const GROWTH: f64 = 0.04;
const ACCELERATION: f64 = 1.15;
const MOST_GROWTH: f64 = 0.25;
/// How far it grows beyond what was ever seen.
const MOST_BEYOND: f64 = 2.0;
/// How fast it follows what is seen while the link does.
const FOLLOW: f64 = 0.3;

/// Watches the link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The receiver works on the processors of this machine.
    is_local: bool,
    /// What is allowed on it, in bytes a second.
    allowed: f64,
    /// The most that it is taken to carry by the first acknowledgement, in bytes a second.
    first_rate: f64,
    rate: Option<f64>,
    /// The share by which it grows with the next block that the link keeps waiting for nothing.
    growth: f64,
    lanes: u32,
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
    /// What a receiver on this machine would take for a byte, in seconds.
    receiver_s: f64,
}

impl Link {
    pub(super) fn new(lanes: u32, is_local: bool, allowed: Option<f64>, first_rate: f64) -> Link {
        Link {
            is_local,
            first_rate,
            allowed: allowed.map_or(f64::INFINITY, |rate| rate.max(1.0)),
            rate: allowed,
            growth: MOST_GROWTH,
            lanes,
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
            receiver_s: 0.0,
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

    /// Whether the link is what everything waits for.
    fn is_limit(&self) -> bool {
        let queued = self.latency_s > QUEUED_TIMES * self.least_latency_s + QUEUED_S;
        if self.blocked_share() <= BLOCKED && !queued {
            return false;
        }
        // The receiver on this machine may be slow for want of the processors that this side uses.
        let is_starved = self.is_local && self.contention() > CONTENDED;
        !is_starved || self.seen() * EXPLAINED * self.receiver_s < 1.0
    }

    /// Takes note of a block that was written; `grows` if a faster link could make a difference, and a receiver on this
    /// machine would take about `receiver_s` seconds for a byte on the wire, with the processors that there are.
    pub(super) fn observe(&mut self, outcome: &Outcome, grows: bool, receiver_s: f64) {
        self.receiver_s = receiver_s;
        for sum in [&mut self.busy_wall_s, &mut self.busy_cpu_s, &mut self.blocked_s, &mut self.cycle_s] {
            *sum *= self.decay;
        }
        self.cycle_s += outcome.cycle_s;
        let idle_s = outcome.write_wall_s - outcome.write_cpu_s;
        if let Some(delay_s) = outcome.delay_s {
            self.busy_wall_s += outcome.cpu_s + delay_s;
            self.busy_cpu_s += outcome.cpu_s;
            let before_writing = (outcome.busy_wall_s - outcome.busy_cpu_s).max(0.0);
            self.blocked_s += (idle_s - (delay_s - before_writing).max(0.0)).max(0.0);
        } else {
            self.busy_wall_s += outcome.busy_wall_s;
            self.busy_cpu_s += outcome.busy_cpu_s;
            self.blocked_s += (idle_s - outcome.write_cpu_s * (self.contention() - 1.0)).max(0.0);
        }
        let (Some(rate), true) = (self.rate, grows) else { return };
        if self.is_limit() {
            return;
        }
        let growth = 1.0 + self.growth;
        self.growth = (self.growth * ACCELERATION).min(MOST_GROWTH);
        let grown = (rate.max(self.seen()) * growth).min(MOST_BEYOND * self.most_seen);
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
            // The first acknowledgement came at some time between two looks, and the block had the link for itself
            // or shared it with those of all lanes.
            let least = delivery.latency_s.max(delivery.since_s / 16.0);
            let share = f64::from(self.lanes.min(16)).sqrt();
            let rate = share * delivery.wire_bytes as f64 / (least * delivery.since_s).sqrt().max(1e-6);
            rate.min(self.first_rate)
        });
        let is_limit = self.is_limit();
        if is_limit {
            self.growth = GROWTH;
        }
        let followed = if is_limit { rate + FOLLOW * (seen - rate) } else { rate };
        self.rate = Some(followed.min(self.allowed));
        between
    }

    /// What the link took lately, in bytes a second.
    fn seen(&self) -> f64 {
        self.acked_bytes / self.acked_s.max(1e-6)
    }
}
