//! The controller over a link in virtual time: lanes that find their pace, a queue, loss, and others on the same link.

use super::{LaneController, LaneRange, LaneReason, Sample};

const STEP_S: f64 = 0.05;
const SEGMENT: f64 = 1_448.0;
const DEFAULT: LaneRange = LaneRange { least: 3, start: 16, most: 64 };

#[derive(Clone, Copy)]
struct Link {
    mbps: f64,
    trip_s: f64,
    /// What the congestion control lets one lane carry for the loss that there is; whatever there is without any.
    lane_mbps: f64,
    queue_s: f64,
    /// Whether another connection takes its share of a full link.
    rival: bool,
    /// The share of what the link takes that the processors can make.
    processors: f64,
}

const CLEAN: Link =
    Link { mbps: 500.0, trip_s: 0.1, lane_mbps: 1e4, queue_s: 0.05, rival: false, processors: 9.0 };

/// Lanes over a link that may change.
struct World {
    link: Link,
    controller: LaneController,
    now_s: f64,
    delivered: f64,
    /// The pace of each lane in bytes a second; those that are on their way come at a moment.
    paces: Vec<f64>,
    coming_s: Vec<f64>,
    queued_s: f64,
    random: u64,
    wave: f64,
}

impl World {
    fn new(link: Link, range: LaneRange, seed: u64) -> World {
        World {
            link,
            controller: LaneController::new(range),
            now_s: 0.0,
            delivered: 0.0,
            paces: Vec::new(),
            coming_s: Vec::new(),
            queued_s: 0.0,
            random: seed.wrapping_mul(2).wrapping_add(1),
            wave: 0.0,
        }
    }

    /// About a tenth of the mean up and down, which lasts for some steps.
    fn weather(&mut self) -> f64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = (self.random >> 33) as f64 / f64::from(1_u32 << 31) - 0.5;
        self.wave = 0.6 * self.wave + 0.25 * draw;
        1.0 + self.wave
    }

    fn step(&mut self) {
        let link = self.link;
        self.now_s += STEP_S;
        let wanted = usize::from(self.controller.wanted());
        let due = |at_s: &f64| *at_s <= self.now_s;
        let arrived = self.coming_s.iter().filter(|at| due(at)).count();
        self.coming_s.retain(|at_s| *at_s > self.now_s);
        self.paces.extend(std::iter::repeat_n(10.0 * SEGMENT / link.trip_s, arrived));
        while self.paces.len() + self.coming_s.len() < wanted {
            self.coming_s.push(self.now_s + 3.0 * link.trip_s);
        }
        self.paces.truncate(wanted);
        let capacity = link.mbps * 1e6 / 8.0;
        let cap = (link.lane_mbps * 1e6 / 8.0).min(capacity);
        let growth = 2_f64.powf(STEP_S / link.trip_s);
        self.paces.iter_mut().for_each(|pace| *pace = (*pace * growth).min(cap));
        let weather = self.weather();
        let demand = self.paces.iter().sum::<f64>() * weather;
        let made = link.processors * capacity;
        let full = demand.min(made) >= capacity;
        if full {
            let share = capacity / self.paces.len() as f64;
            self.paces.iter_mut().for_each(|pace| *pace = pace.min(2.0 * share));
        }
        let lanes = self.paces.len() as f64;
        let ours = if link.rival { lanes / (lanes + 1.0) } else { 1.0 };
        self.queued_s = if full || link.rival { link.queue_s * 0.8 } else { self.queued_s * 0.3 };
        self.delivered += demand.min(made).min(capacity * ours) * STEP_S;
        self.controller.observe(&Sample {
            at_s: self.now_s,
            delivered: self.delivered as u64,
            lanes: self.paces.len() as u16,
            trip_s: Some(link.trip_s + self.queued_s),
            shortest_trip_s: Some(link.trip_s),
            waiting: if made < demand.min(capacity) { 0.1 } else { 1.0 },
        });
    }

    /// Lets time pass; gives the bits a second that were carried meanwhile, in millions.
    fn run(&mut self, seconds: f64) -> f64 {
        let (before, start_s) = (self.delivered, self.now_s);
        while self.now_s < start_s + seconds {
            self.step();
        }
        (self.delivered - before) * 8e-6 / (self.now_s - start_s)
    }
}

#[test]
fn lossy_link_is_given_all_lanes_within_seconds() {
    for seed in 0..50 {
        let mut world = World::new(Link { lane_mbps: 1.3, ..CLEAN }, DEFAULT, seed);
        world.run(4.0);
        assert_eq!(world.controller.wanted(), 64, "{:?}", world.controller.history());
        let carried = world.run(40.0);
        assert!(carried > 0.97 * 64.0 * 1.3, "{carried}: {:?}", world.controller.history());
    }
}

#[test]
fn link_that_one_lane_fills_is_left_with_a_few() {
    for seed in 0..50 {
        let mut world = World::new(CLEAN, DEFAULT, seed);
        world.run(8.0);
        let carried = world.run(20.0);
        let controller = &world.controller;
        assert!(controller.wanted() <= 4 && carried > 490.0, "{carried}: {:?}", controller.history());
        // No more at once than what stands in the queue.
        let steps = controller.history().windows(2).map(|pair| (pair[0].lanes, pair[1].lanes));
        let queued = |before: u16| (f64::from(before) * 0.04 / 0.14).ceil() as u16;
        assert!(steps.clone().any(|(before, after)| after < before));
        assert!(steps.into_iter().all(|(before, after)| after + queued(before) >= before));
    }
}

#[test]
fn number_settles_where_the_link_is_full() {
    for lane_mbps in [20.0, 28.0, 56.0, 112.0] {
        for seed in 0..30 {
            let mut world = World::new(Link { lane_mbps, ..CLEAN }, DEFAULT, seed);
            let carried = world.run(5.0).max(world.run(25.0));
            let history = world.controller.history();
            assert!(carried > 0.93 * 500.0, "{lane_mbps} a lane, {carried}: {history:?}");
            let changes = history.len();
            assert!(changes <= 14, "{lane_mbps} a lane, {changes} changes: {history:?}");
        }
    }
}

#[test]
fn lanes_that_wait_for_processors_are_not_added_to() {
    let mut world = World::new(Link { processors: 0.4, ..CLEAN }, DEFAULT, 1);
    world.run(30.0);
    assert_eq!(world.controller.wanted(), DEFAULT.start);
}

#[test]
fn link_that_becomes_free_is_found_out_within_round_trips() {
    for seed in 0..20 {
        let slow = Link { mbps: 100.0, trip_s: 0.3, lane_mbps: 150.0, ..CLEAN };
        let mut world = World::new(slow, DEFAULT, seed);
        world.run(30.0);
        let before = world.controller.wanted();
        world.link = Link { mbps: 900.0, ..slow };
        let mut hurried = false;
        for _ in 0..60 {
            world.step();
            hurried |= world.controller.hurries(world.now_s);
        }
        assert!(hurried && world.controller.wanted() > before, "{:?}", world.controller.history());
        world.run(10.0);
        let carried = world.run(10.0);
        assert!(carried > 0.8 * 900.0, "{carried}: {:?}", world.controller.history());
        assert!(!world.controller.hurries(world.now_s), "it is full again");
    }
}

#[test]
fn queue_that_has_gone_since_lanes_slowed_down_shows_no_link_that_became_free() {
    let mut controller = LaneController::new(DEFAULT);
    let (mut at_s, mut delivered) = (0.0, 0.0);
    let mut pass = |rate: f64, trip_s, seconds: f64, controller: &mut LaneController| {
        let end_s = at_s + seconds;
        let mut hurried = false;
        while at_s < end_s {
            at_s += STEP_S;
            delivered += rate * STEP_S;
            controller.observe(&Sample {
                at_s,
                delivered: delivered as u64,
                lanes: controller.wanted(),
                trip_s: Some(trip_s),
                shortest_trip_s: Some(0.3),
                waiting: 1.0,
            });
            hurried |= controller.hurries(at_s);
        }
        hurried
    };
    assert!(!pass(30e6, 0.30, 3.0, &mut controller), "it has never been full");
    assert!(!pass(12e6, 0.35, 9.0, &mut controller));
    assert!(!pass(9e6, 0.30, 2.0, &mut controller));
    assert!(!pass(12e6, 0.30, 2.0, &mut controller), "as much as before, without a queue");
    assert!(pass(14e6, 0.30, 0.9, &mut controller));
    assert!(pass(30e6, 0.30, 0.5, &mut controller));
    assert!(!pass(30e6, 0.34, 0.1, &mut controller), "there is a queue again");
}

#[test]
fn loss_that_begins_under_way_is_answered_with_lanes() {
    for seed in 0..20 {
        let mut world = World::new(CLEAN, DEFAULT, seed);
        world.run(20.0);
        world.link = Link { lane_mbps: 1.3, ..CLEAN };
        world.run(15.0);
        assert_eq!(world.controller.wanted(), 64, "{:?}", world.controller.history());
    }
}

#[test]
fn rival_on_a_clean_link_keeps_a_quarter_of_it_and_half_beside_the_polite() {
    let shared = Link { rival: true, ..CLEAN };
    let mut world = World::new(shared, DEFAULT, 3);
    world.run(10.0);
    assert!(world.run(20.0) <= 0.75 * 500.0, "{:?}", world.controller.history());
    let mut world = World::new(shared, LaneRange { least: 1, start: 1, most: 8 }, 3);
    world.run(10.0);
    assert!(world.run(20.0) <= 0.55 * 500.0, "{:?}", world.controller.history());
}

#[test]
fn lanes_that_are_missed_come_back_though_round_trips_stay_long() {
    for seed in 0..20 {
        // Others keep the queue long, and leave more than what all lanes carry.
        let busy = Link { rival: true, lane_mbps: 20.0, ..CLEAN };
        let mut world = World::new(busy, DEFAULT, seed);
        world.run(10.0);
        world.run(40.0);
        let history = world.controller.history();
        assert!(history.iter().any(|change| change.reason == LaneReason::Loss), "{history:?}");
        assert!(history.iter().all(|change| change.lanes >= 4), "{history:?}");
    }
}

#[test]
fn polite_lanes_are_bounded_where_the_link_is_lossy() {
    let range = LaneRange { least: 1, start: 1, most: 8 };
    let mut world = World::new(Link { lane_mbps: 1.3, ..CLEAN }, range, 4);
    world.run(20.0);
    assert_eq!(world.controller.wanted(), 8);
}

#[test]
fn peer_that_refuses_lanes_is_not_asked_again() {
    let mut controller = LaneController::new(LaneRange { start: 8, ..DEFAULT });
    let mut asked = 0;
    for step in 0..1_200_u32 {
        let lanes = controller.wanted().min(10);
        let at_s = f64::from(step) * STEP_S;
        let delivered = (at_s * 1e6) as u64;
        asked += u32::from(controller.wanted() > 10 && step % 200 == 0);
        let (trip_s, shortest_trip_s) = (Some(0.1), Some(0.1));
        controller.observe(&Sample { at_s, delivered, lanes, trip_s, shortest_trip_s, waiting: 1.0 });
    }
    let refused = controller.history().iter().filter(|change| change.reason == LaneReason::Refused).count();
    assert_eq!(refused, 1, "{:?}", controller.history());
    assert!(asked <= 1 && controller.wanted() <= 10, "{:?}", controller.history());
}

#[test]
fn lanes_that_mind_no_losses_are_kept_as_they_are() {
    let mut world = World::new(CLEAN, DEFAULT, 1);
    world.run(8.0);
    assert!(world.controller.wanted() < DEFAULT.start);
    for _ in 0..2 {
        world.controller.hold(world.now_s);
        world.run(20.0);
        assert_eq!(world.controller.wanted(), DEFAULT.start, "{:?}", world.controller.history());
    }
    assert_eq!(world.controller.history().last().map(|change| change.reason), Some(LaneReason::Firm));
}

#[test]
fn lanes_that_random_losses_slow_down_are_all_there_at_once() {
    let mut world = World::new(Link { lane_mbps: 4.0, ..CLEAN }, DEFAULT, 1);
    world.run(1.0);
    world.controller.surge(world.now_s);
    assert_eq!(world.controller.wanted(), 64);
    world.run(20.0);
    world.controller.surge(world.now_s);
    assert_eq!(world.controller.wanted(), 64, "{:?}", world.controller.history());
    // Of a link that they fill they leave some to others.
    let mut world = World::new(Link { lane_mbps: 40.0, ..CLEAN }, DEFAULT, 1);
    world.run(1.0);
    world.controller.surge(world.now_s);
    world.run(40.0);
    world.controller.surge(world.now_s);
    assert!((12..=40).contains(&world.controller.wanted()), "{:?}", world.controller.history());
}

#[test]
fn session_whose_way_becomes_long_finds_its_lanes_anew() {
    for seed in 0..20 {
        let near = Link { mbps: 2_000.0, trip_s: 0.001, queue_s: 0.001, ..CLEAN };
        let fixed = LaneRange { least: 4, start: 4, most: 4 };
        let mut world = World::new(near, fixed, seed);
        world.run(10.0);
        assert_eq!(world.controller.wanted(), 4);
        world.link = Link { lane_mbps: 1.3, ..CLEAN };
        world.controller.relocate(world.now_s, DEFAULT);
        assert_eq!(world.controller.wanted(), DEFAULT.start);
        world.run(15.0);
        assert_eq!(world.controller.wanted(), 64, "{:?}", world.controller.history());
        world.link = near;
        world.controller.relocate(world.now_s, fixed);
        world.run(10.0);
        assert_eq!(world.controller.wanted(), 4);
    }
}
