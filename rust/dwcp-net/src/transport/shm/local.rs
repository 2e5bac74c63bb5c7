//! The Unix socket beside the rings: where it is found, and whose it is.
//!
//! Its name is one of the abstract ones, which are gone with the last process that has them and are as much a matter of
//! one network namespace as the TCP port that it goes with. Anybody may take or dial such a name, so that both sides ask
//! the system who the other is, and speak to nobody but processes of their own user.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{SendFlags, send};
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

use super::super::stream::{Stream, again, read_some};
use super::super::tcp::has_left;
use super::super::{Closer, Ending, Patience, SOCKET_SLICE};
use crate::cancel::Cancel;
use crate::error::NetError;

/// Connections that the system holds until they are accepted.
const BACKLOG: i32 = 256;

/// How long a dialer waits before it looks again whether the listener has room.
const BUSY: Duration = Duration::from_millis(2);

/// The name that goes with a TCP port, for processes of this user.
fn name(tied: SocketAddr) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0dwcp-fast/{}/{tied}", geteuid().as_raw()))
}

/// A Unix socket that goes with a TCP port.
pub(crate) struct LocalListener {
    socket: Socket,
    tied: SocketAddr,
}

impl LocalListener {
    /// Listens beside `tied`, where a TCP socket of this process does.
    pub(crate) fn bind(tied: SocketAddr) -> io::Result<LocalListener> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&name(tied)?)?;
        socket.listen(BACKLOG)?;
        Ok(LocalListener { socket, tied })
    }

    /// The next connection, which has not shown anything yet.
    pub(crate) fn accept(&self) -> io::Result<LocalStream> {
        let (socket, _) = self.socket.accept()?;
        let ip = if self.tied.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.tied.ip() };
        let (here, peer) = (SocketAddr::new(ip, self.tied.port()), SocketAddr::new(ip, 0));
        LocalStream::new(socket, here, peer)
    }
}

impl AsFd for LocalListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The socket of a lane, as the threads of a process share it.
#[derive(Debug)]
pub(super) struct Bell {
    pub(super) socket: UnixStream,
    /// This side has ended it: a thread that does not sleep does not look at the socket.
    shut: AtomicBool,
}

impl Bell {
    /// Rings the other side. Where it cannot be rung it is gone, or has not heard the last rings yet.
    pub(super) fn ring(&self) {
        let _ = send(&self.socket, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }
}

impl Ending for Bell {
    fn close(&self) {
        self.shut.store(true, Ordering::Relaxed);
        // It fails only on a socket that is closed already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn has_left(&self) -> bool {
        has_left(&self.socket)
    }
}

/// A connection to a process on this host.
pub(crate) struct LocalStream {
    pub(super) bell: Arc<Bell>,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl LocalStream {
    fn new(socket: Socket, local: SocketAddr, peer: SocketAddr) -> io::Result<LocalStream> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(SOCKET_SLICE))?;
        socket.set_write_timeout(Some(SOCKET_SLICE))?;
        let bell = Arc::new(Bell { socket: socket.into(), shut: AtomicBool::new(false) });
        Ok(LocalStream { bell, local, peer })
    }

    #[cfg(test)]
    pub(super) fn of(socket: UnixStream) -> LocalStream {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        LocalStream::new(Socket::from(socket), nowhere, nowhere).unwrap()
    }

    /// Connects to whoever listens beside one of `addresses`, if that is an address of this host.
    pub(super) fn connect(
        addresses: &[SocketAddr],
        patience: Patience,
        cancel: &Cancel,
    ) -> Result<LocalStream, NetError> {
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no address of this host");
        let Some(first) = addresses.first() else {
            let source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            return Err(NetError::Unreachable { addr: "shared memory".to_owned(), source });
        };
        for target in addresses.iter().filter(|target| is_of_this_host(target.ip())) {
            // What is bound to the address itself goes before what is bound to all.
            for ip in [target.ip(), Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
                match attempt(SocketAddr::new(ip, target.port()), patience, cancel)? {
                    Ok(socket) => {
                        let here = SocketAddr::new(target.ip(), 0);
                        return LocalStream::new(socket, here, *target).map_err(|source| NetError::Io {
                            action: "set up",
                            addr: target.to_string(),
                            source,
                        });
                    }
                    Err(error) => last = error,
                }
            }
        }
        Err(NetError::Unreachable { addr: format!("{first} through shared memory"), source: last })
    }

    /// A handle that ends the connection, from any thread.
    pub(crate) fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.bell) as Arc<dyn Ending>)
    }

    /// The address of the other side, of which only the host means anything where it has dialled.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Refuses whoever is not of this user.
    pub(super) fn check_user(&self) -> Result<(), NetError> {
        let peer = socket_peercred(&self.bell.socket).map_err(|error| NetError::Io {
            action: "ask for the user of",
            addr: self.peer.to_string(),
            source: error.into(),
        })?;
        let (theirs, ours) = (peer.uid.as_raw(), geteuid().as_raw());
        if theirs == ours {
            return Ok(());
        }
        let reason =
            format!("user {theirs} is at the other end of shared memory, and this process is of {ours}");
        Err(NetError::Auth { reason })
    }
}

/// Connects to a name, and waits while the listener has more connections than it can hold.
fn attempt(
    tied: SocketAddr,
    patience: Patience,
    cancel: &Cancel,
) -> Result<Result<Socket, io::Error>, NetError> {
    let began = Instant::now();
    let connect = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&name(tied)?)?;
        Ok(socket)
    };
    loop {
        match connect() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                patience.check(began, "connecting through shared memory")?;
                cancel.sleep(BUSY)?;
            }
            made => return Ok(made),
        }
    }
}

/// Whether an address is one that this host has: only then can a socket be bound to it.
fn is_of_this_host(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

impl Stream for LocalStream {
    fn recv_some(&self, buffer: &mut [u8], patience: Patience) -> Result<usize, NetError> {
        read_some(&self.bell.socket, self.peer, buffer, patience)
    }

    fn send_all(&self, bytes: &[u8], patience: Patience) -> Result<(), NetError> {
        let mut rest = bytes;
        let mut last = Instant::now();
        while !rest.is_empty() {
            match send(&self.bell.socket, rest, SendFlags::NOSIGNAL) {
                Ok(0) => return Err(NetError::PeerClosed { phase: "sending", hint: None }),
                Ok(count) => {
                    rest = &rest[count..];
                    last = Instant::now();
                }
                Err(error) => again("write to", self.peer, error.into(), patience, last)?,
            }
        }
        Ok(())
    }

    fn shut_writing(&self) -> io::Result<()> {
        self.bell.socket.shutdown(Shutdown::Write)
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }
}
