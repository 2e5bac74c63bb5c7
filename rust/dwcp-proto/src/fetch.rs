//! Who asks and who answers in a session whose receiver has dialled.
//!
//! A FETCH that was lost with its lane is told again on another, under the same number; the sender takes each number
//! once. Fetches follow each other, so at most one waits while the transfer before it is still being confirmed.

use std::sync::Arc;

use crate::LaneId;
use crate::error::SessionError;
use crate::frame::{Fetch, Frame};

/// The side of the receiver: what it asks for, and on which lane it has said so.
#[derive(Debug, Default)]
pub struct Asking {
    /// The number of the next FETCH that is not a repetition.
    next: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u32,
    request: Arc<[u8]>,
    lane: Option<LaneId>,
}

impl Asking {
    /// Asks for a transfer; the frame goes out on the lane that calls [`Asking::next`] first.
    pub fn ask(&mut self, request: Arc<[u8]>) {
        self.open = Some(Open { number: self.next, request, lane: None });
        self.next = self.next.saturating_add(1);
    }

    /// The FETCH that `lane` is to send, if no other lane has sent it.
    pub fn next(&mut self, lane: LaneId) -> Option<Frame> {
        let open = self.open.as_mut().filter(|open| open.lane.is_none())?;
        open.lane = Some(lane);
        Some(Frame::Fetch(Fetch { number: open.number, request: open.request.to_vec() }))
    }

    /// A lane is lost; tells whether another has to ask again.
    pub fn detach(&mut self, lane: LaneId) -> bool {
        match &mut self.open {
            Some(open) if open.lane == Some(lane) => {
                open.lane = None;
                true
            }
            _ => false,
        }
    }

    /// The offer has come. Tells whether there was anything to answer.
    pub fn answered(&mut self) -> bool {
        self.open.take().is_some()
    }

    /// Whether an offer is awaited.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

/// The side of the sender: what it was asked for and has not answered.
#[derive(Debug, Default)]
pub struct Asked {
    /// The number of the next FETCH that is not a repetition.
    next: u32,
    waiting: Option<Vec<u8>>,
}

impl Asked {
    /// Takes a FETCH. Tells whether it is a new one.
    ///
    /// # Errors
    /// [`SessionError::OutOfRange`] for a number that was skipped, and [`SessionError::Unexpected`] for a second
    /// request while one waits.
    pub fn receive(&mut self, fetch: Fetch) -> Result<bool, SessionError> {
        if fetch.number < self.next {
            // Its lane was lost after all of it had arrived.
            return Ok(false);
        }
        if fetch.number > self.next {
            return Err(SessionError::OutOfRange {
                what: "number of a FETCH",
                value: u64::from(fetch.number),
                limit: u64::from(self.next),
            });
        }
        if self.waiting.is_some() {
            return Err(SessionError::Unexpected { frame: "FETCH", phase: "asked" });
        }
        self.next = self.next.saturating_add(1);
        self.waiting = Some(fetch.request);
        Ok(true)
    }

    /// What waits for an answer.
    #[must_use]
    pub fn waiting(&self) -> Option<&[u8]> {
        self.waiting.as_deref()
    }

    /// Takes what waits, in order to answer it.
    pub fn answer(&mut self) -> Option<Vec<u8>> {
        self.waiting.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(number: u32, request: &[u8]) -> Fetch {
        Fetch { number, request: request.to_vec() }
    }

    #[test]
    fn a_request_is_told_on_one_lane_and_again_only_if_that_is_lost() {
        let mut asking = Asking::default();
        assert_eq!(asking.next(1), None);
        asking.ask(b"a".as_slice().into());
        assert_eq!(asking.next(1), Some(Frame::Fetch(fetch(0, b"a"))));
        assert_eq!(asking.next(2), None);
        assert!(!asking.detach(2));
        assert!(asking.detach(1));
        assert_eq!(asking.next(2), Some(Frame::Fetch(fetch(0, b"a"))));
        assert!(asking.answered());
        assert!(!asking.detach(2) && !asking.answered());
        asking.ask(b"b".as_slice().into());
        assert_eq!(asking.next(2), Some(Frame::Fetch(fetch(1, b"b"))));
    }

    #[test]
    fn a_request_is_taken_once_and_none_before_its_turn() {
        let mut asked = Asked::default();
        assert_eq!(asked.receive(fetch(0, b"a")), Ok(true));
        assert_eq!(asked.receive(fetch(0, b"a")), Ok(false));
        assert!(matches!(asked.receive(fetch(1, b"b")), Err(SessionError::Unexpected { .. })));
        assert_eq!(asked.answer().as_deref(), Some(b"a".as_slice()));
        assert_eq!(asked.receive(fetch(0, b"a")), Ok(false));
        assert!(matches!(asked.receive(fetch(2, b"c")), Err(SessionError::OutOfRange { .. })));
        assert_eq!(asked.receive(fetch(1, b"b")), Ok(true));
        assert_eq!(asked.waiting(), Some(b"b".as_slice()));
    }
}
