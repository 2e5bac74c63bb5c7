//! What is refused before anything is accepted.

use std::collections::HashSet;
use std::path::Path;

use dwcp_proto::manifest::{Entry, EntryKind, Manifest};

use super::walker::Walker;
use super::{TreeSinkOptions, present, shown, split};
use crate::error::{IoContext, refuse};
use crate::platform::{Dir, Kind, path_of};
use crate::{Refusal, StoreError, SymlinkPolicy, Tick};

/// Can all entries be put into the target directory as it is now? The bytes of all files.
pub(super) fn check(
    dir: &Path,
    root: &Dir,
    manifest: &Manifest,
    options: &TreeSinkOptions,
    tick: &mut Tick<'_>,
) -> Result<u64, StoreError> {
    let directories = manifest.entries().iter().filter(|entry| entry.kind == EntryKind::Directory);
    let directories: HashSet<&[u8]> = directories.map(|entry| entry.path.as_slice()).collect();
    let mut walker = Walker::new(dir, root);
    let device = device_of(root, dir)?;
    let mut writable: HashSet<&[u8]> = HashSet::new();
    let mut bytes = 0_u64;
    for entry in manifest.entries() {
        tick()?;
        let path = shown(dir, &entry.path);
        check_alone(entry, &path, options)?;
        if entry.kind == EntryKind::Symlink && escapes(entry, &directories) {
            return Err(refuse(path, Refusal::EscapingLink));
        }
        bytes = bytes.saturating_add(entry.size);
        let (parent, name) = split(&entry.path);
        // Nothing can be in the way below a directory that is still to be made.
        let Some(above) = walker.find(parent)? else { continue };
        let existing = above.stat(name).on("inspect", &path)?;
        match (entry.kind, existing.map(|stat| stat.kind)) {
            (EntryKind::Directory, Some(Kind::Directory)) => continue,
            (EntryKind::Directory, Some(Kind::Symlink)) => {
                return Err(refuse(path, Refusal::SymlinkedParent));
            }
            (EntryKind::Directory, Some(_)) => return Err(refuse(path, Refusal::NotADirectory)),
            (_, Some(Kind::Directory)) => return Err(refuse(path, Refusal::IsADirectory)),
            (_, Some(Kind::Special(what))) => return Err(refuse(path, Refusal::Special(what))),
            _ => {}
        }
        if let Some(stat) = existing.filter(|_| !options.overwrite)
            && !present::seems_placed(above, name, entry, &stat).on("inspect", &path)?
        {
            return Err(StoreError::Exists { path });
        }
        // A directory of ours that is in the manifest is opened for the time of the commit.
        let is_opened = || directories.contains(parent) && above.is_owned();
        if writable.insert(parent) {
            let shown = shown(dir, parent);
            // Told now and not by the rename, when everything has been sent.
            if device_of(above, &shown)? != device {
                return Err(refuse(shown, Refusal::OtherFileSystem));
            }
            if !is_opened() {
                above.check_writable().on("write to", &shown)?;
            }
        }
    }
    Ok(bytes)
}

/// The file system that an open directory is on.
fn device_of(directory: &Dir, path: &Path) -> Result<Option<u64>, StoreError> {
    Ok(directory.stat(b".").on("inspect", path)?.map(|stat| stat.device))
}

/// What is wrong with an entry whatever the target directory holds.
fn check_alone(entry: &Entry, path: &Path, options: &TreeSinkOptions) -> Result<(), StoreError> {
    let first = entry.path.split(|byte| *byte == b'/').next().unwrap_or_default();
    // The format forbids `.dwcp`; a file system that ignores case would take these for it.
    if first.eq_ignore_ascii_case(super::HOME) {
        return Err(refuse(path, Refusal::ReservedName));
    }
    if path_of(&entry.path).is_none() || path_of(&entry.target).is_none() {
        return Err(refuse(path, Refusal::Name));
    }
    match entry.kind {
        EntryKind::Buffer => Err(refuse(path, Refusal::BufferInTree)),
        EntryKind::Symlink if options.symlinks == SymlinkPolicy::Refuse => {
            Err(refuse(path, Refusal::Symlink))
        }
        _ => Ok(()),
    }
}

/// Does the link lead out of the target directory?
///
/// `..` is taken back only over real directories: the parents of the link, and directories of the manifest. Behind
/// anything else, which might be a link itself, `..` could lead anywhere.
fn escapes(entry: &Entry, directories: &HashSet<&[u8]>) -> bool {
    if path_of(&entry.target).is_none_or(|target| target.has_root()) {
        return true;
    }
    let mut at: Vec<&[u8]> = entry.path.split(|byte| *byte == b'/').collect();
    at.pop();
    let mut down = 0_usize;
    for part in entry.target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if down > 0 && !directories.contains(at.join(&b'/').as_slice()) {
                    return true;
                }
                down = down.saturating_sub(1);
                if at.pop().is_none() {
                    return true;
                }
            }
            name => {
                at.push(name);
                down += 1;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(path: &str, target: &str) -> bool {
        let entry = Entry {
            kind: EntryKind::Symlink,
            path: path.into(),
            mode: 0,
            mtime_ns: 0,
            size: 0,
            target: target.into(),
            candidates: Vec::new(),
        };
        escapes(&entry, &HashSet::from([&b"d"[..], b"d/real"]))
    }

    #[test]
    fn link_inside_the_tree_is_taken() {
        for (path, target) in [
            ("l", "x"),
            ("l", "."),
            ("d/l", ".."),
            ("d/l", "../d/real/../x"),
            ("a/b/l", "../../x//./y"),
            ("l", "d/.."),
        ] {
            assert!(!link(path, target), "{path} {target}");
        }
    }

    #[test]
    fn link_out_of_the_tree_is_refused() {
        for (path, target) in [
            ("l", "/etc"),
            ("l", ".."),
            ("d/l", "../.."),
            ("d/l", "real/../../.."),
            ("l", "other/.."),
            ("l", "d/l/.."),
        ] {
            assert!(link(path, target), "{path} {target}");
        }
    }
}
