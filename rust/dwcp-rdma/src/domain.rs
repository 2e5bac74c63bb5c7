//! What the connections of one device share: its protection domain, and the memory of callers that is registered there.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{RdmaError, memory_lock_limit};
use crate::ffi::{ACCESS_LOCAL_WRITE, Context, Library, Mr, Opaque};
use crate::memory::Memory;

/// The share that a connection has in the domain of its device. It goes before what keeps the device open.
pub(crate) struct Domain {
    verbs: *mut Context,
    pd: *mut Opaque,
    library: &'static Library,
}

/// A domain, for as long as a connection has a share in it.
struct Shared {
    verbs: *mut Context,
    pd: *mut Opaque,
    shares: usize,
    memories: Vec<Registered>,
    library: &'static Library,
}

/// Memory that was to be registered.
struct Registered {
    start: usize,
    /// Null where the device has refused it, so that it is not asked again for every block.
    mr: *mut Mr,
}

// SAFETY: the verbs may be called from any thread, and what is pointed to has none of its own.
unsafe impl Send for Shared {}
// SAFETY: the same; a share only tells what it points to.
unsafe impl Send for Domain {}

static DOMAINS: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

fn domains() -> MutexGuard<'static, Vec<Shared>> {
    DOMAINS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Domain {
    /// A share in the domain of an open device, which stays open until the share is dropped.
    pub(crate) fn join(library: &'static Library, verbs: *mut Context) -> Result<Domain, RdmaError> {
        let mut domains = domains();
        if let Some(shared) = domains.iter_mut().find(|shared| shared.verbs == verbs) {
            shared.shares += 1;
            return Ok(Domain { verbs, pd: shared.pd, library });
        }
        // SAFETY: the device is open, as the caller says.
        let pd = unsafe { (library.ibv_alloc_pd)(verbs) };
        if pd.is_null() {
            return Err(RdmaError::last("ibv_alloc_pd"));
        }
        domains.push(Shared { verbs, pd, shares: 1, memories: Vec::new(), library });
        Ok(Domain { verbs, pd, library })
    }

    pub(crate) fn pd(&self) -> *mut Opaque {
        self.pd
    }

    /// Registers `bytes` of memory, which are the caller's until the result is given to [`Domain::deregister`].
    pub(crate) fn register(&self, start: *mut u8, bytes: usize) -> Result<*mut Mr, RdmaError> {
        register(self.library, self.pd, start, bytes)
    }

    /// Takes it back.
    pub(crate) fn deregister(&self, mr: *mut Mr) {
        deregister(self.library, mr);
    }

    /// The key by which requests name `memory`, which is registered if it was not; none where that cannot be.
    pub(crate) fn key_of(&self, memory: &Memory) -> Option<u32> {
        let mut domains = domains();
        let shared = domains.iter_mut().find(|shared| shared.verbs == self.verbs)?;
        let known = shared.memories.iter().find(|known| known.start == memory.start());
        let (mr, error) = match known {
            Some(known) => (known.mr, None),
            None => {
                let made = self.register(memory.pointer(), memory.length());
                let (mr, error) =
                    made.map_or_else(|error| (std::ptr::null_mut(), Some(error)), |mr| (mr, None));
                shared.memories.push(Registered { start: memory.start(), mr });
                (mr, error)
            }
        };
        // SAFETY: it is null, or there until the memory is forgotten, which the caller holds.
        let key = unsafe { mr.as_ref() }.map(|mr| mr.lkey);
        // Whoever takes the message down may wait for somebody who waits for the domains.
        drop(domains);
        if let Some(error) = error {
            log::warn!("what is sent of a registered buffer is copied: {error}");
        }
        key
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let mut domains = domains();
        let Some(index) = domains.iter().position(|shared| shared.verbs == self.verbs) else { return };
        domains[index].shares -= 1;
        if domains[index].shares == 0 {
            let shared = domains.swap_remove(index);
            shared.memories.iter().for_each(|known| deregister(shared.library, known.mr));
            // SAFETY: nothing that was made of it is there any more: each connection takes down its own before.
            unsafe { (shared.library.ibv_dealloc_pd)(shared.pd) };
        }
    }
}

/// With how many devices the memory is registered that begins at `start`.
pub(crate) fn registrations(start: usize) -> usize {
    let is_it = |known: &&Registered| known.start == start && !known.mr.is_null();
    domains().iter().map(|shared| shared.memories.iter().filter(is_it).count()).sum()
}

/// The memory that begins at `start` is about to go, and no request reads it.
pub(crate) fn forget(start: usize) {
    for shared in &mut *domains() {
        let gone = |known: &mut Registered| known.start == start;
        shared.memories.extract_if(.., gone).for_each(|known| deregister(shared.library, known.mr));
    }
}

fn register(library: &Library, pd: *mut Opaque, start: *mut u8, bytes: usize) -> Result<*mut Mr, RdmaError> {
    // SAFETY: the domain is there, and the memory is mapped, as its owner says.
    let mr = unsafe { (library.ibv_reg_mr)(pd, start.cast::<c_void>(), bytes, ACCESS_LOCAL_WRITE) };
    if mr.is_null() {
        let source = std::io::Error::last_os_error();
        return Err(RdmaError::Memory { bytes, limit: memory_lock_limit(), source });
    }
    Ok(mr)
}

fn deregister(library: &Library, mr: *mut Mr) {
    if !mr.is_null() {
        // SAFETY: it was made by `register`, and is given back once.
        unsafe { (library.ibv_dereg_mr)(mr) };
    }
}
