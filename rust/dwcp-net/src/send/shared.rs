//! What the lanes of a sender share.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dwcp_codec::select::Summary;
use dwcp_codec::{Dictionary, Digest};
use dwcp_proto::fetch::Asked;
use dwcp_proto::frame::{
    Committed, ErrorCode, ErrorFrame, FEATURE_DICTIONARY, Frame, Secret, SessionId, Welcome,
};
use dwcp_proto::limits::{MAX_DICTIONARY, MAX_LANES};
use dwcp_proto::sender::{LaneId, SenderOptions, SenderProgress, SenderSession};
use dwcp_proto::{Limits, Manifest};
use dwcp_store::Source;

use super::SendOptions;
use super::choice::Selector;
use super::queue::Queue;
use super::telemetry::Telemetry;
use super::turns::LaneHandle;
use crate::cancel::Cancel;
use crate::distance::Distance;
use crate::error::NetError;
use crate::lanes::LaneChange;
use crate::limiter::Limiter;
use crate::listen::Registry;
use crate::report::{Observer, Progress, SendReport, Tally};
use crate::transport::{Closer, LinkKind, Waker};

/// This many times altered bytes are sent again; then the path is not fit for use.
pub(super) const MAX_INTEGRITY_FAILURES: u32 = 3;

/// Bytes of blocks under way on one lane: enough for a fast and long path, and bounded for the sake of memory.
const MAX_UNACKED_BYTES: u64 = 64 << 20;

/// Everything that does not change, and the state that does.
pub(crate) struct Shared {
    pub(crate) options: SendOptions,
    /// Stops transfers and the making of lanes.
    pub(crate) cancel: Cancel,
    /// Shuts the lanes, which may still have a last word to say when a transfer is stopped.
    pub(crate) halt: Cancel,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) limiter: Arc<Limiter>,
    /// Chooses how each block is compressed, if that is not fixed.
    pub(super) selector: Option<Selector>,
    /// Where those who accept wait, if the peer has dialled.
    pub(super) registry: Option<Arc<Registry>>,
    /// Whether the system lets this process have a congestion control that does not mind losses, once that matters.
    pub(super) can_ignore_losses: OnceLock<bool>,
    /// Lanes were asked not to mind losses; whether they do is another matter.
    pub(super) asked_to_ignore_losses: AtomicBool,
    /// The first in it has the transfer that is under way.
    pub(super) queue: Queue,
    pub(crate) state: Mutex<State>,
    /// Signals new work, the end of work, and changes of the session.
    pub(crate) changed: Condvar,
}

impl Shared {
    /// With a `registry` the peer has dialled, and asks for what it is sent.
    pub(crate) fn new(
        options: SendOptions,
        limiter: Arc<Limiter>,
        (cancel, halt): (Cancel, Cancel),
        observer: Arc<dyn Observer>,
        link: Link,
        registry: Option<Arc<Registry>>,
    ) -> Shared {
        let selector = Selector::new(&options.codec, options.lanes, options.known_link, limiter.rate());
        Shared {
            limiter,
            selector,
            cancel,
            halt,
            observer,
            can_ignore_losses: OnceLock::new(),
            asked_to_ignore_losses: AtomicBool::new(false),
            queue: Queue::default(),
            state: Mutex::new(State {
                asked: registry.as_ref().map(|_| Asked::default()),
                dictionary: options.dictionary.clone(),
                broken: None,
                goodbye: false,
                epoch: 0,
                link: Some(link),
                opening: false,
                session: None,
                job: None,
                lanes: HashMap::new(),
                next_lane: 0,
                wanted: if registry.is_some() { MAX_LANES } else { options.lanes },
                most_blocks: 0,
                lonely_since: Instant::now(),
                is_first_due: false,
                progressed: false,
                moved: Instant::now(),
                closing: false,
                parting: None,
                last_failure: None,
                round_trip: None,
                carried_by: (LinkKind::Tcp, None),
                telemetry: Telemetry::default(),
                distance: options.distance,
            }),
            options,
            registry,
            changed: Condvar::new(),
        }
    }
}

/// A session that the receiver knows.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) id: SessionId,
    pub(crate) key: Secret,
    pub(crate) max_lanes: u16,
    pub(crate) limits: Limits,
}

/// The longest dictionary that a receiver with these features may take: it tells only whether it knows of any.
pub(crate) fn max_dictionary(features: u32) -> u32 {
    if features & FEATURE_DICTIONARY != 0 { MAX_DICTIONARY as u32 } else { 0 }
}

impl Link {
    pub(super) fn new(welcome: &Welcome) -> Link {
        Link {
            id: welcome.session,
            key: welcome.join_key,
            max_lanes: welcome.max_lanes,
            limits: Limits {
                max_lanes: welcome.max_lanes,
                max_block: welcome.max_block,
                max_entries: welcome.max_entries,
                max_object: welcome.max_object,
                max_dictionary: max_dictionary(welcome.features),
            },
        }
    }
}

/// A transfer that is to be done.
pub(super) struct Job {
    pub(super) manifest: Arc<Manifest>,
    pub(super) source: Arc<dyn Source>,
    base_allowed: bool,
    pub(super) started: Instant,
    /// Where the selector stood then.
    selected_before: Option<Summary>,
    /// What sessions before the present one did.
    resent_before: u64,
    helped_before: u64,
    nacks_before: u64,
    wire_before: u64,
    pub(super) sessions: u32,
    pub(super) tally: Tally,
    pub(super) ended: Option<Result<Committed, NetError>>,
    /// The counts of the session that ended it, and the tree digests.
    result: Option<(SenderProgress, Vec<Digest>)>,
    /// How the number of lanes has changed, if it may.
    pub(super) lane_changes: Vec<LaneChange>,
}

impl Job {
    pub(super) fn new(
        manifest: Arc<Manifest>,
        source: Arc<dyn Source>,
        base_allowed: bool,
        (started, selected_before): (Instant, Option<Summary>),
    ) -> Job {
        Job {
            manifest,
            source,
            base_allowed,
            started,
            selected_before,
            resent_before: 0,
            helped_before: 0,
            nacks_before: 0,
            wire_before: 0,
            sessions: 1,
            tally: Tally::default(),
            ended: None,
            result: None,
            lane_changes: Vec::new(),
        }
    }

    /// The tree digest of each entry, once the transfer is committed.
    pub(super) fn tree_digests(&self) -> &[Digest] {
        self.result.as_ref().map_or(&[], |(_, digests)| digests)
    }

    pub(super) fn report(
        &self,
        committed: &Committed,
        round_trip: Option<Duration>,
        selector: Option<&Selector>,
    ) -> SendReport {
        let last = self.result.as_ref().map(|(progress, _)| *progress);
        let count = |read: fn(&SenderProgress) -> u64| last.as_ref().map_or(0, read);
        let (blocks_sent, bytes_sent_raw, bytes_wire) = self.tally.sums();
        SendReport {
            transfer_id: committed.transfer_id,
            transfer_digest: committed.transfer_digest,
            entries: self.manifest.entries().len() as u32,
            bytes_raw: self.manifest.total_bytes(),
            bytes_held: count(|progress| progress.held_bytes),
            bytes_same: count(|progress| progress.same_bytes),
            bytes_sent_raw,
            bytes_wire,
            blocks_sent,
            blocks_same: count(|progress| progress.blocks_same),
            blocks_held: count(|progress| progress.blocks_held),
            blocks_resent: self.resent_before + count(|progress| progress.resent_blocks),
            blocks_helped: self.helped_before + count(|progress| progress.helped_blocks),
            nacks: self.nacks_before + count(|progress| progress.nacks),
            lanes_used: self.tally.lanes_used,
            lanes_lost: self.tally.lanes_lost,
            lane_changes: self.lane_changes.clone(),
            sessions: self.sessions,
            integrity_failures: self.tally.integrity_failures,
            seconds: self.started.elapsed().as_secs_f64(),
            codec_mix: self.tally.codec_mix(),
            rtt_ms: round_trip.map(|time| time.as_secs_f64() * 1e3),
            path: None,
            link: LinkKind::Tcp,
            passed_over: None,
            cpu_seconds: self.tally.cpu.as_secs_f64(),
            selection: selector.zip(self.selected_before.as_ref()).map(|(it, before)| it.summary(before)),
        }
    }
}

/// What changes.
pub(crate) struct State {
    /// What is offered for blocks to be made with.
    dictionary: Option<Arc<Dictionary>>,
    /// What the peer has asked for, if it is the one that dials.
    pub(super) asked: Option<Asked>,
    /// What ended the session of a peer that dials while nothing was sent.
    pub(crate) broken: Option<NetError>,
    /// The last thing that the peer that dials has said was goodbye, on some lane: it has left, if none is there.
    pub(super) goodbye: bool,
    /// Counts sessions; a lane of an earlier one ends itself.
    pub(super) epoch: u64,
    /// The session of this epoch; none when the receiver has forgotten it.
    pub(super) link: Option<Link>,
    /// Somebody is opening a session.
    pub(super) opening: bool,
    pub(super) session: Option<SenderSession>,
    pub(super) job: Option<Job>,
    pub(super) lanes: HashMap<LaneId, LaneHandle>,
    /// The lane that has opened the session was made, and is about to be among `lanes`.
    pub(super) is_first_due: bool,
    next_lane: LaneId,
    /// Lanes of which the number is not below this are given up in peace, and not made again.
    pub(super) wanted: u16,
    /// Blocks of the largest transfer so far.
    pub(super) most_blocks: u64,
    /// Since when there is no lane, where there is none; lanes that brought nothing do not count.
    pub(super) lonely_since: Instant,
    /// A lane has lasted or the receiver has taken blocks since `lonely_since`.
    pub(super) progressed: bool,
    /// When something of the transfer last moved.
    pub(super) moved: Instant,
    pub(super) closing: bool,
    /// What lanes of earlier epochs tell the receiver; they part in peace without it.
    pub(super) parting: Option<ErrorFrame>,
    pub(super) last_failure: Option<NetError>,
    pub(super) round_trip: Option<Duration>,
    /// What carries the lane that was made last, and what was tried before it and why that does not.
    pub(crate) carried_by: (LinkKind, Option<String>),
    pub(super) telemetry: Telemetry,
    /// How far the receiver is taken to be.
    pub(super) distance: Distance,
}

impl State {
    /// Makes `job` the work of all lanes, on the present session where that can carry it. They are yet to be woken.
    pub(super) fn begin(&mut self, job: Job) {
        let (manifest, base_allowed) = (Arc::clone(&job.manifest), job.base_allowed);
        if let Some(session) = &mut self.session
            && session.begin(manifest, base_allowed).is_err()
        {
            // Frames of the last transfer may still be under way somewhere.
            self.renew(None);
        }
        self.job = Some(job);
        self.last_failure = None;
        self.lonely_since = Instant::now();
        self.progressed = false;
        self.moved = Instant::now();
        self.prepare_session();
        if let Some(job) = &mut self.job {
            job.tally = Tally::on_lanes(self.lanes.len());
        }
        self.telemetry.begin();
    }

    /// Makes the state machine of the job where there is none.
    fn prepare_session(&mut self) {
        if let (None, Some(job)) = (&self.session, &self.job) {
            let options = SenderOptions { max_unacked_bytes: MAX_UNACKED_BYTES, ..SenderOptions::default() };
            let takes = self.link.as_ref().is_some_and(|link| link.limits.max_dictionary > 0);
            let mut session = SenderSession::new(Arc::clone(&job.manifest), job.base_allowed, options)
                .offering(self.dictionary.clone().filter(|_| takes));
            self.lanes.keys().for_each(|lane| session.attach(*lane));
            self.session = Some(session);
        }
    }

    /// Forgets the session; its lanes end themselves, with `parting` as their last word.
    pub(crate) fn renew(&mut self, parting: Option<ErrorFrame>) {
        if let (Some(session), Some(job)) = (self.session.take(), &mut self.job) {
            let progress = session.progress();
            job.resent_before += progress.resent_blocks;
            job.helped_before += progress.helped_blocks;
            job.nacks_before += progress.nacks;
            job.wire_before += progress.sent_wire_bytes;
        }
        self.epoch += 1;
        (self.link, self.is_first_due) = (None, false);
        self.parting = parting;
        self.wake_all();
        self.telemetry.leave_all();
        if self.is_writing() {
            self.moved = Instant::now();
        }
        self.lanes.clear();
    }

    /// Ends the job with `failure`, and the session with it, since the receiver is in the middle of the transfer.
    pub(super) fn part(&mut self, failure: &NetError) {
        let parting = match failure {
            NetError::Peer { .. } => None,
            error => {
                let code = match error.code() {
                    ErrorCode::Internal => ErrorCode::Cancelled,
                    code => code,
                };
                Some(ErrorFrame::new(code, error.resumable(), &error.for_peer()))
            }
        };
        self.renew(parting);
        self.job = None;
    }

    /// Ends the job with `failure` for the caller of `send` to find.
    pub(super) fn fail(&mut self, failure: NetError) {
        if let Some(job) = &mut self.job
            && job.ended.is_none()
        {
            job.ended = Some(Err(failure));
        }
    }

    /// Takes the job, once it has ended.
    pub(super) fn take_ended(&mut self) -> Option<(Result<Committed, NetError>, Job)> {
        let ended = self.job.as_mut()?.ended.take()?;
        Some((ended, self.job.take()?))
    }

    /// Whether the lanes have something to do.
    pub(crate) fn busy(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.ended.is_none())
    }

    /// Whether lane `number` is worth making now: a block for each is there at least.
    pub(super) fn needs_lane(&self, number: u16) -> bool {
        let blocks = || self.job.as_ref().map_or(0, |job| job.manifest.total_blocks());
        self.busy() && (number == 0 || blocks() > u64::from(number))
    }

    /// Takes up the session that `welcome` tells of.
    pub(super) fn open(&mut self, welcome: &Welcome) {
        self.renew(None);
        (self.link, self.is_first_due) = (Some(Link::new(welcome)), true);
        if let Some(job) = &mut self.job {
            job.sessions += 1;
        }
        self.prepare_session();
    }

    /// What the peer asks for and was not answered, between transfers.
    pub(crate) fn request(&self) -> Option<&[u8]> {
        if self.job.is_some() { None } else { self.asked.as_ref().and_then(Asked::waiting) }
    }

    /// Whether the session can carry another transfer.
    pub(crate) fn is_reusable(&self) -> bool {
        self.session.as_ref().is_none_or(SenderSession::is_reusable)
    }

    /// Whether it could, but for answers that are on their way.
    pub(super) fn awaits_copies(&self) -> bool {
        !self.closing && self.session.as_ref().is_some_and(SenderSession::awaits_copies)
    }

    /// Whether there are lanes, or the first is about to be there.
    pub(super) fn has_lanes(&self) -> bool {
        self.is_first_due || !self.lanes.is_empty()
    }

    /// Whether no lane has been there for `limit`.
    pub(crate) fn is_lonely(&self, limit: Duration) -> bool {
        self.lanes.is_empty() && self.lonely_since.elapsed() >= limit
    }

    /// Why a peer of which no lane came back is given up.
    pub(crate) fn gone(&mut self) -> NetError {
        let gone = NetError::PeerClosed { phase: "sending", hint: Some("it did not come back") };
        self.last_failure.take().unwrap_or(gone)
    }

    /// Takes the request that the next transfer answers, if it is the peer that dials.
    pub(super) fn answer(&mut self) -> Result<(), NetError> {
        if self.asked.is_none() {
            return Ok(());
        }
        if self.is_over() {
            let over = NetError::PeerClosed { phase: "waiting", hint: Some("its session is over") };
            return Err(self.broken.take().unwrap_or(over));
        }
        if !self.is_reusable() {
            self.renew(None);
            return Err(dwcp_proto::SessionError::NotReusable.into());
        }
        self.asked.as_mut().and_then(Asked::answer).map(drop).ok_or(NetError::NotAsked)
    }

    /// Whether the session of a peer that dials has ended: it is never opened again from here.
    pub(crate) fn is_over(&self) -> bool {
        self.closing || self.has_parted() || self.link.is_none()
    }

    /// Whether the peer that dials has left. It may drop lanes that it was still making without a word then.
    pub(super) fn has_parted(&self) -> bool {
        self.goodbye && self.lanes.is_empty()
    }

    /// Adds the lane that the peer calls `number`, unless the session is over or has as many as it may. An earlier
    /// lane of that number is lost, whether or not that is known here, and what it carried goes again on others.
    pub(crate) fn admit(&mut self, number: u16, waker: Waker, closer: Closer) -> Option<LaneId> {
        let limit = usize::from(self.link.as_ref()?.max_lanes);
        // One that is replaced is there until its thread has noticed.
        if self.is_over() || self.lanes.len() >= 2 * limit {
            return None;
        }
        for lost in self.lanes.values_mut().filter(|lane| lane.number == number && !lane.replaced) {
            lost.replaced = true;
            lost.closer.close();
        }
        let present = self.lanes.values().filter(|lane| !lane.replaced).count();
        (present < limit).then(|| self.attach(number, waker, closer))
    }

    /// Adds a lane of the present epoch.
    pub(super) fn attach(&mut self, number: u16, waker: Waker, closer: Closer) -> LaneId {
        let lane = self.next_lane;
        self.next_lane += 1;
        self.is_first_due = false;
        self.lanes.insert(lane, LaneHandle::new(number, waker, closer));
        if let Some(session) = &mut self.session {
            session.attach(lane);
        }
        if let Some(job) = &mut self.job {
            job.tally.lanes_used += 1;
        }
        lane
    }

    /// Has the telemetry look at a lane of the present epoch. It was asked to send as the session is to: before, what it
    /// shows is what the system has given it.
    pub(super) fn watch(&mut self, lane: LaneId, epoch: u64) {
        if self.epoch == epoch
            && let Some(handle) = self.lanes.get(&lane)
        {
            self.telemetry.watch(lane, handle.closer.clone());
        }
    }

    /// Takes a lane away, if it is of the present epoch.
    pub(crate) fn detach(&mut self, lane: LaneId, epoch: u64) {
        if self.epoch != epoch {
            return;
        }
        let Some(lost) = self.lanes.remove(&lane) else { return };
        if lost.writing {
            self.moved = Instant::now();
        }
        self.telemetry.leave(lane);
        if let Some(session) = &mut self.session {
            session.detach(lane);
        }
        // A receiver that lets lanes in only to end them is as good as gone.
        if self.lanes.is_empty() && std::mem::take(&mut self.progressed) {
            self.lonely_since = Instant::now();
        }
        self.wake_all();
    }

    /// Takes a lane away that the receiver has not let in; what was sent on it goes on others.
    pub(super) fn turn_back(&mut self, lane: LaneId, epoch: u64) {
        self.detach(lane, epoch);
        if let (true, Some(job)) = (self.epoch == epoch, &mut self.job) {
            job.tally.lanes_used = job.tally.lanes_used.saturating_sub(1);
        }
    }

    /// Takes a frame of the receiver.
    pub(super) fn receive(&mut self, lane: LaneId, epoch: u64, frame: Frame) -> Result<(), NetError> {
        if self.epoch != epoch {
            return Ok(());
        }
        if frame != Frame::KeepAlive {
            self.moved = Instant::now();
        }
        // Whoever leaves says goodbye on each lane, and nothing after it.
        self.goodbye &= frame == Frame::KeepAlive;
        let frame = match (frame, &mut self.asked) {
            (Frame::Fetch(fetch), Some(asked)) => {
                asked.receive(fetch)?;
                return Ok(());
            }
            (frame, _) => frame,
        };
        let Some(session) = &mut self.session else {
            return match frame {
                Frame::KeepAlive | Frame::Close => Ok(()),
                Frame::Error(error) => Err(dwcp_proto::SessionError::Peer {
                    code: error.code,
                    retryable: error.retryable,
                    message: error.message,
                }
                .into()),
                other => {
                    let frame = other.name();
                    Err(dwcp_proto::SessionError::Unexpected { frame, phase: "idle" }.into())
                }
            };
        };
        // The lane itself asks again anyway.
        let wakes = matches!(frame, Frame::Accept(_) | Frame::Nack(_)) && self.lanes.len() > 1;
        let done = |session: &SenderSession| {
            let progress = session.progress();
            progress.blocks_sent + progress.blocks_same
        };
        let (before, under_way) = (done(session), session.bytes_under_way(lane));
        session.receive(lane, frame)?;
        let taken = under_way - session.bytes_under_way(lane);
        self.progressed |= done(session) > before;
        if let (Some(committed), Some(job)) = (session.outcome(), &mut self.job)
            && job.ended.is_none()
        {
            let trees = (0..job.manifest.entries().len() as u32)
                .map(|entry| session.tree_digest(entry).unwrap_or(Digest([0; 16])))
                .collect();
            job.result = Some((session.progress(), trees));
            job.ended = Some(Ok(committed));
        }
        if taken > 0 {
            self.acknowledged(lane, taken, Instant::now());
        }
        if wakes {
            self.wake_all();
        }
        Ok(())
    }

    /// What wakes each lane.
    pub(super) fn wakers(&self) -> Vec<Waker> {
        self.lanes.values().map(|lane| lane.waker.clone()).collect()
    }

    pub(super) fn wake_all(&self) {
        self.lanes.values().for_each(|lane| lane.waker.wake());
    }

    pub(crate) fn progress(&self) -> Progress {
        let Some(job) = &self.job else { return Progress::default() };
        let session = self.session.as_ref().map(SenderSession::progress);
        let count = |read: fn(&SenderProgress) -> u64| session.as_ref().map_or(0, read);
        Progress {
            state_bytes_done: count(|progress| {
                progress.held_bytes + progress.same_bytes + progress.sent_raw_bytes
            }),
            state_bytes_total: job.manifest.total_bytes(),
            wire_bytes: job.wire_before + count(|progress| progress.sent_wire_bytes),
            lanes: self.lanes.len() as u32,
            blocks_resent: job.resent_before + count(|progress| progress.resent_blocks),
            path: self.telemetry.now(),
        }
    }
}
