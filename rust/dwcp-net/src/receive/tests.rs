//! The moment in which a transfer is in place and its sender has yet to be told, and blocks that come slowly or twice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_codec::block::BlockKind;
use dwcp_codec::{CodecId, Digest};
use dwcp_proto::frame::{BlockHead, Digests, Finish, Frame, Offer, Secret, SessionId};
use dwcp_proto::receiver::LaneId;
use dwcp_proto::{FrameDecoder, FrameEncoder, Manifest};
use dwcp_store::{Claim, MemorySink, MemorySource, Prepared, Proof, SharedBytes, Sink, StoreError, Tick};

use super::worker::take_body;
use super::{Names, ReceiveOptions, ReceiveSession, Session, run};
use crate::cancel::{Cancel, lock};
use crate::error::NetError;
use crate::lane::Lane;
use crate::report::{ReceiveReport, Unobserved};
use crate::security::Fingerprint;
use crate::transport::{
    Closer, LinkKind, PathInfo, Patience, TcpTransport, Transport, WakeReceiver, wake_pair,
};

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

/// Memory that tells when a block was received into its place, and when it is to be put in place, which it may have to
/// wait for; and that counts how often it was prepared.
struct Telling {
    inner: MemorySink,
    filled: Sender<()>,
    open: Option<Mutex<Receiver<()>>>,
    prepared: AtomicUsize,
}

impl Sink for Telling {
    fn prepare(
        &self,
        manifest: &Arc<Manifest>,
        base_allowed: bool,
        tick: &mut Tick<'_>,
    ) -> Result<Prepared, StoreError> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        self.inner.prepare(manifest, base_allowed, tick)
    }

    fn store(&self, entry: u32, offset: u64, block: &[u8], digest: Digest) -> Result<(), StoreError> {
        self.inner.store(entry, offset, block, digest)
    }

    fn claim(&self, entry: u32, offset: u64, length: u32) -> Option<Claim> {
        self.inner.claim(entry, offset, length)
    }

    fn fill(&self, claim: &Claim, at: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let is_lent = self.inner.fill(claim, at, fill);
        self.filled.send(()).unwrap();
        is_lent
    }

    fn prove(&self, claim: Claim, found: Digest, digest: Digest) -> Proof {
        self.inner.prove(claim, found, digest)
    }

    fn base(&self, entry: u32, offset: u64, dst: &mut [u8]) -> Result<bool, StoreError> {
        self.inner.base(entry, offset, dst)
    }

    fn commit(&self, tick: &mut Tick<'_>) -> Result<(), StoreError> {
        if let Some(open) = &self.open {
            self.filled.send(()).unwrap();
            lock(open).recv_timeout(PATIENCE).unwrap();
        }
        self.inner.commit(tick)
    }

    fn discard(&self, entries: &[u32]) -> Result<(), StoreError> {
        self.inner.discard(entries)
    }

    fn abort(&self) {
        self.inner.abort();
    }
}

/// A sender of single frames.
struct Peer {
    stream: TcpStream,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
}

impl Peer {
    fn new(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut encoder, mut decoder) = (FrameEncoder::new(), FrameDecoder::new());
        encoder.set_session(&ID);
        decoder.set_session(&ID);
        Peer { stream, encoder, decoder }
    }

    /// Sends a frame that a body of so many bytes follows.
    fn send_before(&mut self, frame: &Frame, body_len: usize) {
        let mut bytes = Vec::new();
        self.encoder.encode(frame, body_len as u32, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn send(&mut self, frame: &Frame) {
        self.send_before(frame, 0);
    }

    fn offer(&mut self, manifest: &Manifest) {
        self.send(&offer(manifest));
        manifest.parts().for_each(|part| self.send(&Frame::Manifest(part)));
        self.await_frame(|frame| matches!(frame, Frame::Accept(_)));
    }

    fn finish(&mut self, manifest: &Manifest, tree: Digest) {
        let (transfer_id, transfer_digest) = (manifest.transfer_id(), manifest.transfer_digest(&[tree]));
        self.send(&Frame::Digests(Digests { first_entry: 0, digests: vec![tree] }));
        self.send(&Frame::Finish(Finish { transfer_id, transfer_digest }));
    }

    fn finish_nothing(&mut self) {
        self.finish(&nothing(), dwcp_codec::digest::tree(0, 65_536, &[]));
    }

    fn await_frame(&mut self, wanted: impl Fn(&Frame) -> bool) {
        loop {
            let mut header = [0; 24];
            self.stream.read_exact(&mut header).unwrap();
            let pending = self.decoder.header(&header).unwrap();
            let mut head = vec![0; pending.head_len];
            self.stream.read_exact(&mut head).unwrap();
            if wanted(&self.decoder.head(pending, &head).unwrap()) {
                break;
            }
        }
    }
}

/// Offers one empty buffer and ends its transfer, as soon as it is accepted.
fn send_nothing(peer: &mut Peer) {
    peer.offer(&nothing());
    peer.finish_nothing();
}

/// What one empty buffer is offered by.
fn nothing() -> Arc<Manifest> {
    let empty: SharedBytes = Arc::new([]);
    let limits = dwcp_proto::Limits::default();
    Arc::new(MemorySource::new(vec![("a".to_owned(), empty)], 65_536, &limits).unwrap().0)
}

/// A session of a peer that has two lanes, each served by a thread.
fn two_lanes(cancel: &Cancel) -> (Arc<Session>, [Peer; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let names = Names {
        id: ID,
        key: Secret::NONE,
        owner: None,
        peer: listener.local_addr().unwrap(),
        link: LinkKind::Tcp,
    };
    let (options, observer) = (ReceiveOptions::default(), Arc::new(Unobserved));
    let session = Arc::new(Session::new(names, options, None, cancel.clone(), observer, Arc::default()));
    let peers = [0, 1].map(|number| {
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inner = TcpTransport::new(listener.accept().unwrap().0).unwrap();
        let mut lane = Lane::new(Box::new(inner), false, Patience::Idle(PATIENCE), cancel);
        lane.enter(&ID, PATIENCE, cancel);
        let (waker, wake) = wake_pair().unwrap();
        let id = lock(&session.state).attach(number, waker, lane.closer(), 2).unwrap();
        let session = Arc::clone(&session);
        std::thread::spawn(move || run(&session, lane, id, wake));
        Peer::new(peer)
    });
    (session, peers)
}

fn offer(manifest: &Manifest) -> Frame {
    repeated(manifest, 0, 0)
}

fn repeated(manifest: &Manifest, repeats: u8, number: u32) -> Frame {
    Frame::Offer(Offer {
        number,
        transfer_id: manifest.transfer_id(),
        block_bytes: 65_536,
        entries: 1,
        total_bytes: manifest.total_bytes(),
        base_allowed: false,
        repeats,
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
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
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
        let mut peer = Peer::new(peer);
        send_nothing(&mut peer);
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

#[test]
fn block_that_a_slow_lane_receives_in_its_place_is_not_spoilt_once_another_has_brought_it() {
    const BLOCK: usize = 65_536;
    let content: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
    let bytes: SharedBytes = Arc::new(content.clone());
    let (manifest, _) =
        MemorySource::new(vec![("a".to_owned(), bytes)], BLOCK as u32, &dwcp_proto::Limits::default())
            .unwrap();
    let digest = Digest::of(&content);
    let head = Frame::Block(BlockHead {
        entry: 0,
        raw_len: BLOCK as u32,
        offset: 0,
        kind: BlockKind::Plain,
        codec: CodecId::None,
        digest,
        base_digest: None,
    });
    let cancel = Cancel::new();
    let (filled, fills) = channel();
    let sink = Arc::new(Telling {
        inner: MemorySink::new(1 << 20),
        filled,
        open: None,
        prepared: AtomicUsize::new(0),
    });
    let (session, [mut slow, mut fast]) = two_lanes(&cancel);
    let (told, report) = channel();
    let receiving = {
        let (session, sink) = (Arc::clone(&session), Arc::clone(&sink));
        std::thread::spawn(move || {
            let session = ReceiveSession::new(session);
            told.send(session.receive(sink, Some(PATIENCE))).unwrap();
        })
    };
    slow.offer(&manifest);
    slow.send_before(&head, BLOCK);
    slow.stream.write_all(&content[..BLOCK / 2]).unwrap();
    fills.recv_timeout(PATIENCE).unwrap();
    fast.send_before(&head, BLOCK);
    fast.stream.write_all(&content).unwrap();
    fast.await_frame(|frame| matches!(frame, Frame::Ack(_)));
    fast.finish(&manifest, dwcp_codec::digest::tree(BLOCK as u64, BLOCK as u32, &[digest]));
    fast.await_frame(|frame| matches!(frame, Frame::Committed(_)));
    let report = report.recv_timeout(PATIENCE).unwrap().unwrap().unwrap();
    assert_eq!(report.integrity_failures, 0);
    let (_, buffer) = sink.inner.take_buffers().unwrap().remove(0);
    let end = Instant::now() + PATIENCE;
    while Arc::strong_count(&sink) > 1 {
        assert!(Instant::now() < end, "a lane that waits for its peer keeps the memory");
        std::thread::sleep(Duration::from_millis(1));
    }
    // What comes late need not even be right.
    slow.stream.write_all(&[0xEE; BLOCK / 2]).unwrap();
    slow.await_frame(|frame| matches!(frame, Frame::Ack(_)));
    assert_eq!(buffer.into_vec().unwrap(), content);
    cancel.cancel();
    receiving.join().unwrap();
}

#[test]
fn end_that_is_told_twice_does_not_put_the_next_transfer_in_place() {
    let cancel = Cancel::new();
    let (session, [mut first, mut second]) = two_lanes(&cancel);
    let ((filled, reached), (open, gate)) = (channel(), channel());
    let open_gate = Some(Mutex::new(gate));
    let (inner, prepared) = (MemorySink::new(1 << 20), AtomicUsize::new(0));
    let sink = Arc::new(Telling { inner, filled, open: open_gate, prepared });
    let next: Arc<dyn Sink> = Arc::new(MemorySink::new(1 << 20));
    let receiving = {
        let (session, next) = (Arc::clone(&session), Arc::clone(&next));
        std::thread::spawn(move || {
            let receiver = ReceiveSession::new(session);
            assert!(receiver.receive(sink, Some(PATIENCE)).unwrap().is_some());
            receiver.receive(next, Some(Duration::from_secs(1)))
        })
    };
    send_nothing(&mut first);
    reached.recv_timeout(PATIENCE).unwrap();
    second.finish_nothing();
    // The second lane waits to be alone by now, and comes to be so once the next transfer is waited for.
    std::thread::sleep(Duration::from_millis(50));
    let between = {
        let session = Arc::clone(&session);
        std::thread::spawn(move || {
            let _share = session.gate.read().unwrap();
            let end = Instant::now() + PATIENCE;
            while !lock(&session.state).sink.as_ref().is_some_and(|sink| Arc::ptr_eq(sink, &next)) {
                assert!(Instant::now() < end, "nobody receives");
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    std::thread::sleep(Duration::from_millis(50));
    open.send(()).unwrap();
    between.join().unwrap();
    for lane in [&mut first, &mut second] {
        lane.await_frame(|frame| matches!(frame, Frame::Committed(_)));
    }
    let nothing_came = receiving.join().unwrap();
    assert!(matches!(nothing_came, Err(NetError::Deadline { .. })), "{nothing_came:?}");
    cancel.cancel();
}

#[test]
fn offer_that_came_again_on_another_lane_is_not_prepared_for_on_the_first() {
    let cancel = Cancel::new();
    let (session, [mut first, mut second]) = two_lanes(&cancel);
    let manifest = nothing();
    let part = Frame::Manifest(manifest.parts().next().unwrap());
    // Both wait for the application. The sender has lost the first, of which nothing is to be seen here.
    for (number, lane) in [&mut first, &mut second].into_iter().enumerate() {
        lane.send(&repeated(&manifest, number as u8, number as u32));
        lane.send(&part);
        let end = Instant::now() + PATIENCE;
        while !lock(&session.state).session.is_preparing(number as LaneId) {
            assert!(Instant::now() < end, "nothing was offered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let (filled, _) = channel();
    let prepared = AtomicUsize::new(0);
    let sink = Arc::new(Telling { inner: MemorySink::new(1 << 20), filled, open: None, prepared });
    let receiving = {
        let (session, sink) = (Arc::clone(&session), Arc::clone(&sink));
        std::thread::spawn(move || ReceiveSession::new(session).receive(sink, Some(PATIENCE)))
    };
    second.await_frame(|frame| matches!(frame, Frame::Accept(_)));
    // The first lane has had its turn by then.
    std::thread::sleep(Duration::from_millis(100));
    second.finish_nothing();
    second.await_frame(|frame| matches!(frame, Frame::Committed(_)));
    assert!(receiving.join().unwrap().unwrap().is_some());
    assert_eq!(sink.prepared.load(Ordering::Relaxed), 1);
    cancel.cancel();
}
