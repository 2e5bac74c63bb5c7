//! Memory that a device reads and writes: whole pages of its own, which a forked child does not get.
#![allow(unsafe_code)]

use std::ffi::c_void;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::RdmaError;

/// Pages of zeros, until they are written.
pub(crate) struct Region {
    start: *mut c_void,
    length: usize,
}

impl Region {
    pub(crate) fn new(length: usize) -> Result<Region, RdmaError> {
        // SAFETY: an anonymous mapping where the system likes touches no memory that is there.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|errno| RdmaError::errno("mmap", errno))?;
        let region = Region { start, length };
        // Otherwise a fork would have this side write to a copy, and the device to the original.
        // SAFETY: the pages are this region's, and nothing of what they hold changes.
        unsafe { rustix::mm::madvise(start, length, Advice::LinuxDontFork) }
            .map_err(|errno| RdmaError::errno("madvise", errno))?;
        Ok(region)
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.cast()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's, and whoever lends its bytes has borrowed the owner of the region.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}
