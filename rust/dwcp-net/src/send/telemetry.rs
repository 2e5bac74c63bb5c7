//! What TCP tells of the lanes while they send, and what that comes to for a transfer.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dwcp_proto::sender::LaneId;

use super::losses::{LossWatch, stands_in_queue};
use super::pulse::{LATELY, Pulse, STALLED};
use crate::congestion::FAR;
use crate::lanes::Baseline;
use crate::report::{Limits, LinkCounts, LivePath, PathReport};
use crate::transport::{Closer, PathInfo};

/// How often lanes are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where the way has become another, a queue stands in front of it at first that hides how short its round trips are, and
/// what is lost was sent into it: for so long nothing is concluded from losses.
const UPHEAVAL: Duration = Duration::from_secs(4);

/// Takes the shortest round trip of all lanes of a way for that of each: one that came when the queue was full has never
/// seen it empty.
fn share_shortest_trips(seen: &mut [(Option<IpAddr>, PathInfo, PathInfo)]) {
    let mut shortest: HashMap<Option<IpAddr>, Duration> = HashMap::new();
    for (from, _, path) in &*seen {
        if let Some(trip) = path.min_rtt {
            shortest.entry(*from).and_modify(|known| *known = trip.min(*known)).or_insert(trip);
        }
    }
    for (from, _, path) in seen {
        path.min_rtt = shortest.get(from).copied();
    }
}

/// What was seen of a lane.
pub(super) type Sight = (LaneId, Option<PathInfo>, Option<String>);

/// A lane that is up.
struct Watched {
    closer: Closer,
    /// Lanes from different addresses may take different ways.
    from: Option<IpAddr>,
    since: Instant,
    first: PathInfo,
    last: PathInfo,
    seen_at: Instant,
    pulse: Pulse,
    /// Of a lane that was made before the way became another.
    baseline: Option<Baseline>,
}

/// Looks at the lanes of a session, and sums up what it sees in the course of a transfer.
#[derive(Default)]
pub(super) struct Telemetry {
    lanes: HashMap<LaneId, Watched>,
    looked: Option<Instant>,
    sums: Sums,
    losses: LossWatch,
    link: LinkCounts,
    relocated_at: Option<Instant>,
    /// When most of the lanes that work last stood in a queue.
    crowded_at: Option<Instant>,
    /// Something near answers for the peer, so that round trips are not those of the way to it.
    pub(super) is_relayed: bool,
}

/// What was seen since the transfer began.
#[derive(Clone, Default)]
struct Sums {
    sights: u32,
    rtt: Duration,
    deviation: Duration,
    min_rtt: Option<Duration>,
    rounds: u32,
    cwnd_bytes: u64,
    delivery_rate: Option<u64>,
    congestion: BTreeSet<String>,
    counts: Counts,
}

/// Counts of lanes, those that are gone included.
#[derive(Clone, Copy, Default)]
struct Counts {
    time: Duration,
    retransmitted_segments: u64,
    sent_bytes: Option<u64>,
    retransmitted_bytes: Option<u64>,
    busy: Option<Duration>,
    rwnd_limited: Option<Duration>,
    sndbuf_limited: Option<Duration>,
}

impl Counts {
    /// Adds what a lane has done between two looks.
    fn add(&mut self, first: &PathInfo, last: &PathInfo, time: Duration) {
        fn more<T>(sum: &mut Option<T>, grown: Option<T>)
        where
            T: Copy + Default + std::ops::Add<Output = T>,
        {
            *sum = grown.map(|grown| sum.unwrap_or_default() + grown).or(*sum);
        }
        let bytes = |read: fn(&PathInfo) -> Option<u64>| {
            Some(read(last)?.saturating_sub(read(first).unwrap_or_default()))
        };
        let span = |read: fn(&PathInfo) -> Option<Duration>| {
            Some(read(last)?.saturating_sub(read(first).unwrap_or_default()))
        };
        self.time += time;
        self.retransmitted_segments +=
            u64::from(last.retransmitted_segments.saturating_sub(first.retransmitted_segments));
        more(&mut self.sent_bytes, bytes(|path| path.sent_bytes));
        more(&mut self.retransmitted_bytes, bytes(|path| path.retransmitted_bytes));
        more(&mut self.busy, span(|path| path.busy));
        more(&mut self.rwnd_limited, span(|path| path.rwnd_limited));
        more(&mut self.sndbuf_limited, span(|path| path.sndbuf_limited));
    }

    /// What held the lanes up, as shares of their time.
    fn limits(&self) -> Option<Limits> {
        let time = self.time.as_secs_f64();
        let (busy, rwnd, sndbuf) = (self.busy?, self.rwnd_limited?, self.sndbuf_limited?);
        if time <= 0.0 {
            return None;
        }
        let share = |span: Duration| (span.as_secs_f64() / time).min(1.0);
        let (busy, rwnd, sndbuf) = (share(busy), share(rwnd), share(sndbuf));
        let cwnd = (busy - rwnd - sndbuf).max(0.0);
        Some(Limits { cwnd, rwnd, sndbuf, application: 1.0 - busy })
    }
}

impl Sums {
    fn see(&mut self, path: &PathInfo) {
        if let Some(rtt) = path.rtt {
            self.sights += 1;
            self.rtt += rtt;
            self.deviation += path.rtt_deviation.unwrap_or_default();
        }
        self.min_rtt = self.min_rtt.into_iter().chain(path.min_rtt).min();
    }

    /// What all lanes had at one time.
    fn round<'a>(&mut self, lanes: impl Iterator<Item = &'a PathInfo>) {
        self.rounds += 1;
        for path in lanes {
            self.cwnd_bytes += path.cwnd_bytes;
            self.delivery_rate =
                path.delivery_rate.map(|rate| self.delivery_rate.unwrap_or(0) + rate).or(self.delivery_rate);
        }
    }
}

impl Telemetry {
    /// A transfer begins on the lanes that are up.
    pub(super) fn begin(&mut self) {
        (self.sums, self.link) = (Sums::default(), LinkCounts::default());
        self.looked = Some(Instant::now());
        let now = Instant::now();
        for lane in self.lanes.values_mut() {
            if let Some(path) = lane.closer.path() {
                (lane.first, lane.last, lane.since, lane.seen_at) = (path, path, now, now);
                lane.pulse = Pulse::new(now);
            }
        }
    }

    /// A lane has come up.
    pub(super) fn watch(&mut self, lane: LaneId, closer: Closer) {
        let first = closer.path().unwrap_or_default();
        let (since, pulse) = (Instant::now(), Pulse::new(Instant::now()));
        let from = closer.local_ip();
        let (last, seen_at, baseline) = (first, since, None);
        self.lanes.insert(lane, Watched { closer, from, since, first, last, seen_at, pulse, baseline });
    }

    /// The way of all lanes is another from now on.
    pub(super) fn relocate(&mut self) {
        (self.losses, self.relocated_at) = (LossWatch::default(), Some(Instant::now()));
        self.lanes.values_mut().for_each(|lane| lane.baseline = Some(Baseline::default()));
    }

    /// Puts the shortest round trip of the present way into what was seen `now`, where the system still has that of an
    /// earlier one in mind.
    pub(super) fn correct(&mut self, sights: &mut [Sight], now: Instant) {
        for (lane, path, _) in sights {
            let baseline = self.lanes.get_mut(lane).and_then(|lane| lane.baseline.as_mut());
            if let (Some(baseline), Some(path)) = (baseline, path) {
                path.min_rtt = baseline.see(path.rtt, now);
            }
        }
    }

    /// A lane has ended. What it showed last counts: a short transfer may be over before there was another look.
    pub(super) fn leave(&mut self, lane: LaneId) {
        if let Some(mut lane) = self.lanes.remove(&lane) {
            let mut last = lane.closer.path().unwrap_or(lane.last);
            if let Some(baseline) = &mut lane.baseline {
                last.min_rtt = baseline.see(last.rtt, Instant::now());
            }
            self.sums.see(&last);
            self.sums.counts.add(&lane.first, &last, lane.since.elapsed());
        }
    }

    /// All lanes have ended, or will soon.
    pub(super) fn leave_all(&mut self) {
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        lanes.into_iter().for_each(|lane| self.leave(lane));
    }

    /// The lanes to [`look`] at now, if it is time to.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(LaneId, Closer)> {
        if self.looked.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            return Vec::new();
        }
        self.looked = Some(now);
        self.all()
    }

    /// The lanes to look at, whatever the time.
    pub(super) fn all(&self) -> Vec<(LaneId, Closer)> {
        self.lanes.iter().map(|(lane, watched)| (*lane, watched.closer.clone())).collect()
    }

    /// Takes what was seen `now`, and on which lanes blocks wait for their acknowledgement. Gives the lanes that are
    /// stalled while others are not: whatever waits behind them should go over those.
    pub(super) fn take(
        &mut self,
        sights: Vec<Sight>,
        owes: impl Fn(LaneId) -> bool,
        now: Instant,
    ) -> Vec<(LaneId, Closer)> {
        let mut seen: Vec<_> = sights
            .iter()
            .filter_map(|(lane, path, _)| self.lanes.get(lane).map(|lane| (lane.from, lane.last)).zip(*path))
            .map(|((from, last), path)| (from, last, path))
            .collect();
        share_shortest_trips(&mut seen);
        if self.relocated_at.is_none_or(|at| now.saturating_duration_since(at) >= UPHEAVAL) {
            self.losses.see(seen.iter().map(|(_, last, path)| (last, path)), now);
        }
        let mut trips = Vec::new();
        for (lane, path, congestion) in sights {
            self.sums.congestion.extend(congestion);
            if let (Some(watched), Some(path)) = (self.lanes.get_mut(&lane), path) {
                watched.pulse.see(&watched.last, &path, owes(lane), now);
                if path.acked_bytes > watched.last.acked_bytes {
                    trips.extend(path.rtt);
                }
                let time = now.saturating_duration_since(watched.seen_at);
                count(&mut self.link, &watched.last, &path, time);
                (watched.last, watched.seen_at) = (path, now);
                self.sums.see(&path);
            }
        }
        trips.sort();
        self.link.rtt = trips.get(trips.len() / 2).copied().filter(|_| !self.is_relayed);
        self.sums.round(self.lanes.values().map(|lane| &lane.last));
        let working = || self.lanes.values().filter(|lane| lane.pulse.works(now));
        let ways: BTreeSet<Option<IpAddr>> = working().map(|lane| lane.from).collect();
        if ways.is_empty() {
            return Vec::new();
        }
        // What a lane that hears nothing was last told of the queue says nothing of it by now.
        let queued = working().filter(|lane| stands_in_queue(&lane.last)).count();
        if 2 * queued >= working().count() {
            self.crowded_at = Some(now);
        }
        let is_crowded = self.crowded_at.is_some_and(|at| now.saturating_duration_since(at) <= STALLED);
        // A way on which nothing comes through is not crowded but cut.
        let is_stalled = |lane: &Watched| {
            lane.pulse.is_stalled(lane.last.rtt, is_crowded && ways.contains(&lane.from), now)
        };
        let stalled = self.lanes.iter().filter(|(_, lane)| is_stalled(lane));
        stalled.map(|(id, lane)| (*id, lane.closer.clone())).collect()
    }

    /// Whether a queue stands in front of the link, or stood there lately.
    pub(super) fn is_queued(&self, now: Instant) -> bool {
        self.losses.has_queued_within(LATELY, now)
    }

    /// Whether all lanes share one way, which is short, as far as TCP tells.
    pub(super) fn is_short(&self) -> bool {
        let mut from = self.lanes.values().map(|lane| lane.from);
        let is_one = from.next().is_some_and(|first| from.all(|other| other == first));
        let shortest = self.lanes.values().filter_map(|lane| lane.last.min_rtt).min();
        is_one && !self.is_relayed && shortest.is_some_and(|trip| trip < FAR)
    }

    /// Whether something of what is under way on a lane was acknowledged lately.
    pub(super) fn moves(&self, lane: LaneId, now: Instant) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| lane.pulse.moves(now))
    }

    /// Whether what got lost in this session was lost at random.
    pub(super) fn losses_are_random(&self) -> bool {
        self.losses.are_random()
    }

    /// What is known of the transfer by now; none where the system tells nothing.
    pub(super) fn report(&self) -> Option<PathReport> {
        let sums = &self.sums;
        if sums.sights == 0 {
            return None;
        }
        let counts = self.counts();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let rounds = u64::from(sums.rounds.max(1));
        Some(PathReport {
            rtt_ms: millis(sums.rtt / sums.sights),
            min_rtt_ms: sums.min_rtt.map(millis),
            jitter_ms: millis(sums.deviation / sums.sights),
            retransmitted_segments: counts.retransmitted_segments,
            sent_bytes: counts.sent_bytes,
            retransmitted_bytes: counts.retransmitted_bytes,
            cwnd_bytes: sums.cwnd_bytes / rounds,
            delivery_bytes_per_s: sums.delivery_rate.map(|sum| sum / rounds),
            limits: counts.limits(),
            congestion: sums.congestion.iter().cloned().collect(),
        })
    }

    /// What is known by now, together with what the lanes show at this moment: the transfer has ended.
    pub(super) fn conclude(&mut self) -> Option<PathReport> {
        self.looked = None;
        let lanes = self.due(Instant::now());
        self.take(look(&lanes), |_| false, Instant::now());
        self.report()
    }

    /// All lanes as they were last seen; none where the system tells nothing.
    pub(super) fn now(&self) -> Option<LivePath> {
        let rtts: Vec<Duration> = self.lanes.values().filter_map(|lane| lane.last.rtt).collect();
        let rtt = rtts.iter().sum::<Duration>().checked_div(rtts.len() as u32)?;
        let counts = self.counts();
        let lanes = || self.lanes.values().map(|lane| &lane.last);
        Some(LivePath {
            rtt,
            cwnd_bytes: lanes().map(|path| path.cwnd_bytes).sum(),
            delivery_bytes_per_s: lanes().filter_map(|path| path.delivery_rate).sum(),
            retransmitted_segments: counts.retransmitted_segments,
            link: self.link,
        })
    }

    /// The counts of all lanes.
    fn counts(&self) -> Counts {
        let mut counts = self.sums.counts;
        for lane in self.lanes.values() {
            counts.add(&lane.first, &lane.last, lane.since.elapsed());
        }
        counts
    }
}

/// Counts what a lane did in the `time` between two looks.
fn count(link: &mut LinkCounts, before: &PathInfo, path: &PathInfo, time: Duration) {
    let mut done = Counts::default();
    done.add(before, path, time);
    let held_up = done.rwnd_limited.unwrap_or_default() + done.sndbuf_limited.unwrap_or_default();
    let arrived = |path: &PathInfo| path.arrived_bytes().unwrap_or_default();
    link.lanes += time;
    link.cwnd += done.busy.unwrap_or_default().saturating_sub(held_up);
    link.waiting += if path.unsent_bytes > Some(0) { time } else { Duration::ZERO };
    link.queued += if stands_in_queue(path) { time } else { Duration::ZERO };
    link.arrived_bytes += arrived(path).saturating_sub(arrived(before));
    link.lost_segments += done.retransmitted_segments;
}

/// Looks at lanes. The system makes whoever looks wait while another thread is in a call on the socket, so this is done
/// without holding what the lanes need.
pub(super) fn look(lanes: &[(LaneId, Closer)]) -> Vec<Sight> {
    lanes.iter().map(|(lane, closer)| (*lane, closer.path(), closer.congestion())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(sent: u64, again: u64, busy_ms: u64, rwnd_ms: u64) -> PathInfo {
        PathInfo {
            sent_bytes: Some(sent),
            retransmitted_bytes: Some(again),
            busy: Some(Duration::from_millis(busy_ms)),
            rwnd_limited: Some(Duration::from_millis(rwnd_ms)),
            sndbuf_limited: Some(Duration::ZERO),
            ..PathInfo::default()
        }
    }

    #[test]
    fn a_transfer_counts_only_what_lanes_did_in_its_time() {
        let mut counts = Counts::default();
        counts.add(&path(5_000, 100, 700, 0), &path(25_000, 300, 1_600, 600), Duration::from_secs(1));
        // A lane that came later, and was not busy.
        counts.add(&PathInfo::default(), &path(1_000, 0, 100, 0), Duration::from_secs(1));
        assert_eq!((counts.sent_bytes, counts.retransmitted_bytes), (Some(21_000), Some(200)));
        let limits = counts.limits().unwrap();
        let shares = [limits.application, limits.rwnd, limits.cwnd, limits.sndbuf];
        assert!(shares.iter().zip([0.5, 0.3, 0.2, 0.0]).all(|(share, good)| (share - good).abs() < 1e-9));
        assert_eq!(limits.most(), "application");
    }

    #[test]
    fn a_lane_that_never_saw_the_queue_empty_is_measured_by_one_of_its_way_that_did() {
        let way = |last| Some(IpAddr::from([192, 0, 2, last]));
        let trip = |ms| PathInfo { min_rtt: Some(Duration::from_millis(ms)), ..PathInfo::default() };
        let mut seen =
            [(1, 50), (1, 97), (2, 80), (2, 81)].map(|(from, ms)| (way(from), PathInfo::default(), trip(ms)));
        share_shortest_trips(&mut seen);
        let shortest = seen.map(|(_, _, path)| path.min_rtt.unwrap().as_millis());
        assert_eq!(shortest, [50, 50, 80, 80]);
    }

    #[test]
    fn a_link_is_told_by_what_lanes_waited_for_between_looks() {
        let millis = Duration::from_millis;
        let before = PathInfo { acked_bytes: Some(700), sacked_bytes: 2_000, ..path(900, 0, 1_000, 100) };
        let waits = PathInfo {
            acked_bytes: Some(5_700),
            sacked_bytes: 1_000,
            unsent_bytes: Some(9),
            retransmitted_segments: 2,
            rtt: Some(millis(90)),
            min_rtt: Some(millis(50)),
            ..path(9_000, 0, 1_090, 130)
        };
        let mut link = LinkCounts::default();
        count(&mut link, &before, &waits, millis(100));
        // Another lane has nothing to send, and no queue.
        let idle = PathInfo { rtt: Some(millis(51)), min_rtt: Some(millis(50)), ..path(1, 0, 0, 0) };
        count(&mut link, &idle, &idle, millis(100));
        assert_eq!((link.lanes, link.cwnd), (millis(200), millis(60)));
        assert_eq!((link.waiting, link.queued), (millis(100), millis(100)));
        assert_eq!((link.arrived_bytes, link.lost_segments), (4_000, 2));
    }

    fn connect(listener: &std::net::TcpListener) -> Closer {
        use crate::transport::{TcpTransport, Transport};
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        TcpTransport::new(stream).unwrap().closer()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_transfer_whose_lane_ended_before_the_first_look_has_a_path_all_the_same() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut telemetry = Telemetry::default();
        telemetry.watch(0, connect(&listener));
        telemetry.begin();
        telemetry.leave(0);
        assert!(telemetry.conclude().unwrap().rtt_ms > 0.0);
    }

    #[test]
    fn the_shortest_round_trip_of_an_earlier_way_is_not_taken_for_that_of_the_present_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut telemetry, now) = (Telemetry::default(), Instant::now());
        telemetry.watch(0, connect(&listener));
        telemetry.relocate();
        telemetry.watch(1, connect(&listener));
        let millis = |ms| Some(Duration::from_millis(ms));
        let far = PathInfo { rtt: millis(80), min_rtt: millis(1), ..PathInfo::default() };
        let mut sights: Vec<Sight> = [0, 1].map(|lane| (lane, Some(far), None)).into();
        telemetry.correct(&mut sights, now);
        let shortest: Vec<_> = sights.iter().map(|(_, path, _)| path.unwrap().min_rtt).collect();
        assert_eq!(shortest, [millis(80), millis(1)], "a lane that is new has seen no other way");
    }

    /// Which of four lanes are given up after seconds in which all but the `silent` ones bring something, each on its way.
    /// All have found a queue at first, and those that bring something find round trips of `rtt_ms` from then on.
    fn given_up(rtt_ms: u64, ways: [u8; 4], silent: &[LaneId], seconds: u64) -> Vec<LaneId> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut telemetry, start) = (Telemetry::default(), Instant::now());
        for (lane, way) in (0..).zip(ways) {
            telemetry.watch(lane, connect(&listener));
            telemetry.lanes.get_mut(&lane).unwrap().from = Some(IpAddr::from([192, 0, 2, way]));
        }
        let mut found = Vec::new();
        for second in 0..=seconds {
            let sights = (0..4).map(|lane| {
                let is_silent = silent.contains(&lane);
                let acked = if is_silent { 1_000 } else { 2_000 + 1_000 * second };
                let rtt_ms = if is_silent || second == 0 { 150 } else { rtt_ms };
                let path = PathInfo {
                    acked_bytes: Some(acked),
                    rtt: Some(Duration::from_millis(rtt_ms)),
                    min_rtt: Some(Duration::from_millis(50)),
                    ..path(acked + 500, 0, 0, 0)
                };
                (lane, Some(path), None)
            });
            let stalled = telemetry.take(sights.collect(), |_| true, start + Duration::from_secs(second));
            found.extend(stalled.into_iter().map(|(lane, _)| lane));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn a_lane_that_waits_in_a_crowd_is_given_more_time_than_one_whose_way_is_cut() {
        assert_eq!(given_up(50, [1; 4], &[2], 6), [2]);
        assert_eq!(given_up(50, [1; 4], &[0, 1, 2], 6), [0, 1, 2], "what they were last told is over");
        assert_eq!(given_up(150, [1; 4], &[2], 6), []);
        assert_eq!(given_up(150, [1; 4], &[2], 25), [2]);
        assert_eq!(given_up(150, [1, 1, 1, 2], &[2, 3], 6), [3], "nothing comes through on its way");
    }

    #[test]
    fn what_a_kernel_does_not_tell_stays_unknown() {
        let mut counts = Counts::default();
        let old = PathInfo { retransmitted_segments: 4, ..PathInfo::default() };
        counts.add(&PathInfo::default(), &old, Duration::from_secs(1));
        assert_eq!((counts.sent_bytes, counts.retransmitted_segments), (None, 4));
        assert_eq!(counts.limits(), None);
    }
}
