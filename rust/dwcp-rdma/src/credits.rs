//! How many messages each side may still send: what a receiver has posted, and no more.

use crate::error::RdmaError;

/// The bit of an immediate that says that nothing follows.
const END: u32 = 1 << 31;
const GRANT: u32 = 0xffff;

/// What a message tells beside its content, in its immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// How many slots the sender of the message has freed since its last one.
    pub(crate) granted: u32,
    /// Nothing follows.
    pub(crate) end: bool,
}

impl Note {
    pub(crate) fn to_bytes(self) -> [u8; 4] {
        (self.granted | if self.end { END } else { 0 }).to_be_bytes()
    }

    pub(crate) fn read(bytes: [u8; 4]) -> Result<Note, RdmaError> {
        let word = u32::from_be_bytes(bytes);
        if word & !(END | GRANT) != 0 {
            return Err(RdmaError::Rule { reason: "a message has a note with unknown bits" });
        }
        Ok(Note { granted: word & GRANT, end: word & END != 0 })
    }
}

/// The credits of both directions.
#[derive(Debug)]
pub(crate) struct Credits {
    /// Slots of the peer, of which this many are free.
    theirs: u32,
    left: u32,
    /// Slots of this side that were freed and not told of.
    freed: u32,
    /// As many freed slots are told of by a message of their own.
    due: u32,
}

impl Credits {
    pub(crate) fn new(ours: u32, theirs: u32) -> Credits {
        Credits { theirs, left: theirs, freed: 0, due: (ours / 2).max(1) }
    }

    /// Whether a message with content may be sent.
    pub(crate) fn any_left(&self) -> bool {
        self.left > 0
    }

    /// A message with content was sent.
    pub(crate) fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// The peer has freed slots.
    pub(crate) fn granted(&mut self, slots: u32) -> Result<(), RdmaError> {
        if slots > self.theirs - self.left {
            return Err(RdmaError::Rule { reason: "it grants more slots than it has" });
        }
        self.left += slots;
        Ok(())
    }

    /// A slot of this side was freed and posted again.
    pub(crate) fn free(&mut self) {
        self.freed += 1;
    }

    /// Whether so many were freed that the peer has to hear of it now.
    pub(crate) fn is_due(&self) -> bool {
        self.freed >= self.due
    }

    /// What the next message tells of; it is told of once.
    pub(crate) fn tell(&mut self) -> u32 {
        let told = self.freed.min(GRANT);
        self.freed -= told;
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::CONTROL_SLOTS;

    #[test]
    fn a_peer_that_grants_what_it_does_not_have_is_found_out() {
        let mut credits = Credits::new(8, 4);
        (0..3).for_each(|_| credits.spend());
        assert!(credits.granted(4).is_err());
        credits.granted(3).unwrap();
        assert!(credits.granted(1).is_err());
        assert!(Note::read([0, 1, 0, 0]).is_err());
        let note = Note { granted: 7, end: true };
        assert_eq!(Note::read(note.to_bytes()).unwrap(), note);
    }

    /// One side of a connection whose messages take any time: what it has posted, and what is on the way to it.
    struct Side {
        credits: Credits,
        posted: u32,
        unread: u32,
        way: std::collections::VecDeque<(bool, Note)>,
    }

    #[test]
    fn no_order_of_events_overruns_a_receiver_or_stops_the_flow() {
        const SLOTS: u32 = 6;
        let side = || Side {
            credits: Credits::new(SLOTS, SLOTS),
            posted: SLOTS + CONTROL_SLOTS,
            unread: 0,
            way: [].into(),
        };
        let mut sides = [side(), side()];
        let (mut sent, mut state) = ([0_u32; 2], 0x2545_f491_u32);
        for _ in 0..200_000 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let me = (state >> 8) as usize % 2;
            match (state >> 16) % 3 {
                // A message with content, if there is a credit.
                0 if sides[me].credits.any_left() => {
                    sides[me].credits.spend();
                    let note = Note { granted: sides[me].credits.tell(), end: false };
                    sides[1 - me].way.push_back((true, note));
                    sent[me] += 1;
                }
                // The next message arrives, which needs a slot that was posted.
                1 => {
                    if let Some((has_content, note)) = sides[me].way.pop_front() {
                        let side = &mut sides[me];
                        side.posted = side.posted.checked_sub(1).expect("a receiver was overrun");
                        side.credits.granted(note.granted).unwrap();
                        if has_content { side.unread += 1 } else { side.posted += 1 }
                    }
                }
                // A message is read.
                2 if sides[me].unread > 0 => {
                    let side = &mut sides[me];
                    (side.unread, side.posted) = (side.unread - 1, side.posted + 1);
                    side.credits.free();
                    if side.credits.is_due() {
                        let note = Note { granted: side.credits.tell(), end: false };
                        sides[1 - me].way.push_back((false, note));
                    }
                }
                _ => {}
            }
        }
        assert!(sent.iter().all(|count| *count > 5_000), "{sent:?}");
    }
}
