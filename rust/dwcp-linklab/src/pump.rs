//! The thread of one direction: reads one TUN device, waits as the model says, writes the other.

use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::model::{Counts, Direction};
use crate::packet::Bundle;
use crate::settings::{Nanos, Settings};

/// More than any bundle with its header.
const READ_BYTES: usize = 1 << 17;
/// Bundles read before what is due is written.
const READ_AT_ONCE: usize = 64;
/// A packet that arrives later than this after it was due counts as late.
const LATE: Nanos = 1_000_000;

/// What a direction is told while it runs.
pub enum Order {
    Change(Box<Settings>),
    Report(Sender<Report>),
}

/// What a direction did, and how well it kept time.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub counts: Counts,
    /// How long the line could have taken packets, and there was none: what it did not carry for want of them.
    pub idle: Nanos,
    /// Packets handed on more than a millisecond after they were due.
    pub late_packets: u64,
    pub max_late: Nanos,
    /// Sum over packets of the time from due to handed on.
    pub sum_late: Nanos,
    /// Calls that read or wrote a bundle of packets.
    pub reads: u64,
    pub writes: u64,
    /// Packets the other side's device refused.
    pub refused: u64,
}

/// The time that all directions share.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Nanos {
        self.0.elapsed().as_nanos() as Nanos
    }
}

/// A packet of a bundle, on its way.
struct Segment {
    bundle: Rc<Bundle>,
    index: usize,
}

/// One direction at work.
pub struct Pump {
    pub clock: Clock,
    pub input: Arc<OwnedFd>,
    pub output: Arc<OwnedFd>,
    /// Becomes readable when there is an order, or the end.
    pub bell: OwnedFd,
    pub orders: Receiver<Order>,
    /// Busy directions wake no more often than this.
    pub quantum: Duration,
}

/// Runs on, of one bundle: what can be written in one call.
struct Run {
    bundle: Rc<Bundle>,
    first: usize,
    count: usize,
}

impl Pump {
    /// Work until the other end of `orders` is gone, or a device fails.
    pub fn run(self, settings: Settings) -> io::Result<()> {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let mut link = Direction::new(settings);
        let mut report = Report::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut scratch = Vec::new();
        loop {
            let began = self.clock.now();
            if !self.obey(&mut link, &report)? {
                return Ok(());
            }
            let has_read = self.read(&mut link, &mut buffer, &mut report)?;
            let has_written = self.write(&mut link, &mut scratch, &mut report)?;
            if has_read || has_written {
                let spent = Duration::from_nanos(self.clock.now() - began);
                std::thread::sleep(self.quantum.saturating_sub(spent));
            } else {
                self.wait(link.next_at())?;
            }
        }
    }

    /// Do what was ordered; false at the end.
    fn obey(&self, link: &mut Direction<Segment>, report: &Report) -> io::Result<bool> {
        // Silenced before the orders are looked at: one that comes in between rings again.
        match rustix::io::read(&self.bell, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            match self.orders.try_recv() {
                Ok(Order::Change(settings)) => link.change(self.clock.now(), *settings),
                Ok(Order::Report(to)) => {
                    // Whoever asked may have gone.
                    let idle = link.idle(self.clock.now());
                    let _ = to.send(Report { counts: link.counts.clone(), idle, ..report.clone() });
                }
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
        }
    }

    fn read(
        &self,
        link: &mut Direction<Segment>,
        buffer: &mut [u8],
        report: &mut Report,
    ) -> io::Result<bool> {
        for turn in 0..READ_AT_ONCE {
            let length = match rustix::io::read(&self.input, &mut *buffer) {
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(turn > 0),
                Err(error) => return Err(error.into()),
            };
            report.reads += 1;
            let Some(bundle) = Bundle::new(&buffer[..length]) else { continue };
            let (bundle, now) = (Rc::new(bundle), self.clock.now());
            for index in 0..bundle.segments() {
                link.offer(now, bundle.length(index), Segment { bundle: Rc::clone(&bundle), index });
            }
        }
        Ok(true)
    }

    /// Hand on what is due, what belongs together in one call.
    fn write(
        &self,
        link: &mut Direction<Segment>,
        scratch: &mut Vec<u8>,
        report: &mut Report,
    ) -> io::Result<bool> {
        let mut run: Option<Run> = None;
        let mut has_written = false;
        let now = self.clock.now();
        while let Some((due, segment)) = link.take(now) {
            let late = now.saturating_sub(due);
            report.late_packets += u64::from(late > LATE);
            report.max_late = report.max_late.max(late);
            report.sum_late += late;
            has_written = true;
            if let Some(open) = &mut run
                && Rc::ptr_eq(&open.bundle, &segment.bundle)
                && open.first + open.count == segment.index
            {
                open.count += 1;
                continue;
            }
            let next = Run { bundle: segment.bundle, first: segment.index, count: 1 };
            if let Some(done) = run.replace(next) {
                self.hand_on(&done, scratch, report)?;
            }
        }
        if let Some(done) = run {
            self.hand_on(&done, scratch, report)?;
        }
        Ok(has_written)
    }

    fn hand_on(&self, run: &Run, scratch: &mut Vec<u8>, report: &mut Report) -> io::Result<()> {
        let (head, payload) = run.bundle.run(run.first, run.count, scratch);
        report.writes += 1;
        match rustix::io::writev(&self.output, &[IoSlice::new(head), IoSlice::new(payload)]) {
            Ok(_) => {}
            // An interface that is down, or short of memory: lost, as on a wire, but told.
            Err(Errno::AGAIN | Errno::IO | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL) => {
                report.refused += run.count as u64;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sleep until a packet or an order comes, or the time.
    fn wait(&self, until: Option<Nanos>) -> io::Result<()> {
        let timeout = until.map(|at| {
            let left = Duration::from_nanos(at.saturating_sub(self.clock.now()));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut watched = [
            PollFd::from_borrowed_fd(self.input.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN),
        ];
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
