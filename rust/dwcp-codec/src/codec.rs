//! The general-purpose compressors: none, LZ4 (block format) and zstd (one frame), behind one enum.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::str::FromStr;

use zstd_safe::{CCtx, DCtx};

use crate::dictionary::Dictionary;
use crate::error::CodecError;
use crate::raw::{self, Written};

/// The level meant by a bare `zstd`.
const DEFAULT_ZSTD_LEVEL: i32 = 3;

/// How bytes are compressed: what an encoder is told.
///
/// As text: `none`, `lz4`, `lz4:ACCELERATION`, `zstd` (level 3) or `zstd:LEVEL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// Stored as they are.
    None,
    /// An LZ4 block.
    Lz4,
    /// An LZ4 block, made faster and longer.
    Lz4Fast {
        /// How many times fewer positions are looked at where nothing repeats, 2..=65537.
        acceleration: i32,
    },
    /// A zstd frame.
    Zstd {
        /// The compression level, -131072..=22; negative levels are faster.
        level: i32,
    },
}

/// How bytes were compressed: what a decoder has to know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CodecId {
    /// Stored as they are.
    None = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// Zstd, of any level.
    Zstd = 2,
    /// Zstd with a dictionary that both sides know of: in transfers only. In files a dictionary is named beside
    /// [`CodecId::Zstd`].
    ZstdDictionary = 3,
}

impl Codec {
    /// What a decoder has to know of this codec.
    #[must_use]
    pub fn id(self) -> CodecId {
        match self {
            Codec::None => CodecId::None,
            Codec::Lz4 | Codec::Lz4Fast { .. } => CodecId::Lz4,
            Codec::Zstd { .. } => CodecId::Zstd,
        }
    }

    /// LZ4 of an acceleration that is checked against [`LZ4_ACCELERATIONS`]; 1 is the plain one.
    ///
    /// # Errors
    ///
    /// [`CodecError::AccelerationOutOfRange`].
    pub fn lz4(acceleration: i32) -> Result<Codec, CodecError> {
        match acceleration {
            1 => Ok(Codec::Lz4),
            _ if LZ4_ACCELERATIONS.contains(&acceleration) => Ok(Codec::Lz4Fast { acceleration }),
            _ => Err(CodecError::AccelerationOutOfRange {
                acceleration,
                min: *LZ4_ACCELERATIONS.start(),
                max: *LZ4_ACCELERATIONS.end(),
            }),
        }
    }

    /// Zstd of a level that is checked against [`zstd_levels`].
    ///
    /// # Errors
    ///
    /// [`CodecError::LevelOutOfRange`].
    pub fn zstd(level: i32) -> Result<Codec, CodecError> {
        let levels = zstd_levels();
        if levels.contains(&level) {
            return Ok(Codec::Zstd { level });
        }
        Err(CodecError::LevelOutOfRange { level, min: *levels.start(), max: *levels.end() })
    }
}

/// The accelerations of LZ4 that differ.
pub const LZ4_ACCELERATIONS: RangeInclusive<i32> = 1..=65_537;

/// The zstd levels the library supports.
#[must_use]
pub fn zstd_levels() -> RangeInclusive<i32> {
    zstd_safe::min_c_level()..=zstd_safe::max_c_level()
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Codec::Lz4Fast { acceleration } => write!(f, "lz4:{acceleration}"),
            Codec::Zstd { level } => write!(f, "zstd:{level}"),
            other => other.id().fmt(f),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Codec, CodecError> {
        let unknown = || CodecError::UnknownCodecName { name: text.chars().take(64).collect() };
        match text {
            "none" => Ok(Codec::None),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd { level: DEFAULT_ZSTD_LEVEL }),
            _ => {
                if let Some(acceleration) = text.strip_prefix("lz4:") {
                    return Codec::lz4(acceleration.parse().map_err(|_| unknown())?);
                }
                let level = text.strip_prefix("zstd:").ok_or_else(unknown)?;
                Codec::zstd(level.parse().map_err(|_| unknown())?)
            }
        }
    }
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CodecId::None => "none",
            CodecId::Lz4 => "lz4",
            CodecId::Zstd => "zstd",
            CodecId::ZstdDictionary => "zstd+dict",
        })
    }
}

impl TryFrom<u8> for CodecId {
    type Error = CodecError;

    /// The codec that a file names so.
    fn try_from(id: u8) -> Result<CodecId, CodecError> {
        match id {
            0 => Ok(CodecId::None),
            1 => Ok(CodecId::Lz4),
            2 => Ok(CodecId::Zstd),
            _ => Err(CodecError::UnknownCodecId { id, max: CodecId::Zstd as u8 }),
        }
    }
}

/// The most bytes `codec` makes of `n` bytes.
#[must_use]
pub fn max_compressed_length(codec: CodecId, n: usize) -> usize {
    match codec {
        CodecId::None => n,
        CodecId::Lz4 => n.saturating_add(n / 255).saturating_add(16),
        // The library's own bound, kept below overflow for lengths no memory can hold.
        CodecId::Zstd | CodecId::ZstdDictionary if n <= isize::MAX as usize / 2 => {
            zstd_safe::compress_bound(n)
        }
        CodecId::Zstd | CodecId::ZstdDictionary => usize::MAX,
    }
}

/// Compresses, keeping the state of each codec between calls.
#[derive(Default)]
pub struct Compressor {
    zstd: Option<CCtx<'static>>,
}

impl Compressor {
    /// A compressor that takes memory for a codec's state when it is first used.
    #[must_use]
    pub fn new() -> Compressor {
        Compressor::default()
    }

    /// Compresses `src` to the start of `dst` and returns how many bytes were written there.
    ///
    /// It is fastest, and cannot run out of room, when `dst` has [`max_compressed_length`] bytes.
    ///
    /// # Errors
    ///
    /// [`CodecError::OutputTooSmall`], [`CodecError::InputTooLarge`] (LZ4 takes at most 2 113 929 216 bytes),
    /// [`CodecError::LevelOutOfRange`], [`CodecError::AccelerationOutOfRange`] or [`CodecError::OutOfMemory`].
    pub fn compress_into(
        &mut self,
        codec: Codec,
        src: &[u8],
        dst: &mut [MaybeUninit<u8>],
    ) -> Result<usize, CodecError> {
        self.write(codec, src, dst).map(Written::count)
    }

    /// Appends `src`, compressed, to `out`.
    ///
    /// # Errors
    ///
    /// As [`Compressor::compress_into`], but never [`CodecError::OutputTooSmall`].
    pub fn compress(&mut self, codec: Codec, src: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let room = max_compressed_length(codec.id(), src.len());
        raw::append_with(out, room, |spare| self.write(codec, src, spare))
    }

    /// [`Compressor::compress_into`] with the proof of what was written.
    pub(crate) fn write(
        &mut self,
        codec: Codec,
        src: &[u8],
        dst: &mut [MaybeUninit<u8>],
    ) -> Result<Written, CodecError> {
        match codec {
            Codec::None => raw::copy(src, dst),
            Codec::Lz4 => raw::lz4_compress(src, dst),
            Codec::Lz4Fast { acceleration } => {
                Codec::lz4(acceleration)?;
                raw::lz4_compress_fast(acceleration, src, dst)
            }
            Codec::Zstd { level } => {
                Codec::zstd(level)?;
                raw::zstd_compress(self.zstd()?, level, src, dst)
            }
        }
    }
}

impl Compressor {
    /// Appends `src` to `out`, compressed by zstd with a dictionary.
    ///
    /// # Errors
    ///
    /// [`CodecError::LevelOutOfRange`] or [`CodecError::OutOfMemory`].
    pub fn compress_with(
        &mut self,
        dictionary: &Dictionary,
        level: i32,
        src: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        Codec::zstd(level)?;
        let room = max_compressed_length(CodecId::ZstdDictionary, src.len());
        raw::append_with(out, room, |spare| self.write_with(dictionary, level, src, spare))
    }

    /// [`Compressor::write`] with zstd and a dictionary.
    pub(crate) fn write_with(
        &mut self,
        dictionary: &Dictionary,
        level: i32,
        src: &[u8],
        dst: &mut [MaybeUninit<u8>],
    ) -> Result<Written, CodecError> {
        let encoder = dictionary.encoder(level)?;
        raw::zstd_compress_with(self.zstd()?, &encoder, src, dst)
    }

    /// The state of zstd.
    pub(crate) fn zstd(&mut self) -> Result<&mut CCtx<'static>, CodecError> {
        match &mut self.zstd {
            Some(context) => Ok(context),
            empty => Ok(empty.insert(CCtx::try_create().ok_or(CodecError::OutOfMemory { bytes: 0 })?)),
        }
    }
}

/// Decompresses, keeping the state of each codec between calls.
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<DCtx<'static>>,
}

impl Decompressor {
    /// A decompressor that takes memory for a codec's state when it is first used.
    #[must_use]
    pub fn new() -> Decompressor {
        Decompressor::default()
    }

    /// Decompresses `src` into `dst`, whose length must be exactly the raw length; nothing grows past it.
    ///
    /// On an error the contents of `dst` are unspecified.
    ///
    /// # Errors
    ///
    /// [`CodecError::RawLength`] or [`CodecError::Corrupt`] when the data does not decode to as many bytes,
    /// [`CodecError::NoDictionary`], [`CodecError::OutOfMemory`].
    pub fn decompress_into(
        &mut self,
        codec: CodecId,
        src: &[u8],
        dst: &mut [MaybeUninit<u8>],
    ) -> Result<(), CodecError> {
        self.fill(codec, src, dst).map(|_| ())
    }

    /// [`Decompressor::decompress_into`] for memory that is initialised already.
    ///
    /// # Errors
    ///
    /// As [`Decompressor::decompress_into`].
    pub fn decompress_into_slice(
        &mut self,
        codec: CodecId,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        self.decompress_into(codec, src, raw::as_output(dst))
    }

    /// [`Decompressor::decompress_into_slice`] for what zstd made with `dictionary`.
    ///
    /// # Errors
    ///
    /// As [`Decompressor::decompress_into`].
    pub fn decompress_with(
        &mut self,
        dictionary: &Dictionary,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<(), CodecError> {
        self.fill_with(dictionary, src, raw::as_output(dst)).map(|_| ())
    }

    /// [`Decompressor::decompress_into`] that hands back `dst` as the bytes it now holds.
    pub(crate) fn fill<'d>(
        &mut self,
        codec: CodecId,
        src: &[u8],
        dst: &'d mut [MaybeUninit<u8>],
    ) -> Result<&'d mut [u8], CodecError> {
        match codec {
            CodecId::None => raw::copy_exactly(src, dst),
            CodecId::Lz4 => raw::lz4_decompress(src, dst),
            CodecId::Zstd => raw::zstd_decompress(self.zstd()?, None, src, dst),
            CodecId::ZstdDictionary => Err(CodecError::NoDictionary),
        }
    }

    /// [`Decompressor::fill`] with zstd and a dictionary.
    pub(crate) fn fill_with<'d>(
        &mut self,
        dictionary: &Dictionary,
        src: &[u8],
        dst: &'d mut [MaybeUninit<u8>],
    ) -> Result<&'d mut [u8], CodecError> {
        raw::zstd_decompress(self.zstd()?, Some(dictionary.decoder()), src, dst)
    }

    /// The state of zstd.
    pub(crate) fn zstd(&mut self) -> Result<&mut DCtx<'static>, CodecError> {
        match &mut self.zstd {
            Some(context) => Ok(context),
            empty => Ok(empty.insert(DCtx::try_create().ok_or(CodecError::OutOfMemory { bytes: 0 })?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Codec; 6] = [
        Codec::None,
        Codec::Lz4,
        Codec::Lz4Fast { acceleration: 8 },
        Codec::Zstd { level: 1 },
        Codec::Zstd { level: 19 },
        Codec::Zstd { level: -5 },
    ];

    #[test]
    fn codec_names_are_read_back_and_others_are_refused() {
        for codec in ALL {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        assert_eq!("zstd".parse(), Ok(Codec::Zstd { level: 3 }));
        for bad in ["", "gzip", "zstd:", "zstd:x", "ZSTD", "lz4:", "lz4:x", "zstd:99999999999"] {
            assert!(matches!(bad.parse::<Codec>(), Err(CodecError::UnknownCodecName { .. })), "{bad}");
        }
        assert_eq!("lz4:1".parse(), Ok(Codec::Lz4));
        for bad in ["lz4:0", "lz4:-1", "lz4:65538"] {
            assert!(matches!(bad.parse::<Codec>(), Err(CodecError::AccelerationOutOfRange { .. })), "{bad}");
        }
        for bad in ["zstd:23", "zstd:-131073"] {
            assert!(
                matches!(bad.parse::<Codec>(), Err(CodecError::LevelOutOfRange { max: 22, .. })),
                "{bad}"
            );
        }
        assert_eq!(CodecId::try_from(3), Err(CodecError::UnknownCodecId { id: 3, max: 2 }));
    }

    #[test]
    fn compression_bomb_stops_at_the_end_of_the_output() {
        let bomb = vec![0; 1 << 20];
        for codec in [Codec::Lz4, Codec::Zstd { level: 3 }] {
            let mut wire = Vec::new();
            Compressor::new().compress(codec, &bomb, &mut wire).unwrap();
            assert!(wire.len() < 8_000);
            for length in [0, 1, 100, bomb.len() - 1, bomb.len() + 1] {
                let mut dst = vec![1; length];
                let refused = Decompressor::new().decompress_into_slice(codec.id(), &wire, &mut dst);
                assert!(
                    matches!(refused, Err(CodecError::RawLength { .. } | CodecError::Corrupt { .. })),
                    "{codec} {length} {refused:?}"
                );
            }
        }
    }

    #[test]
    fn lz4_match_at_distance_zero_does_not_show_what_was_in_the_output() {
        let mut decoded = 0;
        for (match_bytes, tail) in [(4, 12), (18, 12), (4, 200), (18, 200), (18, 5)] {
            // A literal, a match that would begin where it is to be written, and the last literals.
            let mut wire = vec![0x10 | (match_bytes - 4) as u8, b'a', 0, 0];
            wire.extend(if tail < 15 { vec![(tail as u8) << 4] } else { vec![0xf0, (tail - 15) as u8] });
            wire.resize(wire.len() + tail, b'z');
            let decode = |fill| {
                let mut dst = vec![fill; 1 + match_bytes + tail];
                Decompressor::new().decompress_into_slice(CodecId::Lz4, &wire, &mut dst).map(|()| dst)
            };
            assert_eq!(decode(0x00), decode(0xff), "{match_bytes} {tail}");
            decoded += usize::from(decode(0x00).is_ok());
        }
        // LZ4 takes such matches, and fills them with zeros.
        assert!(decoded > 0);
    }

    #[test]
    fn level_out_of_range_is_refused_even_if_made_by_hand() {
        let refused = Compressor::new().compress(Codec::Zstd { level: 23 }, b"x", &mut Vec::new());
        assert!(matches!(refused, Err(CodecError::LevelOutOfRange { level: 23, max: 22, .. })));
    }

    #[test]
    fn lz4_roundtrips_around_the_lengths_where_its_tables_change() {
        let text: Vec<u8> =
            (0..70_000_u32).flat_map(|i| (i / 7).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for length in [32_767, 32_768, 65_535, 65_536, 65_546, 65_547] {
            for room in [0, 16] {
                let mut wire =
                    vec![MaybeUninit::uninit(); max_compressed_length(CodecId::Lz4, length) - 16 + room];
                let src = &text[..length];
                let written = Compressor::new().compress_into(Codec::Lz4, src, &mut wire).unwrap();
                assert!(written < length, "{length}");
                let mut packed = Vec::new();
                Compressor::new().compress(Codec::Lz4, src, &mut packed).unwrap();
                let mut back = vec![0; length];
                Decompressor::new().decompress_into_slice(CodecId::Lz4, &packed, &mut back).unwrap();
                assert_eq!(back, src, "{length}");
            }
        }
    }

    #[test]
    fn bound_holds_for_lengths_no_memory_can_hold() {
        assert_eq!(max_compressed_length(CodecId::Zstd, usize::MAX), usize::MAX);
        assert_eq!(max_compressed_length(CodecId::Lz4, usize::MAX), usize::MAX);
    }

    proptest! {
        #[test]
        fn every_codec_gives_back_what_it_was_given(
            seeds in prop::collection::vec((any::<u8>(), 1..300_usize), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let mut src: Vec<u8> = seeds.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect();
            src.extend(noise);
            let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
            for codec in ALL {
                let mut wire = b"before".to_vec();
                compressor.compress(codec, &src, &mut wire).unwrap();
                let wire = wire.strip_prefix(b"before").unwrap();
                prop_assert!(wire.len() <= max_compressed_length(codec.id(), src.len()));
                let mut back = vec![0; src.len()];
                decompressor.decompress_into_slice(codec.id(), wire, &mut back).unwrap();
                prop_assert_eq!(&back, &src);
                // One byte less of room is refused, and the state survives it.
                if !wire.is_empty() {
                    let mut small = vec![MaybeUninit::uninit(); wire.len() - 1];
                    prop_assert!(compressor.compress_into(codec, &src, &mut small).is_err());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic_a_decompressor(
            wire in prop::collection::vec(any::<u8>(), 0..300),
            length in 0..5_000_usize,
        ) {
            let mut dst = vec![0; length];
            for codec in [CodecId::None, CodecId::Lz4, CodecId::Zstd] {
                let _ = Decompressor::new().decompress_into_slice(codec, &wire, &mut dst);
            }
        }
    }
}
