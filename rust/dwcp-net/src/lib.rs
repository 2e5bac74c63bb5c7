//! Sockets, TLS, threads and clocks: carries the v3 protocol between two machines.
//!
//! A [`SendSession`] dials a [`Listener`] over several connections (lanes), each with a thread at both ends. What is
//! sent and in which order the state machines of `dwcp-proto` decide, how blocks look `dwcp-codec`, and where they
//! come from and go to `dwcp-store`; this crate moves them, keeps deadlines, replaces lanes that break, and reports.

mod cancel;
mod error;
mod lane;
mod limiter;
mod listen;
mod receive;
mod report;
pub mod security;
mod send;
pub mod transport;

pub use cancel::Cancel;
pub use error::NetError;
pub use listen::{Cidr, Listener, ServeV1, V1Gate};
pub use receive::{ReceiveOptions, ReceiveSession};
pub use report::{CodecShare, Event, Observer, Progress, ReceiveReport, SendReport, Unobserved};
pub use send::{SendOptions, SendSession};
