//! Loops over whole blocks, in the widest instructions that the processor has.
//!
//! Each loop is written once in plain Rust and compiled for each [`Level`] of instructions; where the compiler finds no
//! good instructions by itself, a level has a loop of its own. On aarch64 the compiler makes NEON code of the plain
//! loops, so that there only the others are written for it.

pub(crate) mod changes;
pub(crate) mod element;
pub(crate) mod lines;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[allow(unsafe_code)] // Vector loads and stores, and calls of what every processor of the architecture has.
mod neon;
pub(crate) mod pair;
pub(crate) mod planes;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // Vector loads and stores, and calls that the processor has been asked about.
mod x86;

use std::sync::LazyLock;

/// Bytes that are compared at a time: a cache line.
pub(crate) const LINE_BYTES: usize = 64;

type Line = [u8; LINE_BYTES];

/// The instructions that may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// Those of every processor of the architecture.
    Portable,
    /// AVX2 and the bit manipulation of its time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with byte compression (VBMI2).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON by hand, not by the compiler.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
}

impl Level {
    /// The best of this processor.
    pub(crate) fn detected() -> Level {
        static DETECTED: LazyLock<Level> =
            LazyLock::new(|| Level::available().last().copied().unwrap_or(Level::Portable));
        *DETECTED
    }

    /// All that this processor has, the best last.
    pub(crate) fn available() -> Vec<Level> {
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_mut))]
        let mut available = vec![Level::Portable];
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        available.push(Level::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx2() {
                available.push(Level::Avx2);
            }
            if x86::has_avx512() {
                available.push(Level::Avx512);
            }
        }
        available
    }
}
