//! What was chosen, and where that led.

use super::Action;
use super::told::Reason;

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
    /// Whether everything waited for the link at some time.
    pub link_was_limit: bool,
    /// What the link was taken to carry at first, since it did in an earlier session.
    pub known_bytes_per_s: Option<f64>,
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
