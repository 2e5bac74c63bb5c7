//! What comes of the streams of the other side.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{MAX_PENDING, MAX_PENDING_BYTES, MAX_STREAMS, Record, RecordId};
use crate::error::ProtoError;
use crate::frame::{RecordWord, Taken};

/// After so many records that were taken, the peer is told although more wait.
const TOLD_EVERY: u64 = 4;

struct Incoming<B> {
    next: u64,
    taken: u64,
    /// What of that the peer was told.
    told: u64,
    waiting: BTreeMap<u64, Record<B>>,
    over: bool,
}

/// What comes from the other side.
pub struct Inbox<B> {
    streams: HashMap<u32, Incoming<B>>,
    pending_bytes: u64,
    /// Streams of which the peer has to be told that something was taken.
    told: BTreeSet<u32>,
    /// Whether the other side opens streams; otherwise this one does.
    takes_streams: bool,
}

impl<B> Inbox<B> {
    /// An inbox of the side that dials, or of the one that takes the streams which the other opens.
    #[must_use]
    pub fn new(takes_streams: bool) -> Inbox<B> {
        Inbox { streams: HashMap::new(), pending_bytes: 0, told: BTreeSet::new(), takes_streams }
    }

    /// This side has opened a stream.
    pub fn open(&mut self, stream: u32) {
        let incoming = Incoming { next: 0, taken: 0, told: 0, waiting: BTreeMap::new(), over: false };
        self.streams.entry(stream).or_insert(incoming);
    }

    /// Takes a record; tells whether it is a new one.
    ///
    /// # Errors
    /// [`ProtoError::Limit`] for more bytes or streams than there may be, and [`ProtoError::Range`] for a record that
    /// its stream cannot have.
    pub fn accept(&mut self, id: RecordId, record: Record<B>) -> Result<bool, ProtoError> {
        let (stream, number) = id;
        // Ends have no bytes, and every stream its own: only their number bounds them.
        let held = self.streams.values().map(|incoming| incoming.waiting.len()).sum::<usize>();
        if !self.streams.contains_key(&stream) {
            let limit = if self.takes_streams { u64::from(MAX_STREAMS) } else { 0 };
            if u64::from(stream) >= limit {
                return Err(ProtoError::Limit {
                    what: "the number of a stream",
                    value: stream.into(),
                    limit,
                });
            }
            self.open(stream);
        }
        let Some(incoming) = self.streams.get_mut(&stream) else { return Ok(false) };
        if number < incoming.next || incoming.waiting.contains_key(&number) {
            // It was sent again, and the peer may not know that it has come before.
            self.told.insert(stream);
            return Ok(false);
        }
        let opens = self.takes_streams && number == 0;
        if incoming.over || opens != (record.word == RecordWord::Opens) {
            let (low, high) = if opens { (0, 0) } else { (1, 4) };
            let (what, field, value) = ("RECORD", "word", record.word as u64);
            return Err(ProtoError::Range { what, field, value, low, high, offset: 4 });
        }
        let value = self.pending_bytes + u64::from(record.raw_len);
        // Both sides count alike, but for a record that is on its way while others are done with.
        let limit = MAX_PENDING_BYTES + u64::from(crate::limits::MAX_BLOCK);
        if value > limit {
            return Err(ProtoError::Limit { what: "bytes that are not taken", value, limit });
        }
        let most = 2 * MAX_PENDING;
        if held >= most {
            let (what, value, limit) = ("records that are not taken", held as u64 + 1, most as u64);
            return Err(ProtoError::Limit { what, value, limit });
        }
        self.pending_bytes = value;
        incoming.waiting.insert(number, record);
        Ok(true)
    }

    /// Whether the next record of a stream is there.
    #[must_use]
    pub fn is_ready(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_some_and(|incoming| incoming.waiting.contains_key(&incoming.next))
    }

    /// The next record of a stream, if it is there.
    pub fn next(&mut self, stream: u32) -> Option<Record<B>> {
        let incoming = self.streams.get_mut(&stream)?;
        let record = incoming.waiting.remove(&incoming.next)?;
        incoming.next += 1;
        incoming.over = matches!(record.word, RecordWord::End | RecordWord::Reset);
        Some(record)
    }

    /// This side is done with the record that was given last for a stream, of so many bytes. Tells whether the peer had
    /// better hear of it now: not while there is more to take, and not for each.
    pub fn done(&mut self, stream: u32, raw_len: u32) -> bool {
        let Some(incoming) = self.streams.get_mut(&stream) else { return false };
        incoming.taken = incoming.next;
        self.pending_bytes = self.pending_bytes.saturating_sub(raw_len.into());
        let is_due = incoming.waiting.is_empty() || incoming.taken >= incoming.told + TOLD_EVERY;
        if is_due {
            self.told.insert(stream);
        }
        is_due
    }

    /// What the peer is to be told next over a lane over which so many records have come.
    pub fn tell(&mut self, come: u64) -> Option<Taken> {
        let stream = *self.told.first()?;
        self.tell_of(stream, come)
    }

    /// What the peer is to be told of a stream over a lane over which so many records have come.
    pub fn tell_of(&mut self, stream: u32, come: u64) -> Option<Taken> {
        self.told.remove(&stream);
        let incoming = self.streams.get_mut(&stream)?;
        incoming.told = incoming.taken;
        Some(Taken { stream, count: incoming.taken, come })
    }

    /// Whether the peer knows of all that was taken, as far as it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.is_empty()
    }

    /// A lane is gone that may have had the word of what was taken: all is told again.
    pub fn tell_again(&mut self) {
        self.told.extend(self.streams.keys());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8) -> Record<u8> {
        Record { word: RecordWord::Data, bytes: byte, raw_len: 10 }
    }

    fn opens() -> Record<u8> {
        Record { word: RecordWord::Opens, bytes: 0, raw_len: 1 }
    }

    #[test]
    fn peer_is_told_of_what_was_taken_once_nothing_waits_or_much_was_taken() {
        let mut inbox = Inbox::new(false);
        inbox.open(0);
        (0..TOLD_EVERY + 2).for_each(|number| assert!(inbox.accept((0, number), data(0)).unwrap()));
        let mut due = Vec::new();
        while inbox.next(0).is_some() {
            if inbox.done(0, 10) {
                due.extend(inbox.tell(0).map(|told| told.count));
            }
        }
        assert_eq!(due, [TOLD_EVERY, TOLD_EVERY + 2]);
    }

    #[test]
    fn records_come_in_order_and_once() {
        let mut inbox = Inbox::new(true);
        assert!(inbox.accept((0, 2), data(2)).unwrap());
        assert!(inbox.next(0).is_none());
        assert!(inbox.accept((0, 0), opens()).unwrap());
        assert!(!inbox.accept((0, 0), opens()).unwrap());
        assert_eq!(inbox.next(0).unwrap().word, RecordWord::Opens);
        inbox.done(0, 1);
        assert_eq!(inbox.tell_of(0, 2), Some(Taken { stream: 0, count: 1, come: 2 }));
        assert_eq!(inbox.tell(2), None);
        assert!(inbox.next(0).is_none());
        assert!(inbox.accept((0, 1), data(1)).unwrap());
        assert_eq!(inbox.next(0).unwrap().bytes, 1);
        assert_eq!(inbox.next(0).unwrap().bytes, 2);
        inbox.tell_again();
        assert_eq!(inbox.tell(2), Some(Taken { stream: 0, count: 1, come: 2 }));
    }

    #[test]
    fn records_without_bytes_are_bounded_over_all_streams() {
        let mut inbox = Inbox::new(true);
        let end = || Record { word: RecordWord::End, bytes: 0, raw_len: 0 };
        let ids = (1..).flat_map(|number| (0..MAX_STREAMS).map(move |stream| (stream, number)));
        let (mut taken, mut refused) = (0, None);
        for id in ids.take(4 * MAX_PENDING) {
            match inbox.accept(id, end()) {
                Ok(_) => taken += 1,
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let limit = 2 * MAX_PENDING as u64;
        assert_eq!(taken, limit);
        assert!(
            matches!(refused, Some(ProtoError::Limit { value, limit: l, .. }) if (value, l) == (limit + 1, limit))
        );
    }

    #[test]
    fn peer_that_breaks_the_rules_of_streams_is_refused() {
        let mut inbox = Inbox::new(false);
        assert!(matches!(inbox.accept((3, 0), data(0)), Err(ProtoError::Limit { .. })));
        inbox.open(3);
        assert!(matches!(inbox.accept((3, 0), opens()), Err(ProtoError::Range { .. })));
        inbox.accept((3, 0), Record { word: RecordWord::End, bytes: 0, raw_len: 0 }).unwrap();
        inbox.next(3).unwrap();
        assert!(matches!(inbox.accept((3, 1), data(0)), Err(ProtoError::Range { .. })));
        let mut inbox = Inbox::new(true);
        assert!(matches!(inbox.accept((0, 0), data(0)), Err(ProtoError::Range { .. })));
        assert!(matches!(inbox.accept((MAX_STREAMS, 0), opens()), Err(ProtoError::Limit { .. })));
        inbox.accept((0, 0), opens()).unwrap();
        let large = Record { raw_len: 4 << 20, ..data(0) };
        let refused = (1..40).find_map(|number| inbox.accept((0, number), large.clone()).err());
        assert!(matches!(refused, Some(ProtoError::Limit { .. })));
    }
}
