//! Chooses an action for each block of a stream, so that the stream ends soonest.
//!
//! A stream takes as long as the slower of two: the processors, which have the sum of all work to do, and the link,
//! which has the sum of all bytes to carry. So there is one exchange rate between a second of processor time and
//! one of the link that makes each block's own best action the best for the stream. What waits for the link tells
//! it: if much does, the link is the slower, and its time is worth more; if nothing does, it is the processors. So a
//! block costs its processor time and, for each second that it keeps the link busy, as many seconds as the backlog
//! at that moment is worth (Neely, *Stochastic Network Optimization*, 2010, calls this drift plus penalty). The
//! [`Controller`] knows the backlog from what was written and what was acknowledged. Whether it has a model's
//! predictions for the block, or only the means of what earlier blocks gave, makes no difference to that.
//!
//! It knows no clock: every time is a number of seconds since a moment of its driver's choice.

use super::Action;
use super::correction::{Corrections, PRIORS};
use super::guard::{Guard, Mode};
use super::link::Link;
use super::summary::Summary;
use super::told::{Decision, Delivery, Estimate, Look, Outcome, Reason, Settings};

/// How much work for the link, in seconds of it, waits where a second of processor time is worth as much as one of the
/// link: enough not to let the link run dry between two blocks, of which it is so many, and little enough not to matter
/// at the end.
const EVEN_S: f64 = 0.004;
const EVEN_BLOCKS: f64 = 1.5;
/// What is left of that with each block while the link is what everything waits for, since a full queue in front of a
/// fast link is short; how it comes back when it is not; and the least of it.
const IMPATIENCE: f64 = 0.97;
const PATIENCE: f64 = 1.1;
/// The share of the time that lanes are kept waiting from which on it is left.
const IMPATIENT: f64 = 0.4;
const LEAST_PATIENCE: f64 = 1.0 / 16.0;
/// The share of the time that a block is encoded for in which the link works off what waits: other lanes add to it.
const MEANWHILE: f64 = 0.4;
/// The longest that the backlog is taken to be, as a multiple of that: no processor time is worth less.
const MOST_BACKLOG: f64 = 50.0;
/// The longest that a block is reckoned to keep the link busy.
const MOST_CARRIED_S: f64 = 1.0;
/// The weight of the newest block in running means.
const WEIGHT: f64 = 0.1;
/// How long lanes wait for the first acknowledgement, which tells how fast a near link is: while it takes long, it is
/// the link that is busy.
const FIRST_WAIT_S: f64 = 0.05;
/// A link of which nothing is known but that it carries no more than this, in bytes a second, is slow.
const SURELY_SLOW: f64 = 2e7;
/// A link that may be so many times as fast as it is taken to be is worth finding out about, if that would change what is
/// chosen.
const FASTER: f64 = 4.0;
/// But one before which more waits than this share of the even backlog is busy, and not faster than it seems.
const IDLE: f64 = 0.5;
/// After so many blocks in a row that were not worth compressing, not every one is looked at.
const PLAIN_RUN: u32 = 16;
/// But only while processors are what everything waits for, or nothing would be less by more than this.
const PLAIN_PRICE: f64 = 0.5;
const PLAIN_RATIO: f64 = 0.9;
/// One block in so many is looked at then.
const LOOK_EVERY: u32 = 8;
/// A block that takes longer than this, in seconds, is always looked at: the look costs nothing beside it.
const QUICK_S: f64 = 0.002;

/// Chooses for one session; all its lanes share it.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    link: Link,
    corrections: Corrections,
    guard: Guard,
    /// The mean of what processor time was worth, and what is left of the backlog at which it is worth a half.
    price: f64,
    patience: f64,
    /// Means of seconds of processor time for each byte: of reading and digesting, of encoding, and of a byte on the
    /// wire.
    other_s: f64,
    encode_s: f64,
    write_s: f64,
    /// The mean time that a block takes of the busier of processors and link.
    block_s: f64,
    /// Means over all blocks of what they take of the processor in seconds and of the wire in bytes, for each byte.
    spent_s: f64,
    spent_wire: f64,
    /// The same if all were compressed by [`Action::Zstd1`].
    zstd1: Estimate,
    /// Blocks in a row that were not worth compressing.
    plain_run: u32,
    summary: Summary,
}

impl Controller {
    /// A controller that has seen nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Controller {
        let settings = Settings { lanes: settings.lanes.max(1), cores: settings.cores.max(1), ..settings };
        Controller {
            settings,
            link: Link::new(&settings),
            corrections: Corrections::default(),
            guard: Guard::new(settings.lanes),
            price: 0.5,
            patience: 1.0,
            other_s: 0.15e-9,
            encode_s: 0.0,
            write_s: 0.4e-9,
            block_s: 0.0,
            spent_s: 0.0,
            spent_wire: 1.0,
            zstd1: PRIORS[Action::Zstd1.index()],
            plain_run: 0,
            summary: Summary::default(),
        }
    }

    /// A controller on a processor that takes `slowness` times as long as that of the model's times.
    #[must_use]
    pub fn calibrated(settings: Settings, slowness: f64) -> Controller {
        let mut controller = Controller::new(settings);
        controller.corrections.calibrate(slowness);
        controller
    }

    /// From now on, the lanes together may send so many bytes a second.
    pub fn allow(&mut self, bytes_per_s: Option<f64>) {
        self.link.allow(bytes_per_s);
    }

    /// The way to the receiver is another from now on, with a round trip of so many seconds.
    pub fn relocate(&mut self, round_trip_s: f64) {
        self.settings.round_trip_s = Some(round_trip_s);
        self.link.relocate(round_trip_s);
    }

    /// A transfer begins: the time since the last one tells nothing of the link.
    pub fn resume(&mut self) {
        self.link.resume();
    }

    /// Whether the next block is worth a look at its content.
    #[must_use]
    pub fn wants_look(&self) -> bool {
        let is_held = self.guard.mode() == Mode::Held(Action::None);
        let is_turn = self.guard.phase_blocks().is_multiple_of(u64::from(LOOK_EVERY));
        (is_turn || !is_held) && !self.bypasses()
    }

    /// Decides, at `at_s`, on a block of `raw_bytes` whose elements are `width` bytes wide, where that is known.
    pub fn decide(&mut self, look: Look<'_>, width: Option<u8>, raw_bytes: u64, at_s: f64) -> Decision {
        self.prepare_guard();
        let estimates = self.corrections.estimates(look);
        let decision = self.choose(look, &estimates, width, (raw_bytes as f64, at_s));
        self.link.expect(decision.expected_bytes, at_s);
        if matches!(look, Look::Predicted(_) | Look::Compressible) {
            let expected = estimates[Action::Zstd1.index()];
            self.zstd1.ratio += WEIGHT * (expected.ratio - self.zstd1.ratio);
            self.zstd1.ns_per_byte += WEIGHT * (expected.ns_per_byte - self.zstd1.ns_per_byte);
        }
        let is_plain = decision.action == Action::None;
        self.plain_run = match decision.reason {
            Reason::Model | Reason::Means if !is_plain || self.may_shrink() => 0,
            Reason::Model | Reason::Means | Reason::Probe | Reason::Bypass => {
                self.plain_run.saturating_add(1)
            }
            Reason::Start | Reason::Trial | Reason::Guard => self.plain_run,
        };
        self.summary.reasons[decision.reason as usize] += 1;
        decision
    }

    /// Takes note of what became of a block once it is written: one that was decided on, or one of which there was
    /// nothing to decide, since it was coded against a base or is one repeated byte.
    pub fn observe(&mut self, decision: Option<&Decision>, outcome: &Outcome) {
        let raw = outcome.raw_bytes.max(1) as f64;
        let wire = outcome.wire_bytes as f64;
        let mean = |mean: &mut f64, value: f64| *mean += WEIGHT * (value - *mean);
        let other = (outcome.cpu_s - outcome.encode_cpu_s - outcome.write_cpu_s).max(0.0);
        mean(&mut self.other_s, other / raw);
        mean(&mut self.encode_s, outcome.encode_cpu_s / raw);
        if wire > 0.25 * raw {
            // Little blocks cost a call, not bytes.
            mean(&mut self.write_s, outcome.write_cpu_s / wire);
        }
        mean(&mut self.spent_s, outcome.cpu_s / raw);
        mean(&mut self.spent_wire, wire / raw);
        // What the guard has decided tells nothing of where the balance is.
        let is_free = !decision.is_some_and(|it| matches!(it.reason, Reason::Trial | Reason::Guard));
        let grows = is_free && decision.is_some_and(|decision| decision.tells);
        // What a receiver does is much the same as what a sender does beside encoding, with a copy more.
        let receiver_s = 2.0 * (self.other_s + self.write_s) / self.processors();
        self.link.observe(outcome, grows, receiver_s);
        let change = if self.link.blocked_share() > IMPATIENT { IMPATIENCE } else { PATIENCE };
        self.patience = (self.patience * change).clamp(LEAST_PATIENCE, 1.0);
        let Some(rate) = self.link.rate() else { return };
        let busy = outcome.cpu_s / self.processors();
        let carried = (wire / rate).min(MOST_CARRIED_S);
        let longer = busy.max(carried);
        if self.block_s == 0.0 {
            self.block_s = longer;
        }
        mean(&mut self.block_s, longer);
    }

    /// Takes note of what encoding a block came to that was decided on: to be called before it is written, since the
    /// transfer may be over before whoever writes it comes to [`Controller::observe`].
    pub fn encoded(&mut self, decision: &Decision, raw_bytes: u64, wire_bytes: u64, cpu_s: f64) {
        self.link.settle(decision.expected_bytes);
        let share = &mut self.summary.actions[decision.action.index()];
        share.blocks += 1;
        share.raw_bytes += raw_bytes;
        share.wire_bytes += wire_bytes;
        share.cpu_s += cpu_s;
        if decision.action != Action::None {
            let raw = raw_bytes.max(1) as f64;
            let actual = Estimate { ratio: wire_bytes as f64 / raw, ns_per_byte: cpu_s * 1e9 / raw };
            self.corrections.learn(decision, actual);
        }
    }

    /// Takes note of a block that is about to be written at `at_s`, whether or not it was decided on.
    /// Tells how many bytes are under way then, for its [`Delivery`].
    pub fn sending(&mut self, wire_bytes: u64, at_s: f64) -> f64 {
        self.link.send(wire_bytes as f64, at_s)
    }

    /// Takes note of a look for acknowledgements on a lane. `under_way` are the bytes of each block that has none, and
    /// how many seconds ago it was written; `waiting` is what this told when the lane last looked.
    pub fn looked(&mut self, under_way: impl Iterator<Item = (u64, f64)>, waiting: f64) -> f64 {
        self.link.look(under_way.map(|(bytes, since_s)| (bytes as f64, since_s)), waiting)
    }

    /// Whether lanes had better tell what the system has not sent.
    #[must_use]
    pub fn wants_unsent(&self) -> bool {
        self.settings.is_far()
    }

    /// Takes note of a look, at `at_s`, at how much of what a lane has written the system has not sent: `bytes`, and
    /// `before` when it last looked, with what it has written since.
    pub fn unsent(&mut self, bytes: u64, before: u64, at_s: f64) {
        self.link.hold(bytes as f64, before as f64, at_s);
    }

    /// Takes note of what will not happen with a lane that has ended: a decision of which nothing came, and
    /// acknowledgements for so many bytes.
    pub fn give_up(&mut self, decision: Option<&Decision>, wire_bytes: u64) {
        self.link.settle(decision.map_or(0.0, |decision| decision.expected_bytes));
        self.link.lose(wire_bytes as f64);
    }

    /// How long a lane had better wait at `at_s` before it decides, since an acknowledgement is about to tell how fast
    /// the link is.
    #[must_use]
    pub fn wait(&self, at_s: f64) -> f64 {
        match self.link.telling() {
            Some((_, since_s))
                if self.link.rate().is_none() && !self.link.has_answered() && self.settings.is_near() =>
            {
                (since_s + FIRST_WAIT_S - at_s).max(0.0)
            }
            _ => 0.0,
        }
    }

    /// How long a stream takes for each byte that takes so much of the processor and so much of the wire.
    fn time_of(&self, cpu_s: f64, wire: f64, rate: f64) -> f64 {
        (cpu_s / self.processors()).max(wire / rate)
    }

    /// The same, if all blocks were like one with this estimate.
    fn time_with(&self, Estimate { ratio, ns_per_byte }: Estimate, rate: f64) -> f64 {
        self.time_of(self.other_s + ns_per_byte * 1e-9 + ratio * self.write_s, ratio, rate)
    }

    /// The action of least cost.
    fn cheapest(&self, terms: &Terms<'_>) -> Action {
        // What takes long makes late whatever may show that the link is faster than it seems.
        let is_sure = self.link.is_confirmed() || terms.is_surely_slow;
        let possible = Action::ALL.into_iter().filter(|action| {
            action.is_possible(terms.width) && (is_sure || !matches!(action, Action::Zstd6 | Action::Zstd9))
        });
        let cost = |action: &Action| match self.link.rate() {
            Some(_) => self.cost(*action, terms),
            // No backlog tells anything yet: what would be best if all blocks were like this one.
            None => self.time_with(terms.estimates[action.index()], terms.rate),
        };
        possible.min_by(|left, right| cost(left).total_cmp(&cost(right))).unwrap_or(Action::None)
    }

    /// The backlog with which a second of the processors is worth as much as one of the link.
    fn even_s(&self) -> f64 {
        self.patience * EVEN_S.max(EVEN_BLOCKS * self.block_s)
    }

    /// What a block costs in seconds: of processors, and of the link by what waits for it while the block does.
    fn cost(&self, action: Action, terms: &Terms<'_>) -> f64 {
        let Estimate { ratio, ns_per_byte } = terms.estimates[action.index()];
        let encode_s = terms.raw_bytes * ns_per_byte * 1e-9;
        let cpu_s = (encode_s + terms.raw_bytes * ratio * self.write_s) / self.processors();
        let link_s = terms.raw_bytes * ratio / terms.rate;
        cpu_s + link_s * (terms.backlog_s + 0.5 * link_s) / self.even_s()
    }

    /// Takes note of a block that the peer has acknowledged.
    pub fn delivered(&mut self, delivery: &Delivery) {
        let between = self.link.delivered(delivery);
        self.guard.delivered(delivery.raw_bytes, between, delivery.phase);
    }

    /// The phase of the guard, for a [`Delivery`] of a block that was not decided on.
    #[must_use]
    pub fn phase(&self) -> u32 {
        self.guard.phase()
    }

    /// Whether work of so many seconds of a processor for each byte, which one thread does for all lanes, takes longer than
    /// half of the time that the link has for a byte. One on this machine waits for all such work.
    #[must_use]
    pub fn outruns(&self, seconds_per_byte: f64) -> bool {
        self.settings.is_local || self.link.rate().is_some_and(|rate| rate * seconds_per_byte > 0.5)
    }

    /// Where things stand.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            price: self.price,
            link_bytes_per_s: self.link.rate(),
            link_was_limit: self.link.is_confirmed(),
            known_bytes_per_s: self.settings.known.map(|known| known.bytes_per_s),
            processors: self.processors(),
            blocked_share: self.link.blocked_share(),
            guard_trips: self.guard.trips(),
            trials: self.guard.trials(),
            ..self.summary.clone()
        }
    }

    fn processors(&self) -> f64 {
        let shared = f64::from(self.settings.lanes) / self.link.contention();
        shared.min(f64::from(self.settings.cores)).max(0.125)
    }

    /// Whether the link is what everything waits for, and the last blocks would have been less for it.
    fn may_shrink(&self) -> bool {
        self.price < PLAIN_PRICE && self.zstd1.ratio < PLAIN_RATIO
    }

    fn bypasses(&self) -> bool {
        self.plain_run >= PLAIN_RUN && !self.plain_run.is_multiple_of(LOOK_EVERY) && self.block_s < QUICK_S
    }

    /// Has the guard consider trials, now that it is known what they would be expected to give.
    fn prepare_guard(&mut self) {
        let Some(rate) = self.link.rate() else { return };
        let now = self.time_of(self.spent_s, self.spent_wire, rate).max(1e-12);
        let fixed = |each: Estimate| self.time_with(each, rate) / now;
        let plain = PRIORS[Action::None.index()];
        self.guard.consider([(Action::None, fixed(plain)), (Action::Zstd1, fixed(self.zstd1))]);
    }

    /// What the link is taken to carry while nothing was acknowledged: the longer that takes, the less.
    fn presumed_rate(&self, at_s: f64) -> f64 {
        let unknown = self.link.unknown_rate().max(self.link.taken(at_s));
        let Some((bytes, since_s)) = self.link.telling() else { return unknown };
        let waited_s = at_s - since_s - self.settings.round_trip_s.unwrap_or(0.0);
        if waited_s > 0.0 { unknown.min(self.link.first_told(bytes / waited_s)) } else { unknown }
    }

    fn choose(
        &mut self,
        look: Look<'_>,
        estimates: &[Estimate; Action::ALL.len()],
        width: Option<u8>,
        (raw_bytes, at_s): (f64, f64),
    ) -> Decision {
        let known = self.link.rate();
        let rate = known.unwrap_or_else(|| self.presumed_rate(at_s));
        // All lanes encode at the same time, and meanwhile the link goes on.
        let meanwhile_s =
            MEANWHILE * raw_bytes * self.encode_s * f64::from(self.settings.lanes) / self.processors();
        let even_s = self.even_s();
        let backlog_s = (self.link.backlog_s(at_s, rate) - meanwhile_s).clamp(0.0, MOST_BACKLOG * even_s);
        // How long a round trip takes tells nothing of how much fits in it.
        let is_surely_slow = known.is_none() && rate < SURELY_SLOW.min(self.link.unknown_rate());
        let terms = Terms { estimates, width, raw_bytes, rate, is_surely_slow, backlog_s };
        self.price += WEIGHT * (even_s / (even_s + backlog_s) - self.price);
        let best = match look {
            Look::Predicted(_) | Look::Compressible => self.cheapest(&terms),
            Look::Incompressible | Look::Unseen => Action::None,
        };
        let decide = |phase: u32, action: Action, reason| Decision {
            action,
            expected: estimates[action.index()],
            reason,
            predicted: matches!(look, Look::Predicted(_)),
            phase,
            expected_bytes: raw_bytes * estimates[action.index()].ratio,
            tells: false,
        };
        if known.is_none() {
            return decide(self.guard.phase(), best, Reason::Start);
        }
        if let (Mode::Held(action) | Mode::Trial(action), Look::Predicted(_) | Look::Compressible) =
            (self.guard.mode(), look)
        {
            self.guard.charge(self.cost(action, &terms) / self.cost(best, &terms) - 1.0);
        }
        let mode = self.guard.take();
        let phase = self.guard.phase();
        let decide = |action, reason| decide(phase, action, reason);
        match (mode, look) {
            (Mode::Trial(_), Look::Incompressible) => return decide(Action::None, Reason::Trial),
            (Mode::Held(_), Look::Incompressible) => return decide(Action::None, Reason::Guard),
            (Mode::Trial(action), _) => return decide(action, Reason::Trial),
            (Mode::Held(action), _) => return decide(action, Reason::Guard),
            (Mode::Free, _) => {}
        }
        let reason = match look {
            Look::Unseen => return decide(Action::None, Reason::Bypass),
            Look::Incompressible => return decide(Action::None, Reason::Probe),
            Look::Compressible => Reason::Means,
            Look::Predicted(_) => Reason::Model,
        };
        let faster = Terms { rate: rate * FASTER, backlog_s: backlog_s / FASTER, ..terms };
        Decision {
            tells: self.link.idles(rate, backlog_s, IDLE * even_s) && self.cheapest(&faster) != best,
            ..decide(best, reason)
        }
    }
}

/// What a decision is made from.
struct Terms<'a> {
    estimates: &'a [Estimate; Action::ALL.len()],
    width: Option<u8>,
    raw_bytes: f64,
    /// What the link carries, in bytes a second, and how long it takes for what is on the way to it.
    rate: f64,
    /// Whether it has kept quiet for so long that it carries no more than that for sure.
    is_surely_slow: bool,
    backlog_s: f64,
}
