//! Plain TCP.

use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::buffers::widen;
use super::congestion::{congestion_of, set_congestion};
use super::stream::{Stream, again, read_some};
use super::{Closer, Ending, PathInfo, Patience, SOCKET_SLICE, Transport, WakeReceiver};
use crate::error::NetError;
use crate::security::Fingerprint;

/// How many bytes may wait in the system for their first sending. The system's own bound is megabytes: so much in
/// front of a slow link hides for seconds that it is slow, and makes every control frame late.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MOST_UNSENT_BYTES: u32 = 256 * 1024;

/// A TCP connection whose calls block for at most a slice at a time.
pub struct TcpTransport {
    stream: Arc<TcpStream>,
    local: SocketAddr,
    peer: SocketAddr,
}

impl TcpTransport {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// [`NetError::Io`] when its options cannot be set.
    pub fn new(stream: TcpStream) -> Result<TcpTransport, NetError> {
        let set = || {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SOCKET_SLICE))?;
            stream.set_write_timeout(Some(SOCKET_SLICE))?;
            Ok((stream.local_addr()?, stream.peer_addr()?))
        };
        let (local, peer) = set().map_err(|source| NetError::Io {
            action: "set up",
            addr: "a connection".to_owned(),
            source,
        })?;
        if let Err(error) = limit_unsent(&stream, MOST_UNSENT_BYTES) {
            log::debug!("the system keeps as much unsent as it likes: {error}");
        }
        Ok(TcpTransport { stream: Arc::new(stream), local, peer })
    }

    fn send_parts(&self, mut parts: &mut [IoSlice<'_>], patience: Patience) -> Result<(), NetError> {
        let mut last = Instant::now();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match (&*self.stream).write_vectored(parts) {
                Ok(0) => return Err(NetError::PeerClosed { phase: "sending", hint: None }),
                Ok(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    last = Instant::now();
                    if let Patience::Until(..) = patience {
                        patience.check(last, "sending")?;
                    }
                }
                Err(error) => {
                    again("write to", self.peer, error, patience, last)?;
                    // It makes no room any more, and may never say so; what it has said can still be read.
                    if has_left(&self.stream) {
                        return Err(NetError::PeerClosed { phase: "sending", hint: None });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the peer has closed its side.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn has_left(socket: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Whether the peer has closed its side and all that it has said was read.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn has_left(stream: &TcpStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let readable = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0);
    readable && matches!(stream.peek(&mut [0]), Ok(0))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit_unsent(stream: &TcpStream, bytes: u32) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(bytes)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn limit_unsent(_stream: &TcpStream, _bytes: u32) -> std::io::Result<()> {
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn pace(stream: &TcpStream, bytes_per_s: u64) -> io::Result<()> {
    super::sockopt::set_max_pacing_rate(stream.as_fd(), bytes_per_s)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn pace(_stream: &TcpStream, _bytes_per_s: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Ending for TcpStream {
    fn close(&self) {
        // It fails only on a socket that is closed already.
        let _ = self.shutdown(Shutdown::Both);
    }

    fn path(&self) -> Option<PathInfo> {
        PathInfo::of(self.as_fd())
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.local_addr().ok().map(|address| address.ip())
    }

    fn congestion(&self) -> Option<String> {
        congestion_of(self)
    }

    fn set_congestion(&self, name: &str) -> io::Result<()> {
        set_congestion(self, name)
    }

    fn limit_unsent(&self, bytes: u32) {
        if let Err(error) = limit_unsent(self, bytes) {
            log::debug!("the system keeps as much unsent as it likes: {error}");
        }
    }

    fn has_left(&self) -> bool {
        has_left(self)
    }

    fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap_or(0)
    }
}

impl Stream for TcpTransport {
    fn recv_some(&self, buffer: &mut [u8], patience: Patience) -> Result<usize, NetError> {
        read_some(&*self.stream, self.peer, buffer, patience)
    }

    fn send_all(&self, bytes: &[u8], patience: Patience) -> Result<(), NetError> {
        self.send_parts(&mut [IoSlice::new(bytes)], patience)
    }

    fn shut_writing(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Transport for TcpTransport {
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        match parts {
            [one] => self.send_all(one, patience),
            [one, two] => self.send_parts(&mut [IoSlice::new(one), IoSlice::new(two)], patience),
            _ => parts.iter().try_for_each(|part| self.send_all(part, patience)),
        }
    }

    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError> {
        let mut done = 0;
        while done < least {
            let count = self.recv_some(&mut buffer[done..], patience)?;
            if count == 0 {
                return Err(NetError::PeerClosed { phase: "exchanging data", hint: None });
            }
            done += count;
            if let Patience::Until(..) = patience {
                patience.check(Instant::now(), "waiting for the peer")?;
            }
        }
        Ok(done)
    }

    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // A Duration of hours is far below what fits.
            let spec = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let socket = PollFd::new(&*self.stream, PollFlags::IN);
            let polled = match wake {
                Some(wake) => {
                    let mut fds = [socket, PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
                    poll(&mut fds, Some(&spec)).map(|_| {
                        if !fds[1].revents().is_empty() {
                            wake.clear();
                        }
                        !fds[0].revents().is_empty()
                    })
                }
                None => {
                    let mut fds = [socket];
                    poll(&mut fds, Some(&spec)).map(|_| !fds[0].revents().is_empty())
                }
            };
            match polled {
                Ok(readable) => return Ok(readable),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let addr = self.peer.to_string();
                    return Err(NetError::Io { action: "wait for", addr, source: error.into() });
                }
            }
        }
    }

    fn finish(&mut self, linger: Duration) {
        self.half_close(linger);
    }

    fn closer(&self) -> Closer {
        let stream = Arc::clone(&self.stream);
        Closer(stream)
    }

    fn peer_fingerprint(&self) -> Option<Fingerprint> {
        None
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn path(&self) -> Option<PathInfo> {
        PathInfo::of(self.stream.as_fd())
    }

    fn congestion(&self) -> Option<String> {
        congestion_of(&self.stream)
    }

    fn set_congestion(&mut self, name: &str) -> io::Result<()> {
        set_congestion(&self.stream, name)
    }

    fn widen(&mut self) {
        if let Err(error) = widen(&self.stream) {
            log::debug!("the system keeps its buffer as it is: {error}");
        }
    }

    fn set_pace(&mut self, bytes_per_s: Option<u64>) {
        if let Err(error) = pace(&self.stream, bytes_per_s.unwrap_or(u64::MAX)) {
            log::debug!("the system does not pace what is sent: {error}");
        }
    }
}
