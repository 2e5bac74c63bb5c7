//! `patch_info`.

use dwcp_codec::digest::Digest;
use dwcp_codec::patch::Contents;
use pyo3::prelude::*;

use super::apply::chain;
use crate::buffer::Input;
use crate::native;

/// What a patch, or a chain of patches, says of itself; a dictionary in Python.
#[derive(IntoPyObject)]
pub struct PatchInfo {
    patches: usize,
    base_bytes: u64,
    base_digest: String,
    target_bytes: u64,
    target_digest: String,
    block_bytes: u32,
    blocks: u64,
    blocks_same: u64,
    blocks_plain: u64,
    blocks_fill: u64,
    blocks_planes: u64,
    blocks_difference: u64,
    blocks_sparse: u64,
    blocks_runs: u64,
    blocks_copy: u64,
    blocks_splice: u64,
    patch_bytes: u64,
    dictionary: Option<String>,
}

impl PatchInfo {
    /// Count what is in patches that stand one behind the other.
    pub fn of<'a>(chain: impl IntoIterator<Item = &'a Contents>) -> PatchInfo {
        let mut info = PatchInfo {
            patches: 0,
            base_bytes: 0,
            base_digest: Digest([0; 16]).to_string(),
            target_bytes: 0,
            target_digest: Digest([0; 16]).to_string(),
            block_bytes: 0,
            blocks: 0,
            blocks_same: 0,
            blocks_plain: 0,
            blocks_fill: 0,
            blocks_planes: 0,
            blocks_difference: 0,
            blocks_sparse: 0,
            blocks_runs: 0,
            blocks_copy: 0,
            blocks_splice: 0,
            patch_bytes: 0,
            dictionary: None,
        };
        for contents in chain {
            if info.patches == 0 {
                info.base_bytes = contents.base_size();
                info.base_digest = contents.base_digest().to_string();
                info.block_bytes = contents.block_bytes();
            }
            info.patches += 1;
            let needed = contents.needed_dictionary().map(|digest| digest.to_string());
            info.dictionary = info.dictionary.or(needed);
            info.target_bytes = contents.target_size();
            info.target_digest = contents.target_digest().to_string();
            info.blocks += u64::from(contents.block_count());
            let counts = contents.counts();
            info.blocks_same += counts.same;
            info.blocks_plain += counts.plain;
            info.blocks_fill += counts.fill;
            info.blocks_planes += counts.planes;
            info.blocks_difference += counts.difference;
            info.blocks_sparse += counts.sparse;
            info.blocks_runs += counts.runs;
            info.blocks_copy += counts.copy;
            info.blocks_splice += counts.splice;
            let range = contents.range();
            info.patch_bytes += range.end - range.start;
        }
        info
    }
}

/// Read what a patch says of itself.
#[pyfunction]
#[pyo3(signature = (patch))]
pub fn patch_info(py: Python<'_>, patch: Input) -> PyResult<PatchInfo> {
    let patch = patch.bytes();
    native::run(py, || {
        let (before, last) = chain(patch)?;
        Ok(PatchInfo::of(before.iter().chain([&last]).map(|patch| &**patch)))
    })
}
