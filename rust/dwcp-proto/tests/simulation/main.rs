//! Sender and receiver sessions over a simulated link: lanes of different latency that are lost, cut and altered at
//! random moments, slow stores, stale bases and receivers that start anew. Time is virtual, every run follows its seed.
#![allow(clippy::unwrap_used)]

mod disk;
mod link;
mod met;
mod sources;
mod tail;
mod world;

use met::{Met, Trouble};
use world::World;

/// Runs seeds and adds up what they met, so that a test can tell whether its trouble happened at all.
fn run(seeds: std::ops::Range<u64>, trouble: Trouble) -> Met {
    run_in(seeds, trouble, |world| world)
}

fn run_in(seeds: std::ops::Range<u64>, trouble: Trouble, arrange: impl Fn(World) -> World) -> Met {
    let mut met = Met::default();
    for seed in seeds {
        met += arrange(World::new(seed, trouble)).run();
    }
    met
}

const QUIET: Trouble = Trouble {
    lost_lanes: 0,
    loss_every: 150,
    flipped_bits: 0,
    restarts: 0,
    stale_base: false,
    slow_lanes: false,
};

#[test]
fn undisturbed_transfer_sends_every_block_once() {
    let met = run(0..30, QUIET);
    assert_eq!((met.lanes_lost, met.resent, met.nacks), (0, 0, 0));
    assert!(met.held == 0 && met.same > 0 && met.sent > 0 && met.differences > 0, "{met:?}");
    assert_eq!(met.later_transfers, 60, "a session without losses carries more than one transfer");
    assert!(
        met.dictionaries_given > 0 && met.dictionaries_declined > 0 && met.with_dictionary > 0,
        "{met:?}"
    );
    assert!(met.dictionaries_given < 30, "one is given once in a session: {met:?}");
}

#[test]
fn lost_lanes_cost_time_but_no_bytes() {
    let met = run(100..220, Trouble { lost_lanes: 6, ..QUIET });
    assert!(met.resent > 0 && met.reoffered > 0 && met.recommitted > 0 && met.late > 0, "{met:?}");
    assert!(met.settled > 0, "FINISH never came before the last block: {met:?}");
}

#[test]
fn state_that_goes_with_its_offer_is_put_in_place_once_whatever_lane_is_lost() {
    let losses = Trouble { lost_lanes: 8, loss_every: 25, ..QUIET };
    let met = run_in(2_000..2_400, losses, World::small);
    assert!(met.reoffered > 0 && met.answered_offers > 0 && met.late > 0, "{met:?}");
    let slow = Trouble { slow_lanes: true, flipped_bits: 2, restarts: 1, ..losses };
    let met = run_in(3_000..3_400, slow, World::small);
    assert!(met.reoffered > 0 && met.flips_in_frames > 0, "{met:?}");
}

#[test]
fn altered_bytes_are_never_taken() {
    let met = run(300..400, Trouble { flipped_bits: 6, ..QUIET });
    assert!(met.flips_in_frames > 0 && met.flips_in_bodies > 0 && met.resent > 0, "{met:?}");
}

#[test]
fn receiver_that_starts_anew_is_sent_the_rest_only() {
    let met = run(500..600, Trouble { restarts: 3, lost_lanes: 2, ..QUIET });
    assert!(met.held > 0 && met.torn_ledgers > 0 && met.spoiled > 0, "{met:?}");
}

#[test]
fn stale_base_is_refused_and_the_block_comes_in_full() {
    let met = run(700..760, Trouble { stale_base: true, ..QUIET });
    assert!(met.nacks > 0 && met.lanes_lost == 0, "{met:?}");
}

#[test]
fn blocks_of_slow_lanes_that_go_again_are_written_once() {
    let met = run(1_300..1_400, Trouble { slow_lanes: true, ..QUIET });
    assert!(met.helped > 50 && met.came_before > 0 && met.resent == 0, "{met:?}");
    let met = run(1_400..1_600, Trouble { slow_lanes: true, lost_lanes: 8, restarts: 1, ..QUIET });
    assert!(met.helped > 100 && met.resent > 0 && met.lanes_lost > 0, "{met:?}");
}

#[test]
fn everything_at_once_ends_with_equal_bytes() {
    let met = run(
        1_000..1_200,
        Trouble { lost_lanes: 6, flipped_bits: 3, restarts: 2, stale_base: true, slow_lanes: true, ..QUIET },
    );
    assert!(met.nacks > 0 && met.held > 0 && met.flips_in_bodies > 0 && met.lanes_lost > 0, "{met:?}");
}
