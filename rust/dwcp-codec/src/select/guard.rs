//! Measures now and then what one action for everything would give, and stays with it where that is faster.

use super::Action;

/// How much faster a fixed action has to be beyond doubt, in standard errors, to be held or let go; and how much slower
/// it may be expected to be for a trial of it.
const FASTER: f64 = 0.97;
const DOUBT: f64 = 1.5;
const WORTH_TRYING: f64 = 1.1;
/// What a trial may cost beyond what the controller would choose, in blocks. What is held may cost so much of the time
/// that it is held for.
const TRIAL_EXCESS: f64 = 4.0;
const HELD_EXCESS: f64 = 0.4;
/// Blocks before the first trial, and between trials that have shown nothing at first and at most.
const FIRST: u64 = 256;
const INTERVAL: u64 = 192;
const MOST_INTERVAL: u64 = 16_384;
/// Blocks for which a fixed action is stayed with at first and at most.
const HOLD: u64 = 96;
const MOST_HOLD: u64 = 4_096;
/// What is left of the controller's own pace with each new block.
const DECAY: f64 = 0.97;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The controller.
    Free,
    /// A trial of the action.
    Trial(Action),
    /// The action, which a trial has shown to be faster.
    Held(Action),
}

/// Seconds for a byte, measured on blocks one by one.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    blocks: f64,
    bytes: f64,
    seconds: f64,
    /// The sum of the squares of the seconds of blocks.
    squares: f64,
}

impl Pace {
    fn add(&mut self, bytes: f64, seconds: f64, decay: f64) {
        for sum in [&mut self.blocks, &mut self.bytes, &mut self.seconds, &mut self.squares] {
            *sum *= decay;
        }
        self.blocks += 1.0;
        self.bytes += bytes;
        self.seconds += seconds;
        self.squares += seconds * seconds;
    }

    fn mean(&self) -> f64 {
        self.seconds / self.bytes.max(1.0)
    }

    /// The square of the standard error of the mean.
    fn doubt(&self) -> f64 {
        let variance = (self.squares / self.blocks - (self.seconds / self.blocks).powi(2)).max(0.0);
        variance * self.blocks / self.bytes.max(1.0).powi(2)
    }

    /// Whether this is faster than `other` beyond doubt.
    fn beats(&self, other: &Pace) -> bool {
        self.mean() + DOUBT * (self.doubt() + other.doubt()).sqrt() < FASTER * other.mean()
    }
}

/// Guards against being slower than one action for everything.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    mode: Mode,
    phase: u32,
    /// Blocks that were decided on, in all and in this phase.
    blocks: u64,
    phase_blocks: u64,
    /// Blocks of a trial, and how many of them are still influenced by what was before.
    trial_blocks: u64,
    edge_blocks: u64,
    /// Of this phase: blocks that were acknowledged, and the pace of those after the edge.
    acked: u64,
    pace: Pace,
    /// What this phase has cost beyond what the controller would have chosen, in blocks.
    excess: f64,
    /// While the controller decides.
    free: Option<Pace>,
    /// Of the action that is held.
    held: Pace,
    next_trial: u64,
    interval: u64,
    hold: u64,
    /// The controller has to show itself against what was held.
    rival: Option<Action>,
    trips: u32,
    trials: u32,
}

impl Guard {
    pub(super) fn new(lanes: u32) -> Guard {
        let lanes = u64::from(lanes);
        Guard {
            mode: Mode::Free,
            phase: 0,
            blocks: 0,
            phase_blocks: 0,
            trial_blocks: 8.max(2 * lanes),
            edge_blocks: lanes + 1,
            acked: 0,
            pace: Pace::default(),
            excess: 0.0,
            free: None,
            held: Pace::default(),
            next_trial: FIRST,
            interval: INTERVAL,
            hold: HOLD,
            rival: None,
            trips: 0,
            trials: 0,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn phase(&self) -> u32 {
        self.phase
    }

    pub(super) fn phase_blocks(&self) -> u64 {
        self.phase_blocks
    }

    pub(super) fn trips(&self) -> u32 {
        self.trips
    }

    pub(super) fn trials(&self) -> u32 {
        self.trials
    }

    /// Who decides on the next block.
    pub(super) fn take(&mut self) -> Mode {
        self.blocks += 1;
        self.phase_blocks += 1;
        self.mode
    }

    /// Ends phases that are over, and begins a trial where it is time for one: of `fixed` actions with the time that
    /// they are expected to take against the present one.
    pub(super) fn consider(&mut self, fixed: [(Action, f64); 2]) {
        match self.mode {
            Mode::Free => {
                let known = self.free.is_some() && self.rival.is_none();
                if known && self.blocks >= self.next_trial {
                    // The two take turns.
                    let turn = self.trials as usize % 2;
                    let tried = [fixed[turn], fixed[1 - turn]];
                    match tried.into_iter().find(|(_, times)| *times < WORTH_TRYING) {
                        Some((action, _)) => {
                            self.trials += 1;
                            self.enter(Mode::Trial(action));
                        }
                        None => self.next_trial = self.blocks + self.interval / 4,
                    }
                }
            }
            // Where its blocks are not acknowledged, the link has a queue, and there is nothing to learn.
            Mode::Trial(_) if self.phase_blocks >= 4 * self.trial_blocks => self.end_trial(),
            Mode::Held(action) if self.phase_blocks >= self.hold => self.let_go(action),
            Mode::Trial(_) | Mode::Held(_) => {}
        }
    }

    /// The next block would cost so much more than what the controller would choose, as a share of that. That ends what
    /// was decided on when content or link were others.
    pub(super) fn charge(&mut self, excess: f64) {
        self.excess += excess;
        match self.mode {
            Mode::Trial(_) if self.excess > TRIAL_EXCESS => self.end_trial(),
            Mode::Held(action) if self.excess > HELD_EXCESS * self.hold as f64 => self.let_go(action),
            _ => {}
        }
    }

    fn let_go(&mut self, action: Action) {
        self.rival = Some(action);
        self.free = None;
        self.enter(Mode::Free);
    }

    /// Takes note of an acknowledged block that was decided on in `phase`, `between` seconds after the one before.
    pub(super) fn delivered(&mut self, raw_bytes: u64, between: Option<f64>, phase: u32) {
        let Some(between) = between.filter(|_| phase == self.phase) else { return };
        self.acked += 1;
        if self.acked <= self.edge_blocks {
            return;
        }
        let decay = if self.mode == Mode::Free { DECAY } else { 1.0 };
        self.pace.add(raw_bytes as f64, between, decay);
        if self.acked < self.edge_blocks + self.trial_blocks {
            return;
        }
        match self.mode {
            Mode::Free => {
                self.free = Some(self.pace);
                if let Some(rival) = self.rival.take() {
                    if self.held.beats(&self.pace) {
                        self.hold = (2 * self.hold).min(MOST_HOLD);
                        self.enter(Mode::Held(rival));
                    } else {
                        (self.hold, self.interval) = (HOLD, INTERVAL);
                        self.next_trial = self.blocks + self.interval;
                    }
                }
            }
            Mode::Trial(action) => {
                if self.free.is_some_and(|free| self.pace.beats(&free)) {
                    self.held = self.pace;
                    self.trips += 1;
                    self.enter(Mode::Held(action));
                } else {
                    self.end_trial();
                }
            }
            Mode::Held(_) => self.held = self.pace,
        }
    }

    fn end_trial(&mut self) {
        self.interval = (2 * self.interval).min(MOST_INTERVAL);
        self.next_trial = self.blocks + self.interval;
        self.enter(Mode::Free);
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.phase += 1;
        self.phase_blocks = 0;
        self.acked = 0;
        self.pace = Pace::default();
        self.excess = 0.0;
    }
}
