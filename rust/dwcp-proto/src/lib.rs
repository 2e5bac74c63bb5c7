//! The v3 protocol as state machines: bytes and frames in, frames and tasks out.
//!
//! No sockets, files, clocks or randomness: a driver owns those, gives each frame it read to a
//! [`sender::SenderSession`] or a [`receiver::ReceiverSession`], and does what the session asks for. The wire is
//! written down in `docs/format.md`; every length is checked against a limit before it is used.
#![forbid(unsafe_code)]

mod blocks;
mod dictionary;
pub mod error;
pub mod fetch;
pub mod frame;
mod id;
pub mod ledger;
pub mod limits;
pub mod manifest;
pub mod preface;
pub mod receiver;
pub mod relay;
pub mod sender;
pub mod wire;

pub use error::{ProtoError, SessionError};
pub use frame::{Frame, FrameDecoder, FrameEncoder};
pub use id::{SessionId, TransferId};
pub use limits::Limits;
pub use manifest::{Entry, EntryKind, Manifest};

/// The driver's number of a lane, one for each connection of a session and never used twice.
pub type LaneId = u32;
