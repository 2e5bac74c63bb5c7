use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dwcp_codec::Digest;
use dwcp_codec::digest::BlockHasher;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::super::{Patience, Transport, wake_pair};
use super::lane::ShmTransport;
use super::local::LocalStream;
use super::meet::{check_memory, make_memory, take};
use super::region::Region;
use super::ring::{Consumer, Producer, Way, region_bytes};
use crate::error::NetError;

const RING_BYTES: u32 = 1 << 16;

fn patience() -> Patience {
    Patience::for_time(Duration::from_secs(20))
}

fn region() -> Arc<Region> {
    let memory = make_memory(RING_BYTES).unwrap();
    Arc::new(Region::map(memory.as_fd(), region_bytes(RING_BYTES)).unwrap())
}

/// Two ends of a lane, and the memory between them.
fn pair() -> (ShmTransport, ShmTransport, Arc<Region>) {
    let (one, other) = UnixStream::pair().unwrap();
    let region = region();
    let end = |socket, way| {
        let stream = LocalStream::of(socket);
        ShmTransport::new(stream, Arc::clone(&region), (way, RING_BYTES), None).unwrap()
    };
    (end(one, Way::There), end(other, Way::Back), region)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + seed * 7) ^ (at >> 8)) as u8).collect()
}

proptest! {
    #[test]
    fn a_ring_gives_out_what_was_put_in_in_order(
        steps in proptest::collection::vec((any::<bool>(), 0_usize..90_000), 1..60)
    ) {
        let region = region();
        let mut producer = Producer::new(Arc::clone(&region), Way::Back, RING_BYTES);
        let mut consumer = Consumer::new(region, Way::Back, RING_BYTES);
        let bytes = pattern(60 * 90_000, 1);
        let (mut put, mut taken) = (0, 0);
        for (puts, length) in steps {
            if puts {
                let room = RING_BYTES as usize - (put - taken);
                prop_assert_eq!(producer.room(), Ok(room));
                let count = producer.push(&bytes[put..put + length]).unwrap();
                prop_assert_eq!(count, length.min(room));
                put += count;
            } else {
                let mut out = vec![0; length];
                let count = consumer.pull(&mut out).unwrap();
                prop_assert_eq!(count, length.min(put - taken));
                prop_assert!(out[..count] == bytes[taken..taken + count]);
                taken += count;
            }
        }
    }

    #[test]
    fn whatever_index_the_peer_writes_nothing_outside_the_ring_is_touched(index in any::<u64>(), line in 0_usize..8) {
        let region = region();
        let mut producer = Producer::new(Arc::clone(&region), Way::There, RING_BYTES);
        let mut consumer = Consumer::new(Arc::clone(&region), Way::There, RING_BYTES);
        region.index(line).store(index, Ordering::Relaxed);
        let mut out = vec![0; 2 * RING_BYTES as usize];
        let pulled = consumer.pull(&mut out);
        prop_assert!(pulled.is_err() || pulled.is_ok_and(|count| count <= RING_BYTES as usize));
        region.index(line).store(index, Ordering::Relaxed);
        let pushed = producer.push(&out);
        prop_assert!(pushed.is_err() || pushed.is_ok_and(|count| count <= RING_BYTES as usize));
    }
}

#[test]
fn bytes_that_are_hashed_on_their_way_are_those_that_arrive() {
    // With ends that are no line, no piece and no ring, and the lengths of several of each.
    for length in [1, 63, 8 << 10, (8 << 10) + 1, 100_003, 3 * RING_BYTES as usize + 77] {
        let (mut one, mut other, _region) = pair();
        let bytes = pattern(length, length);
        let mut place = vec![0; length + 1];
        let mut hasher = BlockHasher::new();
        std::thread::scope(|scope| {
            scope.spawn(|| one.send(&[&bytes], patience()).unwrap());
            let mut done = 0;
            while done < length {
                assert!(other.gather(Duration::from_secs(20)).unwrap(), "{done} of {length} came");
                // Where a place begins in memory is the caller's matter.
                done += other.take_hashing(&mut place[1 + done..], &mut hasher, patience()).unwrap();
            }
        });
        assert!(place[1..] == bytes && hasher.digest() == Digest::of(&bytes), "{length} bytes");
        drop(one);
        assert!(other.gather(Duration::from_secs(20)).unwrap());
        let gone = other.take_hashing(&mut place, &mut hasher, patience());
        assert!(matches!(gone, Err(NetError::PeerClosed { .. })), "{gone:?}");
    }
}

#[test]
fn an_index_that_cannot_be_ends_the_lane_and_is_named() {
    let (mut one, _other, region) = pair();
    region.index(4).store(u64::from(RING_BYTES) + 1, Ordering::Relaxed);
    let error = one.recv_exact(&mut [0; 8], patience()).unwrap_err();
    assert!(matches!(error, NetError::Io { .. }) && error.to_string().contains("65537"), "{error}");
    // The index of who takes is ahead of what was put in.
    region.index(1).store(9, Ordering::Relaxed);
    assert!(matches!(one.send(&[b"x"], patience()), Err(NetError::Io { .. })));
}

#[test]
fn memory_that_could_become_shorter_or_is_not_what_it_is_said_to_be_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let length = region_bytes(RING_BYTES) as u64;
    let made = |seals: Option<SealFlags>, length| {
        let memory = memfd_create("test", flags).unwrap();
        ftruncate(&memory, length).unwrap();
        seals.map_or(Ok(()), |seals| fcntl_add_seals(&memory, seals)).unwrap();
        memory
    };
    let refused =
        |memory: &dyn AsFd, ring_bytes| check_memory(memory.as_fd(), ring_bytes).unwrap_err().to_string();
    let both = SealFlags::SHRINK | SealFlags::GROW;
    assert!(check_memory(made(Some(both), length).as_fd(), RING_BYTES).is_ok());
    for seals in [None, Some(SealFlags::GROW), Some(SealFlags::SHRINK)] {
        assert!(refused(&made(seals, length), RING_BYTES).contains("not sealed"));
    }
    assert!(refused(&made(Some(both), length - 1), RING_BYTES).contains("bytes"));
    assert!(refused(&made(Some(both), length), 2 * RING_BYTES).contains("131072"));
    for ring_bytes in [0, 4096, RING_BYTES + 1, 1 << 25, u32::MAX] {
        assert!(refused(&made(Some(both), length), ring_bytes).contains("power of two"));
    }
    assert!(check_memory(File::open("/proc/self/status").unwrap().as_fd(), RING_BYTES).is_err());
    assert!(check_memory(std::io::pipe().unwrap().0.as_fd(), RING_BYTES).is_err());
}

#[test]
fn an_offer_comes_with_one_descriptor() {
    let memory = make_memory(RING_BYTES).unwrap();
    let offered = |descriptors: usize| {
        let (dialer, listener) = UnixStream::pair().unwrap();
        let descriptors = vec![memory.as_fd(); descriptors];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = [&b"DWSM"[..], &RING_BYTES.to_le_bytes()].concat();
        sendmsg(&dialer, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        take(&LocalStream::of(listener), patience())
    };
    assert_eq!(offered(1).unwrap().1, RING_BYTES);
    for descriptors in [0, 2, 3] {
        let told = offered(descriptors).unwrap_err().to_string();
        assert!(told.contains("exactly one descriptor"), "{descriptors}: {told}");
    }
}

#[test]
fn bytes_arrive_as_they_were_sent_through_a_ring_that_is_full_most_of_the_time() {
    let (mut one, mut other, _) = pair();
    let lengths: Vec<usize> = (0..40).map(|step| (step * 9_973) % 300_000 + 1).collect();
    let sent = lengths.clone();
    let sender = std::thread::spawn(move || {
        for (index, length) in sent.iter().enumerate() {
            let bytes = pattern(*length, index);
            let (front, back) = bytes.split_at(length / 3);
            one.send(&[front, back], patience()).unwrap();
        }
        let mut answer = [0; 5];
        one.recv_exact(&mut answer, patience()).unwrap();
        answer
    });
    for (index, length) in lengths.iter().enumerate() {
        if index % 8 == 0 {
            // Longer than the other side takes to fill the ring, and to sleep.
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut bytes = vec![0; *length];
        other.recv_exact(&mut bytes, patience()).unwrap();
        assert!(bytes == pattern(*length, index), "message {index} of {length} bytes");
    }
    other.send(&[b"heard"], patience()).unwrap();
    assert_eq!(&sender.join().unwrap(), b"heard");
}

#[test]
fn what_was_sent_before_the_peer_left_is_read_and_then_its_end() {
    let (mut one, mut other, _) = pair();
    one.send(&[b"last words"], patience()).unwrap();
    drop(one);
    assert!(other.poll_readable(Duration::from_secs(20), None).unwrap());
    let mut words = [0; 10];
    other.recv_exact(&mut words, patience()).unwrap();
    assert_eq!(&words, b"last words");
    assert!(other.poll_readable(Duration::from_secs(20), None).unwrap());
    assert!(matches!(other.recv_exact(&mut [0], patience()), Err(NetError::PeerClosed { .. })));
    assert!(matches!(
        other.send(&[&vec![0; 1 << 20]], patience()),
        Err(NetError::PeerClosed { phase: "sending", .. })
    ));
}

#[test]
fn a_peer_that_takes_and_says_nothing_is_given_up_at_the_deadline() {
    let (mut one, _other, _) = pair();
    let soon = Duration::from_millis(150);
    for patience in [Patience::for_time(soon), Patience::Idle(soon)] {
        assert!(matches!(one.send(&[&vec![0; 1 << 20]], patience), Err(NetError::Deadline { .. })));
        assert!(matches!(one.recv_exact(&mut [0], patience), Err(NetError::Deadline { .. })));
    }
}

#[test]
fn a_lane_that_sleeps_is_woken_by_its_closer_and_by_its_waker() {
    let (mut one, _other, _) = pair();
    let (waker, wake) = wake_pair().unwrap();
    let closer = one.closer();
    let began = Instant::now();
    let ringing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        waker.wake();
        std::thread::sleep(Duration::from_millis(50));
        closer.close();
    });
    let patient = Duration::from_secs(20);
    assert!(!one.poll_readable(patient, Some(&wake)).unwrap());
    assert!(matches!(one.recv_exact(&mut [0], patience()), Err(NetError::PeerClosed { .. })));
    assert!(began.elapsed() < patient);
    ringing.join().unwrap();
}

#[test]
fn a_peer_that_rings_without_end_does_not_keep_a_lane_from_its_deadline() {
    let (one, other) = UnixStream::pair().unwrap();
    let stream = LocalStream::of(one);
    let mut lane = ShmTransport::new(stream, region(), (Way::Back, RING_BYTES), None).unwrap();
    let ringing = std::thread::spawn(move || {
        use std::io::Write;
        while (&other).write_all(&[1; 64]).is_ok() {}
    });
    let soon = Patience::for_time(Duration::from_millis(200));
    assert!(matches!(lane.recv_exact(&mut [0], soon), Err(NetError::Deadline { .. })));
    lane.closer().close();
    ringing.join().unwrap();
}
