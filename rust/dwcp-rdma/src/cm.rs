//! `rdma_cm`: makes connections by their IP addresses, and tells of their ends.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::error::RdmaError;
use crate::ffi::{
    CmEvent, CmId, ConnParam, Context, EventChannel, Library, OPTION_ID, OPTION_ID_ACK_TIMEOUT, Opaque,
    PS_TCP, QpInitAttr, library,
};
use crate::geometry::GREETING_BYTES;
use crate::waiting::{Shutter, wait_for};

/// How long the device waits for an acknowledgement, as 4.096 us times two to this power: 0.54 s. A packet is sent eight
/// times at most, so that a peer whose machine is gone shows within 4.3 s of the first, or four times that, which a device
/// may take for it.
const ACK_TIMEOUT: u8 = 17;
const RETRIES: u8 = 7;

/// What a connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AddrResolved,
    RouteResolved,
    ConnectRequest,
    Established,
    Disconnected,
    DeviceRemoval,
    /// It did not work.
    Failed(&'static str),
    /// Of no meaning here.
    Other,
}

impl Kind {
    fn of(event: u32) -> Kind {
        match event {
            0 => Kind::AddrResolved,
            1 => Kind::Failed("the address has no rdma device on its way"),
            2 => Kind::RouteResolved,
            3 => Kind::Failed("there is no route"),
            4 => Kind::ConnectRequest,
            6 => Kind::Failed("connecting has failed"),
            7 => Kind::Failed("the peer does not answer"),
            8 => Kind::Failed("the peer has refused, or does not listen for rdma there"),
            9 => Kind::Established,
            10 => Kind::Disconnected,
            11 => Kind::DeviceRemoval,
            _ => Kind::Other,
        }
    }
}

/// Something that a connection has told.
pub(crate) struct Event {
    pub(crate) kind: Kind,
    pub(crate) status: i32,
    /// The connection that is asked for, of a listener.
    pub(crate) id: *mut CmId,
    /// What the peer has sent along; zeros where it has sent less.
    pub(crate) greeting: [u8; GREETING_BYTES],
}

/// Where events come from.
pub(crate) struct Channel {
    raw: *mut EventChannel,
    library: &'static Library,
}

// SAFETY: librdmacm may be called from any thread, and what is pointed to has no thread of its own.
unsafe impl Send for Channel {}
// SAFETY: the same; of a shared channel only its descriptor is read, and events are taken, for which it has locks.
unsafe impl Sync for Channel {}

impl Channel {
    pub(crate) fn new() -> Result<Channel, RdmaError> {
        let library = library()?;
        // SAFETY: it takes nothing, and gives a channel or null.
        let raw = unsafe { (library.rdma_create_event_channel)() };
        if raw.is_null() {
            return Err(RdmaError::last("rdma_create_event_channel"));
        }
        let channel = Channel { raw, library };
        let flags =
            fcntl_getfl(channel.fd()).and_then(|flags| fcntl_setfl(channel.fd(), flags | OFlags::NONBLOCK));
        flags.map_err(|errno| RdmaError::errno("fcntl", errno))?;
        Ok(channel)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has its descriptor open for as long as it is there, which is as long as this borrow.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }

    /// The next event, if there is one.
    pub(crate) fn next(&self) -> Result<Option<Event>, RdmaError> {
        let mut raw: *mut CmEvent = std::ptr::null_mut();
        // SAFETY: the channel is there, and the pointer is written only when there is an event.
        if unsafe { (self.library.rdma_get_cm_event)(self.raw, &raw mut raw) } != 0 {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(RdmaError::Call { call: "rdma_get_cm_event", source: error }),
            };
        }
        // SAFETY: the event is good until it is acknowledged below.
        let told = unsafe { &*raw };
        let kind = Kind::of(told.event);
        let mut greeting = [0; GREETING_BYTES];
        if matches!(kind, Kind::ConnectRequest | Kind::Established) && !told.param.private_data.is_null() {
            let length = usize::from(told.param.private_data_len).min(GREETING_BYTES);
            // SAFETY: the event has so many bytes there, and the array at least as many.
            unsafe {
                std::ptr::copy_nonoverlapping(told.param.private_data.cast(), greeting.as_mut_ptr(), length);
            }
        }
        let event = Event { kind, status: told.status, id: told.id, greeting };
        // SAFETY: it is acknowledged once, and nothing that points into it is kept; `id` has a life of its own.
        unsafe { (self.library.rdma_ack_cm_event)(raw) };
        Ok(Some(event))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: whatever has used the channel was destroyed before: an Id owns its channel.
        unsafe { (self.library.rdma_destroy_event_channel)(self.raw) };
    }
}

/// A connection, or what listens for some, with the channel that tells of it.
pub(crate) struct Id {
    raw: *mut CmId,
    channel: Channel,
}

// SAFETY: librdmacm may be called from any thread; an Id that is borrowed is only looked at.
unsafe impl Send for Id {}
// SAFETY: the same; calls that change it need it for themselves.
unsafe impl Sync for Id {}

impl Id {
    pub(crate) fn new() -> Result<Id, RdmaError> {
        let channel = Channel::new()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the channel is there, and the pointer is written when the call succeeds.
        let code = unsafe {
            (channel.library.rdma_create_id)(channel.raw, &raw mut raw, std::ptr::null_mut(), PS_TCP)
        };
        check("rdma_create_id", code)?;
        Ok(Id { raw, channel })
    }

    /// Takes over a connection that a listener was asked for, so that it tells here what it tells.
    ///
    /// # Errors
    /// [`RdmaError::Call`]; the connection is refused then.
    pub(crate) fn adopt(raw: *mut CmId) -> Result<Id, RdmaError> {
        let library = library()?;
        let adopted = Channel::new().and_then(|channel| {
            // SAFETY: the connection came with an event that was acknowledged, and nobody else has it.
            check("rdma_migrate_id", unsafe { (library.rdma_migrate_id)(raw, channel.raw) })?;
            Ok(channel)
        });
        match adopted {
            Ok(channel) => Ok(Id { raw, channel }),
            Err(error) => {
                refuse(library, raw);
                Err(error)
            }
        }
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(crate) fn library(&self) -> &'static Library {
        self.channel.library
    }

    /// The device that the address has led to; null before.
    pub(crate) fn verbs(&self) -> *mut Context {
        // SAFETY: the id is there for as long as this one is.
        unsafe { (*self.raw).verbs }
    }

    pub(crate) fn qp(&self) -> *mut crate::ffi::Qp {
        // SAFETY: the id is there for as long as this one is.
        unsafe { (*self.raw).qp }
    }

    /// The addresses of both sides, this one's first, as far as they are known.
    pub(crate) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        // SAFETY: the id is there for as long as this one is, and its addresses are whole, if zeros.
        unsafe { (address_of(&(*self.raw).source), address_of(&(*self.raw).target)) }
    }

    pub(crate) fn bind(&mut self, address: SocketAddr) -> Result<(), RdmaError> {
        let mut raw = raw_address(address);
        // SAFETY: the address is whole and lives through the call.
        check("rdma_bind_addr", unsafe { (self.library().rdma_bind_addr)(self.raw, (&raw mut raw).cast()) })
    }

    pub(crate) fn listen(&mut self, backlog: c_int) -> Result<(), RdmaError> {
        // SAFETY: the id is there.
        check("rdma_listen", unsafe { (self.library().rdma_listen)(self.raw, backlog) })
    }

    pub(crate) fn resolve_address(
        &mut self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<(), RdmaError> {
        let (mut source, mut target) = (from.map(raw_address), raw_address(to));
        let source = source.as_mut().map_or(std::ptr::null_mut(), |source| (&raw mut *source).cast());
        // SAFETY: both addresses are whole, or null, and live through the call.
        let code = unsafe {
            (self.library().rdma_resolve_addr)(
                self.raw,
                source,
                (&raw mut target).cast(),
                milliseconds(limit),
            )
        };
        check("rdma_resolve_addr", code)
    }

    pub(crate) fn resolve_route(&mut self, limit: Duration) -> Result<(), RdmaError> {
        // SAFETY: the id is there.
        check("rdma_resolve_route", unsafe {
            (self.library().rdma_resolve_route)(self.raw, milliseconds(limit))
        })
    }

    /// Makes the queues of requests; `pd` and the queues that `how` names belong to the device of this id.
    pub(crate) fn create_qp(&mut self, pd: *mut Opaque, how: &mut QpInitAttr) -> Result<(), RdmaError> {
        // SAFETY: as the caller says; the structure is whole and lives through the call.
        check("rdma_create_qp", unsafe { (self.library().rdma_create_qp)(self.raw, pd, how) })
    }

    pub(crate) fn destroy_qp(&mut self) {
        if !self.qp().is_null() {
            // SAFETY: the queues are there, which the call changes.
            unsafe { (self.library().rdma_destroy_qp)(self.raw) };
        }
    }

    /// Has the device give a peer up that does not answer. A device that cannot do so has a time of its own.
    fn set_ack_timeout(&mut self) {
        let mut value = ACK_TIMEOUT;
        let (level, name) = (OPTION_ID, OPTION_ID_ACK_TIMEOUT);
        // SAFETY: the option is one byte, which lives through the call.
        let code =
            unsafe { (self.library().rdma_set_option)(self.raw, level, name, (&raw mut value).cast(), 1) };
        if let Err(error) = check("rdma_set_option", code) {
            log::debug!("the device keeps its own time for lost packets: {error}");
        }
    }

    pub(crate) fn connect(&mut self, greeting: &[u8; GREETING_BYTES]) -> Result<(), RdmaError> {
        self.set_ack_timeout();
        let mut how = parameters(greeting);
        // SAFETY: the parameters and the greeting that they point to live through the call.
        check("rdma_connect", unsafe { (self.library().rdma_connect)(self.raw, &raw mut how) })
    }

    pub(crate) fn accept(&mut self, greeting: &[u8; GREETING_BYTES]) -> Result<(), RdmaError> {
        self.set_ack_timeout();
        let mut how = parameters(greeting);
        // SAFETY: the parameters and the greeting that they point to live through the call.
        check("rdma_accept", unsafe { (self.library().rdma_accept)(self.raw, &raw mut how) })
    }

    pub(crate) fn reject(&mut self) {
        // SAFETY: the id is there; nothing is sent along. It fails where the peer is gone.
        let _ = unsafe { (self.library().rdma_reject)(self.raw, std::ptr::null(), 0) };
    }

    pub(crate) fn disconnect(&mut self) {
        // SAFETY: the id is there. It fails where there is no connection any more.
        let _ = unsafe { (self.library().rdma_disconnect)(self.raw) };
    }

    /// Waits for an event of this kind.
    ///
    /// # Errors
    /// [`RdmaError`]: another came, `shutter` was shut, or `end` has come.
    pub(crate) fn expect(
        &self,
        wanted: Kind,
        (end, limit): (Instant, Duration),
        shutter: &Shutter,
        what: &'static str,
    ) -> Result<Event, RdmaError> {
        loop {
            if shutter.is_shut() {
                return Err(RdmaError::Shut);
            }
            if let Some(event) = self.channel.next()? {
                match event.kind {
                    kind if kind == wanted => return Ok(event),
                    Kind::Failed(reason) => {
                        return Err(RdmaError::Refused { event: reason, status: event.status });
                    }
                    Kind::Disconnected => return Err(RdmaError::Disconnected),
                    Kind::DeviceRemoval => return Err(RdmaError::DeviceRemoved),
                    _ => continue,
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RdmaError::Deadline { what, after: limit });
            }
            wait_for([Some(self.channel.fd()), Some(shutter.as_fd())], left)?;
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        self.destroy_qp();
        // SAFETY: its queues are gone, all its events were acknowledged, and the channel goes after it.
        unsafe { (self.library().rdma_destroy_id)(self.raw) };
    }
}

/// Refuses a connection that nobody wants.
pub(crate) fn refuse(library: &Library, raw: *mut CmId) {
    // SAFETY: the connection came with an event that was acknowledged, nobody else has it, and it is not used after.
    unsafe {
        (library.rdma_reject)(raw, std::ptr::null(), 0);
        (library.rdma_destroy_id)(raw);
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), RdmaError> {
    if code == 0 { Ok(()) } else { Err(RdmaError::last(call)) }
}

fn milliseconds(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}

fn parameters(greeting: &[u8; GREETING_BYTES]) -> ConnParam {
    ConnParam {
        private_data: greeting.as_ptr().cast::<c_void>(),
        private_data_len: GREETING_BYTES as u8,
        responder_resources: 0,
        initiator_depth: 0,
        flow_control: 1,
        retry_count: RETRIES,
        // Credits see to it that a receiver is always ready.
        rnr_retry_count: 0,
        srq: 0,
        qp_num: 0,
    }
}

fn raw_address(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: zeros are a value of every field.
    let mut raw: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let start = (&raw mut raw).cast::<u8>();
    // SAFETY: the storage is made to hold either kind of address, and is aligned for both.
    unsafe {
        match address {
            SocketAddr::V4(v4) => start.cast::<libc::sockaddr_in>().write(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => start.cast::<libc::sockaddr_in6>().write(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }
    raw
}

fn address_of(raw: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = std::ptr::from_ref(raw).cast::<u8>();
    match c_int::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that an address of this kind is there; the storage is aligned for it.
            let v4 = unsafe { start.cast::<libc::sockaddr_in>().read() };
            Some(SocketAddr::from((v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that an address of this kind is there; the storage is aligned for it.
            let v6 = unsafe { start.cast::<libc::sockaddr_in6>().read() };
            Some(SocketAddr::from((v6.sin6_addr.s6_addr, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_was() {
        for text in ["10.1.2.3:7443", "[2001:db8::7]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(address_of(&raw_address(address)), Some(address));
        }
    }
}
