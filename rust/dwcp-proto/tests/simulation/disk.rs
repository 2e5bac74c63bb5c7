//! The receiver's disk as maps of bytes: it outlives the receiver.

use std::collections::BTreeMap;

use dwcp_codec::Digest;
use dwcp_codec::digest::{leaves_of, tree};
use dwcp_proto::frame::{Have, HaveSource, TransferId};
use dwcp_proto::ledger::{self, LedgerHeader, Record, encode_header, encode_record};
use dwcp_proto::manifest::Manifest;

use crate::link::Random;

/// What is staged of one transfer.
#[derive(Default)]
struct Staging {
    ledger: Vec<u8>,
    data: BTreeMap<u32, Vec<u8>>,
}

/// Staging, bases and committed objects.
#[derive(Default)]
pub struct Disk {
    staging: BTreeMap<TransferId, Staging>,
    /// The receiver's objects from before, by path.
    pub bases: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Blocks of bases that differ from what was announced, by path and number.
    pub stale: BTreeMap<(Vec<u8>, u32), Vec<u8>>,
    pub committed: BTreeMap<TransferId, BTreeMap<u32, Vec<u8>>>,
}

pub struct Found {
    pub haves: Vec<Have>,
    pub staged_bytes: u64,
    pub torn: bool,
}

fn slice(bytes: &[u8], offset: u64, length: u32) -> &[u8] {
    let start = bytes.len().min(offset as usize);
    &bytes[start..bytes.len().min(start + length as usize)]
}

/// A block of a base: zero bytes where the base has none.
pub fn padded(bytes: &[u8], offset: u64, length: u32) -> Vec<u8> {
    let mut block = slice(bytes, offset, length).to_vec();
    block.resize(length as usize, 0);
    block
}

impl Disk {
    pub fn prepare(&mut self, manifest: &Manifest, base_allowed: bool) -> Found {
        let id = manifest.transfer_id();
        let block_bytes = manifest.block_bytes();
        let header = LedgerHeader { transfer_id: id, block_bytes };
        let staging = self
            .staging
            .entry(id)
            .or_insert_with(|| Staging { ledger: encode_header(&header).to_vec(), data: BTreeMap::new() });
        for (index, entry) in (0..).zip(manifest.entries()) {
            staging.data.entry(index).or_insert_with(|| vec![0; entry.size as usize]);
        }
        let (read, records, torn) = ledger::read(&staging.ledger).unwrap();
        assert_eq!(read, header);
        staging.ledger.truncate(32 * (records.len() + 1));
        let mut staged = BTreeMap::new();
        for record in records {
            let (offset, length) = (
                u64::from(record.block) * u64::from(block_bytes),
                manifest.block_len(record.entry, record.block),
            );
            let block = slice(&staging.data[&record.entry], offset, length);
            if Digest::of(block) == record.digest {
                staged.insert((record.entry, record.block), (record.digest, length));
            }
        }
        let staged_bytes = staged.values().map(|(_, length)| u64::from(*length)).sum();
        let mut haves: Vec<Have> = staged
            .into_iter()
            .map(|((entry, first_block), (digest, _))| Have {
                entry,
                source: HaveSource::Staged,
                first_block,
                digests: vec![digest],
            })
            .collect();
        for (index, entry) in (0..).zip(manifest.entries()).filter(|_| base_allowed) {
            let Some(base) = self.bases.get(&entry.path) else { continue };
            let leaves = leaves_of(base, block_bytes);
            let digest = tree(base.len() as u64, block_bytes, &leaves);
            let place = entry.candidates.iter().position(|candidate| candidate.digest == digest);
            if let Some(number) = place {
                let source = HaveSource::Candidate(number as u8);
                haves.push(Have { entry: index, source, first_block: 0, digests: vec![] });
                continue;
            }
            let whole = base.len() / block_bytes as usize;
            let count = whole.min(manifest.blocks_of(index) as usize);
            if count > 0 {
                let digests = leaves[..count].to_vec();
                haves.push(Have { entry: index, source: HaveSource::SamePath, first_block: 0, digests });
            }
        }
        Found { haves, staged_bytes, torn }
    }

    pub fn base(&self, manifest: &Manifest, entry: u32, offset: u64, length: u32) -> Option<Vec<u8>> {
        let path = &manifest.entry(entry)?.path;
        let block = (offset / u64::from(manifest.block_bytes())) as u32;
        if let Some(stale) = self.stale.get(&(path.clone(), block)) {
            return Some(stale.clone());
        }
        Some(padded(self.bases.get(path)?, offset, length))
    }

    pub fn store(&mut self, manifest: &Manifest, entry: u32, offset: u64, block: &[u8]) {
        let Some(staging) = self.staging.get_mut(&manifest.transfer_id()) else { return };
        let start = offset as usize;
        staging.data.get_mut(&entry).unwrap()[start..start + block.len()].copy_from_slice(block);
        let block_number = (offset / u64::from(manifest.block_bytes())) as u32;
        let record = Record { entry, block: block_number, digest: Digest::of(block) };
        staging.ledger.extend(encode_record(&record));
    }

    /// Puts what is staged in place. Tells whether anything was.
    pub fn commit(&mut self, manifest: &Manifest) -> bool {
        let id = manifest.transfer_id();
        let staging = self.staging.remove(&id);
        staging.is_some_and(|staging| {
            self.committed.insert(id, staging.data);
            true
        })
    }

    /// A crash: the end of a ledger may be torn, and a staged block may be spoiled. Tells which.
    pub fn crash(&mut self, manifest: &Manifest, random: &mut Random) -> bool {
        let Some(staging) = self.staging.get_mut(&manifest.transfer_id()) else { return false };
        if random.once_in(2) {
            let most = (staging.ledger.len() - 32).min(40) as u64;
            let cut = random.below(most + 1) as usize;
            staging.ledger.truncate(staging.ledger.len() - cut);
        }
        let (_, records, _) = ledger::read(&staging.ledger).unwrap();
        let spoil = records.get(random.below(records.len() as u64 * 2) as usize).copied();
        if let Some(record) = spoil {
            let place = record.block as usize * manifest.block_bytes() as usize;
            staging.data.get_mut(&record.entry).unwrap()[place] ^= 1;
        }
        spoil.is_some()
    }
}
