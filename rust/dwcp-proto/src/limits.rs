//! The bounds of the format, and those a receiver sets below them.

/// Length of a frame header.
pub const HEADER_BYTES: usize = 24;
/// Length of a preface.
pub const PREFACE_BYTES: usize = 8;
/// Longest head of a frame.
pub const MAX_HEAD: usize = 1_048_576;
/// Smallest block size that may be agreed.
pub const MIN_BLOCK: u32 = 65_536;
/// Largest block size that may be agreed.
pub const MAX_BLOCK: u32 = 4_194_304;
/// Most entries of a transfer.
pub const MAX_ENTRIES: u32 = 1_048_576;
/// Most bytes of all MANIFEST heads of a transfer.
pub const MAX_MANIFEST_BYTES: u64 = 67_108_864;
/// Most bytes of an object, and of a transfer.
pub const MAX_OBJECT: u64 = 1 << 62;
/// Most blocks of all objects of a transfer; both sides keep a digest of each.
pub const MAX_BLOCKS: u64 = 67_108_864;
/// Most lanes of a session at once.
pub const MAX_LANES: u16 = 256;
/// Most candidates of an entry.
pub const MAX_CANDIDATES: usize = 8;
/// Longest path of an entry.
pub const MAX_PATH: usize = 4_096;
/// Longest component of a path.
pub const MAX_COMPONENT: usize = 255;
/// Longest target of a symbolic link.
pub const MAX_TARGET: usize = 4_095;
/// Most digests in one HAVE, SAME or DIGESTS.
pub const MAX_RUN: usize = 65_535;
/// Bytes of entries and digests that this side writes into one frame, where it may choose: 17 kbit/s carry it within
/// an idle deadline of 30 s, in which a head has to end.
pub const WRITTEN_HEAD: usize = 65_536;
/// Most digests that this side writes into one HAVE or DIGESTS.
pub const WRITTEN_RUN: usize = WRITTEN_HEAD / 16;
/// Longest request of a FETCH.
pub const MAX_REQUEST: usize = 65_536;
/// Longest dictionary of a transfer: what the head of a DICTIONARY holds.
pub const MAX_DICTIONARY: usize = MAX_HEAD - 24;
/// Longest FILL.
pub const MAX_FILL: usize = 65_536;
/// Longest name of a channel of a relay.
pub const MAX_CHANNEL: usize = 32;
/// Longest text of an ERROR.
pub const MAX_TEXT: usize = 1_024;
/// Most bytes, with those of its manifest, and most entries of a state that goes right behind its OFFER. It fits what TCP
/// sends to begin with before it hears anything (RFC 6928), so that it takes no longer than to ask.
pub const MAX_EARLY_BYTES: u64 = 12 << 10;
/// See [`MAX_EARLY_BYTES`].
pub const MAX_EARLY_ENTRIES: usize = 16;
/// Most BLOCK and SAME frames of a lane that are not acknowledged.
pub const MAX_UNACKED: u32 = 4_096;

/// What a receiver takes; it tells most of them in WELCOME. Never above the constants of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most lanes of a session at once.
    pub max_lanes: u16,
    /// Largest block size.
    pub max_block: u32,
    /// Most entries of a transfer.
    pub max_entries: u32,
    /// Most bytes of an object.
    pub max_object: u64,
    /// Longest dictionary that a sender may give; longer ones are declined. 0: this side knows of no dictionaries.
    pub max_dictionary: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_lanes: 64,
            max_block: MAX_BLOCK,
            max_entries: MAX_ENTRIES,
            max_object: MAX_OBJECT,
            max_dictionary: MAX_DICTIONARY as u32,
        }
    }
}
