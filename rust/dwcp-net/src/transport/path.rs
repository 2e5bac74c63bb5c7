//! What TCP knows of the path of a connection.

use std::os::fd::BorrowedFd;
use std::time::Duration;

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::sockopt;

/// What the system's TCP has measured on a connection, for the data that this side sends.
///
/// Counts go from the making of the connection. What an older kernel does not tell is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathInfo {
    /// The round trip, smoothed.
    pub rtt: Option<Duration>,
    /// How far round trips are from the smoothed one, on average.
    pub rtt_deviation: Option<Duration>,
    /// The shortest round trip of late.
    pub min_rtt: Option<Duration>,
    /// After how long without an acknowledgement what was sent is sent again, before that grows with each time.
    pub retransmit_after: Option<Duration>,
    /// Bytes that may be under way without an acknowledgement, as the congestion control has it.
    pub cwnd_bytes: u64,
    /// Segments sent again.
    pub retransmitted_segments: u32,
    /// Payload bytes sent, those sent again included.
    pub sent_bytes: Option<u64>,
    /// Payload bytes sent again.
    pub retransmitted_bytes: Option<u64>,
    /// Payload bytes that the peer has acknowledged.
    pub acked_bytes: Option<u64>,
    /// Payload bytes that have arrived behind a gap, so that they are not acknowledged yet; in whole segments.
    pub sacked_bytes: u64,
    /// Payload bytes that have arrived, as the peer tells of them, those behind a gap included; in whole segments.
    pub delivered_bytes: Option<u64>,
    /// Payload bytes that have come from the peer.
    pub received_bytes: Option<u64>,
    /// How long ago the last of them came, or the connection was made.
    pub silent_for: Duration,
    /// Bytes a second that have last reached the peer.
    pub delivery_rate: Option<u64>,
    /// Bytes that wait in the system for their first sending.
    pub unsent_bytes: Option<u32>,
    /// Time in which there was something to send or to be acknowledged.
    pub busy: Option<Duration>,
    /// Time, of that, in which the peer's window was what limited.
    pub rwnd_limited: Option<Duration>,
    /// Time, of that, in which the buffer of this side was what limited.
    pub sndbuf_limited: Option<Duration>,
}

impl PathInfo {
    /// Payload bytes that have arrived. What is acknowledged stands still at a gap, and then leaps over all that has
    /// come behind it; this does neither.
    pub(crate) fn arrived_bytes(&self) -> Option<u64> {
        self.acked_bytes.map(|bytes| bytes + self.sacked_bytes)
    }

    /// What the system tells of a connection; none where it tells nothing.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn of(socket: BorrowedFd<'_>) -> Option<PathInfo> {
        let mut info = [0; sockopt::TCP_INFO_BYTES];
        let length = sockopt::read_tcp_info(socket, &mut info).ok()?;
        PathInfo::parse(&info[..length])
    }

    /// What the system tells of a connection; none where it tells nothing.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn of(_socket: BorrowedFd<'_>) -> Option<PathInfo> {
        None
    }

    /// Reads `struct tcp_info` of Linux, of which a kernel gives as much as it knows.
    #[cfg_attr(not(any(target_os = "linux", target_os = "android", test)), allow(dead_code))]
    fn parse(info: &[u8]) -> Option<PathInfo> {
        let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let micros = |us: u32| Some(Duration::from_micros(us.into())).filter(|time| !time.is_zero());
        let span = |at: usize| long(at).map(Duration::from_micros);
        // Everything up to the count of retransmissions is there since Linux 2.6.
        let (mss, sacked, silent_ms) = (word(16)?, word(28)?, word(52)?);
        let (cwnd, retransmitted_segments) = (word(80)?, word(100)?);
        Some(PathInfo {
            rtt: micros(word(68)?),
            rtt_deviation: micros(word(72)?),
            // All bits set: nothing was measured yet.
            min_rtt: word(148).filter(|us| *us != u32::MAX).and_then(micros),
            // It doubles with each time, of which there are few before the connection is given up.
            retransmit_after: micros(word(8)? >> u32::from(*info.get(4)?).min(31)),
            cwnd_bytes: u64::from(cwnd) * u64::from(mss),
            retransmitted_segments,
            sent_bytes: long(200),
            retransmitted_bytes: long(208),
            acked_bytes: long(120),
            sacked_bytes: u64::from(sacked) * u64::from(mss),
            delivered_bytes: word(192).map(|segments| u64::from(segments) * u64::from(mss)),
            received_bytes: long(128),
            silent_for: Duration::from_millis(silent_ms.into()),
            delivery_rate: long(160),
            unsent_bytes: word(144),
            busy: span(168),
            rwnd_limited: span(176),
            sndbuf_limited: span(184),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_tells_less_leaves_the_rest_unknown() {
        let mut info = [0; 232];
        info[4] = 2;
        info[8..12].copy_from_slice(&1_000_000_u32.to_ne_bytes());
        info[16..20].copy_from_slice(&1_448_u32.to_ne_bytes());
        info[68..72].copy_from_slice(&42_000_u32.to_ne_bytes());
        info[28..32].copy_from_slice(&4_u32.to_ne_bytes());
        info[52..56].copy_from_slice(&2_500_u32.to_ne_bytes());
        info[80..84].copy_from_slice(&10_u32.to_ne_bytes());
        info[100..104].copy_from_slice(&3_u32.to_ne_bytes());
        info[148..152].copy_from_slice(&u32::MAX.to_ne_bytes());
        info[160..168].copy_from_slice(&(7_u64 << 33).to_ne_bytes());
        info[192..196].copy_from_slice(&5_u32.to_ne_bytes());
        info[208..216].copy_from_slice(&4_344_u64.to_ne_bytes());
        let whole = PathInfo::parse(&info).unwrap();
        assert_eq!(whole.rtt, Some(Duration::from_millis(42)));
        assert_eq!(whole.retransmit_after, Some(Duration::from_millis(250)));
        assert_eq!((whole.cwnd_bytes, whole.retransmitted_segments), (14_480, 3));
        assert_eq!((whole.delivery_rate, whole.retransmitted_bytes), (Some(7 << 33), Some(4_344)));
        assert_eq!((whole.min_rtt, whole.rtt_deviation), (None, None));
        assert_eq!(whole.silent_for, Duration::from_millis(2_500));
        assert_eq!((whole.delivered_bytes, whole.sacked_bytes), (Some(7_240), 5_792));
        let old = PathInfo::parse(&info[..104]).unwrap();
        assert_eq!((old.rtt, old.retransmitted_segments), (whole.rtt, 3));
        assert_eq!((old.delivery_rate, old.sent_bytes, old.busy), (None, None, None));
        // A count that was cut through is not read in part.
        assert_eq!(PathInfo::parse(&info[..163]).unwrap().delivery_rate, None);
        assert_eq!(PathInfo::parse(&info[..103]), None);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_connection_tells_what_went_over_it() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsFd;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        sender.write_all(&[7; 20_000]).unwrap();
        receiver.read_exact(&mut [0; 20_000]).unwrap();
        let there = PathInfo::of(receiver.as_fd()).unwrap();
        receiver.write_all(&[1]).unwrap();
        sender.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        sender.read_exact(&mut [0]).unwrap();
        // The byte that came back has acknowledged what was read before it was sent.
        let here = PathInfo::of(sender.as_fd()).unwrap();
        assert!(here.rtt.is_some() && here.cwnd_bytes > 0, "{here:?}");
        if here.sent_bytes.is_some() {
            assert!(here.acked_bytes >= Some(20_000) && here.sent_bytes >= Some(20_000), "{here:?}");
            assert!(here.delivered_bytes >= Some(20_000), "{here:?}");
            assert!(there.sent_bytes < Some(20_000), "{there:?}");
        }
    }
}
