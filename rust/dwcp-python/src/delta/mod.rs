//! Patches between two versions of a buffer or a file.

mod apply;
mod encode;
mod files;
mod info;
mod snapshot;
mod watch;

pub use apply::{patch_apply, patch_apply_in_place, patch_apply_onto};
pub use encode::{max_patch_length, patch_encode, patch_encode_into};
pub use files::{patch_apply_files, patch_apply_in_place_files, patch_encode_files, patch_recover};
pub use info::patch_info;
pub use snapshot::{Snapshot, snapshots_apply};
