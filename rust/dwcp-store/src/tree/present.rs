//! What stands in the target already as the manifest has it: an earlier try of the same transfer put it there.

use std::io;
use std::path::Path;

use dwcp_codec::digest::{Digest, tree};
use dwcp_proto::manifest::{Entry, EntryKind};

use super::placing::MODE_BITS;
use crate::leaves::leaves_of_file;
use crate::platform::{self, Dir, Kind, Stat};
use crate::{StoreError, Tick};

/// Is `name`, of which `stat` tells, what the entry would be there? Of a file's content only the length is looked at.
pub(super) fn seems_placed(above: &Dir, name: &[u8], entry: &Entry, stat: &Stat) -> io::Result<bool> {
    if stat.mtime_ns != entry.mtime_ns {
        return Ok(false);
    }
    match (entry.kind, stat.kind) {
        (EntryKind::File, Kind::File) => {
            Ok(stat.size == entry.size && stat.mode & MODE_BITS == entry.mode & MODE_BITS)
        }
        (EntryKind::Symlink, Kind::Symlink) => Ok(above.read_link(name)? == entry.target),
        _ => Ok(false),
    }
}

/// Is what seems to be placed so in its content too? `digest` is the entry's tree digest, if it has one; `path` is for
/// people.
///
/// A file that cannot be read or changes meanwhile is not.
pub(super) fn is_placed(
    above: &Dir,
    name: &[u8],
    entry: &Entry,
    block_bytes: u32,
    digest: Option<&Digest>,
    path: &Path,
    tick: &mut Tick<'_>,
) -> Result<bool, StoreError> {
    if entry.kind != EntryKind::File || entry.size == 0 {
        return Ok(true);
    }
    let Ok(file) = above.open_read(name) else { return Ok(false) };
    let seen = platform::stat_file(&file);
    let leaves = match leaves_of_file(&file, path, entry.size, block_bytes, tick) {
        Err(StoreError::Io { .. } | StoreError::SourceChanged { .. }) => return Ok(false),
        leaves => leaves?,
    };
    let unchanged = match (seen, platform::stat_file(&file)) {
        (Ok(before), Ok(after)) => after.same_content(&before) && after.size == entry.size,
        _ => false,
    };
    Ok(unchanged && digest == Some(&tree(entry.size, block_bytes, &leaves)))
}
