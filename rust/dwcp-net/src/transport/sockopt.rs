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

/// Has the system send at most this many bytes a second, evenly; `u64::MAX` takes that back.
pub(super) fn set_max_pacing_rate(socket: BorrowedFd<'_>, bytes_per_s: u64) -> io::Result<()> {
    // Kernels take as many bytes as a machine word has, and older ones four of them.
    let rate = libc::c_ulong::try_from(bytes_per_s).unwrap_or(libc::c_ulong::MAX);
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads the length of `rate` from it.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of_val(&rate) as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
