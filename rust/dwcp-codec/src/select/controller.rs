//! Chooses an action for each block of a stream, so that the stream ends soonest.
//!
//! A stream takes as long as the slower of two: the processors, which have the sum of all work to do, and the link,
//! which has the sum of all bytes to carry. So there is one exchange rate between a second of processor time and
//! bytes on the wire that makes each block's own best action the best for the stream. The [`Controller`] finds it
//! from what it is told: how fast the link took what it was given, how long lanes were kept waiting, and how much
//! processor time everything took. Whether it has a model's predictions for the block, or only the means of what
//! earlier blocks gave, makes no difference to that.
//!
//! It knows no clock: every time is a number of seconds since a moment of its driver's choice.

use super::Action;
use super::correction::{Corrections, PRIORS};
use super::guard::{Guard, Mode};
use super::link::Link;

/// How strongly one block's imbalance moves the exchange rate at first, and at most: more with each that points the
/// same way.
const STEP: f64 = 0.1;
const MOST_STEP: f64 = 0.5;
const ACCELERATION: f64 = 1.25;
/// After so many blocks in a row that would have been sent the same way however much more or less processor time were
/// worth, such a block moves nothing: it could go anywhere, and the next content would have to wait for it to come back.
const STEADY_RUN: u32 = 4;
/// Bounds of the logarithm of what processor time is worth, against the rate at which both are equally busy.
const LOG_WORTH: f64 = 4.0;
/// The weight of the newest block in running means.
const WEIGHT: f64 = 0.1;
/// A round trip below this many seconds lets hope for a fast link.
const NEAR_S: f64 = 0.002;
/// The most that a link is taken to carry before anything was acknowledged, in bytes a second: the first where a round
/// trip is below [`NEAR_S`], less where it is longer, and the second where it is long.
const UNKNOWN_RATE: [f64; 2] = [3e8, 5e7];
/// About the length of a block.
const FIRST_BYTES: f64 = 1_048_576.0;
/// After so many blocks in a row that were not worth compressing, not every one is looked at.
const PLAIN_RUN: u32 = 16;
/// One block in so many is looked at then.
const LOOK_EVERY: u32 = 8;
/// A block that takes longer than this, in seconds, is always looked at: the look costs nothing beside it.
const QUICK_S: f64 = 0.002;

/// What an action is expected to make of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes on the wire for each byte of the block.
    pub ratio: f64,
    /// Processor time for compressing, in nanoseconds for each byte of the block.
    pub ns_per_byte: f64,
}

/// What is known of a block before it is decided on.
#[derive(Clone, Copy, Debug)]
pub enum Look<'a> {
    /// A model's estimates, in the order of [`Action::ALL`].
    Predicted(&'a [Estimate; Action::ALL.len()]),
    /// There is no model; a probe takes the block for worth compressing.
    Compressible,
    /// A probe takes it for not worth compressing.
    Incompressible,
    /// Nobody has looked.
    Unseen,
}

/// What led to a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The link is not known yet.
    Start,
    /// The model's estimates for this block, corrected by what the last blocks gave.
    Model,
    /// The means of earlier blocks: there is no model.
    Means,
    /// A probe found nothing to gain in this block.
    Probe,
    /// The last blocks were not worth compressing at this rate of the link, so this one was not looked at.
    Bypass,
    /// To measure what sending everything so would give.
    Trial,
    /// A trial has shown that sending everything so is faster.
    Guard,
}

impl Reason {
    /// All reasons, by number.
    pub const ALL: [Reason; 7] = [
        Reason::Start,
        Reason::Model,
        Reason::Means,
        Reason::Probe,
        Reason::Bypass,
        Reason::Trial,
        Reason::Guard,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Start => "start",
            Reason::Model => "model",
            Reason::Means => "means",
            Reason::Probe => "probe",
            Reason::Bypass => "bypass",
            Reason::Trial => "trial",
            Reason::Guard => "guard",
        }
    }
}

/// An action for a block, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// What that is expected to give.
    pub expected: Estimate,
    /// What led to it.
    pub reason: Reason,
    /// Whether `expected` was made from a model's prediction.
    pub predicted: bool,
    /// The phase of the guard, which [`Controller::delivered`] wants back.
    pub phase: u32,
    /// Whether it would be the same were processor time worth less, and were it worth more.
    steady: (bool, bool),
}

impl Decision {
    /// Whether the next block is better decided on when it is known how the link has taken this one, provided that
    /// this takes no more than milliseconds.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.reason == Reason::Start && self.action == Action::None
    }
}

/// What a block really took. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Length of the block.
    pub raw_bytes: u64,
    /// Length on the wire.
    pub wire_bytes: u64,
    /// Processor time of looking at the block and encoding it.
    pub encode_cpu_s: f64,
    /// Processor time of writing it to the socket, encryption included.
    pub write_cpu_s: f64,
    /// Processor time of everything, the two above and reading and digesting included.
    pub cpu_s: f64,
    /// Time that the parts took in which nothing but a processor was waited for.
    pub busy_wall_s: f64,
    /// Processor time of those parts.
    pub busy_cpu_s: f64,
    /// Time that writing took.
    pub write_wall_s: f64,
    /// Time in which the lane could have gone on but for want of a processor, where the system tells.
    pub delay_s: Option<f64>,
    /// Time since the same lane's last block, or since it had work.
    pub cycle_s: f64,
}

/// A block that the peer has acknowledged. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivery {
    /// Length of the block.
    pub raw_bytes: u64,
    /// Length on the wire.
    pub wire_bytes: u64,
    /// Its decision's phase.
    pub phase: u32,
    /// From the begin of its writing to the acknowledgement.
    pub since_s: f64,
    /// The least that it can have been under way after it was written.
    pub latency_s: f64,
    /// When it was acknowledged.
    pub at_s: f64,
}

/// Where a controller works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Lanes that encode and write at the same time.
    pub lanes: u32,
    /// Processors that there are for them.
    pub cores: u32,
    /// The time of a round trip, as far as it is known.
    pub round_trip_s: Option<f64>,
    /// Whether the receiver works on the same machine.
    pub is_local: bool,
    /// What the lanes together may send, in bytes a second, where that is bounded.
    pub limit_bytes_per_s: Option<f64>,
}

/// What was done to the blocks that one action was chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ActionShare {
    /// How many.
    pub blocks: u64,
    /// Their length.
    pub raw_bytes: u64,
    /// Their length on the wire.
    pub wire_bytes: u64,
    /// Processor time of looking at them and encoding them, in seconds.
    pub cpu_s: f64,
}

/// Where a controller stands, and how it came there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// By the number of the action.
    pub actions: [ActionShare; Action::ALL.len()],
    /// Blocks by the number of the reason.
    pub reasons: [u64; Reason::ALL.len()],
    /// What processor time is worth: 0 where only the link counts, 1 where only the processor does.
    pub price: f64,
    /// What the link is taken to carry, in bytes a second; none before anything was acknowledged.
    pub link_bytes_per_s: Option<f64>,
    /// How many processors the lanes are taken to get.
    pub processors: f64,
    /// The share of the lanes' time in which the link kept them waiting.
    pub blocked_share: f64,
    /// Times that a trial has shown one action for everything to be faster.
    pub guard_trips: u32,
    /// Trials.
    pub trials: u32,
}

impl Summary {
    /// Where things stand, and what was done since they stood where `earlier` tells.
    #[must_use]
    pub fn since(&self, earlier: &Summary) -> Summary {
        let mut later = self.clone();
        for (share, before) in later.actions.iter_mut().zip(&earlier.actions) {
            share.blocks -= before.blocks.min(share.blocks);
            share.raw_bytes -= before.raw_bytes.min(share.raw_bytes);
            share.wire_bytes -= before.wire_bytes.min(share.wire_bytes);
            share.cpu_s = (share.cpu_s - before.cpu_s).max(0.0);
        }
        for (count, before) in later.reasons.iter_mut().zip(&earlier.reasons) {
            *count = count.saturating_sub(*before);
        }
        later.guard_trips -= earlier.guard_trips.min(later.guard_trips);
        later.trials -= earlier.trials.min(later.trials);
        later
    }
}

/// Chooses for one session; all its lanes share it.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    link: Link,
    corrections: Corrections,
    guard: Guard,
    /// The logarithm of what processor time is worth, against the rate at which both are equally busy; none before
    /// the first block for which the link is known.
    log_worth: Option<f64>,
    /// How far the next block may move it, with the sign of the last imbalance.
    step: f64,
    /// Means of seconds of processor time for each byte: of reading and digesting, and of a byte on the wire.
    other_s: f64,
    write_s: f64,
    /// The mean time that a block takes of the busier of processors and link.
    block_s: f64,
    /// Means over all blocks of what they take of the processor in seconds and of the wire in bytes, for each byte.
    spent_s: f64,
    spent_wire: f64,
    /// The same if all were compressed by [`Action::Zstd1`].
    zstd1: Estimate,
    /// Blocks in a row that were not worth compressing, and that moved nothing since their decisions were steady.
    plain_run: u32,
    steady_run: u32,
    /// When the first block was decided on.
    started_s: Option<f64>,
    summary: Summary,
}

impl Controller {
    /// A controller that has seen nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Controller {
        let lanes = settings.lanes.max(1);
        // One acknowledgement over a long way tells of the queues on it, too, which may take all at once.
        let first_rate = if is_near(&settings) { f64::INFINITY } else { unknown_rate(&settings) };
        Controller {
            settings: Settings { lanes, cores: settings.cores.max(1), ..settings },
            link: Link::new(lanes, settings.is_local, settings.limit_bytes_per_s, first_rate),
            corrections: Corrections::default(),
            guard: Guard::new(lanes),
            log_worth: None,
            step: STEP,
            other_s: 0.15e-9,
            write_s: 0.4e-9,
            block_s: 0.0,
            spent_s: 0.0,
            spent_wire: 1.0,
            zstd1: PRIORS[Action::Zstd1.index()],
            plain_run: 0,
            steady_run: 0,
            started_s: None,
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

    /// Decides, at `at_s`, on a block whose elements are `width` bytes wide, where that is known.
    pub fn decide(&mut self, look: Look<'_>, width: Option<u8>, at_s: f64) -> Decision {
        self.prepare_guard();
        let estimates = self.corrections.estimates(look);
        let decision = self.choose(look, &estimates, width, at_s);
        if matches!(look, Look::Predicted(_) | Look::Compressible) {
            let expected = estimates[Action::Zstd1.index()];
            self.zstd1.ratio += WEIGHT * (expected.ratio - self.zstd1.ratio);
            self.zstd1.ns_per_byte += WEIGHT * (expected.ns_per_byte - self.zstd1.ns_per_byte);
        }
        let is_plain = decision.action == Action::None;
        self.plain_run = match decision.reason {
            Reason::Model | Reason::Means if !is_plain => 0,
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
        if wire > 0.25 * raw {
            // Little blocks cost a call, not bytes.
            mean(&mut self.write_s, outcome.write_cpu_s / wire);
        }
        mean(&mut self.spent_s, outcome.cpu_s / raw);
        mean(&mut self.spent_wire, wire / raw);
        // What the guard has decided tells nothing of where the balance is.
        let is_free = !decision.is_some_and(|it| matches!(it.reason, Reason::Trial | Reason::Guard));
        let steady = decision.map_or((true, true), |decision| decision.steady);
        let grows = is_free && (!steady.1 || self.steady_run < STEADY_RUN);
        // What a receiver does is much the same as what a sender does beside encoding, with a copy more.
        let receiver_s = 2.0 * (self.other_s + self.write_s) / self.processors();
        self.link.observe(outcome, grows, receiver_s);
        let Some(rate) = self.link.rate() else { return };
        let busy = outcome.cpu_s / self.processors();
        let carried = wire / rate;
        let longer = busy.max(carried);
        if self.block_s == 0.0 {
            self.block_s = longer;
        }
        mean(&mut self.block_s, longer);
        if !is_free {
            return;
        }
        let imbalance = (busy - carried) / self.block_s.max(1e-9);
        let is_steady = if imbalance > 0.0 { steady.1 } else { steady.0 };
        self.steady_run = if is_steady { self.steady_run.saturating_add(1) } else { 0 };
        if self.steady_run <= STEADY_RUN {
            self.balance(imbalance);
        }
    }

    /// Takes note of what encoding a block came to that was decided on: to be called before it is written, since the
    /// transfer may be over before whoever writes it comes to [`Controller::observe`].
    pub fn encoded(&mut self, decision: &Decision, raw_bytes: u64, wire_bytes: u64, cpu_s: f64) {
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

    /// Moves what processor time is worth: up where processors are the busier, down where the link is.
    fn balance(&mut self, imbalance: f64) {
        let Some(log_worth) = self.log_worth else { return };
        let goes_on = imbalance * self.step > 0.0 && imbalance.abs() > 0.25;
        let size = if goes_on { (self.step.abs() * ACCELERATION).min(MOST_STEP) } else { STEP };
        self.step = size.copysign(imbalance);
        let moved = log_worth + size * imbalance.clamp(-1.0, 1.0);
        self.log_worth = Some(moved.clamp(-LOG_WORTH, LOG_WORTH));
    }

    /// What processor time would be worth if all blocks were like the one with these estimates.
    fn balanced(&self, estimates: &[Estimate; Action::ALL.len()], width: Option<u8>, rate: f64) -> f64 {
        let time = |log_worth: f64| {
            let action = self.cheapest(estimates, width, self.worth(rate, log_worth));
            self.time_with(estimates[action.index()], rate)
        };
        let steps = (-16_i32..=16).map(|step| f64::from(step) / 16.0 * LOG_WORTH);
        steps.min_by(|left, right| time(*left).total_cmp(&time(*right))).unwrap_or(0.0)
    }

    /// How many bytes on the wire a second of processor time is worth.
    fn worth(&self, rate: f64, log_worth: f64) -> f64 {
        rate / self.processors() * log_worth.exp()
    }

    /// How long a stream takes for each byte that takes so much of the processor and so much of the wire.
    fn time_of(&self, cpu_s: f64, wire: f64, rate: f64) -> f64 {
        (cpu_s / self.processors()).max(wire / rate)
    }

    /// The same, if all blocks were like one with this estimate.
    fn time_with(&self, Estimate { ratio, ns_per_byte }: Estimate, rate: f64) -> f64 {
        self.time_of(self.other_s + ns_per_byte * 1e-9 + ratio * self.write_s, ratio, rate)
    }

    /// The best action for a block where a second of processor time is worth so many bytes on the wire.
    fn cheapest(&self, estimates: &[Estimate; Action::ALL.len()], width: Option<u8>, worth: f64) -> Action {
        let cost = |action: &Action| self.cost(estimates[action.index()], worth);
        let possible = Action::ALL.into_iter().filter(|action| action.is_possible(width));
        possible.min_by(|left, right| cost(left).total_cmp(&cost(right))).unwrap_or(Action::None)
    }

    /// What a block costs, in bytes on the wire for each byte of it.
    fn cost(&self, Estimate { ratio, ns_per_byte }: Estimate, worth: f64) -> f64 {
        ratio + worth * (ns_per_byte * 1e-9 + ratio * self.write_s)
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

    /// Where things stand.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            price: 1.0 / (1.0 + (-self.log_worth.unwrap_or(0.0)).exp()),
            link_bytes_per_s: self.link.rate(),
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

    /// Chooses while nothing was acknowledged. One block tells of a link that needs no compression. The longer its
    /// acknowledgement takes, the less the link can carry, and the more the others are compressed.
    fn start(
        &mut self,
        look: Look<'_>,
        estimates: &[Estimate; Action::ALL.len()],
        width: Option<u8>,
        at_s: f64,
    ) -> Action {
        let is_near = is_near(&self.settings);
        let is_first = self.started_s.is_none();
        let started_s = *self.started_s.get_or_insert(at_s);
        if matches!(look, Look::Incompressible | Look::Unseen) || (is_first && is_near) {
            return Action::None;
        }
        let waited_s = at_s - started_s - self.settings.round_trip_s.unwrap_or(0.0);
        let most = f64::from(self.settings.lanes) * FIRST_BYTES / waited_s.max(1e-6);
        let rate = most.min(unknown_rate(&self.settings));
        let log_worth = self.balanced(estimates, width, rate);
        self.cheapest(estimates, width, self.worth(rate, log_worth))
    }

    fn choose(
        &mut self,
        look: Look<'_>,
        estimates: &[Estimate; Action::ALL.len()],
        width: Option<u8>,
        at_s: f64,
    ) -> Decision {
        let predicted = matches!(look, Look::Predicted(_));
        let decide = |phase: u32, action: Action, reason| Decision {
            action,
            expected: estimates[action.index()],
            reason,
            predicted,
            phase,
            steady: (true, true),
        };
        let Some(rate) = self.link.rate() else {
            let action = self.start(look, estimates, width, at_s);
            return decide(self.guard.phase(), action, Reason::Start);
        };
        let log_worth = self.log_worth.unwrap_or_else(|| self.balanced(estimates, width, rate));
        self.log_worth = Some(log_worth);
        let worth = self.worth(rate, log_worth);
        let best = match look {
            Look::Predicted(_) | Look::Compressible => self.cheapest(estimates, width, worth),
            Look::Incompressible | Look::Unseen => Action::None,
        };
        let excess = |action: Action| {
            self.cost(estimates[action.index()], worth) / self.cost(estimates[best.index()], worth) - 1.0
        };
        if let (Mode::Held(action) | Mode::Trial(action), Look::Predicted(_) | Look::Compressible) =
            (self.guard.mode(), look)
        {
            self.guard.charge(excess(action));
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
        let at = |log_worth: f64| self.cheapest(estimates, width, self.worth(rate, log_worth));
        let steady = (at(-LOG_WORTH) == best, at(LOG_WORTH) == best);
        Decision { steady, ..decide(best, reason) }
    }
}

fn is_near(settings: &Settings) -> bool {
    settings.round_trip_s.is_some_and(|time| time < NEAR_S)
}

/// What a link of which nothing but its round trip is known is taken to carry, in bytes a second.
fn unknown_rate(settings: &Settings) -> f64 {
    let [near, far] = UNKNOWN_RATE;
    (near * NEAR_S / settings.round_trip_s.unwrap_or(0.0).max(NEAR_S)).max(far)
}
