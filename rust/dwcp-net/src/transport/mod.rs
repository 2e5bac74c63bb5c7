//! A byte stream to a peer with deadlines: TCP, TLS over it, shared memory or RDMA, alike to everything above.

mod buffers;
mod congestion;
mod connect;
mod link;
mod path;
mod rdma;
mod shm;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod sockopt;
mod stream;
mod tcp;
mod tls;
mod wake;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_codec::digest::BlockHasher;

pub(crate) use congestion::{congestion_by_default, congestion_on_offer, try_congestion};
pub(crate) use connect::{dial, resolve, set_buffers};
pub use link::LinkKind;
pub use path::PathInfo;
pub use rdma::{RdmaDevice, RegisteredMemory, rdma_devices};
pub(crate) use rdma::{RdmaIncoming, RdmaListener, open_rdma};
pub(crate) use shm::{LocalListener, LocalStream, accept_shm, open_shm};
pub use tcp::TcpTransport;
pub use tls::TlsTransport;
pub(crate) use wake::{WakeReceiver, Waker, wake_pair};

use crate::error::NetError;
use crate::security::Fingerprint;

/// How long one socket call may block; deadlines are noticed this much late at most.
pub(crate) const SOCKET_SLICE: Duration = Duration::from_millis(100);

/// The most bytes that are written or read by one call.
pub(crate) const IO_BYTES: usize = 256 * 1024;

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Until a moment, whatever happens; the duration is what a report says.
    Until(Instant, Duration),
    /// As long as bytes move at least this often.
    Idle(Duration),
}

impl Patience {
    /// Patience for `time` from now on.
    #[must_use]
    pub fn for_time(time: Duration) -> Patience {
        Patience::Until(Instant::now() + time, time)
    }

    /// An error when nothing has moved since `last` for too long, or the moment has come.
    pub(crate) fn check(&self, last: Instant, what: &'static str) -> Result<(), NetError> {
        let (over, after) = match *self {
            Patience::Until(end, total) => (Instant::now() >= end, total),
            Patience::Idle(limit) => (last.elapsed() >= limit, limit),
        };
        if over { Err(NetError::Deadline { what, after }) } else { Ok(()) }
    }
}

/// A byte stream to a peer.
pub trait Transport: Send {
    /// Sends all of `parts`, in order.
    ///
    /// # Errors
    /// [`NetError`]; how much was sent is unknown then and the transport is of no more use.
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError>;

    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`NetError::PeerClosed`] when the stream ends first, or any other [`NetError`].
    fn recv_exact(&mut self, buffer: &mut [u8], patience: Patience) -> Result<(), NetError> {
        let least = buffer.len();
        self.recv_at_least(buffer, least, patience).map(drop)
    }

    /// Fills `buffer` with at least `least` bytes, and with more if they are there, and tells how many they are.
    ///
    /// # Errors
    /// As [`Transport::recv_exact`].
    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError>;

    /// Waits for at most `timeout` until there is something for [`Transport::take`].
    ///
    /// # Errors
    /// [`NetError`] when the socket or the TLS layer fails.
    fn gather(&mut self, timeout: Duration) -> Result<bool, NetError> {
        self.poll_readable(timeout, None)
    }

    /// Takes what has come, once [`Transport::gather`] says that something has, and waits for nothing. That may be a part
    /// of something that has to be whole: none then.
    ///
    /// # Errors
    /// As [`Transport::recv_exact`].
    fn take(&mut self, buffer: &mut [u8], patience: Patience) -> Result<usize, NetError> {
        self.recv_at_least(buffer, 1, patience)
    }

    /// The same for bytes that stay where they are put, and that are hashed while they are at hand.
    ///
    /// # Errors
    /// As [`Transport::take`].
    fn take_hashing(
        &mut self,
        place: &mut [u8],
        hasher: &mut BlockHasher,
        patience: Patience,
    ) -> Result<usize, NetError> {
        let count = self.take(place, patience)?;
        hasher.update(&place[..count]);
        Ok(count)
    }

    /// Waits until [`Transport::recv_exact`] would get at least a byte or an error at once, for at most `timeout`;
    /// also comes back, with `false`, when `wake` is rung.
    ///
    /// # Errors
    /// [`NetError`] when the socket or the TLS layer fails.
    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError>;

    /// Tells the peer that nothing follows, and waits for at most `linger` for the peer to close.
    fn finish(&mut self, linger: Duration);

    /// A handle that shuts the socket down at once, from any thread.
    fn closer(&self) -> Closer;

    /// What carries the bytes.
    fn kind(&self) -> LinkKind {
        LinkKind::Tcp
    }

    /// The SHA-256 of the peer's certificate, where it showed one.
    fn peer_fingerprint(&self) -> Option<Fingerprint>;

    /// The address of this side.
    fn local_addr(&self) -> SocketAddr;

    /// The address of the peer.
    fn peer_addr(&self) -> SocketAddr;

    /// What the system's TCP has measured on the way to the peer; none where it tells nothing. Takes microseconds.
    fn path(&self) -> Option<PathInfo> {
        None
    }

    /// The congestion control that the system uses for what this side sends; none where it does not tell.
    fn congestion(&self) -> Option<String> {
        None
    }

    /// Asks the system for a congestion control by name; [`Transport::congestion`] tells what came of it.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] when it has none of that name.
    fn set_congestion(&mut self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Asks the system for room for more bytes under way than it gives by itself, if there is any to be had.
    fn widen(&mut self) {}

    /// Asks the system to send evenly, at no more than so many bytes a second, or as it likes. Where it cannot, bursts
    /// are as they are.
    fn set_pace(&mut self, _bytes_per_s: Option<u64>) {}
}

/// What other threads may do with a connection. A carrier that measures nothing, or has nothing to choose, tells so by
/// what is given here.
pub(crate) trait Ending: Send + Sync + std::fmt::Debug {
    /// Ends the connection; calls that block on it return at once.
    fn close(&self);

    /// As [`Transport::path`] tells it.
    fn path(&self) -> Option<PathInfo> {
        None
    }

    /// The address of this machine that the connection comes from.
    fn local_ip(&self) -> Option<IpAddr> {
        None
    }

    /// As [`Transport::congestion`] tells it.
    fn congestion(&self) -> Option<String> {
        None
    }

    /// As [`Transport::set_congestion`] does.
    fn set_congestion(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has the system keep no more than so many bytes that it was not yet able to send. Where it cannot, it keeps more.
    fn limit_unsent(&self, _bytes: u32) {}

    /// Whether the peer is known to say nothing more than what has come.
    fn has_left(&self) -> bool {
        false
    }

    /// How many bytes have come that nobody has read, as far as that is known.
    fn unread(&self) -> u64 {
        0
    }
}

/// Ends a connection, or looks at it, from any thread.
#[derive(Clone, Debug)]
pub struct Closer(Arc<dyn Ending>);

impl Closer {
    /// Of a connection that is no lane yet.
    pub(crate) fn of(stream: TcpStream) -> Closer {
        Closer(Arc::new(stream))
    }

    /// Ends the connection; calls that block on it return at once.
    pub fn close(&self) {
        self.0.close();
    }

    /// What the system's TCP has measured on the connection, as [`Transport::path`] tells it.
    #[must_use]
    pub fn path(&self) -> Option<PathInfo> {
        self.0.path()
    }

    /// The address of this machine that the connection comes from.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.0.local_ip()
    }

    /// The congestion control of the connection, as [`Transport::congestion`] tells it.
    #[must_use]
    pub fn congestion(&self) -> Option<String> {
        self.0.congestion()
    }

    /// Asks for another, as [`Transport::set_congestion`] does.
    pub(crate) fn set_congestion(&self, name: &str) -> io::Result<()> {
        self.0.set_congestion(name)
    }

    /// Has the system keep no more than so many bytes that it was not yet able to send. Where it cannot, it keeps more.
    pub(crate) fn limit_unsent(&self, bytes: u32) {
        self.0.limit_unsent(bytes);
    }

    /// Whether the peer is known to say nothing more than what has come.
    pub(crate) fn has_left(&self) -> bool {
        self.0.has_left()
    }

    /// How many bytes have come that nobody has read.
    pub(crate) fn unread(&self) -> u64 {
        self.0.unread()
    }
}

/// What a failed socket call means.
pub(crate) enum Failure {
    /// Nothing moved within the slice.
    Retry,
    /// The peer is gone.
    Closed,
    /// Anything else.
    Other(io::Error),
}

/// Sorts the error of a socket call.
pub(crate) fn sort(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Failure::Retry,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => Failure::Closed,
        _ => Failure::Other(error),
    }
}
