//! The controller in virtual time: lanes on a few cores before a link with a bounded queue.

use super::Action;
use super::contents::{COUNT, Content};
use super::controller::Controller;
use super::told::{Decision, KnownLink, Look, Outcome, Reason, Settings};
pub(super) use super::told::{Delivery, Estimate};

const BLOCK: f64 = 1_048_576.0;
pub(super) const MBPS: f64 = 125_000.0;
const READ_NS: f64 = 0.12;
const WRITE_NS: f64 = 0.35;

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
    /// When it has begun to work.
    pub(super) starting_s: f64,
    /// The receiver works on the same cores.
    pub(super) is_local: bool,
    /// The controller is told that it does.
    pub(super) is_near: bool,
    /// Whether the controller is told what a model would say, or only a probe's answer.
    pub(super) has_model: bool,
    /// How many times as long as its processor time work takes, since others use the processors.
    pub(super) starved: f64,
    /// What the controller is told of an earlier session.
    pub(super) known: Option<KnownLink>,
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
            starting_s: 0.0,
            is_local: false,
            is_near: false,
            has_model: true,
            starved: 1.0,
            wrong: (1.0, 1.0),
            known: None,
        }
    }

    /// The same over a long way, where connections carry ten segments in the first round trip, and twice as much in
    /// each one after it.
    pub(super) fn beginning_slowly(self) -> World {
        /// What a connection sends before anything is acknowledged, in bytes.
        const WINDOW: f64 = 14_600.0;
        let most = self.rates[0].1;
        let first = self.lanes as f64 * WINDOW / self.round_trip_s;
        let trips = (most / first).log2().ceil().max(0.0) as i32;
        let rates = (0..=trips)
            .map(|trip| (f64::from(trip) * self.round_trip_s, (first * 2_f64.powi(trip)).min(most)))
            .collect();
        World { rates, ..self }
    }

    fn settings(&self) -> Settings {
        Settings {
            lanes: self.lanes as u32,
            cores: self.cores as u32,
            round_trip_s: Some(self.round_trip_s),
            is_local: self.is_near,
            limit_bytes_per_s: None,
            known: self.known,
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

/// The bytes that a link passes between two moments.
fn carried(rates: &[(f64, f64)], from: f64, until: f64) -> f64 {
    let (mut now, mut bytes) = (from, 0.0);
    for (step, _) in rates.iter().filter(|(step, _)| from < *step && *step < until) {
        bytes += (step - now) * at(rates, now);
        now = *step;
    }
    bytes + (until - now).max(0.0) * at(rates, now)
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

/// What a lane does with a block, and until when.
enum Work {
    /// It has none in hand.
    Idle,
    Encoding(Sending),
    Writing(Sending),
}

/// A block in a lane's hand.
struct Sending {
    decision: Option<Decision>,
    raw: u64,
    wire: f64,
    decode_ns: f64,
    /// When the lane took it, and when it is encoded and copied to the socket.
    from: f64,
    encoded: f64,
    copied: f64,
    encode_cpu: f64,
    read_cpu: f64,
    write_cpu: f64,
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
    /// By lane: when it can go on, with what, since when it works on what is next, when it last looked for acknowledgements, and
    /// what is on its way.
    ready: Vec<f64>,
    work: Vec<Work>,
    cycle_from: Vec<f64>,
    polled: Vec<f64>,
    flying: Vec<Vec<Flying>>,
    waiting: Vec<f64>,
    /// What the controller was told of as not sent.
    unsent: u64,
    link_free: f64,
    end: f64,
    /// Blocks so far.
    blocks: usize,
}

impl<'w> Session<'w> {
    fn new(world: &'w World, policy: &'w Policy) -> Session<'w> {
        let starts: Vec<f64> = (0..world.lanes).map(|lane| lane as f64 * 1e-4).collect();
        Session {
            world,
            policy,
            controller: Controller::new(world.settings()),
            cores: Cores::new(world),
            ready: starts.clone(),
            work: (0..world.lanes).map(|_| Work::Idle).collect(),
            cycle_from: starts.clone(),
            polled: starts,
            flying: (0..world.lanes).map(|_| Vec::new()).collect(),
            waiting: vec![0.0; world.lanes],
            unsent: 0,
            link_free: 0.0,
            end: 0.0,
            blocks: 0,
        }
    }

    /// Sends `contents` block by block after all that was sent before.
    fn transfer(&mut self, contents: &[Content]) -> Run {
        self.transfer_of(contents, Session::send)
    }

    fn transfer_of<T>(&mut self, blocks: &[T], send: impl Fn(&mut Self, &T) -> (Action, Reason)) -> Run {
        let begin = self.end;
        for lane in 0..self.world.lanes {
            let ready = begin + lane as f64 * 1e-4;
            (self.ready[lane], self.cycle_from[lane], self.polled[lane]) = (ready, ready, ready);
        }
        self.controller.resume();
        self.unsent = 0;
        let mut chosen = Vec::new();
        for block in blocks {
            chosen.push(send(self, block));
        }
        while let Some(lane) = self.first(|work| !matches!(work, Work::Idle)) {
            self.go_on(lane);
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
        if self.controller.wants_unsent() {
            let unsent = carried(&self.world.rates, now, self.link_free) as u64;
            self.controller.unsent(unsent, std::mem::replace(&mut self.unsent, unsent), now);
        }
        let under_way = self.flying[lane].iter().map(|block| (block.wire, now - block.written));
        self.waiting[lane] = self.controller.looked(under_way, self.waiting[lane]);
    }

    /// The lane of those whose work is as wanted that can go on first.
    fn first(&self, wanted: impl Fn(&Work) -> bool) -> Option<usize> {
        let lanes = (0..self.world.lanes).filter(|lane| wanted(&self.work[*lane]));
        lanes.min_by(|a, b| self.ready[*a].total_cmp(&self.ready[*b]))
    }

    /// The lane that takes the next block, once nothing is worth waiting for before it decides.
    fn next_lane(&mut self) -> usize {
        loop {
            let lane = self.first(|_| true).unwrap();
            if !matches!(self.work[lane], Work::Idle) {
                self.go_on(lane);
                continue;
            }
            let now = self.ready[lane];
            self.look(lane, now);
            let wait = self.controller.wait(now);
            if wait <= 0.0 || matches!(self.policy, Policy::Fixed(_)) {
                return lane;
            }
            // Whoever has sent the first block sees what comes back, and lets the others know.
            let answers = self.flying.iter().flatten().map(|block| block.acked);
            let others = (0..self.world.lanes).filter(|other| !matches!(self.work[*other], Work::Idle));
            let events = answers.chain(others.map(|other| self.ready[other])).filter(|at| *at > now);
            let until = events.fold(now + wait, f64::min).max(now + 1e-6);
            for other in 0..self.world.lanes {
                if matches!(self.work[other], Work::Idle) && self.ready[other] < until {
                    self.look(other, until);
                    (self.ready[other], self.cycle_from[other], self.polled[other]) = (until, until, until);
                }
            }
        }
    }

    /// A lane has encoded the block in its hand, or written it.
    fn go_on(&mut self, lane: usize) {
        let world = self.world;
        match std::mem::replace(&mut self.work[lane], Work::Idle) {
            Work::Idle => {}
            Work::Encoding(block) => {
                let Sending { wire, copied, .. } = block;
                let arrived = passed(&world.rates, self.link_free.max(copied), wire);
                // The writer waits until all but a queue's length has gone.
                let queued = carried(&world.rates, copied, self.link_free) + wire;
                let waits = (queued - world.queue_bytes).max(0.0);
                let written = if waits > 0.0 { passed(&world.rates, copied, waits) } else { copied };
                self.link_free = arrived;
                let stored = if world.is_local {
                    let cpu = (block.decode_ns * block.raw as f64 + 0.5 * wire) * 1e-9;
                    self.cores.work(arrived, cpu * at(&world.slowness, arrived) * world.starved)
                } else {
                    arrived + world.answer_s
                };
                let acked = stored.max(world.starting_s) + world.round_trip_s;
                self.end = self.end.max(acked);
                if let Some(decision) = &block.decision {
                    self.controller.encoded(decision, block.raw, wire as u64, block.encode_cpu);
                }
                let phase = block.decision.map_or_else(|| self.controller.phase(), |it| it.phase);
                let ahead = self.controller.sending(wire as u64, block.encoded);
                self.unsent += wire as u64;
                self.flying[lane].push(Flying {
                    raw: block.raw,
                    wire: wire as u64,
                    ahead,
                    phase,
                    written_from: block.encoded,
                    written,
                    acked,
                });
                self.ready[lane] = written;
                self.work[lane] = Work::Writing(block);
            }
            Work::Writing(block) => {
                let written = self.ready[lane];
                let cpu_s = block.encode_cpu + block.read_cpu + block.write_cpu;
                self.controller.observe(
                    block.decision.as_ref(),
                    &Outcome {
                        raw_bytes: block.raw,
                        wire_bytes: block.wire as u64,
                        encode_cpu_s: block.encode_cpu,
                        write_cpu_s: block.write_cpu,
                        cpu_s,
                        busy_wall_s: block.encoded - block.from,
                        busy_cpu_s: block.encode_cpu + block.read_cpu,
                        write_wall_s: written - block.encoded,
                        delay_s: Some((block.copied - block.from - cpu_s).max(0.0)),
                        cycle_s: written - self.cycle_from[lane],
                    },
                );
                self.cycle_from[lane] = written;
            }
        }
    }

    fn send(&mut self, content: &Content) -> (Action, Reason) {
        let shade = shade(self.blocks);
        let actual = content.map(|(ratio, ns)| Measured {
            ratio: if ratio < 1.0 { (ratio * shade).min(1.0) } else { 1.0 },
            ns_per_byte: ns * shade,
            decode_ns_per_byte: ns * shade * 0.3,
        });
        let mut expected = actual.map(|it| Estimate {
            ratio: (it.ratio * self.world.wrong.0).min(1.0),
            ns_per_byte: it.ns_per_byte * self.world.wrong.1,
        });
        expected[0] = Estimate { ratio: 1.0, ns_per_byte: 0.0 };
        self.send_block(&Block { raw_bytes: BLOCK as u64, width: None, actual, expected })
    }

    fn send_block(&mut self, block: &Block) -> (Action, Reason) {
        let world = self.world;
        let lane = self.next_lane();
        let now = self.ready[lane];
        let slowness = at(&world.slowness, now);
        self.blocks += 1;
        let raw = block.raw_bytes as f64;
        let wants_look = self.controller.wants_look();
        let is_flat = block.actual[0].ratio < 1.0;
        let decision = {
            let look = match (wants_look, world.has_model) {
                (false, _) => Look::Unseen,
                (true, true) => Look::Predicted(&block.expected),
                (true, false) if block.actual[Action::Zstd1.index()].ratio < 0.97 => Look::Compressible,
                (true, false) => Look::Incompressible,
            };
            (!is_flat).then(|| self.controller.decide(look, block.width, block.raw_bytes, now))
        };
        let action = match (self.policy, decision) {
            (Policy::Auto, Some(decision)) => decision.action,
            (Policy::Auto, None) => Action::None,
            (Policy::Fixed(action), _) => *action,
        };
        let real = block.actual[action.index()];
        let look_cpu = if wants_look && matches!(self.policy, Policy::Auto) { 25e-6 } else { 0.0 };
        let encode_cpu = (real.ns_per_byte * 1e-9 * raw + look_cpu) * slowness;
        let read_cpu = READ_NS * 1e-9 * raw * slowness;
        let wire = (real.ratio * raw).max(1.0);
        let write_cpu = WRITE_NS * 1e-9 * wire * slowness;
        let copied = self.cores.work(now, (encode_cpu + read_cpu + write_cpu) * world.starved);
        let encoded = copied - write_cpu * world.starved;
        let decode_ns = real.decode_ns_per_byte + if action == Action::None { 0.25 } else { 0.35 };
        self.ready[lane] = encoded;
        self.work[lane] = Work::Encoding(Sending {
            decision,
            raw: block.raw_bytes,
            wire,
            decode_ns,
            from: now,
            encoded,
            copied,
            encode_cpu,
            read_cpu,
            write_cpu,
        });
        (action, decision.map_or(Reason::Probe, |it| it.reason))
    }
}

/// What an action makes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) ratio: f64,
    pub(super) ns_per_byte: f64,
    pub(super) decode_ns_per_byte: f64,
}

/// A block, and what is expected of it.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) raw_bytes: u64,
    pub(super) width: Option<u8>,
    pub(super) actual: [Measured; COUNT],
    pub(super) expected: [Estimate; COUNT],
}

/// Sends blocks in transfers of their own, in one session.
pub(super) fn replay(world: &World, transfers: &[&[Block]], policy: &Policy) -> Vec<Run> {
    let mut session = Session::new(world, policy);
    session.controller = Controller::calibrated(world.settings(), 1.0);
    transfers.iter().map(|blocks| session.transfer_of(blocks, Session::send_block)).collect()
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
