//! Buffers that grow block by block and are given out when the transfer is committed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dwcp_codec::digest::Digest;
use dwcp_proto::frame::HaveSource;
use dwcp_proto::manifest::{EntryKind, Manifest};

use super::region::{OwnedBuffer, Region, TargetBuffer};
use crate::error::refuse;
use crate::sink::haves_of_blocks;
use crate::{Claim, Prepared, Proof, Refusal, Sink, StoreError, Tick};

/// Received buffers by name, in the order of the manifest.
pub type NamedBuffers = Vec<(String, Box<dyn TargetBuffer>)>;

/// Gives the memory that a named buffer is received into.
pub trait BufferProvider: Send + Sync {
    /// A buffer of exactly `size` bytes for `name`, or an error to refuse the transfer.
    ///
    /// # Errors
    /// Any [`StoreError`]; it ends the transfer.
    fn provide(&self, name: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError>;
}

/// Allocates every buffer.
struct Allocator;

impl BufferProvider for Allocator {
    fn provide(&self, _name: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError> {
        Ok(Box::new(OwnedBuffer::zeroed(size)?))
    }
}

/// Receives buffers into memory.
pub struct MemorySink {
    max_bytes: u64,
    provider: Box<dyn BufferProvider>,
    /// Read while a block is stored, so that nothing is given out that somebody still writes to.
    work: RwLock<Option<Work>>,
    /// Of the next claim: no two have the same number, whatever they are on.
    next_claim: AtomicU64,
}

struct Work {
    manifest: Arc<Manifest>,
    objects: Vec<Object>,
    stage: Stage,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Stage {
    Open,
    Committed,
    /// The buffers were given out. What is left tells a block that comes late from one of no transfer.
    Taken,
}

struct Object {
    name: String,
    region: Region,
    /// The digests of the blocks stored so far.
    stored: Mutex<Vec<Option<Digest>>>,
    /// The blocks whose places are lent, and to which claim. Changed only by whoever holds the block in the region, so that
    /// nothing is ever written over a block that is stored but a copy of it that is proven too.
    claims: Mutex<HashMap<u32, u64>>,
}

impl Work {
    /// The object that a claim is on, while blocks may come.
    fn claimed(&self, claim: &Claim) -> Option<&Object> {
        if self.stage == Stage::Open { self.objects.get(claim.entry as usize) } else { None }
    }
}

impl Object {
    /// Whether a claim still holds; to be asked by whoever holds its block.
    fn lends(&self, claim: &Claim) -> bool {
        lock(&self.claims).get(&claim.block) == Some(&claim.number)
    }
}

impl MemorySink {
    /// A sink that allocates its buffers, up to `max_bytes` for all of a transfer.
    #[must_use]
    pub fn new(max_bytes: u64) -> MemorySink {
        MemorySink::with_provider(max_bytes, Box::new(Allocator))
    }

    /// A sink that writes into the buffers that `provider` gives, up to `max_bytes` for all of a transfer.
    #[must_use]
    pub fn with_provider(max_bytes: u64, provider: Box<dyn BufferProvider>) -> MemorySink {
        MemorySink { max_bytes, provider, work: RwLock::new(None), next_claim: AtomicU64::new(0) }
    }

    /// The buffers, once they are committed. They can be taken once.
    ///
    /// # Errors
    /// [`StoreError::NotPrepared`] when nothing is committed.
    pub fn take_buffers(&self) -> Result<NamedBuffers, StoreError> {
        let mut slot = self.write();
        let Some(work) = slot.as_mut().filter(|work| work.stage == Stage::Committed) else {
            return Err(StoreError::NotPrepared { action: "take buffers" });
        };
        work.stage = Stage::Taken;
        let objects = std::mem::take(&mut work.objects);
        Ok(objects.into_iter().map(|object| (object.name, object.region.into_buffer())).collect())
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Work>> {
        self.work.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Work>> {
        self.work.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, manifest: &Arc<Manifest>, tick: &mut Tick<'_>) -> Result<Work, StoreError> {
        let total = manifest.total_bytes();
        if total > self.max_bytes {
            return Err(StoreError::Limit {
                what: "size of all buffers",
                value: total,
                limit: self.max_bytes,
            });
        }
        let mut objects = Vec::with_capacity(manifest.entries().len());
        for (index, entry) in manifest.entries().iter().enumerate() {
            tick()?;
            let shown = || PathBuf::from(String::from_utf8_lossy(&entry.path).into_owned());
            if entry.kind != EntryKind::Buffer {
                return Err(refuse(shown(), Refusal::FileInMemory));
            }
            let Ok(name) = str::from_utf8(&entry.path) else { return Err(refuse(shown(), Refusal::Name)) };
            let buffer = self.provider.provide(name, entry.size)?;
            if buffer.length() as u64 != entry.size {
                return Err(refuse(shown(), Refusal::BufferLength));
            }
            objects.push(Object {
                name: name.to_owned(),
                region: Region::new(buffer, manifest.block_bytes()),
                stored: Mutex::new(vec![None; manifest.blocks_of(index as u32) as usize]),
                claims: Mutex::default(),
            });
        }
        Ok(Work { manifest: Arc::clone(manifest), objects, stage: Stage::Open })
    }
}

impl Sink for MemorySink {
    fn prepare(
        &self,
        manifest: &Arc<Manifest>,
        _base_allowed: bool,
        tick: &mut Tick<'_>,
    ) -> Result<Prepared, StoreError> {
        let mut slot = self.write();
        let id = manifest.transfer_id();
        let same = slot.take().filter(|work| work.manifest.transfer_id() == id && work.stage == Stage::Open);
        let Some(work) = same else {
            *slot = Some(self.make(manifest, tick)?);
            return Ok(Prepared::default());
        };
        let work = slot.insert(work);
        let mut prepared = Prepared::default();
        for (index, object) in work.objects.iter().enumerate() {
            let mut stored = lock(&object.stored);
            for (block, digest) in stored.iter_mut().enumerate() {
                tick()?;
                let held =
                    object.region.read_block(block as u32, |bytes| (Digest::of(bytes), bytes.len() as u64));
                match held {
                    Some((found, length)) if Some(found) == *digest => prepared.staged_bytes += length,
                    _ => *digest = None,
                }
            }
            prepared.haves.extend(haves_of_blocks(index as u32, HaveSource::Staged, &stored));
        }
        Ok(prepared)
    }

    fn store(&self, entry: u32, offset: u64, block: &[u8], digest: Digest) -> Result<(), StoreError> {
        let slot = self.read();
        let Some(work) = slot.as_ref() else { return Err(StoreError::NotPrepared { action: "store" }) };
        if work.stage != Stage::Open {
            // A dying lane brings it once more; the buffers are the caller's now.
            return Ok(());
        }
        let index = work.manifest.block_at(entry, offset);
        let (Some(index), Some(object)) = (index, work.objects.get(entry as usize)) else {
            return Err(StoreError::OutOfRange { entry, offset, length: block.len() as u64 });
        };
        let written = || {
            lock(&object.claims).remove(&index);
            lock(&object.stored)[index as usize] = Some(digest);
        };
        if !object.region.write_block(index, block, written) {
            return Err(StoreError::OutOfRange { entry, offset, length: block.len() as u64 });
        }
        Ok(())
    }

    fn claim(&self, entry: u32, offset: u64, length: u32) -> Option<Claim> {
        let slot = self.read();
        let work = slot.as_ref().filter(|work| work.stage == Stage::Open)?;
        let block = work.manifest.block_at(entry, offset)?;
        let object = work.objects.get(entry as usize)?;
        object.region.edit_block(block, |place| {
            if place.len() != length as usize || lock(&object.stored)[block as usize].is_some() {
                return None;
            }
            let mut claims = lock(&object.claims);
            if claims.contains_key(&block) {
                return None;
            }
            let number = self.next_claim.fetch_add(1, Ordering::Relaxed);
            claims.insert(block, number);
            Some(Claim { entry, block, number })
        })?
    }

    fn fill(&self, claim: &Claim, at: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let slot = self.read();
        let Some(object) = slot.as_ref().and_then(|work| work.claimed(claim)) else { return false };
        let filled = object.region.edit_block(claim.block, |place| {
            let rest = place.get_mut(at..).filter(|_| object.lends(claim));
            rest.map(fill).is_some()
        });
        filled.unwrap_or(false)
    }

    fn prove(&self, claim: Claim, found: Digest, digest: Digest) -> Proof {
        let slot = self.read();
        let Some(object) = slot.as_ref().and_then(|work| work.claimed(&claim)) else { return Proof::Lost };
        let proven = object.region.edit_block(claim.block, |_| {
            if !object.lends(&claim) {
                let stored = lock(&object.stored).get(claim.block as usize).copied().flatten();
                return if stored == Some(digest) { Proof::Stored } else { Proof::Lost };
            }
            lock(&object.claims).remove(&claim.block);
            if found != digest {
                return Proof::Differs;
            }
            lock(&object.stored)[claim.block as usize] = Some(digest);
            Proof::Stored
        });
        proven.unwrap_or(Proof::Lost)
    }

    fn base(&self, _entry: u32, _offset: u64, _dst: &mut [u8]) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn commit(&self, _tick: &mut Tick<'_>) -> Result<(), StoreError> {
        let mut slot = self.write();
        let Some(work) = slot.as_mut().filter(|work| work.stage != Stage::Taken) else {
            return Err(StoreError::NotPrepared { action: "commit" });
        };
        work.stage = Stage::Committed;
        Ok(())
    }

    fn discard(&self, entries: &[u32]) -> Result<(), StoreError> {
        let slot = self.read();
        let Some(work) = slot.as_ref() else { return Err(StoreError::NotPrepared { action: "discard" }) };
        for object in entries.iter().filter_map(|entry| work.objects.get(*entry as usize)) {
            lock(&object.stored).fill(None);
        }
        Ok(())
    }

    fn abort(&self) {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
