//! Elements split into byte planes and joined again, changed on the way.

use super::Level;
use super::element::{Element, with_element};

/// Elements handled at a time: enough for whole vectors, few enough to stay in registers and the first cache.
const TILE: usize = 64;

/// What is done to an element before its bytes are split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transform {
    /// Nothing.
    Keep,
    /// Rotated left by one bit.
    Rotate,
    /// XOR with the base's element.
    Xor,
    /// Zigzag of the difference to the base's element.
    Zigzag,
    /// Zigzag of the difference of the base's element to it.
    ZigzagBack,
}

/// Writes the bytes 0 of all elements of `src` to the start of `planes`, then the bytes 1, and so on.
///
/// `base` is as long as `src`, where the transform uses it, and `planes` as long as the whole elements of `width`
/// bytes (1, 2, 4 or 8); the bytes after the last are left out.
pub(crate) fn split(
    level: Level,
    transform: Transform,
    width: usize,
    src: &[u8],
    base: &[u8],
    planes: &mut [u8],
) {
    match level {
        Level::Portable => split_portable(transform, width, src, base, planes),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::split_avx2(transform, width, src, base, planes),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::split_avx512(transform, width, src, base, planes),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::split_neon(transform, width, src, base, planes),
    }
}

#[inline(always)]
pub(super) fn split_portable(transform: Transform, width: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
    split_from(transform, width, 0, src, base, planes);
}

/// [`split`] from the element at byte `start` on.
#[inline(always)]
pub(super) fn split_from(
    transform: Transform,
    width: usize,
    start: usize,
    src: &[u8],
    base: &[u8],
    planes: &mut [u8],
) {
    with_element!(width, E => split_any::<E>(transform, start, src, base, planes));
}

#[inline(always)]
fn split_any<E: Element>(transform: Transform, start: usize, src: &[u8], base: &[u8], planes: &mut [u8]) {
    match transform {
        Transform::Keep => split_with(start, src, src, planes, |src: E, _| src),
        Transform::Rotate => split_with(start, src, src, planes, |src: E, _| src.rotate()),
        Transform::Xor => split_with(start, src, base, planes, E::xor),
        Transform::Zigzag => split_with(start, src, base, planes, E::zigzag_from),
        Transform::ZigzagBack => split_with(start, src, base, planes, |src: E, base| base.zigzag_from(src)),
    }
}

#[inline(always)]
fn split_with<E: Element>(
    start: usize,
    src: &[u8],
    base: &[u8],
    planes: &mut [u8],
    change: impl Fn(E, E) -> E,
) {
    let (count, first) = (src.len() / E::WIDTH, start / E::WIDTH);
    let tiles = src[start..].chunks(TILE * E::WIDTH).zip(base[start..].chunks(TILE * E::WIDTH));
    for (tile, (src, base)) in tiles.enumerate() {
        let mut changed = [E::default(); TILE];
        let elements = src.chunks_exact(E::WIDTH).zip(base.chunks_exact(E::WIDTH));
        for (changed, (src, base)) in changed.iter_mut().zip(elements) {
            *changed = change(E::read(src), E::read(base));
        }
        let changed = &changed[..src.len() / E::WIDTH];
        for position in 0..E::WIDTH {
            let plane = &mut planes[position * count + first + tile * TILE..][..changed.len()];
            for (byte, changed) in plane.iter_mut().zip(changed) {
                *byte = changed.byte(position);
            }
        }
    }
}

/// The inverse of [`split`]: writes the elements whose bytes stand in `planes` to `dst`, which holds the base where
/// the transform uses one. Each plane has as many bytes as `dst` has whole elements.
pub(crate) fn join(level: Level, transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
    match level {
        Level::Portable => join_portable(transform, width, planes, dst),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::x86::join_avx2(transform, width, planes, dst),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::x86::join_avx512(transform, width, planes, dst),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => super::neon::join_neon(transform, width, planes, dst),
    }
}

#[inline(always)]
pub(super) fn join_portable(transform: Transform, width: usize, planes: &[&[u8]; 8], dst: &mut [u8]) {
    join_from(transform, width, 0, planes, dst);
}

/// [`join`] from the element at byte `start` on.
#[inline(always)]
pub(super) fn join_from(
    transform: Transform,
    width: usize,
    start: usize,
    planes: &[&[u8]; 8],
    dst: &mut [u8],
) {
    let (dst, first) = (&mut dst[start..], start / width);
    with_element!(width, E => join_any::<E, { E::WIDTH }>(transform, first, planes, dst));
}

#[inline(always)]
fn join_any<E: Element, const W: usize>(
    transform: Transform,
    first: usize,
    planes: &[&[u8]; 8],
    dst: &mut [u8],
) {
    let (elements, _) = dst.as_chunks_mut::<W>();
    // Equal lengths, known to the compiler.
    let planes: [&[u8]; W] = std::array::from_fn(|position| &planes[position][first..][..elements.len()]);
    match transform {
        Transform::Keep => join_with(planes, elements, |changed: E, _| changed),
        Transform::Rotate => join_with(planes, elements, |changed: E, _| changed.rotate_back()),
        Transform::Xor => join_with(planes, elements, E::xor),
        Transform::Zigzag => join_with(planes, elements, E::zigzag_onto),
        Transform::ZigzagBack => {
            join_with(planes, elements, |back: E, base| back.reversed_zigzag().zigzag_onto(base));
        }
    }
}

#[inline(always)]
fn join_with<E: Element, const W: usize>(
    planes: [&[u8]; W],
    dst: &mut [[u8; W]],
    change: impl Fn(E, E) -> E,
) {
    for (i, dst) in dst.iter_mut().enumerate() {
        let mut changed = E::default();
        for (position, plane) in planes.iter().enumerate() {
            changed = changed.xor(E::of_byte(plane[i], position));
        }
        change(changed, E::read(dst)).write(dst);
    }
}
