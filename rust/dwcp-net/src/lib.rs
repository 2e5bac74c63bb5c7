//! Sockets, TLS, threads and clocks: carries the v3 protocol between two machines.
//!
//! A [`SendSession`] or a [`FetchSession`] dials a [`Listener`] over several connections (lanes), each with a thread at
//! both ends; the first sends to it, the second has it send. What is
//! sent and in which order the state machines of `dwcp-proto` decide, how blocks look `dwcp-codec`, and where they
//! come from and go to `dwcp-store`; this crate moves them, keeps deadlines, replaces lanes that break, and reports.

mod breaker;
mod cancel;
mod congestion;
mod dial;
mod distance;
mod error;
mod fetch;
mod inbox;
mod lane;
mod lanes;
mod limiter;
mod listen;
mod local;
mod receive;
pub mod relay;
mod report;
pub mod security;
mod send;
mod serve;
mod sync;
mod tally;
mod transfers;
pub mod transport;

pub use cancel::Cancel;
pub use congestion::Congestion;
pub use distance::{Distance, Relocation};
pub use error::NetError;
pub use fetch::{FetchOptions, FetchSession};
pub use lanes::{LaneChange, LaneRange, LaneReason};
pub use listen::{Arrival, Cidr, Listener, ServeV1, V1Gate};
pub use receive::{ReceiveOptions, ReceiveSession, Refusal};
pub use report::{
    CodecShare, Event, Limits, LinkCounts, LivePath, Observer, PathReport, Progress, ReceiveReport,
    SendReport, Unobserved, thread_cpu,
};
pub use send::{
    CodecChoice, ProbeOptions, ProbeReport, STALL_READ_BYTES_PER_S, Selection, SendOptions, SendSession,
    probe,
};
pub use serve::ServeSession;
pub use tally::{EventCounts, Tally};
pub use transfers::{Direction, FlowCounts, Running, TransferCounts, TransferTally, Watched};
pub use transport::{LinkKind, RdmaDevice, RegisteredMemory, rdma_devices};
