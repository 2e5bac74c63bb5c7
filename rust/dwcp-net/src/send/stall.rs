//! Whether anything of a transfer moves.

use std::time::{Duration, Instant};

use dwcp_proto::sender::LaneId;

use super::shared::State;

/// What a receiver is taken to read and to write of the state before it accepts, and before it commits: it says nothing
/// of that meanwhile, so the time that nothing may move for is longer by the time this takes.
pub const STALL_READ_BYTES_PER_S: u64 = 64 << 20;

impl State {
    /// A lane has made something of a block: it `writes` it now, or there was nothing to write.
    pub(super) fn moves(&mut self, lane: LaneId, writes: bool) {
        self.moved = Instant::now();
        if let Some(handle) = self.lanes.get_mut(&lane) {
            handle.writing = writes;
        }
    }

    /// Whether a lane writes a block. That may last at a low rate, and has a deadline of its own.
    pub(super) fn is_writing(&self) -> bool {
        self.lanes.values().any(|lane| lane.writing)
    }

    /// For how long nothing of the transfer may move, which has to include what the receiver does in silence.
    pub(super) fn stalls_after(&self, limit: Option<Duration>) -> Option<Duration> {
        let bytes = self.job.as_ref().map_or(0, |job| job.manifest.total_bytes());
        limit.map(|limit| limit.saturating_add(Duration::from_secs(bytes / STALL_READ_BYTES_PER_S)))
    }

    /// Whether nothing of the transfer has moved for so long.
    pub(super) fn is_still(&self, limit: Duration) -> bool {
        !self.is_writing() && self.moved.elapsed() >= limit
    }
}
