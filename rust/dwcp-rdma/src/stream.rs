//! A byte stream over the messages of a connection.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::cm::{Id, Kind};
use crate::credits::{Credits, Note};
use crate::device::{device_names, limits_of};
use crate::error::RdmaError;
use crate::geometry::{CONTROL_SLOTS, Geometry};
use crate::queue::{Content, Done, Queue};
pub use crate::waiting::Shutter;
use crate::waiting::wait_for;

/// How long the end of a stream waits for what was sent to arrive.
const PARTING: Duration = Duration::from_millis(200);

/// Fewer bytes are copied rather than sent from where they are, in a message of their own.
const LEAST_LENT: usize = 4_096;

/// What a message says beside its content that says nothing.
const NOTHING: Note = Note { granted: 0, end: false };

/// The status of requests that were posted when the connection ended.
const FLUSHED: u32 = 5;

/// What a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// [`Stream::read`] gives something, or an end, or an error.
    Reading,
    /// [`Stream::write`] takes something, or fails.
    Writing,
}

/// A part of a message that was not read.
struct Unread {
    slot: u32,
    at: u32,
    length: u32,
}

/// A byte stream to a peer. No call blocks but [`Stream::wait`] and [`Stream::finish`].
pub struct Stream {
    queue: Queue,
    credits: Credits,
    /// The longest message that the peer takes.
    most: u32,
    /// The next slot to send from, in turn.
    slot: u32,
    /// Requests to send that are not known to be done, and of them those without content.
    sent: u64,
    done: u64,
    controls: VecDeque<u64>,
    unread: VecDeque<Unread>,
    /// The peer sends no more content.
    ended: bool,
    /// It has sent a message that says nothing, which it may before it leaves.
    parting: bool,
    fault: Option<RdmaError>,
    shutter: Shutter,
    local: SocketAddr,
    peer: SocketAddr,
    completions: Vec<Done>,
}

impl Stream {
    /// Connects to a listener, within `limit`. `shutter` ends it before that, and the stream later.
    ///
    /// # Errors
    /// [`RdmaError`]: there is no device or library, or nobody listens there.
    pub fn connect(
        target: SocketAddr,
        from: Option<IpAddr>,
        ours: Geometry,
        limit: Duration,
        shutter: Shutter,
    ) -> Result<Stream, RdmaError> {
        if device_names().is_empty() {
            return Err(RdmaError::NoDevice);
        }
        let until = (Instant::now() + limit, limit);
        let what = "making an rdma connection";
        let mut id = Id::new()?;
        id.resolve_address(from.map(|from| SocketAddr::new(from, 0)), target, limit)?;
        id.expect(Kind::AddrResolved, until, &shutter, what)?;
        id.resolve_route(limit)?;
        id.expect(Kind::RouteResolved, until, &shutter, what)?;
        let ours = ours.fit(&limits_of(id.verbs())?)?;
        let mut queue = Queue::new(id, ours)?;
        queue.id_mut().connect(&ours.greeting())?;
        let answer = queue.id().expect(Kind::Established, until, &shutter, what)?;
        let theirs = Geometry::read(&answer.greeting)?;
        Ok(Stream::new(queue, theirs, shutter))
    }

    pub(crate) fn new(queue: Queue, theirs: Geometry, shutter: Shutter) -> Stream {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let (local, peer) = queue.id().addresses();
        let ours = queue.geometry();
        Stream {
            credits: Credits::new(ours.slots, theirs.slots),
            most: theirs.slot_bytes.min(ours.slot_bytes),
            queue,
            slot: 0,
            sent: 0,
            done: 0,
            controls: VecDeque::new(),
            unread: VecDeque::new(),
            ended: false,
            parting: false,
            fault: None,
            shutter,
            local: local.unwrap_or(nowhere),
            peer: peer.unwrap_or(nowhere),
            completions: Vec::new(),
        }
    }

    /// The address of this side.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The address of the peer.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// What ends the stream from another thread.
    #[must_use]
    pub fn shutter(&self) -> Shutter {
        self.shutter.clone()
    }

    /// Sends of `parts`, in order, as much as the peer has slots for; tells how many bytes that is, 0 if it has none.
    ///
    /// What lies in [`Memory`](crate::Memory) is not copied: it must not change before the peer has it.
    ///
    /// # Errors
    /// [`RdmaError`]; the stream is of no more use then.
    pub fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<usize, RdmaError> {
        let mut rest = parts.iter().map(|part| &**part).filter(|part| !part.is_empty()).peekable();
        let lent_of = |queue: &Queue, part: &[u8]| {
            if part.len() < LEAST_LENT { None } else { queue.lent(part) }
        };
        let (slots, most) = (self.queue.geometry().slots, self.most as usize);
        let mut written = 0;
        while let Some(mut part) = rest.next() {
            let lent = lent_of(&self.queue, part);
            while !part.is_empty() {
                if !self.make_writable()? {
                    return Ok(written);
                }
                let slot = self.slot;
                let (content, length) = if let Some(lent) = &lent {
                    let (now, later) = part.split_at(part.len().min(most));
                    part = later;
                    (Content::Lent(now, lent), now.len())
                } else {
                    let mut filled = 0;
                    loop {
                        let (now, later) = part.split_at(part.len().min(most - filled));
                        self.queue.lend(slot)[filled..filled + now.len()].copy_from_slice(now);
                        filled += now.len();
                        part = later;
                        if filled == most {
                            break;
                        }
                        match rest.next_if(|next| lent_of(&self.queue, next).is_none()) {
                            Some(next) => part = next,
                            None => break,
                        }
                    }
                    (Content::Slot(filled as u32), filled)
                };
                self.credits.spend();
                let note = Note { granted: self.credits.tell(), end: false };
                // A quarter of them becomes free by one completion.
                let is_signaled = slot % (slots / 4) == slots / 4 - 1;
                self.sent = self.queue.send(Some((slot, content)), note.to_bytes(), is_signaled)? + 1;
                self.slot = (slot + 1) % slots;
                written += length;
            }
        }
        Ok(written)
    }

    /// Whether a message can be sent, after a look at what has happened where it could not.
    fn make_writable(&mut self) -> Result<bool, RdmaError> {
        if !self.is_writable() {
            self.progress()?;
            self.check()?;
        }
        Ok(self.is_writable())
    }

    /// Reads what there is, at least a byte; 0 at the end of the stream, none if nothing has come.
    ///
    /// # Errors
    /// [`RdmaError`], once all that came before was read.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RdmaError> {
        if self.unread.is_empty() {
            self.progress()?;
        }
        let mut read = 0;
        while read < buffer.len() {
            let Some(first) = self.unread.front_mut() else { break };
            let (slot, message) = (first.slot, self.queue.received(first.slot, first.length));
            let there = &message[first.at as usize..];
            let count = there.len().min(buffer.len() - read);
            buffer[read..read + count].copy_from_slice(&there[..count]);
            read += count;
            first.at += count as u32;
            if first.at >= first.length {
                self.unread.pop_front();
                self.free(slot)?;
            }
        }
        if read > 0 || buffer.is_empty() {
            return Ok(Some(read));
        }
        if self.ended {
            return Ok(Some(0));
        }
        self.check()?;
        Ok(None)
    }

    /// Waits until a call does something, for at most `timeout`; tells whether it does. Also comes back when `bell` is
    /// readable, and tells whether it was.
    ///
    /// # Errors
    /// [`RdmaError::Call`]; what has become of the connection the next call tells.
    pub fn wait(
        &mut self,
        interest: Interest,
        timeout: Duration,
        bell: Option<BorrowedFd<'_>>,
    ) -> Result<(bool, bool), RdmaError> {
        if bell.is_none() {
            // What is there already needs no call of the system.
            self.progress()?;
            if self.is_ready(interest) {
                return Ok((true, false));
            }
        }
        self.queue.arm()?;
        // What came before it was armed would not be heard of.
        self.progress()?;
        let timeout = if self.is_ready(interest) { Duration::ZERO } else { timeout };
        let descriptors =
            [Some(self.queue.fd()), Some(self.queue.id().channel().fd()), Some(self.shutter.as_fd()), bell];
        let [completed, told, _, rung] = wait_for(descriptors, timeout)?;
        if completed {
            self.queue.hear();
        }
        if told {
            self.listen_to_cm()?;
        }
        if completed || told {
            self.progress()?;
        }
        Ok((self.is_ready(interest), rung))
    }

    /// Tells the peer that nothing follows, and waits for at most `linger` until it has said the same. What still comes is
    /// not read.
    pub fn finish(&mut self, linger: Duration) {
        let end = Instant::now() + linger;
        if self.send_note(true).is_err() {
            return;
        }
        while self.fault.is_none() && !self.shutter.is_shut() && !(self.ended && self.done == self.sent) {
            while let Some(unread) = self.unread.pop_front() {
                if self.free(unread.slot).is_err() {
                    return;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            // A wait for reading is over at once when the peer has ended, and what was sent may still be under way.
            let interest = if self.ended { Interest::Writing } else { Interest::Reading };
            if left.is_zero() || self.wait_a_moment(interest, left).is_err() {
                return;
            }
        }
    }

    /// Waits for anything to happen: what `interest` is for may be there already.
    fn wait_a_moment(&mut self, interest: Interest, left: Duration) -> Result<(), RdmaError> {
        const MOMENT: Duration = Duration::from_millis(5);
        let (is_ready, _) = self.wait(interest, left, None)?;
        if is_ready && self.fault.is_none() {
            self.queue.arm()?;
            self.progress()?;
            wait_for([Some(self.queue.fd()), Some(self.shutter.as_fd())], left.min(MOMENT))?;
            self.queue.hear();
            self.progress()?;
        }
        Ok(())
    }

    fn is_ready(&self, interest: Interest) -> bool {
        let over = self.fault.is_some() || self.shutter.is_shut();
        match interest {
            Interest::Reading => over || self.ended || !self.unread.is_empty(),
            Interest::Writing => over || self.is_writable(),
        }
    }

    fn is_writable(&self) -> bool {
        self.fault.is_none() && self.credits.any_left() && self.queue.is_free(self.slot)
    }

    /// The reason for which the stream is of no use.
    fn check(&mut self) -> Result<(), RdmaError> {
        if self.shutter.is_shut() {
            return Err(RdmaError::Shut);
        }
        match &self.fault {
            None => Ok(()),
            Some(RdmaError::Completion { status }) => Err(RdmaError::Completion { status }),
            Some(RdmaError::Rule { reason }) => Err(RdmaError::Rule { reason }),
            Some(RdmaError::DeviceRemoved) => Err(RdmaError::DeviceRemoved),
            Some(_) => Err(RdmaError::Disconnected),
        }
    }

    /// Takes in what has happened.
    fn progress(&mut self) -> Result<(), RdmaError> {
        let mut completions = std::mem::take(&mut self.completions);
        loop {
            self.queue.poll(&mut completions)?;
            if completions.is_empty() {
                break;
            }
            for done in &completions {
                if let Err(fault) = self.take_in(*done) {
                    self.fail(fault);
                }
            }
        }
        self.completions = completions;
        self.tell_if_due()
    }

    fn take_in(&mut self, done: Done) -> Result<(), RdmaError> {
        match done {
            Done::Sent { number } => {
                self.done = self.done.max(number + 1);
                while self.controls.front().is_some_and(|first| *first <= number) {
                    self.controls.pop_front();
                }
                Ok(())
            }
            Done::Failed { status: FLUSHED } => Err(RdmaError::Disconnected),
            Done::Failed { status } => Err(RdmaError::Completion { status: status_name(status) }),
            Done::Odd { reason } => Err(RdmaError::Rule { reason }),
            Done::Received { slot, length, note } => {
                let note = Note::read(note)?;
                self.credits.granted(note.granted)?;
                if self.ended && (length > 0 || note.end) {
                    return Err(RdmaError::Rule { reason: "a message behind the end" });
                }
                self.ended |= note.end;
                if length > 0 {
                    self.unread.push_back(Unread { slot, at: 0, length });
                    return Ok(());
                }
                if note == NOTHING && std::mem::replace(&mut self.parting, true) {
                    // Any number of them could come, and nobody would ever be done with them.
                    return Err(RdmaError::Rule { reason: "messages that say nothing" });
                }
                self.queue.post_receive(slot)
            }
        }
    }

    /// The first reason counts, unless it is only that of what follows from another.
    fn fail(&mut self, fault: RdmaError) {
        if matches!(self.fault, None | Some(RdmaError::Disconnected)) {
            self.fault = Some(fault);
        }
    }

    fn listen_to_cm(&mut self) -> Result<(), RdmaError> {
        while let Some(event) = self.queue.id().channel().next()? {
            match event.kind {
                Kind::Disconnected => self.fail(RdmaError::Disconnected),
                Kind::DeviceRemoval => self.fail(RdmaError::DeviceRemoved),
                _ => {}
            }
        }
        Ok(())
    }

    /// A slot was read.
    fn free(&mut self, slot: u32) -> Result<(), RdmaError> {
        if self.fault.is_none() {
            self.queue.post_receive(slot)?;
            self.credits.free();
            self.tell_if_due()?;
        }
        Ok(())
    }

    fn tell_if_due(&mut self) -> Result<(), RdmaError> {
        // One that is left for the end.
        if self.fault.is_none() && self.credits.is_due() && self.controls.len() + 1 < CONTROL_SLOTS as usize {
            self.send_note(false)?;
        }
        Ok(())
    }

    fn send_note(&mut self, end: bool) -> Result<(), RdmaError> {
        self.check()?;
        let note = Note { granted: self.credits.tell(), end };
        let number = self.queue.send(None, note.to_bytes(), true)?;
        self.sent = number + 1;
        self.controls.push_back(number);
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A disconnection loses what is under way; requests without a completion of their own are behind the last that
        // has one, which is why a note follows them.
        let end = Instant::now() + PARTING;
        if self.done < self.sent && self.fault.is_none() && !self.shutter.is_shut() {
            let behind = self.controls.back().is_some_and(|last| last + 1 == self.sent);
            let told = behind || self.send_note(false).is_ok();
            while told && self.done < self.sent && self.fault.is_none() && !self.shutter.is_shut() {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() || self.wait_a_moment(Interest::Reading, left).is_err() {
                    break;
                }
            }
        }
        self.queue.id_mut().disconnect();
    }
}

fn status_name(status: u32) -> &'static str {
    const NAMES: [&str; 22] = [
        "success",
        "local length error",
        "local queue operation error",
        "local eec operation error",
        "local protection error",
        "flushed",
        "memory window bind error",
        "bad response",
        "local access error",
        "remote invalid request",
        "remote access error",
        "remote operation error",
        "the peer does not answer",
        "the peer was not ready to receive",
        "local rdd violation",
        "remote invalid read request",
        "remote aborted",
        "invalid eec number",
        "invalid eec state",
        "fatal error",
        "response timeout",
        "general error",
    ];
    NAMES.get(status as usize).copied().unwrap_or("unknown status")
}
