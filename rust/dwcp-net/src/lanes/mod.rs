//! How many lanes a session uses, found while data flows.
//!
//! A lane that loses segments at random carries no more than its congestion control lets it, however much the link
//! could: more lanes carry more, until the link is full. A link that is full shows it by the queue in front of it,
//! which makes round trips longer; more lanes then only take from others. So the number is doubled while that brings
//! more and the link is not full, and lowered while the link stays full with fewer. What was found is kept for longer
//! each time that it is confirmed, and forgotten when the link shows to be another.
//!
//! What a lane has under way is lost to the transfer when the lane is given up, and on a long path the others need many
//! seconds to grow by that much. So lanes are given up only while a queue stands, and no more of them than what is in
//! the queue: the link stays full meanwhile.
//!
//! The [`LaneController`] knows no clock and no sockets: it is given [`Sample`]s.

mod baseline;
mod crew;
mod fullness;
mod slots;
mod survey;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub(crate) use baseline::Baseline;
pub(crate) use crew::{Crew, Dialling, Flow, Losses, TICK};
use fullness::Fullness;
pub(crate) use slots::Slots;
use survey::Survey;

/// A window of measurement lasts so many round trips, and at least so many seconds.
const WINDOW_TRIPS: f64 = 4.0;
const WINDOW_S: f64 = 0.3;
/// What lanes that are new have to find their pace, or those that were given up to be gone from the queue.
const SETTLE_TRIPS: f64 = 3.0;
const SETTLE_S: f64 = 0.1;
/// How long lanes that are wanted may take to be there.
const PATIENCE_TRIPS: f64 = 10.0;
const PATIENCE_S: f64 = 3.0;
/// A round trip that is not known.
const UNKNOWN_TRIP_S: f64 = 0.05;
/// A round trip that is longer than the shortest by this share of it has queued; within these bounds, in seconds: the
/// shares of short ones are noise, and the queues of long ones are not longer than others.
const QUEUED: f64 = 0.12;
const QUEUED_S: (f64, f64) = (0.003, 0.015);
/// The share of a window in which round trips have queued from which on the link is full, and below which it has room.
const FULL: f64 = 0.9;
const ROOM: f64 = 0.75;
/// The share of the lanes that must have bytes waiting for the link; else it is something else that limits.
const LINK_BOUND: f64 = 0.5;
/// What more lanes have to bring to be kept.
const GAIN: f64 = 0.05;
/// What a doubling has to bring for the next step to be larger.
const PROPORTIONAL: f64 = 0.6;
/// Where more lanes brought nothing they are not tried again while the rate stays this near to what it was.
const SATED: f64 = 0.03;
/// Of the lanes that stand in the queue this share is given up at first: it may be about to empty, since they have
/// overshot. Once that has cost nothing, as many as stand there.
const TENTATIVE: f64 = 0.5;
/// What fewer lanes may cost.
const COST: f64 = 0.04;
/// The growth within a window that shows that lanes are still on their way up, and how often that is waited for.
const GROWTH: f64 = 1.2;
const EXTENSIONS: u32 = 2;
/// How much more lanes are tried where a link has become free.
const FREED: u16 = 8;
/// How long all lanes are kept that random losses slow down, in seconds.
const SURGE_S: f64 = 16.0;
/// How long what was found is kept, in seconds, at first and at most.
const DWELL_S: f64 = 4.0;
const MOST_DWELL_S: f64 = 64.0;
/// A window that differs so much from what was measured before, and the next one too, shows another link.
const SHIFT: f64 = 1.35;
/// The weight of the newest window in the running mean.
const WEIGHT: f64 = 0.25;
/// Changes that are told of.
const MOST_HISTORY: usize = 64;

/// Whether a round trip is so much longer than the shortest that it has stood in a queue.
pub(crate) fn has_queued(trip_s: f64, shortest_s: f64) -> bool {
    trip_s > shortest_s + (QUEUED * shortest_s).clamp(QUEUED_S.0, QUEUED_S.1)
}

/// Between which numbers of lanes to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneRange {
    /// As few as a link that stays full is left with.
    pub least: u16,
    /// To begin with.
    pub start: u16,
    /// As many as may be.
    pub most: u16,
}

impl LaneRange {
    fn in_order(self) -> LaneRange {
        let most = self.most.max(1);
        let start = self.start.clamp(1, most);
        LaneRange { least: self.least.clamp(1, start), start, most }
    }
}

/// What was seen at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// The moment, in seconds since one of the driver's choice.
    pub(crate) at_s: f64,
    /// Bytes that all lanes together have delivered.
    pub(crate) delivered: u64,
    /// Lanes that are there, those that are being given up included.
    pub(crate) lanes: u16,
    /// The round trip now, and the shortest that was seen.
    pub(crate) trip_s: Option<f64>,
    pub(crate) shortest_trip_s: Option<f64>,
    /// The share of the lanes that have something waiting for the link.
    pub(crate) waiting: f64,
}

/// Why the number of lanes is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneReason {
    /// To begin with.
    Start,
    /// The link has room: whether more lanes carry more is being tried.
    Room,
    /// The link is full: whether fewer lanes fill it is being tried.
    Full,
    /// Fewer lanes carried less.
    Loss,
    /// The link has become free.
    Freed,
    /// No more lanes could be made.
    Refused,
    /// What gets lost is lost at random, and the congestion control minds it no more.
    Firm,
    /// What gets lost is lost at random, and slows each lane down.
    Random,
    /// The way to the peer has become another.
    Moved,
}

impl LaneReason {
    /// How it reads.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            LaneReason::Start => "to begin with",
            LaneReason::Room => "the link had room",
            LaneReason::Full => "the link was full",
            LaneReason::Loss => "fewer lanes carried less",
            LaneReason::Freed => "the link became free",
            LaneReason::Refused => "no more lanes could be made",
            LaneReason::Firm => "losses are not minded any more",
            LaneReason::Random => "losses were random",
            LaneReason::Moved => "the mode was changed",
        }
    }
}

/// A change of the number of lanes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneChange {
    /// When, in seconds since the transfer began.
    pub at_s: f64,
    /// How many lanes are wanted from then on.
    pub lanes: u16,
    /// What all lanes together had delivered before, in bytes a second; 0 where nothing was measured yet.
    pub bytes_per_s: f64,
    /// Why.
    pub reason: LaneReason,
}

/// What is being tried, and what there was before.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: u16,
    rate: f64,
}

/// Measurements since a moment.
#[derive(Clone, Copy, Debug)]
struct Window {
    from_s: f64,
    delivered: u64,
    half: Option<(f64, u64)>,
    samples: f64,
    queued: f64,
    /// The sum of the shares of round trips that were spent in the queue.
    queue: f64,
    waiting: f64,
}

/// What a window has shown.
#[derive(Clone, Copy, Debug)]
struct Seen {
    rate: f64,
    /// The share of it in which round trips had queued, and the share of round trips that was.
    full: f64,
    queue: f64,
    waiting: f64,
    /// The second half carried much more than the first.
    grows: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Lanes come or go since a moment, and are all there since another.
    Settling {
        since_s: f64,
        ready_s: Option<f64>,
    },
    Measuring(Window),
}

/// Finds the number of lanes for one session.
#[derive(Debug)]
pub(crate) struct LaneController {
    range: LaneRange,
    wanted: u16,
    phase: Phase,
    trial: Option<Trial>,
    extensions: u32,
    /// The running mean of the rate at the present number, and how many windows in a row were far from it.
    rate: Option<f64>,
    odd: u32,
    /// Whether the link was full in the last window.
    full: bool,
    fullness: Fullness,
    /// When more lanes may be tried again, and when fewer; and how long the next failure keeps from that.
    rise_at_s: f64,
    fall_at_s: f64,
    rise_dwell_s: f64,
    fall_dwell_s: f64,
    factor: u16,
    /// As many lanes as may be were tried since losses have shown to be random.
    surged: bool,
    /// The last trial that was kept was one of fewer lanes.
    fell: bool,
    /// What was carried when more lanes did not carry more.
    sated: Option<f64>,
    trip_s: f64,
    began_s: Option<f64>,
    history: Vec<LaneChange>,
}

impl LaneController {
    pub(crate) fn new(range: LaneRange) -> LaneController {
        let range = range.in_order();
        LaneController {
            range,
            wanted: range.start,
            phase: Phase::Settling { since_s: 0.0, ready_s: None },
            trial: None,
            extensions: 0,
            rate: None,
            odd: 0,
            full: false,
            fullness: Fullness::default(),
            rise_at_s: 0.0,
            fall_at_s: 0.0,
            rise_dwell_s: DWELL_S,
            fall_dwell_s: DWELL_S,
            factor: 2,
            surged: false,
            fell: false,
            sated: None,
            trip_s: UNKNOWN_TRIP_S,
            began_s: None,
            history: Vec::new(),
        }
    }

    /// Keeps the lanes that there are from a moment on, and has as many as to begin with at least: their congestion
    /// control minds no losses. A few of them fill the link, and fewer would not give way to others either.
    pub(crate) fn hold(&mut self, at_s: f64) {
        if self.range.least == self.range.most {
            return;
        }
        let lanes = self.wanted.max(self.range.start);
        self.range = LaneRange { least: lanes, start: lanes, most: lanes };
        self.trial = None;
        self.fullness.calm();
        if lanes != self.wanted {
            self.turn(at_s, lanes, self.rate.unwrap_or(0.0), LaneReason::Firm);
        }
    }

    /// The way to the peer is another from a moment on: nothing holds of what was found, and the number is to be in
    /// another range, with as many as that begins with at least.
    pub(crate) fn relocate(&mut self, at_s: f64, range: LaneRange) {
        self.range = range.in_order();
        let rate = self.rate.take().unwrap_or(0.0);
        (self.trial, self.surged) = (None, false);
        self.forget(at_s);
        self.fullness = Fullness::default();
        let lanes = self.wanted.max(self.range.start).min(self.range.most);
        if lanes != self.wanted {
            self.turn(at_s, lanes, rate, LaneReason::Moved);
        }
    }

    /// How many lanes there are to be.
    pub(crate) fn wanted(&self) -> u16 {
        self.wanted
    }

    /// A transfer begins at a moment, on the lanes that the last one has left.
    pub(crate) fn begin(&mut self, at_s: f64) {
        if let Some(trial) = self.trial.take() {
            self.wanted = trial.before;
        }
        self.phase = Phase::Settling { since_s: at_s, ready_s: None };
        (self.extensions, self.odd, self.fullness) = (0, 0, Fullness::default());
        self.began_s = Some(at_s);
        self.history =
            vec![LaneChange { at_s: 0.0, lanes: self.wanted, bytes_per_s: 0.0, reason: LaneReason::Start }];
    }

    /// What is told of the transfer counts from this moment.
    pub(crate) fn count_from(&mut self, at_s: f64) {
        self.began_s = Some(at_s);
    }

    /// How the number of lanes has changed since the transfer began.
    pub(crate) fn history(&self) -> &[LaneChange] {
        &self.history
    }

    /// As many lanes as may be are tried at once: each is slowed down by what gets lost at random.
    pub(crate) fn surge(&mut self, at_s: f64) {
        if std::mem::replace(&mut self.surged, true) || self.wanted == self.range.most {
            return;
        }
        let before = self.trial.take().map_or(self.wanted, |trial| trial.before);
        let rate = self.rate.unwrap_or(0.0);
        self.trial = Some(Trial { before, rate });
        // So many new lanes fill the queue before they lose anything, which says little.
        self.fall_at_s = at_s + SURGE_S;
        self.turn(at_s, self.range.most, rate, LaneReason::Random);
    }

    /// Whether what losses do to the lanes makes no difference any more: it was told, or there is no choice.
    pub(crate) fn knows_losses(&self) -> bool {
        self.surged || self.range.least == self.range.most
    }

    /// Whether lanes are to fill the link at once: it has become free, and no queue has shown since.
    pub(crate) fn hurries(&self, at_s: f64) -> bool {
        self.fullness.hurries(at_s, self.trip_s)
    }

    /// Takes what was seen. To be called every few hundredths of a second while data flows.
    pub(crate) fn observe(&mut self, sample: &Sample) {
        if self.began_s.is_none() {
            self.begin(sample.at_s);
        }
        self.trip_s = sample.shortest_trip_s.or(sample.trip_s).unwrap_or(self.trip_s);
        let queued =
            sample.trip_s.zip(sample.shortest_trip_s).is_some_and(|(trip, least)| has_queued(trip, least));
        if self.fullness.see(sample, queued, self.trip_s) && self.wanted < self.range.most {
            self.trial = None;
            self.rise(sample.at_s, self.rate.unwrap_or(0.0), LaneReason::Freed);
            return;
        }
        match self.phase {
            Phase::Settling { since_s, ready_s } => self.settle(sample, since_s, ready_s),
            Phase::Measuring(window) => self.measure(sample, window, queued),
        }
    }

    fn settle(&mut self, sample: &Sample, since_s: f64, ready_s: Option<f64>) {
        let waited_s = sample.at_s - since_s;
        let there = match self.trial {
            Some(trial) if trial.before > self.wanted => sample.lanes <= self.wanted,
            _ => sample.lanes >= self.wanted,
        };
        let late = waited_s >= (PATIENCE_TRIPS * self.trip_s).max(PATIENCE_S);
        let ready_s = ready_s.or_else(|| (there || late).then_some(sample.at_s));
        self.phase = Phase::Settling { since_s, ready_s };
        let Some(ready_s) = ready_s else { return };
        if sample.at_s - ready_s < (SETTLE_TRIPS * self.trip_s).max(SETTLE_S) {
            return;
        }
        if let Some(trial) = self.trial.filter(|trial| trial.before < self.wanted)
            && sample.lanes < self.wanted
        {
            // Whoever refuses lanes is not asked for more in this session.
            self.range.most = sample.lanes.max(trial.before);
            self.wanted = self.range.most;
            self.trial = (self.wanted > trial.before).then_some(trial);
            self.tell(sample.at_s, trial.rate, LaneReason::Refused);
        }
        self.open(sample);
    }

    fn open(&mut self, sample: &Sample) {
        self.phase = Phase::Measuring(Window {
            from_s: sample.at_s,
            delivered: sample.delivered,
            half: None,
            samples: 0.0,
            queued: 0.0,
            queue: 0.0,
            waiting: 0.0,
        });
    }

    fn measure(&mut self, sample: &Sample, mut window: Window, queued: bool) {
        window.samples += 1.0;
        window.queued += f64::from(u8::from(queued));
        let trips = sample.trip_s.zip(sample.shortest_trip_s);
        window.queue += trips.map_or(0.0, |(trip, least)| (1.0 - least / trip.max(1e-9)).max(0.0));
        window.waiting += sample.waiting;
        let length_s = (WINDOW_TRIPS * self.trip_s).max(WINDOW_S);
        let elapsed_s = sample.at_s - window.from_s;
        if window.half.is_none() && elapsed_s >= length_s / 2.0 {
            window.half = Some((sample.at_s, sample.delivered));
        }
        self.phase = Phase::Measuring(window);
        if elapsed_s < length_s {
            return;
        }
        let rate_between = |from_s: f64, from: u64| {
            sample.delivered.saturating_sub(from) as f64 / (sample.at_s - from_s).max(1e-6)
        };
        let rate = rate_between(window.from_s, window.delivered);
        let grows = window.half.is_some_and(|(at_s, delivered)| {
            let first = delivered.saturating_sub(window.delivered) as f64 / (at_s - window.from_s).max(1e-6);
            rate_between(at_s, delivered) > GROWTH * first
        });
        let share = |sum: f64| sum / window.samples;
        let (full, queue, waiting) = (share(window.queued), share(window.queue), share(window.waiting));
        self.open(sample);
        self.judge(sample.at_s, Seen { rate, full, queue, waiting, grows });
    }

    /// Decides what a window means.
    fn judge(&mut self, at_s: f64, seen: Seen) {
        let Seen { rate, full, grows, .. } = seen;
        self.full = full >= FULL;
        let Some(trial) = self.trial else {
            // Who is on the way up shows no rate to compare with.
            if grows && self.rate.is_none() && self.extensions < EXTENSIONS && !self.full {
                self.extensions += 1;
                return;
            }
            self.stay(at_s, seen);
            return;
        };
        if self.wanted > trial.before {
            let gain = rate / trial.rate.max(1.0) - 1.0;
            let gained = gain >= GAIN;
            if !gained && self.extensions < EXTENSIONS && !self.full && (grows || gain > GAIN / 2.0) {
                self.extensions += 1;
                return;
            }
            self.restore(at_s);
            let share = f64::from(self.wanted) / f64::from(trial.before) - 1.0;
            let proportional = gain >= PROPORTIONAL * share && full < 1.0 - FULL;
            self.factor = if gained && proportional { 4 } else { 2 };
            if !gained {
                self.rise_at_s = at_s + self.rise_dwell_s;
                self.rise_dwell_s = (2.0 * self.rise_dwell_s).min(MOST_DWELL_S);
                self.sated = Some(rate.max(trial.rate));
            }
        } else if rate < (1.0 - COST) * trial.rate * self.kept(trial.before) {
            self.put_off_fall(at_s);
            self.trial = None;
            self.rate = Some(trial.rate);
            self.turn(at_s, trial.before, rate, LaneReason::Loss);
            return;
        } else {
            self.fell = true;
        }
        self.trial = None;
        self.rate = None;
        self.stay(at_s, seen);
    }

    /// The share of the rate that fewer lanes may leave the link with: of a link that stays full they leave some to
    /// others, but no more than a single connection beside them takes. Whatever is less has been lost.
    fn kept(&self, before: u16) -> f64 {
        let beside_one = |lanes: u16| f64::from(lanes) / (f64::from(lanes) + 1.0);
        if self.full { beside_one(self.wanted) / beside_one(before) } else { 1.0 }
    }

    /// Keeps the number, or begins to try another.
    fn stay(&mut self, at_s: f64, seen: Seen) {
        self.note(seen.rate, at_s);
        if seen.waiting < LINK_BOUND {
            return;
        }
        let mean = self.rate.unwrap_or(seen.rate);
        let share = if self.fell { 1.0 } else { TENTATIVE };
        let in_queue = (f64::from(self.wanted) * seen.queue * share).round() as u16;
        let fewer = self.range.least.max(self.wanted.saturating_sub(in_queue));
        let sated = self.sated.is_some_and(|rate| (mean / rate - 1.0).abs() <= SATED);
        if self.full && fewer < self.wanted && at_s >= self.fall_at_s {
            self.attempt(at_s, fewer, mean, LaneReason::Full);
        } else if seen.full < ROOM && self.wanted < self.range.most && at_s >= self.rise_at_s && !sated {
            self.rise(at_s, mean, LaneReason::Room);
        }
    }

    /// Follows the rate, and forgets what was found if it is another.
    fn note(&mut self, rate: f64, at_s: f64) {
        let Some(mean) = self.rate else {
            self.rate = Some(rate);
            return;
        };
        let odd = rate > SHIFT * mean || SHIFT * rate < mean;
        self.odd = if odd { self.odd + 1 } else { 0 };
        if self.odd >= 2 {
            self.rate = Some(rate);
            self.forget(at_s);
        } else if !odd {
            self.rate = Some(mean + WEIGHT * (rate - mean));
        }
    }

    fn forget(&mut self, at_s: f64) {
        self.odd = 0;
        (self.rise_at_s, self.fall_at_s) = (at_s, at_s);
        (self.rise_dwell_s, self.fall_dwell_s) = (DWELL_S, DWELL_S);
        (self.factor, self.fell, self.sated) = (2, false, None);
    }

    fn rise(&mut self, at_s: f64, rate: f64, reason: LaneReason) {
        let factor = if reason == LaneReason::Freed { FREED } else { self.factor };
        let more = self.wanted.saturating_mul(factor).min(self.range.most);
        self.attempt(at_s, more, rate, reason);
    }

    fn attempt(&mut self, at_s: f64, lanes: u16, rate: f64, reason: LaneReason) {
        self.trial = Some(Trial { before: self.wanted, rate });
        self.turn(at_s, lanes, rate, reason);
    }

    /// More lanes are there again. If some were given up before, they were missed, though it did not show at once.
    fn restore(&mut self, at_s: f64) {
        if std::mem::take(&mut self.fell) {
            self.put_off_fall(at_s);
        }
    }

    /// Fewer lanes were not enough.
    fn put_off_fall(&mut self, at_s: f64) {
        self.fall_at_s = at_s + self.fall_dwell_s;
        self.fall_dwell_s = (2.0 * self.fall_dwell_s).min(MOST_DWELL_S);
    }

    fn turn(&mut self, at_s: f64, lanes: u16, rate: f64, reason: LaneReason) {
        self.wanted = lanes;
        (self.extensions, self.full) = (0, false);
        self.fullness.unsettle();
        self.phase = Phase::Settling { since_s: at_s, ready_s: None };
        self.tell(at_s, rate, reason);
    }

    fn tell(&mut self, at_s: f64, bytes_per_s: f64, reason: LaneReason) {
        if self.history.len() < MOST_HISTORY {
            let at_s = at_s - self.began_s.unwrap_or(at_s);
            self.history.push(LaneChange { at_s, lanes: self.wanted, bytes_per_s, reason });
        }
    }
}
