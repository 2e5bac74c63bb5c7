//! Slices of the caller's memory, lent without a copy.

use std::sync::Arc;

use dwcp_codec::digest::Digest;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, EntryKind, Manifest};

use crate::{Source, StoreError};

/// Memory that is shared with the caller and must not change while it is sent.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A buffer that has a name.
pub struct NamedBuffer {
    /// The name.
    pub name: String,
    /// The content.
    pub bytes: SharedBytes,
    /// How many bytes an element has, where that is known.
    pub width: Option<u8>,
}

/// Named buffers as a source.
pub struct MemorySource {
    buffers: Vec<(SharedBytes, Option<u8>)>,
}

impl MemorySource {
    /// The manifest of `buffers`, sorted by name, and the source of their bytes.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] when a name, a size or their number is out of range.
    pub fn new(
        buffers: Vec<(String, SharedBytes)>,
        block_bytes: u32,
        limits: &Limits,
    ) -> Result<(Manifest, MemorySource), StoreError> {
        let named = buffers.into_iter().map(|(name, bytes)| NamedBuffer { name, bytes, width: None });
        MemorySource::with_widths(named.collect(), block_bytes, limits)
    }

    /// [`MemorySource::new`] of buffers of elements.
    ///
    /// # Errors
    /// Those of [`MemorySource::new`].
    pub fn with_widths(
        buffers: Vec<NamedBuffer>,
        block_bytes: u32,
        limits: &Limits,
    ) -> Result<(Manifest, MemorySource), StoreError> {
        let mut named = buffers;
        named.sort_by(|left, right| left.name.cmp(&right.name));
        let mut entries = Vec::with_capacity(named.len());
        let mut held = Vec::with_capacity(named.len());
        for NamedBuffer { name, bytes, width } in named {
            entries.push(Entry {
                kind: EntryKind::Buffer,
                path: name.into_bytes(),
                mode: 0,
                mtime_ns: 0,
                size: (*bytes).as_ref().len() as u64,
                target: Vec::new(),
                candidates: Vec::new(),
            });
            held.push((bytes, width));
        }
        Ok((Manifest::new(block_bytes, entries, limits)?, MemorySource { buffers: held }))
    }
}

impl Source for MemorySource {
    fn block<'a>(
        &'a self,
        entry: u32,
        offset: u64,
        len: u32,
        _scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        let range = || {
            let bytes = (*self.buffers.get(entry as usize)?.0).as_ref();
            let start = usize::try_from(offset).ok()?;
            bytes.get(start..start.checked_add(len as usize)?)
        };
        range().ok_or(StoreError::OutOfRange { entry, offset, length: u64::from(len) })
    }

    fn base<'a>(
        &'a self,
        entry: u32,
        _candidate: u8,
        offset: u64,
        len: u32,
        _scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError> {
        Err(StoreError::OutOfRange { entry, offset, length: u64::from(len) })
    }

    fn width(&self, entry: u32) -> Option<u8> {
        self.buffers.get(entry as usize)?.1
    }

    fn confirm(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn remember(&self, _digests: &[Digest]) -> Result<(), StoreError> {
        Ok(())
    }
}
