//! What one side sends of its streams.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::pace::Pace;
use super::{MAX_PENDING, MAX_PENDING_BYTES, Record, RecordId};
use crate::LaneId;
use crate::error::ProtoError;
use crate::frame::Taken;

/// Records at the front of a stream that are looked at for one that is late.
const LOOKED_AT: u64 = 32;

struct UnderWay<B> {
    record: Record<B>,
    /// The lane that has it; none while it waits for one.
    lane: Option<LaneId>,
    /// How many bytes it has on the wire, once that is known.
    wire_len: u64,
    /// When it was given to a lane, in seconds since a moment of the driver's choice.
    at_s: f64,
    /// It was sent a second time although its lane is not lost.
    helped: bool,
    /// It is known that the other side has it, which has not taken it yet.
    has_come: bool,
}

/// What a lane was given, in the order in which it was.
#[derive(Default)]
struct Given {
    /// With the moment at which it was.
    records: VecDeque<(RecordId, f64)>,
    come: u64,
}

/// The weight of the newest record in how long records take to come, and what of the least of it is forgotten with each.
const WEIGHT: f64 = 0.05;
const FORGET: f64 = 1.001;

#[derive(Default)]
struct Outgoing {
    next: u64,
    taken: u64,
    /// Records below this one have all come.
    come: u64,
    pending_bytes: u64,
    pace: Pace,
}

/// What this side sends.
pub struct Outbox<B> {
    streams: HashMap<u32, Outgoing>,
    records: BTreeMap<RecordId, UnderWay<B>>,
    waiting: VecDeque<RecordId>,
    given: HashMap<LaneId, Given>,
    pending_bytes: u64,
    wire_bytes: u64,
    resent: u64,
    helped: u64,
    way: Option<Way>,
}

/// How long records take from being given to a lane until the peer says that they have come, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// Lately.
    pub usual_s: f64,
    /// At least.
    pub least_s: f64,
}

impl<B> Default for Outbox<B> {
    fn default() -> Outbox<B> {
        Outbox {
            streams: HashMap::new(),
            records: BTreeMap::new(),
            waiting: VecDeque::new(),
            given: HashMap::new(),
            pending_bytes: 0,
            wire_bytes: 0,
            resent: 0,
            helped: 0,
            way: None,
        }
    }
}

impl<B: Clone> Outbox<B> {
    /// Adds the next record of a stream.
    pub fn push(&mut self, stream: u32, record: Record<B>) {
        let outgoing = self.streams.entry(stream).or_default();
        let id = (stream, outgoing.next);
        outgoing.next += 1;
        outgoing.pending_bytes += u64::from(record.raw_len);
        self.pending_bytes += u64::from(record.raw_len);
        let under_way =
            UnderWay { record, lane: None, wire_len: 0, at_s: 0.0, helped: false, has_come: false };
        self.records.insert(id, under_way);
        self.waiting.push_back(id);
    }

    /// The record that a lane is to send next, at a moment in seconds.
    pub fn next(&mut self, lane: LaneId, at_s: f64) -> Option<(RecordId, Record<B>)> {
        // A record that was taken or has come while it waited to be sent again is not sent.
        while let Some(id) = self.waiting.pop_front() {
            if let Some(under_way) = self.records.get_mut(&id).filter(|under_way| !under_way.has_come) {
                (under_way.lane, under_way.at_s) = (Some(lane), at_s);
                self.given.entry(lane).or_default().records.push_back((id, at_s));
                return Some((id, under_way.record.clone()));
            }
        }
        None
    }

    /// One of the records that the others of their stream wait for, if another lane has had it for longer than
    /// `patience_s`: it is to be sent a second time, over this one, once.
    pub fn help(&mut self, lane: LaneId, at_s: f64, patience_s: f64) -> Option<(RecordId, Record<B>)> {
        for (stream, outgoing) in &self.streams {
            let front = (*stream, outgoing.taken)..(*stream, outgoing.taken + LOOKED_AT);
            let late = self.records.range_mut(front).find(|(_, under_way)| {
                under_way.lane.is_some_and(|other| other != lane)
                    && !under_way.helped
                    && !under_way.has_come
                    && at_s - under_way.at_s > patience_s
            });
            if let Some((id, under_way)) = late {
                (under_way.lane, under_way.at_s, under_way.helped) = (Some(lane), at_s, true);
                self.given.entry(lane).or_default().records.push_back((*id, at_s));
                self.helped += 1;
                return Some((*id, under_way.record.clone()));
            }
        }
        None
    }

    /// A record has so many bytes on the wire.
    pub fn sending(&mut self, id: RecordId, wire_len: u64) {
        if let Some(under_way) = self.records.get_mut(&id) {
            self.wire_bytes = self.wire_bytes + wire_len - under_way.wire_len;
            under_way.wire_len = wire_len;
        }
    }

    /// The peer is done with records of a stream, and so many have come to it over the lane that tells, at a moment in
    /// seconds.
    ///
    /// # Errors
    /// [`ProtoError::Limit`] for more than were sent.
    pub fn taken(&mut self, lane: LaneId, taken: Taken, at_s: f64) -> Result<(), ProtoError> {
        self.come(lane, taken.come, at_s)?;
        let sent = self.streams.get(&taken.stream).map_or(0, |outgoing| outgoing.next);
        if taken.count > sent {
            return Err(ProtoError::Limit {
                what: "records that were taken",
                value: taken.count,
                limit: sent,
            });
        }
        let Some(outgoing) = self.streams.get_mut(&taken.stream) else { return Ok(()) };
        let from = outgoing.taken;
        if taken.count > from {
            outgoing.pace.took(taken.count - from, outgoing.come > from, at_s);
        }
        // A TAKEN that was overtaken on another lane tells nothing new.
        outgoing.taken = from.max(taken.count);
        for number in from..taken.count {
            let id = (taken.stream, number);
            if let Some(under_way) = self.records.remove(&id) {
                self.pending_bytes -= u64::from(under_way.record.raw_len);
                outgoing.pending_bytes -= u64::from(under_way.record.raw_len);
                self.wire_bytes -= under_way.wire_len;
            }
        }
        self.note_come(taken.stream, at_s);
        Ok(())
    }

    fn come(&mut self, lane: LaneId, count: u64, at_s: f64) -> Result<(), ProtoError> {
        let given = self.given.entry(lane).or_default();
        let limit = given.come + given.records.len() as u64;
        if count > limit {
            return Err(ProtoError::Limit { what: "records that came over a lane", value: count, limit });
        }
        // A lane keeps the order of what it tells; less than before is nothing new.
        let newly = count.saturating_sub(given.come) as usize;
        let mut streams = BTreeSet::new();
        given.come = given.come.max(count);
        for (id, given_s) in given.records.drain(..newly) {
            let took_s = (at_s - given_s).max(0.0);
            let way = self.way.get_or_insert(Way { usual_s: took_s, least_s: took_s });
            way.usual_s += WEIGHT * (took_s - way.usual_s);
            way.least_s = took_s.min(way.least_s * FORGET);
            if let Some(under_way) = self.records.get_mut(&id) {
                under_way.has_come = true;
            }
            streams.insert(id.0);
        }
        streams.into_iter().for_each(|stream| self.note_come(stream, at_s));
        Ok(())
    }

    /// Notes up to where the records of a stream have come.
    fn note_come(&mut self, stream: u32, at_s: f64) {
        let Some(outgoing) = self.streams.get_mut(&stream) else { return };
        let had_some = outgoing.come > outgoing.taken;
        outgoing.come = outgoing.come.max(outgoing.taken);
        let behind = (stream, outgoing.come)..(stream, outgoing.next);
        let come = self.records.range(behind).take_while(|(_, under_way)| under_way.has_come).count();
        outgoing.come += come as u64;
        if come > 0 && !had_some {
            outgoing.pace.since_s = at_s;
        }
    }

    /// A lane is gone: what it had and is not known to have come is sent again, before anything else.
    pub fn lose(&mut self, lane: LaneId) {
        self.given.remove(&lane);
        let lost = self.records.iter_mut();
        let lost = lost.filter(|(_, under_way)| under_way.lane == Some(lane) && !under_way.has_come);
        let mut again = Vec::new();
        for (id, under_way) in lost {
            self.wire_bytes -= std::mem::take(&mut under_way.wire_len);
            under_way.lane = None;
            again.push(*id);
        }
        self.resent += again.len() as u64;
        again.into_iter().rev().for_each(|id| self.waiting.push_front(id));
    }

    /// How long records take to come; none before one has.
    #[must_use]
    pub fn way(&self) -> Option<Way> {
        self.way
    }

    /// In how many seconds, from a moment on, the other side will have taken the records of a stream that have come to it:
    /// what comes behind one that is on its way does not count.
    #[must_use]
    pub fn late_s(&self, stream: u32, at_s: f64) -> f64 {
        let outgoing = self.streams.get(&stream);
        outgoing
            .map_or(0.0, |outgoing| outgoing.pace.needs_s(outgoing.come.saturating_sub(outgoing.taken), at_s))
    }

    /// The same for all records of the stream, those too that are under way: no time unless the next one has come.
    #[must_use]
    pub fn load_s(&self, stream: u32, at_s: f64) -> f64 {
        let busy = self.streams.get(&stream).filter(|outgoing| outgoing.come > outgoing.taken);
        busy.map_or(0.0, |outgoing| outgoing.pace.needs_s(outgoing.next - outgoing.taken, at_s))
    }

    /// How long ago the record was given to a lane that the other side of a stream is to take next; no time if there is none.
    #[must_use]
    pub fn behind_s(&self, stream: u32, at_s: f64) -> f64 {
        let taken = self.streams.get(&stream).map_or(0, |outgoing| outgoing.taken);
        let next = self.records.get(&(stream, taken)).filter(|under_way| under_way.lane.is_some());
        next.map_or(0.0, |under_way| (at_s - under_way.at_s).max(0.0))
    }

    /// How many records wait for a lane.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the other side holds as much as it is bound to, if a record of `raw_len` bytes is added.
    #[must_use]
    pub fn is_full(&self, raw_len: u64) -> bool {
        self.records.len() >= MAX_PENDING || self.pending_bytes + raw_len > MAX_PENDING_BYTES
    }

    /// Whether a lane has records that are not known to have come.
    #[must_use]
    pub fn owes(&self, lane: LaneId) -> bool {
        self.given.get(&lane).is_some_and(|given| !given.records.is_empty())
    }

    /// Bytes on the wire of records that were sent and are not taken.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Bytes of all records that are not taken, before they were coded.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// The same of one stream.
    #[must_use]
    pub fn pending_of(&self, stream: u32) -> u64 {
        self.streams.get(&stream).map_or(0, |outgoing| outgoing.pending_bytes)
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records were sent again.
    #[must_use]
    pub fn resent(&self) -> u64 {
        self.resent + self.helped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::RecordWord;

    fn data(byte: u8) -> Record<u8> {
        Record { word: RecordWord::Data, bytes: byte, raw_len: 10 }
    }

    /// One that has so many records of a stream to send.
    fn holding(stream: u32, records: u8) -> Outbox<u8> {
        let mut outbox = Outbox::default();
        (0..records).for_each(|byte| outbox.push(stream, data(byte)));
        outbox
    }

    #[test]
    fn what_a_lost_lane_had_goes_over_another_before_the_rest() {
        let mut outbox = holding(7, 4);
        assert_eq!(outbox.next(1, 0.0).unwrap().0, (7, 0));
        assert_eq!(outbox.next(2, 1.0).unwrap().0, (7, 1));
        assert_eq!(outbox.next(1, 2.0).unwrap().0, (7, 2));
        outbox.sending((7, 0), 5);
        outbox.sending((7, 1), 6);
        assert_eq!((outbox.wire_bytes(), outbox.pending_bytes(), outbox.waiting()), (11, 40, 1));
        outbox.lose(1);
        assert_eq!((outbox.wire_bytes(), outbox.waiting(), outbox.resent()), (6, 3, 2));
        // One of them was taken all the same.
        outbox.taken(2, Taken { stream: 7, count: 1, come: 0 }, 9.0).unwrap();
        assert_eq!(outbox.next(2, 3.0).unwrap().0, (7, 2));
        assert_eq!(outbox.next(2, 3.0).unwrap().0, (7, 3));
        assert!(outbox.next(2, 3.0).is_none());
        outbox.taken(2, Taken { stream: 7, count: 0, come: 0 }, 9.0).unwrap();
        for (count, come, most) in [(5, 0, 4), (1, 4, 3)] {
            let refused = outbox.taken(2, Taken { stream: 7, count, come }, 9.0);
            assert!(matches!(refused, Err(ProtoError::Limit { limit, .. }) if limit == most));
        }
        outbox.taken(2, Taken { stream: 7, count: 4, come: 3 }, 9.0).unwrap();
        assert!(outbox.is_empty() && outbox.wire_bytes() == 0);
        assert_eq!((outbox.pending_bytes(), outbox.pending_of(7)), (0, 0));
    }

    #[test]
    fn record_that_the_others_wait_for_is_sent_a_second_time_and_no_more() {
        let mut outbox = holding(0, 3);
        outbox.next(1, 0.0).unwrap();
        outbox.next(2, 0.0).unwrap();
        assert!(outbox.help(2, 0.5, 1.0).is_none(), "it is not late");
        // What is on that very lane is not helped by it.
        assert_eq!(outbox.help(1, 2.0, 1.0).unwrap().0, (0, 1));
        assert_eq!(outbox.help(2, 2.0, 1.0).unwrap().0, (0, 0));
        assert!(outbox.help(3, 9.0, 1.0).is_none());
        // The lanes that have them now are lost; the first would have been no loss.
        assert_eq!(outbox.waiting(), 1);
        outbox.lose(2);
        assert_eq!(outbox.next(3, 9.0).unwrap().0, (0, 0));
        outbox.lose(1);
        assert_eq!((outbox.next(3, 9.0).unwrap().0, outbox.waiting()), ((0, 1), 1));
    }

    #[test]
    fn record_that_has_come_is_not_sent_again_though_it_is_not_taken() {
        let mut outbox = holding(0, 3);
        (0..3).for_each(|_| assert!(outbox.next(1, 0.0).is_some()));
        outbox.taken(1, Taken { stream: 0, count: 0, come: 2 }, 9.0).unwrap();
        assert_eq!(outbox.way(), Some(Way { usual_s: 9.0, least_s: 9.0 }));
        assert_eq!(outbox.help(2, 9.0, 1.0).unwrap().0, (0, 2));
        assert!(outbox.owes(1) && outbox.help(2, 9.0, 1.0).is_none());
        outbox.lose(1);
        assert_eq!(outbox.waiting(), 0);
        outbox.lose(2);
        assert_eq!((outbox.next(3, 9.0).unwrap().0, outbox.waiting()), ((0, 2), 0));
    }

    #[test]
    fn other_side_is_late_with_what_has_come_at_the_pace_at_which_it_took_the_last() {
        let mut outbox = holding(0, 3);
        assert!(
            outbox.next(1, 0.0).is_some() && outbox.next(2, 0.0).is_some() && outbox.next(2, 0.0).is_some()
        );
        assert_eq!((outbox.late_s(0, 1.0), outbox.behind_s(0, 1.0)), (0.0, 1.0));
        // The first one is missing, and the others wait for it.
        outbox.taken(2, Taken { stream: 0, count: 0, come: 2 }, 2.0).unwrap();
        assert_eq!((outbox.late_s(0, 4.0), outbox.behind_s(0, 4.0)), (0.0, 4.0));
        outbox.taken(1, Taken { stream: 0, count: 0, come: 1 }, 5.0).unwrap();
        // Nothing is known of a pace before one was taken.
        assert_eq!((outbox.late_s(0, 5.0), outbox.late_s(0, 7.0)), (0.0, 2.0));
        outbox.taken(1, Taken { stream: 0, count: 1, come: 1 }, 8.0).unwrap();
        assert_eq!((outbox.late_s(0, 8.0), outbox.late_s(0, 9.0)), (2.0 * 3.0, 2.0 * 4.0));
        outbox.taken(1, Taken { stream: 0, count: 3, come: 1 }, 9.0).unwrap();
        assert_eq!(
            (outbox.late_s(0, 20.0), outbox.late_s(1, 20.0), outbox.behind_s(0, 20.0)),
            (0.0, 0.0, 0.0)
        );
        // It took three in the four seconds in which there was one to take; what has come since 21 takes as long each.
        outbox.push(0, data(3));
        outbox.next(1, 20.0).unwrap();
        outbox.taken(1, Taken { stream: 0, count: 3, come: 2 }, 21.0).unwrap();
        let late_s = outbox.late_s(0, 21.0);
        assert!((late_s - 4.0 / 3.0).abs() < 0.05, "{late_s}");
    }

    #[test]
    fn what_is_on_its_way_is_load_while_there_is_something_to_take() {
        let mut outbox = holding(0, 4);
        [1, 1, 2, 2].into_iter().for_each(|lane| assert!(outbox.next(lane, 0.0).is_some()));
        assert_eq!(outbox.load_s(0, 1.0), 0.0);
        outbox.taken(1, Taken { stream: 0, count: 0, come: 2 }, 2.0).unwrap();
        outbox.taken(1, Taken { stream: 0, count: 1, come: 2 }, 3.0).unwrap();
        assert_eq!((outbox.late_s(0, 3.0), outbox.load_s(0, 3.0)), (1.0, 3.0));
        outbox.taken(1, Taken { stream: 0, count: 2, come: 2 }, 4.0).unwrap();
        assert_eq!((outbox.late_s(0, 5.0), outbox.load_s(0, 5.0)), (0.0, 0.0));
    }
}
