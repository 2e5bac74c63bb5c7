//! Transfers over paths and between ends that break.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_codec::Digest;
use dwcp_net::security::{DialSecurity, ListenSecurity};
use dwcp_net::{Cancel, Event, NetError, SendOptions, SendSession};
use dwcp_proto::frame::ErrorCode;
use dwcp_store::{BaseChoice, Source, StoreError};

use super::link::{Fault, Link};
use super::support::*;

/// Slow enough that faults hit a transfer that is under way.
const DELAY: Duration = Duration::from_millis(1);

/// Sends 2 MB over a path with `faults`, and checks that it arrives.
fn survives(receiver: &Receiver, faults: &[Fault]) -> (dwcp_net::SendReport, dwcp_net::ReceiveReport) {
    let link = Link::new(receiver.listener.local_addr(), DELAY, faults);
    let bytes = noise(7, 2_000_000);
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let state = buffers(&[("a", bytes.clone())], 65_536);
    let sent = send_once(&link.address(), &receiver.dial, quick_send(), &state).unwrap();
    let received = join(received).unwrap();
    assert!(contents(&sink) == [("a".to_owned(), bytes)]);
    (sent, received)
}

#[test]
fn a_lane_that_is_cut_is_replaced_and_its_blocks_are_sent_again() {
    let (sent, _) = survives(&paired_receiver(), &[Fault::CutOne(900_000)]);
    assert_eq!((sent.lanes_lost, sent.sessions), (1, 1));
    assert!(sent.blocks_resent >= 1 && sent.lanes_used >= 2, "{sent:?}");
}

#[test]
fn a_lane_that_falls_silent_has_its_blocks_sent_again_on_others() {
    let (sent, _) = survives(&paired_receiver(), &[Fault::Stall(900_000)]);
    // Before the deadline that would end it.
    assert!(sent.blocks_helped >= 1 && sent.lanes_lost == 0 && sent.sessions == 1, "{sent:?}");
}

#[test]
fn a_lane_that_the_receiver_does_not_know_to_be_lost_makes_room_for_its_successor() {
    let mut options = quick_receive();
    options.limits.max_lanes = 1;
    let (listen, dial) = pairing();
    let (sent, _) = survives(&receiver(listen, dial, options), &[Fault::Abandon(900_000)]);
    assert_eq!((sent.lanes_lost, sent.lanes_used, sent.sessions), (1, 2, 1));
}

#[test]
fn a_bit_that_flips_inside_tls_costs_the_lane_only() {
    let receiver = paired_receiver();
    let (sent, received) = survives(&receiver, &[Fault::Flip(900_000)]);
    assert!(received.integrity_failures == 1 && sent.lanes_lost >= 1, "{received:?}");
    assert_eq!(receiver.log.count(|event| matches!(event, Event::IntegrityFailure { .. })), 1);
}

#[test]
fn a_bit_that_flips_in_plaintext_is_found_and_costs_the_lane_only() {
    let (sent, received) = survives(&plain_receiver(), &[Fault::Flip(900_000)]);
    assert_eq!((received.integrity_failures, sent.integrity_failures, sent.sessions), (1, 1, 1));
}

#[test]
fn a_path_that_keeps_altering_bytes_ends_the_transfer() {
    let receiver = plain_receiver();
    let faults: Vec<Fault> = (1..40).map(|step| Fault::Flip(step * 100_000)).collect();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &faults);
    let received = receiver.receive_one(memory_sink());
    let state = buffers(&[("a", noise(7, 2_000_000))], 65_536);
    let error = send_once(&link.address(), &receiver.dial, quick_send(), &state).unwrap_err();
    let integrity = |error: &NetError| match error {
        NetError::Integrity { .. } => true,
        NetError::Peer { code, .. } => *code == ErrorCode::Integrity,
        _ => false,
    };
    assert!(integrity(&error), "{error:?}");
    let error = join(received).unwrap_err();
    assert!(integrity(&error), "{error:?}");
}

#[test]
fn all_lanes_cut_at_once_come_back_to_the_same_session() {
    let receiver = paired_receiver();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &[]);
    link.hold_at(900_000);
    let bytes = noise(8, 2_000_000);
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let state = buffers(&[("a", bytes.clone())], 65_536);
    let (address, dial) = (link.address(), receiver.dial.clone());
    let sending = std::thread::spawn(move || send_once(&address, &dial, quick_send(), &state));
    link.wait_for(900_000);
    link.cut_and_go_on();
    let sent = join(sending).unwrap();
    join(received).unwrap();
    assert!(contents(&sink) == [("a".to_owned(), bytes)]);
    assert!(sent.lanes_lost >= 1 && sent.sessions == 1, "{sent:?}");
}

#[test]
fn a_receiver_that_starts_again_keeps_what_it_had() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let file = from.path().join("image");
    fs::write(&file, noise(9, 4_000_000)).unwrap();
    let (listen, dial) = pairing();
    let first = receiver(listen.clone(), dial.clone(), quick_receive());
    let link = Link::new(first.listener.local_addr(), DELAY, &[]);
    link.hold_at(2_000_000);
    let interrupted = first.receive_one(tree_sink(to.path().to_path_buf()));
    let address = link.address();
    let sending = {
        let (manifest, source) = tree(&file, BaseChoice::None);
        std::thread::spawn(move || {
            let state: (_, Arc<dyn Source>) = (manifest, source);
            send_once(&address, &dial, quick_send(), &state)
        })
    };
    link.wait_for(2_000_000);
    first.cancel.cancel();
    assert!(matches!(join(interrupted), Err(NetError::Cancelled)));
    let second = receiver(listen, DialSecurity::Insecure, quick_receive());
    link.retarget(second.listener.local_addr());
    let received = second.receive_one(tree_sink(to.path().to_path_buf()));
    link.cut_and_go_on();
    let sent = join(sending).unwrap();
    let received = join(received).unwrap();
    assert!(fs::read(to.path().join("image")).unwrap() == fs::read(&file).unwrap());
    assert_eq!(sent.sessions, 2);
    // What was staged is not sent again, whatever of the first session is counted twice.
    assert!(received.bytes_held >= 1_000_000, "{received:?}");
    assert_eq!(received.bytes_held + received.bytes_received_raw, 4_000_000);
    assert_eq!(sent.bytes_held, received.bytes_held);
}

#[test]
fn a_sender_that_starts_again_goes_on_where_it_was() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let file = from.path().join("image");
    fs::write(&file, noise(10, 4_000_000)).unwrap();
    let receiver = paired_receiver();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &[]);
    link.hold_at(2_000_000);
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));
    let cancel = Cancel::new();
    let sending = {
        let (manifest, source) = tree(&file, BaseChoice::None);
        let (address, dial, cancel) = (link.address(), receiver.dial.clone(), cancel.clone());
        std::thread::spawn(move || {
            let log = Arc::new(Log::default());
            SendSession::connect(&address, dial, quick_send(), &cancel, log)?.send(manifest, source)
        })
    };
    link.wait_for(2_000_000);
    link.freeze();
    cancel.cancel();
    assert!(matches!(join(sending), Err(NetError::Cancelled)));
    // The receiver still waits for the lost session; the new one takes its place at once.
    let (manifest, source) = tree(&file, BaseChoice::None);
    let state: (_, Arc<dyn Source>) = (manifest, source);
    let sent = send_once(&receiver.address(), &receiver.dial, quick_send(), &state).unwrap();
    join(received).unwrap();
    assert!(fs::read(to.path().join("image")).unwrap() == fs::read(&file).unwrap());
    assert!(sent.bytes_held >= 1_000_000, "{sent:?}");
    assert_eq!(sent.bytes_held + sent.bytes_sent_raw, 4_000_000);
}

#[test]
fn cancelling_ends_either_side_at_once_and_the_receiver_hears_of_it() {
    let receiver = paired_receiver();
    let link = Link::new(receiver.listener.local_addr(), Duration::ZERO, &[]);
    let received = receiver.receive_one(memory_sink());
    let cancel = Cancel::new();
    let sending = {
        let (address, dial, cancel) = (link.address(), receiver.dial.clone(), cancel.clone());
        std::thread::spawn(move || {
            let (manifest, source) = buffers(&[("a", noise(11, 8_000_000))], 65_536);
            let log = Arc::new(Log::default());
            // Slow at the source, so that the last word does not wait behind a full path.
            let options = SendOptions { bandwidth_limit: Some(2_000_000), ..quick_send() };
            SendSession::connect(&address, dial, options, &cancel, log)?.send(manifest, source)
        })
    };
    link.wait_for(300_000);
    cancel.cancel();
    assert!(matches!(join(sending), Err(NetError::Cancelled)));
    let received = join(received);
    assert!(matches!(received, Err(NetError::Peer { code: ErrorCode::Cancelled, .. })), "{received:?}");

    let received = receiver.receive_one(memory_sink());
    let session = connect(&receiver.address(), &receiver.dial);
    receiver.log.wait_for(|event| matches!(event, Event::SessionOpened { .. }));
    receiver.cancel.cancel();
    assert!(matches!(join(received), Err(NetError::Cancelled)));
    drop(session);
}

#[test]
fn a_block_that_takes_longer_than_the_idle_deadline_is_no_silence() {
    let mut options = quick_receive();
    options.idle_timeout = Duration::from_millis(400);
    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
    let received = receiver.receive_one(memory_sink());
    let state = buffers(&[("a", noise(14, 131_072))], 65_536);
    let options = SendOptions {
        lanes: 1,
        idle_timeout: Duration::from_millis(400),
        bandwidth_limit: Some(100_000),
        ..quick_send()
    };
    let sent = send_once(&receiver.address(), &receiver.dial, options, &state).unwrap();
    join(received).unwrap();
    assert_eq!((sent.lanes_lost, sent.blocks_resent), (0, 0));
}

#[test]
fn a_receiver_that_does_not_come_back_is_given_up() {
    let receiver = plain_receiver();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &[Fault::CutAll(500_000)]);
    let _received = receiver.receive_one(memory_sink());
    let options = SendOptions { reconnect_for: Duration::from_millis(300), ..quick_send() };
    let state = buffers(&[("a", noise(12, 2_000_000))], 65_536);
    let error = send_once(&link.address(), &receiver.dial, options, &state).unwrap_err();
    assert!(error.resumable(), "{error:?}");
}

#[test]
fn a_disk_that_fails_is_told_to_the_sender() {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("a")).unwrap();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a"), b"x").unwrap();
    let receiver = paired_receiver();
    // A directory stands where the file must go.
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));
    let (manifest, source) = tree(&from.path().join("a"), BaseChoice::None);
    let state: (_, Arc<dyn Source>) = (manifest, source);
    let error = send_once(&receiver.address(), &receiver.dial, quick_send(), &state).unwrap_err();
    let NetError::Peer { code, message, .. } = error else { panic!("{error:?}") };
    assert_eq!(code, ErrorCode::Refused);
    assert!(message.contains("directory") && !message.contains(to.path().to_str().unwrap()), "{message}");
    assert!(matches!(join(received), Err(NetError::Store(_))));
}

/// A file in the middle of which somebody writes.
struct Fickle {
    inner: Arc<dyn Source>,
    reads: Mutex<HashMap<u64, u8>>,
}

impl Source for Fickle {
    fn block<'a>(
        &'a self,
        entry: u32,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        let block = self.inner.block(entry, offset, len, scratch)?.to_vec();
        *scratch = block;
        let mut reads = self.reads.lock().unwrap();
        let count = reads.entry(offset).or_default();
        scratch[0] ^= *count;
        *count += 1;
        Ok(scratch)
    }

    fn base<'a>(
        &'a self,
        entry: u32,
        candidate: u8,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        self.inner.base(entry, candidate, offset, len, scratch)
    }

    fn confirm(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn remember(&self, _digests: &[Digest]) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn a_block_that_is_another_when_it_is_read_again_is_told_by_name_and_not_committed() {
    let receiver = paired_receiver();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &[Fault::CutOne(900_000)]);
    let received = receiver.receive_one(memory_sink());
    let (manifest, inner) = buffers(&[("a", noise(15, 2_000_000))], 65_536);
    let state: (_, Arc<dyn Source>) = (manifest, Arc::new(Fickle { inner, reads: Mutex::default() }));
    let error = send_once(&link.address(), &receiver.dial, quick_send(), &state).unwrap_err();
    assert!(
        matches!(&error, NetError::Store(StoreError::SourceChanged { path }) if path.as_os_str() == "a"),
        "{error:?}"
    );
    assert!(!error.resumable());
    let received = join(received);
    assert!(
        matches!(received, Err(NetError::Peer { code: ErrorCode::Storage, retryable: false, .. })),
        "{received:?}"
    );
}

#[test]
fn a_file_that_is_written_while_it_is_sent_is_told_by_name_and_not_committed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("image");
    fs::write(&file, noise(16, 24_000_000)).unwrap();
    let receiver = paired_receiver();
    let link = Link::new(receiver.listener.local_addr(), DELAY, &[]);
    link.hold_at(900_000);
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));
    let (manifest, source) = tree(&file, BaseChoice::None);
    let (address, dial) = (link.address(), receiver.dial.clone());
    let sending = std::thread::spawn(move || {
        let state: (_, Arc<dyn Source>) = (manifest, source);
        send_once(&address, &dial, quick_send(), &state)
    });
    link.wait_for(900_000);
    std::os::unix::fs::FileExt::write_at(
        &fs::File::options().write(true).open(&file).unwrap(),
        b"new",
        23_999_000,
    )
    .unwrap();
    link.hold_at(u64::MAX);
    let error = join(sending).unwrap_err();
    assert!(
        matches!(&error, NetError::Store(StoreError::SourceChanged { path }) if *path == file),
        "{error:?}"
    );
    let Err(NetError::Peer { code: ErrorCode::Storage, message, .. }) = join(received) else { panic!() };
    // The receiver is told which file of the transfer it is, but not where it lies.
    assert!(message.contains("image") && !message.contains(from.path().to_str().unwrap()), "{message}");
    assert!(!to.path().join("image").exists());
}

#[test]
fn a_peer_that_vanishes_at_any_byte_ends_in_an_error_or_a_transfer() {
    // The bytes of a whole exchange on one lane, about: handshake, manifest, three blocks, digests, finish.
    let total = 140_000;
    let tries: Vec<u64> =
        (0..15).map(|step| step * 35).chain((1..=15).map(|step| step * total / 15)).collect();
    for pairs in tries.chunks(10) {
        // Several at once: most of the time is spent in deadlines.
        let trying: Vec<_> = pairs
            .iter()
            .map(|&at| {
                std::thread::spawn(move || {
                    let mut options = quick_receive();
                    options.idle_timeout = Duration::from_millis(600);
                    let receiver = receiver(ListenSecurity::Insecure, DialSecurity::Insecure, options);
                    let link =
                        Link::new(receiver.listener.local_addr(), Duration::ZERO, &[Fault::CutAll(at)]);
                    let received = {
                        let listener = Arc::clone(&receiver.listener);
                        std::thread::spawn(move || {
                            let session = listener.accept(Some(Duration::from_millis(600)))?;
                            session.receive(memory_sink(), Some(PATIENCE))
                        })
                    };
                    let options =
                        SendOptions { lanes: 1, reconnect_for: Duration::from_millis(100), ..quick_send() };
                    let state = buffers(&[("a", noise(13, 135_000))], 65_536);
                    let start = Instant::now();
                    let sent = send_once(&link.address(), &receiver.dial, options, &state);
                    let received = join(received);
                    assert!(start.elapsed() < PATIENCE, "cut at {at}");
                    match sent {
                        Ok(_) => assert!(matches!(received, Ok(Some(_))), "cut at {at}: {received:?}"),
                        Err(error) => assert!(tells_of_loss(&error), "cut at {at}: {error:?}"),
                    }
                })
            })
            .collect();
        trying.into_iter().for_each(join);
    }
}

#[test]
fn a_transfer_of_which_nothing_moves_ends_though_the_receiver_is_there() {
    let receiver = paired_receiver();
    // It lets the sender in, says that it lives, and never takes what there is.
    let options = SendOptions {
        stall_timeout: Some(Duration::from_millis(300)),
        idle_timeout: Duration::from_secs(60),
        ..quick_send()
    };
    let state = buffers(&[("a", noise(7, 100_000))], 65_536);
    let error = send_once(&receiver.address(), &receiver.dial, options, &state).unwrap_err();
    assert!(matches!(error, NetError::Deadline { what: "a step of the transfer", .. }), "{error:?}");
    assert!(error.resumable());
}
