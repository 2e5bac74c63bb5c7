//! A machine's live migration as bytes: what in QEMU's stream is a guest page, and how pages are told to a peer that
//! has seen the pages before.
//!
//! Nothing here does I/O or reads a clock. [`PageEncoder`] makes chunks of a stream, [`PageDecoder`] makes the stream of
//! the chunks again, byte for byte, whatever the stream is: what is not understood only costs more bytes. The format is
//! in `docs/format.md`, Pages of a machine.
#![forbid(unsafe_code)]

mod base;
mod cache;
mod chunk;
mod decode;
mod encode;
mod error;
mod follow;
mod stream;
#[cfg(test)]
mod tests;

pub use base::{BaseIndex, BasePages, NoBase};
pub use chunk::{MAX_CHUNK_BYTES, MAX_STREAM_BYTES};
pub use decode::PageDecoder;
pub use encode::{PageCounts, PageEncoder};
pub use error::VmError;
pub use stream::{MAX_ITEM_BYTES, PAGE_BYTES};

/// Takes note of every page as it was last sent, so that it can serve as a base later.
pub trait Keep: Send {
    /// Page `number` of the block of RAM that is called `block` has this content now; none if it is all zeros.
    fn page(&mut self, block: &[u8], number: u64, content: Option<&[u8]>);
}

/// One page of guest memory.
pub type Page = [u8; PAGE_BYTES];
