//! What a relay has done by now.

use std::time::Duration;

use dwcp_vm::PageCounts;

use crate::error::NetError;
use crate::send::Selection;

/// Where a relay stands.
#[derive(Clone, Debug, Default)]
pub struct RelayReport {
    /// Whether the session is over, and in peace.
    pub finished: bool,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Since the session was opened.
    pub elapsed: Duration,
    /// Bytes of streams from the side that dials to the other.
    pub stream_bytes: u64,
    /// Of these, those of the migration.
    pub migration_bytes: u64,
    /// Bytes of records, as they are on the wire, from the side that dials to the other.
    pub wire_bytes: u64,
    /// Bytes of streams to the side that dials.
    pub return_bytes: u64,
    /// Bytes on the wire that were sent and are not taken yet.
    pub unacknowledged_bytes: u64,
    /// How long ago a lane was given what the other side is to take next of the migration.
    pub behind: Duration,
    /// Streams that were opened, and those of them that are open.
    pub streams: u32,
    /// Streams that have not ended in both directions.
    pub streams_open: u32,
    /// Lanes that are up, or were at the end.
    pub lanes: u32,
    /// Lanes that were lost.
    pub lanes_lost: u32,
    /// Records that were sent again.
    pub records_resent: u64,
    /// The round trip now.
    pub rtt: Option<Duration>,
    /// Guest pages, by how they were told.
    pub pages: PageCounts,
    /// Why streams of the migration are passed on as they are.
    pub opaque: Option<&'static str>,
    /// QEMU compresses pages itself.
    pub compressed_by_qemu: bool,
    /// How records were compressed.
    pub selection: Option<Selection>,
    /// Processor time of the threads of lanes.
    pub cpu: Duration,
    /// What there was from time to time.
    pub timeline: Vec<RelayTick>,
}

/// What there was at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelayTick {
    /// When, since the session was opened.
    pub at: Duration,
    /// As in [`RelayReport`].
    pub stream_bytes: u64,
    /// As in [`RelayReport`].
    pub wire_bytes: u64,
    /// As in [`RelayReport`].
    pub lanes: u32,
    /// As in [`RelayReport`].
    pub rtt: Option<Duration>,
    /// As in [`RelayReport`].
    pub unacknowledged_bytes: u64,
}

/// A failure that is told to several.
pub(super) fn again(error: &NetError) -> NetError {
    match error {
        NetError::Cancelled => NetError::Cancelled,
        NetError::Deadline { what, after } => NetError::Deadline { what, after: *after },
        NetError::PeerClosed { phase, hint } => NetError::PeerClosed { phase, hint: *hint },
        NetError::Integrity { times, reason } => {
            NetError::Integrity { times: *times, reason: reason.clone() }
        }
        NetError::Peer { code, retryable, message } => {
            NetError::Peer { code: *code, retryable: *retryable, message: message.clone() }
        }
        error => NetError::Relay { code: error.code(), reason: error.to_string() },
    }
}
