//! Streams over lanes: what one side sends of its streams, and puts in order again of those of the other.
//!
//! Records are numbered in each stream, go over any lane, and are sent again over another if theirs is lost; the other
//! side drops what comes twice. What is not taken yet is bounded on both sides.

mod inbox;
mod outbox;
mod pace;

pub use inbox::Inbox;
pub use outbox::{Outbox, Way};

use crate::frame::RecordWord;

/// The most bytes of records that a side may have under way and not taken, before they were coded.
pub const MAX_PENDING_BYTES: u64 = 128 << 20;

/// The most records of a side that are not taken.
pub const MAX_PENDING: usize = 4_096;

/// The most streams of a session at once, and altogether.
pub const MAX_STREAMS: u32 = 1_024;

/// The name of a record: its stream, and its number in it.
pub type RecordId = (u32, u64);

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<B> {
    /// What it is.
    pub word: RecordWord,
    /// Its bytes, which are not looked into.
    pub bytes: B,
    /// How many those are.
    pub raw_len: u32,
}
