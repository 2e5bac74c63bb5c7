//! What the link is taken to carry.

use super::told::{Delivery, Outcome, Settings};

/// The share of its time that a lane has to be kept waiting for, for the link to be what everything waits for.
const BLOCKED: f64 = 0.1;
/// A share that may come from anything.
const HARDLY: f64 = 0.03;
/// The same where lanes wait for processors, too.
const CERTAIN: f64 = 0.25;
/// From this ratio of time to processor time on, lanes wait for processors, and so would a receiver on this machine.
const CONTENDED: f64 = 1.25;
/// A receiver that has to wait for processors is slower than it would be by at most this.
const EXPLAINED: f64 = 4.0;
/// How long a block must be under way for the link to have a queue: so many times the least, and this much.
const QUEUED_TIMES: f64 = 2.0;
const QUEUED_S: f64 = 0.006;
/// What is under way without waiting for the link, while lanes are kept waiting: what the link takes in so many times
/// the least that answers took.
const ANSWERED_TIMES: f64 = 1.2;
/// By which share the estimate grows by itself with a block while the link keeps nobody waiting: right after it did,
/// how much more with each block since, and at most, as before it ever did.
const GROWTH: f64 = 0.04;
const ACCELERATION: f64 = 1.15;
const MOST_GROWTH: f64 = 0.25;
/// How far it grows beyond what was seen: while the link was the limit lately, while lanes wait for processors, else, and
/// while it was never seen to be the limit.
const MOST_BEYOND: [f64; 4] = [1.15, 1.5, 2.0, 3.0];
/// For how many blocks it counts as that.
const LATELY: u32 = 12;
/// Less on the wire than this tells nothing of how fast the link is.
const TELLING_BYTES: f64 = 16_384.0;
/// Less than this is no block but a word of one: that it is what the receiver holds, or one repeated byte.
const LEAST_BYTES: f64 = 512.0;
/// By how much what the link can carry at most is taken to be more with each block that shows no bound.
const FORGET: f64 = 1.1;
/// What is left with each block of an estimate that is beyond that.
const FADE: f64 = 0.95;
/// What a receiver takes for a block until it acknowledges it, in seconds: about, and for the first ones.
const ANSWER_S: f64 = 0.0015;
const FIRST_ANSWER_S: f64 = 0.008;
/// A first answer that takes so many times as long is the link's.
const CERTAIN_ANSWERS: f64 = 2.5;
/// Fewer bytes under way than this bound nothing: they tell more of the receiver than of the link.
const BOUNDING_BYTES: f64 = 262_144.0;
/// The most that it is taken to carry before anything was acknowledged, in bytes a second: to a receiver on this
/// machine, and to another one.
const UNKNOWN_RATE: [f64; 2] = [5e9, 3e8];
/// About what a connection carries for each round trip in the beginning, in bytes, all lanes together.
const SLOW_START_BYTES: f64 = 1e6;
/// What a connection may have sent in its first round trip whatever the link carries, in bytes.
const UNSEEN_BYTES: f64 = 16_384.0;
/// How fast it follows what is seen while the link does.
const FOLLOW: f64 = 0.3;

/// Watches the link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The receiver works on the processors of this machine.
    is_local: bool,
    lanes: f64,
    /// What is allowed on it, in bytes a second.
    allowed: f64,
    /// How long a round trip takes that nothing delays, in seconds.
    round_trip_s: f64,
    /// What it is taken to carry before anything was acknowledged, and at most by the first acknowledgement, in bytes a
    /// second.
    unknown_rate: f64,
    first_rate: f64,
    rate: Option<f64>,
    /// The share by which it grows with the next block that the link keeps waiting for nothing.
    growth: f64,
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
    /// For how long words were acknowledged since the last block was.
    words_s: f64,
    /// The least that blocks were under way.
    least_latency_s: f64,
    has_answered: bool,
    /// Bytes that were written and that the system has not sent, as far as lanes have looked; only where the way is far.
    unsent: Option<f64>,
    most_seen: f64,
    /// The most that it can carry, since blocks have taken as long as they have; more with each block.
    bound: f64,
    /// Whether it is known for sure to be as slow as it seems.
    is_confirmed: bool,
    /// Whether it was the limit by the last acknowledgement, and sums over the last blocks for which it was, in bytes
    /// and seconds.
    was_limit: bool,
    busy_bytes: f64,
    busy_s: f64,
    /// Blocks that were written since the link was the limit.
    since_limit: u32,
    /// Bytes on the wire: of blocks that were decided on, as far as is known before they are encoded; of those that are
    /// under way, at most; those that were for long when their lanes last looked; and what waits for the link, and when that
    /// was so.
    pending: f64,
    in_flight: f64,
    late: f64,
    queued: f64,
    queued_at_s: f64,
    /// Since when something is under way, or about to be.
    busy_since_s: f64,
    /// What a receiver on this machine would take for a byte, in seconds.
    receiver_s: f64,
}

impl Link {
    /// What is allowed on it is another from now on. How fast it is beyond what was allowed nobody has seen.
    pub(super) fn allow(&mut self, bytes_per_s: Option<f64>) {
        let bytes_per_s = bytes_per_s.map(|rate| rate.max(1.0));
        let allowed = bytes_per_s.unwrap_or(f64::INFINITY);
        if allowed > self.allowed {
            (self.rate, self.is_confirmed) = (bytes_per_s, bytes_per_s.is_some());
            self.bound = f64::INFINITY;
        }
        self.rate = self.rate.map(|rate| rate.min(allowed));
        self.allowed = allowed;
    }

    pub(super) fn new(settings: &Settings) -> Link {
        let (lanes, allowed) = (settings.lanes, settings.limit_bytes_per_s.map(|rate| rate.max(1.0)));
        let known = settings.known.filter(|known| known.bytes_per_s >= 1.0);
        let rate = known.map(|known| known.bytes_per_s.min(allowed.unwrap_or(f64::INFINITY))).or(allowed);
        let unknown_rate = unknown_rate(settings);
        Link {
            is_local: settings.is_local,
            lanes: f64::from(lanes),
            round_trip_s: settings.round_trip_s.unwrap_or(0.0),
            unknown_rate,
            // One acknowledgement over a long way tells of the queues on it, too, which may take all at once.
            first_rate: if settings.is_near() { f64::INFINITY } else { unknown_rate },
            allowed: allowed.unwrap_or(f64::INFINITY),
            rate,
            growth: MOST_GROWTH,
            decay: 1.0 - 1.0 / f64::from(4 + 2 * lanes.min(64)),
            busy_wall_s: 0.0,
            busy_cpu_s: 0.0,
            blocked_s: 0.0,
            cycle_s: 0.0,
            acked_bytes: 0.0,
            acked_s: 0.0,
            last_ack_s: None,
            words_s: 0.0,
            least_latency_s: f64::INFINITY,
            has_answered: false,
            unsent: settings.is_far().then_some(0.0),
            most_seen: 0.0,
            bound: f64::INFINITY,
            is_confirmed: allowed.is_some() || known.is_some_and(|known| known.was_limit),
            was_limit: false,
            busy_bytes: 0.0,
            busy_s: 0.0,
            since_limit: LATELY,
            pending: 0.0,
            in_flight: 0.0,
            late: 0.0,
            queued: 0.0,
            queued_at_s: 0.0,
            busy_since_s: 0.0,
            receiver_s: 0.0,
        }
    }

    /// The way is another, with a round trip of so many seconds: neither how long answers took at least nor how much it
    /// can carry at most is known of it. What it is taken to carry goes on to follow what is seen.
    pub(super) fn relocate(&mut self, round_trip_s: f64) {
        self.round_trip_s = round_trip_s;
        (self.least_latency_s, self.bound) = (f64::INFINITY, f64::INFINITY);
        self.is_confirmed = self.allowed.is_finite();
        self.most_seen = self.seen();
    }

    /// A transfer begins, of which nothing is under way.
    pub(super) fn resume(&mut self) {
        self.last_ack_s = None;
        self.words_s = 0.0;
        self.was_limit = false;
        (self.pending, self.in_flight, self.late, self.queued) = (0.0, 0.0, 0.0, 0.0);
        self.unsent = self.unsent.map(|_| 0.0);
    }

    /// A block was decided on that is expected to be so long on the wire.
    pub(super) fn expect(&mut self, bytes: f64, at_s: f64) {
        if self.in_flight + self.pending < TELLING_BYTES {
            self.busy_since_s = at_s;
        }
        self.pending += bytes;
    }

    /// A block that was expected to be so long is encoded, or given up.
    pub(super) fn settle(&mut self, bytes: f64) {
        self.pending = (self.pending - bytes).max(0.0);
    }

    /// So many bytes are about to be written. Tells how many are under way then.
    pub(super) fn send(&mut self, bytes: f64, at_s: f64) -> f64 {
        self.pass(at_s);
        self.in_flight += bytes;
        self.queued += bytes;
        if let Some(unsent) = self.unsent.as_mut() {
            *unsent += bytes;
        }
        self.in_flight
    }

    /// A lane has looked how much of what it has written the system has not sent: `bytes`, and `before` when it last looked.
    /// Where the way is far, that is what waits for the link, while most of what has no answer is only on its way.
    pub(super) fn hold(&mut self, bytes: f64, before: f64, at_s: f64) {
        self.pass(at_s);
        self.unsent = self.unsent.map(|unsent| (unsent + bytes - before).max(0.0));
    }

    /// What it has been seen to take before anything was acknowledged, in bytes a second, and what it may carry beyond that.
    pub(super) fn taken(&self, at_s: f64) -> f64 {
        let Some(unsent) = self.unsent.filter(|_| self.rate.is_none()) else { return 0.0 };
        let since_s = (at_s - self.busy_since_s).max(1e-3);
        let [.., unknown] = MOST_BEYOND;
        unknown * (self.in_flight - unsent - self.lanes * UNSEEN_BYTES).max(0.0) / since_s
    }

    /// So many bytes under way are lost with their lane.
    pub(super) fn lose(&mut self, bytes: f64) {
        self.in_flight = (self.in_flight - bytes).max(0.0);
        self.queued = self.queued.min(self.in_flight);
    }

    /// A lane has looked for acknowledgements. `under_way` are the bytes of each block that has none, and how long ago
    /// it was written; those that wait for the link were `waiting` when the lane last looked. Tells how many do now.
    pub(super) fn look(&mut self, under_way: impl Iterator<Item = (f64, f64)>, waiting: f64) -> f64 {
        let unqueued_s = self.unqueued_s();
        let late: f64 = under_way.filter(|(_, since_s)| *since_s > unqueued_s).map(|(bytes, _)| bytes).sum();
        self.late = (self.late + late - waiting).max(0.0);
        late
    }

    /// How long the link takes for what is on the way to it, in seconds.
    pub(super) fn backlog_s(&mut self, at_s: f64, rate: f64) -> f64 {
        self.pass(at_s);
        (self.queued + self.pending) / rate
    }

    /// Whether the link has less than `most_s` seconds of work: of what waits for it, or where the receiver takes
    /// processors from this side, of what is about to as well.
    pub(super) fn idles(&self, rate: f64, backlog_s: f64, most_s: f64) -> bool {
        let before_s = if self.is_local { backlog_s } else { self.queued / rate };
        before_s.min(backlog_s) <= most_s
    }

    /// Bytes under way or about to be, if they tell how fast the link is once they are acknowledged, and since when.
    pub(super) fn telling(&self) -> Option<(f64, f64)> {
        let bytes = self.in_flight + self.pending;
        (bytes >= TELLING_BYTES).then_some((bytes, self.busy_since_s))
    }

    /// Time passes until `at_s`.
    fn pass(&mut self, at_s: f64) {
        let passed_s = (at_s - self.queued_at_s).max(0.0);
        self.queued_at_s = self.queued_at_s.max(at_s);
        let left = self.queued - self.rate.unwrap_or(0.0) * passed_s;
        let is_contended = self.contention() > CONTENDED;
        let late = if is_contended { 0.0 } else { self.late };
        // Lanes that are kept waiting say that the link works on all that is under way but what answers take.
        let waits = self.blocked_share() > if is_contended { CERTAIN } else { BLOCKED };
        let held = match self.rate {
            Some(rate) if waits && self.least_latency_s.is_finite() => {
                self.in_flight - ANSWERED_TIMES * self.least_latency_s * rate
            }
            _ => 0.0,
        };
        let waiting = left.max(held).min(self.unsent.unwrap_or(f64::INFINITY));
        self.queued = waiting.max(late).clamp(0.0, self.in_flight);
    }

    /// How long blocks are under way at most where the link has no queue.
    fn unqueued_s(&self) -> f64 {
        let least_s = if self.least_latency_s.is_finite() { self.least_latency_s } else { 0.0 };
        QUEUED_TIMES * least_s + QUEUED_S
    }

    /// Bytes a second; none before anything was acknowledged.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// What it is taken to carry while nothing but its round trip is known of it, in bytes a second.
    pub(super) fn unknown_rate(&self) -> f64 {
        self.unknown_rate
    }

    /// What it is taken to carry if it seems to carry so much by the first acknowledgement, or for want of one.
    pub(super) fn first_told(&self, rate: f64) -> f64 {
        let [.., other] = UNKNOWN_RATE;
        // That a receiver on this machine takes a few milliseconds to begin tells nothing of the way to it.
        if self.is_local && rate > other { rate.max(self.unknown_rate) } else { rate }
    }

    /// Whether anything was acknowledged.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Whether it is known for sure to be as slow as it seems.
    pub(super) fn is_confirmed(&self) -> bool {
        self.is_confirmed
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
    pub(super) fn is_limit(&self) -> bool {
        let is_contended = self.contention() > CONTENDED;
        let waits = self.blocked_share() > if is_contended { CERTAIN } else { BLOCKED };
        // Lanes that wait for processors, and a receiver that may share them, explain late answers.
        if !waits && (is_contended || self.late == 0.0) {
            return false;
        }
        !self.is_receiver_starved()
    }

    /// Whether a receiver on this machine may be slow for want of the processors that this side uses.
    fn is_receiver_starved(&self) -> bool {
        let shares = self.is_local && self.contention() > CONTENDED;
        shares && self.seen() * EXPLAINED * self.receiver_s >= 1.0
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
        let Some(rate) = self.rate.filter(|rate| grows || self.seen() > *rate) else { return };
        if self.is_limit() {
            return;
        }
        self.since_limit = self.since_limit.saturating_add(1);
        let growth = 1.0 + self.growth;
        self.growth = (self.growth * ACCELERATION).min(MOST_GROWTH);
        let grown = (rate.max(self.seen()) * growth).min(self.most_believed()).min(self.bound);
        self.rate = Some(rate.max(grown).min(self.allowed));
    }

    /// Takes note of a block that was acknowledged, and tells how long after the one before.
    pub(super) fn delivered(&mut self, delivery: &Delivery) -> Option<f64> {
        self.pass(delivery.at_s);
        let wire = delivery.wire_bytes as f64;
        self.lose(wire);
        let between = self.last_ack_s.map(|last| (delivery.at_s - last).max(0.0));
        self.last_ack_s = Some(delivery.at_s);
        self.has_answered = true;
        if wire < LEAST_BYTES {
            self.words_s += between.unwrap_or(f64::INFINITY);
            return between;
        }
        // While words came, the link had this block at most for as long as that was under way.
        let words_s = std::mem::take(&mut self.words_s);
        let taken_s = between.map_or(delivery.since_s, |it| (it + words_s).min(it.max(delivery.since_s)));
        self.acked_bytes = self.acked_bytes * self.decay + wire;
        self.acked_s = self.acked_s * self.decay + taken_s;
        // How fast little blocks come tells how fast they are made.
        let is_telling = wire >= TELLING_BYTES;
        if is_telling {
            self.least_latency_s = self.least_latency_s.min(delivery.since_s);
            self.most_seen *= 0.999;
        }
        let seen = self.seen();
        self.most_seen = self.most_seen.max(seen);
        let under_way_s = delivery.latency_s - ANSWER_S.max(self.least_latency_s);
        self.bound *= FORGET;
        if under_way_s > 0.0 && delivery.ahead_bytes >= BOUNDING_BYTES {
            // What was under way when it was written was before it.
            self.bound = self.bound.min(delivery.ahead_bytes / under_way_s).max(seen);
        }
        let Some(rate) = self.rate else {
            let carried = if is_telling { wire } else { delivery.ahead_bytes };
            if carried < TELLING_BYTES {
                self.busy_since_s = delivery.at_s;
                return between;
            }
            // Some of the time is the receiver's.
            let since_s = delivery.since_s - self.round_trip_s;
            let least_s = (since_s - FIRST_ANSWER_S).max(0.5 * since_s).max(1e-6);
            self.rate = Some(
                self.first_told(carried / least_s)
                    .min(self.first_rate)
                    .max(self.taken(delivery.at_s))
                    .min(self.allowed),
            );
            self.is_confirmed |= since_s > CERTAIN_ANSWERS * FIRST_ANSWER_S;
            return between;
        };
        let rate = if self.is_receiver_starved() { rate } else { rate.min(self.bound) };
        // Whatever else it carried, it carried this block while it was under way.
        let [.., open, unknown] = MOST_BEYOND;
        let most = if self.is_confirmed { open } else { unknown } * self.most_seen;
        let faded = if is_telling { rate.min(most.max(FADE * rate)) } else { rate };
        let rate = faded.max(wire / delivery.since_s.max(1e-6)).min(self.allowed);
        self.rate = Some(rate);
        let is_limit = self.is_limit();
        let was_limit = std::mem::replace(&mut self.was_limit, is_limit);
        if is_limit {
            self.growth = GROWTH;
            self.since_limit = 0;
            self.is_confirmed = true;
            if was_limit && between.is_some() {
                // It has not idled since the last one.
                self.busy_bytes = self.busy_bytes * self.decay + wire;
                self.busy_s = self.busy_s * self.decay + taken_s;
                let carried = seen.max(self.busy_bytes / self.busy_s.max(wire / rate * 0.1));
                self.most_seen = seen.max(0.9 * self.most_seen);
                self.rate = Some((rate + FOLLOW * (carried - rate)).min(self.allowed));
            }
        }
        between
    }

    /// What it is taken to carry at most beyond what was seen.
    fn most_believed(&self) -> f64 {
        let [limit, contended, open, unknown] = MOST_BEYOND;
        if !self.is_confirmed {
            return unknown * self.most_seen;
        }
        let beyond = match (self.since_limit < LATELY, self.contention() > CONTENDED) {
            (true, _) => limit,
            (false, true) if self.blocked_share() > HARDLY => limit,
            (false, true) => contended,
            (false, false) => open,
        };
        beyond * self.most_seen
    }

    /// What the link took lately, in bytes a second.
    fn seen(&self) -> f64 {
        self.acked_bytes / self.acked_s.max(1e-6)
    }
}

/// What a link of which nothing but its round trip is known is taken to carry, in bytes a second.
fn unknown_rate(settings: &Settings) -> f64 {
    let [local, other] = UNKNOWN_RATE;
    match settings.round_trip_s {
        _ if settings.is_local => local,
        Some(time) => other.min(SLOW_START_BYTES / time.max(1e-6)),
        None => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_between_blocks_do_not_make_the_link_seem_fast() {
        let (round_trip_s, limit_bytes_per_s) = (Some(0.0005), None);
        let settings =
            Settings { lanes: 4, cores: 4, round_trip_s, is_local: false, limit_bytes_per_s, known: None };
        let mut link = Link::new(&settings);
        let deliver = |link: &mut Link, wire_bytes: u64, since_s: f64, at_s: f64| {
            link.delivered(&Delivery {
                raw_bytes: 1 << 20,
                wire_bytes,
                ahead_bytes: wire_bytes as f64,
                phase: 0,
                since_s,
                latency_s: 0.0,
                at_s,
            });
        };
        for block in 0..10 {
            let from_s = f64::from(block) * 0.1;
            link.send(1_048_576.0, from_s);
            for word in 1..100 {
                deliver(&mut link, 0, 0.001, from_s + f64::from(word) * 0.001);
            }
            deliver(&mut link, 1 << 20, 0.1, from_s + 0.1);
        }
        let seen = link.seen();
        assert!((0.5..1.5).contains(&(seen / 10_485_760.0)), "{seen}");
    }
}
