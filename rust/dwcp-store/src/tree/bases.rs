//! Bases that the receiver holds: files of the target directory.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use dwcp_codec::digest::{Digest, tree};
use dwcp_proto::frame::{Have, HaveSource};
use dwcp_proto::manifest::{Entry, EntryKind};

use super::staging::{Staged, Staging};
use super::walker::Walker;
use super::{shown, split};
use crate::error::IoContext;
use crate::index::{BaseIndex, BaseRecord};
use crate::leaves::leaves_of_file;
use crate::platform::{self, Dir, Kind, Stat};
use crate::sink::haves_of_blocks;
use crate::{StoreError, Tick};

/// A file that was announced as a base.
pub(super) struct Base {
    /// Its path in the target directory.
    path: Vec<u8>,
    stat: Stat,
}

/// Finds a base for every file that is not staged as a whole; the HAVE frames that announce them.
pub(super) fn find(
    staging: &mut Staging,
    staged: &Staged,
    tick: &mut Tick<'_>,
) -> Result<Vec<Have>, StoreError> {
    // An index that cannot be read knows of no bases.
    let index = BaseIndex::load(&staging.dir.join(".dwcp/index")).ok();
    let mut known: HashMap<Digest, Vec<&BaseRecord>> = HashMap::new();
    let block_bytes = staging.manifest.block_bytes();
    for record in index.iter().flat_map(BaseIndex::records).filter(|record| record.block_bytes == block_bytes)
    {
        known.entry(record.digest).or_default().push(record);
    }
    let mut walker = Walker::new(&staging.dir, &staging.root);
    let mut haves = Vec::new();
    let mut bases = HashMap::new();
    for (number, entry) in (0_u32..).zip(staging.manifest.entries()) {
        tick()?;
        if entry.kind != EntryKind::File || entry.size == 0 || staged.holds_all(number) {
            continue;
        }
        if let Some((candidate, base)) = find_known(&mut walker, entry, &known) {
            haves.push(candidate_have(number, candidate));
            bases.insert(number, base);
            continue;
        }
        let Some((base, mut leaves)) = hash_existing(&mut walker, &staging.dir, entry, block_bytes, tick)?
        else {
            continue;
        };
        let digest = tree(base.stat.size, block_bytes, &leaves);
        let same = |candidate: &dwcp_proto::manifest::Candidate| {
            candidate.size == base.stat.size && candidate.digest == digest
        };
        if let Some(candidate) = entry.candidates.iter().position(same) {
            haves.push(candidate_have(number, candidate));
        } else {
            // Blocks at the end of which one is longer have nothing to tell.
            let whole = base.stat.size.min(entry.size) / u64::from(block_bytes);
            if base.stat.size != entry.size {
                leaves.truncate(whole as usize);
            }
            let told: Vec<_> = (0_u32..)
                .zip(leaves)
                .map(|(block, leaf)| (!staged.holds(number, block)).then_some(leaf))
                .collect();
            haves.extend(haves_of_blocks(number, HaveSource::SamePath, &told));
        }
        bases.insert(number, base);
    }
    staging.bases = bases;
    Ok(haves)
}

fn candidate_have(entry: u32, candidate: usize) -> Have {
    Have { entry, source: HaveSource::Candidate(candidate as u8), first_block: 0, digests: Vec::new() }
}

/// The first candidate of the entry that the index knows and that is still as it was.
fn find_known(
    walker: &mut Walker<'_>,
    entry: &Entry,
    known: &HashMap<Digest, Vec<&BaseRecord>>,
) -> Option<(usize, Base)> {
    for (number, candidate) in entry.candidates.iter().enumerate() {
        for record in known.get(&candidate.digest).into_iter().flatten() {
            let (parent, name) = split(&record.path);
            // Whatever keeps us from it, it is no base.
            let stat = walker.find(parent).ok().flatten().and_then(|dir| dir.stat(name).ok().flatten());
            if let Some(stat) = stat.filter(|stat| record.size == candidate.size && record.matches(stat)) {
                return Some((number, Base { path: record.path.clone(), stat }));
            }
        }
    }
    None
}

/// The file that is at the entry's path now, and the digests of its blocks.
fn hash_existing(
    walker: &mut Walker<'_>,
    dir: &Path,
    entry: &Entry,
    block_bytes: u32,
    tick: &mut Tick<'_>,
) -> Result<Option<(Base, Vec<Digest>)>, StoreError> {
    let (parent, name) = split(&entry.path);
    let Some(above) = walker.find(parent)? else { return Ok(None) };
    let Some((file, stat)) = open_regular(above, name).filter(|(_, stat)| stat.size > 0) else {
        return Ok(None);
    };
    match leaves_of_file(&file, &shown(dir, &entry.path), stat.size, block_bytes, tick) {
        Ok(leaves) => Ok(Some((Base { path: entry.path.clone(), stat }, leaves))),
        // A file that cannot be read or is being written is no base.
        Err(StoreError::Io { .. } | StoreError::SourceChanged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_regular(above: &Dir, name: &[u8]) -> Option<(File, Stat)> {
    let file = above.open_read(name).ok()?;
    let stat = platform::stat_file(&file).ok()?;
    (stat.kind == Kind::File).then_some((file, stat))
}

/// Fills `dst` with the base of an entry at `offset`; false if there is none any more.
pub(super) fn read(staging: &Staging, entry: u32, offset: u64, dst: &mut [u8]) -> Result<bool, StoreError> {
    let Some(base) = staging.bases.get(&entry) else { return Ok(false) };
    let path = shown(&staging.dir, &base.path);
    let opened = staging.base_files.open(entry, || {
        let (parent, name) = split(&base.path);
        let mut walker = Walker::new(&staging.dir, &staging.root);
        let opened = walker.find(parent)?.and_then(|above| open_regular(above, name));
        let same = opened.filter(|(_, stat)| stat.same_content(&base.stat));
        same.map(|(file, _)| file).ok_or_else(|| StoreError::SourceChanged { path: path.clone() })
    });
    let Ok(file) = opened else { return Ok(false) };
    let filled = platform::read_up_to(&file, dst, offset).on("read", &path)?;
    dst[filled..].fill(0);
    Ok(true)
}
