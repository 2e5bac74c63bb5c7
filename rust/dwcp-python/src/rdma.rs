//! `rdma_offer`.

use dwcp_net::rdma_devices;
use pyo3::prelude::*;

/// An RDMA device of this machine and its limits, as it tells them.
#[derive(IntoPyObject)]
pub struct Device {
    name: String,
    max_qp: u32,
    max_qp_wr: u32,
    max_sge: u32,
    max_cqe: u32,
    max_mr: u32,
    max_mr_bytes: u64,
}

/// The RDMA devices that can be used, and why there is none, if there is none.
#[pyfunction]
#[pyo3(signature = ())]
pub fn rdma_offer(py: Python<'_>) -> (Vec<Device>, Option<String>) {
    match py.detach(rdma_devices) {
        Ok(found) => (found.into_iter().map(Device::of).collect(), None),
        Err(reason) => (Vec::new(), Some(reason)),
    }
}

impl Device {
    fn of(found: dwcp_net::RdmaDevice) -> Device {
        Device {
            name: found.name,
            max_qp: found.max_qp,
            max_qp_wr: found.max_qp_wr,
            max_sge: found.max_sge,
            max_cqe: found.max_cqe,
            max_mr: found.max_mr,
            max_mr_bytes: found.max_mr_bytes,
        }
    }
}
