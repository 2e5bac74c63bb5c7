//! How long the slots of a connection are and how many there are, and the greeting that tells the peer.

use crate::device::DeviceLimits;
use crate::error::RdmaError;

/// Slots that are kept for messages without content, which need no credit: two grants and an end can be under way.
pub(crate) const CONTROL_SLOTS: u32 = 4;

/// The fewest slots with which a connection still flows.
const MIN_SLOTS: u32 = 4;
const MAX_SLOTS: u32 = 1_024;
const MIN_SLOT_BYTES: u32 = 4_096;
const MAX_SLOT_BYTES: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"DWCPRDM1";

/// How many bytes a greeting has. What carries it can have 56, and fills it up with zeros.
pub(crate) const GREETING_BYTES: usize = 16;

/// What one side of a connection has for the other to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// How long a slot is, which is the longest message.
    pub slot_bytes: u32,
    /// How many messages with content may come before one was read.
    pub slots: u32,
}

impl Default for Geometry {
    /// 2 MiB for each direction: less than 8 MiB, which most systems let a process lock, for up to two lanes.
    fn default() -> Geometry {
        Geometry { slot_bytes: 64 * 1024, slots: 32 }
    }
}

impl Geometry {
    /// Bytes of all slots of both directions.
    pub(crate) fn bytes(&self) -> usize {
        self.slot_bytes as usize * (2 * self.slots + CONTROL_SLOTS) as usize
    }

    /// The same, as far as a device has room for it.
    ///
    /// # Errors
    /// [`RdmaError::Limit`] when there is none for the least of it.
    pub(crate) fn fit(self, device: &DeviceLimits) -> Result<Geometry, RdmaError> {
        let limits = [
            ("max_qp_wr", u64::from(device.max_qp_wr), 1),
            // One queue of completions takes those of both directions.
            ("max_cqe", u64::from(device.max_cqe), 2),
        ];
        let mut slots = self.slots.clamp(MIN_SLOTS, MAX_SLOTS);
        for (what, has, each) in limits {
            let needs = each * u64::from(MIN_SLOTS + CONTROL_SLOTS);
            if has < needs {
                return Err(RdmaError::Limit { what, needs, has });
            }
            slots = slots.min((has / each).min(u64::from(u32::MAX)) as u32 - CONTROL_SLOTS);
        }
        if device.max_sge < 1 {
            return Err(RdmaError::Limit { what: "max_sge", needs: 1, has: 0 });
        }
        let fitted =
            |slots| Geometry { slots, slot_bytes: self.slot_bytes.clamp(MIN_SLOT_BYTES, MAX_SLOT_BYTES) };
        while fitted(slots).bytes() as u64 > device.max_mr_size && slots > MIN_SLOTS {
            slots = (slots / 2).max(MIN_SLOTS);
        }
        let needs = fitted(slots).bytes() as u64;
        if needs > device.max_mr_size {
            return Err(RdmaError::Limit { what: "max_mr_size", needs, has: device.max_mr_size });
        }
        Ok(fitted(slots))
    }

    pub(crate) fn greeting(&self) -> [u8; GREETING_BYTES] {
        let mut greeting = [0; GREETING_BYTES];
        greeting[..8].copy_from_slice(&MAGIC);
        greeting[8..12].copy_from_slice(&self.slot_bytes.to_be_bytes());
        greeting[12..16].copy_from_slice(&self.slots.to_be_bytes());
        greeting
    }

    /// Reads the peer's greeting.
    ///
    /// # Errors
    /// [`RdmaError::Greeting`] when it is none, or tells of what nobody would have.
    pub(crate) fn read(greeting: &[u8]) -> Result<Geometry, RdmaError> {
        let wrong = |reason| RdmaError::Greeting { reason };
        let greeting: &[u8; GREETING_BYTES] =
            greeting.first_chunk().ok_or_else(|| wrong("it is too short"))?;
        if greeting[..8] != MAGIC {
            return Err(wrong("it does not begin with DWCPRDM1"));
        }
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|index| greeting[at + index]));
        let read = Geometry { slot_bytes: word(8), slots: word(12) };
        if !(MIN_SLOT_BYTES..=MAX_SLOT_BYTES).contains(&read.slot_bytes) {
            return Err(wrong("its slots are not 4096 to 1048576 bytes long"));
        }
        if !(MIN_SLOTS..=MAX_SLOTS).contains(&read.slots) {
            return Err(wrong("it has not 4 to 1024 slots"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: DeviceLimits = DeviceLimits {
        max_qp: 1024,
        max_qp_wr: 16_384,
        max_sge: 30,
        max_cq: 1024,
        max_cqe: 65_536,
        max_mr: 1024,
        max_mr_size: u64::MAX,
    };

    #[test]
    fn a_small_device_gets_fewer_slots_and_a_tiny_one_is_named() {
        let wanted = Geometry::default();
        assert_eq!(wanted.fit(&LARGE).unwrap(), wanted);
        let of = |limits| wanted.fit(&limits);
        assert_eq!(of(DeviceLimits { max_qp_wr: 20, ..LARGE }).unwrap().slots, 16);
        assert_eq!(of(DeviceLimits { max_cqe: 24, ..LARGE }).unwrap().slots, 8);
        let small = of(DeviceLimits { max_mr_size: 1 << 20, ..LARGE }).unwrap();
        assert!(small.bytes() <= 1 << 20 && small.slots >= 4, "{small:?}");
        let refused = [
            DeviceLimits { max_qp_wr: 7, ..LARGE },
            DeviceLimits { max_cqe: 15, ..LARGE },
            DeviceLimits { max_sge: 0, ..LARGE },
            DeviceLimits { max_mr_size: 4096, ..LARGE },
        ];
        for (limits, name) in refused.into_iter().zip(["max_qp_wr", "max_cqe", "max_sge", "max_mr_size"]) {
            assert!(matches!(of(limits), Err(RdmaError::Limit { what, .. }) if what == name), "{name}");
        }
    }

    #[test]
    fn a_greeting_is_read_as_written_and_one_out_of_bounds_is_refused() {
        let ours = Geometry { slot_bytes: 65_536, slots: 48 };
        let mut padded = [0; 56];
        padded[..GREETING_BYTES].copy_from_slice(&ours.greeting());
        assert_eq!(Geometry::read(&padded).unwrap(), ours);
        assert_eq!(ours.greeting(), *b"DWCPRDM1\0\x01\0\0\0\0\0\x30");
        for (slot_bytes, slots) in
            [(4095, 8), (0, 8), (1 << 21, 8), (4096, 3), (4096, 1025), (u32::MAX, u32::MAX)]
        {
            let greeting = Geometry { slot_bytes, slots }.greeting();
            assert!(Geometry::read(&greeting).is_err(), "{slot_bytes} {slots}");
        }
        assert!(Geometry::read(&ours.greeting()[..15]).is_err() && Geometry::read(&[0; 56]).is_err());
    }
}
