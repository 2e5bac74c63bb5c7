//! The `openat` family: a name is looked up in an open directory and never followed if it is a link.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use super::{Kind, Lock, Stat};

/// An open directory.
pub(crate) struct Dir {
    fd: rustix::fd::OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Dir {
    /// Whether [`Dir::sync_file_system`] works here.
    pub(crate) const SYNCS_FILE_SYSTEM: bool = cfg!(target_os = "linux");

    /// Opens a directory that the user named: links are followed.
    pub(crate) fn open(path: &Path) -> io::Result<Dir> {
        Ok(Dir { fd: rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())? })
    }

    /// Opens a directory of this one.
    pub(crate) fn enter(&self, name: &[u8]) -> io::Result<Dir> {
        Ok(Dir { fd: rustix::fs::openat(&self.fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())? })
    }

    /// Makes a directory; the process's umask is taken from `mode`.
    pub(crate) fn make_dir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode as _))?)
    }

    /// What `name` is here; `None` if there is no such name.
    pub(crate) fn stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(from_stat(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn open_read(&self, name: &[u8]) -> io::Result<File> {
        // NONBLOCK: a FIFO swapped in must not hang the open.
        self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// Opens a file to read and write it.
    pub(crate) fn open_write(&self, name: &[u8], create: bool) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR | if create { OFlags::CREATE } else { OFlags::empty() })
    }

    /// Opens or makes a file whose writes all go to its end.
    pub(crate) fn open_append(&self, name: &[u8]) -> io::Result<File> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)
    }

    fn open_file(&self, name: &[u8], flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, name, flags, PRIVATE_FILE)?))
    }

    /// Opens or makes a file and takes its lock; `None` if somebody else has it.
    pub(crate) fn open_lock(&self, name: &[u8]) -> io::Result<Option<Lock>> {
        Lock::take(self.open_write(name, true)?)
    }

    /// Renames `name` to `to_name` in `to`, replacing what is there only if `replace`.
    pub(crate) fn rename(&self, name: &[u8], to: &Dir, to_name: &[u8], replace: bool) -> io::Result<()> {
        if !replace {
            return self.rename_new(name, to, to_name);
        }
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, to_name)?)
    }

    fn rename_new(&self, name: &[u8], to: &Dir, to_name: &[u8]) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_vendor = "apple"))]
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, rustix::fs::RenameFlags::NOREPLACE) {
            // The file system does not know the flag: look first.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            done => return Ok(done?),
        }
        if to.stat(to_name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        Ok(rustix::fs::renameat(&self.fd, name, &to.fd, to_name)?)
    }

    pub(crate) fn make_symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.fd, name)?)
    }

    /// Where the link `name` leads.
    pub(crate) fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    pub(crate) fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    pub(crate) fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// The names in this directory, in no order.
    pub(crate) fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// May this process make and replace names here?
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        // Without EACCESS, which not every libc has: the real and the effective user are the same in our programs.
        Ok(rustix::fs::accessat(&self.fd, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())?)
    }

    /// May this process change the mode of this directory, being its owner?
    pub(crate) fn is_owned(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw())
    }

    /// Lets the owner make and replace names here.
    pub(crate) fn open_to_owner(&self) -> io::Result<()> {
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&self.fd)?.st_mode);
        Ok(rustix::fs::fchmod(&self.fd, mode | Mode::RWXU)?)
    }

    /// Sets the mode of `name`, which must not be a link.
    pub(crate) fn set_mode_of(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode as _), AtFlags::empty())?)
    }

    pub(crate) fn set_mtime_of(&self, name: &[u8], mtime_ns: i64) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&self.fd, name, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the mode and modification time of this directory itself.
    pub(crate) fn set_attributes(&self, mode: u32, mtime_ns: i64) -> io::Result<()> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode as _))?;
        Ok(rustix::fs::futimens(&self.fd, &times(mtime_ns))?)
    }

    /// Makes the names in this directory last.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Makes everything on this file system last, where that can be asked for in one call; false if it cannot.
    pub(crate) fn sync_file_system(&self) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        {
            rustix::fs::syncfs(&self.fd)?;
            Ok(true)
        }
        #[cfg(not(target_os = "linux"))]
        Ok(false)
    }

    /// Bytes that this user may still allocate on the file system, where it is known.
    pub(crate) fn free_bytes(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::fstatvfs(&self.fd)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// The bytes of a name.
pub(crate) fn bytes_of(name: &OsStr) -> Option<Cow<'_, [u8]>> {
    Some(Cow::Borrowed(name.as_bytes()))
}

/// The path that the bytes name.
pub(crate) fn path_of(bytes: &[u8]) -> Option<PathBuf> {
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}

pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
}

/// Opens a file to read, whatever it turns out to be: a pipe without a writer is not waited for.
pub(crate) fn open_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
}

pub(crate) fn stat_path(path: &Path) -> io::Result<Stat> {
    Ok(from_metadata(&path.symlink_metadata()?))
}

pub(crate) fn stat_file(file: &File) -> io::Result<Stat> {
    Ok(from_metadata(&file.metadata()?))
}

/// Gives the lock of a file back.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::flock(file, FlockOperation::Unlock)?)
}

/// Takes the lock of a file; false if somebody else has it.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn read_at(file: &File, dst: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(dst, offset)
}

pub(crate) fn write_all_at(file: &File, src: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(src, offset)
}

/// Is the whole range known to be a hole? The file's cursor moves; nothing here reads by it.
pub(crate) fn is_hole(file: &File, offset: u64, length: u64) -> bool {
    #[cfg(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"))]
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => return data >= offset + length,
        // No data to the end of the file: a hole if the file is that long.
        Err(Errno::NXIO) => return file.metadata().is_ok_and(|metadata| metadata.len() >= offset + length),
        Err(_) => {}
    }
    false
}

/// Makes the range a hole, where the file system can; false if it cannot.
pub(crate) fn punch_hole(file: &File, offset: u64, length: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, flags, offset, length).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, offset, length);
        false
    }
}

fn times(mtime_ns: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000) as _,
        },
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Special("FIFO"),
        FileType::Socket => Kind::Special("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Kind::Special("device"),
        FileType::Unknown => Kind::Special("file of unknown kind"),
    }
}

// The fields of `stat` have other integer types on other systems.
#[allow(clippy::unnecessary_cast)]
fn from_stat(stat: &rustix::fs::Stat) -> Stat {
    Stat {
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        mode: stat.st_mode as u32 & 0o7777,
        size: stat.st_size as u64,
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        mtime_ns: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        sparse: (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64,
    }
}

fn from_metadata(metadata: &std::fs::Metadata) -> Stat {
    Stat {
        kind: kind(FileType::from_raw_mode(metadata.mode() as _)),
        mode: metadata.mode() & 0o7777,
        size: metadata.size(),
        device: metadata.dev(),
        inode: metadata.ino(),
        mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        sparse: metadata.blocks().saturating_mul(512) < metadata.size(),
    }
}
