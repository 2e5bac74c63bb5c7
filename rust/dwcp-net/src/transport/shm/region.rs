//! Memory that two processes have mapped. The only unsafe code of the shared-memory transport.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A line of the cache and the one that processors fetch with it, so that two indices never share one.
const LINE_BYTES: usize = 128;

/// The front of the region, which holds the indices.
pub(super) const INDEX_BYTES: usize = 4096;

/// A mapping that somebody else writes to at any moment: nothing is ever lent of it but atomics, and bytes are copied
/// in and out.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached only through atomics and copies.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `length` bytes of a file that is that long and cannot become shorter; more than [`INDEX_BYTES`].
    pub(super) fn map(memory: BorrowedFd<'_>, length: usize) -> io::Result<Region> {
        if length <= INDEX_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so that nothing that is mapped is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, memory, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Region { start, length })
    }

    /// The index number `line`, of [`INDEX_BYTES`] / 128.
    pub(super) fn index(&self, line: usize) -> &AtomicU64 {
        assert!(line < INDEX_BYTES / LINE_BYTES);
        // SAFETY: the place is within the mapping, aligned since mappings begin with a page, and valid for as long as the
        // region; every access of either process to it is atomic.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(line * LINE_BYTES).cast()) }
    }

    /// Copies bytes in, from `at` of what is behind the indices on.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        let place = self.place(at, bytes.len());
        // SAFETY: the range is within the mapping, and a slice of this process cannot overlap it. What the other process
        // reads meanwhile it is not to believe, and it proves what it takes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Copies bytes out, from `at` of what is behind the indices on.
    pub(super) fn read(&self, at: usize, bytes: &mut [u8]) {
        let place = self.place(at, bytes.len());
        // SAFETY: the range is within the mapping, and a slice of this process cannot overlap it. Whatever the other
        // process writes meanwhile, any bytes are bytes, and only the copy is looked at.
        unsafe { std::ptr::copy_nonoverlapping(place.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
    }

    fn place(&self, at: usize, length: usize) -> *mut u8 {
        let room = self.length - INDEX_BYTES;
        assert!(at <= room && length <= room - at);
        // SAFETY: the place is within the mapping, or right behind it for no bytes.
        unsafe { self.start.as_ptr().add(INDEX_BYTES + at) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, and nothing of it is lent any more. It fails for no mapping that was
        // made.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
