//! Memory that a device reads and writes: whole pages of its own.
#![allow(unsafe_code)]

use std::ffi::c_void;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::RdmaError;

/// Pages of zeros, until they are written.
pub(crate) struct Region {
    start: *mut c_void,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and the region gives out nothing but where it is.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    /// Pages that only this side and the device use: a forked child does not get them.
    pub(crate) fn new(length: usize) -> Result<Region, RdmaError> {
        let region = Region::map(length)?;
        // Otherwise a fork would have this side write to a copy, and the device to the original.
        region.advise(Advice::LinuxDontFork).map_err(|errno| RdmaError::errno("madvise", errno))?;
        Ok(region)
    }

    /// Pages that a caller uses too, as children do that it forks. They are there at once, large where the system has
    /// large ones.
    pub(crate) fn shared(length: usize) -> Result<Region, RdmaError> {
        let region = Region::map(length)?;
        // Only the speed depends on the two: what is not there yet comes when it is touched.
        let _ = region.advise(Advice::LinuxHugepage).and_then(|()| region.advise(Advice::LinuxPopulateWrite));
        Ok(region)
    }

    fn map(length: usize) -> Result<Region, RdmaError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: an anonymous mapping where the system likes touches no memory that is there.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, MapFlags::PRIVATE)
        }
        .map_err(|errno| RdmaError::errno("mmap", errno))?;
        Ok(Region { start, length })
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the pages are this region's, and nothing of what they hold changes.
        unsafe { rustix::mm::madvise(self.start, self.length, advice) }
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
