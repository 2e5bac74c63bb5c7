//! Cancellation from any thread: a flag, a wake-up for sleepers, and the sockets to shut.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::NetError;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::transport::Closer;

/// Locks a mutex whose data stays valid even if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condvar` for at most `timeout`.
pub(crate) fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// How often a wait that nothing wakes looks at the cancel flag.
pub(crate) const CANCEL_SLICE: Duration = Duration::from_millis(50);

/// A request to stop that every blocking call of this crate obeys within 100 ms. Clones share the request.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    sockets: Mutex<Sockets>,
    changed: Condvar,
}

#[derive(Default)]
struct Sockets {
    next: u64,
    open: HashMap<u64, Closer>,
    children: Vec<Weak<Shared>>,
}

impl Cancel {
    /// A request that nobody has made yet.
    #[must_use]
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Makes the request: every registered socket is shut down and every waiting call returns
    /// [`NetError::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        let children = {
            let sockets = lock(&self.0.sockets);
            sockets.open.values().for_each(Closer::close);
            self.0.changed.notify_all();
            sockets.children.clone()
        };
        children.iter().filter_map(Weak::upgrade).for_each(|child| Cancel(child).cancel());
    }

    /// A request of its own that is also made when this one is.
    pub(crate) fn child(&self) -> Cancel {
        let child = Cancel::new();
        let mut sockets = lock(&self.0.sockets);
        sockets.children.retain(|known| known.strong_count() > 0);
        sockets.children.push(Arc::downgrade(&child.0));
        if self.is_cancelled() {
            child.cancel();
        }
        child
    }

    /// Whether the request was made.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// [`NetError::Cancelled`] once the request was made.
    pub(crate) fn check(&self) -> Result<(), NetError> {
        if self.is_cancelled() { Err(NetError::Cancelled) } else { Ok(()) }
    }

    /// Sleeps for `time`, or less when the request is made.
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), NetError> {
        let end = Instant::now() + time;
        let mut sockets = lock(&self.0.sockets);
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sockets = wait(&self.0.changed, sockets, left);
        }
    }

    /// Has `closer` called when the request is made, until the registration is dropped.
    pub(crate) fn register(&self, closer: Closer) -> Registration {
        let mut sockets = lock(&self.0.sockets);
        let key = sockets.next;
        sockets.next += 1;
        if self.is_cancelled() {
            closer.close();
        }
        sockets.open.insert(key, closer);
        Registration { cancel: self.clone(), key }
    }
}

/// A socket known to a [`Cancel`].
pub(crate) struct Registration {
    cancel: Cancel,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.cancel.0.sockets).open.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_woken_by_a_cancel() {
        let cancel = Cancel::new();
        let other = cancel.clone();
        let sleeper = std::thread::spawn(move || other.sleep(Duration::from_secs(600)));
        cancel.cancel();
        assert!(matches!(sleeper.join().unwrap(), Err(NetError::Cancelled)));
    }
}
