//! Bytes in order from one process to another through memory that both can write to.
//!
//! Each side keeps its own index and only ever writes it; the other's it reads once for each decision and checks, so
//! that whatever stands there, nothing outside the ring is touched.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::region::{INDEX_BYTES, Region};

/// Which of the two rings of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the side that has dialled.
    There = 0,
    /// To it.
    Back = 1,
}

/// The lines of the indices of a ring, of which there are four.
const HEAD: usize = 0;
const TAIL: usize = 1;
const DATA_WANTED: usize = 2;
const ROOM_WANTED: usize = 3;
const LINES: usize = 4;

/// How long a region with rings of so many bytes is.
pub(super) fn region_bytes(ring_bytes: u32) -> usize {
    INDEX_BYTES + 2 * ring_bytes as usize
}

/// The other side's index cannot be one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's index {index} does not fit {own} of this side and a ring of {capacity} bytes")]
pub(super) struct RingError {
    index: u64,
    own: u64,
    capacity: u64,
}

/// One end of a ring.
#[derive(Debug)]
struct End {
    region: Arc<Region>,
    way: Way,
    capacity: u64,
    /// How many bytes this side has moved so far.
    own: u64,
}

impl End {
    fn line(&self, line: usize) -> usize {
        self.way as usize * LINES + line
    }

    fn load(&self, line: usize) -> u64 {
        self.region.index(self.line(line)).load(Ordering::Acquire)
    }

    fn publish(&self, line: usize) {
        self.region.index(self.line(line)).store(self.own, Ordering::Release);
    }

    /// Moves `length` bytes at this side's index, in two pieces where the ring ends in between.
    fn pieces(&self, length: usize) -> [(usize, usize, usize); 2] {
        let at = (self.own & (self.capacity - 1)) as usize;
        let first = length.min(self.capacity as usize - at);
        let start = self.way as usize * self.capacity as usize;
        [(start + at, 0, first), (start, first, length)]
    }

    fn check(&self, index: u64, used: u64) -> Result<usize, RingError> {
        let (own, capacity) = (self.own, self.capacity);
        if used <= capacity { Ok(used as usize) } else { Err(RingError { index, own, capacity }) }
    }

    /// Says that this side is about to sleep until there is something on `line`, before it looks a last time.
    fn want(&self, line: usize) {
        self.region.index(self.line(line)).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn unwant(&self, line: usize) {
        self.region.index(self.line(line)).store(0, Ordering::Relaxed);
    }

    /// Whether the other side sleeps and is to be rung. Comes after this side's index was published.
    fn is_wanted(&self, line: usize) -> bool {
        fence(Ordering::SeqCst);
        let flag = self.region.index(self.line(line));
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
    }
}

/// The end that bytes go into.
#[derive(Debug)]
pub(super) struct Producer(End);

impl Producer {
    pub(super) fn new(region: Arc<Region>, way: Way, ring_bytes: u32) -> Producer {
        Producer(End { region, way, capacity: ring_bytes.into(), own: 0 })
    }

    /// How many bytes fit now.
    pub(super) fn room(&self) -> Result<usize, RingError> {
        let tail = self.0.load(TAIL);
        let used = self.0.check(tail, self.0.own.wrapping_sub(tail))?;
        Ok(self.0.capacity as usize - used)
    }

    /// Puts in as many of `bytes` as fit, and tells how many that is.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let length = bytes.len().min(self.room()?);
        for (at, from, to) in self.0.pieces(length) {
            self.0.region.write(at, &bytes[from..to]);
        }
        self.0.own = self.0.own.wrapping_add(length as u64);
        self.0.publish(HEAD);
        Ok(length)
    }

    /// Whether the other side waits for what was put in.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.is_wanted(DATA_WANTED)
    }

    /// Says that this side waits for room, or not any more.
    pub(super) fn await_room(&self, on: bool) {
        if on { self.0.want(ROOM_WANTED) } else { self.0.unwant(ROOM_WANTED) }
    }
}

/// The end that bytes come out of.
#[derive(Debug)]
pub(super) struct Consumer(End);

impl Consumer {
    pub(super) fn new(region: Arc<Region>, way: Way, ring_bytes: u32) -> Consumer {
        Consumer(End { region, way, capacity: ring_bytes.into(), own: 0 })
    }

    /// How many bytes are there now.
    pub(super) fn available(&self) -> Result<usize, RingError> {
        let head = self.0.load(HEAD);
        self.0.check(head, head.wrapping_sub(self.0.own))
    }

    /// Takes out as many bytes as there are and `bytes` has room for, and tells how many that is.
    pub(super) fn pull(&mut self, bytes: &mut [u8]) -> Result<usize, RingError> {
        let length = bytes.len().min(self.available()?);
        for (at, from, to) in self.0.pieces(length) {
            self.0.region.read(at, &mut bytes[from..to]);
        }
        self.0.own = self.0.own.wrapping_add(length as u64);
        self.0.publish(TAIL);
        Ok(length)
    }

    /// Whether the other side waits for room and has got enough to go on with: half of the ring, so that the two do not
    /// ring each other for every few bytes.
    pub(super) fn is_awaited(&self) -> Result<bool, RingError> {
        Ok(2 * self.available()? as u64 <= self.0.capacity && self.0.is_wanted(ROOM_WANTED))
    }

    /// Says that this side waits for bytes, or not any more.
    pub(super) fn await_data(&self, on: bool) {
        if on { self.0.want(DATA_WANTED) } else { self.0.unwant(DATA_WANTED) }
    }
}
