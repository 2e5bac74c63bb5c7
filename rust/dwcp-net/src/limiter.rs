//! Keeps all lanes of a sender together below a rate.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, lock};
use crate::error::NetError;

/// How much time's worth of bytes may go out at once.
const BURST: Duration = Duration::from_millis(50);

/// Lets bytes pass at a rate.
pub(crate) struct Limiter {
    bytes_per_s: u64,
    free_at: Mutex<Instant>,
}

impl Limiter {
    pub(crate) fn new(bytes_per_s: u64) -> Limiter {
        Limiter { bytes_per_s: bytes_per_s.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// How many bytes to ask for at once: a burst's worth, so that the stream is even and a cancel is noticed.
    pub(crate) fn piece(&self) -> usize {
        (self.bytes_per_s / 20).clamp(1_024, 1 << 20) as usize
    }

    /// Waits until `count` bytes may go out.
    pub(crate) fn pass(&self, count: usize, cancel: &Cancel) -> Result<(), NetError> {
        let start = {
            let mut free_at = lock(&self.free_at);
            // Idle time is not saved up beyond a burst.
            let start = Instant::now().checked_sub(BURST).map_or(*free_at, |floor| floor.max(*free_at));
            *free_at = start + Duration::from_secs_f64(count as f64 / self.bytes_per_s as f64);
            *free_at
        };
        let early = start.saturating_duration_since(Instant::now());
        if early.is_zero() { Ok(()) } else { cancel.sleep(early) }
    }
}
