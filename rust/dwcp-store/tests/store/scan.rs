//! What is found under the given paths, and what the source says when it changes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;

use crate::support::*;
use dwcp_codec::digest::tree;
use dwcp_proto::limits::Limits;
use dwcp_store::{BaseChoice, Refusal, ScanOptions, Source, StoreError, SymlinkPolicy, file_leaves, scan};

fn scan_error(paths: &[std::path::PathBuf], options: &ScanOptions, limits: &Limits) -> StoreError {
    match scan(paths, options, limits) {
        Err(error) => error,
        Ok(_) => panic!("{paths:?} were taken"),
    }
}

#[test]
fn entries_are_sorted_by_bytes_with_parents_first_and_without_receiver_state() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["b/sub/.dwcp", "b/.dwcp/index"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    for name in ["b/sub/x", "b/sub-x", "b/Z", "a"] {
        fs::write(at(name), b"content").unwrap();
    }
    let (manifest, _) = offer(&[&at("b"), &at("a")]);
    let paths: Vec<_> = manifest.entries().iter().map(|entry| str::from_utf8(&entry.path).unwrap()).collect();
    assert_eq!(paths, ["a", "b", "b/Z", "b/sub", "b/sub/.dwcp", "b/sub/x", "b/sub-x"]);
    let (again, _) = offer(&[&at("a"), &at("b")]);
    assert_eq!(again.transfer_id(), manifest.transfer_id());
    // A path without a last component is named by where it leads.
    let (dots, _) = offer(&[&at("b/sub/..")]);
    assert_eq!(dots.entries()[0].path, b"b");
}

#[test]
fn missing_special_and_ambiguous_paths_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let options = scan_options(BaseChoice::None);
    let limits = Limits::default();
    let missing = scan_error(&[at("missing")], &options, &limits);
    assert_eq!(missing.io().unwrap().kind(), io::ErrorKind::NotFound);
    assert_eq!(missing.path().unwrap().file_name().unwrap(), "missing");
    fs::create_dir_all(at("d/same")).unwrap();
    fs::create_dir_all(at("same")).unwrap();
    let twice = scan_error(&[at("same"), at("d/same")], &options, &limits);
    assert!(matches!(twice, StoreError::Refused { reason: Refusal::DuplicateName, .. }));
    let root = scan_error(&["/".into()], &options, &limits);
    assert!(matches!(root, StoreError::Refused { reason: Refusal::NoName, .. }));
    let _listener = std::os::unix::net::UnixListener::bind(at("d/socket")).unwrap();
    let special = scan_error(&[at("d")], &options, &limits);
    assert!(
        matches!(&special, StoreError::Refused { reason: Refusal::Special("socket"), path } if path.ends_with("d/socket"))
    );
    let few = Limits { max_entries: 2, ..limits };
    fs::remove_file(at("d/socket")).unwrap();
    fs::write(at("d/file"), b"").unwrap();
    assert!(matches!(scan_error(&[at("d")], &options, &few), StoreError::Limit { limit: 2, .. }));
}

#[test]
fn links_are_kept_or_refused_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    symlink("nowhere/at all", dir.path().join("link")).unwrap();
    let (manifest, source) = offer(&[&dir.path().join("link")]);
    assert_eq!(manifest.entries()[0].target, b"nowhere/at all");
    source.confirm().unwrap();
    let refuse = ScanOptions { symlinks: SymlinkPolicy::Refuse, ..scan_options(BaseChoice::None) };
    let refused = scan_error(&[dir.path().join("link")], &refuse, &Limits::default());
    assert!(matches!(refused, StoreError::Refused { reason: Refusal::Symlink, .. }));
}

#[test]
fn file_that_changes_while_it_is_sent_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut scratch = Vec::new();
    let length = 2 * BLOCK as u64;
    let changes: [&dyn Fn(); 3] = [
        &|| File::options().write(true).open(&path).unwrap().set_len(10).unwrap(),
        &|| fs::write(&path, noise(2 * BLOCK, 2)).unwrap(),
        &|| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, noise(2 * BLOCK, 1)).unwrap();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        fs::write(&path, noise(length as usize, 1)).unwrap();
        File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let (_, source) = offer(&[&path]);
        assert_eq!(source.block(0, 0, BLOCK as u32, &mut scratch).unwrap(), &noise(BLOCK, 1));
        change();
        assert!(
            matches!(source.confirm(), Err(StoreError::SourceChanged { path: told }) if told.ends_with("file"))
        );
        if number == 0 {
            let shrunk = source.block(0, BLOCK as u64, BLOCK as u32, &mut scratch);
            assert!(matches!(shrunk, Err(StoreError::SourceChanged { .. })));
        }
    }
}

#[test]
fn sparse_file_that_shrinks_is_noticed_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = File::create(&path).unwrap();
    file.set_len(4 * BLOCK as u64).unwrap();
    let (_, source) = offer(&[&path]);
    let mut scratch = Vec::new();
    assert_eq!(source.block(0, BLOCK as u64, BLOCK as u32, &mut scratch).unwrap(), vec![0; BLOCK]);
    file.set_len(10).unwrap();
    let shrunk = source.block(0, BLOCK as u64, BLOCK as u32, &mut scratch);
    assert!(matches!(shrunk, Err(StoreError::SourceChanged { .. })));
}

#[test]
fn blocks_outside_of_an_object_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/file"), b"content").unwrap();
    let (_, source) = offer(&[&dir.path().join("d")]);
    let mut scratch = Vec::new();
    for (entry, offset, length) in [(0, 0, 1), (1, 0, 8), (1, u64::MAX, 1), (2, 0, 1)] {
        let refused = source.block(entry, offset, length, &mut scratch);
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })));
    }
    assert!(matches!(source.base(1, 0, 0, 1, &mut scratch), Err(StoreError::OutOfRange { .. })));
}

#[test]
fn given_bases_belong_to_files_at_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["new/sub", "old/sub"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("new/sub/x"), b"new x").unwrap();
    fs::write(at("new/only"), b"only").unwrap();
    fs::write(at("old/sub/x"), b"old x").unwrap();
    fs::write(at("file"), b"file").unwrap();
    let (manifest, _) = offer_with(
        &[&at("new"), &at("file")],
        &scan_options(BaseChoice::Paths(vec![at("old"), at("old/sub/x")])),
    );
    let (size, leaves) = file_leaves(&at("old/sub/x"), BLOCK as u32, &mut || Ok(())).unwrap();
    let found: Vec<_> = manifest.entries().iter().filter(|entry| !entry.candidates.is_empty()).collect();
    let paths: Vec<_> = found.iter().map(|entry| str::from_utf8(&entry.path).unwrap()).collect();
    assert_eq!(paths, ["file", "new/sub/x"]);
    for entry in found {
        assert_eq!(entry.candidates[0].digest, tree(size, BLOCK as u32, &leaves));
    }
    let missing =
        scan_error(&[at("file")], &scan_options(BaseChoice::Paths(vec![at("none")])), &Limits::default());
    assert_eq!(missing.io().unwrap().kind(), io::ErrorKind::NotFound);
}
