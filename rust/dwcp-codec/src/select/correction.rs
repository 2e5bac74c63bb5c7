//! What the last blocks teach about the estimates for the next ones.

use super::Action;
use super::told::{Decision, Estimate, Look};

const COUNT: usize = Action::ALL.len();
/// The weight of the newest block.
const WEIGHT: f64 = 0.1;
/// Bounds of a correction's logarithm.
const MOST: f64 = 2.0;
/// A block of which less than this is left, or was expected to be, tells nothing of a model's errors on full ones: how
/// far off the logarithm of next to nothing is may be anything.
const LEAST_RATIO: f64 = 1.0 / 16.0;
/// Bounds of how much the content can shrink against what is usual, as a power of it.
const STRENGTH: (f64, f64) = (0.02, 6.0);

/// What compressible blocks usually give, where no model says more, by the number of the action.
pub(super) const PRIORS: [Estimate; COUNT] = [
    Estimate { ratio: 1.0, ns_per_byte: 0.0 },
    Estimate { ratio: 0.55, ns_per_byte: 1.1 },
    Estimate { ratio: 0.50, ns_per_byte: 1.5 },
    Estimate { ratio: 0.48, ns_per_byte: 1.4 },
    Estimate { ratio: 0.42, ns_per_byte: 1.9 },
    Estimate { ratio: 0.36, ns_per_byte: 2.3 },
    Estimate { ratio: 0.345, ns_per_byte: 3.6 },
    Estimate { ratio: 0.325, ns_per_byte: 10.0 },
    Estimate { ratio: 0.315, ns_per_byte: 18.0 },
    Estimate { ratio: 0.70, ns_per_byte: 1.2 },
];

/// Corrections of logarithms: one that all actions share and one for each.
#[derive(Clone, Debug, Default)]
struct Correction {
    shared: f64,
    own: [f64; COUNT],
    learned: u32,
}

impl Correction {
    fn of(&self, action: usize) -> f64 {
        self.shared + self.own[action]
    }

    fn learn(&mut self, action: usize, error: f64) {
        let error = error.clamp(-MOST, MOST);
        // The first blocks tell at once how fast this machine is.
        self.learned = self.learned.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.learned));
        let (shared, own) = (self.shared, self.own[action]);
        self.shared = (shared + weight * (error - own - shared)).clamp(-MOST, MOST);
        self.own[action] = (own + WEIGHT * (error - shared - own)).clamp(-MOST, MOST);
    }
}

/// Blocks that [`Corrections::calibrate`] counts for.
const CALIBRATION_BLOCKS: u32 = 4;

/// How far estimates were off lately.
#[derive(Clone, Debug)]
pub(super) struct Corrections {
    ratio: Correction,
    time: Correction,
    /// Without a model: how much the content shrinks against what is usual, as a power of that.
    strength: f64,
    /// Without a model, what an action gives beyond that.
    means: [f64; COUNT],
}

impl Default for Corrections {
    fn default() -> Corrections {
        Corrections {
            ratio: Correction::default(),
            time: Correction::default(),
            strength: 1.0,
            means: [0.0; COUNT],
        }
    }
}

impl Corrections {
    /// Takes times to be so many times what a model says, until blocks tell more.
    pub(super) fn calibrate(&mut self, slowness: f64) {
        self.time.shared = slowness.max(1e-3).ln().clamp(-MOST, MOST);
        self.time.learned = CALIBRATION_BLOCKS;
    }

    /// What each action is expected to make of a block.
    pub(super) fn estimates(&self, look: Look<'_>) -> [Estimate; COUNT] {
        std::array::from_fn(|action| {
            if action == Action::None.index() {
                return PRIORS[action];
            }
            let (log_ratio, ns_per_byte) = match look {
                Look::Predicted(all) => {
                    (all[action].ratio.max(1e-6).ln() + self.ratio.of(action), all[action].ns_per_byte)
                }
                _ => (self.usual(action) + self.means[action], PRIORS[action].ns_per_byte),
            };
            Estimate {
                ratio: log_ratio.min(0.0).exp(),
                ns_per_byte: ns_per_byte.max(0.0) * self.time.of(action).exp(),
            }
        })
    }

    /// Learns what an action other than none has made of a block.
    pub(super) fn learn(&mut self, decision: &Decision, actual: Estimate) {
        let action = decision.action.index();
        let expected = decision.expected;
        if decision.predicted && actual.ratio.min(expected.ratio) < LEAST_RATIO {
            return;
        }
        let log_ratio = actual.ratio.clamp(1e-6, 1.0).ln();
        // What was expected had the correction of that time in it; that it may have moved since does no harm.
        let time_error = (actual.ns_per_byte.max(1e-3) / expected.ns_per_byte.max(1e-3)).ln();
        self.time.learn(action, time_error + self.time.of(action));
        if decision.predicted {
            let error = log_ratio - expected.ratio.max(1e-6).ln();
            self.ratio.learn(action, error + self.ratio.of(action));
            return;
        }
        let strength = log_ratio / PRIORS[action].ratio.ln();
        self.strength = (self.strength + WEIGHT * (strength - self.strength)).clamp(STRENGTH.0, STRENGTH.1);
        let beyond = log_ratio - self.usual(action);
        self.means[action] = (self.means[action] + WEIGHT * (beyond - self.means[action])).clamp(-MOST, MOST);
    }

    fn usual(&self, action: usize) -> f64 {
        self.strength * PRIORS[action].ratio.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::super::controller::Controller;
    use super::super::told::Settings;
    use super::*;

    #[test]
    fn blocks_of_which_next_to_nothing_is_left_teach_nothing_of_full_ones() {
        let settings = Settings {
            lanes: 1,
            cores: 1,
            round_trip_s: None,
            is_local: false,
            limit_bytes_per_s: None,
            known: None,
        };
        let mut decision = Controller::new(settings).decide(Look::Unseen, None, 1 << 20, 0.0);
        (decision.action, decision.predicted) = (Action::Zstd1, true);
        let full = [Estimate { ratio: 0.5, ns_per_byte: 2.0 }; COUNT];
        let untaught = Corrections::default().estimates(Look::Predicted(&full));
        let mut taught = |expected, actual| {
            let mut corrections = Corrections::default();
            decision.expected = Estimate { ratio: expected, ns_per_byte: 0.01 };
            corrections.learn(&decision, Estimate { ratio: actual, ns_per_byte: 0.1 });
            corrections.estimates(Look::Predicted(&full))
        };
        for (expected, actual) in [(0.002, 1e-6), (0.5, 0.01), (0.01, 0.5)] {
            assert_eq!(taught(expected, actual), untaught, "{expected} {actual}");
        }
        assert_ne!(taught(0.5, 0.4), untaught);
    }
}
