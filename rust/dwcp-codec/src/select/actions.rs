//! The actions to choose among.

use std::fmt;
use std::str::FromStr;

use crate::codec::Codec;

/// One way to send a block.
///
/// As text the name of a codec, such as `none` or `zstd:-1`, or `planes`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Action {
    /// As it is.
    None,
    /// LZ4 that gives up soon: where the processor is what everything waits for, up to a third more than with
    /// [`Action::Lz4`] on logs and a sixteenth on the memory of a machine, measured with both at hand.
    Lz4Fast,
    /// LZ4.
    Lz4,
    /// Zstd of level -5.
    ZstdMinus5,
    /// Zstd of level -1.
    ZstdMinus1,
    /// Zstd of level 1.
    Zstd1,
    /// Zstd of level 3.
    Zstd3,
    /// Zstd of level 6.
    Zstd6,
    /// Zstd of level 9.
    Zstd9,
    /// The bytes of elements grouped by their place: only where it is known that these are elements, and how wide.
    Planes,
}

/// A text that names no action.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown action {name:?}: expected one of {known}")]
pub struct UnknownAction {
    /// The text as given, cut to 64 characters.
    pub name: String,
    /// The names that there are.
    pub known: String,
}

impl Action {
    /// All actions; the place of one is its number.
    pub const ALL: [Action; 10] = [
        Action::None,
        Action::Lz4Fast,
        Action::Lz4,
        Action::ZstdMinus5,
        Action::ZstdMinus1,
        Action::Zstd1,
        Action::Zstd3,
        Action::Zstd6,
        Action::Zstd9,
        Action::Planes,
    ];

    /// Its place in [`Action::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The codec that compresses the block, where one does.
    #[must_use]
    pub fn codec(self) -> Option<Codec> {
        Some(match self {
            Action::None => Codec::None,
            Action::Lz4Fast => Codec::Lz4Fast { acceleration: 8 },
            Action::Lz4 => Codec::Lz4,
            Action::ZstdMinus5 => Codec::Zstd { level: -5 },
            Action::ZstdMinus1 => Codec::Zstd { level: -1 },
            Action::Zstd1 => Codec::Zstd { level: 1 },
            Action::Zstd3 => Codec::Zstd { level: 3 },
            Action::Zstd6 => Codec::Zstd { level: 6 },
            Action::Zstd9 => Codec::Zstd { level: 9 },
            Action::Planes => return None,
        })
    }

    /// Whether it can be done to elements of `width` bytes, or to bytes of which nothing is known.
    #[must_use]
    pub fn is_possible(self, width: Option<u8>) -> bool {
        self != Action::Planes || matches!(width, Some(2 | 4 | 8))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec() {
            Some(codec) => codec.fmt(f),
            None => f.write_str("planes"),
        }
    }
}

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Action, UnknownAction> {
        Action::ALL.into_iter().find(|action| action.to_string() == text).ok_or_else(|| UnknownAction {
            name: text.chars().take(64).collect(),
            known: Action::ALL.map(|action| action.to_string()).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_every_action_is_read_back_and_its_place_is_its_number() {
        for (place, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!(action.to_string().parse(), Ok(action));
            assert_eq!(action.index(), place);
        }
        let refused = "zstd:2".parse::<Action>().unwrap_err();
        assert!(refused.to_string().contains("\"zstd:2\": expected one of none, lz4:8, lz4,"), "{refused}");
    }
}
