//! A lane's transport over two rings.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_codec::PastCache;
use dwcp_codec::digest::BlockHasher;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::{Closer, Ending, IO_BYTES, LinkKind, Patience, SOCKET_SLICE, Transport, WakeReceiver};
use super::local::{Bell, LocalStream};
use super::region::Region;
use super::ring::{Consumer, Producer, RingError, Way};
use crate::error::NetError;
use crate::security::Fingerprint;

/// So much is copied at a time where it is looked at on the way: it stays in the first cache.
const PIECE_BYTES: usize = 8 << 10;

/// What a thread sleeps for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Data,
    Room,
}

/// Two rings, and the socket that rings whoever sleeps and ends with the peer.
pub(crate) struct ShmTransport {
    bell: Arc<Bell>,
    out: Producer,
    back: Consumer,
    /// The socket has ended: nothing more is put in on the other side.
    ended: bool,
    local: SocketAddr,
    peer: SocketAddr,
    fingerprint: Option<Fingerprint>,
}

impl ShmTransport {
    /// Takes over the socket of a peer that shares `region`, with rings of so many bytes; `way` is this side's.
    pub(super) fn new(
        stream: LocalStream,
        region: Arc<Region>,
        (way, ring_bytes): (Way, u32),
        fingerprint: Option<Fingerprint>,
    ) -> Result<ShmTransport, NetError> {
        let LocalStream { bell, local, peer } = stream;
        bell.socket.set_nonblocking(true).map_err(|source| NetError::Io {
            action: "set up",
            addr: peer.to_string(),
            source,
        })?;
        let other = if way == Way::There { Way::Back } else { Way::There };
        let out = Producer::new(Arc::clone(&region), way, ring_bytes);
        let back = Consumer::new(region, other, ring_bytes);
        Ok(ShmTransport { bell, out, back, ended: false, local, peer, fingerprint })
    }

    fn broken(&self, error: RingError) -> NetError {
        let source = io::Error::new(io::ErrorKind::InvalidData, error);
        NetError::Io { action: "use", addr: format!("shared memory with {}", self.peer), source }
    }

    fn gone(phase: &'static str) -> NetError {
        NetError::PeerClosed { phase, hint: None }
    }

    /// Whether there is what is needed.
    fn has(&self, need: Need) -> Result<bool, NetError> {
        let found = match need {
            Need::Data => self.back.available(),
            Need::Room => self.out.room(),
        };
        found.map(|bytes| bytes > 0).map_err(|error| self.broken(error))
    }

    /// Sleeps until there may be what is needed, for at most `timeout`; also comes back when `wake` is rung.
    fn sleep(&mut self, need: Need, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<(), NetError> {
        self.announce(need, true);
        let slept = match self.has(need) {
            Ok(false) if !self.ended => self.listen(timeout, wake),
            found => found.map(drop),
        };
        self.announce(need, false);
        slept
    }

    fn announce(&self, need: Need, on: bool) {
        match need {
            Need::Data => self.back.await_data(on),
            Need::Room => self.out.await_room(on),
        }
    }

    /// Waits for a ring of the peer, its end, or `wake`.
    fn listen(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<(), NetError> {
        let spec = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let socket = PollFd::new(&self.bell.socket, PollFlags::IN);
        let (polled, rung) = match wake {
            Some(wake) => {
                let mut fds = [socket, PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
                let polled = poll(&mut fds, Some(&spec));
                if !fds[1].revents().is_empty() {
                    wake.clear();
                }
                (polled, !fds[0].revents().is_empty())
            }
            None => {
                let mut fds = [socket];
                (poll(&mut fds, Some(&spec)), !fds[0].revents().is_empty())
            }
        };
        match polled {
            Ok(_) if rung => self.hear(),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => {
                let addr = self.peer.to_string();
                Err(NetError::Io { action: "wait for", addr, source: error.into() })
            }
        }
    }

    /// Forgets rings that have come, no more than some at a time, and notices the end.
    fn hear(&mut self) -> Result<(), NetError> {
        let mut rings = [0; 64];
        match (&self.bell.socket).read(&mut rings) {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) => match super::super::sort(error) {
                super::super::Failure::Retry => {}
                super::super::Failure::Closed => self.ended = true,
                super::super::Failure::Other(source) => {
                    return Err(NetError::Io { action: "read from", addr: self.peer.to_string(), source });
                }
            },
        }
        Ok(())
    }

    fn send_one(&mut self, bytes: &[u8], patience: Patience) -> Result<(), NetError> {
        let mut rest = bytes;
        let mut last = Instant::now();
        while !rest.is_empty() {
            if self.ended || self.bell.is_shut() {
                return Err(ShmTransport::gone("sending"));
            }
            let piece = &rest[..rest.len().min(IO_BYTES)];
            let count = self.out.push(piece).map_err(|error| self.broken(error))?;
            rest = &rest[count..];
            if count > 0 {
                last = Instant::now();
                if let Patience::Until(..) = patience {
                    patience.check(last, "sending")?;
                }
            }
            if count == IO_BYTES || (count == 0 && !rest.is_empty()) {
                self.ring_for_data();
            }
            if count == 0 && !rest.is_empty() {
                self.sleep(Need::Room, SOCKET_SLICE, None)?;
                patience.check(last, "waiting for the peer")?;
            }
        }
        Ok(())
    }

    fn ring_for_data(&self) {
        if self.out.is_awaited() {
            self.bell.ring();
        }
    }

    /// Takes what is there, and lets the other side know that there is room.
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, NetError> {
        let most = buffer.len().min(IO_BYTES);
        let count = self.back.pull(&mut buffer[..most]).map_err(|error| self.broken(error))?;
        self.ring_for_room(count)?;
        Ok(count)
    }

    fn ring_for_room(&self, taken: usize) -> Result<(), NetError> {
        if taken > 0 && self.back.is_awaited().map_err(|error| self.broken(error))? {
            self.bell.ring();
        }
        Ok(())
    }
}

impl Transport for ShmTransport {
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        let sent = parts.iter().try_for_each(|part| self.send_one(part, patience));
        self.ring_for_data();
        sent
    }

    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError> {
        let mut done = 0;
        let mut last = Instant::now();
        while done < least {
            if self.bell.is_shut() {
                return Err(ShmTransport::gone("exchanging data"));
            }
            let count = self.take(&mut buffer[done..])?;
            done += count;
            if count > 0 {
                last = Instant::now();
                if let Patience::Until(..) = patience {
                    patience.check(last, "waiting for the peer")?;
                }
            } else if self.ended {
                return Err(ShmTransport::gone("exchanging data"));
            } else {
                self.sleep(Need::Data, SOCKET_SLICE, None)?;
                patience.check(last, "waiting for the peer")?;
            }
        }
        Ok(done)
    }

    /// What is hashed is a copy, since the peer may change what it has sent, and that goes past the cache to its place:
    /// otherwise that would be read from memory only to be written over.
    fn take_hashing(
        &mut self,
        place: &mut [u8],
        hasher: &mut BlockHasher,
        _patience: Patience,
    ) -> Result<usize, NetError> {
        let mut piece = [0; PIECE_BYTES];
        let mut past_cache = PastCache::new();
        let most = place.len().min(IO_BYTES);
        let mut done = 0;
        while done < most {
            let length = PIECE_BYTES.min(most - done);
            let count = self.back.pull(&mut piece[..length]).map_err(|error| self.broken(error))?;
            hasher.update(&piece[..count]);
            past_cache.copy(&piece[..count], &mut place[done..done + count]);
            done += count;
            if count < length {
                break;
            }
        }
        if done == 0 && (self.ended || self.bell.is_shut()) {
            return Err(ShmTransport::gone("exchanging data"));
        }
        self.ring_for_room(done)?;
        Ok(done)
    }

    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        if self.has(Need::Data)? || self.ended {
            return Ok(true);
        }
        if timeout.is_zero() && wake.is_none() {
            self.listen(Duration::ZERO, None)?;
        } else {
            self.sleep(Need::Data, timeout, wake)?;
        }
        Ok(self.has(Need::Data)? || self.ended)
    }

    fn finish(&mut self, linger: Duration) {
        if self.bell.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let patience = Patience::for_time(linger);
        let mut rest = vec![0; IO_BYTES];
        while patience.check(Instant::now(), "closing").is_ok() {
            match self.take(&mut rest) {
                Ok(0) if self.ended => return,
                Ok(0) if self.sleep(Need::Data, SOCKET_SLICE, None).is_ok() => {}
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.bell) as Arc<dyn Ending>)
    }

    fn kind(&self) -> LinkKind {
        LinkKind::Shm
    }

    fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}
