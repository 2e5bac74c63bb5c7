//! The socket options of Linux for which no safe wrapper is at hand.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// More than any kernel tells by now; what a newer one tells beyond is cut off.
pub(super) const TCP_INFO_BYTES: usize = 512;

/// Reads what TCP knows of a connection, and tells how many bytes that is.
pub(super) fn read_tcp_info(socket: BorrowedFd<'_>, info: &mut [u8; TCP_INFO_BYTES]) -> io::Result<usize> {
    let mut length = TCP_INFO_BYTES as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes at most `length` bytes, which
    // is the length of the buffer.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if code == 0 { Ok((length as usize).min(TCP_INFO_BYTES)) } else { Err(io::Error::last_os_error()) }
}
