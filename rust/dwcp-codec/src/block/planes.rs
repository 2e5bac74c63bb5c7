//! Payloads of planes and differences.

use super::WIDTHS;
use super::decode::Way;
use crate::codec::Decompressor;
use crate::error::CodecError;
use crate::kernel::Level;
use crate::kernel::planes::{Transform, join, split};
use crate::stream::{Content, PayloadReader, StreamEncoder};

/// Appends the payload: `planes` is room for the planes.
pub(super) fn append(
    transform: Transform,
    width: usize,
    src: &[u8],
    base: &[u8],
    planes: &mut Vec<u8>,
    streams: &mut StreamEncoder,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let count = src.len() / width;
    let whole = count * width;
    if planes.len() < whole {
        planes.resize(whole, 0);
    }
    let planes = &mut planes[..whole];
    split(Level::detected(), transform, width, src, base, planes);
    out.push(mode(transform, width));
    let content = if width == 1 { Content::Bytes } else { Content::Codes };
    if count > 0 {
        for plane in planes.chunks(count) {
            streams.append(plane, content, out)?;
        }
    }
    out.extend_from_slice(&src[whole..]);
    Ok(())
}

fn mode(transform: Transform, width: usize) -> u8 {
    let second = matches!(transform, Transform::Rotate | Transform::Zigzag);
    width.trailing_zeros() as u8 | u8::from(second) << 2
}

/// Decodes a payload to `dst`, which holds the base if `differs`, or then the other way: without a tail to the base.
/// On an error `dst` is as it was.
pub(super) fn decode(
    way: Way,
    differs: bool,
    payload: &[u8],
    decompressor: &mut Decompressor,
    scratch: &mut [Vec<u8>; 8],
    dst: &mut [u8],
) -> Result<(), CodecError> {
    let mut reader = PayloadReader::new(payload);
    let mode = reader.byte("mode")?;
    let transform = match (differs, mode >> 2) {
        (false, 0) => Transform::Keep,
        (false, 1) => Transform::Rotate,
        (true, 0) => Transform::Xor,
        (true, 1) if way == Way::ToBase => Transform::ZigzagBack,
        (true, 1) => Transform::Zigzag,
        _ => return Err(CodecError::UnknownMode { mode }),
    };
    let width = usize::from(WIDTHS[usize::from(mode & 3)]);
    let count = dst.len() / width;
    let mut planes: [&[u8]; 8] = [&[]; 8];
    for (plane, scratch) in planes.iter_mut().zip(scratch).take(width) {
        *plane = reader.stream("byte plane", count, decompressor, scratch)?;
    }
    let whole = count * width;
    let tail = reader.bytes("tail", dst.len() - whole)?;
    reader.finish()?;
    join(Level::detected(), transform, width, &planes, &mut dst[..whole]);
    dst[whole..].copy_from_slice(tail);
    Ok(())
}
