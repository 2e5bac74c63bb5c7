//! The self-describing form of compressed bytes: a short header, then the payload.
//!
//! Little-endian: magic `DWCB`, version (1), codec id, flags (bit 0: a digest follows, bit 1: a dictionary was used),
//! zero, raw length (u64), the XXH3-128 digest of the raw bytes if flagged, that of the dictionary if flagged, then the
//! payload to the end.

use std::fmt;
use std::mem::MaybeUninit;
use std::str::FromStr;

use crate::codec::{self, Codec, CodecId, Compressor, Decompressor};
use crate::dictionary::Dictionary;
use crate::digest::Digest;
use crate::error::CodecError;
use crate::probe;
use crate::raw::{self, Written};

/// The first bytes of a container.
pub const MAGIC: [u8; 4] = *b"DWCB";
/// The version written, and the highest that is read.
pub const VERSION: u8 = 1;
/// Length in bytes of a header without digests, and with as many as it can have.
const SHORT_HEADER: usize = 16;
const LONG_HEADER: usize = 48;
const DIGEST_BYTES: usize = 16;
const FLAG_DIGEST: u8 = 0x01;
const FLAG_DICTIONARY: u8 = 0x02;

/// From this length on the probe costs next to nothing beside compressing, so that no codec is run on what would not
/// shrink, whichever was asked for.
const WORTH_A_LOOK: usize = 1 << 20;

/// What [`CodecChoice::Auto`] uses for data worth compressing.
const AUTO_CODEC: Codec = Codec::Zstd { level: 1 };

/// Which codec a container is to be made with. As text: `auto`, or a [`Codec`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodecChoice {
    /// zstd level 1 for data that looks compressible, none for the rest.
    Auto,
    /// This one, unless its result would not be smaller than the data, which is then stored.
    Fixed(Codec),
}

impl FromStr for CodecChoice {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<CodecChoice, CodecError> {
        if text == "auto" { Ok(CodecChoice::Auto) } else { text.parse().map(CodecChoice::Fixed) }
    }
}

impl fmt::Display for CodecChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecChoice::Auto => f.write_str("auto"),
            CodecChoice::Fixed(codec) => codec.fmt(f),
        }
    }
}

/// How a container is to be made.
#[derive(Clone, Copy, Debug)]
pub struct ContainerOptions<'a> {
    /// The codec.
    pub choice: CodecChoice,
    /// Whether to add a digest of the data.
    pub checksum: bool,
    /// A dictionary to use; the codec must be zstd, or left to be chosen, and is then zstd level 1.
    pub dictionary: Option<&'a Dictionary>,
}

impl ContainerOptions<'_> {
    /// The level with which the dictionary is used, if there is one and the data is to be compressed at all.
    fn dictionary_level(&self) -> Result<Option<(i32, &Dictionary)>, CodecError> {
        let codec = match self.choice {
            CodecChoice::Auto => AUTO_CODEC,
            CodecChoice::Fixed(codec) => codec,
        };
        match (self.dictionary, codec) {
            (None, _) | (_, Codec::None) => Ok(None),
            (Some(dictionary), Codec::Zstd { level }) => Ok(Some((level, dictionary))),
            (Some(_), Codec::Lz4 | Codec::Lz4Fast { .. }) => {
                Err(CodecError::DictionaryCodec { codec: CodecId::Lz4 })
            }
        }
    }
}

impl CodecChoice {
    fn decide(self, src: &[u8]) -> Codec {
        let (codec, look) = match self {
            CodecChoice::Fixed(codec) => (codec, codec != Codec::None && src.len() >= WORTH_A_LOOK),
            CodecChoice::Auto => (AUTO_CODEC, true),
        };
        if look && !probe::compressible(src) { Codec::None } else { codec }
    }
}

/// What a container says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The codec of the payload.
    pub codec: CodecId,
    /// Length of the decoded bytes. Nothing proves it before they are decoded.
    pub raw_length: u64,
    /// Digest of the decoded bytes, if the container carries one.
    pub digest: Option<Digest>,
    /// Digest of the dictionary that the payload was made with, if it was.
    pub dictionary: Option<Digest>,
    /// Where the payload begins.
    pub payload_offset: usize,
}

/// The size of the output buffer with which [`compress_into`] is fastest and cannot run out of room.
///
/// What is written is at most 48 bytes longer than the source, and 32 without a dictionary.
#[must_use]
pub fn max_compressed_length(n: usize) -> usize {
    let payload = [CodecId::Lz4, CodecId::Zstd].map(|id| codec::max_compressed_length(id, n));
    payload[0].max(payload[1]).saturating_add(LONG_HEADER)
}

/// Writes `src` as a container to the start of `dst` and returns its length.
///
/// # Errors
///
/// Those of [`Compressor::compress_into`], or [`CodecError::DictionaryCodec`].
pub fn compress_into(
    compressor: &mut Compressor,
    options: &ContainerOptions<'_>,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<usize, CodecError> {
    write(compressor, options, src, dst).map(Written::count)
}

/// Appends `src` as a container to `out`.
///
/// # Errors
///
/// Those of [`Compressor::compress`], or [`CodecError::DictionaryCodec`].
pub fn compress(
    compressor: &mut Compressor,
    options: &ContainerOptions<'_>,
    src: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let room = max_compressed_length(src.len());
    raw::append_with(out, room, |spare| write(compressor, options, src, spare))
}

fn write(
    compressor: &mut Compressor,
    options: &ContainerOptions<'_>,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let digest = options.checksum.then(|| Digest::of(src));
    let dictionary = options.dictionary_level()?;
    let plain_length = SHORT_HEADER + if options.checksum { DIGEST_BYTES } else { 0 };
    if let Some((level, dictionary)) = dictionary {
        let framed = raw::write_framed(dst, plain_length + DIGEST_BYTES, |payload| {
            let written = compressor.write_with(dictionary, level, src, payload)?;
            Ok((head(CodecId::Zstd, src, digest, Some(dictionary.digest())), written))
        });
        match framed {
            Ok(written) if written.count() < plain_length + src.len() => return Ok(written),
            Ok(_) | Err(CodecError::OutputTooSmall { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    raw::write_framed(dst, plain_length, |payload| {
        let codec = if dictionary.is_some() { Codec::None } else { options.choice.decide(src) };
        let (id, written) = match compressor.write(codec, src, payload) {
            Ok(written) if codec == Codec::None || written.count() < src.len() => (codec.id(), written),
            // Stored, it may fit where the compressed form did not.
            Ok(_) | Err(CodecError::OutputTooSmall { .. }) => (CodecId::None, raw::copy(src, payload)?),
            Err(error) => return Err(error),
        };
        Ok((head(id, src, digest, None), written))
    })
}

fn head(codec: CodecId, src: &[u8], digest: Option<Digest>, dictionary: Option<Digest>) -> Vec<u8> {
    let mut head = Vec::with_capacity(LONG_HEADER);
    let flags = digest.map_or(0, |_| FLAG_DIGEST) | dictionary.map_or(0, |_| FLAG_DICTIONARY);
    head.extend(MAGIC);
    head.extend([VERSION, codec as u8, flags, 0]);
    head.extend((src.len() as u64).to_le_bytes());
    head.extend(digest.into_iter().chain(dictionary).flat_map(|digest| digest.0));
    head
}

/// Reads the header of a container; `src` need not hold more than its first 48 bytes.
///
/// # Errors
///
/// [`CodecError::BadMagic`], [`CodecError::Truncated`], [`CodecError::UnsupportedVersion`],
/// [`CodecError::UnknownCodecId`], [`CodecError::ReservedNotZero`] or [`CodecError::DictionaryCodec`].
pub fn read_header(src: &[u8]) -> Result<Header, CodecError> {
    let truncated = |needed| CodecError::Truncated { length: src.len(), needed };
    let (magic, rest) = src.split_first_chunk().ok_or(truncated(SHORT_HEADER))?;
    if *magic != MAGIC {
        return Err(CodecError::BadMagic { found: *magic });
    }
    let (&[version, codec, flags, reserved], rest) =
        rest.split_first_chunk().ok_or(truncated(SHORT_HEADER))?;
    if version != VERSION {
        return Err(CodecError::UnsupportedVersion { version, max: VERSION });
    }
    let codec = CodecId::try_from(codec)?;
    for value in [flags & !(FLAG_DIGEST | FLAG_DICTIONARY), reserved] {
        if value != 0 {
            return Err(CodecError::ReservedNotZero { value });
        }
    }
    if flags & FLAG_DICTIONARY != 0 && codec != CodecId::Zstd {
        return Err(CodecError::DictionaryCodec { codec });
    }
    let (raw_length, mut rest) = rest.split_first_chunk().ok_or(truncated(SHORT_HEADER))?;
    let payload_offset = SHORT_HEADER + DIGEST_BYTES * flags.count_ones() as usize;
    let mut digest = |flag| {
        if flags & flag == 0 {
            return Ok(None);
        }
        let (bytes, behind) = rest.split_first_chunk().ok_or(truncated(payload_offset))?;
        rest = behind;
        Ok(Some(Digest(*bytes)))
    };
    Ok(Header {
        codec,
        raw_length: u64::from_le_bytes(*raw_length),
        digest: digest(FLAG_DIGEST)?,
        dictionary: digest(FLAG_DICTIONARY)?,
        payload_offset,
    })
}

/// Decodes the container `src` to the start of `dst`, checks its digest and returns how many bytes it decoded to.
///
/// On an error the contents of `dst` are unspecified.
///
/// # Errors
///
/// Those of [`read_header`] and [`Decompressor::decompress_into`], [`CodecError::OutputTooSmall`] if `dst` is shorter
/// than the raw length, [`CodecError::DictionaryMissing`], [`CodecError::DictionaryMismatch`],
/// [`CodecError::DigestMismatch`].
pub fn decompress_into(
    decompressor: &mut Decompressor,
    dictionary: Option<&Dictionary>,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<usize, CodecError> {
    let header = read_header(src)?;
    let capacity = dst.len();
    let dst = usize::try_from(header.raw_length).ok().and_then(|length| dst.get_mut(..length));
    let dst = dst.ok_or(CodecError::OutputTooSmall { capacity })?;
    decode(decompressor, dictionary, &header, src, dst).map(|raw| raw.len())
}

/// Appends what the container `src` decodes to to `out`, if that is at most `max_length` bytes.
///
/// Memory is taken only after the payload has been found able to decode to the length it promises, as far as that
/// can be seen from outside.
///
/// # Errors
///
/// Those of [`read_header`] and [`Decompressor::decompress_into`], [`CodecError::OverLimit`],
/// [`CodecError::DictionaryMissing`], [`CodecError::DictionaryMismatch`], [`CodecError::DigestMismatch`],
/// [`CodecError::OutOfMemory`].
pub fn decompress(
    decompressor: &mut Decompressor,
    dictionary: Option<&Dictionary>,
    src: &[u8],
    max_length: u64,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let header = read_header(src)?;
    let over = CodecError::OverLimit { length: header.raw_length, limit: max_length };
    let length = match usize::try_from(header.raw_length) {
        Ok(length) if header.raw_length <= max_length => length,
        _ => return Err(over),
    };
    let payload = &src[header.payload_offset..];
    let possible = match header.codec {
        CodecId::None => payload.len() == length,
        // A byte of an LZ4 sequence stands for at most 255.
        CodecId::Lz4 => length / 255 <= payload.len(),
        CodecId::Zstd | CodecId::ZstdDictionary => match zstd_safe::get_frame_content_size(payload) {
            Ok(Some(content)) => content == header.raw_length,
            // The shortest zstd block, 4 bytes, stands for at most 128 KiB.
            _ => length >> 15 <= payload.len(),
        },
    };
    if !possible {
        return Err(CodecError::RawLength { expected: length });
    }
    raw::append_exactly(out, length, |spare| decode(decompressor, dictionary, &header, src, spare))
}

fn decode<'d>(
    decompressor: &mut Decompressor,
    dictionary: Option<&Dictionary>,
    header: &Header,
    src: &[u8],
    dst: &'d mut [MaybeUninit<u8>],
) -> Result<&'d mut [u8], CodecError> {
    let payload = &src[header.payload_offset..];
    let raw = match (header.dictionary, dictionary) {
        (None, _) => decompressor.fill(header.codec, payload, dst)?,
        (Some(needed), None) => return Err(CodecError::DictionaryMissing { needed }),
        (Some(needed), Some(dictionary)) if dictionary.digest() != needed => {
            return Err(CodecError::DictionaryMismatch { needed, given: dictionary.digest() });
        }
        (Some(_), Some(dictionary)) => decompressor.fill_with(dictionary, payload, dst)?,
    };
    match header.digest {
        Some(expected) => match Digest::of(raw) {
            actual if actual == expected => Ok(raw),
            actual => Err(CodecError::DigestMismatch { expected, actual }),
        },
        None => Ok(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::tests::{records, trained};
    use crate::probe::tests::{noise, text};
    use proptest::prelude::*;

    fn make(choice: CodecChoice, checksum: bool, src: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let options = ContainerOptions { choice, checksum, dictionary: None };
        compress(&mut Compressor::new(), &options, src, &mut out).unwrap();
        out
    }

    fn read(src: &[u8], max_length: u64) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        decompress(&mut Decompressor::new(), None, src, max_length, &mut out).map(|()| out)
    }

    #[test]
    fn bytes_are_as_documented() {
        let container = make(CodecChoice::Fixed(Codec::None), false, b"abc");
        assert_eq!(container, b"DWCB\x01\0\0\0\x03\0\0\0\0\0\0\0abc");
        let container = make(CodecChoice::Fixed(Codec::None), true, b"abc");
        assert_eq!(container[..16], *b"DWCB\x01\0\x01\0\x03\0\0\0\0\0\0\0");
        assert_eq!(container[16..32], Digest::of(b"abc").0);
    }

    #[test]
    fn auto_compresses_text_and_stores_noise() {
        let codec = |src: &[u8]| read_header(&make(CodecChoice::Auto, true, src)).unwrap().codec;
        assert_eq!(codec(&text(10_000)), CodecId::Zstd);
        assert_eq!(codec(&noise(1, 10_000)), CodecId::None);
        assert_eq!("auto".parse(), Ok(CodecChoice::Auto));
        assert_eq!(CodecChoice::Fixed(Codec::Lz4).to_string().parse(), Ok(CodecChoice::Fixed(Codec::Lz4)));
    }

    #[test]
    fn container_is_never_more_than_its_header_longer_than_the_source() {
        let src = noise(1, 10_000);
        for codec in [Codec::Lz4, Codec::Zstd { level: 3 }] {
            assert_eq!(make(CodecChoice::Fixed(codec), true, &src).len(), src.len() + 32);
            let mut exact = vec![MaybeUninit::uninit(); src.len() + 32];
            let choice = CodecChoice::Fixed(codec);
            let options = ContainerOptions { choice, checksum: true, dictionary: None };
            let length = compress_into(&mut Compressor::new(), &options, &src, &mut exact).unwrap();
            assert_eq!(length, exact.len());
            exact.pop();
            let refused = compress_into(&mut Compressor::new(), &options, &src, &mut exact);
            assert!(matches!(refused, Err(CodecError::OutputTooSmall { .. })));
        }
    }

    #[test]
    fn lying_raw_length_is_refused_before_memory_is_taken() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd { level: 3 }] {
            let good = make(CodecChoice::Fixed(codec), true, &text(5_000));
            for lie in [1 << 63, u64::MAX, 1 << 40, 5_001, 4_999, 0] {
                let mut bad = good.clone();
                bad[8..16].copy_from_slice(&u64::to_le_bytes(lie));
                assert!(read(&bad, u64::MAX).is_err(), "{codec} {lie}");
                assert!(
                    decompress_into(
                        &mut Decompressor::new(),
                        None,
                        &bad,
                        &mut [MaybeUninit::uninit(); 6_000]
                    )
                    .is_err()
                );
            }
            assert_eq!(read(&good, 4_999), Err(CodecError::OverLimit { length: 5_000, limit: 4_999 }));
            assert_eq!(read(&good, 5_000).unwrap(), text(5_000));
        }
    }

    #[test]
    fn header_fields_are_refused_by_name() {
        let good = make(CodecChoice::Fixed(Codec::Lz4), true, &text(500));
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            read(&bad, 500).unwrap_err()
        };
        assert_eq!(with(0, b'X'), CodecError::BadMagic { found: *b"XWCB" });
        assert_eq!(with(4, 2), CodecError::UnsupportedVersion { version: 2, max: 1 });
        assert_eq!(with(5, 3), CodecError::UnknownCodecId { id: 3, max: 2 });
        assert_eq!(with(6, 5), CodecError::ReservedNotZero { value: 4 });
        assert_eq!(with(6, 3), CodecError::DictionaryCodec { codec: CodecId::Lz4 });
        assert_eq!(with(7, 1), CodecError::ReservedNotZero { value: 1 });
        assert!(matches!(with(16, !good[16]), CodecError::DigestMismatch { .. }));
    }

    #[test]
    fn dictionary_makes_small_containers_smaller_and_is_asked_for_by_name() {
        let dictionary = trained();
        let other = Dictionary::new(text(2_000)).unwrap();
        let record = records(401).pop().unwrap();
        for checksum in [false, true] {
            let choice = CodecChoice::Fixed(Codec::Zstd { level: 3 });
            let options = ContainerOptions { choice, checksum, dictionary: Some(&dictionary) };
            let mut packed = Vec::new();
            compress(&mut Compressor::new(), &options, &record, &mut packed).unwrap();
            assert!(packed.len() < make(choice, checksum, &record).len() / 3 * 2, "{}", packed.len());
            let needed = dictionary.digest();
            assert_eq!(read_header(&packed).unwrap().dictionary, Some(needed));
            let unpack = |dictionary: Option<&Dictionary>| {
                let mut out = Vec::new();
                decompress(&mut Decompressor::new(), dictionary, &packed, 1000, &mut out).map(|()| out)
            };
            assert_eq!(unpack(Some(&dictionary)), Ok(record.clone()));
            assert_eq!(unpack(None), Err(CodecError::DictionaryMissing { needed }));
            let mismatch = CodecError::DictionaryMismatch { needed, given: other.digest() };
            assert_eq!(unpack(Some(&other)), Err(mismatch));
            for length in 0..packed.len() {
                let mut out = Vec::new();
                let cut = &packed[..length];
                assert!(
                    decompress(&mut Decompressor::new(), Some(&dictionary), cut, 1000, &mut out).is_err()
                );
            }
        }
    }

    #[test]
    fn dictionary_that_does_not_help_is_not_named_and_lz4_takes_none() {
        let dictionary = trained();
        let options = |choice| ContainerOptions { choice, checksum: false, dictionary: Some(&dictionary) };
        let src = noise(3, 500);
        let mut packed = Vec::new();
        compress(&mut Compressor::new(), &options(CodecChoice::Auto), &src, &mut packed).unwrap();
        assert_eq!(packed, make(CodecChoice::Fixed(Codec::None), false, &src));
        let lz4 = options(CodecChoice::Fixed(Codec::Lz4));
        let refused = compress(&mut Compressor::new(), &lz4, &src, &mut packed);
        assert_eq!(refused, Err(CodecError::DictionaryCodec { codec: CodecId::Lz4 }));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_of_a_checked_container_is_refused() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd { level: 3 }] {
            let good = make(CodecChoice::Fixed(codec), true, &text(300));
            for length in 0..good.len() {
                assert!(read(&good[..length], 300).is_err(), "{codec} cut to {length}");
            }
            for at in 0..good.len() {
                // Without the flag the digest would be payload, and its absence is not an error by itself.
                for flip in [0x01, 0x80] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let read = read(&bad, 300);
                    assert!(read.is_err() || read.unwrap() == text(300), "{codec} {at} {flip}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_container_is_read_back(
            src in prop::collection::vec(any::<u8>(), 0..2_000),
            checksum: bool,
            choice in prop::sample::select(vec!["auto", "none", "lz4", "zstd", "zstd:-3", "zstd:12"]),
        ) {
            let container = make(choice.parse().unwrap(), checksum, &src);
            prop_assert_eq!(read_header(&container).unwrap().raw_length, src.len() as u64);
            prop_assert_eq!(read(&container, src.len() as u64).unwrap(), src);
        }

        #[test]
        fn arbitrary_bytes_never_panic_the_reader(
            mut src in prop::collection::vec(any::<u8>(), 0..200),
            codec in 0..4_u8,
            raw_length in prop_oneof![0..70_000_u64, any::<u64>()],
        ) {
            let _ = read(&src, 1 << 16);
            if src.len() >= SHORT_HEADER {
                src[..8].copy_from_slice(&[b'D', b'W', b'C', b'B', 1, codec, 0, 0]);
                src[8..16].copy_from_slice(&raw_length.to_le_bytes());
                let _ = read(&src, 1 << 16);
            }
        }
    }
}
