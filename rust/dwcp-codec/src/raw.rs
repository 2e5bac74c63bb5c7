//! The C compressors, writing into memory that nobody had to zero first.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd_safe::{CCtx, CDict, CParameter, DCtx, DDict, ResetDirective, SafeResult, WriteBuf};

use crate::codec::{CodecId, max_compressed_length};
use crate::error::CodecError;

/// `LZ4_MAX_INPUT_SIZE`.
pub(crate) const LZ4_MAX_INPUT_BYTES: usize = 0x7e00_0000;

/// Lengths for which LZ4's one-shot call keeps 16-bit positions, found by a hash of four bytes instead of five: at
/// these, against the table that it keeps for streams, it is slower and compresses less.
const LZ4_COARSE_TABLE: std::ops::Range<usize> = 32 * 1024..64 * 1024 + 11;

/// Output memory for zstd of which nothing is promised to be initialised.
struct Uninit<'a> {
    bytes: &'a mut [MaybeUninit<u8>],
    filled: usize,
}

// SAFETY: pointer and capacity are those of the borrowed slice; as_slice covers only what filled_until vouched for.
unsafe impl WriteBuf for Uninit<'_> {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes were written by zstd.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.filled) }
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr().cast()
    }

    unsafe fn filled_until(&mut self, n: usize) {
        self.filled = n;
    }
}

/// How many bytes at the start of an output buffer have been written. Only this module can say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written(usize);

impl Written {
    /// The number of bytes.
    pub(crate) fn count(self) -> usize {
        self.0
    }
}

/// Compresses `src` as one zstd frame at the start of `dst`.
pub(crate) fn zstd_compress(
    context: &mut CCtx<'static>,
    level: i32,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let capacity = dst.len();
    written(context.compress(&mut Uninit { bytes: dst, filled: 0 }, src, level), capacity)
}

/// Compresses `src` as one zstd frame, made with a dictionary, at the start of `dst`.
pub(crate) fn zstd_compress_with(
    context: &mut CCtx<'static>,
    dictionary: &CDict<'static>,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let capacity = dst.len();
    written(context.compress_using_cdict(&mut Uninit { bytes: dst, filled: 0 }, src, dictionary), capacity)
}

/// A context with parameters that stay.
pub(crate) fn zstd_context(parameters: &[CParameter]) -> Result<CCtx<'static>, CodecError> {
    let mut context = CCtx::try_create().ok_or(CodecError::OutOfMemory { bytes: 0 })?;
    for parameter in parameters {
        // The parameters are constants of this crate; a library that does not know one is as good without it.
        let _ = context.set_parameter(*parameter);
    }
    Ok(context)
}

/// Compresses `src` as one zstd frame at the start of `dst`, with the context's own parameters.
pub(crate) fn zstd_compress_as_set(
    context: &mut CCtx<'static>,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let capacity = dst.len();
    written(context.compress2(&mut Uninit { bytes: dst, filled: 0 }, src), capacity)
}

/// What zstd says of a compression.
fn written(result: SafeResult, capacity: usize) -> Result<Written, CodecError> {
    result.map(Written).map_err(|code| {
        if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
            return CodecError::OutOfMemory { bytes: 0 };
        }
        CodecError::OutputTooSmall { capacity }
    })
}

/// Decompresses zstd frames into `dst`, which they must fill exactly.
pub(crate) fn zstd_decompress<'d>(
    context: &mut DCtx<'static>,
    dictionary: Option<&DDict<'static>>,
    src: &[u8],
    dst: &'d mut [MaybeUninit<u8>],
) -> Result<&'d mut [u8], CodecError> {
    let expected = dst.len();
    let mut out = Uninit { bytes: dst, filled: 0 };
    let decoded = match dictionary {
        Some(dictionary) => context.decompress_using_ddict(&mut out, src, dictionary),
        None => context.decompress(&mut out, src),
    };
    match decoded {
        // SAFETY: zstd has written as many bytes as there are.
        Ok(written) if written == expected => Ok(unsafe { assume_written(dst) }),
        Ok(_) => Err(CodecError::RawLength { expected }),
        Err(code) if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) => {
            Err(CodecError::RawLength { expected })
        }
        Err(code) if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) => {
            Err(CodecError::OutOfMemory { bytes: 0 })
        }
        Err(code) => Err(CodecError::Corrupt {
            codec: CodecId::Zstd,
            length: src.len(),
            reason: zstd_safe::get_error_name(code),
        }),
    }
}

/// How far zstd is to look for repetition behind a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// As far as its table of positions goes.
    Table,
    /// As far as there is anything, for what is long enough. This takes about as long again.
    All,
}

/// Up to this power of two of positions in the hash table it stays in the second cache: with more, what is found is a
/// hundredth more, and takes a third longer.
const MAX_HASH_LOG: u32 = 18;
/// The shortest match that level 1 looks for in what is mostly new: its own 7 bytes are for speed where much repeats.
const MIN_MATCH_OF_NEW: u32 = 6;
/// One position in this power of two is remembered for far repetition,
const FAR_RATE_LOG: u32 = 5;
/// and this power of two of them.
const FAR_HASH_LOG: u32 = 17;

/// Compresses what stands in `joined` behind the first `prefix_bytes` as one zstd frame at the start of `dst`, referring
/// to these. That they are one piece of memory spares zstd to look at two.
///
/// The window holds prefix and source together, and the hash table a quarter of their positions, which is what is put
/// into it: with the level's own sizes the prefix would have pushed itself out before the first byte is compressed.
pub(crate) fn zstd_compress_with_prefix(
    context: &mut CCtx<'static>,
    level: i32,
    reach: Reach,
    joined: &[u8],
    prefix_bytes: usize,
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let capacity = dst.len();
    let (prefix, src) = joined.split_at(prefix_bytes);
    let length_log = usize::BITS - joined.len().leading_zeros();
    let mut compress = |context: &mut CCtx<'static>| -> SafeResult {
        context.set_parameter(CParameter::CompressionLevel(level))?;
        context.set_parameter(CParameter::WindowLog(length_log.clamp(10, 27)))?;
        context.set_parameter(CParameter::HashLog(length_log.saturating_sub(2).clamp(10, MAX_HASH_LOG)))?;
        if level == 1 && prefix.len() < src.len() {
            context.set_parameter(CParameter::MinMatch(MIN_MATCH_OF_NEW))?;
        }
        if reach == Reach::All {
            context.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
            context.set_parameter(CParameter::LdmHashLog(FAR_HASH_LOG))?;
            context.set_parameter(CParameter::LdmHashRateLog(FAR_RATE_LOG))?;
        }
        // SAFETY: zstd reads the prefix during the next compression only, which is the one below; the reset behind it
        // makes it forget the prefix if that did not come to it.
        let prefix: &'static [u8] = unsafe { std::slice::from_raw_parts(prefix.as_ptr(), prefix.len()) };
        context.ref_prefix(prefix)?;
        context.compress2(&mut Uninit { bytes: dst, filled: 0 }, src)
    };
    let result = compress(context);
    // Resetting a session cannot fail; were it to, the prefix would be replaced by the next one.
    let reset = context.reset(ResetDirective::SessionAndParameters);
    written(result.and_then(|length| reset.map(|_| length)), capacity)
}

/// Decompresses one zstd frame that refers to `joined` as its prefix into exactly `length` bytes behind that.
///
/// On an error `joined` holds the prefix still.
pub(crate) fn zstd_decompress_behind_prefix(
    context: &mut DCtx<'static>,
    joined: &mut Vec<u8>,
    src: &[u8],
    length: usize,
) -> Result<(), CodecError> {
    let corrupt = |reason| CodecError::Corrupt { codec: CodecId::Zstd, length: src.len(), reason };
    let frame = zstd_safe::find_frame_compressed_size(src)
        .map_err(|code| corrupt(zstd_safe::get_error_name(code)))?;
    if frame != src.len() {
        return Err(corrupt("more than one frame"));
    }
    joined.try_reserve(length).map_err(|_| CodecError::OutOfMemory { bytes: length })?;
    // SAFETY: the prefix is read during the next decompression only, which is the one below: the room for that is there
    // already, so that the vector does not move, and what is written is behind the prefix. The reset makes zstd forget
    // the prefix if it did not come to that.
    let prefix: &'static [u8] = unsafe { std::slice::from_raw_parts(joined.as_ptr(), joined.len()) };
    let decompressed = match context.ref_prefix(prefix) {
        Ok(_) => append_exactly(joined, length, |spare| zstd_decompress(context, None, src, spare)),
        Err(_) => Err(CodecError::OutOfMemory { bytes: 0 }),
    };
    context.reset(ResetDirective::SessionAndParameters).map_err(|_| CodecError::OutOfMemory { bytes: 0 })?;
    decompressed
}

/// Compresses `src` as one LZ4 block at the start of `dst`.
pub(crate) fn lz4_compress(src: &[u8], dst: &mut [MaybeUninit<u8>]) -> Result<Written, CodecError> {
    if LZ4_COARSE_TABLE.contains(&src.len()) && dst.len() >= max_compressed_length(CodecId::Lz4, src.len()) {
        let written = lz4_compress_as_stream(src, lz4_length(src)?, dst)?;
        return lz4_written(written, dst.len());
    }
    lz4_compress_fast(1, src, dst)
}

/// [`lz4_compress`] that looks the less for repetition the higher `acceleration` is.
pub(crate) fn lz4_compress_fast(
    acceleration: i32,
    src: &[u8],
    dst: &mut [MaybeUninit<u8>],
) -> Result<Written, CodecError> {
    let length = lz4_length(src)?;
    let capacity = c_int::try_from(dst.len()).unwrap_or(c_int::MAX);
    let (from, to) = (src.as_ptr().cast(), dst.as_mut_ptr().cast());
    // SAFETY: both pointers are valid for the lengths given with them; LZ4 only writes to dst, and takes any
    // acceleration.
    let written = unsafe { lz4_sys::LZ4_compress_fast(from, to, length, capacity, acceleration) };
    lz4_written(written, dst.len())
}

/// The length of `src` as LZ4 wants it.
fn lz4_length(src: &[u8]) -> Result<c_int, CodecError> {
    c_int::try_from(src.len()).ok().filter(|_| src.len() <= LZ4_MAX_INPUT_BYTES).ok_or(
        CodecError::InputTooLarge { codec: CodecId::Lz4, length: src.len(), limit: LZ4_MAX_INPUT_BYTES },
    )
}

/// What LZ4 says of a compression.
fn lz4_written(written: c_int, capacity: usize) -> Result<Written, CodecError> {
    match usize::try_from(written) {
        Ok(written) if written > 0 => Ok(Written(written)),
        _ => Err(CodecError::OutputTooSmall { capacity }),
    }
}

/// [`lz4_compress`] with the table of 32-bit positions that LZ4 keeps for streams; `dst` holds any result.
fn lz4_compress_as_stream(
    src: &[u8],
    length: c_int,
    dst: &mut [MaybeUninit<u8>],
) -> Result<c_int, CodecError> {
    // SAFETY: the stream is made, used once and freed here; src is valid for length, and dst has at least the bytes
    // of the bound, which is what LZ4_compress_continue takes for granted.
    unsafe {
        let stream = lz4_sys::LZ4_createStream();
        if stream.is_null() {
            return Err(CodecError::OutOfMemory { bytes: 0 });
        }
        let written = lz4_sys::LZ4_compress_continue(stream, src.as_ptr(), dst.as_mut_ptr().cast(), length);
        lz4_sys::LZ4_freeStream(stream);
        Ok(written)
    }
}

/// Decompresses one LZ4 block into `dst`, which it must fill exactly.
pub(crate) fn lz4_decompress<'d>(
    src: &[u8],
    dst: &'d mut [MaybeUninit<u8>],
) -> Result<&'d mut [u8], CodecError> {
    let corrupt = |reason| CodecError::Corrupt { codec: CodecId::Lz4, length: src.len(), reason };
    let (Ok(length), Ok(capacity)) = (c_int::try_from(src.len()), c_int::try_from(dst.len())) else {
        return Err(corrupt("longer than an lz4 block can be"));
    };
    // SAFETY: both pointers are valid for the lengths given with them; LZ4_decompress_safe reads no byte past src,
    // writes none past dst, and reads back only what it wrote there itself.
    let written = unsafe {
        lz4_sys::LZ4_decompress_safe(src.as_ptr().cast(), dst.as_mut_ptr().cast(), length, capacity)
    };
    match usize::try_from(written) {
        // SAFETY: LZ4 has written as many bytes as there are.
        Ok(written) if written == dst.len() => Ok(unsafe { assume_written(dst) }),
        Ok(_) => Err(CodecError::RawLength { expected: dst.len() }),
        // LZ4 has one answer for damage and for output that does not fit.
        Err(_) => Err(corrupt("bad sequence or more bytes than promised")),
    }
}

/// Copies `src` to the start of `dst`.
pub(crate) fn copy(src: &[u8], dst: &mut [MaybeUninit<u8>]) -> Result<Written, CodecError> {
    let capacity = dst.len();
    let dst = dst.get_mut(..src.len()).ok_or(CodecError::OutputTooSmall { capacity })?;
    // SAFETY: u8 and MaybeUninit<u8> have the same layout, and initialised bytes are valid as both.
    let src: &[MaybeUninit<u8>] = unsafe { std::slice::from_raw_parts(src.as_ptr().cast(), src.len()) };
    dst.copy_from_slice(src);
    Ok(Written(src.len()))
}

/// Copies past the cache, where the processor can: the bytes go to memory without the lines that they replace being
/// read, and without pushing out what the cache holds. Done when this is dropped.
pub struct PastCache(());

impl PastCache {
    /// A copier that has copied nothing yet.
    #[must_use]
    #[allow(clippy::new_without_default)] // What counts is where it ends.
    pub fn new() -> PastCache {
        PastCache(())
    }

    /// Copies as many bytes as the shorter of both has.
    #[cfg(target_arch = "x86_64")]
    pub fn copy(&mut self, src: &[u8], dst: &mut [u8]) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

        let length = src.len().min(dst.len());
        // What is written past the cache has to be aligned.
        let ahead = dst.as_ptr().align_offset(size_of::<__m128i>()).min(length);
        let (src_first, src) = src[..length].split_at(ahead);
        let (first, dst) = dst[..length].split_at_mut(ahead);
        first.copy_from_slice(src_first);
        let (src_lines, src_last) = src.as_chunks::<64>();
        let (lines, last) = dst.as_chunks_mut::<64>();
        for (src_line, line) in src_lines.iter().zip(lines) {
            let (from, to) = (src_line.as_ptr().cast::<__m128i>(), line.as_mut_ptr().cast::<__m128i>());
            for at in 0..64 / size_of::<__m128i>() {
                // SAFETY: both lines have 64 bytes, `to` is aligned, and SSE2 is part of the architecture; the fence
                // in `drop` puts the stores in order with others.
                unsafe { _mm_stream_si128(to.add(at), _mm_loadu_si128(from.add(at))) };
            }
        }
        last.copy_from_slice(src_last);
    }

    /// Copies as many bytes as the shorter of both has.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn copy(&mut self, src: &[u8], dst: &mut [u8]) {
        let length = src.len().min(dst.len());
        dst[..length].copy_from_slice(&src[..length]);
    }
}

impl Drop for PastCache {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of the architecture.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Copies `src` into `dst`, which it must fill exactly.
pub(crate) fn copy_exactly<'d>(
    src: &[u8],
    dst: &'d mut [MaybeUninit<u8>],
) -> Result<&'d mut [u8], CodecError> {
    if src.len() != dst.len() {
        return Err(CodecError::RawLength { expected: dst.len() });
    }
    copy(src, dst)?;
    // SAFETY: the copy covers all of it, the lengths being equal.
    Ok(unsafe { assume_written(dst) })
}

/// Fills `dst` by pieces: `next` is given what is left of it, and writes to its start, until nothing is left.
pub(crate) fn fill_exactly(
    dst: &mut [MaybeUninit<u8>],
    mut next: impl FnMut(&mut [MaybeUninit<u8>]) -> Result<Written, CodecError>,
) -> Result<&mut [u8], CodecError> {
    let mut filled = 0;
    while filled < dst.len() {
        match next(&mut dst[filled..])?.count() {
            0 => return Err(CodecError::OutputTooSmall { capacity: dst.len() }),
            count => filled += count,
        }
    }
    // SAFETY: a Written is only made by this module, for bytes that were written at the start of the slice.
    Ok(unsafe { assume_written(dst) })
}

/// Fills output memory with zero bytes, for those who want bytes that they may read.
pub(crate) fn zeroed(dst: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    dst.fill(MaybeUninit::new(0));
    // SAFETY: every byte was just written.
    unsafe { assume_written(dst) }
}

/// Lets `body` write behind the first `head_length` bytes of `dst`, then copies the head it returns in front.
pub(crate) fn write_framed(
    dst: &mut [MaybeUninit<u8>],
    head_length: usize,
    body: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<(Vec<u8>, Written), CodecError>,
) -> Result<Written, CodecError> {
    let too_small = CodecError::OutputTooSmall { capacity: dst.len() };
    let (head, rest) = dst.split_at_mut_checked(head_length).ok_or(too_small)?;
    let (bytes, Written(body_length)) = body(rest)?;
    copy_exactly(&bytes, head)?;
    Ok(Written(head_length + body_length))
}

/// Views initialised memory as output memory.
///
/// Only functions of this module, which never store uninitialised bytes, may be given the view.
pub(crate) fn as_output(dst: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the layouts are the same; every writer of this module stores initialised bytes only.
    unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) }
}

/// Views output memory as bytes.
///
/// # Safety
///
/// Every byte of `dst` must have been written.
unsafe fn assume_written(dst: &mut [MaybeUninit<u8>]) -> &mut [u8] {
    // SAFETY: the layouts are the same, and the caller says that all of it is initialised.
    unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) }
}

/// Lets `write` put up to `room` bytes behind what `out` holds.
pub(crate) fn append_with(
    out: &mut Vec<u8>,
    room: usize,
    write: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<Written, CodecError>,
) -> Result<(), CodecError> {
    out.try_reserve(room).map_err(|_| CodecError::OutOfMemory { bytes: room })?;
    let spare = &mut out.spare_capacity_mut()[..room];
    let written = write(spare)?.count().min(room);
    // SAFETY: a Written is only made by this module, for bytes that were written at the start of the slice.
    unsafe { out.set_len(out.len() + written) };
    Ok(())
}

/// Lets `fill` write exactly `length` bytes behind what `out` holds; it hands back the slice it was given.
pub(crate) fn append_exactly(
    out: &mut Vec<u8>,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<&mut [u8], CodecError>,
) -> Result<(), CodecError> {
    append_with(out, length, |spare| {
        let start = spare.as_ptr().addr();
        let filled = fill(spare)?;
        if filled.as_ptr().addr() != start || filled.len() != length {
            return Err(CodecError::RawLength { expected: length });
        }
        Ok(Written(length))
    })
}
