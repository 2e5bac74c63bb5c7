//! TLS 1.3 over TCP, through rustls' unbuffered interface: one buffer of records each way, as few copies as it allows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{AlertDescription, CertificateError, ClientConfig, CommonState, Error, ServerConfig};

use super::stream::Stream;
use super::{Closer, IO_BYTES, PathInfo, Patience, TcpTransport, Transport, WakeReceiver};
use crate::error::NetError;
use crate::security::Fingerprint;

/// The plaintext of one record.
const RECORD_BYTES: usize = 16 * 1024;

/// Room for the records of [`IO_BYTES`], each with its header and tag, and for one that was there before.
const OUTGOING_BYTES: usize = IO_BYTES + 2 * RECORD_BYTES;

/// More than the header, tag and content type of a record.
const RECORD_OVERHEAD: usize = 64;

/// How long a side that refuses the handshake lets the peer read why.
const ALERT_LINGER: Duration = Duration::from_millis(500);

/// The part of rustls that differs between the two roles.
pub trait Role: Send {
    /// What rustls keeps for the role.
    type Data;
    /// Handles records from the front of `incoming`.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// What both roles have.
    fn state(&self) -> &CommonState;
}

impl Role for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn state(&self) -> &CommonState {
        self
    }
}

impl Role for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn state(&self) -> &CommonState {
        self
    }
}

/// A TLS connection over TCP, or another stream. Dropping it closes the socket.
pub struct TlsTransport<R, S = TcpTransport> {
    stream: S,
    role: R,
    incoming: Vec<u8>,
    /// The unprocessed part of `incoming`.
    start: usize,
    end: usize,
    /// Decrypted bytes that nobody has asked for yet, from `plain_start` on.
    plain: Vec<u8>,
    plain_start: usize,
    outgoing: Vec<u8>,
    /// The part of `outgoing` that is to be sent.
    filled: usize,
    peer_closed: bool,
    /// What is left of `incoming` was looked at, and is no whole record.
    in_part: bool,
    fingerprint: Option<Fingerprint>,
}

/// Where the processing of records stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Decrypted bytes were taken.
    Plain,
    /// No whole record is left in the buffer; the handshake is over.
    Traffic,
    /// The handshake needs more from the peer.
    Handshake,
    /// The peer says that nothing follows.
    Closed,
}

impl<S: Stream> TlsTransport<UnbufferedClientConnection, S> {
    /// Makes TLS with a receiver.
    ///
    /// # Errors
    /// [`NetError`] when the handshake fails or takes too long.
    pub fn connect(
        stream: S,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        patience: Patience,
    ) -> Result<Self, NetError> {
        let role = UnbufferedClientConnection::new(config, name)
            .map_err(|error| tls_error("starting", stream.peer(), error))?;
        TlsTransport::handshake(stream, role, patience)
    }
}

impl<S: Stream> TlsTransport<UnbufferedServerConnection, S> {
    /// Makes TLS with a sender.
    ///
    /// # Errors
    /// [`NetError`] when the handshake fails or takes too long.
    pub fn accept(stream: S, config: Arc<ServerConfig>, patience: Patience) -> Result<Self, NetError> {
        let role = UnbufferedServerConnection::new(config)
            .map_err(|error| tls_error("starting", stream.peer(), error))?;
        TlsTransport::handshake(stream, role, patience)
    }
}

impl<R: Role, S: Stream> TlsTransport<R, S> {
    fn handshake(stream: S, role: R, patience: Patience) -> Result<Self, NetError> {
        let mut tls = TlsTransport {
            stream,
            role,
            incoming: vec![0; IO_BYTES],
            start: 0,
            end: 0,
            plain: Vec::new(),
            plain_start: 0,
            in_part: false,
            outgoing: vec![0; OUTGOING_BYTES],
            filled: 0,
            peer_closed: false,
            fingerprint: None,
        };
        if let Err(error) = tls.shake_hands(patience) {
            // Without this the peer could get a reset before it has read the alert.
            tls.stream.half_close(ALERT_LINGER);
            return Err(error);
        }
        tls.fingerprint = tls
            .role
            .state()
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|certificate| Fingerprint::of(certificate));
        Ok(tls)
    }

    fn shake_hands(&mut self, patience: Patience) -> Result<(), NetError> {
        let closed = || {
            let hint = Some("does the peer speak plaintext, or not trust this side?");
            NetError::PeerClosed { phase: "making tls", hint }
        };
        loop {
            let (_, stage) = self.process(&mut [], patience)?;
            match stage {
                Stage::Traffic | Stage::Plain => return self.flush(patience),
                Stage::Closed => return Err(closed()),
                Stage::Handshake => {
                    patience.check(Instant::now(), "the tls handshake")?;
                    match self.receive(patience) {
                        Ok(0) | Err(NetError::PeerClosed { .. }) => return Err(closed()),
                        Ok(_) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Handles buffered records until some decrypted bytes are in `target` (the rest goes to `plain`) or none is left.
    fn process(&mut self, target: &mut [u8], patience: Patience) -> Result<(usize, Stage), NetError> {
        loop {
            if self.peer_closed {
                return Ok((0, Stage::Closed));
            }
            let UnbufferedStatus { mut discard, state } =
                self.role.process(&mut self.incoming[self.start..self.end]);
            let mut taken = 0;
            let mut failure = None;
            let mut flush = false;
            let stage = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                let direct = record.payload.len().min(target.len() - taken);
                                target[taken..taken + direct].copy_from_slice(&record.payload[..direct]);
                                taken += direct;
                                self.plain.extend_from_slice(&record.payload[direct..]);
                            }
                            Err(error) => {
                                failure = Some(error);
                                break;
                            }
                        }
                    }
                    Some(Stage::Plain)
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if let Ok(count) = data.encode(&mut self.outgoing[self.filled..]) {
                        self.filled += count;
                    } else {
                        // Handshake records are far smaller than the buffer, which is empty during a handshake.
                        failure = Some(Error::General("a handshake record does not fit".to_owned()));
                    }
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    flush = true;
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.peer_closed = true;
                    Some(Stage::Closed)
                }
                Ok(ConnectionState::WriteTraffic(_)) => Some(Stage::Traffic),
                Ok(_) => Some(Stage::Handshake),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            };
            self.start += discard;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            if let Some(error) = failure {
                self.send_alert(patience);
                let action =
                    if self.role.state().is_handshaking() { "making tls" } else { "exchanging data" };
                return Err(tls_error(action, self.stream.peer(), error));
            }
            if flush {
                self.flush(patience)?;
            }
            if let Some(stage) = stage {
                return Ok((taken, stage));
            }
        }
    }

    /// Tells the peer why this side gives up, if that is possible at once.
    fn send_alert(&mut self, patience: Patience) {
        // With the records that came: what rustls has read of them it does not look for elsewhere.
        if let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(mut data)), .. } =
            self.role.process(&mut self.incoming[self.start..self.end])
            && let Ok(count) = data.encode(&mut self.outgoing[self.filled..])
        {
            self.filled += count;
            // The failure that is reported is the one that led here.
            let _ = self.flush(patience);
        }
    }

    /// Reads records from the socket; 0 at its end.
    fn receive(&mut self, patience: Patience) -> Result<usize, NetError> {
        if self.start > 0 && self.incoming.len() - self.end < RECORD_BYTES + RECORD_OVERHEAD {
            self.incoming.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.incoming.len() {
            let reason = "a record that does not end".to_owned();
            return Err(tls_error("exchanging data", self.stream.peer(), Error::General(reason)));
        }
        let count = self.stream.recv_some(&mut self.incoming[self.end..], patience)?;
        self.end += count;
        self.in_part = false;
        Ok(count)
    }

    fn flush(&mut self, patience: Patience) -> Result<(), NetError> {
        let filled = std::mem::take(&mut self.filled);
        if filled > 0 {
            self.stream.send_all(&self.outgoing[..filled], patience)?;
        }
        Ok(())
    }

    /// Handles the records that came in, at most a buffer full: rustls lets data out only after that.
    fn clear_incoming(&mut self, patience: Patience) -> Result<(), NetError> {
        loop {
            match self.process(&mut [], patience)?.1 {
                Stage::Plain => {}
                Stage::Traffic => return Ok(()),
                Stage::Closed | Stage::Handshake => {
                    return Err(NetError::PeerClosed { phase: "sending", hint: None });
                }
            }
        }
    }

    /// Encrypts `piece`, which fits, into the outgoing buffer.
    fn encrypt(&mut self, piece: &[u8], patience: Patience) -> Result<(), NetError> {
        self.clear_incoming(patience)?;
        let UnbufferedStatus { discard, state } = self.role.process(&mut self.incoming[self.start..self.end]);
        let sealed = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic
                .encrypt(piece, &mut self.outgoing[self.filled..])
                .map_err(|error| Error::General(error.to_string())),
            Ok(_) => Err(Error::General("the connection cannot send".to_owned())),
            Err(error) => Err(error),
        };
        self.start += discard;
        self.filled += sealed.map_err(|error| tls_error("sending", self.stream.peer(), error))?;
        Ok(())
    }

    /// Moves already decrypted bytes into `target`.
    fn take_plain(&mut self, target: &mut [u8]) -> usize {
        let waiting = &self.plain[self.plain_start..];
        let count = waiting.len().min(target.len());
        target[..count].copy_from_slice(&waiting[..count]);
        self.plain_start += count;
        if self.plain_start == self.plain.len() {
            self.plain.clear();
            self.plain_start = 0;
        }
        count
    }

    /// Sends all of `parts`, in order.
    pub(super) fn send_parts(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let room = self.outgoing.len() - self.filled;
                let records = room / (RECORD_BYTES + RECORD_OVERHEAD);
                if records == 0 {
                    self.flush(patience)?;
                    continue;
                }
                let (piece, tail) = rest.split_at(rest.len().min(records * RECORD_BYTES));
                self.encrypt(piece, patience)?;
                rest = tail;
            }
        }
        self.flush(patience)
    }

    /// Fills `buffer`.
    pub(super) fn fill(&mut self, buffer: &mut [u8], patience: Patience) -> Result<(), NetError> {
        let mut done = self.take_plain(buffer);
        while done < buffer.len() {
            let (taken, stage) = self.process(&mut buffer[done..], patience)?;
            done += taken;
            match stage {
                Stage::Plain => {}
                Stage::Traffic | Stage::Handshake => {
                    if self.receive(patience)? == 0 {
                        return Err(NetError::PeerClosed { phase: "exchanging data", hint: None });
                    }
                    if let Patience::Until(..) = patience {
                        patience.check(Instant::now(), "waiting for the peer")?;
                    }
                }
                Stage::Closed => return Err(NetError::PeerClosed { phase: "exchanging data", hint: None }),
            }
        }
        Ok(())
    }

    /// What is under it, and the SHA-256 of the peer's certificate where it showed one. Nothing of what the peer has
    /// sent may be left in between.
    pub(super) fn into_parts(self) -> (S, Option<Fingerprint>) {
        (self.stream, self.fingerprint)
    }
}

impl<R: Role> Transport for TlsTransport<R> {
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        self.send_parts(parts, patience)
    }

    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError> {
        self.fill(&mut buffer[..least], patience)?;
        // What of the record is left over is decrypted already.
        Ok(least + self.take_plain(&mut buffer[least..]))
    }

    fn gather(&mut self, timeout: Duration) -> Result<bool, NetError> {
        if self.plain_start < self.plain.len() || (self.start < self.end && !self.in_part) {
            return Ok(true);
        }
        if !self.stream.poll_readable(timeout, None)? {
            return Ok(false);
        }
        if self.receive(Patience::for_time(super::SOCKET_SLICE))? == 0 {
            return Err(NetError::PeerClosed { phase: "exchanging data", hint: None });
        }
        Ok(true)
    }

    /// Decrypted bytes go to `buffer` at once, as far as it has room.
    fn take(&mut self, buffer: &mut [u8], patience: Patience) -> Result<usize, NetError> {
        let waiting = self.take_plain(buffer);
        if waiting > 0 {
            return Ok(waiting);
        }
        match self.process(buffer, patience)? {
            (_, Stage::Closed) => Err(NetError::PeerClosed { phase: "exchanging data", hint: None }),
            (taken, _) => {
                self.in_part = taken == 0;
                Ok(taken)
            }
        }
    }

    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        let patience = Patience::for_time(timeout.max(super::SOCKET_SLICE));
        let mut timeout = timeout;
        loop {
            if self.plain_start < self.plain.len() {
                return Ok(true);
            }
            match self.process(&mut [], patience)?.1 {
                Stage::Plain => {}
                Stage::Closed => return Ok(true),
                Stage::Traffic | Stage::Handshake => {
                    if !self.stream.poll_readable(timeout, wake)? {
                        return Ok(false);
                    }
                    if self.receive(patience)? == 0 {
                        // The next read of the socket says so again.
                        return Ok(true);
                    }
                    // A record may be there in part only; what is left of it is not waited for.
                    timeout = Duration::ZERO;
                }
            }
        }
    }

    fn finish(&mut self, linger: Duration) {
        let patience = Patience::for_time(linger);
        if self.clear_incoming(patience).is_ok()
            && let UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(mut traffic)), .. } =
                self.role.process(&mut self.incoming[self.start..self.end])
            && let Ok(count) = traffic.queue_close_notify(&mut self.outgoing[self.filled..])
        {
            self.filled += count;
        }
        // Whoever closes has nothing more to learn from a failure to say so.
        let _ = self.flush(patience);
        self.stream.half_close(linger);
    }

    fn closer(&self) -> Closer {
        self.stream.closer()
    }

    fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.stream.peer_addr()
    }

    fn path(&self) -> Option<PathInfo> {
        self.stream.path()
    }

    fn congestion(&self) -> Option<String> {
        self.stream.congestion()
    }

    fn set_congestion(&mut self, name: &str) -> io::Result<()> {
        self.stream.set_congestion(name)
    }

    fn widen(&mut self) {
        self.stream.widen();
    }

    fn set_pace(&mut self, bytes_per_s: Option<u64>) {
        self.stream.set_pace(bytes_per_s);
    }
}

/// Sorts a TLS failure: who is not trusted is an authentication failure, everything else is told as it is.
fn tls_error(action: &'static str, peer: SocketAddr, error: Error) -> NetError {
    let auth = |reason: &str| NetError::Auth { reason: reason.to_owned() };
    match error {
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            auth("the certificate of the receiver does not have the fingerprint of the pairing")
        }
        Error::InvalidCertificate(reason) => {
            auth(&format!("the certificate of the peer is not valid: {reason}"))
        }
        Error::NoCertificatesPresented => auth("the peer showed no certificate"),
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError),
        ) => auth(&format!("the peer does not take the certificate of this side: {alert:?}")),
        source => NetError::Tls { action, addr: peer.to_string(), source },
    }
}

#[cfg(test)]
mod tests;
