//! The place in `.dwcp` where the files of one transfer grow, and the ledger of the blocks they hold.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use dwcp_codec::digest::Digest;
use dwcp_codec::page::fill_byte;
use dwcp_proto::frame::{Have, HaveSource};
use dwcp_proto::ledger::{self, LedgerHeader, RECORD_BYTES, Record};
use dwcp_proto::manifest::Manifest;

use super::HOME;
use super::bases::Base;
use crate::error::{IoContext, refuse};
use crate::open_files::OpenFiles;
use crate::platform::{self, Dir, Lock};
use crate::sink::haves_of_blocks;
use crate::stripes::Stripes;
use crate::{Refusal, StoreError, Tick};

pub(super) const LOCK: &[u8] = b"lock";
pub(super) const LEDGER: &[u8] = b"ledger";
pub(super) const DATA: &[u8] = b"data";

/// How often, and how long apart, the lock of a staging directory is tried: a session that was just ended may still
/// be closing its files.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Records of a ledger that are read at once.
const PIECE_RECORDS: usize = 4_096;

/// The digests recorded last, by entry and block.
type Recorded = BTreeMap<u32, Vec<Option<Digest>>>;

/// The staging of one transfer, locked for this process.
pub(super) struct Staging {
    pub(super) manifest: Arc<Manifest>,
    /// The target directory, and its path for people.
    pub(super) root: Dir,
    pub(super) dir: PathBuf,
    /// `.dwcp` in it, the directory of this transfer in that, and `data` in that.
    pub(super) home: Dir,
    pub(super) place: Dir,
    pub(super) data: Dir,
    pub(super) path: PathBuf,
    /// The announced bases by entry.
    pub(super) bases: HashMap<u32, Base>,
    pub(super) base_files: OpenFiles<u32>,
    placed: Mutex<Placed>,
    /// Set when files begin to be put in place. A block that a dying lane brings once more after that was stored
    /// before, and must not touch a file that is in place.
    sealed: RwLock<bool>,
    files: OpenFiles<u32>,
    /// The entries whose file in `data` was opened, so that it is there unless somebody removed it.
    begun: Mutex<HashSet<u32>>,
    /// Held from the write of a block to its record: of two copies, disk and ledger tell of the same one.
    writing: Stripes,
    ledger: Mutex<Ledger>,
    _lock: Lock,
}

/// How far a commit got.
pub(super) struct Placed {
    /// The files and links that are in place, by entry.
    pub(super) entries: Vec<bool>,
    /// Everything is in place and lasting.
    pub(super) done: bool,
}

struct Ledger {
    file: File,
    length: u64,
}

/// The staged blocks whose content is still what was recorded.
pub(super) struct Staged {
    blocks: Recorded,
    bytes: u64,
}

impl Staged {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn holds(&self, entry: u32, block: u32) -> bool {
        self.blocks.get(&entry).and_then(|blocks| blocks.get(block as usize)).is_some_and(Option::is_some)
    }

    pub(super) fn holds_all(&self, entry: u32) -> bool {
        self.blocks.get(&entry).is_some_and(|blocks| blocks.iter().all(Option::is_some))
    }

    pub(super) fn haves(&self) -> Vec<Have> {
        let haves = |(entry, blocks): (&u32, &Vec<_>)| haves_of_blocks(*entry, HaveSource::Staged, blocks);
        self.blocks.iter().flat_map(haves).collect()
    }
}

impl Staging {
    /// Opens or makes the staging of a transfer; what its ledger says.
    pub(super) fn open(
        dir: &Path,
        root: Dir,
        manifest: &Arc<Manifest>,
        tick: &mut Tick<'_>,
    ) -> Result<(Staging, Recorded), StoreError> {
        let home_path = dir.join(".dwcp");
        let name = manifest.transfer_id().to_string();
        let path = home_path.join(&name);
        let home = make_private(&root, HOME, &home_path)?;
        let (place, lock) = lock(&home, name.as_bytes(), &path, tick)?;
        let data = make_private(&place, DATA, &path)?;
        let (ledger, recorded) = open_ledger(&place, manifest, &path.join("ledger"))?;
        let placed = Placed { entries: vec![false; manifest.entries().len()], done: false };
        let staging = Staging {
            manifest: Arc::clone(manifest),
            root,
            dir: dir.to_path_buf(),
            home,
            place,
            data,
            path,
            bases: HashMap::new(),
            base_files: OpenFiles::new(),
            placed: Mutex::new(placed),
            sealed: RwLock::new(false),
            files: OpenFiles::new(),
            begun: Mutex::new(HashSet::new()),
            writing: Stripes::new(),
            ledger: Mutex::new(ledger),
            _lock: lock,
        };
        Ok((staging, recorded))
    }

    /// Reads again all blocks that the ledger names; those that still have the recorded digest.
    pub(super) fn read_again(&self, recorded: Recorded, tick: &mut Tick<'_>) -> Result<Staged, StoreError> {
        let mut staged = Staged { blocks: BTreeMap::new(), bytes: 0 };
        let mut block_bytes = Vec::new();
        for (entry, mut blocks) in recorded {
            tick()?;
            // A file that is gone or cannot be read holds nothing.
            let Ok(file) = self.open_existing(entry) else { continue };
            for (block, recorded) in blocks.iter_mut().enumerate().filter(|(_, recorded)| recorded.is_some())
            {
                tick()?;
                let length = self.manifest.block_len(entry, block as u32);
                block_bytes.resize(length as usize, 0);
                let offset = block as u64 * u64::from(self.manifest.block_bytes());
                let read = platform::read_up_to(&file, &mut block_bytes, offset);
                if read.is_ok_and(|read| read == block_bytes.len())
                    && *recorded == Some(Digest::of(&block_bytes))
                {
                    staged.bytes += u64::from(length);
                } else {
                    *recorded = None;
                }
            }
            staged.blocks.insert(entry, blocks);
        }
        Ok(staged)
    }

    pub(super) fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        match self.data.free_bytes().on("inspect", &self.path)? {
            Some(free) if free < needed => Err(StoreError::NoSpace { needed, free }),
            _ => Ok(()),
        }
    }

    pub(super) fn store(
        &self,
        entry: u32,
        offset: u64,
        block: &[u8],
        digest: Digest,
    ) -> Result<(), StoreError> {
        let number = self.manifest.block_at(entry, offset);
        let number = number.filter(|number| block.len() == self.manifest.block_len(entry, *number) as usize);
        let Some(number) = number else {
            return Err(StoreError::OutOfRange { entry, offset, length: block.len() as u64 });
        };
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        if *sealed {
            return Ok(());
        }
        let file = self.files.open(entry, || self.open_data(entry))?;
        let length = block.len() as u64;
        let _writing = self.writing.lock(u64::from(entry) + u64::from(number));
        // Holes stay holes: a block of zeros is written only where there is something else.
        let is_hole =
            || platform::is_hole(&file, offset, length) || platform::punch_hole(&file, offset, length);
        if fill_byte(block) != Some(0) || !is_hole() {
            platform::write_all_at(&file, block, offset).on("write", &self.data_path(entry))?;
        }
        self.record(&Record { entry, block: number, digest })
    }

    /// Appends a record, whole or not at all.
    fn record(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path.join("ledger");
        let mut ledger = self.ledger();
        if let Err(error) = ledger.file.write_all(&ledger::encode_record(record)) {
            // Half a record would hide all that follow it.
            ledger.file.set_len(ledger.length).on("truncate", &path)?;
            return Err(error).on("write", &path);
        }
        ledger.length += RECORD_BYTES as u64;
        Ok(())
    }

    /// Throws away what is staged of an entry. Its records stay: no file has what they say any more.
    pub(super) fn discard(&self, entry: u32) -> Result<(), StoreError> {
        self.files.close(entry);
        self.begun().remove(&entry);
        match self.data.remove_file(&data_name(entry)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).on("remove", &self.data_path(entry))
            }
            _ => Ok(()),
        }
    }

    /// The tree digest of each entry whose every block is recorded.
    pub(super) fn trees(&self) -> Result<HashMap<u32, Digest>, StoreError> {
        let recorded =
            read_ledger(&self.ledger().file, &self.manifest).on("read", &self.path.join("ledger"))?;
        let mut trees = HashMap::new();
        for (entry, blocks) in recorded.map(|(recorded, _)| recorded).unwrap_or_default() {
            let leaves: Option<Vec<Digest>> = blocks.into_iter().collect();
            if let (Some(leaves), Some(told)) = (leaves, self.manifest.entry(entry)) {
                trees
                    .insert(entry, dwcp_codec::digest::tree(told.size, self.manifest.block_bytes(), &leaves));
            }
        }
        Ok(trees)
    }

    /// Opens the staged file of an entry for writing, as long as the entry says. It is made only once: one that somebody
    /// removed would come back without its blocks.
    pub(super) fn open_data(&self, entry: u32) -> Result<File, StoreError> {
        let path = self.data_path(entry);
        let size = self.manifest.entry(entry).map_or(0, |entry| entry.size);
        let name = data_name(entry);
        let open = |make| match self.data.open_write(&name, make) {
            // A commit that was cut off had given it its final mode.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.data.set_mode_of(&name, 0o600).and_then(|()| self.data.open_write(&name, make))
            }
            opened => opened,
        };
        let mut begun = self.begun();
        let file = if begun.contains(&entry) {
            drop(begun);
            open(false).on("open", &path)?
        } else {
            let file = open(true).on("open", &path)?;
            begun.insert(entry);
            file
        };
        file.set_len(size).on("resize", &path)?;
        Ok(file)
    }

    fn open_existing(&self, entry: u32) -> Result<File, StoreError> {
        let path = self.data_path(entry);
        self.data
            .stat(&data_name(entry))
            .on("inspect", &path)?
            .ok_or(io::ErrorKind::NotFound.into())
            .on("open", &path)?;
        self.open_data(entry)
    }

    /// Waits for the blocks that are being stored; none is stored from then on.
    pub(super) fn seal(&self) {
        *self.sealed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub(super) fn data_path(&self, entry: u32) -> PathBuf {
        self.path.join("data").join(entry.to_string())
    }

    pub(super) fn placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of an entry's file in `data`.
pub(super) fn data_name(entry: u32) -> Vec<u8> {
    entry.to_string().into_bytes()
}

/// Opens a directory that only this user may enter, making it if need be.
fn make_private(above: &Dir, name: &[u8], shown: &Path) -> Result<Dir, StoreError> {
    match above.make_dir(name, 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).on("create", shown),
        _ => {}
    }
    match above.enter(name) {
        Err(error) if matches!(above.stat(name), Ok(Some(stat)) if stat.kind == platform::Kind::Symlink) => {
            drop(error);
            Err(refuse(shown, Refusal::SymlinkedParent))
        }
        entered => entered.on("open", shown),
    }
}

/// Opens a transfer's directory and takes its lock.
fn lock(home: &Dir, name: &[u8], path: &Path, tick: &mut Tick<'_>) -> Result<(Dir, Lock), StoreError> {
    for attempt in 0..LOCK_TRIES {
        tick()?;
        if attempt > 0 {
            std::thread::sleep(LOCK_PAUSE);
        }
        let place = make_private(home, name, path)?;
        let file = match place.open_lock(LOCK) {
            // The directory was removed under our hands by the one who committed the transfer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.on("lock", path)?,
        };
        let Some(file) = file else { continue };
        // A lock on a file that was removed meanwhile protects nothing.
        let ours = platform::stat_file(&file).on("inspect", path)?;
        let named = place.stat(LOCK).on("inspect", path)?;
        if named.is_some_and(|named| (named.device, named.inode) == (ours.device, ours.inode)) {
            return Ok((place, file));
        }
    }
    Err(StoreError::Busy { path: path.to_path_buf() })
}

fn open_ledger(place: &Dir, manifest: &Manifest, path: &Path) -> Result<(Ledger, Recorded), StoreError> {
    let mut file = place.open_append(LEDGER).on("open", path)?;
    if let Some((recorded, length)) = read_ledger(&file, manifest).on("read", path)? {
        // What a crash tore would hide the records that are to follow.
        file.set_len(length).on("truncate", path)?;
        return Ok((Ledger { file, length }, recorded));
    }
    // New, or not to be made sense of: nothing is known to be staged.
    file.set_len(0).on("truncate", path)?;
    file.write_all(&ledger::encode_header(&header_of(manifest))).on("write", path)?;
    Ok((Ledger { file, length: RECORD_BYTES as u64 }, Recorded::new()))
}

fn header_of(manifest: &Manifest) -> LedgerHeader {
    LedgerHeader { transfer_id: manifest.transfer_id(), block_bytes: manifest.block_bytes() }
}

/// What the ledger of a manifest records, and how long the part of it is that makes sense; none if it is not the
/// ledger of this manifest. Records of other blocks than the manifest has are left out.
///
/// It is read in pieces: a sender that repeats blocks makes it as long as it likes.
fn read_ledger(file: &File, manifest: &Manifest) -> io::Result<Option<(Recorded, u64)>> {
    let header = header_of(manifest);
    let mut recorded = Recorded::new();
    // Each piece is read as a ledger of its own, behind the header.
    let mut piece = vec![0; RECORD_BYTES * (1 + PIECE_RECORDS)];
    let head = platform::read_up_to(file, &mut piece[..RECORD_BYTES], 0)?;
    let mut length = RECORD_BYTES as u64;
    loop {
        let read = platform::read_up_to(file, &mut piece[RECORD_BYTES..], length)?;
        let (records, torn) = match ledger::read(&piece[..head + read]) {
            Ok((found, records, torn)) if found == header => (records, torn),
            _ => return Ok(None),
        };
        length += (RECORD_BYTES * records.len()) as u64;
        for record in records.iter().filter(|record| record.block < manifest.blocks_of(record.entry)) {
            let blocks = recorded
                .entry(record.entry)
                .or_insert_with(|| vec![None; manifest.blocks_of(record.entry) as usize]);
            blocks[record.block as usize] = Some(record.digest);
        }
        if torn || read < RECORD_BYTES * PIECE_RECORDS {
            return Ok(Some((recorded, length)));
        }
    }
}
