//! A directory as a sink: what arrives, what is refused, what survives.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::*;
use dwcp_codec::digest::Digest;
use dwcp_proto::frame::HaveSource;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, EntryKind, Manifest};
use dwcp_store::{
    BaseChoice, Prepared, Refusal, ScanOptions, Sink, Source, StoreError, SymlinkPolicy, TreeSink,
    TreeSinkOptions, remove_staging, staged_transfers,
};
use tempfile::TempDir;

/// Two fresh directories: one to send from, one to receive into.
fn places() -> (TempDir, PathBuf, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let (from, to) = (temporary.path().join("from"), temporary.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    (temporary, from, to)
}

fn entry(kind: EntryKind, path: &str) -> Entry {
    Entry {
        kind,
        path: path.into(),
        mode: if kind == EntryKind::Symlink { 0 } else { 0o755 },
        mtime_ns: 0,
        size: 0,
        target: Vec::new(),
        candidates: Vec::new(),
    }
}

fn manifest(entries: Vec<Entry>) -> Arc<Manifest> {
    Arc::new(Manifest::new(BLOCK as u32, entries, &Limits::default()).unwrap())
}

fn refusal(result: Result<Prepared, StoreError>) -> Refusal {
    match result {
        Err(StoreError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn tree_arrives_with_names_modes_times_links_and_holes() {
    let (_temporary, from, to) = places();
    let root = from.join("tree");
    fs::create_dir_all(root.join("closed/below")).unwrap();
    fs::write(root.join("closed/below/data"), noise(3 * BLOCK + 17, 1)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    let odd = root.join(OsStr::from_bytes(b"\xff\x01name"));
    fs::write(&odd, b"odd").unwrap();
    symlink("closed/below/data", root.join("link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 * BLOCK as u64 + 5).unwrap();
    sparse.write_all_at(&noise(100, 2), 40 * BLOCK as u64).unwrap();
    fs::set_permissions(&odd, fs::Permissions::from_mode(0o4640)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for path in [&odd, &root.join("closed"), &root] {
        File::open(path).unwrap().set_modified(time).unwrap();
    }
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();

    let (manifest, source) = offer(&[&root]);
    let sink = sink(&to);
    let prepared = transfer(&manifest, &source, &sink);
    assert_eq!(prepared, Prepared::default());

    let there = to.join("tree");
    assert_eq!(fs::read(there.join("closed/below/data")).unwrap(), noise(3 * BLOCK + 17, 1));
    assert_eq!(fs::read(there.join("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(there.join("link")).unwrap(), Path::new("closed/below/data"));
    assert_eq!(fs::read(there.join("sparse")).unwrap(), fs::read(root.join("sparse")).unwrap());
    assert!(fs::metadata(there.join("sparse")).unwrap().blocks() * 512 < 4 * BLOCK as u64);
    let arrived = fs::metadata(there.join(odd.file_name().unwrap())).unwrap();
    // The set-user-id bit is never set.
    assert_eq!(arrived.mode() & 0o7777, 0o640);
    assert_eq!(arrived.modified().unwrap(), time);
    assert_eq!(fs::metadata(&there).unwrap().modified().unwrap(), time);
    let closed = fs::metadata(there.join("closed")).unwrap();
    assert_eq!((closed.mode() & 0o7777, closed.modified().unwrap()), (0o555, time));
    // Nothing but the index stays behind, and a second commit changes nothing.
    commit(&sink).unwrap();
    assert_eq!(fs::read_dir(to.join(".dwcp")).unwrap().count(), 1);
    // The closed directory of the receiver takes the files of another transfer.
    fs::write(root.join("closed/below/data"), b"changed").unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("closed/new"), b"new").unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let (manifest, source) = offer(&[&root]);
    transfer(&manifest, &source, &sink);
    assert_eq!(fs::read(there.join("closed/new")).unwrap(), b"new");
    assert_eq!(fs::metadata(there.join("closed")).unwrap().mode() & 0o7777, 0o555);
    // So that the directories can be removed again.
    for closed in [root.join("closed"), there.join("closed")] {
        fs::set_permissions(closed, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn nothing_is_visible_before_commit_and_replaced_files_are_whole_until_then() {
    let (_temporary, from, to) = places();
    fs::write(from.join("file"), noise(2 * BLOCK, 1)).unwrap();
    fs::write(to.join("file"), b"old").unwrap();
    let (manifest, source) = offer(&[&from.join("file")]);
    let sink = sink(&to);
    let prepared = prepare(&sink, &manifest).unwrap();
    fill(&manifest, &source, &sink, &prepared, usize::MAX);
    assert_eq!(fs::read(to.join("file")).unwrap(), b"old");
    assert_eq!(fs::metadata(to.join(".dwcp")).unwrap().mode() & 0o7777, 0o700);
    commit(&sink).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap(), noise(2 * BLOCK, 1));
    // What a dying lane brings again does not touch the file in place.
    sink.store(0, 0, &noise(BLOCK, 9), Digest::of(b"")).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap(), noise(2 * BLOCK, 1));
}

#[test]
fn resumed_transfer_announces_what_is_staged_and_nothing_that_is_damaged() {
    let (_temporary, from, to) = places();
    let content = noise(8 * BLOCK + 100, 3);
    fs::write(from.join("file"), &content).unwrap();
    let (manifest, source) = offer(&[&from.join("file")]);
    let first = sink(&to);
    let prepared = prepare(&first, &manifest).unwrap();
    assert_eq!(fill(&manifest, &source, &first, &prepared, 5), 5);
    drop(first);
    let place = to.join(".dwcp").join(manifest.transfer_id().to_string());
    assert_eq!(staged_transfers(&to).unwrap()[0].transfer_id, manifest.transfer_id());

    // The last record is torn, and block 1 is damaged on disk.
    let ledger = File::options().write(true).open(place.join("ledger")).unwrap();
    ledger.set_len(ledger.metadata().unwrap().len() - 7).unwrap();
    let data = File::options().write(true).open(place.join("data/0")).unwrap();
    data.write_all_at(b"damage", BLOCK as u64).unwrap();

    let second = sink(&to);
    let prepared = prepare(&second, &manifest).unwrap();
    let staged: Vec<u32> = (0..9).filter(|block| is_staged(&prepared, 0, *block)).collect();
    assert_eq!(staged, [0, 2, 3]);
    assert_eq!(prepared.staged_bytes, 3 * BLOCK as u64);
    assert_eq!(fill(&manifest, &source, &second, &prepared, usize::MAX), 6);
    drop(second);

    // What was stored behind the torn record counts.
    let third = sink(&to);
    let prepared = prepare(&third, &manifest).unwrap();
    assert_eq!(prepared.staged_bytes, content.len() as u64);
    commit(&third).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap(), content);
    assert!(staged_transfers(&to).unwrap().is_empty());
}

#[test]
fn ledger_of_something_else_is_not_believed() {
    let (_temporary, from, to) = places();
    fs::write(from.join("file"), noise(BLOCK, 3)).unwrap();
    let (manifest, source) = offer(&[&from.join("file")]);
    let first = sink(&to);
    let prepared = prepare(&first, &manifest).unwrap();
    fill(&manifest, &source, &first, &prepared, usize::MAX);
    first.abort();
    let ledger = to.join(".dwcp").join(manifest.transfer_id().to_string()).join("ledger");
    let mut bytes = fs::read(&ledger).unwrap();
    bytes[9] ^= 1;
    fs::write(&ledger, bytes).unwrap();
    assert_eq!(prepare(&first, &manifest).unwrap(), Prepared::default());
    // It was begun anew, so that a block stored now is found again.
    fill(&manifest, &source, &first, &Prepared::default(), usize::MAX);
    assert_eq!(prepare(&first, &manifest).unwrap().staged_bytes, BLOCK as u64);
}

#[test]
fn zeros_are_stored_over_what_a_crash_left_unrecorded() {
    let (_temporary, from, to) = places();
    File::create(from.join("file")).unwrap().set_len(2 * BLOCK as u64).unwrap();
    let (manifest, source) = offer(&[&from.join("file")]);
    let first = sink(&to);
    prepare(&first, &manifest).unwrap();
    first.store(0, 0, &noise(BLOCK, 1), Digest::of(b"whatever")).unwrap();
    transfer(&manifest, &source, &first);
    assert_eq!(fs::read(to.join("file")).unwrap(), vec![0; 2 * BLOCK]);
}

#[test]
fn discarded_entry_is_not_announced_again() {
    let (_temporary, from, to) = places();
    fs::write(from.join("a"), noise(BLOCK, 1)).unwrap();
    fs::write(from.join("b"), noise(BLOCK, 2)).unwrap();
    let (manifest, source) = offer(&[&from.join("a"), &from.join("b")]);
    let sink = sink(&to);
    fill(&manifest, &source, &sink, &prepare(&sink, &manifest).unwrap(), usize::MAX);
    sink.discard(&[0]).unwrap();
    // The missing file cannot be put in place, and neither is the other one then.
    assert!(matches!(commit(&sink), Err(StoreError::Io { .. })));
    assert!(!to.join("b").exists());
    let prepared = prepare(&sink, &manifest).unwrap();
    assert!(!is_staged(&prepared, 0, 0) && is_staged(&prepared, 1, 0));
}

#[test]
fn commit_that_failed_half_way_is_finished_by_another() {
    let (_temporary, from, to) = places();
    fs::write(from.join("a"), b"new a").unwrap();
    fs::write(from.join("b"), b"new b").unwrap();
    let (manifest, source) = offer(&[&from.join("a"), &from.join("b")]);
    let sink = sink(&to);
    fill(&manifest, &source, &sink, &prepare(&sink, &manifest).unwrap(), usize::MAX);
    fs::create_dir(to.join("b")).unwrap();
    assert!(matches!(commit(&sink), Err(StoreError::Io { action: "rename to", .. })));
    assert!(to.join("b").is_dir());
    fs::remove_dir(to.join("b")).unwrap();
    commit(&sink).unwrap();
    assert_eq!(
        (fs::read(to.join("a")).unwrap(), fs::read(to.join("b")).unwrap()),
        (b"new a".into(), b"new b".into())
    );
    assert!(staged_transfers(&to).unwrap().is_empty());
}

#[test]
fn existing_file_is_kept_when_it_is_not_to_be_overwritten() {
    let (_temporary, from, to) = places();
    fs::write(from.join("file"), b"new").unwrap();
    let (manifest, source) = offer(&[&from.join("file")]);
    let keep = TreeSink::new(to.clone(), TreeSinkOptions { overwrite: false, ..TreeSinkOptions::default() });
    let prepared = prepare(&keep, &manifest).unwrap();
    fill(&manifest, &source, &keep, &prepared, usize::MAX);
    // It appears while the transfer runs, of another length: a file that is written within the same tick of the clock
    // has the same time, and would seem to be what is sent until its content is read.
    fs::write(to.join("file"), b"older").unwrap();
    assert!(matches!(commit(&keep), Err(StoreError::Exists { path }) if path == to.join("file")));
    assert!(matches!(prepare(&keep, &manifest), Err(StoreError::Exists { path }) if path == to.join("file")));
    assert_eq!(fs::read(to.join("file")).unwrap(), b"older");
}

#[test]
fn things_in_the_way_are_refused_before_anything_is_staged() {
    let (_temporary, _from, to) = places();
    fs::create_dir(to.join("dir")).unwrap();
    fs::write(to.join("file"), b"").unwrap();
    symlink("dir", to.join("link")).unwrap();
    let check = |entries| refusal(prepare(&sink(&to), &manifest(entries)));
    assert_eq!(check(vec![entry(EntryKind::File, "dir")]), Refusal::IsADirectory);
    assert_eq!(check(vec![entry(EntryKind::Directory, "file")]), Refusal::NotADirectory);
    assert_eq!(check(vec![entry(EntryKind::Directory, "link")]), Refusal::SymlinkedParent);
    assert_eq!(check(vec![entry(EntryKind::File, "link/x")]), Refusal::SymlinkedParent);
    assert_eq!(check(vec![entry(EntryKind::File, "file/x")]), Refusal::NotADirectory);
    assert_eq!(check(vec![entry(EntryKind::File, ".DWCP/x")]), Refusal::ReservedName);
    let buffer = Entry { mode: 0, ..entry(EntryKind::Buffer, "buffer") };
    assert_eq!(check(vec![buffer]), Refusal::BufferInTree);
    assert!(!to.join(".dwcp").exists());
}

#[test]
fn links_are_refused_by_option_and_where_they_lead_out() {
    let (_temporary, _from, to) = places();
    let link =
        |target: &str| manifest(vec![Entry { target: target.into(), ..entry(EntryKind::Symlink, "link") }]);
    for target in ["/etc/passwd", "../outside", "x/../../outside"] {
        assert_eq!(refusal(prepare(&sink(&to), &link(target))), Refusal::EscapingLink);
    }
    let options = TreeSinkOptions { symlinks: SymlinkPolicy::Refuse, ..TreeSinkOptions::default() };
    assert_eq!(refusal(prepare(&TreeSink::new(to.clone(), options), &link("inside"))), Refusal::Symlink);
    assert!(is_empty(&to));
}

#[test]
fn link_swapped_in_for_a_directory_is_not_followed() {
    let (temporary, from, to) = places();
    let outside = temporary.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(from.join("dir")).unwrap();
    fs::write(from.join("dir/file"), b"content").unwrap();
    let (manifest, source) = offer(&[&from.join("dir")]);
    fs::create_dir(to.join("dir")).unwrap();
    let sink = sink(&to);
    fill(&manifest, &source, &sink, &prepare(&sink, &manifest).unwrap(), usize::MAX);
    fs::remove_dir(to.join("dir")).unwrap();
    symlink(&outside, to.join("dir")).unwrap();
    let refused = commit(&sink);
    assert!(
        matches!(refused, Err(StoreError::Refused { reason: Refusal::SymlinkedParent, .. })),
        "{refused:?}"
    );
    assert!(is_empty(&outside));
}

#[test]
fn staging_that_is_a_link_is_refused() {
    let (temporary, from, to) = places();
    fs::write(from.join("file"), b"content").unwrap();
    symlink(temporary.path(), to.join(".dwcp")).unwrap();
    let (manifest, _) = offer(&[&from.join("file")]);
    assert_eq!(refusal(prepare(&sink(&to), &manifest)), Refusal::SymlinkedParent);
}

#[test]
fn second_sink_on_one_staging_is_refused_until_the_first_is_aborted() {
    let (_temporary, from, to) = places();
    fs::write(from.join("file"), noise(BLOCK, 1)).unwrap();
    let (manifest, _) = offer(&[&from.join("file")]);
    let (first, second) = (sink(&to), sink(&to));
    prepare(&first, &manifest).unwrap();
    assert!(matches!(prepare(&second, &manifest), Err(StoreError::Busy { .. })));
    assert!(matches!(remove_staging(&to, manifest.transfer_id()), Err(StoreError::Busy { .. })));
    first.abort();
    prepare(&second, &manifest).unwrap();
    second.abort();
    remove_staging(&to, manifest.transfer_id()).unwrap();
    assert!(staged_transfers(&to).unwrap().is_empty());
}

#[test]
fn same_path_is_announced_with_the_digests_of_its_blocks() {
    let (_temporary, from, to) = places();
    let mut content = noise(4 * BLOCK + 100, 1);
    fs::write(to.join("file"), &content).unwrap();
    content[BLOCK] ^= 1;
    content.truncate(4 * BLOCK + 50);
    fs::write(from.join("file"), &content).unwrap();
    let (manifest, _) = offer(&[&from.join("file")]);
    let sink = sink(&to);
    assert_eq!(sink.prepare(&manifest, false, &mut || Ok(())).unwrap(), Prepared::default());
    let prepared = prepare(&sink, &manifest).unwrap();
    let old = fs::read(to.join("file")).unwrap();
    let [have] = prepared.haves.as_slice() else { panic!("{prepared:?}") };
    assert_eq!((have.source, have.first_block), (HaveSource::SamePath, 0));
    // The last block is longer in the base and has nothing to tell.
    assert_eq!(have.digests, old[..4 * BLOCK].chunks(BLOCK).map(Digest::of).collect::<Vec<_>>());
    let mut base = [1; 200];
    assert!(sink.base(0, 4 * BLOCK as u64, &mut base).unwrap());
    assert_eq!((&base[..100], &base[100..]), (&old[4 * BLOCK..], &[0; 100][..]));
}

#[test]
fn base_that_changed_after_it_was_announced_is_no_base() {
    let (_temporary, from, to) = places();
    fs::write(to.join("file"), noise(BLOCK, 1)).unwrap();
    fs::write(from.join("file"), noise(BLOCK, 2)).unwrap();
    let (manifest, _) = offer(&[&from.join("file")]);
    let sink = sink(&to);
    assert_eq!(prepare(&sink, &manifest).unwrap().haves.len(), 1);
    fs::write(to.join("file"), b"shorter").unwrap();
    assert!(!sink.base(0, 0, &mut [0; 10]).unwrap());
}

#[test]
fn candidate_is_found_at_another_path_through_the_index_and_at_the_same_path_by_reading() {
    let (temporary, from, to) = places();
    let index = temporary.path().join("state/index");
    let remembered = |bases| ScanOptions { index: Some(index.clone()), ..scan_options(bases) };
    let auto = remembered(BaseChoice::Auto);
    fs::create_dir_all(from.join("v0")).unwrap();
    fs::create_dir_all(from.join("v1")).unwrap();
    let old = noise(3 * BLOCK, 1);
    fs::write(from.join("v0/image"), &old).unwrap();
    fs::write(from.join("v1/image"), noise(3 * BLOCK, 2)).unwrap();
    let (first, source) = offer_with(&[&from.join("v0")], &remembered(BaseChoice::None));
    transfer(&first, &source, &sink(&to));
    source.remember(&trees(&first, &source)).unwrap();

    let (second, source) = offer_with(&[&from.join("v1")], &auto);
    assert_eq!(second.entries()[1].candidates.len(), 1);
    let mut scratch = Vec::new();
    let base = source.base(1, 0, 2 * BLOCK as u64 + 5, BLOCK as u32, &mut scratch).unwrap();
    assert_eq!(base, &old[2 * BLOCK + 5..]);
    let receiver = sink(&to);
    let prepared = prepare(&receiver, &second).unwrap();
    assert_eq!(prepared.haves[0].source, HaveSource::Candidate(0));
    let mut bytes = vec![0; BLOCK];
    assert!(receiver.base(1, BLOCK as u64, &mut bytes).unwrap());
    assert_eq!(bytes, old[BLOCK..2 * BLOCK]);
    receiver.abort();

    // Without its index the receiver finds it only at the same path, with the base given by hand.
    let other = temporary.path().join("other");
    fs::create_dir_all(other.join("v1")).unwrap();
    fs::write(other.join("v1/image"), &old).unwrap();
    let given = BaseChoice::Paths(vec![from.join("v0")]);
    let (third, _) = offer_with(&[&from.join("v1")], &scan_options(given));
    assert_eq!(prepare(&sink(&other), &third).unwrap().haves[0].source, HaveSource::Candidate(0));

    // A base that changed at the receiver is not found by its record.
    fs::write(to.join("v0/image"), b"changed").unwrap();
    assert_eq!(prepare(&sink(&to), &second).unwrap().haves, []);
    // And one that changed at the sender is not offered.
    fs::write(from.join("v0/image"), b"changed").unwrap();
    assert!(offer_with(&[&from.join("v1")], &auto).0.entries()[1].candidates.is_empty());
}

#[test]
fn transfer_larger_than_the_disk_is_refused_early_unless_told_otherwise() {
    let (_temporary, _from, to) = places();
    let huge = manifest(vec![Entry { size: 1 << 41, ..entry(EntryKind::File, "huge") }]);
    assert!(matches!(prepare(&sink(&to), &huge), Err(StoreError::NoSpace { needed: 0x200_0000_0000, .. })));
    let options = TreeSinkOptions { check_space: false, ..TreeSinkOptions::default() };
    prepare(&TreeSink::new(to, options), &huge).unwrap();
}

#[test]
fn cancelled_prepare_ends_with_what_the_tick_returned() {
    let (_temporary, from, to) = places();
    fs::write(to.join("file"), noise(4 * BLOCK, 1)).unwrap();
    fs::write(from.join("file"), noise(4 * BLOCK, 2)).unwrap();
    let (manifest, _) = offer(&[&from.join("file")]);
    for allowed in 0..6 {
        let mut left = allowed;
        let mut tick = || {
            left -= 1;
            if left < 0 { Err(StoreError::Cancelled) } else { Ok(()) }
        };
        assert!(
            matches!(sink(&to).prepare(&manifest, true, &mut tick), Err(StoreError::Cancelled)),
            "{allowed}"
        );
    }
}
