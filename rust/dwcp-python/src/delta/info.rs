//! `patch_info`.

use dwcp_codec::block::BlockKind;
use dwcp_codec::patch::{Patch, PatchHead, RecordKind};
use pyo3::prelude::*;

use crate::buffer::Input;
use crate::native;

/// What a patch says of itself; a dictionary in Python.
#[derive(IntoPyObject)]
pub struct PatchInfo {
    base_bytes: u64,
    base_digest: String,
    target_bytes: u64,
    target_digest: String,
    block_bytes: u32,
    element_bytes: u8,
    blocks: usize,
    blocks_same: usize,
    blocks_fill: usize,
    blocks_xor: usize,
    blocks_plain: usize,
    patch_bytes: u64,
}

impl PatchInfo {
    /// Count what is in a head.
    pub fn of(head: &PatchHead, patch_bytes: u64) -> PatchInfo {
        let count = |kind| head.records().iter().filter(|record| record.kind == kind).count();
        PatchInfo {
            base_bytes: head.base_size(),
            base_digest: head.base_digest().to_string(),
            target_bytes: head.target_size(),
            target_digest: head.target_digest().to_string(),
            block_bytes: head.block_bytes(),
            element_bytes: head.width(),
            blocks: head.records().len(),
            blocks_same: count(RecordKind::Same),
            blocks_fill: count(RecordKind::Block(BlockKind::Fill)),
            blocks_xor: head
                .records()
                .iter()
                .filter(|record| matches!(record.kind, RecordKind::Block(kind) if kind.needs_base()))
                .count(),
            blocks_plain: count(RecordKind::Block(BlockKind::Plain)),
            patch_bytes,
        }
    }
}

/// Read what a patch says of itself.
#[pyfunction]
#[pyo3(signature = (patch))]
pub fn patch_info(py: Python<'_>, patch: Input) -> PyResult<PatchInfo> {
    let patch = patch.bytes();
    native::run(py, || Ok(PatchInfo::of(&*Patch::parse(patch)?, patch.len() as u64)))
}
