//! What unfinished transfers have left.

use std::io;
use std::path::Path;

use dwcp_proto::TransferId;

use super::HOME;
use super::staging::{DATA, LOCK};
use crate::StoreError;
use crate::error::IoContext;
use crate::platform::Dir;

/// An unfinished transfer in a target directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedTransfer {
    /// The transfer.
    pub transfer_id: TransferId,
    /// The sizes of its staged files summed up, holes included.
    pub bytes: u64,
}

/// The unfinished transfers of a target directory, in the order of their ids.
///
/// # Errors
/// [`StoreError::Io`] when the directory cannot be read.
pub fn staged_transfers(dir: &Path) -> Result<Vec<StagedTransfer>, StoreError> {
    let Some(home) = open_home(dir)? else { return Ok(Vec::new()) };
    let mut transfers = Vec::new();
    for name in home.names().on("read", dir)? {
        let Some(transfer_id) = transfer_of(&name) else { continue };
        let Ok(place) = home.enter(&name) else { continue };
        let mut bytes = 0;
        if let Ok(data) = place.enter(DATA) {
            for name in data.names().on("read", dir)? {
                bytes += data.stat(&name).on("inspect", dir)?.map_or(0, |stat| stat.size);
            }
        }
        transfers.push(StagedTransfer { transfer_id, bytes });
    }
    transfers.sort_by_key(|transfer| transfer.transfer_id);
    Ok(transfers)
}

/// Removes what an unfinished transfer has left; nothing if there is none.
///
/// # Errors
/// [`StoreError::Busy`] when a receiver is working on it, [`StoreError::Io`] when it cannot be removed.
pub fn remove_staging(dir: &Path, transfer_id: TransferId) -> Result<(), StoreError> {
    let name = transfer_id.to_string().into_bytes();
    let path = dir.join(".dwcp").join(transfer_id.to_string());
    let Some(home) = open_home(dir)? else { return Ok(()) };
    let place = match home.enter(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entered => entered.on("open", &path)?,
    };
    let Some(_lock) = place.open_lock(LOCK).on("lock", &path)? else { return Err(StoreError::Busy { path }) };
    if let Ok(data) = place.enter(DATA) {
        for name in data.names().on("read", &path)? {
            data.remove_file(&name).on("remove", &path)?;
        }
        place.remove_dir(DATA).on("remove", &path)?;
    }
    // The lock goes last: who takes a new one must find nothing that is still to be removed.
    for name in place.names().on("read", &path)?.into_iter().filter(|name| name != LOCK) {
        place.remove_file(&name).on("remove", &path)?;
    }
    place.remove_file(LOCK).on("remove", &path)?;
    home.remove_dir(&name).on("remove", &path)
}

fn open_home(dir: &Path) -> Result<Option<Dir>, StoreError> {
    match Dir::open(dir).and_then(|root| root.enter(HOME)) {
        Ok(home) => Ok(Some(home)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).on("open", dir),
    }
}

fn transfer_of(name: &[u8]) -> Option<TransferId> {
    let digest: dwcp_codec::Digest = str::from_utf8(name).ok()?.parse().ok()?;
    Some(TransferId(digest.0))
}
