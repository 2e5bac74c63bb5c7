//! RDMA: a byte stream between two machines over a reliable connection of the verbs.
//!
//! `libibverbs` and `librdmacm` are opened when they are first needed ([`ffi`]); without them, or without a device,
//! there is a typed error. Connections are made through `rdma_cm`, so that their addresses are those of IP. Every wait has
//! a deadline and is ended by a [`Shutter`]; nothing polls busily.
//!
//! A [`Stream`] has registered its memory once, as slots: half of them are filled by the peer, the others by this side.
//! Each message is one SEND with an immediate, takes one slot of the peer, and brings with it how many slots were freed
//! (docs/format.md, section 12). What lies in [`Memory`] is sent from there. Without a free slot of the peer nothing is sent, so that the receiver is never overrun;
//! connections are told not to try again where it is not ready, so that a mistake in this would show.
#![cfg(target_os = "linux")]
#![deny(unsafe_code)]

mod cm;
mod credits;
mod device;
mod domain;
mod error;
mod ffi;
mod geometry;
mod listener;
mod memory;
mod queue;
mod region;
mod stream;
mod waiting;

pub use device::{Device, DeviceLimits, device_names, devices};
pub use error::RdmaError;
pub use geometry::Geometry;
pub use listener::{Incoming, Listener};
pub use memory::Memory;
pub use stream::{Interest, Shutter, Stream};
