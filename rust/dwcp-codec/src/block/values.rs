//! Values: small ones as a code byte, larger ones as a code for their length and first bits, and extra bits.

use crate::codec::Decompressor;
use crate::error::CodecError;
use crate::kernel::element::Element;
use crate::kernel::{LINE_BYTES, Level, changes};
use crate::stream::{Content, PayloadReader, StreamEncoder, append_number};

/// Codes from here on have extra bits.
const FIRST_LONG: u8 = 128;
/// The bits of the least value that has such a code.
const LONG_BITS: u32 = 8;
/// Mantissa length of positions and lengths.
pub(super) const POSITION_MANTISSA: u32 = 3;
/// Bits of positions and lengths at most.
pub(super) const POSITION_BITS: u32 = 32;

/// Mantissa length of changes by the width of elements in bytes.
pub(super) fn change_mantissa(width: usize) -> u32 {
    match width {
        2 => 3,
        4 => 2,
        _ => 1,
    }
}

/// Values handled at a time: enough for whole vectors, few enough to stay in registers and the first cache.
const TOGETHER: usize = 32;

/// Calls `each` with the place of every code that has extra bits, in order.
#[inline(always)]
fn for_each_long(codes: &mut [u8; TOGETHER], mut each: impl FnMut(usize, &mut u8)) {
    let (eights, _) = codes.as_chunks::<8>();
    let marks =
        |eight: &[u8; 8]| u64::from_le_bytes(*eight) & (u64::from(FIRST_LONG) * 0x0101_0101_0101_0101);
    let marks: [u64; TOGETHER / 8] = std::array::from_fn(|i| marks(&eights[i]));
    for (first, mut marks) in (0..).step_by(8).zip(marks) {
        while marks != 0 {
            let at = first + marks.trailing_zeros() as usize / 8;
            each(at, &mut codes[at]);
            marks &= marks - 1;
        }
    }
}

/// Takes values in order and appends them as two parts.
#[derive(Default)]
pub(super) struct ValueWriter {
    mantissa: u32,
    codes: Vec<u8>,
    extra: Vec<u8>,
    bits: u64,
    held: u32,
}

impl ValueWriter {
    /// Begins anew.
    pub(super) fn start(&mut self, mantissa: u32, count: usize) {
        self.mantissa = mantissa;
        self.codes.clear();
        self.codes.reserve(count);
        self.extra.clear();
        (self.bits, self.held) = (0, 0);
    }

    /// The next value.
    #[inline]
    pub(super) fn push(&mut self, value: u64) {
        let code = if value < u64::from(FIRST_LONG) { value as u8 } else { self.long(value) };
        self.codes.push(code);
    }

    /// The next values: the elements that stand in `zigzags`.
    pub(super) fn extend<E: Element>(&mut self, zigzags: &[u8]) {
        let count = zigzags.len() / E::WIDTH;
        let start = self.codes.len();
        self.codes.resize(start + count, 0);
        for (index, zigzags) in zigzags.chunks(TOGETHER * E::WIDTH).enumerate() {
            // What needs more than a code is marked by the bit that all such codes have.
            let mut codes = [0; TOGETHER];
            for (code, zigzag) in codes.iter_mut().zip(zigzags.chunks_exact(E::WIDTH)) {
                let zigzag = E::read(zigzag).widen();
                *code = zigzag as u8 | u8::from(zigzag >= u64::from(FIRST_LONG)) << 7;
            }
            for_each_long(&mut codes, |i, code| {
                *code = self.long(E::read(&zigzags[i * E::WIDTH..]).widen());
            });
            let at = start + index * TOGETHER;
            let here = zigzags.len() / E::WIDTH;
            self.codes[at..at + here].copy_from_slice(&codes[..here]);
        }
    }

    /// The next values: the gaps between the `count` set bits of `mask`.
    pub(super) fn extend_gaps(&mut self, level: Level, mask: &[u64], count: usize) {
        const { assert!(changes::LONG_GAP == FIRST_LONG as usize) };
        let start = self.codes.len();
        self.codes.resize(start + count + LINE_BYTES, 0);
        let mut long = Vec::new();
        changes::gaps(level, mask, &mut self.codes[start..], &mut long);
        self.codes.truncate(start + count);
        for (number, gap) in long {
            self.codes[start + number] = self.long(gap as u64);
        }
    }

    /// The code of a value of at least [`LONG_BITS`] bits, whose low bits are put with the extra bits.
    fn long(&mut self, value: u64) -> u8 {
        let bits = u64::BITS - value.leading_zeros();
        let low = bits - 1 - self.mantissa;
        let head = (value >> low) as u8 & ((1 << self.mantissa) - 1);
        let value = value & !(u64::MAX << low);
        self.bits |= value << self.held;
        let total = self.held + low;
        if total < u64::BITS {
            self.held = total;
        } else {
            self.extra.extend_from_slice(&self.bits.to_le_bytes());
            // At least one bit was held, since less than 64 are added.
            self.bits = value >> (u64::BITS - self.held);
            self.held = total - u64::BITS;
        }
        FIRST_LONG + (((bits - LONG_BITS) << self.mantissa) as u8 | head)
    }

    /// Appends both parts; `content` says what the codes are like.
    pub(super) fn finish(
        &mut self,
        content: Content,
        streams: &mut StreamEncoder,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let last = self.held.div_ceil(8) as usize;
        self.extra.extend_from_slice(&self.bits.to_le_bytes()[..last]);
        streams.append(&self.codes, content, out)?;
        append_number(self.extra.len() as u64, out);
        out.extend_from_slice(&self.extra);
        Ok(())
    }
}

/// Values read back: their codes, and their extra bits followed by zero bytes.
pub(super) struct Values<'s> {
    codes: &'s [u8],
    extra: &'s [u8],
    mantissa: u32,
}

/// Zero bytes behind the extra bits, so that every value can be read with its neighbours.
const PADDING: usize = 16;

/// Room for [`Values`].
#[derive(Default)]
pub(super) struct ValueScratch {
    codes: Vec<u8>,
    extra: Vec<u8>,
}

/// Reads `count` values of at most `most_bits` bits; the caller has bounded `count`.
pub(super) fn read<'s, 'a: 's>(
    what: &'static str,
    reader: &mut PayloadReader<'a>,
    count: usize,
    mantissa: u32,
    most_bits: u32,
    decompressor: &mut Decompressor,
    scratch: &'s mut ValueScratch,
) -> Result<Values<'s>, CodecError> {
    let codes = reader.stream(what, count, decompressor, &mut scratch.codes)?;
    // One above the last code, as long as that is a byte at all.
    let end = u32::from(FIRST_LONG) + ((most_bits - LONG_BITS + 1) << mantissa);
    let highest = codes.iter().fold(0, |high, code| high.max(*code));
    if u32::from(highest) >= end {
        let (value, high) = (highest.into(), end as usize - 1);
        return Err(CodecError::PayloadNumber { what, value, low: 0, high });
    }
    let bits = if highest < FIRST_LONG {
        0
    } else {
        match mantissa {
            1 => all_extra_bits::<1>(codes),
            2 => all_extra_bits::<2>(codes),
            _ => all_extra_bits::<POSITION_MANTISSA>(codes),
        }
    };
    // At most 62 bits for each of as many values as the block has bytes.
    let expected = bits.div_ceil(8) as usize;
    let length = reader.number(what, expected, expected)?;
    let extra = reader.bytes(what, length)?;
    let unused = bits % 8;
    if let Some(last) = extra.last().filter(|last| unused != 0 && **last >> unused != 0) {
        return Err(CodecError::PayloadNumber {
            what,
            value: u64::from(*last),
            low: 0,
            high: 0xff >> (8 - unused),
        });
    }
    scratch.extra.clear();
    scratch.extra.extend_from_slice(extra);
    scratch.extra.resize(length + PADDING, 0);
    Ok(Values { codes, extra: &scratch.extra, mantissa })
}

/// How many extra bits all codes have, with mantissas of `M` bits.
fn all_extra_bits<const M: u32>(codes: &[u8]) -> u64 {
    // Few enough that the sum of the most that each can have, 69, fits.
    codes
        .chunks(512)
        .map(|codes| {
            let bits = codes.iter().map(|code| {
                let (is_long, rest) = (u16::from(*code >> 7), u16::from(*code & (FIRST_LONG - 1)));
                is_long * (LONG_BITS as u16 - 1 - M as u16 + (rest >> M))
            });
            u64::from(bits.sum::<u16>())
        })
        .sum()
}

impl Values<'_> {
    /// The values one by one.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        let mut at = 0;
        self.codes
            .iter()
            .map(move |code| if *code < FIRST_LONG { u64::from(*code) } else { self.long(*code, &mut at) })
    }

    /// Writes the values to the start of `zigzags` as elements; says whether one of them is 0.
    pub(super) fn write<E: Element>(&self, zigzags: &mut [u8]) -> bool {
        let mut at = 0;
        let mut least = u8::MAX;
        for (codes, zigzags) in self.codes.chunks(TOGETHER).zip(zigzags.chunks_mut(TOGETHER * E::WIDTH)) {
            let mut together = [0; TOGETHER];
            together[..codes.len()].copy_from_slice(codes);
            for (code, zigzag) in codes.iter().zip(zigzags.chunks_exact_mut(E::WIDTH)) {
                least = least.min(*code);
                E::of_byte(*code, 0).write(zigzag);
            }
            for_each_long(&mut together, |i, code| {
                E::narrow(self.long(*code, &mut at)).write(&mut zigzags[i * E::WIDTH..]);
            });
        }
        least == 0 && !self.codes.is_empty()
    }

    /// The value of a code with extra bits, which begin at bit `at`.
    fn long(&self, code: u8, at: &mut usize) -> u64 {
        let rest = u32::from(code - FIRST_LONG);
        let bits = LONG_BITS + (rest >> self.mantissa);
        let low = bits - 1 - self.mantissa;
        let (byte, shift) = (*at / 8, *at as u32 % 8);
        *at += low as usize;
        // All extra bits were counted when they were read, and zero bytes follow them.
        let Some(next) = self.extra.get(byte..).and_then(<[u8]>::first_chunk::<16>) else { return 0 };
        let next = u128::from_le_bytes(*next);
        // Few values have as many bits that they reach into the upper half.
        let shifted = if low + shift <= u64::BITS { next as u64 >> shift } else { (next >> shift) as u64 };
        let extra = shifted & !(u64::MAX << low);
        let head = u64::from(rest & ((1 << self.mantissa) - 1)) | 1 << self.mantissa;
        head << low | extra
    }
}
