//! Memory that several threads fill at once, each its own range. The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use crate::StoreError;
use crate::stripes::Stripes;

/// Memory that a received buffer is written into.
///
/// # Safety
/// From the moment the buffer is handed to a sink until it is given back or dropped, [`pointer`](Self::pointer) must
/// return the same pointer, valid for reads and writes of [`length`](Self::length) initialised bytes, `length` must
/// not change, and nobody else may read or write that memory.
pub unsafe trait TargetBuffer: Send + Sync {
    /// The first byte.
    fn pointer(&self) -> *mut u8;

    /// How many bytes there are.
    fn length(&self) -> usize;

    /// The bytes as a vector, if this buffer is one; `None` drops the buffer.
    fn into_vec(self: Box<Self>) -> Option<Vec<u8>> {
        None
    }
}

/// A buffer on the heap, zeroed.
pub struct OwnedBuffer {
    pointer: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory and gives it out only as a raw pointer; who uses that answers for it.
unsafe impl Send for OwnedBuffer {}
// SAFETY: as for Send; no method reads or writes the memory through a shared reference.
unsafe impl Sync for OwnedBuffer {}

impl OwnedBuffer {
    /// A buffer of `length` zero bytes, which cost no memory before they are written.
    ///
    /// # Errors
    /// [`StoreError::Limit`] when the memory cannot be had.
    pub fn zeroed(length: u64) -> Result<OwnedBuffer, StoreError> {
        let limit = StoreError::Limit { what: "buffer length", value: length, limit: isize::MAX as u64 };
        let Ok(length) = usize::try_from(length) else { return Err(limit) };
        let Ok(layout) = std::alloc::Layout::array::<u8>(length) else { return Err(limit) };
        if length == 0 {
            return Ok(OwnedBuffer { pointer: NonNull::dangling(), length });
        }
        // SAFETY: the layout has a size that is not 0.
        let pointer = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
        match pointer {
            Some(pointer) => Ok(OwnedBuffer { pointer, length }),
            None => Err(StoreError::OutOfMemory { needed: length as u64 }),
        }
    }

    fn as_vec(&mut self) -> Vec<u8> {
        // SAFETY: the memory came from the global allocator with the layout of a vector of this capacity (or it is the
        // dangling pointer of an empty one), all its bytes are initialised, and the callers never use it again.
        unsafe { Vec::from_raw_parts(self.pointer.as_ptr(), self.length, self.length) }
    }
}

impl Drop for OwnedBuffer {
    fn drop(&mut self) {
        drop(self.as_vec());
    }
}

// SAFETY: the pointer is the buffer's own allocation and stays until the buffer is dropped.
unsafe impl TargetBuffer for OwnedBuffer {
    fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    fn length(&self) -> usize {
        self.length
    }

    fn into_vec(self: Box<Self>) -> Option<Vec<u8>> {
        Some(ManuallyDrop::new(*self).as_vec())
    }
}

/// A target buffer and the locks that keep two threads from one block.
pub(crate) struct Region {
    buffer: Box<dyn TargetBuffer>,
    block_bytes: usize,
    stripes: Stripes,
}

impl Region {
    pub(crate) fn new(buffer: Box<dyn TargetBuffer>, block_bytes: u32) -> Region {
        Region { buffer, block_bytes: block_bytes.max(1) as usize, stripes: Stripes::new() }
    }

    /// Writes a whole block, then calls `written` before anybody else may touch it; false if the buffer has no such
    /// block.
    pub(crate) fn write_block(&self, block: u32, bytes: &[u8], written: impl FnOnce()) -> bool {
        self.with_block(block, |pointer, length| {
            if length != bytes.len() {
                return false;
            }
            // SAFETY: with_block gives a range of the buffer, valid for writes, that no other thread uses meanwhile;
            // `bytes` is a Rust slice and the buffer is nobody else's, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, length) };
            written();
            true
        })
        .unwrap_or(false)
    }

    /// Lends a block to `write`, of which anything may be left in it.
    pub(crate) fn edit_block<T>(&self, block: u32, write: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        self.with_block(block, |pointer, length| {
            // SAFETY: with_block gives a range of the buffer, valid for reads and writes, that no other thread uses
            // meanwhile, and the buffer is nobody else's.
            write(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
        })
    }

    /// Lends a block to `read`.
    pub(crate) fn read_block<T>(&self, block: u32, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.with_block(block, |pointer, length| {
            // SAFETY: with_block gives a range of the buffer, valid for reads, that no other thread uses meanwhile.
            read(unsafe { std::slice::from_raw_parts(pointer, length) })
        })
    }

    pub(crate) fn into_buffer(self) -> Box<dyn TargetBuffer> {
        self.buffer
    }

    /// Calls `work` with the pointer to a block and its length, holding the block's lock.
    fn with_block<T>(&self, block: u32, work: impl FnOnce(*mut u8, usize) -> T) -> Option<T> {
        let start = (block as usize).checked_mul(self.block_bytes)?;
        let length = self.buffer.length().checked_sub(start).filter(|rest| *rest > 0)?.min(self.block_bytes);
        // Blocks are disjoint, so two threads meet only in the same block, and that has one stripe.
        let _held = self.stripes.lock(block.into());
        // SAFETY: start + length is within the buffer.
        Some(work(unsafe { self.buffer.pointer().add(start) }, length))
    }
}
