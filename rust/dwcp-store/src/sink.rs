//! Where the blocks of a transfer go.

use std::sync::Arc;

use dwcp_codec::digest::Digest;
use dwcp_proto::frame::{Have, HaveSource};
use dwcp_proto::limits::WRITTEN_RUN;
use dwcp_proto::manifest::Manifest;

use crate::{StoreError, Tick};

/// What a sink holds already of a transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The HAVE frames that announce it: per entry the staged blocks first, then the base.
    pub haves: Vec<Have>,
    /// Bytes of the staged blocks in them.
    pub staged_bytes: u64,
}

/// The place of a block, lent to whoever receives it right into there. It may be dropped at any time: whatever stands
/// there, the block has not come until it is proven.
#[derive(Debug)]
pub struct Claim {
    pub(crate) entry: u32,
    pub(crate) block: u32,
    pub(crate) number: u64,
}

/// What came of a block that was received into its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is stored, by this or by somebody who was sooner.
    Stored,
    /// What stands there is something else.
    Differs,
    /// The place is not lent any more, and the block is not there.
    Lost,
}

/// The objects of a manifest, growing block by block, seen by nobody before [`Sink::commit`].
///
/// [`Sink::store`], [`Sink::base`] and what has to do with a [`Claim`] may be called from many threads at once. The others
/// are for one thread, while no other is inside the sink.
pub trait Sink: Send + Sync {
    /// Checks that the manifest can be put in place, makes a staging place for it, finds what is staged already and
    /// what can serve as a base (only if `base_allowed`).
    ///
    /// Work on another transfer is aborted first. Every block announced as staged was read again and hashed.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Exists`], [`StoreError::NoSpace`], [`StoreError::Limit`] when the
    /// manifest cannot be taken, [`StoreError::Busy`] when another sink works on it, [`StoreError::Io`], and whatever
    /// `tick` returns.
    fn prepare(
        &self,
        manifest: &Arc<Manifest>,
        base_allowed: bool,
        tick: &mut Tick<'_>,
    ) -> Result<Prepared, StoreError>;

    /// Stores a verified block and records its digest. A block may come more than once; one that comes after the
    /// commit is dropped.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] when it is no block of the entry, [`StoreError::NotPrepared`], [`StoreError::Io`].
    fn store(&self, entry: u32, offset: u64, block: &[u8], digest: Digest) -> Result<(), StoreError>;

    /// Lends the place of a block of `length` bytes that is to be received without a copy, if it is in memory, the block
    /// has not come, and nobody else was lent it. [`Sink::store`] of the same block ends that.
    fn claim(&self, _entry: u32, _offset: u64, _length: u32) -> Option<Claim> {
        None
    }

    /// Has `fill` put bytes into the place from `at` on, while nobody else is there. False: it is not lent any more.
    fn fill(&self, _claim: &Claim, _at: usize, _fill: &mut dyn FnMut(&mut [u8])) -> bool {
        false
    }

    /// Stores the block that was put into the place, all of it, if the digest that was `found` on the way is this one.
    fn prove(&self, _claim: Claim, _found: Digest, _digest: Digest) -> Proof {
        Proof::Lost
    }

    /// Fills `dst` with the announced base's bytes at `offset`, zero bytes behind its end. False: there is no base,
    /// or it is not any more what was announced.
    ///
    /// # Errors
    /// [`StoreError::NotPrepared`], or [`StoreError::Io`] when the base cannot be read.
    fn base(&self, entry: u32, offset: u64, dst: &mut [u8]) -> Result<bool, StoreError>;

    /// Puts everything in place; to be called when all blocks are stored and all digests were compared.
    ///
    /// After an error it may be called again: what was put in place stays, what was not is as it was before.
    ///
    /// # Errors
    /// [`StoreError::NotPrepared`], [`StoreError::Exists`], [`StoreError::Refused`], [`StoreError::Io`], and whatever
    /// `tick` returns.
    fn commit(&self, tick: &mut Tick<'_>) -> Result<(), StoreError>;

    /// Throws away what is staged of `entries`, because it is not what the sender meant.
    ///
    /// # Errors
    /// [`StoreError::NotPrepared`], [`StoreError::Io`].
    fn discard(&self, entries: &[u32]) -> Result<(), StoreError>;

    /// Ends the work, keeping what is staged for a later `prepare`.
    fn abort(&self);
}

/// The HAVE frames that tell the blocks of an entry whose digest is given.
pub(crate) fn haves_of_blocks(entry: u32, source: HaveSource, digests: &[Option<Digest>]) -> Vec<Have> {
    let mut haves: Vec<Have> = Vec::new();
    for (block, digest) in digests.iter().enumerate() {
        let Some(digest) = *digest else { continue };
        let block = block as u32;
        match haves.last_mut() {
            Some(have)
                if have.first_block + have.digests.len() as u32 == block
                    && have.digests.len() < WRITTEN_RUN =>
            {
                have.digests.push(digest);
            }
            _ => haves.push(Have { entry, source, first_block: block, digests: vec![digest] }),
        }
    }
    haves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_gaps_and_at_the_longest_run_of_a_frame() {
        let digest = Digest::of(b"block");
        let mut digests = vec![Some(digest); WRITTEN_RUN + 3];
        digests[1] = None;
        let haves = haves_of_blocks(7, HaveSource::Staged, &digests);
        let runs: Vec<_> = haves.iter().map(|have| (have.first_block as usize, have.digests.len())).collect();
        assert_eq!(runs, [(0, 1), (2, WRITTEN_RUN), (WRITTEN_RUN + 2, 1)]);
        assert!(haves_of_blocks(7, HaveSource::Staged, &[None, None]).is_empty());
    }
}
