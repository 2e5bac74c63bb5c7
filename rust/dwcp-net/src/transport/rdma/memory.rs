//! Memory of callers that lanes over RDMA send from where it is.

use crate::error::NetError;
#[cfg(not(target_os = "linux"))]
use dwcp_store::{OwnedBuffer, TargetBuffer};

/// Memory of zeros, to be written by whoever has made it, that does not move.
///
/// A lane over RDMA registers it with its device when it is first sent from, and copies nothing of it. On other lanes it
/// is memory like any other.
pub struct RegisteredMemory(Held);

#[cfg(target_os = "linux")]
type Held = dwcp_rdma::Memory;
#[cfg(not(target_os = "linux"))]
type Held = OwnedBuffer;

impl RegisteredMemory {
    /// Memory of `length` bytes, at least one.
    ///
    /// # Errors
    /// [`NetError::Store`] when there is not as much.
    pub fn new(length: usize) -> Result<RegisteredMemory, NetError> {
        #[cfg(target_os = "linux")]
        let made = Held::new(length).map_err(|error| {
            log::debug!("no memory to register: {error}");
            dwcp_store::StoreError::OutOfMemory { needed: length as u64 }
        });
        #[cfg(not(target_os = "linux"))]
        let made = Held::zeroed(length as u64);
        Ok(RegisteredMemory(made?))
    }

    /// Where it begins.
    #[must_use]
    pub fn pointer(&self) -> *mut u8 {
        self.0.pointer()
    }

    /// How many bytes there are.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// With how many devices it is registered at present.
    #[must_use]
    pub fn registrations(&self) -> usize {
        #[cfg(target_os = "linux")]
        return self.0.registrations();
        #[cfg(not(target_os = "linux"))]
        0
    }
}
