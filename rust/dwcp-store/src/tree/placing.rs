//! From staging into place.

use std::collections::BTreeSet;
use std::io;

use dwcp_proto::manifest::{Entry, EntryKind};

use super::staging::{DATA, LEDGER, LOCK, Staging, data_name};
use super::walker::Walker;
use super::{TreeSinkOptions, present, shown, split};
use crate::error::IoContext;
use crate::index::{BaseIndex, BaseRecord};
use crate::platform::{Dir, Stat};
use crate::{StoreError, Tick};

/// With more files than this, the whole file system is flushed once instead of each file.
const MANY_FILES: usize = 64;
/// The bits of a mode that are set: never set-user-id and set-group-id, which would lend the receiver's rights.
pub(super) const MODE_BITS: u32 = 0o1777;

/// Puts all entries in place. What was placed by an earlier call that failed stays.
pub(super) fn place(
    staging: &Staging,
    options: &TreeSinkOptions,
    tick: &mut Tick<'_>,
) -> Result<(), StoreError> {
    let mut placed = staging.placed();
    if placed.done {
        return Ok(());
    }
    staging.seal();
    let mut moved = Vec::new();
    if !options.overwrite {
        moved = find_placed(staging, &mut placed.entries, tick)?;
    }
    complete(staging, &placed.entries, options, tick)?;
    let mut walker = Walker::new(&staging.dir, &staging.root);
    let mut touched: BTreeSet<&[u8]> = BTreeSet::new();
    for (number, entry) in numbered(staging) {
        tick()?;
        let (parent, _) = split(&entry.path);
        if entry.kind == EntryKind::Directory {
            // Open to us until everything is in it; parents come before their children.
            let dir = walker.find_or_make(&entry.path, 0o700)?;
            if dir.check_writable().is_err() && dir.is_owned() {
                dir.open_to_owner().on("set the mode of", &shown(&staging.dir, &entry.path))?;
            }
        } else if !placed.entries[number as usize] {
            let stat = move_into_place(staging, number, entry, walker.find_or_make(parent, 0o777)?, options)?;
            placed.entries[number as usize] = true;
            moved.push((number, stat));
        }
        // All directories above, any of which may be new.
        touched.insert(b"");
        touched.insert(parent);
        touched.extend(
            parent.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &parent[..at]),
        );
    }
    // Children before their parents: an entry made in a directory changes its time, a mode may close it.
    let directories = staging.manifest.entries().iter().filter(|entry| entry.kind == EntryKind::Directory);
    for entry in directories.rev() {
        tick()?;
        let path = shown(&staging.dir, &entry.path);
        let dir = walker.find_or_make(&entry.path, 0o700)?;
        dir.set_attributes(entry.mode & MODE_BITS, entry.mtime_ns).on("set the attributes of", &path)?;
    }
    let many = moved.len() > MANY_FILES;
    if options.sync && !(many && staging.root.sync_file_system().on("flush", &staging.dir)?) {
        for path in touched {
            // A directory whose mode keeps even us out cannot be flushed by name any more.
            if let Ok(Some(dir)) = walker.find(path) {
                dir.sync().on("flush", &shown(&staging.dir, path))?;
            }
        }
    }
    placed.done = true;
    // The transfer is done. An index that cannot be written makes later ones slower, and what remains of the staging
    // takes room; neither is a reason to call it failed.
    let _ = remember(staging, &moved);
    let _ = remove(staging);
    Ok(())
}

fn numbered(staging: &Staging) -> impl Iterator<Item = (u32, &Entry)> {
    staging.manifest.entries().iter().enumerate().map(|(number, entry)| (number as u32, entry))
}

/// Finds the files and links that an earlier try has put in place, marks them and throws their staging away. Anything
/// else that stands in the way of an entry is an error, before any entry is moved.
fn find_placed(
    staging: &Staging,
    placed: &mut [bool],
    tick: &mut Tick<'_>,
) -> Result<Vec<(u32, Stat)>, StoreError> {
    let block_bytes = staging.manifest.block_bytes();
    let mut walker = Walker::new(&staging.dir, &staging.root);
    let mut trees = None;
    let mut found = Vec::new();
    for (number, entry) in numbered(staging) {
        tick()?;
        if entry.kind == EntryKind::Directory || placed[number as usize] {
            continue;
        }
        let path = shown(&staging.dir, &entry.path);
        let (parent, name) = split(&entry.path);
        let Some(above) = walker.find(parent)? else { continue };
        let Some(stat) = above.stat(name).on("inspect", &path)? else { continue };
        let trees = match &mut trees {
            Some(trees) => trees,
            none => none.insert(staging.trees()?),
        };
        let is_placed = present::seems_placed(above, name, entry, &stat).on("inspect", &path)?
            && present::is_placed(above, name, entry, block_bytes, trees.get(&number), &path, tick)?;
        if !is_placed {
            return Err(StoreError::Exists { path });
        }
        found.push((number, stat));
    }
    for (number, _) in &found {
        staging.discard(*number)?;
        placed[*number as usize] = true;
    }
    Ok(found)
}

/// Makes the staged files and links whole and lasting, with their modes and times.
fn complete(
    staging: &Staging,
    placed: &[bool],
    options: &TreeSinkOptions,
    tick: &mut Tick<'_>,
) -> Result<(), StoreError> {
    let files = staging.manifest.entries().iter().filter(|entry| entry.kind == EntryKind::File).count();
    let one_by_one = options.sync && (files <= MANY_FILES || !Dir::SYNCS_FILE_SYSTEM);
    for (number, entry) in numbered(staging).filter(|(number, _)| !placed[*number as usize]) {
        tick()?;
        let (path, name) = (staging.data_path(number), data_name(number));
        let set_mtime = || staging.data.set_mtime_of(&name, entry.mtime_ns).on("set the time of", &path);
        match entry.kind {
            EntryKind::File => {
                let size = staging.data.stat(&name).on("inspect", &path)?.map(|stat| stat.size);
                // Every block was stored, so only an empty file may be missing.
                if size.unwrap_or(0) != entry.size {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).on("complete", &path);
                }
                let wanted = size.is_none() || one_by_one;
                let file = if wanted { Some(staging.open_data(number)?) } else { None };
                let mode = entry.mode & MODE_BITS;
                staging.data.set_mode_of(&name, mode).on("set the mode of", &path)?;
                set_mtime()?;
                if let Some(file) = file.filter(|_| one_by_one) {
                    file.sync_all().on("flush", &path)?;
                }
            }
            EntryKind::Symlink => {
                staging.discard(number)?;
                staging.data.make_symlink(&entry.target, &name).on("create the link", &path)?;
                set_mtime()?;
            }
            EntryKind::Directory | EntryKind::Buffer => {}
        }
    }
    if options.sync && !one_by_one {
        staging.data.sync_file_system().on("flush", &staging.path)?;
    }
    Ok(())
}

/// Gives a staged file or link its place; what it is there.
fn move_into_place(
    staging: &Staging,
    number: u32,
    entry: &Entry,
    parent: &Dir,
    options: &TreeSinkOptions,
) -> Result<Stat, StoreError> {
    let path = shown(&staging.dir, &entry.path);
    let (_, name) = split(&entry.path);
    match staging.data.rename(&data_name(number), parent, name, options.overwrite) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(StoreError::Exists { path });
        }
        renamed => renamed.on("rename to", &path)?,
    }
    parent.stat(name).on("inspect", &path)?.ok_or(io::ErrorKind::NotFound.into()).on("inspect", &path)
}

/// Records the tree digests of the files put in place.
fn remember(staging: &Staging, moved: &[(u32, Stat)]) -> Result<(), StoreError> {
    let trees = staging.trees()?;
    let block_bytes = staging.manifest.block_bytes();
    let mut records = Vec::new();
    for (number, stat) in moved {
        if let (Some(entry), Some(digest)) = (staging.manifest.entry(*number), trees.get(number)) {
            records.push(BaseRecord::new(entry.path.clone(), stat, block_bytes, *digest));
        }
    }
    BaseIndex::load(&staging.dir.join(".dwcp/index"))?.append(records)
}

/// Removes the staging of a transfer. The lock goes last but one, so that nobody takes it between.
pub(super) fn remove(staging: &Staging) -> io::Result<()> {
    for name in staging.data.names()? {
        staging.data.remove_file(&name)?;
    }
    staging.place.remove_dir(DATA)?;
    staging.place.remove_file(LEDGER)?;
    staging.place.remove_file(LOCK)?;
    staging.home.remove_dir(staging.manifest.transfer_id().to_string().as_bytes())
}
