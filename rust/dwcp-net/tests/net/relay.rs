//! Streams through a relay: two ends in one process, over real sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_codec::Codec;
use dwcp_net::relay::{MIGRATION, RelayOptions, RelayReport, SourceRelay, TargetRelay};
use dwcp_net::security::{DialSecurity, Token};
use dwcp_net::{Arrival, Cancel, CodecChoice, NetError, ReceiveOptions};
use dwcp_proto::frame::ErrorCode;
use tempfile::TempDir;

use super::link::Link;
use super::support::{Log, PATIENCE, Receiver, join, noise, pairing, quick_receive, receiver};

/// Both sides, and the sockets at which the machine would be.
struct Pair {
    source: SourceRelay,
    target: TargetRelay,
    _receiver: Receiver,
    directory: TempDir,
    listeners: Vec<(String, UnixListener)>,
}

fn options(directory: &Path, side: &str, channels: &[&str]) -> RelayOptions {
    let socket = |name: &&str| ((*name).to_owned(), directory.join(format!("{side}-{name}")));
    RelayOptions {
        channels: channels.iter().map(socket).collect(),
        lanes: 3,
        codec: CodecChoice::Fixed(Codec::Lz4),
        cache_bytes: 16 << 20,
        idle_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(3),
        reconnect_for: Duration::from_secs(2),
        ..RelayOptions::default()
    }
}

fn listening(relay: RelayOptions) -> Receiver {
    let (listen, dial) = pairing();
    receiver(listen, dial, ReceiveOptions { relay: Some(relay), senders: false, ..quick_receive() })
}

fn dial(address: &str, security: &DialSecurity, options: RelayOptions) -> Result<SourceRelay, NetError> {
    SourceRelay::connect(address, security, options, &Cancel::new(), Arc::new(Log::default()))
}

fn accept(receiver: &Receiver) -> TargetRelay {
    match receiver.listener.accept_any(Some(PATIENCE)).unwrap() {
        Arrival::Relay(target) => target,
        _ => panic!("no relay"),
    }
}

impl Pair {
    fn new(channels: &[&str], change: impl Fn(&mut RelayOptions)) -> Pair {
        Pair::through(channels, change, Receiver::address)
    }

    /// With something between the two that has an address of its own.
    fn through(
        channels: &[&str],
        change: impl Fn(&mut RelayOptions),
        address: impl FnOnce(&Receiver) -> String,
    ) -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let [mut ours, mut theirs] = ["src", "dst"].map(|side| options(directory.path(), side, channels));
        change(&mut ours);
        change(&mut theirs);
        let listeners = theirs
            .channels
            .iter()
            .map(|(name, path)| (name.clone(), UnixListener::bind(path).unwrap()))
            .collect();
        let receiver = listening(theirs);
        let source = dial(&address(&receiver), &receiver.dial, ours).unwrap();
        let target = accept(&receiver);
        Pair { source, target, _receiver: receiver, directory, listeners }
    }

    fn path(&self, channel: &str) -> PathBuf {
        self.directory.path().join(format!("src-{channel}"))
    }

    /// A connection through the relay: its end at the source and its end at the target.
    fn stream(&self, channel: &str) -> (UnixStream, UnixStream) {
        let here = UnixStream::connect(self.path(channel)).unwrap();
        let listener = &self.listeners.iter().find(|(name, _)| name == channel).unwrap().1;
        let (there, _) = listener.accept().unwrap();
        for stream in [&here, &there] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        (here, there)
    }

    fn finish(&self) -> (RelayReport, RelayReport) {
        self.source.finish();
        self.source.wait(Some(PATIENCE)).unwrap();
        self.target.wait(Some(PATIENCE)).unwrap();
        (self.source.report(), self.target.report())
    }
}

/// A migration with a round of pages, and a second one of the same.
fn migration(pages: u64, seed: u64) -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    bytes.extend(((pages << 12) | 0x04).to_be_bytes());
    bytes.extend(b"\x06pc.ram");
    bytes.extend((pages << 12).to_be_bytes());
    bytes.extend(0x10_u64.to_be_bytes());
    bytes.extend(b"\x7e\0\0\0\x02");
    for kind in [2, 3] {
        bytes.extend([kind, 0, 0, 0, 2]);
        for page in 0..pages {
            if page == 0 {
                bytes.extend(0x08_u64.to_be_bytes());
                bytes.extend(b"\x06pc.ram");
            } else {
                bytes.extend(((page << 12) | 0x28).to_be_bytes());
            }
            bytes.extend(noise(seed + page, 4_096));
        }
        bytes.extend(0x10_u64.to_be_bytes());
        bytes.extend(b"\x7e\0\0\0\x02");
    }
    bytes.extend(b"\x04\0\0\0\x05\x03apic and the rest");
    bytes
}

/// Sends all that there is, ends that direction, and gives what the other end has read by then.
fn carry(mut from: &UnixStream, to: &UnixStream, bytes: &[u8]) -> Vec<u8> {
    let mut other = to.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        other.read_to_end(&mut read).unwrap();
        read
    });
    from.write_all(bytes).unwrap();
    from.shutdown(Shutdown::Write).unwrap();
    join(reader)
}

#[test]
fn migration_arrives_as_it_was_and_pages_that_were_sent_are_not_sent_again() {
    let pair = Pair::new(&[MIGRATION], |_| ());
    let (here, mut there) = pair.stream(MIGRATION);
    let bytes = migration(500, 1);
    assert!(carry(&here, &there, &bytes) == bytes);
    // The way back is open until it ends by itself.
    there.write_all(b"it runs").unwrap();
    let mut back = [0; 7];
    (&here).read_exact(&mut back).unwrap();
    assert_eq!(&back, b"it runs");
    assert!(pair.source.wait(Some(Duration::from_millis(100))).is_err());
    drop(there);
    assert_eq!((&here).read(&mut back).unwrap(), 0);
    let (ours, theirs) = pair.finish();
    assert_eq!((ours.stream_bytes, ours.migration_bytes), (bytes.len() as u64, bytes.len() as u64));
    assert_eq!((theirs.stream_bytes, theirs.return_bytes, ours.return_bytes), (bytes.len() as u64, 7, 7));
    assert_eq!((ours.pages.full, ours.pages.same, ours.opaque), (500, 500, None));
    assert!(ours.wire_bytes < bytes.len() as u64 * 6 / 10, "{}", ours.wire_bytes);
    assert_eq!((ours.streams, ours.streams_open, ours.unacknowledged_bytes), (1, 0, 0));
    assert!(ours.finished && theirs.finished && ours.lanes_lost == 0);
}

#[test]
fn streams_go_both_ways_at_once_and_end_by_themselves() {
    let pair = Pair::new(&["disk0", "disk1"], |_| ());
    let streams = ["disk0", "disk1", "disk0"].map(|channel| pair.stream(channel));
    std::thread::scope(|scope| {
        for (seed, (here, there)) in streams.iter().enumerate() {
            let length = 3_000_000 + seed * 1_000;
            let (out, back) = (noise(seed as u64, length), noise(100 + seed as u64, length));
            scope.spawn(move || {
                std::thread::scope(|both| {
                    let other = back.clone();
                    both.spawn(move || assert!(carry(there, here, &other) == other));
                    assert!(carry(here, there, &out) == out);
                });
            });
        }
    });
    let (ours, _) = pair.finish();
    assert_eq!((ours.streams, ours.streams_open, ours.pages.full), (3, 0, 0));
}

#[test]
fn lost_lanes_cost_nothing_but_time() {
    const CUTS: [u64; 4] = [2 << 20, 5 << 20, 9 << 20, u64::MAX];
    let mut link = None;
    let pair = Pair::through(
        &[MIGRATION],
        |_| (),
        |receiver| {
            let made = Link::new(receiver.listener.local_addr(), Duration::from_millis(2), &[]);
            link.insert(made).address()
        },
    );
    let link = link.unwrap();
    link.hold_at(CUTS[0]);
    let (here, there) = pair.stream(MIGRATION);
    let bytes = migration(4_000, 7);
    let sent = bytes.clone();
    let carried = std::thread::spawn(move || carry(&here, &there, &sent) == sent);
    for (cut, next) in CUTS.into_iter().zip(CUTS.into_iter().skip(1)) {
        link.wait_for(cut);
        link.hold_at(next);
        link.cut();
    }
    assert!(join(carried));
    let (ours, _) = pair.finish();
    assert!(ours.lanes_lost >= 3 && ours.records_resent > 0, "{ours:?}");
}

#[test]
fn both_ends_of_every_stream_are_shut_when_one_side_stops_or_the_path_is_gone() {
    for gone in [false, true] {
        let mut link = None;
        let pair = Pair::through(
            &[MIGRATION, "disk0"],
            |_| (),
            |receiver| {
                let made = Link::new(receiver.listener.local_addr(), Duration::ZERO, &[]);
                link.insert(made).address()
            },
        );
        let streams = [pair.stream(MIGRATION), pair.stream("disk0")];
        if gone {
            // Nothing listens there any more.
            let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let link = link.as_ref().unwrap();
            link.retarget(nobody);
            link.cut();
        } else {
            pair.target.stop("somebody wanted it");
        }
        for (here, there) in &streams {
            assert!(matches!((&*here).read(&mut [0; 8]), Ok(0) | Err(_)));
            assert!(matches!((&*there).read(&mut [0; 8]), Ok(0) | Err(_)));
        }
        let (ours, theirs) = (pair.source.wait(Some(PATIENCE)), pair.target.wait(Some(PATIENCE)));
        assert!(ours.is_err() && theirs.is_err(), "{ours:?} {theirs:?}");
        if !gone {
            let told = ours.unwrap_err().to_string();
            assert!(told.contains("somebody wanted it"), "{told}");
        }
    }
}

#[test]
fn machine_that_does_not_take_its_migration_ends_it_at_the_source() {
    let pair = Pair::new(&[MIGRATION], |_| ());
    let (mut here, there) = pair.stream(MIGRATION);
    drop(there);
    let end = Instant::now() + PATIENCE;
    // As QEMU would: it writes until that fails.
    while here.write_all(&[0; 4_096]).is_ok() {
        assert!(Instant::now() < end);
    }
    assert!(pair.source.wait(Some(PATIENCE)).is_err() && pair.target.wait(Some(PATIENCE)).is_err());
}

#[test]
fn channel_that_cannot_be_connected_is_reset_and_a_migration_fails() {
    let pair =
        Pair::new(&[MIGRATION, "disk0"], |options| options.connect_timeout = Duration::from_millis(300));
    std::fs::remove_file(pair.directory.path().join("dst-disk0")).unwrap();
    let mut disk = UnixStream::connect(pair.path("disk0")).unwrap();
    disk.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(disk.read(&mut [0; 8]), Ok(0) | Err(_)));
    let (here, there) = pair.stream(MIGRATION);
    assert!(carry(&here, &there, b"not qemu at all") == b"not qemu at all");
    drop((there, disk));
    let (ours, _) = pair.finish();
    assert_eq!(ours.opaque, Some("another kind or version of stream"));
}

#[test]
fn pages_that_the_target_holds_from_an_earlier_copy_are_not_sent() {
    let copy = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let held: Vec<u8> = (0..400).flat_map(|page| noise(1 + page, 4_096)).collect();
    std::fs::write(copy.path().join("pc.ram"), &held).unwrap();
    let pair = Pair::new(&[MIGRATION], |options| {
        options.base = Some(copy.path().to_owned());
        options.keep = Some(kept.path().to_owned());
    });
    let (here, there) = pair.stream(MIGRATION);
    let bytes = migration(440, 1);
    assert!(carry(&here, &there, &bytes) == bytes);
    drop(there);
    let (ours, _) = pair.finish();
    assert_eq!((ours.pages.base, ours.pages.full), (400, 40));
    assert!(ours.wire_bytes < 300_000, "{}", ours.wire_bytes);
    let now = std::fs::read(kept.path().join("pc.ram")).unwrap();
    assert!(now.len() == 440 << 12 && now.starts_with(&held));
}

#[test]
fn relay_is_refused_without_the_token_or_with_more_memory_than_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = listening(options(directory.path(), "dst", &[MIGRATION]));
    let ours = options(directory.path(), "src", &[MIGRATION]);
    let DialSecurity::Paired { fingerprint, identity, .. } = receiver.dial.clone() else { panic!() };
    let wrong = DialSecurity::Paired { fingerprint, token: Token::generate().unwrap(), identity };
    let refused = dial(&receiver.address(), &wrong, ours.clone()).err().unwrap();
    assert!(matches!(refused, NetError::Auth { .. }), "{refused}");
    let greedy = RelayOptions { cache_bytes: 5 << 30, ..ours.clone() };
    let refused = dial(&receiver.address(), &receiver.dial, greedy).err().unwrap();
    assert!(matches!(refused, NetError::Peer { code: ErrorCode::Limit, .. }), "{refused}");
    assert!(!ours.channels[0].1.exists());
    // A listener for transfers takes no relays.
    let (listen, dial_security) = pairing();
    let plain = super::support::receiver(listen, dial_security, quick_receive());
    let refused = dial(&plain.address(), &plain.dial, ours).err().unwrap();
    assert!(matches!(refused, NetError::Peer { code: ErrorCode::Refused, .. }), "{refused}");
}
