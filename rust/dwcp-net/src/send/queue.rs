//! One transfer of a session at a time, in the order in which they were asked for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

use crate::cancel::{CANCEL_SLICE, lock, wait};
use crate::error::NetError;

/// Those who want to send: each thread at most once, as it waits in one call.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<ThreadId>>,
    moved: Condvar,
}

/// A place in the queue, and the turn once it is the first.
pub(super) struct Place<'a> {
    queue: &'a Queue,
    thread: ThreadId,
}

impl Queue {
    /// Waits for its turn for as long as `check` lets it, which is asked every 50 ms at least.
    ///
    /// # Errors
    /// [`NetError::Nested`] for a thread that is in the queue already and would wait for itself, or what `check` says.
    pub(super) fn enter(
        &self,
        check: &mut dyn FnMut() -> Result<(), NetError>,
    ) -> Result<Place<'_>, NetError> {
        let mut waiting = lock(&self.waiting);
        let thread = thread::current().id();
        if waiting.contains(&thread) {
            return Err(NetError::Nested);
        }
        waiting.push_back(thread);
        let place = Place { queue: self, thread };
        while waiting.front() != Some(&thread) {
            drop(wait(&self.moved, waiting, CANCEL_SLICE));
            check()?;
            waiting = lock(&self.waiting);
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.queue.waiting);
        waiting.retain(|thread| *thread != self.thread);
        if !waiting.is_empty() {
            self.queue.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_asking_and_pass_over_who_has_left() {
        let queue = Queue::default();
        let first = queue.enter(&mut || Ok(())).unwrap();
        let gave_up = std::thread::scope(|scope| {
            scope.spawn(|| queue.enter(&mut || Err(NetError::Cancelled)).map(drop)).join().unwrap()
        });
        assert!(matches!(gave_up, Err(NetError::Cancelled)));
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for number in 1..4 {
                scope.spawn({
                    let (queue, order) = (&queue, &order);
                    move || {
                        let _turn = queue.enter(&mut || Ok(())).unwrap();
                        lock(order).push(number);
                    }
                });
                while lock(&queue.waiting).len() <= number {
                    std::thread::yield_now();
                }
            }
            assert!(lock(&order).is_empty());
            drop(first);
        });
        assert_eq!(*lock(&order), [1, 2, 3]);
    }

    #[test]
    fn thread_does_not_wait_for_itself() {
        let queue = Queue::default();
        let turn = queue.enter(&mut || Ok(())).unwrap();
        assert!(matches!(queue.enter(&mut || Ok(())), Err(NetError::Nested)));
        drop(turn);
        queue.enter(&mut || Ok(())).unwrap();
    }
}
