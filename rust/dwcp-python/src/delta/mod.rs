//! Patches between two versions of a buffer or a file.

mod apply;
mod encode;
mod files;
mod info;

pub use apply::{patch_apply, patch_apply_in_place};
pub use encode::patch_encode;
pub use files::{patch_apply_files, patch_encode_files};
pub use info::patch_info;
