//! One direction of a link, in time that it is told: queue, line, loss, delay.
//!
//! A packet waits in a drop-tail queue, takes its share of the rate, may then be lost, and arrives after the
//! delay. Loss comes behind the line, so a lost packet has used the line as it would on a real path.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use crate::random::{Random, fraction_at};
use crate::settings::{Nanos, QueueLimit, Settings};

/// The queue takes so much whatever its limit says, or nothing would pass at all.
const LEAST_QUEUE_BYTES: u64 = 3_000;
/// Most bytes held on the way, so that a wire without a limit cannot take all memory.
const MAX_HELD_BYTES: u64 = 1 << 30;
const LEAST_JITTER_PERIOD: Nanos = 10_000_000;

/// What happened in one direction. Packets are those of the line, not the bundles that the kernel hands over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    pub packets: u64,
    pub bytes: u64,
    pub delivered_packets: u64,
    pub delivered_bytes: u64,
    pub dropped_queue: u64,
    pub dropped_loss: u64,
    pub dropped_cut: u64,
    pub dropped_memory: u64,
    pub reordered: u64,
    pub max_queue_bytes: u64,
}

struct Waiting<T> {
    length: u32,
    arrival: Nanos,
    packet: T,
}

struct Flying<T> {
    due: Nanos,
    number: u64,
    length: u32,
    packet: T,
}

impl<T> PartialEq for Flying<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Flying<T> {}

impl<T> PartialOrd for Flying<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Flying<T> {
    /// The one due first is the greatest, as a heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

/// One direction.
pub struct Direction<T> {
    settings: Settings,
    random: Random,
    is_bad: bool,
    queue: VecDeque<Waiting<T>>,
    queued_bytes: u64,
    held_bytes: u64,
    line_free_at: Nanos,
    /// How long the line could have taken packets, and there was none.
    idle: Nanos,
    /// Nothing leaves before, as the rate is 0 until then.
    stalled_until: Nanos,
    flying: VecDeque<Flying<T>>,
    held_back: BinaryHeap<Flying<T>>,
    sent: u64,
    pub counts: Counts,
}

impl<T> Direction<T> {
    pub fn new(settings: Settings) -> Self {
        Self {
            random: Random::new(settings.seed),
            settings,
            is_bad: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            held_bytes: 0,
            line_free_at: 0,
            idle: 0,
            stalled_until: 0,
            flying: VecDeque::new(),
            held_back: BinaryHeap::new(),
            sent: 0,
            counts: Counts::default(),
        }
    }

    /// Be like this from now on; what is past the line already is not changed by it, but a cut drops it.
    pub fn change(&mut self, now: Nanos, settings: Settings) {
        self.serve(now);
        // There may be a rate sooner than it seemed.
        self.stalled_until = self.stalled_until.min(now);
        if settings.cut {
            self.drop_all(now);
        }
        if settings.seed != self.settings.seed {
            self.random = Random::new(settings.seed);
        }
        self.settings = settings;
    }

    /// Lose what waits, is on the line, or flies.
    fn drop_all(&mut self, now: Nanos) {
        let lost = self.queue.len() + self.flying.len() + self.held_back.len();
        self.counts.dropped_cut += lost as u64;
        self.queue.clear();
        self.flying.clear();
        self.held_back.clear();
        (self.queued_bytes, self.held_bytes) = (0, 0);
        self.line_free_at = self.line_free_at.min(now);
    }

    /// A packet comes in.
    pub fn offer(&mut self, now: Nanos, length: u32, packet: T) {
        self.counts.packets += 1;
        self.counts.bytes += u64::from(length);
        if self.settings.cut {
            self.counts.dropped_cut += 1;
            return;
        }
        self.serve(now);
        let backlog = self.queued_bytes + u64::from(length);
        if backlog > self.queue_limit(now) {
            self.counts.dropped_queue += 1;
            return;
        }
        if self.held_bytes + u64::from(length) > MAX_HELD_BYTES {
            self.counts.dropped_memory += 1;
            return;
        }
        self.held_bytes += u64::from(length);
        self.queued_bytes = backlog;
        self.queue.push_back(Waiting { length, arrival: now, packet });
        self.serve(now);
        self.counts.max_queue_bytes = self.counts.max_queue_bytes.max(self.queued_bytes);
    }

    fn queue_limit(&self, now: Nanos) -> u64 {
        let limit = match self.settings.queue {
            QueueLimit::Bytes(bytes) => bytes,
            QueueLimit::Time(time) => match self.settings.rate.at(now) {
                (Some(rate), _) => (rate / 8.0 * time as f64 / 1e9) as u64,
                (None, _) => u64::MAX,
            },
        };
        limit.max(LEAST_QUEUE_BYTES)
    }

    /// When the line may take a packet, if it is the first.
    fn start_of(&self, packet: &Waiting<T>) -> Nanos {
        self.may_start_at().max(packet.arrival)
    }

    /// How long until now the line could have taken packets, and there was none.
    pub fn idle(&mut self, now: Nanos) -> Nanos {
        self.serve(now);
        let waits = if self.queue.is_empty() { now.saturating_sub(self.may_start_at()) } else { 0 };
        self.idle + waits
    }

    /// When the line may take a packet.
    fn may_start_at(&self) -> Nanos {
        self.line_free_at.max(self.stalled_until)
    }

    /// Put on the line every packet whose turn has come.
    fn serve(&mut self, now: Nanos) {
        while let Some(first) = self.queue.front() {
            let start = self.start_of(first);
            if start > now {
                return;
            }
            let taken = match self.settings.rate.at(start) {
                (None, _) => 0,
                (Some(rate), until) if rate <= 0.0 => {
                    self.stalled_until = until;
                    continue;
                }
                (Some(rate), _) => (f64::from(first.length) * 8e9 / rate).round() as Nanos,
            };
            self.idle += start - self.may_start_at();
            self.line_free_at = start.saturating_add(taken);
            if let Some(packet) = self.queue.pop_front() {
                self.queued_bytes -= u64::from(packet.length);
                self.launch(packet);
            }
        }
    }

    /// A packet leaves the line at `line_free_at`.
    fn launch(&mut self, packet: Waiting<T>) {
        if self.is_lost() {
            self.counts.dropped_loss += 1;
            self.held_bytes -= u64::from(packet.length);
            return;
        }
        let left = self.line_free_at;
        let due = left.saturating_add(self.settings.delay).saturating_add(self.jitter_at(left));
        self.sent += 1;
        let mut flying = Flying { due, number: self.sent, length: packet.length, packet: packet.packet };
        if self.settings.reorder > 0.0 && self.random.fraction() < self.settings.reorder {
            flying.due = due.saturating_add(self.settings.reorder_by);
            self.counts.reordered += 1;
            self.held_back.push(flying);
            return;
        }
        // A delay made shorter while packets fly must not let later ones overtake.
        flying.due = due.max(self.flying.back().map_or(0, |last| last.due));
        self.flying.push_back(flying);
    }

    fn is_lost(&mut self) -> bool {
        let loss = self.settings.loss;
        if loss.to_bad > 0.0 || self.is_bad {
            let turn = if self.is_bad { loss.to_good } else { loss.to_bad };
            self.is_bad ^= self.random.fraction() < turn;
        }
        let share = if self.is_bad { loss.bad } else { loss.good };
        share > 0.0 && self.random.fraction() < share
    }

    /// What is added to the delay of a packet that leaves the line then: straight lines between random points,
    /// so far apart that the sum of time and addition never falls.
    fn jitter_at(&self, time: Nanos) -> Nanos {
        let most = self.settings.jitter;
        if most == 0 {
            return 0;
        }
        let period = (2 * most).max(LEAST_JITTER_PERIOD);
        let (index, within) = (time / period, (time % period) as f64 / period as f64);
        let at = |index| fraction_at(self.settings.seed, index);
        ((at(index) * (1.0 - within) + at(index + 1) * within) * most as f64) as Nanos
    }

    /// The next packet that has arrived by now, and when it was due.
    pub fn take(&mut self, now: Nanos) -> Option<(Nanos, T)> {
        self.serve(now);
        let held_due = self.held_back.peek().map_or(Nanos::MAX, |packet| packet.due);
        let next_due = self.flying.front().map_or(Nanos::MAX, |packet| packet.due);
        if held_due.min(next_due) > now {
            return None;
        }
        let arrived = if held_due < next_due { self.held_back.pop() } else { self.flying.pop_front() }?;
        self.held_bytes -= u64::from(arrived.length);
        self.counts.delivered_packets += 1;
        self.counts.delivered_bytes += u64::from(arrived.length);
        Some((arrived.due, arrived.packet))
    }

    /// When `take` may give something, if nothing else comes in.
    pub fn next_at(&self) -> Option<Nanos> {
        let waiting =
            self.queue.front().map(|first| self.start_of(first).saturating_add(self.settings.delay));
        let flying = self.flying.front().map(|packet| packet.due);
        let held = self.held_back.peek().map(|packet| packet.due);
        [waiting, flying, held].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn direction(words: &str) -> Direction<usize> {
        let mut settings = Settings::default();
        for word in words.split_whitespace() {
            settings.assign(word, 0).unwrap();
        }
        Direction::new(settings)
    }

    /// Run until nothing is left; when each packet arrived.
    fn drain(link: &mut Direction<usize>) -> Vec<(Nanos, usize)> {
        let mut arrived = Vec::new();
        while let Some(at) = link.next_at() {
            arrived.extend(std::iter::from_fn(|| link.take(at)));
        }
        arrived
    }

    #[test]
    fn packets_leave_at_the_rate_and_arrive_after_the_delay() {
        let mut link = direction("rate_bps=12e6 delay_ms=100 queue_ms=1000");
        (0..10).for_each(|number| link.offer(0, 1500, number));
        let arrived = drain(&mut link);
        // 1500 bytes take a millisecond at 12 Mbit/s.
        assert_eq!(arrived, (0..10).map(|n| ((101 + n as u64) * MS, n)).collect::<Vec<_>>());
        assert_eq!(link.counts.delivered_bytes, 15_000);
    }

    #[test]
    fn the_line_is_idle_while_it_may_take_packets_and_none_is_there() {
        let mut link = direction("rate_bps=12e6 queue_ms=1000");
        assert_eq!(link.idle(3 * MS), 3 * MS);
        // Two milliseconds on the line, then four without a packet, then one on the line again.
        (0..2).for_each(|number| link.offer(3 * MS, 1500, number));
        assert_eq!((link.idle(3 * MS), link.idle(5 * MS), link.idle(9 * MS)), (3 * MS, 3 * MS, 7 * MS));
        link.offer(9 * MS, 1500, 2);
        assert_eq!((link.idle(10 * MS), link.idle(11 * MS)), (7 * MS, 8 * MS));
    }

    #[test]
    fn a_full_queue_drops_what_comes_last() {
        let mut link = direction("rate_bps=12e6 queue_ms=5");
        (0..10).for_each(|number| link.offer(0, 1500, number));
        let numbers: Vec<_> = drain(&mut link).into_iter().map(|(_, number)| number).collect();
        // One on the line and 5 ms of queue.
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        assert_eq!((link.counts.dropped_queue, link.counts.max_queue_bytes), (4, 7500));
    }

    #[test]
    fn losses_come_as_often_as_told_and_the_same_again() {
        let run = |words: &str| {
            let mut link = direction(words);
            (0..100_000).for_each(|number| link.offer(0, 1500, number));
            drain(&mut link).into_iter().map(|(_, number)| number).collect::<Vec<_>>()
        };
        let passed = run("loss=0.01 seed=7");
        assert!((98_900..99_100).contains(&passed.len()), "{}", passed.len());
        assert_eq!(passed, run("loss=0.01 seed=7"));
        assert_ne!(passed, run("loss=0.01 seed=8"));
    }

    #[test]
    fn bursty_losses_come_together() {
        let mut link = direction("to_bad=0.001 to_good=0.1 loss_bad=1");
        (0..200_000).for_each(|number| link.offer(0, 1500, number));
        let passed: Vec<_> = drain(&mut link).into_iter().map(|(_, number)| number).collect();
        let lost = 200_000 - passed.len();
        // In the bad state 1 packet of 101, in bursts of 10.
        assert!((1_500..2_500).contains(&lost), "{lost}");
        let bursts = passed.windows(2).filter(|pair| pair[1] > pair[0] + 1).count();
        assert!((120..280).contains(&bursts), "{bursts}");
    }

    #[test]
    fn jitter_stays_in_its_bounds_moves_and_never_reorders() {
        let mut link = direction("delay_ms=50 jitter_ms=20");
        let mut extra = Vec::new();
        let mut last = 0;
        for number in 0..20_000_usize {
            let now = number as u64 * MS / 10;
            link.offer(now, 1500, number);
            let (due, came) = link.flying.pop_front().map(|packet| (packet.due, packet.packet)).unwrap();
            assert_eq!(came, number);
            assert!(due >= last);
            last = due;
            extra.push(due - now - 50 * MS);
        }
        assert!(extra.iter().all(|more| *more <= 20 * MS));
        assert!(extra.iter().max().unwrap() - extra.iter().min().unwrap() > 15 * MS);
    }

    #[test]
    fn packets_overtake_only_when_asked_to() {
        let mut link = direction("delay_ms=50 reorder=0.1 reorder_ms=5");
        (0..1_000).for_each(|number| link.offer(number as u64 * MS, 1500, number));
        let arrived = drain(&mut link);
        assert_eq!(arrived.len(), 1_000);
        let overtaken = arrived.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
        assert!((50..150).contains(&overtaken), "{overtaken}");
        assert!(arrived.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    fn change(link: &mut Direction<usize>, now: Nanos, word: &str) {
        let mut settings = link.settings.clone();
        settings.assign(word, now).unwrap();
        link.change(now, settings);
    }

    #[test]
    fn a_cut_however_short_loses_what_comes_waits_and_flies_and_the_link_passes_again_later() {
        let mut link = direction("rate_bps=12e6 delay_ms=10 reorder=0.5 reorder_ms=1");
        // By the cut four fly, one is on the line and one waits.
        (0..6).for_each(|number| link.offer(0, 1500, number));
        change(&mut link, 4 * MS + MS / 2, "cut=1");
        link.offer(5 * MS, 1500, 6);
        assert_eq!(link.take(5 * MS), None);
        change(&mut link, 5 * MS, "cut=0");
        change(&mut link, 5 * MS, "reorder=0");
        link.offer(5 * MS, 1500, 7);
        assert_eq!(drain(&mut link), [(16 * MS, 7)]);
        assert_eq!((link.counts.packets, link.counts.dropped_cut), (8, 7));
        assert_eq!((link.queued_bytes, link.held_bytes), (0, 0));
    }

    #[test]
    fn an_outage_ends_with_the_next_rate_that_is_told() {
        let mut link = direction("rate_bps=0 delay_ms=10");
        link.offer(0, 1500, 1);
        assert_eq!(link.take(20 * MS), None);
        change(&mut link, 50 * MS, "rate_bps=12e6");
        assert_eq!(drain(&mut link), [(61 * MS, 1)]);
        // The line is as busy as it was before an outage that ends at once.
        link.offer(100 * MS, 1500, 2);
        link.offer(100 * MS, 1500, 3);
        change(&mut link, 100 * MS, "rate_bps=0");
        change(&mut link, 100 * MS, "rate_bps=12e6");
        assert_eq!(drain(&mut link), [(111 * MS, 2), (112 * MS, 3)]);
    }

    #[test]
    fn a_step_of_the_rate_holds_from_the_next_packet_on() {
        let mut link = direction("rate_bps=12e6 queue_ms=1000");
        (0..4).for_each(|number| link.offer(0, 1500, number));
        let mut faster = link.settings.clone();
        faster.assign("rate_bps=120e6", 0).unwrap();
        link.change(MS + MS / 2, faster);
        let times: Vec<_> = drain(&mut link).into_iter().map(|(at, _)| at).collect();
        assert_eq!(times, [MS, 2 * MS, 2 * MS + MS / 10, 2 * MS + 2 * MS / 10]);
    }

    #[test]
    fn nothing_passes_while_a_trace_says_zero() {
        let mut link = direction("queue_bytes=100000");
        let rate = crate::settings::parse_trace("0 12e6\n0.002 0\n0.010 12e6\n", 0).unwrap();
        link.change(0, Settings { rate, ..link.settings.clone() });
        (0..4).for_each(|number| link.offer(0, 1500, number));
        let times: Vec<_> = drain(&mut link).into_iter().map(|(at, _)| at).collect();
        assert_eq!(times, [MS, 2 * MS, 11 * MS, 12 * MS]);
    }
}
