//! The queues of a connection and its registered memory.
//!
//! A slot belongs either to the device, which may read or write it at any time, or to this side. The queue notes which, and
//! lends only what is not the device's.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::os::fd::BorrowedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::cm::Id;
use crate::domain::Domain;
use crate::error::RdmaError;
use crate::ffi::{
    CompChannel, Cq, Mr, QPT_RC, QpCap, QpInitAttr, RecvWr, SEND_INLINE, SEND_SIGNALED, SendWr, Sge, WC_RECV,
    WC_WITH_IMM, WR_SEND_WITH_IMM, Wc,
};
use crate::geometry::{CONTROL_SLOTS, Geometry};
use crate::memory::Memory;
use crate::region::Region;

/// Short messages go with the request itself, where the device takes that.
const INLINE_BYTES: u32 = 128;

/// Completions that are taken at once.
const BATCH: usize = 16;

/// The bit of a request's number that says that it sends.
const SENDS: u64 = 1 << 63;

/// What has become of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Done {
    /// A message is in a slot.
    Received { slot: u32, length: u32, note: [u8; 4] },
    /// All requests to send up to this number are done.
    Sent { number: u64 },
    /// It has failed, as all that are posted then do.
    Failed { status: u32 },
    /// The peer has sent what is no message.
    Odd { reason: &'static str },
}

impl Done {
    /// What a completion says, of a queue whose slots are so long.
    fn read(wc: &Wc, slot_bytes: u32) -> Done {
        if wc.status != 0 {
            return Done::Failed { status: wc.status };
        }
        let number = wc.wr_id & !SENDS;
        if wc.wr_id & SENDS != 0 {
            return Done::Sent { number };
        }
        // A WRITE of nothing needs no key, and comes as a completion too.
        let reason = if wc.opcode != WC_RECV {
            "what came was not sent"
        } else if wc.wc_flags & WC_WITH_IMM == 0 {
            "a message has no note"
        } else if wc.byte_len > slot_bytes {
            "a message is longer than a slot"
        } else {
            return Done::Received { slot: number as u32, length: wc.byte_len, note: wc.imm_data };
        };
        Done::Odd { reason }
    }
}

/// What is sent of the slot that it takes.
pub(crate) enum Content<'a> {
    /// So many bytes of it.
    Slot(u32),
    /// None of it, but these bytes of registered memory, by its key.
    Lent(&'a [u8], &'a (Memory, u32)),
}

/// What a connection needs of the device. Pieces are null until they are made, so that half of them can be taken down.
pub(crate) struct Queue {
    // Before the id, which keeps the device open.
    domain: Domain,
    id: Id,
    geometry: Geometry,
    region: Region,
    channel: *mut CompChannel,
    cq: *mut Cq,
    mr: *mut Mr,
    /// Events of the channel that were not acknowledged.
    heard: c_uint,
    inline_bytes: u32,
    /// Which slots to receive into are the device's.
    posted: Vec<bool>,
    /// For each slot to send from, the number of the request that has taken it, and the memory that it reads instead.
    sending: Vec<Option<(u64, Option<Memory>)>>,
    next_number: u64,
}

// SAFETY: the verbs may be called from any thread, and what is pointed to belongs to this queue alone.
unsafe impl Send for Queue {}

impl Queue {
    /// Makes the queues on the device that `id` has led to, and posts all slots to receive into.
    pub(crate) fn new(id: Id, geometry: Geometry) -> Result<Queue, RdmaError> {
        if id.verbs().is_null() {
            return Err(RdmaError::NoDevice);
        }
        let region = Region::new(geometry.bytes())?;
        let domain = Domain::join(id.library(), id.verbs())?;
        let (receives, sends) = (geometry.slots + CONTROL_SLOTS, geometry.slots);
        let mut queue = Queue {
            domain,
            id,
            geometry,
            region,
            channel: std::ptr::null_mut(),
            cq: std::ptr::null_mut(),
            mr: std::ptr::null_mut(),
            heard: 0,
            inline_bytes: 0,
            posted: vec![false; receives as usize],
            sending: vec![None; sends as usize],
            next_number: 0,
        };
        queue.make()?;
        for slot in 0..receives {
            queue.post_receive(slot)?;
        }
        Ok(queue)
    }

    fn make(&mut self) -> Result<(), RdmaError> {
        let (library, verbs) = (self.id.library(), self.id.verbs());
        let requests = self.geometry.slots + CONTROL_SLOTS;
        // SAFETY: the device is open for as long as the id is there; every piece is made of those before it, and taken
        // down after those behind it.
        unsafe {
            self.channel = made("ibv_create_comp_channel", (library.ibv_create_comp_channel)(verbs))?;
            let completions = c_int::try_from(2 * requests).unwrap_or(c_int::MAX);
            let context = std::ptr::null_mut();
            self.cq =
                made("ibv_create_cq", (library.ibv_create_cq)(verbs, completions, context, self.channel, 0))?;
        }
        // The memory is the region's, which is unmapped last.
        self.mr = self.domain.register(self.region.start(), self.region.length())?;
        fcntl_getfl(self.fd())
            .and_then(|flags| fcntl_setfl(self.fd(), flags | OFlags::NONBLOCK))
            .map_err(|errno| RdmaError::errno("fcntl", errno))?;
        self.inline_bytes = match self.make_qp(requests, INLINE_BYTES) {
            Ok(bytes) => bytes,
            // Not every device takes messages with the request.
            Err(_) => self.make_qp(requests, 0)?,
        };
        Ok(())
    }

    /// Makes the pair of queues; tells how long a message may be that goes with its request.
    fn make_qp(&mut self, requests: u32, max_inline_data: u32) -> Result<u32, RdmaError> {
        let (max_send_sge, max_recv_sge) = (1, 1);
        let cap = QpCap {
            max_send_wr: requests,
            max_recv_wr: requests,
            max_send_sge,
            max_recv_sge,
            max_inline_data,
        };
        let mut how = QpInitAttr {
            qp_context: std::ptr::null_mut(),
            send_cq: self.cq,
            recv_cq: self.cq,
            srq: std::ptr::null_mut(),
            cap,
            qp_type: QPT_RC,
            sq_sig_all: 0,
        };
        self.id.create_qp(self.domain.pd(), &mut how)?;
        Ok(how.cap.max_inline_data)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn id(&self) -> &Id {
        &self.id
    }

    pub(crate) fn id_mut(&mut self) -> &mut Id {
        &mut self.id
    }

    /// Becomes readable once after [`Queue::arm`], when there is a completion.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has its descriptor open for as long as it is there, which is as long as this borrow.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    fn receive_at(&self, slot: u32) -> *mut u8 {
        self.region.start().wrapping_add(slot as usize * self.geometry.slot_bytes as usize)
    }

    fn send_at(&self, slot: u32) -> *mut u8 {
        self.receive_at(self.geometry.slots + CONTROL_SLOTS + slot)
    }

    /// The beginning of a message that has come; nothing where the slot is the device's.
    pub(crate) fn received(&self, slot: u32, length: u32) -> &[u8] {
        if self.posted.get(slot as usize) != Some(&false) {
            return &[];
        }
        let length = length.min(self.geometry.slot_bytes) as usize;
        // SAFETY: the slot is within the region, and not posted, so that the device does not write to it before
        // `post_receive` is called, for which the queue must not be borrowed.
        unsafe { std::slice::from_raw_parts(self.receive_at(slot), length) }
    }

    /// A slot to send from; nothing where the device may still read it.
    pub(crate) fn lend(&mut self, slot: u32) -> &mut [u8] {
        if !self.is_free(slot) {
            return &mut [];
        }
        // SAFETY: the slot is within the region, and no request reads it before `send` is called, for which the queue
        // must not be borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.send_at(slot), self.geometry.slot_bytes as usize) }
    }

    /// Whether a slot can be filled.
    pub(crate) fn is_free(&self, slot: u32) -> bool {
        matches!(self.sending.get(slot as usize), Some(None))
    }

    /// Gives a slot to the device, to receive into.
    pub(crate) fn post_receive(&mut self, slot: u32) -> Result<(), RdmaError> {
        let Some(posted) = self.posted.get_mut(slot as usize) else {
            return Err(RdmaError::Rule { reason: "a slot that there is not" });
        };
        *posted = true;
        let (addr, length) = (self.receive_at(slot) as u64, self.geometry.slot_bytes);
        // SAFETY: the region was registered.
        let mut piece = Sge { addr, length, lkey: unsafe { (*self.mr).lkey } };
        let mut request = RecvWr {
            wr_id: u64::from(slot),
            next: std::ptr::null_mut(),
            sg_list: &raw mut piece,
            num_sge: 1,
        };
        let mut bad = std::ptr::null_mut();
        let qp = self.id.qp();
        // SAFETY: the queues are there, and so is the table of their device. The request is copied by the call, and what
        // it points to is the region's, of a slot that was marked above.
        let code = unsafe {
            let post = (*(*qp).context).ops.post_recv.ok_or(RdmaError::NoDevice)?;
            post(qp, &raw mut request, &raw mut bad)
        };
        posted_or("ibv_post_recv", code)
    }

    /// The registered memory in which all of `bytes` lie, with its key; none where they have to be copied.
    pub(crate) fn lent(&self, bytes: &[u8]) -> Option<(Memory, u32)> {
        let memory = Memory::around(bytes.as_ptr() as usize, bytes.len())?;
        let key = self.domain.key_of(&memory)?;
        Some((memory, key))
    }

    /// Sends something, for which a slot is taken until it is done, or nothing but the note; tells the number of the
    /// request. Bytes that are lent must not change before the peer has them.
    pub(crate) fn send(
        &mut self,
        content: Option<(u32, Content<'_>)>,
        note: [u8; 4],
        is_signaled: bool,
    ) -> Result<u64, RdmaError> {
        let number = self.next_number;
        // SAFETY: the region was registered.
        let own = unsafe { (*self.mr).lkey };
        let mut piece = Sge { addr: 0, length: 0, lkey: own };
        let mut send_flags = if is_signaled { SEND_SIGNALED } else { 0 };
        let num_sge = c_int::from(content.is_some());
        if let Some((slot, content)) = content {
            let (addr, length, lkey, memory) = match content {
                Content::Slot(length) => (self.send_at(slot) as u64, length, own, None),
                // What is too long for a request is refused below.
                Content::Lent(bytes, (memory, lkey)) => {
                    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    (bytes.as_ptr() as u64, length, *lkey, Some(memory.clone()))
                }
            };
            if !self.is_free(slot) || length > self.geometry.slot_bytes {
                return Err(RdmaError::Rule { reason: "a slot that is not free" });
            }
            piece = Sge { addr, length, lkey };
            if length <= self.inline_bytes {
                send_flags |= SEND_INLINE;
            }
            self.sending[slot as usize] = Some((number, memory));
        }
        let mut request = SendWr {
            wr_id: SENDS | number,
            next: std::ptr::null_mut(),
            sg_list: &raw mut piece,
            num_sge,
            opcode: WR_SEND_WITH_IMM,
            send_flags,
            imm_data: note,
            rest: [0; 11],
        };
        let mut bad = std::ptr::null_mut();
        let qp = self.id.qp();
        // SAFETY: the queues are there, and so is the table of their device. The request is copied by the call, and what
        // it points to is the region's, of a slot that was marked above, or of memory that is held there.
        let code = unsafe {
            let post = (*(*qp).context).ops.post_send.ok_or(RdmaError::NoDevice)?;
            post(qp, &raw mut request, &raw mut bad)
        };
        posted_or("ibv_post_send", code)?;
        self.next_number += 1;
        Ok(number)
    }

    /// Takes completions, some at a time; nothing when there are none.
    pub(crate) fn poll(&mut self, done: &mut Vec<Done>) -> Result<(), RdmaError> {
        done.clear();
        let mut taken = [Wc::default(); BATCH];
        // SAFETY: the queue is there, and so is the table of its device; at most so many completions are written.
        let count = unsafe {
            let poll = (*(*self.cq).context).ops.poll_cq.ok_or(RdmaError::NoDevice)?;
            poll(self.cq, BATCH as c_int, taken.as_mut_ptr())
        };
        let count = usize::try_from(count).map_err(|_| RdmaError::Call {
            call: "ibv_poll_cq",
            source: std::io::Error::other("it failed"),
        })?;
        for wc in &taken[..count.min(BATCH)] {
            let read = Done::read(wc, self.geometry.slot_bytes);
            match read {
                Done::Sent { number } => {
                    for sending in &mut self.sending {
                        sending.take_if(|(sent, _)| *sent <= number);
                    }
                }
                Done::Received { slot, .. } => {
                    if let Some(posted) = self.posted.get_mut(slot as usize) {
                        *posted = false;
                    }
                }
                // The slot stays the device's: it is of no use any more.
                Done::Failed { .. } | Done::Odd { .. } => {}
            }
            done.push(read);
        }
        Ok(())
    }

    /// Has the next completion make [`Queue::fd`] readable. What has come before does not.
    pub(crate) fn arm(&mut self) -> Result<(), RdmaError> {
        // SAFETY: the queue is there, and so is the table of its device.
        let code = unsafe {
            let notify = (*(*self.cq).context).ops.req_notify_cq.ok_or(RdmaError::NoDevice)?;
            notify(self.cq, 0)
        };
        posted_or("ibv_req_notify_cq", code)
    }

    /// Makes [`Queue::fd`] unreadable again; tells whether it was readable.
    pub(crate) fn hear(&mut self) -> bool {
        let (mut cq, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        let library = self.id.library();
        let mut was_readable = false;
        // SAFETY: the channel is there, and does not block; both pointers are written when there is an event.
        while unsafe { (library.ibv_get_cq_event)(self.channel, &raw mut cq, &raw mut context) } == 0 {
            // The library counts them in as many bits.
            self.heard = self.heard.wrapping_add(1);
            was_readable = true;
        }
        was_readable
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let library = self.id.library();
        // Once the queues are gone, the device neither reads nor writes.
        self.id.destroy_qp();
        self.domain.deregister(self.mr);
        // SAFETY: every piece was made, or is null; it is taken down once, and before those that it is made of.
        unsafe {
            if !self.cq.is_null() {
                // Otherwise it waits for them for ever.
                (library.ibv_ack_cq_events)(self.cq, self.heard);
                (library.ibv_destroy_cq)(self.cq);
            }
            if !self.channel.is_null() {
                (library.ibv_destroy_comp_channel)(self.channel);
            }
        }
    }
}

fn made<T>(call: &'static str, piece: *mut T) -> Result<*mut T, RdmaError> {
    if piece.is_null() { Err(RdmaError::last(call)) } else { Ok(piece) }
}

/// Calls of the table tell their error as a number.
fn posted_or(call: &'static str, code: c_int) -> Result<(), RdmaError> {
    if code == 0 {
        Ok(())
    } else {
        Err(RdmaError::Call { call, source: std::io::Error::from_raw_os_error(code.abs()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_with_a_note_that_fits_its_slot_is_one() {
        let wc =
            Wc { wr_id: 3, opcode: WC_RECV, wc_flags: WC_WITH_IMM, imm_data: [0, 0, 0, 9], ..Wc::default() };
        let read = |wc: Wc| Done::read(&wc, 4096);
        let longest = Wc { byte_len: 4096, ..wc };
        assert!(matches!(read(longest), Done::Received { slot: 3, length: 4096, note: [0, 0, 0, 9] }));
        // A WRITE, a message without a note, and one that is too long.
        for odd in [Wc { opcode: WC_RECV + 1, ..wc }, Wc { wc_flags: 0, ..wc }, Wc { byte_len: 4097, ..wc }] {
            assert!(matches!(read(odd), Done::Odd { .. }), "{odd:?}");
        }
        // Of a request that has failed only its number and the status mean anything.
        assert!(matches!(read(Wc { status: 5, opcode: 0, ..wc }), Done::Failed { status: 5 }));
        assert!(matches!(
            read(Wc { wr_id: SENDS | 7, opcode: 0, wc_flags: 0, ..wc }),
            Done::Sent { number: 7 }
        ));
    }
}
