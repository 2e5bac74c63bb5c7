//! What a run is to meet, and what it has met.

use std::ops::AddAssign;

#[derive(Clone, Copy)]
pub struct Trouble {
    pub lost_lanes: u64,
    /// One comes about every so many steps.
    pub loss_every: u64,
    pub flipped_bits: u64,
    pub restarts: u64,
    pub stale_base: bool,
    /// Lanes that wait send again what others have under way.
    pub slow_lanes: bool,
}

/// What happened in a run.
#[derive(Debug, Default)]
pub struct Met {
    pub lanes_lost: u64,
    pub resent: u64,
    pub helped: u64,
    pub came_before: u64,
    pub nacks: u64,
    pub held: u64,
    pub same: u64,
    pub sent: u64,
    pub differences: u64,
    pub reoffered: u64,
    pub recommitted: u64,
    /// Of transfers that were in place, or about to be, when they were offered again.
    pub answered_offers: u64,
    pub settled: u64,
    pub late: u64,
    pub flips_in_frames: u64,
    pub flips_in_bodies: u64,
    pub torn_ledgers: u64,
    pub spoiled: u64,
    pub later_transfers: u64,
    pub dictionaries_given: u64,
    pub dictionaries_declined: u64,
    pub with_dictionary: u64,
}

impl AddAssign for Met {
    fn add_assign(&mut self, other: Met) {
        self.lanes_lost += other.lanes_lost;
        self.resent += other.resent;
        self.helped += other.helped;
        self.came_before += other.came_before;
        self.nacks += other.nacks;
        self.held += other.held;
        self.same += other.same;
        self.sent += other.sent;
        self.differences += other.differences;
        self.reoffered += other.reoffered;
        self.recommitted += other.recommitted;
        self.answered_offers += other.answered_offers;
        self.settled += other.settled;
        self.late += other.late;
        self.flips_in_frames += other.flips_in_frames;
        self.flips_in_bodies += other.flips_in_bodies;
        self.torn_ledgers += other.torn_ledgers;
        self.spoiled += other.spoiled;
        self.later_transfers += other.later_transfers;
        self.dictionaries_given += other.dictionaries_given;
        self.dictionaries_declined += other.dictionaries_declined;
        self.with_dictionary += other.with_dictionary;
    }
}
