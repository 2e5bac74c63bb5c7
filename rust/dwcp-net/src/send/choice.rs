//! How blocks are compressed: in one way, or each in its own.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dwcp_codec::block::{BlockEncoder, BlockKind, EncodedBlock};
use dwcp_codec::select::{
    Action, Controller, Decision, Delivery, Estimate, Features, KnownLink, Look, Model, Outcome, Settings,
    Summary,
};
use dwcp_codec::{Codec, CodecError, page, probe};

use super::calibration::{measured, slowness};
use crate::cancel::{lock, wait};
use crate::report::thread_cpu;

/// How blocks are compressed where it helps.
#[derive(Clone, Debug)]
pub enum CodecChoice {
    /// All alike.
    Fixed(Codec),
    /// Each as it is best for the transfer to end soon: by its content if there is a model, and by what the processors
    /// and the link have shown lately in any case.
    Auto {
        /// Predicts what each action would make of a block.
        model: Option<Arc<Model>>,
    },
}

impl CodecChoice {
    /// The codec of all blocks, none where each has its own.
    pub(crate) fn fixed(&self) -> Codec {
        match self {
            CodecChoice::Fixed(codec) => *codec,
            CodecChoice::Auto { .. } => Codec::None,
        }
    }

    /// Begins to measure what the first lane has to know of this machine. For a receiver at `address` that is on it too,
    /// it need not know that, and the measurement would only take a processor away from the transfer.
    pub(crate) fn prepare(&self, address: &str) {
        if matches!(self, CodecChoice::Auto { model: Some(_) }) && !is_this_machine(address) {
            // Where there is no thread to be had, the first lane measures itself.
            let _ = std::thread::Builder::new().name("dwcp-calibrate".to_owned()).spawn(measured);
        }
    }
}

/// Whether `address` (`HOST:PORT`) names this machine beyond doubt.
fn is_this_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
}

/// What chooses for all lanes of a session.
pub(crate) struct Selector {
    model: Option<Arc<Model>>,
    /// Times are told from here on.
    epoch: Instant,
    lanes: u16,
    limit_bytes_per_s: Mutex<Option<u64>>,
    known: Option<KnownLink>,
    /// How long the peer took to answer at first, where this side has dialled.
    answer_time: OnceLock<Duration>,
    controller: Mutex<Option<Controller>>,
    /// Something was acknowledged.
    answered: Condvar,
    /// The number of the transfer.
    transfer: AtomicU64,
}

impl Selector {
    /// None if there is nothing to choose.
    pub(crate) fn new(
        choice: &CodecChoice,
        lanes: u16,
        known: Option<KnownLink>,
        limit_bytes_per_s: Option<u64>,
    ) -> Option<Selector> {
        let CodecChoice::Auto { model } = choice else { return None };
        Some(Selector {
            model: model.clone(),
            epoch: Instant::now(),
            lanes,
            known,
            answer_time: OnceLock::new(),
            limit_bytes_per_s: Mutex::new(limit_bytes_per_s),
            controller: Mutex::default(),
            answered: Condvar::new(),
            transfer: AtomicU64::new(0),
        })
    }

    /// From now on, all lanes together may send so many bytes a second.
    pub(crate) fn allow(&self, limit_bytes_per_s: Option<u64>) {
        let mut controller = lock(&self.controller);
        *lock(&self.limit_bytes_per_s) = limit_bytes_per_s;
        if let Some(controller) = controller.as_mut() {
            controller.allow(limit_bytes_per_s.map(|rate| rate as f64));
        }
    }

    /// The way to the receiver is another from now on.
    pub(super) fn relocate(&self, round_trip: Duration) {
        self.with(|controller| controller.relocate(round_trip.as_secs_f64()));
    }

    /// A transfer begins; tells where things stand.
    pub(crate) fn begin(&self) -> Summary {
        self.transfer.fetch_add(1, Ordering::SeqCst);
        lock(&self.controller).as_mut().map_or_else(Summary::default, |controller| {
            controller.resume();
            controller.summary()
        })
    }

    /// Where things stand, and what was done since they stood where `earlier` tells.
    pub(crate) fn summary(&self, earlier: &Summary) -> Selection {
        let summary = lock(&self.controller).as_ref().map(Controller::summary).unwrap_or_default();
        Selection { has_model: self.model.is_some(), summary: summary.since(earlier) }
    }

    /// The peer took so long to answer this side, which has dialled. To be told before there are lanes: whichever of them
    /// makes the controller need not be the one that has waited for the answer.
    pub(crate) fn answered_after(&self, answer_time: Duration) {
        // It is told once, by whoever opens the session.
        let _ = self.answer_time.set(answer_time);
    }

    /// Makes the controller on the first lane, of which is known whether the peer has an address of this machine.
    pub(crate) fn settle(&self, is_here: bool) {
        /// Who takes longer is elsewhere, behind something on this machine that passes the connection on.
        const LOCAL: Duration = Duration::from_millis(10);
        let answer_time = self.answer_time.get().copied();
        let is_local = is_here && answer_time.is_none_or(|time| time < LOCAL);
        // Before the lock, which whoever sends waits for: this takes milliseconds where nothing was measured yet. To a
        // receiver on this machine little is compressed, and so it is not waited for.
        let slowness = self.model.as_deref().filter(|_| !is_local).map(slowness);
        lock(&self.controller).get_or_insert_with(|| {
            let settings = Settings {
                lanes: u32::from(self.lanes),
                cores: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
                // A busy machine takes its time to answer itself, and a listener that serves has not asked.
                round_trip_s: if is_local { Some(0.0) } else { answer_time.map(|time| time.as_secs_f64()) },
                is_local,
                limit_bytes_per_s: lock(&self.limit_bytes_per_s).map(|rate| rate as f64),
                // Over the loopback interface it is the processors that tell how fast the link is.
                known: self.known.filter(|_| !is_local),
            };
            match slowness {
                Some(slowness) => Controller::calibrated(settings, slowness),
                None => Controller::new(settings),
            }
        });
    }

    /// Whether the link waits for work of so many seconds of a processor for each byte.
    pub(crate) fn outruns(&self, seconds_per_byte: f64) -> bool {
        self.with(|controller| controller.outruns(seconds_per_byte)).unwrap_or(false)
    }

    fn since_epoch(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.epoch).as_secs_f64()
    }

    /// Waits, no longer than is worth it, for an acknowledgement on another lane that tells how fast the link is.
    fn await_answer(&self) {
        let mut controller = lock(&self.controller);
        loop {
            let at_s = self.since_epoch(Instant::now());
            let worth_s = controller.as_ref().map_or(0.0, |controller| controller.wait(at_s));
            if worth_s <= 0.0 {
                return;
            }
            controller = wait(&self.answered, controller, Duration::from_secs_f64(worth_s));
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Controller) -> T) -> Option<T> {
        lock(&self.controller).as_mut().map(work)
    }
}

/// What was chosen for the blocks of a transfer, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Whether there was a model.
    pub has_model: bool,
    /// What was chosen, and where the controller stood at the end.
    pub summary: Summary,
}

/// A moment, and the processor time that the thread had used by then.
#[derive(Clone, Copy)]
struct Mark {
    wall: Instant,
    cpu: Duration,
}

impl Mark {
    fn now() -> Mark {
        Mark { wall: Instant::now(), cpu: thread_cpu() }
    }

    /// Seconds and processor seconds from `earlier` to here.
    fn since(&self, earlier: &Mark) -> (f64, f64) {
        let wall = self.wall.saturating_duration_since(earlier.wall);
        (wall.as_secs_f64(), self.cpu.saturating_sub(earlier.cpu).as_secs_f64())
    }
}

/// Tells how long this thread has waited for a processor altogether, where the system does.
struct Queue(Option<File>);

impl Queue {
    fn of_this_thread() -> Queue {
        Queue(File::open("/proc/thread-self/schedstat").ok())
    }

    fn waited(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let count = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        // Nanoseconds on a processor, nanoseconds of waiting for one, and how often.
        let waited = std::str::from_utf8(&text[..count]).ok()?.split_ascii_whitespace().nth(1)?;
        waited.parse().ok().map(Duration::from_nanos)
    }
}

/// A BLOCK or SAME frame that is under way.
struct Sent {
    transfer: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    phase: u32,
    ahead_bytes: f64,
    /// When its writing began and ended.
    from: Instant,
    written: Instant,
}

/// What one lane measures and tells the controller.
pub(crate) struct Gauge<'a> {
    selector: &'a Selector,
    sent: VecDeque<Sent>,
    /// Frames that the peer has acknowledged.
    acknowledged: u32,
    /// When the lane last looked for acknowledgements, and what the controller said of those that were not there.
    looked: Instant,
    waiting: f64,
    /// What the controller was told that the system has not sent of this lane, with what was written since.
    unsent: u64,
    queue: Queue,
    /// When the work on the last block ended, or waiting did, and how long the thread had waited for processors by
    /// then.
    cycle: Mark,
    queued: Option<Duration>,
    /// When the block in hand was there.
    read: Mark,
    /// When it was encoded, with the processor time of that.
    encoded: Mark,
    encode_cpu_s: f64,
    decision: Option<Decision>,
    /// What is being written; the controller knows by then what became of the decision.
    in_hand: Option<Sent>,
    /// The transfer that the block in hand is of.
    transfer: u64,
}

impl<'a> Gauge<'a> {
    pub(crate) fn new(selector: &'a Selector) -> Gauge<'a> {
        let now = Mark::now();
        let queue = Queue::of_this_thread();
        Gauge {
            selector,
            queued: queue.waited(),
            queue,
            sent: VecDeque::new(),
            acknowledged: 0,
            looked: now.wall,
            waiting: 0.0,
            unsent: 0,
            cycle: now,
            read: now,
            encoded: now,
            encode_cpu_s: 0.0,
            decision: None,
            in_hand: None,
            transfer: selector.transfer.load(Ordering::SeqCst),
        }
    }

    /// The lane has waited for something other than room to write.
    pub(crate) fn waited(&mut self) {
        self.cycle = Mark::now();
        self.looked = self.cycle.wall;
        self.queued = self.queue.waited();
    }

    /// The lane has looked whether anything came, and read it. `unsent` tells what the system has not sent, if it knows.
    pub(crate) fn looked(&mut self, unsent: impl FnOnce() -> Option<u32>) {
        self.looked = Instant::now();
        self.look_at_unsent(unsent);
        if !self.sent.is_empty() || self.waiting > 0.0 {
            let age = |sent: &Sent| self.looked.saturating_duration_since(sent.written).as_secs_f64();
            let now = self.selector.transfer.load(Ordering::SeqCst);
            let of_now = self.sent.iter().filter(|sent| sent.transfer == now);
            let under_way = of_now.map(|sent| (sent.wire_bytes, age(sent)));
            // What was said in another transfer is forgotten.
            let before = if self.transfer == now { self.waiting } else { 0.0 };
            let waiting = self.selector.with(|controller| controller.looked(under_way, before));
            self.waiting = waiting.unwrap_or(0.0);
        }
    }

    fn look_at_unsent(&mut self, unsent: impl FnOnce() -> Option<u32>) {
        if self.unsent == 0 || self.transfer != self.selector.transfer.load(Ordering::SeqCst) {
            return;
        }
        let Some(unsent) = unsent().map(u64::from) else { return };
        let before = std::mem::replace(&mut self.unsent, unsent);
        let at_s = self.selector.since_epoch(self.looked);
        self.selector.with(|controller| controller.unsent(unsent, before, at_s));
    }

    /// The peer has taken `count` frames altogether.
    pub(crate) fn acknowledged(&mut self, count: u32) {
        let newly = count.saturating_sub(std::mem::replace(&mut self.acknowledged, count)) as usize;
        let now = Instant::now();
        let at_s = self.selector.since_epoch(now);
        let transfer = self.selector.transfer.load(Ordering::SeqCst);
        let taken = self.sent.drain(..newly.min(self.sent.len()));
        let taken = taken.filter(|sent| sent.transfer == transfer);
        let deliveries = taken.map(|sent| Delivery {
            raw_bytes: sent.raw_bytes,
            wire_bytes: sent.wire_bytes,
            phase: sent.phase,
            ahead_bytes: sent.ahead_bytes,
            since_s: now.saturating_duration_since(sent.from).as_secs_f64(),
            latency_s: self.looked.saturating_duration_since(sent.written).as_secs_f64(),
            at_s,
        });
        self.selector.with(|controller| deliveries.for_each(|delivery| controller.delivered(&delivery)));
        self.selector.answered.notify_all();
    }

    /// The block in hand was read.
    pub(crate) fn read(&mut self) {
        self.read = Mark::now();
        self.encode_cpu_s = 0.0;
        self.decision = None;
        self.in_hand = None;
        let transfer = self.selector.transfer.load(Ordering::SeqCst);
        if std::mem::replace(&mut self.transfer, transfer) != transfer {
            (self.waiting, self.unsent) = (0.0, 0);
        }
    }

    /// Encodes the block in hand as it is best.
    pub(crate) fn encode<'e>(
        &mut self,
        encoder: &'e mut BlockEncoder,
        src: &'e [u8],
        base: Option<&[u8]>,
        width: Option<u8>,
    ) -> Result<EncodedBlock<'e>, CodecError> {
        let begin = thread_cpu();
        let decision = if page::fill_byte(src).is_some() { None } else { self.decide(src, width) };
        let action = decision.map_or(Action::None, |decision| decision.action);
        self.decision = decision;
        let encoded = encoder.encode_action(action, src, base, width)?;
        // What was coded against a base shows nothing of the action.
        let shows = !encoded.kind.needs_base() && encoded.kind != BlockKind::Fill;
        if !shows && decision.is_some() {
            self.selector.with(|controller| controller.give_up(decision.as_ref(), 0));
        }
        self.decision = decision.filter(|_| shows);
        self.encode_cpu_s = thread_cpu().saturating_sub(begin).as_secs_f64();
        Ok(encoded)
    }

    /// The block in hand is about to be written.
    pub(crate) fn prepared(&mut self, raw_bytes: u64, wire_bytes: u64) {
        self.encoded = Mark::now();
        let from = self.encoded.wall;
        let at_s = self.selector.since_epoch(from);
        let (decision, cpu_s) = (self.decision.as_ref(), self.encode_cpu_s);
        let told = self.selector.with(|controller| {
            if let Some(decision) = decision {
                controller.encoded(decision, raw_bytes, wire_bytes, cpu_s);
            }
            let phase = decision.map_or_else(|| controller.phase(), |decision| decision.phase);
            (phase, controller.sending(wire_bytes, at_s), controller.wants_unsent())
        });
        let (phase, ahead_bytes, wants_unsent) = told.unwrap_or_default();
        if wants_unsent {
            self.unsent += wire_bytes;
        }
        let transfer = self.transfer;
        self.in_hand =
            Some(Sent { transfer, raw_bytes, wire_bytes, phase, ahead_bytes, from, written: from });
    }

    /// The block in hand was written, in a frame that the peer acknowledges.
    pub(crate) fn written(&mut self) {
        let now = Mark::now();
        let Some(sent) = self.in_hand.take() else { return };
        let (raw_bytes, wire_bytes) = (sent.raw_bytes, sent.wire_bytes);
        self.sent.push_back(Sent { written: now.wall, ..sent });
        let (write_wall_s, write_cpu_s) = now.since(&self.encoded);
        let (busy_wall_s, busy_cpu_s) = self.encoded.since(&self.read);
        let (cycle_s, cpu_s) = now.since(&self.cycle);
        let queued = self.queue.waited();
        let delay = queued.zip(std::mem::replace(&mut self.queued, queued));
        let outcome = Outcome {
            raw_bytes,
            wire_bytes,
            encode_cpu_s: self.encode_cpu_s,
            write_cpu_s,
            cpu_s,
            busy_wall_s,
            busy_cpu_s,
            write_wall_s,
            delay_s: delay.map(|(now, before)| now.saturating_sub(before).as_secs_f64()),
            cycle_s,
        };
        let decision = self.decision.take();
        self.cycle = now;
        self.selector.with(|controller| controller.observe(decision.as_ref(), &outcome));
    }

    /// How long the answer to what was written is worth waiting for, if it is.
    pub(crate) fn worth_waiting(&self) -> Option<Duration> {
        let at_s = self.selector.since_epoch(Instant::now());
        let worth_s = self.selector.with(|controller| controller.wait(at_s)).filter(|worth_s| *worth_s > 0.0);
        worth_s.map(Duration::from_secs_f64)
    }

    fn decide(&self, src: &[u8], width: Option<u8>) -> Option<Decision> {
        let wants_look = self.selector.with(|controller| controller.wants_look())?;
        let estimates;
        let look = match &self.selector.model {
            _ if !wants_look => Look::Unseen,
            Some(model) => {
                estimates = model.predict(&Features::of(src, width)).map(|told| Estimate {
                    ratio: told.ratio.into(),
                    ns_per_byte: told.compress_ns_per_byte.into(),
                });
                Look::Predicted(&estimates)
            }
            None if probe::compressible(src) => Look::Compressible,
            None => Look::Incompressible,
        };
        if self.sent.is_empty() {
            self.selector.await_answer();
        }
        let at_s = self.selector.since_epoch(Instant::now());
        let raw_bytes = src.len() as u64;
        self.selector.with(|controller| controller.decide(look, width, raw_bytes, at_s))
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        let now = self.selector.transfer.load(Ordering::SeqCst);
        if self.transfer != now {
            // The controller has forgotten all of it.
            return;
        }
        let of_now = self.sent.iter().chain(&self.in_hand).filter(|sent| sent.transfer == now);
        let wire_bytes = of_now.map(|sent| sent.wire_bytes).sum();
        let decision = self.decision.as_ref().filter(|_| self.in_hand.is_none());
        let at_s = self.selector.since_epoch(Instant::now());
        self.selector.with(|controller| {
            controller.looked(std::iter::empty(), self.waiting);
            controller.unsent(0, self.unsent, at_s);
            controller.give_up(decision, wire_bytes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_taken_for_it() {
        for address in ["localhost:7", "127.0.0.1:7", "[::1]:7"] {
            assert!(is_this_machine(address), "{address}");
        }
        for address in ["127.0.0.2:7", "10.0.0.1:7", "localhost.example:7", "[fe80::1]:7"] {
            assert!(!is_this_machine(address), "{address}");
        }
    }

    fn automatic(lanes: u16) -> Selector {
        Selector::new(&CodecChoice::Auto { model: None }, lanes, None, None).unwrap()
    }

    #[test]
    fn block_is_counted_before_the_peer_can_have_it() {
        let selector = automatic(1);
        selector.settle(true);
        let before = selector.begin();
        let mut gauge = Gauge::new(&selector);
        let block: Vec<u8> = (0..65_536_u32).map(|at| (at / 300) as u8).collect();
        gauge.read();
        let wire = gauge.encode(&mut BlockEncoder::new(), &block, None, None).unwrap().wire.len() as u64;
        gauge.prepared(65_536, wire);
        let counted = |selector: &Selector| {
            let actions = selector.summary(&before).summary.actions;
            let sums = actions.iter().map(|share| [share.blocks, share.raw_bytes, share.wire_bytes]);
            sums.fold([0; 3], |sum, share| std::array::from_fn(|at| sum[at] + share[at]))
        };
        assert_eq!(counted(&selector), [1, 65_536, wire]);
        gauge.written();
        assert_eq!(counted(&selector), [1, 65_536, wire]);
    }

    /// A lane that has begun to write a block, and how long that is on the wire.
    fn writing(selector: &Selector) -> (Gauge<'_>, u64) {
        let mut gauge = Gauge::new(selector);
        let block: Vec<u8> = (0..65_536_u32).map(|at| (at / 300) as u8).collect();
        gauge.read();
        let wire = gauge.encode(&mut BlockEncoder::new(), &block, None, None).unwrap().wire.len() as u64;
        gauge.prepared(65_536, wire);
        (gauge, wire)
    }

    fn under_way(selector: &Selector) -> Option<f64> {
        selector.with(|controller| controller.sending(0, 0.0))
    }

    #[test]
    fn lane_that_has_asked_nothing_knows_how_near_the_peer_is() {
        let answered = automatic(4);
        answered.answered_after(Duration::from_millis(2));
        for (selector, is_near) in [(answered, true), (automatic(4), false)] {
            selector.settle(false);
            let waits = selector.with(|controller| {
                controller.sending(65_536, 0.0);
                controller.wait(0.001) > 0.0
            });
            assert_eq!(waits, Some(is_near));
        }
    }

    fn selector() -> Selector {
        let selector = automatic(2);
        selector.settle(true);
        selector.begin();
        selector
    }

    #[test]
    fn lane_that_dies_while_it_writes_leaves_nothing_under_way() {
        let selector = selector();
        let (gauge, wire) = writing(&selector);
        assert_eq!(under_way(&selector), Some(wire as f64));
        drop(gauge);
        assert_eq!(under_way(&selector), Some(0.0));
    }

    #[test]
    fn lane_of_an_abandoned_transfer_takes_nothing_from_the_next() {
        let selector = selector();
        let (mut old, _) = writing(&selector);
        old.written();
        selector.begin();
        let (_new, wire) = writing(&selector);
        old.acknowledged(1);
        assert_eq!(under_way(&selector), Some(wire as f64));
        drop(old);
        assert_eq!(under_way(&selector), Some(wire as f64));
    }
}
