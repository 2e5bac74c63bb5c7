//! The receiver's half-told manifest.

use super::{Entry, Manifest, ManifestPart, bounded, check_block_bytes};
use crate::error::ProtoError;
use crate::frame::Offer;
use crate::limits::{Limits, MAX_MANIFEST_BYTES};

/// Collects the parts of a manifest, never more than was offered.
#[derive(Clone, Debug)]
pub struct ManifestAssembly {
    offer: Offer,
    limits: Limits,
    entries: Vec<Entry>,
    wire_bytes: u64,
}

impl ManifestAssembly {
    /// An empty manifest for `offer`.
    ///
    /// # Errors
    /// [`ProtoError`] when the offer is above the limits.
    pub fn new(offer: Offer, limits: &Limits) -> Result<ManifestAssembly, ProtoError> {
        check_block_bytes(offer.block_bytes, limits.max_block)?;
        bounded("entry count", u64::from(offer.entries), u64::from(limits.max_entries))?;
        Ok(ManifestAssembly { offer, limits: *limits, entries: Vec::new(), wire_bytes: 0 })
    }

    /// The offer.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Takes the next part; true when all entries are told.
    ///
    /// # Errors
    /// [`ProtoError`] when it does not follow the part before, or is more than was offered.
    pub fn push(&mut self, part: ManifestPart) -> Result<bool, ProtoError> {
        let expected = self.entries.len() as u32;
        if part.first_entry != expected {
            return Err(ProtoError::ManifestOrder { expected, found: part.first_entry });
        }
        self.wire_bytes += part.wire_bytes();
        bounded("manifest bytes", self.wire_bytes, MAX_MANIFEST_BYTES)?;
        let count = self.entries.len() + part.entries.len();
        bounded("entry count", count as u64, u64::from(self.offer.entries))?;
        self.entries.extend(part.entries);
        Ok(count == self.offer.entries as usize)
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// [`ProtoError`] for anything that [`Manifest::new`] refuses, or when it is not what was offered.
    pub fn finish(self) -> Result<Manifest, ProtoError> {
        let count = self.entries.len() as u32;
        if count != self.offer.entries {
            return Err(ProtoError::ManifestOrder { expected: self.offer.entries, found: count });
        }
        let manifest = Manifest::new(self.offer.block_bytes, self.entries, &self.limits)?;
        if manifest.total_bytes != self.offer.total_bytes {
            let (expected, actual) = (self.offer.total_bytes, manifest.total_bytes);
            return Err(ProtoError::TotalBytes { expected, actual });
        }
        if manifest.transfer_id != self.offer.transfer_id {
            let (expected, actual) = (self.offer.transfer_id, manifest.transfer_id);
            return Err(ProtoError::TransferId { expected, actual });
        }
        Ok(manifest)
    }
}
