//! The first 8 bytes of a lane, and how to tell them from other protocols.

use crate::error::ProtoError;
use crate::limits::PREFACE_BYTES;

/// Lowest and highest version that this crate speaks.
pub const VERSIONS: (u8, u8) = (3, 3);

const MAGIC: [u8; 6] = *b"DWCP3\n";

/// What the first byte of a connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS record.
    Tls,
    /// A v3 preface outside TLS.
    V3Plaintext,
    /// A v1 peer or a stranger.
    Other,
}

/// What a connection is whose first byte is `first`.
#[must_use]
pub fn sniff(first: u8) -> Opening {
    match first {
        0x16 => Opening::Tls,
        0x44 => Opening::V3Plaintext,
        _ => Opening::Other,
    }
}

/// The preface of a side that speaks the versions `lowest` to `highest`.
#[must_use]
pub fn encode(lowest: u8, highest: u8) -> [u8; PREFACE_BYTES] {
    let [a, b, c, d, e, f] = MAGIC;
    [a, b, c, d, e, f, lowest, highest]
}

/// The lowest and highest version in a preface.
///
/// # Errors
/// [`ProtoError::Magic`] and [`ProtoError::Range`].
pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<(u8, u8), ProtoError> {
    let [magic @ .., lowest, highest] = *bytes;
    if magic != MAGIC {
        return Err(ProtoError::Magic { what: "preface" });
    }
    let range = |field, value: u8, low: u8, offset| {
        if value >= low {
            return Ok(value);
        }
        let (value, low) = (u64::from(value), u64::from(low));
        Err(ProtoError::Range { what: "preface", field, value, low, high: 255, offset })
    };
    let lowest = range("lowest version", lowest, 1, 6)?;
    Ok((lowest, range("highest version", highest, lowest, 7)?))
}

/// The highest version that both sides speak.
///
/// # Errors
/// [`ProtoError::Version`] when there is none.
pub fn agree(ours: (u8, u8), theirs: (u8, u8)) -> Result<u8, ProtoError> {
    let version = ours.1.min(theirs.1);
    if version < ours.0.max(theirs.0) {
        return Err(ProtoError::Version { ours, theirs });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preface_is_read_back_and_others_are_refused() {
        assert_eq!(encode(3, 4), *b"DWCP3\n\x03\x04");
        assert_eq!(decode(&encode(3, 4)), Ok((3, 4)));
        assert_eq!(decode(b"DWCP2\n\x03\x04"), Err(ProtoError::Magic { what: "preface" }));
        for (lowest, highest) in [(0, 3), (4, 3)] {
            assert!(matches!(decode(&encode(lowest, highest)), Err(ProtoError::Range { .. })));
        }
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        assert_eq!(agree((3, 5), (1, 4)), Ok(4));
        assert_eq!(agree((3, 3), (3, 9)), Ok(3));
        assert_eq!(agree((3, 3), (4, 9)), Err(ProtoError::Version { ours: (3, 3), theirs: (4, 9) }));
    }

    #[test]
    fn first_byte_tells_the_protocol() {
        assert_eq!(
            [sniff(0x16), sniff(b'D'), sniff(b'G')],
            [Opening::Tls, Opening::V3Plaintext, Opening::Other]
        );
    }
}
