//! A transfer that is repeated after its commit was cut off, or after its answer was lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::*;
use dwcp_proto::manifest::Manifest;
use dwcp_store::{Sink, StoreError, TreeSink, TreeSinkOptions, TreeSource, staged_transfers};

fn sink_with(dir: &Path, overwrite: bool) -> TreeSink {
    TreeSink::new(dir.to_path_buf(), TreeSinkOptions { overwrite, ..TreeSinkOptions::default() })
}

/// A tree with a file of several blocks, an empty one, a link, and a file in a directory.
fn tree(place: &Path) -> (PathBuf, Arc<Manifest>, TreeSource) {
    let root = place.join("tree");
    fs::create_dir_all(root.join("dir")).unwrap();
    fs::write(root.join("a"), noise(2 * BLOCK + 5, 1)).unwrap();
    fs::write(root.join("dir/b"), noise(BLOCK, 2)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    symlink("dir/b", root.join("link")).unwrap();
    let (manifest, source) = offer(&[&root]);
    (root, manifest, source)
}

fn assert_arrived(to: &Path) {
    let there = to.join("tree");
    assert_eq!(fs::read(there.join("a")).unwrap(), noise(2 * BLOCK + 5, 1));
    assert_eq!(fs::read(there.join("dir/b")).unwrap(), noise(BLOCK, 2));
    assert_eq!(fs::read(there.join("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(there.join("link")).unwrap(), Path::new("dir/b"));
    assert!(staged_transfers(to).unwrap().is_empty());
}

#[test]
fn transfer_whose_answer_was_lost_is_repeated_without_overwriting() {
    let temporary = tempfile::tempdir().unwrap();
    let to = temporary.path().join("to");
    let (_, manifest, source) = tree(temporary.path());
    transfer(&manifest, &source, &sink_with(&to, false));
    let inode = |name: &str| fs::symlink_metadata(to.join("tree").join(name)).unwrap().ino();
    let names = ["a", "dir/b", "empty", "link"];
    let before = names.map(inode);
    transfer(&manifest, &source, &sink_with(&to, false));
    assert_arrived(&to);
    // What was there was left there.
    assert_eq!(names.map(inode), before);
}

#[test]
fn commit_that_was_cut_off_anywhere_is_finished_by_a_retry() {
    for overwrite in [false, true] {
        let mut cut_off = 0;
        for allowed in 0.. {
            let temporary = tempfile::tempdir().unwrap();
            let to = temporary.path().join("to");
            let (_, manifest, source) = tree(temporary.path());
            let first = sink_with(&to, overwrite);
            fill(&manifest, &source, &first, &prepare(&first, &manifest).unwrap(), usize::MAX);
            let mut left = allowed;
            let mut tick = || {
                left -= 1;
                if left < 0 { Err(StoreError::Cancelled) } else { Ok(()) }
            };
            let result = first.commit(&mut tick);
            drop(first);
            if result.is_ok() {
                break;
            }
            cut_off += usize::from(to.join("tree/a").exists() && !to.join("tree/link").exists());
            transfer(&manifest, &source, &sink_with(&to, overwrite));
            assert_arrived(&to);
        }
        assert!(cut_off > 0, "no commit was cut off between two files");
    }
}

#[test]
fn file_that_only_looks_like_the_one_that_is_sent_is_not_touched_and_nothing_is_placed() {
    let temporary = tempfile::tempdir().unwrap();
    let to = temporary.path().join("to");
    let (root, manifest, source) = tree(temporary.path());
    let other = to.join("tree/dir/b");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, noise(BLOCK, 9)).unwrap();
    let told = fs::metadata(root.join("dir/b")).unwrap();
    fs::set_permissions(&other, told.permissions()).unwrap();
    fs::File::open(&other).unwrap().set_modified(told.modified().unwrap()).unwrap();

    let keep = sink_with(&to, false);
    fill(&manifest, &source, &keep, &prepare(&keep, &manifest).unwrap(), usize::MAX);
    assert!(matches!(commit(&keep), Err(StoreError::Exists { path }) if path == other));
    assert_eq!(fs::read(&other).unwrap(), noise(BLOCK, 9));
    assert!(!to.join("tree/a").exists());
    keep.abort();

    // With another time it is refused before anything is sent.
    fs::File::open(&other).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(matches!(prepare(&keep, &manifest), Err(StoreError::Exists { path }) if path == other));
}

#[test]
fn link_that_leads_elsewhere_is_not_replaced_without_overwriting() {
    let temporary = tempfile::tempdir().unwrap();
    let to = temporary.path().join("to");
    let (_, manifest, source) = tree(temporary.path());
    transfer(&manifest, &source, &sink_with(&to, false));
    let link = to.join("tree/link");
    fs::remove_file(&link).unwrap();
    symlink("a", &link).unwrap();
    assert!(
        matches!(prepare(&sink_with(&to, false), &manifest), Err(StoreError::Exists { path }) if path == link)
    );
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("a"));
}
