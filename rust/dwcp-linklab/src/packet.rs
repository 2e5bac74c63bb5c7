//! What a TUN device hands over: a `virtio_net_hdr` and an IP packet, which may be a bundle of many TCP segments.
//!
//! Bundles are what makes 1 Gbit/s cheap: one call carries up to 64 KiB. The line still sees segments: each is
//! queued, counted and lost by itself, and those that are left are handed on with headers made anew.

/// Length of `struct virtio_net_hdr` before each packet.
pub const VNET_BYTES: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_ECN: u8 = 0x80;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const TCP: u8 = 6;

/// A packet as it came, with its `virtio_net_hdr`.
pub struct Bundle {
    bytes: Box<[u8]>,
    split: Option<Split>,
}

/// Where a bundle comes apart.
#[derive(Debug, Clone, Copy)]
struct Split {
    ip: IpVersion,
    /// Offset of the TCP header in the IP packet.
    tcp: usize,
    /// Length of the IP and TCP headers.
    headers: usize,
    segment: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum IpVersion {
    V4,
    V6,
}

impl Bundle {
    /// Take what was read; None if it is too short to be a packet.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() > VNET_BYTES).then(|| Self { bytes: bytes.into(), split: Split::find(bytes) })
    }

    /// Number of packets on the line.
    pub fn segments(&self) -> usize {
        self.split.map_or(1, |split| self.payload(split).len().div_ceil(split.segment))
    }

    /// Bytes on the line of one packet, IP header and all.
    pub fn length(&self, index: usize) -> u32 {
        let whole = self.bytes.len() - VNET_BYTES;
        let length = self.split.map_or(whole, |split| {
            let rest = self.payload(split).len().saturating_sub(index * split.segment);
            split.headers + rest.min(split.segment)
        });
        length as u32
    }

    fn payload(&self, split: Split) -> &[u8] {
        &self.bytes[VNET_BYTES + split.headers..]
    }

    /// The packets from `first` on, `count` of them, as one bundle: header bytes (in `scratch`) and payload.
    pub fn run<'a>(&'a self, first: usize, count: usize, scratch: &'a mut Vec<u8>) -> (&'a [u8], &'a [u8]) {
        let (Some(split), false) = (self.split, count == self.segments()) else {
            return (&self.bytes, &[]);
        };
        let payload = self.payload(split);
        let start = first * split.segment;
        let end = (start + count * split.segment).min(payload.len());
        scratch.clear();
        scratch.extend_from_slice(&self.bytes[..VNET_BYTES + split.headers]);
        if count == 1 {
            scratch[1] = GSO_NONE;
            scratch[4..6].fill(0);
        }
        let (_, packet) = scratch.split_at_mut(VNET_BYTES);
        split.rewrite(packet, start, end, payload.len());
        (scratch, &payload[start..end])
    }
}

impl Split {
    /// Where this comes apart; None if it is one packet, or nothing that can be taken apart.
    fn find(bytes: &[u8]) -> Option<Self> {
        let (vnet, packet) = bytes.split_at_checked(VNET_BYTES)?;
        let word = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
        let (segment, tcp) = (word(4), word(6));
        let ip = match vnet[1] & !GSO_ECN {
            GSO_TCP4 => IpVersion::V4,
            GSO_TCP6 => IpVersion::V6,
            _ => return None,
        };
        let ip_header = if ip == IpVersion::V4 { usize::from(packet.first()? & 15) * 4 } else { 40 };
        let headers = tcp + usize::from(packet.get(tcp + 12)? >> 4) * 4;
        let is_sound = vnet[0] & NEEDS_CHECKSUM != 0
            && tcp == ip_header
            && tcp >= 20
            && headers >= tcp + 20
            && packet.len() > headers
            && segment > 0;
        is_sound.then_some(Self { ip, tcp, headers, segment })
    }

    /// Make the headers those of the payload bytes `start..end` of `total`.
    fn rewrite(self, packet: &mut [u8], start: usize, end: usize, total: usize) {
        let length = self.headers + end - start;
        let tcp_length = length - self.tcp;
        let mut sum = 0;
        match self.ip {
            IpVersion::V4 => {
                put(packet, 2, length as u16);
                let id = u16::from_be_bytes([packet[4], packet[5]]);
                put(packet, 4, id.wrapping_add((start / self.segment) as u16));
                put(packet, 10, 0);
                let checksum = !fold(add(0, &packet[..self.tcp]));
                put(packet, 10, checksum);
                sum = add(sum, &packet[12..20]);
            }
            IpVersion::V6 => {
                put(packet, 4, (length - 40) as u16);
                sum = add(sum, &packet[8..40]);
            }
        }
        let tcp = &mut packet[self.tcp..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(start as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if start > 0 {
            tcp[13] &= !CWR;
        }
        if end < total {
            tcp[13] &= !(FIN | PSH);
        }
        // The kernel adds the rest: it takes the sum of the pseudo-header here, not complemented.
        put(tcp, 16, fold(sum + u32::from(TCP) + tcp_length as u32));
    }
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn add(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle of IPv4 and TCP with 32 bytes of TCP header.
    fn bundle(payload: usize, segment: u16) -> Vec<u8> {
        let mut bytes = vec![NEEDS_CHECKSUM, GSO_TCP4];
        for word in [52, segment, 20, 16] {
            bytes.extend_from_slice(&u16::to_ne_bytes(word));
        }
        let mut packet = vec![0_u8; 52];
        packet[0] = 0x45;
        put(&mut packet, 2, (52 + payload) as u16);
        put(&mut packet, 4, 0xFFFE);
        packet[8..10].copy_from_slice(&[64, TCP]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !fold(add(0, &packet[..20]));
        put(&mut packet, 10, checksum);
        packet[24..28].copy_from_slice(&0xFFFF_FF00_u32.to_be_bytes());
        packet[32] = 8 << 4;
        packet[33] = CWR | PSH | FIN;
        bytes.extend_from_slice(&packet);
        bytes.extend((0..payload).map(|at| at as u8));
        bytes
    }

    #[test]
    fn a_bundle_counts_as_its_segments() {
        let held = Bundle::new(&bundle(3000, 1448)).unwrap();
        let lengths: Vec<_> = (0..held.segments()).map(|index| held.length(index)).collect();
        assert_eq!(lengths, [1500, 1500, 156]);
    }

    #[test]
    fn a_whole_bundle_is_handed_on_as_it_came() {
        let bytes = bundle(3000, 1448);
        let held = Bundle::new(&bytes).unwrap();
        assert_eq!(held.run(0, 3, &mut Vec::new()), (&bytes[..], &[][..]));
    }

    #[test]
    fn part_of_a_bundle_has_headers_of_its_own() {
        let bytes = bundle(3000, 1448);
        let held = Bundle::new(&bytes).unwrap();
        let mut scratch = Vec::new();
        let (head, payload) = held.run(1, 2, &mut scratch);
        assert_eq!(payload, &bytes[VNET_BYTES + 52 + 1448..]);
        let packet = &head[VNET_BYTES..];
        assert_eq!(head[1], GSO_TCP4);
        assert_eq!(u16::from_be_bytes([packet[2], packet[3]]), 52 + 1552);
        assert_eq!(u16::from_be_bytes([packet[4], packet[5]]), 0xFFFF);
        assert_eq!(fold(add(0, &packet[..20])), 0xFFFF);
        let sequence = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
        assert_eq!(sequence, 0xFFFF_FF00_u32.wrapping_add(1448));
        assert_eq!(packet[33], PSH | FIN);
    }

    #[test]
    fn a_lone_segment_is_no_bundle_and_does_not_end_the_stream() {
        let held = Bundle::new(&bundle(3000, 1448)).unwrap();
        let mut scratch = Vec::new();
        let (head, payload) = held.run(0, 1, &mut scratch);
        assert_eq!(payload.len(), 1448);
        assert_eq!((head[0], head[1], &head[4..6]), (NEEDS_CHECKSUM, GSO_NONE, &[0, 0][..]));
        assert_eq!(head[VNET_BYTES + 33], CWR);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_one_packet() {
        let good = bundle(3000, 1448);
        assert!(Bundle::new(&good[..VNET_BYTES]).is_none());
        for length in VNET_BYTES + 1..VNET_BYTES + 53 {
            assert_eq!(Bundle::new(&good[..length]).unwrap().segments(), 1, "{length}");
        }
        for (at, value) in [(1, 3), (4, 0), (6, 200), (VNET_BYTES + 32, 0)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if at == 4 {
                bytes[5] = 0;
            }
            assert_eq!(Bundle::new(&bytes).unwrap().segments(), 1, "byte {at}");
        }
    }
}
