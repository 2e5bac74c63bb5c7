//! The binding: take Python objects, leave the interpreter, call the core, give Python objects back.
//!
//! Every function that does native work releases the interpreter while it runs. Nothing here decides
//! anything about the domain: options arrive as explicit values, chosen in Python.

mod buffer;
mod cancel;
mod compress;
mod contexts;
mod counting;
mod decompress;
mod delta;
mod dictionary;
mod digest;
mod error;
mod fetch;
mod logging;
mod measure;
mod native;
mod observer;
mod owner;
mod pages;
mod probe;
mod rdma;
mod receive;
mod registered;
mod report;
mod security;
mod select;
mod send;
mod serve;
mod settings;
mod target;
mod vm;

/// Native half of `dwcp_fast`.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use super::cancel::Cancel;
    #[pymodule_export]
    use super::compress::{compress, compress_into, max_compressed_length};
    #[pymodule_export]
    use super::counting::{set_counting, totals};
    #[pymodule_export]
    use super::decompress::{decompress, decompress_into, needed_dictionary, raw_length};
    #[pymodule_export]
    use super::delta::{
        Snapshot, max_patch_length, patch_apply, patch_apply_files, patch_apply_in_place,
        patch_apply_in_place_files, patch_apply_onto, patch_encode, patch_encode_files, patch_encode_into,
        patch_info, patch_recover, snapshots_apply,
    };
    #[pymodule_export]
    use super::dictionary::Dictionary;
    #[pymodule_export]
    use super::digest::digest;
    #[pymodule_export]
    use super::fetch::Fetcher;
    #[pymodule_export]
    use super::measure::{calibration_sample, measure_action};
    #[pymodule_export]
    use super::pages::{compress_pages, decompress_pages_into};
    #[pymodule_export]
    use super::probe::probe_link;
    #[pymodule_export]
    use super::rdma::rdma_offer;
    #[pymodule_export]
    use super::receive::{Listener, Receiver, staged_transfers};
    #[pymodule_export]
    use super::registered::RegisteredMemory;
    #[pymodule_export]
    use super::security::{DialSecurity, Identity, ListenSecurity, pairing_address, split_address};
    #[pymodule_export]
    use super::select::{SelectorModel, select_actions, select_feature_names, select_features};
    #[pymodule_export]
    use super::send::{Scan, Sender};
    #[pymodule_export]
    use super::serve::Server;
    #[pymodule_export]
    use super::target::ReceivedBuffer;
    #[pymodule_export]
    use super::vm::{SourceRelay, TargetRelay};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::logging::install();
        Ok(())
    }
}
