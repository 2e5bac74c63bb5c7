//! What the standard library offers everywhere, for systems without the `openat` family.
//!
//! Weaker than its sibling: a directory swapped for a link between a check and its use is followed, modes are not
//! set, holes are filled, and files are told apart by size and time only. On Unix it is built for its tests alone.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Kind, Lock, Stat};

/// A directory, by its path.
pub(crate) struct Dir {
    path: PathBuf,
}

impl Dir {
    pub(crate) const SYNCS_FILE_SYSTEM: bool = false;

    pub(crate) fn open(path: &Path) -> io::Result<Dir> {
        match fs::metadata(path)?.is_dir() {
            true => Ok(Dir { path: path.to_path_buf() }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn at(&self, name: &[u8]) -> io::Result<PathBuf> {
        Ok(self.path.join(path_of(name).ok_or(io::ErrorKind::InvalidFilename)?))
    }

    pub(crate) fn enter(&self, name: &[u8]) -> io::Result<Dir> {
        let path = self.at(name)?;
        match stat_path(&path)?.kind {
            Kind::Directory => Ok(Dir { path }),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(crate) fn make_dir(&self, name: &[u8], _mode: u32) -> io::Result<()> {
        fs::create_dir(self.at(name)?)
    }

    pub(crate) fn stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match stat_path(&self.at(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            stat => stat.map(Some),
        }
    }

    pub(crate) fn open_read(&self, name: &[u8]) -> io::Result<File> {
        open_no_follow(&self.at(name)?)
    }

    pub(crate) fn open_write(&self, name: &[u8], create: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).open(self.at(name)?)
    }

    pub(crate) fn open_append(&self, name: &[u8]) -> io::Result<File> {
        OpenOptions::new().read(true).append(true).create(true).open(self.at(name)?)
    }

    pub(crate) fn open_lock(&self, name: &[u8]) -> io::Result<Option<Lock>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(windows)]
        {
            const SHARING_VIOLATION: i32 = 32;
            std::os::windows::fs::OpenOptionsExt::share_mode(&mut options, 0);
            match options.open(self.at(name)?) {
                Err(error) if error.raw_os_error() == Some(SHARING_VIOLATION) => Ok(None),
                opened => Lock::take(opened?),
            }
        }
        #[cfg(not(windows))]
        Lock::take(options.open(self.at(name)?)?)
    }

    pub(crate) fn rename(&self, name: &[u8], to: &Dir, to_name: &[u8], replace: bool) -> io::Result<()> {
        if !replace && to.stat(to_name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(self.at(name)?, to.at(to_name)?)
    }

    pub(crate) fn make_symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        let (target, link) = (path_of(target).ok_or(io::ErrorKind::InvalidFilename)?, self.at(name)?);
        #[cfg(windows)]
        return std::os::windows::fs::symlink_file(target, link);
        #[cfg(unix)]
        return std::os::unix::fs::symlink(target, link);
        #[cfg(not(any(unix, windows)))]
        {
            let _ = (target, link);
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    pub(crate) fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        let target = fs::read_link(self.at(name)?)?;
        bytes_of(target.as_os_str()).map(Cow::into_owned).ok_or(io::ErrorKind::InvalidFilename.into())
    }

    pub(crate) fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        fs::remove_file(self.at(name)?)
    }

    pub(crate) fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        fs::remove_dir(self.at(name)?)
    }

    pub(crate) fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let name = |entry: io::Result<fs::DirEntry>| match bytes_of(&entry?.file_name()) {
            Some(name) => Ok(name.into_owned()),
            None => Err(io::ErrorKind::InvalidFilename.into()),
        };
        fs::read_dir(&self.path)?.map(name).collect()
    }

    pub(crate) fn check_writable(&self) -> io::Result<()> {
        match fs::metadata(&self.path)?.permissions().readonly() {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    pub(crate) fn is_owned(&self) -> bool {
        false
    }

    pub(crate) fn open_to_owner(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn set_mode_of(&self, name: &[u8], _mode: u32) -> io::Result<()> {
        self.stat(name)?.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    pub(crate) fn set_mtime_of(&self, name: &[u8], mtime_ns: i64) -> io::Result<()> {
        let path = self.at(name)?;
        match stat_path(&path)?.kind {
            Kind::File => set_mtime(&OpenOptions::new().write(true).open(path)?, mtime_ns),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_attributes(&self, _mode: u32, mtime_ns: i64) -> io::Result<()> {
        // Not every system opens a directory; its time is then left as it is.
        File::open(&self.path).map_or(Ok(()), |file| set_mtime(&file, mtime_ns))
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn sync_file_system(&self) -> io::Result<bool> {
        Ok(false)
    }

    pub(crate) fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

pub(crate) fn bytes_of(name: &OsStr) -> Option<Cow<'_, [u8]>> {
    Some(Cow::Borrowed(name.to_str()?.as_bytes()))
}

pub(crate) fn path_of(bytes: &[u8]) -> Option<PathBuf> {
    let text = str::from_utf8(bytes).ok()?;
    // What is a separator, a drive or a stream here must not come in as a part of a name.
    (!text.contains(['\\', ':'])).then(|| PathBuf::from(text))
}

pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
    match stat_path(path)?.kind {
        Kind::File => File::open(path),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

pub(crate) fn open_read(path: &Path) -> io::Result<File> {
    File::open(path)
}

pub(crate) fn stat_path(path: &Path) -> io::Result<Stat> {
    Ok(from_metadata(&path.symlink_metadata()?))
}

pub(crate) fn stat_file(file: &File) -> io::Result<Stat> {
    Ok(from_metadata(&file.metadata()?))
}

/// Files are not locked here.
pub(super) fn unlock(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Files are not locked here.
pub(super) fn try_lock(_file: &File) -> io::Result<bool> {
    Ok(true)
}

pub(crate) fn read_at(file: &File, dst: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, dst, offset);
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, dst, offset);
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (file, dst, offset);
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) fn write_all_at(file: &File, src: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, src, offset);
    #[cfg(windows)]
    {
        let mut written = 0;
        while written < src.len() {
            let at = offset + written as u64;
            match std::os::windows::fs::FileExt::seek_write(file, &src[written..], at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                more => written += more,
            }
        }
        Ok(())
    }
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (file, src, offset);
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) fn is_hole(_file: &File, _offset: u64, _length: u64) -> bool {
    false
}

pub(crate) fn punch_hole(_file: &File, _offset: u64, _length: u64) -> bool {
    false
}

fn set_mtime(file: &File, mtime_ns: i64) -> io::Result<()> {
    let distance = Duration::from_nanos(mtime_ns.unsigned_abs());
    let time = match mtime_ns < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(distance),
        false => SystemTime::UNIX_EPOCH.checked_add(distance),
    };
    file.set_times(FileTimes::new().set_modified(time.ok_or(io::ErrorKind::InvalidInput)?))
}

fn from_metadata(metadata: &Metadata) -> Stat {
    let file_type = metadata.file_type();
    let kind = if file_type.is_symlink() {
        Kind::Symlink
    } else if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_file() {
        Kind::File
    } else {
        Kind::Special("special file")
    };
    let mtime_ns = metadata.modified().map_or(0, |time| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanoseconds| -nanoseconds)
        }
    });
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let size = if kind == Kind::File { metadata.len() } else { 0 };
    Stat { kind, mode, size, device: 0, inode: 0, mtime_ns, ctime_ns: 0, sparse: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_file_is_written_renamed_and_read_back() {
        let temporary = tempfile::tempdir().unwrap();
        let root = Dir::open(temporary.path()).unwrap();
        root.make_dir(b"d", 0o700).unwrap();
        let dir = root.enter(b"d").unwrap();
        let file = dir.open_write(b"f", true).unwrap();
        write_all_at(&file, b"content", 3).unwrap();
        dir.set_mode_of(b"f", 0o600).unwrap();
        dir.set_mtime_of(b"f", -1_500_000_000).unwrap();
        assert_eq!(dir.stat(b"f").unwrap().unwrap().mtime_ns, -1_500_000_000);
        dir.rename(b"f", &root, b"g", false).unwrap();
        assert!(dir.stat(b"f").unwrap().is_none());
        let mut bytes = [9; 10];
        assert_eq!(read_at(&root.open_read(b"g").unwrap(), &mut bytes, 0).unwrap(), 10);
        assert_eq!(&bytes, b"\0\0\0content");
        assert_eq!(open_read(&temporary.path().join("g")).unwrap().metadata().unwrap().len(), 10);
        dir.open_append(b"f").unwrap();
        let refused = dir.rename(b"f", &root, b"g", false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(stat_file(&root.open_read(b"g").unwrap()).unwrap().size, 10);
        let mut names = root.names().unwrap();
        names.sort();
        assert_eq!(names, [b"d", b"g"]);
        dir.remove_file(b"f").unwrap();
        root.check_writable().unwrap();
        assert!(!root.is_owned() && root.open_to_owner().is_err());
        dir.set_attributes(0o755, 1_000_000_000).unwrap();
        assert_eq!(root.stat(b"d").unwrap().unwrap().mtime_ns, 1_000_000_000);
        dir.sync().unwrap();
        root.remove_dir(b"d").unwrap();
        assert!(
            !Dir::SYNCS_FILE_SYSTEM
                && !root.sync_file_system().unwrap()
                && root.free_bytes().unwrap().is_none()
        );
        assert!(!is_hole(&file, 0, 1) && !punch_hole(&file, 0, 1));
        assert!(root.open_lock(b"lock").unwrap().is_some() && try_lock(&file).unwrap());
        unlock(&file).unwrap();
    }

    #[test]
    fn link_is_not_entered_or_opened() {
        let temporary = tempfile::tempdir().unwrap();
        let root = Dir::open(temporary.path()).unwrap();
        root.make_symlink(b".", b"link").unwrap();
        assert!(root.enter(b"link").is_err());
        assert!(root.open_read(b"link").is_err());
        assert_eq!(root.read_link(b"link").unwrap(), b".");
    }

    #[test]
    fn names_with_a_meaning_to_windows_are_refused() {
        for name in [&b"a\\b"[..], b"c:", b"file:stream", b"\xff"] {
            assert!(path_of(name).is_none());
        }
        assert_eq!(bytes_of(OsStr::new("name")).as_deref(), Some(&b"name"[..]));
    }
}
