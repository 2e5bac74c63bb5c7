//! Files that are patched: whole, in chains, in place, and cut off at every step.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use dwcp_codec::patch::{MIN_BLOCK_BYTES, PatchError, PatchOptions, encode};

use super::apply::apply_in_place_on;
use super::disk::{Disk, System};
use super::*;

pub(super) const BLOCK: usize = MIN_BLOCK_BYTES as usize;

pub(super) fn options() -> PatchOptions<'static> {
    PatchOptions { block_bytes: Some(MIN_BLOCK_BYTES), ..PatchOptions::default() }
}

pub(super) fn go_on() -> Result<(), StoreError> {
    Ok(())
}

pub(super) fn noise(mut state: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Two versions with blocks of many kinds; the second is longer by `more` bytes, which may be less than 0.
fn versions(more: isize) -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 7 * BLOCK + 100);
    let mut new = old.clone();
    new[BLOCK..2 * BLOCK].fill(7);
    new[2 * BLOCK + 5] ^= 1;
    new[3 * BLOCK..4 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    // Moved down: in place, it is overwritten before it would be read.
    new.copy_within(2 * BLOCK + 9..3 * BLOCK + 9, 4 * BLOCK);
    new.copy_within(3 * BLOCK..4 * BLOCK, 6 * BLOCK);
    new[6 * BLOCK + 1000] ^= 1;
    let length = new.len().checked_add_signed(more).unwrap();
    new.resize(length, 9);
    (old, new)
}

/// A directory with the files `old`, `new` and the patch between them.
pub(super) fn prepare(more: isize) -> (tempfile::TempDir, Vec<u8>, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = versions(more);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("old"), &old).unwrap();
    fs::write(at("new"), &new).unwrap();
    fs::write(at("patch"), b"").unwrap();
    let contents = diff_files(&at("old"), &at("new"), &at("patch"), &options(), &go_on).unwrap();
    assert_eq!(contents.dependent().count(), 1);
    (directory, old, new)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_patched_as_memory_is() {
    for more in [0, 70_000, -60_000] {
        let (directory, old, new) = prepare(more);
        let at = |name: &str| directory.path().join(name);
        assert!(fs::read(at("patch")).unwrap() == encode(&old, &new, &options()).unwrap());
        for threads in [1, 3] {
            fs::write(at("made"), b"what was there").unwrap();
            apply_files(&at("patch"), &at("old"), &at("made"), threads, &go_on).unwrap();
            assert!(fs::read(at("made")).unwrap() == new);
            fs::write(at("held"), &old).unwrap();
            apply_in_place(&at("patch"), &at("held"), threads, &go_on).unwrap();
            assert!(fs::read(at("held")).unwrap() == new);
            // Once more changes nothing.
            apply_in_place(&at("patch"), &at("held"), threads, &go_on).unwrap();
            assert!(fs::read(at("held")).unwrap() == new);
        }
        assert_eq!(names(directory.path()), ["held", "made", "new", "old", "patch"]);
    }
}

#[test]
fn chain_is_applied_from_where_the_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let versions = [noise(1, 200_000), noise(2, 300_000), noise(3, 100_000), noise(4, 100_000)];
    let mut chain = Vec::new();
    for pair in versions.windows(2) {
        chain.extend(encode(&pair[0], &pair[1], &options()).unwrap());
    }
    fs::write(at("chain"), &chain).unwrap();
    assert_eq!(read_chain(&at("chain"), &go_on).unwrap().len(), 3);
    fs::write(at("old"), &versions[0]).unwrap();
    fs::write(at("made"), b"").unwrap();
    apply_files(&at("chain"), &at("old"), &at("made"), 1, &go_on).unwrap();
    assert!(fs::read(at("made")).unwrap() == versions[3]);
    for version in &versions {
        fs::write(at("held"), version).unwrap();
        apply_files(&at("chain"), &at("held"), &at("made"), 1, &go_on).unwrap();
        assert!(fs::read(at("made")).unwrap() == versions[3]);
        apply_in_place(&at("chain"), &at("held"), 1, &go_on).unwrap();
        assert!(fs::read(at("held")).unwrap() == versions[3]);
    }
    assert_eq!(names(directory.path()), ["chain", "held", "made", "old"]);
    chain.truncate(chain.len() - encode(&versions[2], &versions[3], &options()).unwrap().len());
    chain.extend(encode(&versions[0], &versions[1], &options()).unwrap());
    fs::write(at("chain"), &chain).unwrap();
    let refused = read_chain(&at("chain"), &go_on).unwrap_err();
    assert!(matches!(refused, StoreError::Patch(PatchError::BaseMismatch { .. })));
}

#[test]
fn zeros_are_not_written() {
    let (directory, mut old, _) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    old.resize(100 * BLOCK, 0);
    let mut new = old.clone();
    new[..BLOCK].fill(0);
    new[50 * BLOCK] = 1;
    fs::write(at("old"), &old).unwrap();
    fs::write(at("patch"), encode(&old, &new, &options()).unwrap()).unwrap();
    // Made from the base, and copied.
    for base in ["old", "made"] {
        fs::write(at("next"), b"what was there").unwrap();
        apply_files(&at("patch"), &at(base), &at("next"), 1, &go_on).unwrap();
        assert!(fs::read(at("next")).unwrap() == new);
        let on_disk = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(at("next")).unwrap()) * 512;
        assert!(on_disk < 10 * BLOCK as u64, "{on_disk}");
        fs::rename(at("next"), at("made")).unwrap();
    }
}

#[test]
fn other_base_is_left_as_it_was() {
    let (directory, old, _) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    let mut other = old.clone();
    other[5] ^= 1;
    fs::write(at("held"), &other).unwrap();
    let refused = apply_in_place(&at("patch"), &at("held"), 1, &go_on).unwrap_err();
    assert!(matches!(refused, StoreError::Patch(PatchError::BaseMismatch { .. })), "{refused}");
    assert!(fs::read(at("held")).unwrap() == other);
    assert_eq!(names(directory.path()), ["held", "new", "old", "patch"]);
}

#[test]
fn damaged_payload_leaves_the_file_and_no_journal() {
    let (directory, old, _) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    let mut patch = fs::read(at("patch")).unwrap();
    let last = *read_chain(&at("patch"), &go_on).unwrap()[0].dependent().last().unwrap();
    patch[(last.offset + u64::from(last.length)) as usize - 1] ^= 0x10;
    fs::write(at("patch"), &patch).unwrap();
    assert!(apply_in_place(&at("patch"), &at("old"), 2, &go_on).is_err());
    assert!(fs::read(at("old")).unwrap() == old);
    assert_eq!(names(directory.path()), ["new", "old", "patch"]);
}

#[test]
fn file_that_is_being_changed_is_refused() {
    let (directory, ..) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    let held = super::apply::Held::open(&at("old")).unwrap();
    let refused = apply_in_place(&at("patch"), &at("old"), 1, &go_on).unwrap_err();
    assert!(matches!(refused, StoreError::Busy { .. }));
    assert!(matches!(recover(&at("old"), &go_on), Err(StoreError::Busy { .. })));
    drop(held);
    assert_eq!(recover(&at("old"), &go_on).unwrap(), Recovery::Nothing);
}

#[test]
fn check_that_refuses_ends_the_work_with_its_error() {
    let (directory, old, new) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    for calls in 0.. {
        let left = AtomicUsize::new(calls);
        let check = || match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
        {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Cancelled),
        };
        let done = apply_in_place(&at("patch"), &at("old"), 1, &check);
        assert_eq!(names(directory.path()), ["new", "old", "patch"]);
        if done.is_ok() {
            assert!(calls > 20 && fs::read(at("old")).unwrap() == new, "{calls}");
            break;
        }
        assert!(matches!(done, Err(StoreError::Cancelled)));
        assert!(fs::read(at("old")).unwrap() == old);
    }
}

/// How a disk ends at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The step does not happen.
    Before,
    /// A write happens by half.
    Half,
    /// The step happens, and is the last.
    After,
}

/// A disk that is gone from a step on.
struct Failing {
    steps: AtomicUsize,
    last: usize,
    end: End,
    /// The process is gone, too.
    kill: bool,
}

impl Failing {
    fn new(last: usize, end: End, kill: bool) -> Failing {
        Failing { steps: AtomicUsize::new(0), last, end, kill }
    }

    fn step<T>(
        &self,
        all: impl FnOnce() -> io::Result<T>,
        half: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<T> {
        let number = self.steps.fetch_add(1, Ordering::SeqCst);
        if number < self.last {
            return all();
        }
        if number == self.last {
            match self.end {
                End::Before => {}
                End::Half => half()?,
                End::After => drop(all()?),
            }
            if self.kill {
                let this = rustix::process::getpid();
                rustix::process::kill_process(this, rustix::process::Signal::KILL)?;
            }
        }
        Err(io::Error::other("the disk is gone"))
    }
}

impl Disk for Failing {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(|| System.create(path), || Ok(()))
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let half = &bytes[..bytes.len() / 2];
        self.step(|| System.write(file, bytes, offset), || System.write(file, half, offset))
    }

    fn set_size(&self, file: &File, size: u64) -> io::Result<()> {
        self.step(|| System.set_size(file, size), || Ok(()))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step(|| System.sync(file), || Ok(()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|| System.remove(path), || Ok(()))
    }

    fn sync_names(&self, path: &Path) -> io::Result<()> {
        self.step(|| System.sync_names(path), || Ok(()))
    }
}

/// Looks at a file whose change was cut off, recovers it, and applies the patch once more.
fn assert_never_a_mix(directory: &Path, old: &[u8], new: &[u8], told: &str) {
    let at = |name: &str| directory.join(name);
    let before = fs::read(at("held")).unwrap();
    let journal = at(".held.dwcp-journal").exists();
    if before != old && before != new {
        assert!(journal, "{told}: a mix without a journal");
        std::os::unix::fs::symlink(at("held"), at("link")).unwrap();
        for name in ["held", "link"] {
            let refused = apply_files(&at("patch"), &at(name), &at("made"), 1, &go_on).unwrap_err();
            assert!(matches!(refused, StoreError::Unfinished { .. }), "{told}: {refused}");
        }
        fs::remove_file(at("link")).unwrap();
    }
    let recovery = recover(&at("held"), &go_on).unwrap();
    assert_eq!(recovery == Recovery::Nothing, !journal, "{told}");
    let after = fs::read(at("held")).unwrap();
    assert!(
        if recovery == Recovery::Finished { after == new } else { after == old || after == new },
        "{told}"
    );
    apply_in_place(&at("patch"), &at("held"), 1, &go_on).unwrap();
    assert!(fs::read(at("held")).unwrap() == new, "{told}");
    assert_eq!(names(directory), ["held", "made", "new", "old", "patch"], "{told}");
}

#[test]
fn file_is_old_or_new_wherever_the_disk_ends() {
    let mut faults = 0;
    for more in [0, 70_000, -60_000] {
        let (directory, old, new) = prepare(more);
        let at = |name: &str| directory.path().join(name);
        fs::write(at("made"), b"").unwrap();
        for last in 0.. {
            let mut done = false;
            for end in [End::Before, End::Half, End::After] {
                fs::write(at("held"), &old).unwrap();
                let disk = Failing::new(last, end, false);
                done = apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).is_ok();
                faults += usize::from(!done);
                assert_never_a_mix(directory.path(), &old, &new, &format!("{more} {last} {end:?}"));
            }
            if done {
                break;
            }
        }
    }
    // Three versions, some thirty steps each, three ways to end.
    assert!(faults > 150, "{faults}");
}

#[test]
fn recovery_that_is_cut_off_is_recovered() {
    let (directory, old, new) = prepare(70_000);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("made"), b"").unwrap();
    for first in 0.. {
        fs::write(at("held"), &old).unwrap();
        let disk = Failing::new(first, End::Half, false);
        if apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).is_ok() {
            break;
        }
        for second in 0.. {
            let disk = Failing::new(second, End::Half, false);
            let held = super::apply::Held::open(&at("held")).unwrap();
            if held.recover(&disk, &go_on).is_ok() {
                break;
            }
        }
        assert_never_a_mix(directory.path(), &old, &new, &format!("{first}"));
    }
}

/// Tells a child of a test where to work, and the step at which it is killed.
const CHILD: &str = "DWCP_TEST_KILL";

#[test]
fn file_is_old_or_new_wherever_the_process_is_killed() {
    if let Some(told) = std::env::var_os(CHILD) {
        let told = told.into_string().unwrap();
        let (step, directory) = told.split_once(' ').unwrap();
        let at = |name: &str| PathBuf::from(directory).join(name);
        let disk = Failing::new(step.parse().unwrap(), End::Half, true);
        apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).unwrap();
        return;
    }
    let (directory, old, new) = prepare(-60_000);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("made"), b"").unwrap();
    for step in 0.. {
        fs::write(at("held"), &old).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "patching::tests::file_is_old_or_new_wherever_the_process_is_killed"])
            .env(CHILD, format!("{step} {}", directory.path().display()))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_never_a_mix(directory.path(), &old, &new, &format!("killed at {step}"));
        if status.success() {
            assert!(step > 15, "{step}");
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "at {step}");
    }
}

#[test]
fn journal_of_another_file_is_not_followed() {
    let (directory, old, _) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    // Cut off when the file is a mix: the journal is whole.
    for last in 0.. {
        fs::write(at("old"), &old).unwrap();
        let _ = fs::remove_file(at(".old.dwcp-journal"));
        let disk = Failing::new(last, End::Before, false);
        assert!(apply_in_place_on(&disk, &at("patch"), &at("old"), 1, &go_on).is_err());
        if fs::read(at("old")).unwrap() != old {
            break;
        }
    }
    // Its unchanged blocks are others now.
    let mut foreign = old.clone();
    foreign[5] ^= 1;
    fs::write(at("old"), &foreign).unwrap();
    let refused = recover(&at("old"), &go_on).unwrap_err();
    assert!(matches!(refused, StoreError::Journal { .. }), "{refused}");
    assert!(fs::read(at("old")).unwrap() == foreign);
}

#[test]
fn patch_of_files_made_with_a_dictionary_is_applied_with_it_only_and_leaves_the_file_as_it_was_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let common: Vec<u8> = (0..300_u32).flat_map(|number| format!("field {number}; ").into_bytes()).collect();
    let mut new = common.clone();
    new[1_000..1_010].fill(b'!');
    fs::write(at("old"), b"something else").unwrap();
    fs::write(at("new"), &new).unwrap();
    fs::write(at("patch"), b"").unwrap();
    fs::write(at("made"), b"").unwrap();
    let dictionary = Arc::new(Dictionary::new(common).unwrap());
    let with_it = PatchOptions { dictionary: Some(&dictionary), ..options() };
    diff_files(&at("old"), &at("new"), &at("patch"), &with_it, &go_on).unwrap();
    assert!(fs::metadata(at("patch")).unwrap().len() < 250);
    let needed = dictionary.digest();
    for refused in [
        apply_files(&at("patch"), &at("old"), &at("made"), 1, &go_on).unwrap_err(),
        apply_in_place(&at("patch"), &at("old"), 1, &go_on).unwrap_err(),
    ] {
        assert!(
            matches!(refused, StoreError::Patch(PatchError::DictionaryMissing { needed: named }) if named == needed)
        );
    }
    assert_eq!(fs::read(at("old")).unwrap(), b"something else");
    let with_it = ApplyOptions { threads: 2, dictionary: Some(&dictionary) };
    apply_files(&at("patch"), &at("old"), &at("made"), with_it, &go_on).unwrap();
    apply_in_place(&at("patch"), &at("old"), with_it, &go_on).unwrap();
    assert!(fs::read(at("made")).unwrap() == new && fs::read(at("old")).unwrap() == new);
}
