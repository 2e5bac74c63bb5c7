//! Where the blocks of a transfer come from.

use dwcp_codec::digest::Digest;

use crate::StoreError;

/// The objects of a manifest, read block by block.
pub trait Source: Send + Sync {
    /// The `len` bytes of an entry at `offset`: the whole range, or an error.
    ///
    /// They are either borrowed from the source or read into `scratch`, whose former content is lost.
    ///
    /// # Errors
    /// [`StoreError::SourceChanged`] when the object is shorter than it was, [`StoreError::OutOfRange`] when there is
    /// no such range, [`StoreError::Io`] when it cannot be read.
    fn block<'a>(
        &'a self,
        entry: u32,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError>;

    /// Up to `len` bytes of an entry's candidate base at `offset`: fewer at its end, none behind it.
    ///
    /// # Errors
    /// [`StoreError::SourceChanged`] when the base is not what it was when it was chosen,
    /// [`StoreError::OutOfRange`] when there is no such candidate, [`StoreError::Io`] when it cannot be read.
    fn base<'a>(
        &'a self,
        entry: u32,
        candidate: u8,
        offset: u64,
        len: u32,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StoreError>;

    /// How many bytes an element of an entry has, where whoever gave it knows.
    fn width(&self, entry: u32) -> Option<u8> {
        let _ = entry;
        None
    }

    /// Called after the last block was read: are all objects still what they were when the manifest was made?
    ///
    /// # Errors
    /// [`StoreError::SourceChanged`] naming the first that is not.
    fn confirm(&self) -> Result<(), StoreError>;

    /// Remembers, once the transfer is committed, the tree digest of each entry of the manifest (in its order), so
    /// that a later transfer may use the objects as bases.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the record cannot be written; the transfer is good nevertheless.
    fn remember(&self, digests: &[Digest]) -> Result<(), StoreError>;
}
