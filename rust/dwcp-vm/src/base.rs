//! An earlier copy of the machine that the destination holds, known to the source by the digests of its pages.

use std::collections::HashMap;

use dwcp_codec::Digest;

use crate::Page;
use crate::error::VmError;

/// What the source knows of the base.
#[derive(Debug, Default)]
pub struct BaseIndex {
    blocks: Vec<Vec<Digest>>,
    by_name: HashMap<Vec<u8>, usize>,
    /// The first page with each digest: the number of its block in the base, and its own.
    by_digest: HashMap<Digest, (u16, u32)>,
}

impl BaseIndex {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> BaseIndex {
        BaseIndex::default()
    }

    /// Adds the next block of RAM, of which all pages have these digests; of two with the same name the first counts.
    pub fn push(&mut self, name: Vec<u8>, digests: Vec<Digest>) {
        let Ok(block) = u16::try_from(self.blocks.len()) else { return };
        for (number, digest) in (0_u32..).zip(&digests) {
            self.by_digest.entry(*digest).or_insert((block, number));
        }
        self.by_name.entry(name).or_insert(self.blocks.len());
        self.blocks.push(digests);
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.blocks.iter().map(|digests| digests.len() as u64).sum()
    }

    /// Whether the page of this place has this digest.
    pub(crate) fn holds(&self, name: &[u8], number: u64, digest: &Digest) -> bool {
        let block = self.by_name.get(name).and_then(|block| self.blocks.get(*block));
        let there = block.and_then(|digests| digests.get(usize::try_from(number).ok()?));
        there == Some(digest)
    }

    /// Where there is a page with this digest.
    pub(crate) fn find(&self, digest: &Digest) -> Option<(u16, u32)> {
        self.by_digest.get(digest).copied()
    }
}

/// What the destination reads of the base.
pub trait BasePages: Send {
    /// Reads page `number` of the block of RAM called `name`.
    ///
    /// # Errors
    /// [`VmError::Base`] if there is none.
    fn read(&mut self, name: &[u8], number: u64, page: &mut Page) -> Result<(), VmError>;

    /// Reads page `number` of block `block` of the base, counted as the source was told of them.
    ///
    /// # Errors
    /// [`VmError::Base`] if there is none.
    fn read_at(&mut self, block: u16, number: u32, page: &mut Page) -> Result<(), VmError>;
}

/// There is no base.
pub struct NoBase;

impl BasePages for NoBase {
    fn read(&mut self, name: &[u8], number: u64, _page: &mut Page) -> Result<(), VmError> {
        let block = String::from_utf8_lossy(name).into_owned();
        Err(VmError::Base { block, number, reason: "there is no base".to_owned() })
    }

    fn read_at(&mut self, block: u16, number: u32, page: &mut Page) -> Result<(), VmError> {
        self.read(block.to_string().as_bytes(), number.into(), page)
    }
}
