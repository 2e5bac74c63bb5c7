//! The moment in which a transfer is in place and its sender has yet to be told, and blocks that come slowly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use dwcp_proto::frame::{Digests, Finish, Frame, Offer, Secret, SessionId};
use dwcp_proto::{FrameDecoder, FrameEncoder, Manifest};
use dwcp_store::{MemorySink, MemorySource, SharedBytes, Sink};

use super::worker::take_body;
use super::{Names, ReceiveOptions, ReceiveSession, Session, run};
use crate::cancel::{Cancel, lock};
use crate::error::NetError;
use crate::lane::Lane;
use crate::report::{ReceiveReport, Unobserved};
use crate::security::Fingerprint;
use crate::transport::{Closer, PathInfo, Patience, TcpTransport, Transport, WakeReceiver, wake_pair};

const PATIENCE: Duration = Duration::from_secs(20);
const ID: SessionId = SessionId([3; 16]);

/// A connection on which COMMITTED says that it is there, and waits until it may go.
struct Gated {
    inner: TcpTransport,
    reached: Sender<()>,
    open: Receiver<()>,
}

impl Transport for Gated {
    fn send(&mut self, parts: &[&[u8]], patience: Patience) -> Result<(), NetError> {
        if parts[0][0] == 0x0D {
            self.reached.send(()).unwrap();
            self.open.recv_timeout(PATIENCE).unwrap();
        }
        self.inner.send(parts, patience)
    }

    fn recv_at_least(
        &mut self,
        buffer: &mut [u8],
        least: usize,
        patience: Patience,
    ) -> Result<usize, NetError> {
        self.inner.recv_at_least(buffer, least, patience)
    }

    fn poll_readable(&mut self, timeout: Duration, wake: Option<&WakeReceiver>) -> Result<bool, NetError> {
        self.inner.poll_readable(timeout, wake)
    }

    fn finish(&mut self, linger: Duration) {
        self.inner.finish(linger);
    }

    fn closer(&self) -> Closer {
        self.inner.closer()
    }

    fn peer_fingerprint(&self) -> Option<Fingerprint> {
        None
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn peer_addr(&self) -> SocketAddr {
        self.inner.peer_addr()
    }

    fn path(&self) -> Option<PathInfo> {
        None
    }

    fn congestion(&self) -> Option<String> {
        None
    }

    fn set_congestion(&mut self, _name: &str) -> std::io::Result<()> {
        Ok(())
    }

    fn widen(&mut self) {}

    fn set_pace(&mut self, _bytes_per_s: Option<u64>) {}
}

/// Offers one empty buffer and ends its transfer, as soon as it is accepted.
fn send_nothing(stream: &mut TcpStream, encoder: &mut FrameEncoder) {
    let empty: SharedBytes = Arc::new([]);
    let (manifest, _) =
        MemorySource::new(vec![("a".to_owned(), empty)], 65_536, &dwcp_proto::Limits::default()).unwrap();
    let tree = dwcp_codec::digest::tree(0, 65_536, &[]);
    let mut send = |stream: &mut TcpStream, frame: Frame| {
        let mut bytes = Vec::new();
        encoder.encode(&frame, 0, &mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    };
    send(stream, offer(&manifest));
    manifest.parts().for_each(|part| send(stream, Frame::Manifest(part)));
    let mut decoder = FrameDecoder::new();
    decoder.set_session(&ID);
    loop {
        let mut header = [0; 24];
        stream.read_exact(&mut header).unwrap();
        let pending = decoder.header(&header).unwrap();
        let mut head = vec![0; pending.head_len];
        stream.read_exact(&mut head).unwrap();
        if matches!(decoder.head(pending, &head).unwrap(), Frame::Accept(_)) {
            break;
        }
    }
    let (transfer_id, transfer_digest) = (manifest.transfer_id(), manifest.transfer_digest(&[tree]));
    send(stream, Frame::Digests(Digests { first_entry: 0, digests: vec![tree] }));
    send(stream, Frame::Finish(Finish { transfer_id, transfer_digest }));
}

fn offer(manifest: &Manifest) -> Frame {
    Frame::Offer(Offer {
        number: 0,
        transfer_id: manifest.transfer_id(),
        block_bytes: 65_536,
        entries: 1,
        total_bytes: 0,
        base_allowed: false,
    })
}

#[test]
fn a_transfer_in_place_of_which_the_sender_is_still_being_told_is_neither_late_nor_lost() {
    type Take = fn(&ReceiveSession, Arc<dyn Sink>) -> Result<Option<ReceiveReport>, NetError>;
    let takes: [(&str, Take); 3] = [
        ("the time for the offer is over", |session, sink| session.receive(sink, Some(Duration::ZERO))),
        ("the time for the transfer is over", |session, sink| {
            let end = Some((Instant::now(), Duration::ZERO));
            session.receive_before(sink, None, end, &Cancel::new(), &mut || false)
        }),
        ("it is stopped", |session, sink| {
            let stop = Cancel::new();
            stop.cancel();
            session.receive_before(sink, None, None, &stop, &mut || false)
        }),
    ];
    for (case, take) in takes {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let inner = TcpTransport::new(listener.accept().unwrap().0).unwrap();
        let (reached, at_gate) = channel();
        let (gate, open) = channel();
        let options = ReceiveOptions::default();
        let idle = options.idle_timeout;
        let names =
            Names { id: ID, key: Secret::NONE, owner: None, peer: inner.peer_addr(), link: inner.kind() };
        let (cancel, observer) = (Cancel::new(), Arc::new(Unobserved));
        let session = Arc::new(Session::new(names, options, None, cancel.clone(), observer, Arc::default()));
        let mut lane =
            Lane::new(Box::new(Gated { inner, reached, open }), false, Patience::Idle(idle), &cancel);
        lane.enter(&ID, idle, &cancel);
        let (waker, wake) = wake_pair().unwrap();
        let id = lock(&session.state).attach(0, waker, lane.closer(), 1).unwrap();
        let sink: Arc<dyn Sink> = Arc::new(MemorySink::new(1 << 20));
        lock(&session.state).sink = Some(Arc::clone(&sink));
        let serving = {
            let session = Arc::clone(&session);
            std::thread::spawn(move || run(&session, lane, id, wake))
        };
        let mut encoder = FrameEncoder::new();
        encoder.set_session(&ID);
        send_nothing(&mut peer, &mut encoder);
        at_gate.recv_timeout(PATIENCE).unwrap();
        let opening = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            gate.send(()).unwrap();
        });
        let receiver = ReceiveSession::new(session);
        let report = take(&receiver, sink);
        assert!(matches!(report, Ok(Some(_))), "{case}: {report:?}");
        opening.join().unwrap();
        drop(peer);
        serving.join().unwrap();
        cancel.cancel();
    }
}

#[test]
fn sender_whose_block_comes_slowly_is_heard_of_meanwhile() {
    const HALF: usize = 200_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let inner = TcpTransport::new(listener.accept().unwrap().0).unwrap();
    let names = Names { id: ID, key: Secret::NONE, owner: None, peer: inner.peer_addr(), link: inner.kind() };
    let (cancel, observer) = (Cancel::new(), Arc::new(Unobserved));
    let options = ReceiveOptions::default();
    let session = Session::new(names, options, None, cancel.clone(), observer, Arc::default());
    let mut lane = Lane::new(Box::new(inner), false, Patience::Idle(PATIENCE), &cancel);
    let heard = || lock(&session.state).heard;
    let before = heard();
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| take_body(&session, &mut lane, &mut [0; 2 * HALF]));
        peer.write_all(&[1; HALF]).unwrap();
        let end = Instant::now() + PATIENCE;
        while heard() == before {
            assert!(Instant::now() < end && !taken.is_finished(), "nothing was heard");
            std::thread::sleep(Duration::from_millis(2));
        }
        peer.write_all(&[1; HALF]).unwrap();
        taken.join().unwrap().unwrap();
    });
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn sender_is_heard_of_while_no_piece_of_its_block_is_whole() {
    const SILENCE: Duration = Duration::from_secs(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut inner = TcpTransport::new(listener.accept().unwrap().0).unwrap();
    let names = Names { id: ID, key: Secret::NONE, owner: None, peer: inner.peer_addr(), link: inner.kind() };
    let (observer, options) = (Arc::new(Unobserved), ReceiveOptions::default());
    let session = Session::new(names, options, None, Cancel::new(), observer, Arc::default());
    let (waker, _wake) = wake_pair().unwrap();
    lock(&session.state).attach(0, waker, inner.closer(), 1).unwrap();
    lock(&session.state).heard -= 2 * SILENCE;
    std::thread::sleep(Duration::from_millis(100));
    assert!(!lock(&session.state).is_heard(Duration::from_millis(50)));
    peer.write_all(&[1]).unwrap();
    assert!(inner.poll_readable(PATIENCE, None).unwrap());
    assert!(lock(&session.state).is_heard(SILENCE));
}
