//! Power that fails while a file is changed in place: what was not synced is lost, kept, or torn at sectors.
//!
//! Every step of the disk is recorded, and after a number of them what may be on disk is made: all that was synced, and
//! of the rest any sectors. The system may have ended a process before, whose writes are seen by the next one without
//! being on disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dwcp_codec::patch::encode;

use super::apply::{Held, apply_in_place_on};
use super::disk::{Disk, System};
use super::tests::{BLOCK, go_on, noise, options, prepare};
use super::*;

/// What a disk writes as a whole.
const SECTOR: usize = 512;
/// The file itself; journals are numbered from 1 on.
const HELD: usize = 0;

/// A step that was taken.
#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Write(usize, u64, Vec<u8>),
    SetSize(usize, u64),
    Sync(usize),
    Remove,
    SyncNames,
}

/// A disk that keeps what is done, and takes no more steps than it was told. Nothing is synced in earnest: that only
/// takes time.
struct Recorder {
    done: Mutex<Vec<Step>>,
    /// Numbers of files by their inodes.
    numbers: Mutex<HashMap<u64, usize>>,
    left: Mutex<usize>,
}

impl Recorder {
    fn new(left: usize) -> Recorder {
        Recorder { done: Mutex::default(), numbers: Mutex::default(), left: Mutex::new(left) }
    }

    fn allow(&self, steps: usize) {
        *self.left.lock().unwrap() = steps;
    }

    fn steps(&self) -> Vec<Step> {
        self.done.lock().unwrap().clone()
    }

    fn number(&self, file: &File) -> usize {
        let inode = file.metadata().unwrap().ino();
        self.numbers.lock().unwrap().get(&inode).copied().unwrap_or(HELD)
    }

    fn take<T>(&self, step: impl FnOnce(&T) -> Step, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.checked_sub(1).ok_or(io::Error::other("the process was killed"))?;
        let made = act()?;
        self.done.lock().unwrap().push(step(&made));
        Ok(made)
    }
}

impl Disk for Recorder {
    fn create(&self, path: &Path) -> io::Result<File> {
        let number = |file: &File| {
            let mut numbers = self.numbers.lock().unwrap();
            let next = numbers.values().copied().max().unwrap_or(HELD) + 1;
            numbers.insert(file.metadata().unwrap().ino(), next);
            Step::Create(next)
        };
        self.take(number, || System.create(path))
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let step = |(): &()| Step::Write(self.number(file), offset, bytes.to_vec());
        self.take(step, || System.write(file, bytes, offset))
    }

    fn set_size(&self, file: &File, size: u64) -> io::Result<()> {
        self.take(|()| Step::SetSize(self.number(file), size), || System.set_size(file, size))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.take(|()| Step::Sync(self.number(file)), || Ok(()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.take(|()| Step::Remove, || System.remove(path))
    }

    fn sync_names(&self, _path: &Path) -> io::Result<()> {
        self.take(|()| Step::SyncNames, || Ok(()))
    }
}

/// Chances, the same for the same seed.
struct Chance(u64);

/// The chances of one try at one place.
fn chance_of(seed: u64, place: usize) -> Chance {
    Chance((seed << 32) + place as u64)
}

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// How much of what was not synced is on disk all the same.
#[derive(Clone, Copy)]
struct Loss {
    /// Of a hundred steps, and of a hundred sectors of a torn write.
    kept: u64,
    torn: bool,
    /// Sectors that were never written hold what was there before the file was.
    stale: bool,
}

impl Loss {
    fn any(chance: &mut Chance) -> Loss {
        let kept = [0, 10, 50, 90, 100][chance.below(5) as usize];
        Loss { kept, torn: chance.below(2) == 0, stale: chance.below(2) == 0 }
    }
}

/// What a file has on disk after `steps` of it.
fn file_after(number: usize, start: &[u8], steps: &[Step], loss: Loss, chance: &mut Chance) -> Vec<u8> {
    let mut content = start.to_vec();
    let synced = steps.iter().rposition(|step| matches!(step, Step::Sync(file) if *file == number));
    for (place, step) in steps.iter().enumerate() {
        let is_safe = synced.is_some_and(|synced| place < synced);
        let is_kept = is_safe || chance.below(100) < loss.kept;
        match step {
            Step::SetSize(file, size) if *file == number && is_kept => content.resize(*size as usize, 0),
            Step::Write(file, offset, bytes) if *file == number => {
                let start = *offset as usize;
                if !is_kept && !loss.torn {
                    continue;
                }
                let mut at = start;
                while at < start + bytes.len() {
                    let end = ((at / SECTOR + 1) * SECTOR).min(start + bytes.len());
                    if is_kept || chance.below(100) < loss.kept {
                        let was = content.len();
                        if end > was {
                            content.resize(end, 0);
                            // What lies between may be on disk as it ever was.
                            if loss.stale && !is_safe && at > was {
                                content[was..at].copy_from_slice(&noise(chance.below(1 << 40) | 1, at - was));
                            }
                        }
                        content[at..end].copy_from_slice(&bytes[at - start..end - start]);
                    }
                    at = end;
                }
            }
            _ => {}
        }
    }
    content
}

/// The number of the journal that has its name on disk after `steps`.
fn name_after(steps: &[Step], chance: &mut Chance) -> Option<usize> {
    let changes = |step: &Step| match step {
        Step::Create(number) => Some(Some(*number)),
        Step::Remove => Some(None),
        _ => None,
    };
    let synced = steps.iter().rposition(|step| matches!(step, Step::SyncNames)).unwrap_or(0);
    let safe = steps[..synced].iter().rev().find_map(changes).flatten();
    let mut may_be = vec![safe];
    may_be.extend(steps[synced..].iter().filter_map(changes));
    may_be[chance.below(may_be.len() as u64) as usize]
}

/// Makes the directory what it may be after power was lost behind `steps`.
fn lose_power(directory: &Path, old: &[u8], steps: &[Step], chance: &mut Chance) {
    let loss = Loss::any(chance);
    fs::write(directory.join("held"), file_after(HELD, old, steps, loss, chance)).unwrap();
    let journal = directory.join(".held.dwcp-journal");
    let _ = fs::remove_file(&journal);
    if let Some(number) = name_after(steps, chance) {
        fs::write(journal, file_after(number, b"", steps, loss, chance)).unwrap();
    }
}

/// What is tried: how many losses at every step.
const LOSSES: u64 = 12;

/// Recovers, expects one of the versions, the last if all was done, and applies the patch again.
fn assert_never_a_mix(directory: &Path, versions: &[&[u8]], was_done: bool, told: &str) {
    let at = |name: &str| directory.join(name);
    let disk = Recorder::new(usize::MAX);
    let recovered = Held::open(&at("held")).unwrap().recover(&disk, &go_on);
    let recovery = recovered.unwrap_or_else(|error| panic!("{told}: {error}"));
    let now = fs::read(at("held")).unwrap();
    let found = versions.iter().rposition(|version| now == *version);
    let last = versions.len() - 1;
    assert!(found.is_some_and(|found| found == last || !was_done), "{told}: {recovery:?}, then {found:?}");
    apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).unwrap();
    assert!(fs::read(at("held")).unwrap() == versions[last], "{told}");
    assert!(!at(".held.dwcp-journal").exists(), "{told}");
}

#[test]
fn file_is_old_or_new_whenever_power_fails() {
    let mut losses = 0;
    for more in [0, 70_000, -60_000] {
        let (directory, old, new) = prepare(more);
        let at = |name: &str| directory.path().join(name);
        fs::write(at("held"), &old).unwrap();
        let disk = Recorder::new(usize::MAX);
        apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).unwrap();
        let steps = disk.steps();
        for count in 0..=steps.len() {
            for seed in 1..=LOSSES {
                let mut chance = chance_of(seed, count);
                lose_power(directory.path(), &old, &steps[..count], &mut chance);
                let told = format!("{more}, after {count} steps, seed {seed}");
                assert_never_a_mix(directory.path(), &[&old, &new], count == steps.len(), &told);
                losses += 1;
            }
        }
    }
    assert!(losses > 500, "{losses}");
}

#[test]
fn file_is_old_or_new_whenever_power_fails_after_a_kill() {
    let mut losses = 0;
    for more in [0, 70_000, -60_000] {
        let (directory, old, new) = prepare(more);
        let at = |name: &str| directory.path().join(name);
        for killed in 0.. {
            // The next process sees all that the killed one wrote, though it may not be on disk.
            let _ = fs::remove_file(at(".held.dwcp-journal"));
            fs::write(at("held"), &old).unwrap();
            let disk = Recorder::new(killed);
            if apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).is_ok() {
                break;
            }
            let first = disk.steps().len();
            disk.allow(usize::MAX);
            let recovered = Held::open(&at("held")).unwrap().recover(&disk, &go_on).unwrap();
            let steps = disk.steps();
            for count in first..=steps.len() {
                for seed in 1..=LOSSES / 3 {
                    let mut chance = chance_of(seed, killed * 4_096 + count);
                    lose_power(directory.path(), &old, &steps[..count], &mut chance);
                    let told = format!("{more}, killed at {killed}, power lost at {count}, seed {seed}");
                    let was_done = count == steps.len() && recovered == Recovery::Finished;
                    assert_never_a_mix(directory.path(), &[&old, &new], was_done, &told);
                    losses += 1;
                }
            }
        }
    }
    assert!(losses > 500, "{losses}");
}

#[test]
fn base_that_was_written_just_before_is_on_disk_before_it_is_changed() {
    let (directory, old, new) = prepare(0);
    let at = |name: &str| directory.path().join(name);
    fs::write(at("held"), &old).unwrap();
    let disk = Recorder::new(usize::MAX);
    apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).unwrap();
    let mut steps = vec![Step::Write(HELD, 0, old.clone())];
    steps.extend(disk.steps());
    // As soon as a block may be written, nothing of the base may be lost.
    let first = steps.iter().position(|step| matches!(step, Step::SetSize(..))).unwrap();
    for count in first..=steps.len() {
        for seed in 1..=LOSSES {
            let mut chance = chance_of(seed, count);
            lose_power(directory.path(), &noise(9, old.len()), &steps[..count], &mut chance);
            let told = format!("after {count} steps, seed {seed}");
            assert_never_a_mix(directory.path(), &[&old, &new], count == steps.len(), &told);
        }
    }
}

#[test]
fn chain_stops_at_one_of_its_versions_whenever_power_fails() {
    let (directory, old, new) = prepare(70_000);
    let at = |name: &str| directory.path().join(name);
    let mut last = new.clone();
    last[..BLOCK].fill(3);
    last.truncate(5 * BLOCK);
    let mut chain = fs::read(at("patch")).unwrap();
    chain.extend(encode(&new, &last, &options()).unwrap());
    fs::write(at("patch"), chain).unwrap();
    fs::write(at("held"), &old).unwrap();
    let disk = Recorder::new(usize::MAX);
    apply_in_place_on(&disk, &at("patch"), &at("held"), 1, &go_on).unwrap();
    let steps = disk.steps();
    for count in 0..=steps.len() {
        for seed in 1..=LOSSES / 2 {
            let mut chance = chance_of(seed, count);
            lose_power(directory.path(), &old, &steps[..count], &mut chance);
            let told = format!("after {count} steps, seed {seed}");
            assert_never_a_mix(directory.path(), &[&old, &new, &last], count == steps.len(), &told);
        }
    }
}
