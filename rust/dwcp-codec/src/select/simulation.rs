//! The controller in virtual time: lanes on a few cores before a link with a bounded queue.

use super::Action;
use super::controller::{Controller, Look, Outcome, Reason, Settings};
pub(super) use super::controller::{Delivery, Estimate};

const BLOCK: f64 = 1_048_576.0;
pub(super) const MBPS: f64 = 125_000.0;
const READ_NS: f64 = 0.12;
const WRITE_NS: f64 = 0.35;
const COUNT: usize = Action::ALL.len();

/// Ratio and nanoseconds for each byte, as measured on real blocks of such content, by the number of the action.
pub(super) type Content = [(f64, f64); COUNT];

pub(super) const NOISE: Content = [
    (1.0, 0.0),
    (1.0, 0.15),
    (1.0, 0.3),
    (1.0, 0.4),
    (1.0, 0.5),
    (1.0, 0.8),
    (1.0, 1.0),
    (1.0, 2.0),
    (1.0, 3.0),
    (1.0, 1.0),
];
pub(super) const TEXT: Content = [
    (1.0, 0.0),
    (0.41, 1.4),
    (0.336, 1.87),
    (0.335, 1.9),
    (0.271, 2.17),
    (0.231, 2.25),
    (0.216, 2.95),
    (0.195, 9.0),
    (0.187, 16.0),
    (0.9, 1.5),
];
/// Pages of which most are zero, as in the memory of a machine.
pub(super) const SPARSE: Content = [
    (1.0, 0.0),
    (0.06, 0.22),
    (0.055, 0.25),
    (0.05, 0.3),
    (0.048, 0.35),
    (0.045, 0.4),
    (0.043, 0.5),
    (0.04, 1.5),
    (0.039, 3.0),
    (0.5, 1.0),
];
pub(super) const HEAP: Content = [
    (1.0, 0.0),
    (0.40, 0.8),
    (0.36, 1.05),
    (0.35, 1.1),
    (0.31, 1.35),
    (0.27, 1.65),
    (0.255, 2.4),
    (0.24, 7.0),
    (0.235, 13.0),
    (0.8, 1.5),
];

/// A machine and a link. Rates and speeds may change at moments.
#[derive(Clone)]
pub(super) struct World {
    pub(super) lanes: usize,
    pub(super) cores: usize,
    /// Bytes a second from a moment on.
    pub(super) rates: Vec<(f64, f64)>,
    /// How much slower processors are from a moment on.
    pub(super) slowness: Vec<(f64, f64)>,
    /// Bytes that wait for the link at most.
    pub(super) queue_bytes: f64,
    pub(super) round_trip_s: f64,
    /// What the receiver takes for a block until it acknowledges it.
    pub(super) answer_s: f64,
    /// The receiver works on the same cores.
    pub(super) is_local: bool,
    /// The controller is told that it does.
    pub(super) is_near: bool,
    /// Whether the controller is told what a model would say, or only a probe's answer.
    pub(super) has_model: bool,
    /// How many times as long as its processor time work takes, since others use the processors.
    pub(super) starved: f64,
    /// How much the model is wrong: a factor for sizes above none and one for times.
    pub(super) wrong: (f64, f64),
}

impl World {
    pub(super) fn new(lanes: usize, cores: usize, mbps: f64) -> World {
        World {
            lanes,
            cores,
            rates: vec![(0.0, mbps * MBPS)],
            slowness: vec![(0.0, 1.0)],
            queue_bytes: lanes as f64 * 2.5e6,
            round_trip_s: 0.0005,
            answer_s: 0.0,
            is_local: false,
            is_near: false,
            has_model: true,
            starved: 1.0,
            wrong: (1.0, 1.0),
        }
    }

    /// How many blocks are worked on at the same time at most.
    fn processors(&self) -> f64 {
        self.lanes.min(self.cores) as f64
    }

    pub(super) fn blind(self) -> World {
        World { has_model: false, ..self }
    }
}

fn at(steps: &[(f64, f64)], time: f64) -> f64 {
    steps.iter().rev().find(|(from, _)| *from <= time).map_or(steps[0].1, |(_, value)| *value)
}

/// When `bytes` have passed a link that begins with them at `start`.
fn passed(rates: &[(f64, f64)], start: f64, bytes: f64) -> f64 {
    let (mut now, mut left) = (start, bytes);
    for (from, _) in rates.iter().filter(|(from, _)| *from > start) {
        let until = now + left / at(rates, now);
        if until <= *from {
            return until;
        }
        left -= (*from - now) * at(rates, now);
        now = *from;
    }
    now + left / at(rates, now)
}

/// Processors, and when they are busy.
struct Cores(Vec<Vec<(f64, f64)>>);

impl Cores {
    fn new(world: &World) -> Cores {
        Cores(vec![Vec::new(); world.cores])
    }

    /// Works for `cpu` seconds on the core that can begin first, at `from` or later; tells when it ends.
    fn work(&mut self, from: f64, cpu: f64) -> f64 {
        let begin = |busy: &Vec<(f64, f64)>| {
            busy.iter().fold(
                from,
                |start, (begin, end)| {
                    if start + cpu <= *begin || *end <= start { start } else { *end }
                },
            )
        };
        let core =
            (0..self.0.len()).min_by(|a, b| begin(&self.0[*a]).total_cmp(&begin(&self.0[*b]))).unwrap();
        let (start, busy) = (begin(&self.0[core]), &mut self.0[core]);
        busy.push((start, start + cpu));
        busy.sort_by(|a, b| a.0.total_cmp(&b.0));
        if busy.len() > 64 {
            busy.remove(0);
        }
        start + cpu
    }
}

/// A block on its way.
struct Flying {
    raw: u64,
    wire: u64,
    ahead: f64,
    phase: u32,
    written_from: f64,
    written: f64,
    acked: f64,
}

pub(super) struct Run {
    pub(super) seconds: f64,
    pub(super) chosen: Vec<(Action, Reason)>,
}

pub(super) enum Policy {
    Auto,
    Fixed(Action),
}

/// Small differences between blocks of one kind, the same in every run.
fn shade(block: usize) -> f64 {
    1.0 + 0.1 * (((block * 7_919 + 13) % 101) as f64 / 50.0 - 1.0)
}

/// A session in virtual time.
struct Session<'w> {
    world: &'w World,
    policy: &'w Policy,
    controller: Controller,
    cores: Cores,
    /// By lane: when it can go on, since when it works on what is next, when it last looked for acknowledgements, and
    /// what is on its way.
    ready: Vec<f64>,
    cycle_from: Vec<f64>,
    polled: Vec<f64>,
    flying: Vec<Vec<Flying>>,
    waiting: Vec<f64>,
    link_free: f64,
    end: f64,
    /// Blocks so far.
    blocks: usize,
}

impl<'w> Session<'w> {
    fn new(world: &'w World, policy: &'w Policy) -> Session<'w> {
        let settings = Settings {
            lanes: world.lanes as u32,
            cores: world.cores as u32,
            round_trip_s: Some(world.round_trip_s),
            is_local: world.is_near,
            limit_bytes_per_s: None,
        };
        let starts: Vec<f64> = (0..world.lanes).map(|lane| lane as f64 * 1e-4).collect();
        Session {
            world,
            policy,
            controller: Controller::new(settings),
            cores: Cores::new(world),
            ready: starts.clone(),
            cycle_from: starts.clone(),
            polled: starts,
            flying: (0..world.lanes).map(|_| Vec::new()).collect(),
            waiting: vec![0.0; world.lanes],
            link_free: 0.0,
            end: 0.0,
            blocks: 0,
        }
    }

    /// Sends `contents` block by block after all that was sent before.
    fn transfer(&mut self, contents: &[Content]) -> Run {
        let begin = self.end;
        for lane in 0..self.world.lanes {
            let ready = begin + lane as f64 * 1e-4;
            (self.ready[lane], self.cycle_from[lane], self.polled[lane]) = (ready, ready, ready);
        }
        self.controller.resume();
        let mut chosen = Vec::new();
        for content in contents {
            chosen.push(self.send(content));
        }
        // Lanes that have nothing left to send wait for acknowledgements.
        let mut answers: Vec<(f64, usize)> = Vec::new();
        for (lane, blocks) in self.flying.iter().enumerate() {
            answers.extend(blocks.iter().map(|block| (block.acked.max(self.ready[lane]), lane)));
        }
        answers.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, lane) in answers {
            self.look(lane, at);
        }
        Run { seconds: self.end - begin, chosen }
    }

    /// A lane takes the acknowledgements that are there.
    fn look(&mut self, lane: usize, now: f64) {
        let (seen, rest) = std::mem::take(&mut self.flying[lane])
            .into_iter()
            .partition::<Vec<_>, _>(|block| block.acked <= now);
        self.flying[lane] = rest;
        for block in seen {
            self.controller.delivered(&Delivery {
                raw_bytes: block.raw,
                wire_bytes: block.wire,
                ahead_bytes: block.ahead,
                phase: block.phase,
                since_s: now - block.written_from,
                latency_s: (self.polled[lane] - block.written).max(0.0),
                at_s: now,
            });
        }
        self.polled[lane] = now;
        let under_way = self.flying[lane].iter().map(|block| (block.wire, now - block.written));
        self.waiting[lane] = self.controller.looked(under_way, self.waiting[lane]);
    }

    /// The lane that can go on first, once nothing is worth waiting for before it decides.
    fn next_lane(&mut self) -> usize {
        loop {
            let first =
                |times: &[f64]| (0..self.world.lanes).min_by(|a, b| times[*a].total_cmp(&times[*b])).unwrap();
            let lane = first(&self.ready);
            let now = self.ready[lane];
            self.look(lane, now);
            let wait = self.controller.wait(now);
            if wait <= 0.0 || matches!(self.policy, Policy::Fixed(_)) {
                return lane;
            }
            // Whoever has sent the first block sees what comes back, and lets the others know.
            let answers = self.flying.iter().flatten().map(|block| block.acked).filter(|at| *at > now);
            let until = answers.fold(now + wait, f64::min).max(now + 1e-6);
            for other in 0..self.world.lanes {
                if self.ready[other] < until {
                    self.look(other, until);
                    (self.ready[other], self.cycle_from[other], self.polled[other]) = (until, until, until);
                }
            }
        }
    }

    fn send(&mut self, content: &Content) -> (Action, Reason) {
        let world = self.world;
        let lane = self.next_lane();
        let now = self.ready[lane];
        let slowness = at(&world.slowness, now);
        let shade = shade(self.blocks);
        self.blocks += 1;
        let true_of = |action: usize| Estimate {
            ratio: if content[action].0 < 1.0 { (content[action].0 * shade).min(1.0) } else { 1.0 },
            ns_per_byte: content[action].1 * shade,
        };
        let wants_look = self.controller.wants_look();
        let decision = {
            let estimates: [Estimate; COUNT] = std::array::from_fn(|action| {
                let real = true_of(action);
                let wrong = if action == 0 { (1.0, 1.0) } else { world.wrong };
                Estimate { ratio: (real.ratio * wrong.0).min(1.0), ns_per_byte: real.ns_per_byte * wrong.1 }
            });
            let look = match (wants_look, world.has_model) {
                (false, _) => Look::Unseen,
                (true, true) => Look::Predicted(&estimates),
                (true, false) if content[Action::Zstd1.index()].0 < 0.97 => Look::Compressible,
                (true, false) => Look::Incompressible,
            };
            self.controller.decide(look, None, BLOCK as u64, now)
        };
        let action = match self.policy {
            Policy::Auto => decision.action,
            Policy::Fixed(action) => *action,
        };
        let real = true_of(action.index());
        let look_cpu = if wants_look && matches!(self.policy, Policy::Auto) { 25e-6 } else { 0.0 };
        let encode_cpu = (real.ns_per_byte * 1e-9 * BLOCK + look_cpu) * slowness;
        let read_cpu = READ_NS * 1e-9 * BLOCK * slowness;
        let wire = (real.ratio * BLOCK).max(1.0);
        let write_cpu = WRITE_NS * 1e-9 * wire * slowness;
        let copied = self.cores.work(now, (encode_cpu + read_cpu + write_cpu) * world.starved);
        let encoded = copied - write_cpu * world.starved;
        let arrived = passed(&world.rates, self.link_free.max(copied), wire);
        // The writer waits until all but a queue's length has gone.
        let queued = (self.link_free.max(copied) - copied) * at(&world.rates, copied) + wire;
        let waits = (queued - world.queue_bytes).max(0.0);
        let written = if waits > 0.0 { passed(&world.rates, copied, waits) } else { copied };
        self.link_free = arrived;
        let stored = if world.is_local {
            let decode = real.ns_per_byte * 0.3 + if action == Action::None { 0.25 } else { 0.35 };
            self.cores.work(arrived, (decode * BLOCK + 0.5 * wire) * 1e-9 * slowness * world.starved)
        } else {
            arrived + world.answer_s
        };
        let acked = stored + world.round_trip_s;
        self.end = self.end.max(acked);
        self.controller.encoded(&decision, BLOCK as u64, wire as u64, encode_cpu);
        let ahead = self.controller.sending(wire as u64, encoded);
        self.flying[lane].push(Flying {
            raw: BLOCK as u64,
            wire: wire as u64,
            ahead,
            phase: decision.phase,
            written_from: encoded,
            written,
            acked,
        });
        self.controller.observe(
            Some(&decision),
            &Outcome {
                raw_bytes: BLOCK as u64,
                wire_bytes: wire as u64,
                encode_cpu_s: encode_cpu,
                write_cpu_s: write_cpu,
                cpu_s: encode_cpu + read_cpu + write_cpu,
                busy_wall_s: encoded - now,
                busy_cpu_s: encode_cpu + read_cpu,
                write_wall_s: written - encoded,
                delay_s: Some(copied - now - encode_cpu - read_cpu - write_cpu),
                cycle_s: written - self.cycle_from[lane],
            },
        );
        self.cycle_from[lane] = written;
        self.ready[lane] = written;
        (action, decision.reason)
    }
}

/// Sends each of the transfers in a session, one after the other.
pub(super) fn session(world: &World, transfers: &[&[Content]], policy: &Policy) -> Vec<Run> {
    let mut session = Session::new(world, policy);
    transfers.iter().map(|contents| session.transfer(contents)).collect()
}

/// Sends `contents` in a session of its own.
pub(super) fn run(world: &World, contents: &[Content], policy: &Policy) -> Run {
    Session::new(world, policy).transfer(contents)
}

pub(super) fn auto(world: &World, contents: &[Content]) -> Run {
    run(world, contents, &Policy::Auto)
}

/// The least time with one action for everything, and which.
pub(super) fn best_fixed(world: &World, contents: &[Content]) -> (f64, Action) {
    fixed()
        .map(|action| (run(world, contents, &Policy::Fixed(action)).seconds, action))
        .min_by(|left, right| left.0.total_cmp(&right.0))
        .unwrap()
}

/// The least time of each of the transfers of a session with one action for everything.
pub(super) fn best_fixed_each(world: &World, transfers: &[&[Content]]) -> Vec<f64> {
    let sessions: Vec<_> = fixed().map(|action| session(world, transfers, &Policy::Fixed(action))).collect();
    let least = |turn: usize| sessions.iter().map(|runs| runs[turn].seconds).fold(f64::INFINITY, f64::min);
    (0..transfers.len()).map(least).collect()
}

fn fixed() -> impl Iterator<Item = Action> {
    Action::ALL.into_iter().filter(|action| action.is_possible(None))
}

/// A time that no choice of actions can be below.
pub(super) fn bound(world: &World, contents: &[Content]) -> f64 {
    let rate = world.rates[0].1;
    (0..=1_000)
        .map(|step| {
            let price = f64::from(step) / 1_000.0;
            let blocks = contents.iter().enumerate().map(|(number, content)| {
                let shade = shade(number);
                let cost = |action: Action| {
                    let (ratio, ns) = content[action.index()];
                    let ratio = if ratio < 1.0 { ratio * shade } else { ratio };
                    let cpu = (READ_NS + ns * shade + WRITE_NS * ratio) * 1e-9;
                    price * cpu / world.processors() + (1.0 - price) * ratio / rate
                };
                let possible = Action::ALL.into_iter().filter(|action| action.is_possible(None));
                possible.map(cost).fold(f64::INFINITY, f64::min) * BLOCK
            });
            blocks.sum::<f64>()
        })
        .fold(0.0, f64::max)
}

/// A stream of `count` blocks, a third of them noise, the rest sparse or heap.
pub(super) fn machine(count: usize) -> Vec<Content> {
    (0..count).map(|block| [SPARSE, HEAP, NOISE][(block * 31 + block / 7) % 3]).collect()
}

/// A stream whose content changes every 64 blocks.
pub(super) fn mixed(count: usize) -> Vec<Content> {
    (0..count).map(|block| [TEXT, NOISE, HEAP, SPARSE][block / 64 % 4]).collect()
}
