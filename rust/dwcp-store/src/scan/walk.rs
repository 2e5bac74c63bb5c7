//! The walk over the given paths.

use std::fs;
use std::path::{Path, PathBuf};

use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, EntryKind};

use crate::error::{IoContext, refuse};
use crate::platform::{self, Kind, Stat};
use crate::{Refusal, StoreError, SymlinkPolicy, Tick};

/// Something found, and how the manifest will tell it.
pub(super) struct Item {
    /// Where it is, absolute.
    pub(super) path: PathBuf,
    pub(super) stat: Stat,
    pub(super) entry: Entry,
}

/// All that is at and below `paths`, parents before their children.
pub(super) fn walk(
    paths: &[PathBuf],
    symlinks: SymlinkPolicy,
    limits: &Limits,
    tick: &mut Tick<'_>,
) -> Result<Vec<Item>, StoreError> {
    let mut roots = paths.iter().map(|path| root(path)).collect::<Result<Vec<_>, _>>()?;
    roots.sort_by(|left, right| left.1.cmp(&right.1));
    if let Some(pair) = roots.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(refuse(&pair[1].0, Refusal::DuplicateName));
    }
    // What is still to be looked at, last first.
    let mut pending: Vec<(PathBuf, Vec<u8>)> = roots.into_iter().rev().collect();
    let mut items = Vec::new();
    while let Some((path, name)) = pending.pop() {
        if items.len() as u64 >= u64::from(limits.max_entries) {
            let value = items.len() as u64 + pending.len() as u64 + 1;
            return Err(StoreError::Limit {
                what: "number of entries",
                value,
                limit: limits.max_entries.into(),
            });
        }
        let stat = platform::stat_path(&path).on("inspect", &path)?;
        let mut entry = Entry {
            kind: EntryKind::File,
            path: name,
            mode: stat.mode,
            mtime_ns: stat.mtime_ns,
            size: 0,
            target: Vec::new(),
            candidates: Vec::new(),
        };
        match stat.kind {
            Kind::File => entry.size = stat.size,
            Kind::Directory => {
                tick()?;
                entry.kind = EntryKind::Directory;
                let at = pending.len();
                children(&path, &entry.path, &mut pending)?;
                pending[at..].sort_by(|left, right| right.1.cmp(&left.1));
            }
            Kind::Symlink if symlinks == SymlinkPolicy::Refuse => return Err(refuse(path, Refusal::Symlink)),
            Kind::Symlink => {
                entry.kind = EntryKind::Symlink;
                entry.mode = 0;
                let target = fs::read_link(&path).on("read the link", &path)?;
                entry.target = bytes_of_path(&target, &path)?;
            }
            Kind::Special(what) => return Err(refuse(path, Refusal::Special(what))),
        }
        items.push(Item { path, stat, entry });
    }
    Ok(items)
}

/// A given path, absolute, and the name of its entry.
fn root(path: &Path) -> Result<(PathBuf, Vec<u8>), StoreError> {
    let absolute = match path.file_name() {
        Some(name) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            fs::canonicalize(parent).on("open", path)?.join(name)
        }
        // `.`, `..` and the like.
        None => fs::canonicalize(path).on("open", path)?,
    };
    let Some(name) = absolute.file_name() else { return Err(refuse(path, Refusal::NoName)) };
    if name == ".dwcp" {
        return Err(refuse(path, Refusal::ReservedName));
    }
    let name = bytes_of_path(Path::new(name), path)?;
    Ok((absolute, name))
}

fn children(path: &Path, name: &[u8], pending: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<(), StoreError> {
    let top = !name.contains(&b'/');
    for child in fs::read_dir(path).on("read", path)? {
        let child = child.on("read", path)?.path();
        let Some(last) = child.file_name() else { continue };
        if top && last == ".dwcp" {
            continue;
        }
        let last = bytes_of_path(Path::new(last), &child)?;
        pending.push((child, [name, b"/", &last].concat()));
    }
    Ok(())
}

fn bytes_of_path(path: &Path, shown: &Path) -> Result<Vec<u8>, StoreError> {
    match platform::bytes_of(path.as_os_str()) {
        Some(bytes) => Ok(bytes.into_owned()),
        None => Err(refuse(shown, Refusal::Name)),
    }
}
