//! RDMA as a transport: the stream of `dwcp-rdma` with the deadlines of this crate.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod incoming;
#[cfg(target_os = "linux")]
mod lane;
mod memory;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::rdma_devices;
#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{RdmaIncoming, RdmaListener, open_rdma};
#[cfg(target_os = "linux")]
pub(crate) use incoming::{RdmaIncoming, RdmaListener};
#[cfg(target_os = "linux")]
pub(crate) use lane::open_rdma;
#[cfg(target_os = "linux")]
pub use lane::rdma_devices;
pub use memory::RegisteredMemory;

/// An RDMA device of this machine and its limits, as it tells them.
#[derive(Clone, Debug)]
pub struct RdmaDevice {
    /// Its name.
    pub name: String,
    /// Connections.
    pub max_qp: u32,
    /// Requests under way on one connection.
    pub max_qp_wr: u32,
    /// Pieces of memory in one request.
    pub max_sge: u32,
    /// Completions that wait to be looked at.
    pub max_cqe: u32,
    /// Registered pieces of memory.
    pub max_mr: u32,
    /// Bytes of one of them.
    pub max_mr_bytes: u64,
}
