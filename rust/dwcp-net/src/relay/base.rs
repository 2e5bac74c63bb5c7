//! Earlier copies of a machine in files: one for each block of RAM, as its bytes are.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_codec::Digest;
use dwcp_proto::frame::BasePart;
use dwcp_vm::{BaseIndex, BasePages, Keep, PAGE_BYTES, Page, VmError};

use super::worker::refused;
use crate::error::NetError;

/// How much is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// The most blocks of RAM, and pages of all together: 1 TiB.
const MAX_BLOCKS: usize = 4_096;
const MAX_PAGES: u64 = 1 << 28;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetError {
    let addr = path.display().to_string();
    move |source| NetError::Io { action, addr, source }
}

/// One block of RAM of a copy.
pub(super) struct BaseBlock {
    pub(super) name: Vec<u8>,
    pub(super) digests: Vec<Digest>,
    file: File,
}

/// A copy that is held.
pub(crate) struct Base {
    pub(super) blocks: Vec<BaseBlock>,
}

impl Base {
    /// Reads and digests a copy.
    pub(super) fn open(directory: &Path) -> Result<Base, NetError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
            let entry = entry.map_err(failed("read", directory))?;
            let name = entry.file_name();
            let is_file = entry.file_type().map_err(failed("read", &entry.path()))?.is_file();
            if let Some(name) = name.to_str().and_then(block_name).filter(|_| is_file) {
                files.push((name, entry.path()));
            }
        }
        files.sort();
        let mut base = Base { blocks: Vec::new() };
        let mut pages = 0;
        for (name, path) in files {
            let file = File::open(&path).map_err(failed("open", &path))?;
            let count = file.metadata().map_err(failed("look at", &path))?.len() / PAGE_BYTES as u64;
            pages += count;
            if pages > MAX_PAGES || base.blocks.len() >= MAX_BLOCKS {
                let (name, range) = ("pages of the base", "up to 268435456 in 4096 blocks");
                return Err(NetError::Option { name, value: pages, range });
            }
            if count > 0 {
                let digests = digests(&file, count).map_err(failed("read", &path))?;
                base.blocks.push(BaseBlock { name, digests, file });
            }
        }
        Ok(base)
    }

    pub(super) fn pages(&self) -> u64 {
        self.blocks.iter().map(|block| block.digests.len() as u64).sum()
    }
}

fn digests(file: &File, count: u64) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, end) = (0, count * PAGE_BYTES as u64);
    while at < end {
        let length = (end - at).min(PIECE_BYTES as u64) as usize;
        file.read_exact_at(&mut piece[..length], at)?;
        digests.extend(piece[..length].chunks_exact(PAGE_BYTES).map(Digest::of));
        at += length as u64;
    }
    Ok(digests)
}

/// A copy as the other side tells of it, which is no more trusted than anything else it says.
pub(super) struct BaseTold {
    index: BaseIndex,
    names: HashSet<Vec<u8>>,
    /// The block that is told of: its digests, and how many pages it was told to have.
    block: Option<(Vec<u8>, Vec<Digest>, u64)>,
    pages: u64,
    held: u64,
    most_held: u64,
}

impl BaseTold {
    /// Nothing was told yet; the digests of so many pages are held, and those of further ones let go.
    pub(super) fn new(most_held: u64) -> BaseTold {
        let (index, names) = (BaseIndex::new(), HashSet::new());
        BaseTold { index, names, block: None, pages: 0, held: 0, most_held }
    }

    pub(super) fn take(&mut self, part: BasePart) -> Result<(), NetError> {
        let BasePart { first_page, name, mut digests } = part;
        let count = digests.len() as u64;
        self.pages += count;
        if self.pages > MAX_PAGES {
            return Err(refused("the pages of the base", self.pages, MAX_PAGES));
        }
        digests.truncate(usize::try_from(self.most_held - self.held).unwrap_or(usize::MAX));
        self.held += digests.len() as u64;
        if first_page == 0 {
            self.end_block();
            if self.names.len() >= MAX_BLOCKS {
                let most = MAX_BLOCKS as u64;
                return Err(refused("the blocks of the base", most + 1, most));
            }
            if !self.names.insert(name.clone()) {
                return Err(refused("how often a block of the base is told of", 2, 1));
            }
            self.block = Some((name, digests, count));
            return Ok(());
        }
        match &mut self.block {
            Some((known, all, told)) if *known == name && *told == u64::from(first_page) => {
                all.extend(digests);
                *told += count;
                Ok(())
            }
            _ => Err(refused("the first page of a BASE", first_page.into(), 0)),
        }
    }

    fn end_block(&mut self) {
        self.block.take().into_iter().for_each(|(name, digests, _)| self.index.push(name, digests));
    }

    /// All was told: so many pages, and what is known of them.
    pub(super) fn end(mut self) -> (u64, Option<BaseIndex>) {
        self.end_block();
        (self.pages, (self.pages > 0).then_some(self.index))
    }
}

/// Reads pages of a copy.
pub(super) struct BaseReader(pub(super) Arc<Base>);

impl BaseReader {
    fn page(&self, block: Option<&BaseBlock>, number: u64, page: &mut Page) -> Result<(), VmError> {
        let missing = |name: &[u8], reason: String| {
            let block = String::from_utf8_lossy(name).into_owned();
            VmError::Base { block, number, reason }
        };
        let block = block.ok_or_else(|| missing(b"", "there is no such block".to_owned()))?;
        if number >= block.digests.len() as u64 {
            return Err(missing(&block.name, format!("it has {} pages", block.digests.len())));
        }
        let read = block.file.read_exact_at(page, number * PAGE_BYTES as u64);
        read.map_err(|error| missing(&block.name, error.to_string()))
    }
}

impl BasePages for BaseReader {
    fn read(&mut self, name: &[u8], number: u64, page: &mut Page) -> Result<(), VmError> {
        self.page(self.0.blocks.iter().find(|block| block.name == name), number, page)
    }

    fn read_at(&mut self, block: u16, number: u32, page: &mut Page) -> Result<(), VmError> {
        self.page(self.0.blocks.get(usize::from(block)), number.into(), page)
    }
}

/// Writes a copy, page by page.
pub(super) struct KeepFiles {
    directory: PathBuf,
    files: HashMap<Vec<u8>, Option<(File, u64)>>,
}

impl KeepFiles {
    pub(super) fn new(directory: &Path) -> Result<KeepFiles, NetError> {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        Ok(KeepFiles { directory: directory.to_owned(), files: HashMap::new() })
    }

    fn write(&mut self, block: &[u8], number: u64, content: Option<&[u8]>) -> io::Result<()> {
        if number >= MAX_PAGES {
            return Ok(());
        }
        let path = self.directory.join(file_name(block));
        let entry = self.files.entry(block.to_vec()).or_insert_with(|| {
            let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            let open = open.and_then(|file| file.metadata().map(|about| (file, about.len())));
            open.inspect_err(|error| log::warn!("{} is not kept: {error}", path.display())).ok()
        });
        let Some((file, length)) = entry else { return Ok(()) };
        let at = number * PAGE_BYTES as u64;
        let end = at + PAGE_BYTES as u64;
        match content {
            Some(content) => file.write_all_at(content, at)?,
            None if at < *length => file.write_all_at(&[0; PAGE_BYTES], at)?,
            None => file.set_len(end)?,
        }
        *length = end.max(*length);
        Ok(())
    }
}

impl Keep for KeepFiles {
    fn page(&mut self, block: &[u8], number: u64, content: Option<&[u8]>) {
        // A copy that is not whole is of less use, and nothing else: every page of it is proven before it serves.
        if let Err(error) = self.write(block, number, content) {
            log::warn!("a copy of {} is not kept: {error}", String::from_utf8_lossy(block));
            self.files.insert(block.to_vec(), None);
        }
    }
}

/// What the file of a block of RAM is called.
fn file_name(block: &[u8]) -> String {
    let mut name = String::new();
    for byte in block {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(*byte)),
            b'.' if !name.is_empty() => name.push('.'),
            byte => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name
}

/// The block of RAM whose file is called so; none for other files.
fn block_name(file: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut rest = file.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (digits, after) = tail.split_first_chunk::<2>()?;
            let digits = std::str::from_utf8(digits).ok()?;
            name.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            name.push(*first);
            rest = tail;
        }
    }
    (1..256).contains(&name.len()).then_some(name).filter(|name| file_name(name) == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks_become_names_of_files_that_stay_in_their_directory() {
        for (block, file) in [
            (&b"pc.ram"[..], "pc.ram"),
            (b"0000:00:02.0/vga.vram", "0000%3A00%3A02.0%2Fvga.vram"),
            (b"../x", "%2E.%2Fx"),
            (b"\xff", "%FF"),
        ] {
            assert_eq!(file_name(block), file);
            assert_eq!(block_name(file).as_deref(), Some(block));
        }
        for other in ["", "a%", "a%zz", "a%2e", "a b", ".hidden"] {
            assert_eq!(block_name(other), None, "{other}");
        }
    }

    fn part(first_page: u32, name: &str, pages: usize) -> BasePart {
        let digests = (0..pages).map(|page| Digest::of(&page.to_le_bytes())).collect();
        BasePart { first_page, name: name.as_bytes().to_vec(), digests }
    }

    #[test]
    fn what_the_other_side_tells_of_its_base_is_bounded() {
        let mut told = BaseTold::new(u64::MAX);
        for block in 0..MAX_BLOCKS {
            told.take(part(0, &block.to_string(), 1)).unwrap();
        }
        let refused = told.take(part(0, "one more", 1)).unwrap_err().to_string();
        assert!(refused.contains("the blocks of the base") && refused.contains("4096"), "{refused}");
        let mut told = BaseTold::new(u64::MAX);
        told.take(part(0, "pc.ram", 1)).unwrap();
        assert!(told.take(part(2, "pc.ram", 1)).is_err() && told.take(part(1, "x", 1)).is_err());
        assert!(told.take(part(0, "pc.ram", 1)).is_err());
    }

    #[test]
    fn digests_of_more_pages_than_the_machine_can_have_are_let_go() {
        let mut told = BaseTold::new(5);
        for (first_page, name, pages) in [(0, "a", 3), (3, "a", 4), (7, "a", 2), (0, "b", 1)] {
            told.take(part(first_page, name, pages)).unwrap();
        }
        let (pages, index) = told.end();
        assert_eq!((pages, index.unwrap().pages()), (10, 5));
    }

    #[test]
    fn what_is_kept_is_a_base_later() {
        let directory = tempfile::tempdir().unwrap();
        let mut keep = KeepFiles::new(directory.path()).unwrap();
        keep.page(b"pc.ram", 2, Some(&[7; PAGE_BYTES]));
        keep.page(b"pc.ram", 0, Some(&[9; PAGE_BYTES]));
        keep.page(b"pc.ram", 4, None);
        keep.page(b"pc.ram", 0, None);
        keep.page(b"a/b", 0, Some(&[1; PAGE_BYTES]));
        fs::write(directory.path().join("a note"), b"no block").unwrap();
        let base = Arc::new(Base::open(directory.path()).unwrap());
        assert_eq!(base.pages(), 6);
        let zero = Digest::of(&[0; PAGE_BYTES]);
        let ram = &base.blocks.iter().find(|block| block.name == b"pc.ram").unwrap().digests;
        assert_eq!(ram[..], [zero, zero, Digest::of(&[7; PAGE_BYTES]), zero, zero]);
        let mut reader = BaseReader(base);
        let mut page = [0; PAGE_BYTES];
        reader.read(b"pc.ram", 2, &mut page).unwrap();
        assert_eq!(page, [7; PAGE_BYTES]);
        assert!(reader.read(b"pc.ram", 5, &mut page).is_err() && reader.read(b"x", 0, &mut page).is_err());
    }
}
