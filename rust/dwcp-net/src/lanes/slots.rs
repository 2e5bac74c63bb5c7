//! How many lanes of a session connect, and have not said who they are, at the same time.

use std::sync::{Condvar, Mutex};

use crate::cancel::{CANCEL_SLICE, Cancel, lock, wait};
use crate::error::NetError;

/// A listener lets 48 connections of a network that it knows wait to show who they are, and there may be other sessions.
const AT_ONCE: u32 = 32;

/// Places for lanes that connect.
#[derive(Default)]
pub(crate) struct Slots {
    taken: Mutex<u32>,
    freed: Condvar,
}

/// A place, until it is dropped.
pub(crate) struct Slot<'a>(&'a Slots);

impl Slots {
    /// Waits for a place.
    pub(crate) fn take(&self, cancel: &Cancel) -> Result<Slot<'_>, NetError> {
        let mut taken = lock(&self.taken);
        while *taken >= AT_ONCE {
            cancel.check()?;
            taken = wait(&self.freed, taken, CANCEL_SLICE);
        }
        *taken += 1;
        Ok(Slot(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_beyond_the_places_waits_for_one() {
        let (slots, cancel) = (Slots::default(), Cancel::new());
        let mut held: Vec<_> = (0..AT_ONCE).map(|_| slots.take(&cancel).unwrap()).collect();
        cancel.cancel();
        assert!(matches!(slots.take(&cancel), Err(NetError::Cancelled)));
        held.pop();
        assert!(slots.take(&cancel).is_ok());
    }
}
