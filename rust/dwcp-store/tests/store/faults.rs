//! Disks that fill up, rights that are missing, files that vanish, copies that meet.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;

use crate::support::*;
use dwcp_codec::digest::Digest;
use dwcp_store::{Prepared, Sink, Source, StoreError, TreeSink};

/// Names the directory in which a child of a test does its part.
const CHILD: &str = "DWCP_TEST_CHILD_DIR";

/// Runs `test` again in a process of its own, to which writes past a size limit fail instead of killing it.
fn run_child(test: &str, dir: &Path) {
    let status = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, dir)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the child of {test} failed");
}

/// Lets this process write no file beyond `bytes`.
fn limit_files(bytes: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum }).unwrap();
}

/// Stores block after block of entry 0 from number `first` until one cannot be stored.
fn store_until_it_fails(source: &dyn Source, sink: &TreeSink, first: u64, zeros: bool) -> (u64, StoreError) {
    let mut scratch = Vec::new();
    for number in first.. {
        let offset = if zeros { 0 } else { number * BLOCK as u64 };
        let block = source.block(0, offset, BLOCK as u32, &mut scratch).unwrap();
        if let Err(error) = sink.store(0, offset, block, Digest::of(block)) {
            return (number - first, error);
        }
    }
    unreachable!("the numbers do not end")
}

#[test]
fn full_disk_is_told_with_its_error_number_and_leaves_a_usable_ledger() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("file"), noise(64 * BLOCK, 5)).unwrap();
        let (manifest, source) = offer(&[&temporary.path().join("file")]);
        let sink = sink(&temporary.path().join("to"));
        fill(&manifest, &source, &sink, &prepare(&sink, &manifest).unwrap(), 1);
        drop(sink);
        run_child(
            "faults::full_disk_is_told_with_its_error_number_and_leaves_a_usable_ledger",
            temporary.path(),
        );
        return;
    };
    let (manifest, source) = offer(&[&dir.join("file")]);
    let sink = sink(&dir.join("to"));
    prepare(&sink, &manifest).unwrap();
    // The tenth block fits by half.
    limit_files(9 * BLOCK as u64 + BLOCK as u64 / 2);
    let (stored, failed) = store_until_it_fails(&source, &sink, 1, false);
    assert_eq!(stored, 8);
    assert_eq!(failed.io().unwrap().raw_os_error(), Some(rustix::io::Errno::FBIG.raw_os_error()));
    assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, 9 * BLOCK as u64);
}

#[test]
fn record_that_does_not_fit_on_the_disk_does_not_hide_those_that_follow() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        let temporary = tempfile::tempdir().unwrap();
        let mut content = noise(2 * BLOCK, 5);
        content[..BLOCK].fill(0);
        fs::write(temporary.path().join("file"), content).unwrap();
        let (manifest, _) = offer(&[&temporary.path().join("file")]);
        prepare(&sink(&temporary.path().join("to")), &manifest).unwrap();
        run_child(
            "faults::record_that_does_not_fit_on_the_disk_does_not_hide_those_that_follow",
            temporary.path(),
        );
        return;
    };
    let (manifest, source) = offer(&[&dir.join("file")]);
    let sink = sink(&dir.join("to"));
    prepare(&sink, &manifest).unwrap();
    // The ledger may be as long as the file, and half a record longer: its second piece is torn.
    limit_files(2 * BLOCK as u64 + 16);
    let (stored, failed) = store_until_it_fails(&source, &sink, 0, true);
    assert_eq!(stored, 2 * BLOCK as u64 / 32 - 1);
    assert!(matches!(failed, StoreError::Io { action: "write", ref path, .. } if path.ends_with("ledger")));
    limit_files(3 * BLOCK as u64);
    let mut scratch = Vec::new();
    let block = source.block(0, BLOCK as u64, BLOCK as u32, &mut scratch).unwrap();
    sink.store(0, BLOCK as u64, block, Digest::of(block)).unwrap();
    assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, 2 * BLOCK as u64);
}

#[test]
fn directory_that_may_not_be_written_is_refused_before_anything_is_staged() {
    let temporary = tempfile::tempdir().unwrap();
    let (from, to) = (temporary.path().join("file"), temporary.path().join("to"));
    fs::write(&from, b"content").unwrap();
    fs::create_dir(&to).unwrap();
    let (manifest, _) = offer(&[&from]);
    for (dir, mode) in [(temporary.path(), 0o755), (&to, 0o555)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let refused = std::thread::scope(|scope| {
        let work = || {
            #[cfg(target_os = "linux")]
            if rustix::process::geteuid().is_root() {
                // Root may write anywhere; this thread, and it alone, is somebody else from here on.
                let nobody = rustix::process::Uid::from_raw(65_534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            prepare(&sink(&to), &manifest).unwrap_err()
        };
        scope.spawn(work).join().unwrap()
    });
    assert_eq!(refused.io().unwrap().kind(), std::io::ErrorKind::PermissionDenied);
    assert!(fs::read_dir(&to).unwrap().next().is_none());
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn staged_file_that_somebody_removed_does_not_come_back_as_one_of_holes() {
    let temporary = tempfile::tempdir().unwrap();
    let (from, to) = (temporary.path().join("from"), temporary.path().join("to"));
    fs::create_dir(&from).unwrap();
    // More files than are kept open.
    for number in 0..80 {
        fs::write(from.join(format!("{number:02}")), noise(2 * BLOCK, number + 1)).unwrap();
    }
    let (manifest, source) = offer(&[&from]);
    let sink = sink(&to);
    prepare(&sink, &manifest).unwrap();
    let mut scratch = Vec::new();
    let mut store = |entry: u32, block: u64| {
        let bytes = source.block(entry, block * BLOCK as u64, BLOCK as u32, &mut scratch).unwrap();
        sink.store(entry, block * BLOCK as u64, bytes, Digest::of(bytes))
    };
    for entry in 1..=80 {
        store(entry, 0).unwrap();
    }
    let data = to.join(".dwcp").join(manifest.transfer_id().to_string()).join("data");
    fs::remove_file(data.join("1")).unwrap();
    let lost = store(1, 1).unwrap_err();
    assert_eq!(lost.io().unwrap().kind(), std::io::ErrorKind::NotFound);
    // A file that its owner discards is begun anew.
    fs::remove_file(data.join("2")).unwrap();
    sink.discard(&[2]).unwrap();
    store(2, 1).unwrap();
}

#[test]
fn of_two_copies_that_differ_disk_and_ledger_tell_of_the_same_one() {
    let temporary = tempfile::tempdir().unwrap();
    fs::write(temporary.path().join("file"), noise(BLOCK, 1)).unwrap();
    let (manifest, _) = offer(&[&temporary.path().join("file")]);
    let copies = [noise(BLOCK, 1), noise(BLOCK, 2), noise(BLOCK, 3), vec![0; BLOCK]];
    let sink = sink(&temporary.path().join("to"));
    for round in 0..100 {
        prepare(&sink, &manifest).unwrap();
        let start = Barrier::new(copies.len());
        std::thread::scope(|scope| {
            for copy in &copies {
                scope.spawn(|| {
                    start.wait();
                    sink.store(0, 0, copy, Digest::of(copy)).unwrap();
                });
            }
        });
        assert_eq!(prepare(&sink, &manifest).unwrap().staged_bytes, BLOCK as u64, "round {round}");
    }
}

#[test]
fn ledger_of_more_records_than_are_read_at_once_is_read_to_its_end() {
    let temporary = tempfile::tempdir().unwrap();
    let mut content = noise(2 * BLOCK, 5);
    content[..BLOCK].fill(0);
    fs::write(temporary.path().join("file"), &content).unwrap();
    let (manifest, source) = offer(&[&temporary.path().join("file")]);
    let sink = sink(&temporary.path().join("to"));
    // The last record of a piece, the first of the next, and one behind it.
    for repeats in [4_095, 4_096, 4_097] {
        sink.abort();
        let _ = dwcp_store::remove_staging(&temporary.path().join("to"), manifest.transfer_id());
        prepare(&sink, &manifest).unwrap();
        for _ in 0..repeats {
            sink.store(0, 0, &content[..BLOCK], Digest::of(&content[..BLOCK])).unwrap();
        }
        sink.store(0, BLOCK as u64, &content[BLOCK..], Digest::of(&content[BLOCK..])).unwrap();
        let prepared = prepare(&sink, &manifest).unwrap();
        assert_eq!(prepared.staged_bytes, 2 * BLOCK as u64, "{repeats}");
        assert_eq!(fill(&manifest, &source, &sink, &prepared, usize::MAX), 0);
    }
    assert_ne!(prepare(&sink, &manifest).unwrap(), Prepared::default());
}
