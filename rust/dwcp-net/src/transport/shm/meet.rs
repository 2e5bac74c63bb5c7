//! How two processes come to share memory: who they are first, then the memory.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs, ftruncate, memfd_create,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use super::super::stream::{Stream, again};
use super::super::{Patience, TlsTransport, Transport};
use super::lane::ShmTransport;
use super::local::LocalStream;
use super::region::Region;
use super::ring::{Way, region_bytes};
use crate::cancel::Cancel;
use crate::error::NetError;
use crate::security::Fingerprint;

/// Bytes of a ring: two blocks of the usual length are as much as helps, and the processor's caches hold less.
const RING_BYTES: u32 = 2 << 20;

/// What a listener takes.
const LEAST_RING_BYTES: u32 = 1 << 16;
const MOST_RING_BYTES: u32 = 1 << 24;

/// The offer that the descriptor comes with: this, the length of a ring, and nothing else.
const OFFER: [u8; 4] = *b"DWSM";
const OFFER_BYTES: usize = 8;

/// What a listener answers to who has shown a certificate, inside of TLS, and to who has offered memory, outside of it.
const READY: u8 = 1;

/// What the memory must not be able to do: become shorter under the other side's hands.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// The file system of such memory. Pages of others may fail to be there.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Offers memory to whoever listens beside one of `addresses` on this host.
pub(crate) fn open_shm(
    addresses: &[SocketAddr],
    tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    patience: Patience,
    cancel: &Cancel,
) -> Result<Box<dyn Transport>, NetError> {
    let stream = LocalStream::connect(addresses, patience, cancel)?;
    let registration = cancel.register(stream.closer());
    stream.check_user()?;
    let (stream, fingerprint) = match tls {
        None => (stream, None),
        Some((config, name)) => {
            let mut tls = TlsTransport::connect(stream, Arc::clone(config), name.clone(), patience)?;
            // Behind whatever else TLS has to say, so that nothing of it is taken for more than it is later.
            expect_ready(|byte| tls.fill(byte, patience))?;
            tls.into_parts()
        }
    };
    let memory = make_memory(RING_BYTES).map_err(|source| failed("make", stream.peer, source))?;
    let region = map(&memory, RING_BYTES, stream.peer)?;
    offer(&stream, &memory, patience)?;
    expect_ready(|byte| {
        let count = stream.recv_some(byte, patience)?;
        if count == 0 { Err(refused()) } else { Ok(()) }
    })?;
    drop(registration);
    Ok(Box::new(ShmTransport::new(stream, region, (Way::There, RING_BYTES), fingerprint)?))
}

/// Takes the memory that a dialer offers, once it has shown who it is.
pub(crate) fn accept_shm(
    stream: LocalStream,
    tls: Option<&Arc<ServerConfig>>,
    patience: Patience,
) -> Result<Box<dyn Transport>, NetError> {
    stream.check_user()?;
    let (stream, fingerprint): (LocalStream, Option<Fingerprint>) = match tls {
        None => (stream, None),
        Some(config) => {
            let mut tls = TlsTransport::accept(stream, Arc::clone(config), patience)?;
            tls.send_parts(&[&[READY]], patience)?;
            tls.into_parts()
        }
    };
    let (memory, ring_bytes) = take(&stream, patience)?;
    let region = map(&memory, ring_bytes, stream.peer)?;
    stream.send_all(&[READY], patience)?;
    Ok(Box::new(ShmTransport::new(stream, region, (Way::Back, ring_bytes), fingerprint)?))
}

fn expect_ready(read: impl FnOnce(&mut [u8]) -> Result<(), NetError>) -> Result<(), NetError> {
    let mut byte = [0];
    read(&mut byte)?;
    if byte[0] == READY { Ok(()) } else { Err(refused()) }
}

fn refused() -> NetError {
    NetError::PeerClosed { phase: "sharing memory", hint: Some("it does not take what was offered") }
}

fn failed(action: &'static str, peer: SocketAddr, source: io::Error) -> NetError {
    NetError::Io { action, addr: format!("shared memory with {peer}"), source }
}

/// Memory that keeps its length.
pub(super) fn make_memory(ring_bytes: u32) -> io::Result<OwnedFd> {
    let memory = memfd_create("dwcp-fast", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, region_bytes(ring_bytes) as u64)?;
    fcntl_add_seals(&memory, SEALS | SealFlags::SEAL)?;
    Ok(memory)
}

/// Refuses memory that is not what it is said to be, or may become less.
pub(super) fn check_memory(memory: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<()> {
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    if !ring_bytes.is_power_of_two() || !(LEAST_RING_BYTES..=MOST_RING_BYTES).contains(&ring_bytes) {
        return refuse(format!(
            "a ring of {ring_bytes} bytes is no power of two from {LEAST_RING_BYTES} to {MOST_RING_BYTES}"
        ));
    }
    if fstatfs(memory)?.f_type as u64 != TMPFS_MAGIC {
        return refuse("it is no memory of the common kind".to_owned());
    }
    if !fcntl_get_seals(memory)?.contains(SEALS) {
        return refuse("it is not sealed and could become shorter".to_owned());
    }
    let (length, needed) = (fstat(memory)?.st_size, region_bytes(ring_bytes));
    if usize::try_from(length).ok() != Some(needed) {
        return refuse(format!("it has {length} bytes, not the {needed} of two rings of {ring_bytes}"));
    }
    Ok(())
}

fn map(memory: &OwnedFd, ring_bytes: u32, peer: SocketAddr) -> Result<Arc<Region>, NetError> {
    let checked = check_memory(memory.as_fd(), ring_bytes);
    let mapped = checked.and_then(|()| Region::map(memory.as_fd(), region_bytes(ring_bytes)));
    mapped.map(Arc::new).map_err(|source| failed("use", peer, source))
}

/// Sends the descriptor.
fn offer(stream: &LocalStream, memory: &OwnedFd, patience: Patience) -> Result<(), NetError> {
    let mut bytes = [0; OFFER_BYTES];
    bytes[..4].copy_from_slice(&OFFER);
    bytes[4..].copy_from_slice(&RING_BYTES.to_le_bytes());
    let descriptors = [memory.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let began = Instant::now();
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        match sendmsg(&stream.bell.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            // So few bytes go as a whole or not at all.
            Ok(_) => return Ok(()),
            Err(error) => again("write to", stream.peer, error.into(), patience, began)?,
        }
    }
}

/// Receives the descriptor, and how long the rings in it are said to be.
pub(super) fn take(stream: &LocalStream, patience: Patience) -> Result<(OwnedFd, u32), NetError> {
    let mut bytes = [0; OFFER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let began = Instant::now();
    let (count, flags, memory) = loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&stream.bell.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                let rights = control.drain().filter_map(|part| match part {
                    RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                    _ => None,
                });
                // The room for one is rounded up, so that two may come. Whatever is not kept is closed.
                let mut rights = rights.flatten();
                let memory = rights.next().filter(|_| rights.next().is_none());
                break (message.bytes, message.flags, memory);
            }
            Err(error) => again("read from", stream.peer, error.into(), patience, began)?,
        }
    };
    if count == 0 {
        return Err(NetError::PeerClosed { phase: "sharing memory", hint: None });
    }
    let [b'D', b'W', b'S', b'M', ring @ ..] = bytes else {
        let reason = "what came is no offer of memory";
        return Err(failed("use", stream.peer, io::Error::new(io::ErrorKind::InvalidData, reason)));
    };
    match memory {
        Some(memory) if count == OFFER_BYTES && !flags.contains(ReturnFlags::CTRUNC) => {
            Ok((memory, u32::from_le_bytes(ring)))
        }
        _ => {
            let reason = "the offer comes without exactly one descriptor";
            Err(failed("use", stream.peer, io::Error::new(io::ErrorKind::InvalidData, reason)))
        }
    }
}
