//! Makes a TCP connection within a deadline, and notices a cancellation on the way.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cancel::{CANCEL_SLICE, Cancel};
use crate::error::NetError;
use crate::security::split_address;

/// Connects to `address` (`HOST:PORT`), trying every address that the name has, within `limit` altogether.
/// The connection comes from the local address `from`, if one is given. Also tells how long the successful attempt took, which is about one round trip.
pub(crate) fn dial(
    address: &str,
    from: Option<IpAddr>,
    buffer_bytes: Option<u32>,
    limit: Duration,
    cancel: &Cancel,
) -> Result<(TcpStream, Duration), NetError> {
    let end = Instant::now() + limit;
    let mut addresses = resolve(address, end, limit, cancel)?;
    if let Some(from) = from {
        addresses.retain(|target| target.is_ipv4() == from.is_ipv4());
        if addresses.is_empty() {
            let reason = "the peer has no address of its kind";
            let source = io::Error::new(io::ErrorKind::AddrNotAvailable, reason);
            return Err(NetError::LocalAddress { address: from, source });
        }
    }
    let unreachable = |source| NetError::Unreachable { addr: address.to_owned(), source };
    let made = try_in_turn(&addresses, end, cancel, |target, end| {
        let start = Instant::now();
        let socket = prepare(target, from, buffer_bytes)?;
        let stream = attempt(socket, target, end, cancel).map_err(unreachable)?;
        Ok((stream, start.elapsed()))
    })?;
    made.ok_or_else(|| unreachable(io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// Gives what `connect` makes of the first address that works, or says why the last one did not; none without an
/// address. A kind of address that the system does not know works as little as one where nothing answers.
pub(super) fn try_in_turn<T>(
    addresses: &[SocketAddr],
    end: Instant,
    cancel: &Cancel,
    connect: impl Fn(SocketAddr, Instant) -> Result<T, NetError>,
) -> Result<Option<T>, NetError> {
    let mut last = None;
    for (index, target) in addresses.iter().enumerate() {
        cancel.check()?;
        // What is left is shared by the addresses that are left, so that one dead address does not use it all.
        let now = Instant::now();
        let left = end.saturating_duration_since(now) / (addresses.len() - index) as u32;
        match connect(*target, now + left) {
            Ok(made) => return Ok(Some(made)),
            Err(error @ NetError::LocalAddress { .. }) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    cancel.check()?;
    last.map_or(Ok(None), Err)
}

/// Looks a name up, on a thread of its own because the lookup itself cannot be stopped.
pub(crate) fn resolve(
    address: &str,
    end: Instant,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Vec<SocketAddr>, NetError> {
    let (host, port) = split_address(address)?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (answer, answered) = channel();
    std::thread::Builder::new()
        .name("dwcp-resolve".to_owned())
        .spawn(move || answer.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect)))
        .map_err(|source| NetError::Io { action: "start a thread for", addr: address.to_owned(), source })?;
    loop {
        cancel.check()?;
        match answered.recv_timeout(CANCEL_SLICE) {
            Ok(found) => {
                return found.map_err(|source| NetError::Unreachable { addr: address.to_owned(), source });
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => return Err(NetError::Deadline { what: "looking the name up", after: limit }),
        }
    }
}

/// A socket for a connection to `target` from `from`.
fn prepare(target: SocketAddr, from: Option<IpAddr>, buffer_bytes: Option<u32>) -> Result<Socket, NetError> {
    let make = || {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        set_buffers(&socket, buffer_bytes)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let socket = make().map_err(|source| NetError::Io {
        action: "make a socket for",
        addr: target.to_string(),
        source,
    })?;
    if let Some(address) = from {
        let bound = socket.bind(&SocketAddr::new(address, 0).into());
        bound.map_err(|source| NetError::LocalAddress { address, source })?;
    }
    Ok(socket)
}

fn attempt(socket: Socket, target: SocketAddr, end: Instant, cancel: &Cancel) -> io::Result<TcpStream> {
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"));
            }
            let slice = left.min(CANCEL_SLICE);
            let spec = Timespec { tv_sec: 0, tv_nsec: i64::from(slice.subsec_nanos()) };
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            match poll(&mut fds, Some(&spec)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        },
        Err(error) => return Err(error),
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// Asks for socket buffers of a size; without one the system tunes them itself.
pub(crate) fn set_buffers(socket: &Socket, bytes: Option<u32>) -> io::Result<()> {
    if let Some(bytes) = bytes {
        socket.set_send_buffer_size(bytes as usize)?;
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_address_without_sockets_does_not_keep_from_the_next() {
        let addresses = ["[::1]:9".parse().unwrap(), "127.0.0.1:9".parse().unwrap()];
        let end = Instant::now() + Duration::from_secs(10);
        let connect = |target: SocketAddr, _| {
            let source = io::ErrorKind::Unsupported.into();
            let failed = NetError::Io { action: "make a socket for", addr: target.to_string(), source };
            if target.is_ipv4() { Ok(target) } else { Err(failed) }
        };
        assert_eq!(try_in_turn(&addresses, end, &Cancel::new(), connect).unwrap(), Some(addresses[1]));
        let error = try_in_turn(&addresses[..1], end, &Cancel::new(), connect).unwrap_err();
        assert!(error.to_string().contains("[::1]:9"), "{error}");
        assert!(try_in_turn(&[], end, &Cancel::new(), connect).unwrap().is_none());
    }
}
