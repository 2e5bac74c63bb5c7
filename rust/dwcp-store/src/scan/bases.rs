//! Candidate bases for the files of a scan.

use std::collections::HashMap;
use std::path::PathBuf;

use dwcp_codec::digest::tree;
use dwcp_proto::limits::MAX_CANDIDATES;
use dwcp_proto::manifest::{Candidate, EntryKind};

use super::tree_source::Base;
use super::walk::Item;
use super::{BaseChoice, ScanOptions};
use crate::error::{IoContext, refuse};
use crate::index::{BaseIndex, BaseRecord};
use crate::leaves::leaves_of_file;
use crate::platform::{self, Kind};
use crate::{Refusal, StoreError, Tick};

/// Finds candidates by the choice it was made for.
pub(super) struct Finder {
    block_bytes: u32,
    /// From the index, by file name, newest first.
    known: HashMap<Vec<u8>, Vec<BaseRecord>>,
    /// Given files and directories.
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Finder {
    pub(super) fn new(options: &ScanOptions) -> Result<Finder, StoreError> {
        let block_bytes = options.block_bytes;
        let mut finder =
            Finder { block_bytes, known: HashMap::new(), files: Vec::new(), directories: Vec::new() };
        match &options.bases {
            BaseChoice::None => {}
            BaseChoice::Auto => {
                let Some(path) = &options.index else { return Ok(finder) };
                for record in BaseIndex::load(path)?.records().iter().filter(|r| r.block_bytes == block_bytes)
                {
                    finder
                        .known
                        .entry(last_component(&record.path).to_vec())
                        .or_default()
                        .push(record.clone());
                }
            }
            BaseChoice::Paths(paths) => {
                for path in paths {
                    // A link that the user names is followed, as `--base latest` should be.
                    let path = path.canonicalize().on("open the base", path)?;
                    match platform::stat_path(&path).on("inspect", &path)?.kind {
                        Kind::File => finder.files.push(path),
                        Kind::Directory => finder.directories.push(path),
                        _ => return Err(refuse(path, Refusal::Base)),
                    }
                }
            }
        }
        Ok(finder)
    }

    /// The candidates of an entry and the files they are, best first.
    pub(super) fn candidates(
        &self,
        item: &Item,
        tick: &mut Tick<'_>,
    ) -> Result<Vec<(Candidate, Base)>, StoreError> {
        let mut found: Vec<(Candidate, Base)> = Vec::new();
        if item.entry.kind != EntryKind::File || item.entry.size == 0 {
            return Ok(found);
        }
        let mut add = |candidate: Candidate, base: Base| {
            if candidate.size > 0
                && found.len() < MAX_CANDIDATES
                && found.iter().all(|(old, _)| *old != candidate)
            {
                found.push((candidate, base));
            }
        };
        for record in self.known.get(last_component(&item.entry.path)).into_iter().flatten() {
            let Some(path) = platform::path_of(&record.path) else { continue };
            // A file that is gone or changed is no base any more.
            let Ok(stat) = platform::stat_path(&path) else { continue };
            if record.matches(&stat) {
                add(Candidate { size: record.size, digest: record.digest }, Base { path, stat });
            }
        }
        for path in self.given(&item.entry.path) {
            if let Some((candidate, base)) = self.hash(path, tick)? {
                add(candidate, base);
            }
        }
        Ok(found)
    }

    /// The given files that belong to the entry.
    fn given(&self, entry: &[u8]) -> Vec<PathBuf> {
        let below = entry.iter().position(|byte| *byte == b'/').map(|slash| &entry[slash + 1..]);
        let mut paths = if below.is_none() { self.files.clone() } else { Vec::new() };
        if let Some(relative) = platform::path_of(below.unwrap_or(entry)) {
            paths.extend(self.directories.iter().map(|directory| directory.join(&relative)));
        }
        paths
    }

    fn hash(&self, path: PathBuf, tick: &mut Tick<'_>) -> Result<Option<(Candidate, Base)>, StoreError> {
        let file = match platform::open_no_follow(&path) {
            Ok(file) => file,
            // No file at this place of the base, or a link: nothing to compare with.
            Err(_) if !self.files.contains(&path) => return Ok(None),
            Err(error) => return Err(error).on("open the base", &path),
        };
        let stat = platform::stat_file(&file).on("inspect", &path)?;
        if stat.kind != Kind::File {
            return Ok(None);
        }
        let leaves = match leaves_of_file(&file, &path, stat.size, self.block_bytes, tick) {
            // It shrinks while it is read, so it is nothing that a receiver could hold too.
            Err(StoreError::SourceChanged { .. }) => return Ok(None),
            leaves => leaves?,
        };
        let digest = tree(stat.size, self.block_bytes, &leaves);
        Ok(Some((Candidate { size: stat.size, digest }, Base { path, stat })))
    }
}

fn last_component(path: &[u8]) -> &[u8] {
    let separator = |byte: &u8| std::path::is_separator(*byte as char);
    path.rsplit(separator).next().unwrap_or(path)
}
