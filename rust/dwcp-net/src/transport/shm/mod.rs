//! Two rings in memory that two processes of one user on one host share, and a Unix socket beside them.
//!
//! The socket proves who the peer is, carries the descriptor of the memory, rings the side that sleeps, and ends when a
//! process does. docs/format.md tells the bytes.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod lane;
#[cfg(target_os = "linux")]
mod local;
#[cfg(target_os = "linux")]
mod meet;
#[cfg(target_os = "linux")]
mod region;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests;

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{LocalListener, LocalStream, accept_shm, open_shm};
#[cfg(target_os = "linux")]
pub(crate) use local::{LocalListener, LocalStream};
#[cfg(target_os = "linux")]
pub(crate) use meet::{accept_shm, open_shm};
