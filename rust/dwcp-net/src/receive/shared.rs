//! What the lanes of a receiver's session share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use dwcp_codec::Digest;
use dwcp_proto::SessionError;
use dwcp_proto::fetch::Asking;
use dwcp_proto::frame::{Committed, ErrorCode, ErrorFrame, Secret, SessionId, TransferId};
use dwcp_proto::receiver::{LaneId, ReceiverSession};
use dwcp_store::Sink;

use super::{CONFIRMATION, ReceiveOptions};
use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;
use crate::lanes::LaneChange;
use crate::listen::Registry;
use crate::report::{Observer, Progress, ReceiveReport, Tally};
use crate::security::Fingerprint;
use crate::transport::{Closer, LinkKind, Waker};

/// A session that this receiver knows.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) key: Secret,
    /// The certificate of the sender that opened it; only the same may join.
    pub(crate) owner: Option<Fingerprint>,
    pub(crate) peer: SocketAddr,
    pub(crate) options: ReceiveOptions,
    /// For how long a lane may be missing.
    pub(crate) patience: Duration,
    pub(crate) cancel: Cancel,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
    /// Lanes store blocks with a share of it; preparing, committing and discarding need it alone.
    pub(super) gate: RwLock<()>,
}

/// A lane of the session.
struct LaneHandle {
    /// The sender's number for it.
    number: u16,
    waker: Waker,
    closer: Closer,
    /// Its sender has made another in its place.
    replaced: bool,
}

/// What changes.
pub(crate) struct State {
    pub(super) session: ReceiverSession,
    /// What carries the lane that was made last.
    pub(crate) carried_by: LinkKind,
    lanes: HashMap<LaneId, LaneHandle>,
    next_lane: LaneId,
    /// Since when there is no lane, where there is none; on the side that dials, lanes that brought nothing do not count.
    pub(crate) lonely_since: Instant,
    /// A lane has lasted or blocks have come since `lonely_since`.
    pub(super) progressed: bool,
    /// When the last frame came.
    pub(crate) heard: Instant,
    /// Where the transfer goes; there while somebody waits for it.
    pub(crate) sink: Option<Arc<dyn Sink>>,
    /// The transfer that is under way.
    pub(crate) transfer: Option<TransferId>,
    pub(super) prepared: bool,
    started: Instant,
    pub(super) tally: Tally,
    /// The transfer is in place, and the sender is being told; `done` follows.
    pub(super) telling: bool,
    /// A transfer that is in place and that nobody was told of yet.
    pub(super) done: Option<ReceiveReport>,
    /// The session is over: in peace, or with a failure that is told once.
    pub(crate) ended: Option<Option<NetError>>,
    /// What the lanes tell the sender then; they part in peace without it.
    pub(super) parting: Option<ErrorFrame>,
    /// Why the last lane was lost.
    pub(crate) last_failure: Option<NetError>,
    /// The lane that the last COMMITTED went on, until it is known that the sender has read it.
    pub(super) unconfirmed: Option<LaneId>,
    /// When the last transfer was put in place.
    committed: Instant,
    /// The session ends as soon as that is known.
    pub(super) leaving: bool,
    /// What this side asks for, if it is the one that has dialled.
    pub(super) asking: Option<Asking>,
    /// The sender ended the session or does not know it any more; what was asked for is to be asked for in another.
    pub(crate) forgotten: bool,
    /// The last thing that the sender has said was goodbye, on some lane: it has left, if none is there.
    pub(super) goodbye: bool,
    /// Lanes of which the number is not below this are given up in peace, and not made again, on the side that dials.
    pub(crate) wanted: u16,
    /// How that was changed in this transfer, if it may be.
    pub(crate) lane_changes: Vec<LaneChange>,
}

/// Which side has made the session, and what it is called.
pub(crate) struct Names {
    pub(crate) id: SessionId,
    pub(crate) key: Secret,
    /// The certificate of the other side.
    pub(crate) owner: Option<Fingerprint>,
    pub(crate) peer: SocketAddr,
    /// What carries the lane that has opened it.
    pub(crate) link: LinkKind,
}

impl Session {
    /// A session for a sender that has shown who it is; with `patience`, for a sender that was dialled.
    pub(crate) fn new(
        names: Names,
        options: ReceiveOptions,
        patience: Option<Duration>,
        cancel: Cancel,
        observer: Arc<dyn Observer>,
        registry: Arc<Registry>,
    ) -> Session {
        let Names { id, key, owner, peer, link } = names;
        Session {
            id,
            key,
            owner,
            peer,
            patience: patience.unwrap_or(options.idle_timeout),
            state: Mutex::new(State {
                carried_by: link,
                asking: patience.map(|_| Asking::default()),
                forgotten: false,
                goodbye: false,
                wanted: u16::MAX,
                lane_changes: Vec::new(),
                session: ReceiverSession::new(options.limits).knowing(Arc::clone(&options.dictionaries)),
                lanes: HashMap::new(),
                next_lane: 0,
                lonely_since: Instant::now(),
                progressed: false,
                heard: Instant::now(),
                sink: None,
                transfer: None,
                prepared: false,
                started: Instant::now(),
                tally: Tally::default(),
                telling: false,
                done: None,
                ended: None,
                parting: None,
                last_failure: None,
                unconfirmed: None,
                committed: Instant::now(),
                leaving: false,
            }),
            options,
            cancel,
            observer,
            registry,
            changed: Condvar::new(),
            gate: RwLock::new(()),
        }
    }

    /// Asks the sender, which was dialled, for a transfer.
    pub(crate) fn ask(&self, request: Arc<[u8]>) {
        let mut state = lock(&self.state);
        // Nobody looks for lost lanes before there is something to do.
        state.lonely_since = Instant::now();
        state.progressed = false;
        if let Some(asking) = &mut state.asking {
            asking.ask(request);
        }
        state.wake_all();
        self.changed.notify_all();
    }

    /// Ends the session if it has had no lane for too long.
    pub(crate) fn expire(&self, state: &mut State) {
        let limit = self.patience;
        if state.ended.is_none() && state.lanes.is_empty() && state.lonely_since.elapsed() >= limit {
            let phase = if state.transfer.is_some() { "sending" } else { "idle" };
            let gone = NetError::PeerClosed { phase, hint: Some("it did not come back") };
            let failure = state.last_failure.take().unwrap_or(gone);
            state.end(Some(failure), false);
            self.changed.notify_all();
        }
    }

    /// Lets the sender learn of a commit before the session ends: it is asked to read everything on the lane that
    /// COMMITTED went on, and if that is lost, the session is there for the sender to ask again until `patience` has
    /// passed since the commit.
    pub(super) fn linger(&self, patience: Duration) {
        let mut state = lock(&self.state);
        while state.ended.is_none() && !self.cancel.is_cancelled() {
            if state.unconfirmed.is_none() || state.committed.elapsed() >= patience {
                return;
            }
            if !std::mem::replace(&mut state.leaving, true) {
                state.wake_all();
            }
            state = wait(&self.changed, state, CANCEL_SLICE);
        }
    }

    /// Waits until all lanes have ended, and shuts those that have not by then.
    pub(super) fn await_lanes(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = lock(&self.state);
        while !state.lanes.is_empty() {
            if Instant::now() >= end || self.cancel.is_cancelled() {
                state.lanes.values().for_each(|lane| lane.closer.close());
            }
            // A lane that is inside the sink comes back when the disk does; the sink must not be used after that.
            state = wait(&self.changed, state, CANCEL_SLICE);
        }
    }
}

impl State {
    /// Adds the lane that the sender calls `number`, unless the session is over or has as many as it may. If it has,
    /// but the sender has lost one of them that is not yet known to be lost here, the new one takes its place.
    pub(crate) fn attach(&mut self, number: u16, waker: Waker, closer: Closer, limit: u16) -> Option<LaneId> {
        let limit = usize::from(limit);
        // One that is replaced is there until its thread has noticed.
        if self.ended.is_some() || self.lanes.len() >= 2 * limit {
            return None;
        }
        if self.lanes.values().filter(|lane| !lane.replaced).count() >= limit {
            let lost = self.lanes.values_mut().find(|lane| lane.number == number && !lane.replaced)?;
            lost.replaced = true;
            lost.closer.close();
        }
        let lane = self.next_lane;
        self.next_lane += 1;
        self.lanes.insert(lane, LaneHandle { number, waker, closer, replaced: false });
        self.session.attach(lane);
        self.tally.lanes_used += 1;
        Some(lane)
    }

    /// Takes a lane away.
    pub(super) fn detach(&mut self, lane: LaneId) {
        self.session.detach(lane);
        self.lanes.remove(&lane);
        if self.asking.as_mut().is_some_and(|asking| asking.detach(lane)) {
            self.wake_all();
        }
        if self.lanes.is_empty() {
            // A listener that lets lanes in only to end them is as good as gone.
            if std::mem::take(&mut self.progressed) || self.asking.is_none() {
                self.lonely_since = Instant::now();
            }
            // A sender that leaves may drop lanes that it was still making without a word.
            if self.goodbye && self.ended.is_none() {
                let early = NetError::PeerClosed { phase: "sending", hint: Some("it gave the transfer up") };
                let failure = self.transfer.is_some().then_some(early);
                self.forgotten = self.asking.is_some();
                self.end(failure, false);
            }
        }
    }

    /// The sender has said goodbye on a lane, or answered that of this side.
    pub(super) fn part_with(&mut self, lane: LaneId, answers: bool) {
        // It says goodbye to a lane on which COMMITTED was sent only when it has read it.
        let read = |told| told == lane || !self.lanes.contains_key(&told);
        if self.unconfirmed.is_some_and(read) {
            self.unconfirmed = None;
        }
        self.goodbye = !answers;
        self.detach(lane);
    }

    /// Whether a lane is one too many, on the side that dials.
    pub(super) fn is_surplus(&self, lane: LaneId) -> bool {
        self.transfer.is_some()
            && self.lanes.len() > 1
            && self.lanes.get(&lane).is_some_and(|handle| handle.number >= self.wanted)
    }

    /// Changes how many lanes there are to be, on the side that dials.
    pub(crate) fn want(&mut self, lanes: u16) {
        self.wanted = lanes;
        self.wake_all();
    }

    /// The transfer whose blocks flow, by the moment of its beginning, and the lanes; none when so few blocks are
    /// missing that more lanes would not help.
    pub(crate) fn flow(&self) -> Option<(Instant, Vec<(LaneId, Closer)>)> {
        let missing = self.session.missing_blocks();
        let flows = self.prepared && self.transfer.is_some() && missing > 2 * u64::from(self.wanted);
        let lanes = || self.lanes.iter().map(|(id, lane)| (*id, lane.closer.clone())).collect();
        flows.then(|| (self.started, lanes()))
    }

    /// Takes a lane away that the sender was never told of.
    pub(crate) fn withdraw(&mut self, lane: LaneId) {
        self.detach(lane);
        self.tally.lanes_used -= 1;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(crate) fn has_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Whether anything has come from the sender within `time`. Of a block that comes slowly a lane sees nothing for
    /// long; the system has seen its bytes.
    pub(crate) fn is_heard(&self, time: Duration) -> bool {
        let comes = |lane: &LaneHandle| lane.closer.path().is_some_and(|path| path.silent_for < time);
        self.heard.elapsed() < time || self.lanes.values().any(comes)
    }

    /// Ends the session, if it has not ended before; `tell` has the lanes tell the sender why.
    pub(crate) fn end(&mut self, failure: Option<NetError>, tell: bool) {
        if self.ended.is_some() {
            return;
        }
        self.parting = failure
            .as_ref()
            .filter(|_| tell)
            .map(|error| ErrorFrame::new(error.code(), error.resumable(), &error.for_peer()));
        self.ended = Some(failure);
        self.wake_all();
    }

    /// Ends the session as cancelled, with words of its own for the sender.
    pub(super) fn dismiss(&mut self, reason: &str) {
        if self.ended.is_none() {
            self.end(Some(NetError::Cancelled), false);
            self.parting = Some(ErrorFrame::new(ErrorCode::Cancelled, true, reason));
        }
    }

    pub(crate) fn wake_all(&self) {
        self.lanes.values().for_each(|lane| lane.waker.wake());
    }

    /// The failure that ended the session, the first time; later only that it is over.
    pub(super) fn take_failure(&mut self) -> Option<NetError> {
        let over = NetError::PeerClosed { phase: "closed", hint: Some("this session is over") };
        match &mut self.ended {
            Some(failure @ Some(_)) => failure.replace(over),
            _ => None,
        }
    }

    /// Whether lane `number` is worth making now, on the side that dials: small transfers are over before a second
    /// lane is there.
    pub(crate) fn needs_lane(&self, number: u16) -> bool {
        let blocks = || self.session.manifest().map_or(0, |manifest| manifest.total_blocks());
        match number {
            0 => {
                let asks = self.asking.as_ref().is_some_and(Asking::is_open);
                let confirms = self.unconfirmed.is_some() && self.committed.elapsed() < CONFIRMATION;
                asks || self.transfer.is_some() || confirms
            }
            number => self.transfer.is_some() && blocks() > u64::from(number),
        }
    }

    /// Whether the sender has sent anything of the present transfer.
    pub(crate) fn has_progress(&self) -> bool {
        self.transfer.is_some() && self.tally.sums().0 > 0
    }

    /// Notes that a transfer has begun, or goes on after its offer was repeated.
    ///
    /// # Errors
    /// [`SessionError::Unexpected`] when this side has dialled and has asked for nothing.
    pub(super) fn begin(&mut self, transfer: TransferId) -> Result<(), SessionError> {
        if self.transfer != Some(transfer) {
            if self.asking.as_mut().is_some_and(|asking| !asking.answered()) {
                return Err(SessionError::Unexpected { frame: "OFFER", phase: "idle" });
            }
            self.transfer = Some(transfer);
            // Whoever goes on to the next transfer has read that the last one is in place.
            self.unconfirmed = None;
            self.started = Instant::now();
            self.tally = Tally::on_lanes(self.lanes.len());
        }
        Ok(())
    }

    /// Whether somebody waits for a transfer to begin: who makes lanes for it, or who wants the last one to be confirmed.
    /// Whoever takes it waits for its end.
    pub(super) fn is_start_awaited(&self) -> bool {
        self.asking.is_some() || self.leaving
    }

    /// Notes that a block is verified and written.
    pub(super) fn stored(&mut self, lane: LaneId, entry: u32, offset: u64, digest: Digest, wire_len: u32) {
        self.session.stored(lane, entry, offset, digest, wire_len);
        self.progressed = true;
    }

    /// Notes that the transfer is in place, and makes room for the next.
    pub(super) fn finish(&mut self, committed: &Committed, peer: SocketAddr) -> ReceiveReport {
        let progress = self.session.progress();
        let (blocks_received, bytes_received_raw, bytes_wire) = self.tally.sums();
        let entries = self.session.manifest().map_or(0, |manifest| manifest.entries().len() as u32);
        let report = ReceiveReport {
            transfer_id: committed.transfer_id,
            transfer_digest: committed.transfer_digest,
            entries,
            bytes_raw: progress.total_bytes,
            bytes_held: progress.staged_bytes,
            bytes_same: progress.copied_bytes,
            bytes_received_raw,
            bytes_wire,
            blocks_received,
            blocks_same: progress.blocks_copied,
            nacks: progress.nacks,
            lanes_used: self.tally.lanes_used,
            lanes_lost: self.tally.lanes_lost,
            lane_changes: std::mem::take(&mut self.lane_changes),
            integrity_failures: self.tally.integrity_failures,
            seconds: self.started.elapsed().as_secs_f64(),
            codec_mix: self.tally.codec_mix(),
            cpu_seconds: self.tally.cpu.as_secs_f64(),
            peer,
            link: self.carried_by,
        };
        self.sink = None;
        self.transfer = None;
        self.prepared = false;
        self.last_failure = None;
        self.telling = true;
        self.committed = Instant::now();
        report
    }

    /// Hands the report of that to whoever waits for it: the sender was told.
    pub(super) fn tell(&mut self, report: ReceiveReport) {
        self.telling = false;
        self.done = Some(report);
    }

    pub(super) fn progress(&self) -> Progress {
        let progress = self.session.progress();
        Progress {
            state_bytes_done: progress
                .total_bytes
                .min(progress.staged_bytes + progress.stored_bytes + progress.copied_bytes),
            state_bytes_total: if self.transfer.is_some() { progress.total_bytes } else { 0 },
            wire_bytes: progress.body_bytes,
            lanes: self.lanes.len() as u32,
            blocks_resent: 0,
            path: None,
        }
    }
}
