//! What several targets make of the bytes they are given.

pub mod patches;
pub mod versions;
