//! The socket's buffer on the side that sends.
//!
//! It holds what is under way, so it bounds a long path. The system grows it by itself, up to `tcp_wmem`; what a process
//! asks for is bounded by `wmem_max` instead, which most systems have smaller, and ends the growing for good. So it is
//! asked for only where that gives more. The receiver's buffer is left to the system: there, what grows by itself is more,
//! and transfers for which less was asked for were slower.

use std::io;
use std::net::TcpStream;

use socket2::SockRef;

/// More than this a lane never has under way; twice as much is what the system counts for it.
const MOST_BYTES: usize = 64 << 20;

/// Has `stream` hold more under way than the system would let it, if it may.
pub(super) fn widen(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    match (obtainable(), grown()) {
        (Some(obtainable), Some(grown)) => match worth_asking(obtainable, grown) {
            Some(bytes) => socket.set_send_buffer_size(bytes),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What to ask for, of which the system grants twice, at most `obtainable`; none where that is no more than what it
/// grows to.
fn worth_asking(obtainable: usize, grown: usize) -> Option<usize> {
    let bytes = (obtainable / 2).min(MOST_BYTES);
    (2 * bytes > grown).then_some(bytes)
}

/// The most that is granted, as a socket shows that is not used.
fn obtainable() -> Option<usize> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.set_send_buffer_size(MOST_BYTES).ok()?;
    socket.send_buffer_size().ok()
}

/// The most that the system grows a buffer to by itself; none where it does not tell.
fn grown() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").ok()?;
    limits.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_asked_for_only_where_that_gives_more_than_the_system_grows() {
        // Linux as it comes, and a machine that was set up for long paths.
        assert_eq!(worth_asking(425_984, 4_194_304), None);
        assert_eq!(worth_asking(8_388_608, 4_194_304), Some(4_194_304));
        assert_eq!(worth_asking(8_388_608, 8_388_608), None);
        assert_eq!(worth_asking(1 << 31, 4_194_304), Some(MOST_BYTES));
    }

    #[test]
    fn a_buffer_never_becomes_smaller_than_the_system_would_grow_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = SockRef::from(&stream).send_buffer_size().unwrap();
        widen(&stream).unwrap();
        let after = SockRef::from(&stream).send_buffer_size().unwrap();
        assert!(after == before || grown().is_some_and(|grown| after > grown), "{before} {after}");
    }
}
