//! What holds for every order of events and every tree.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dwcp_codec::digest::Digest;
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Entry, EntryKind, Manifest};
use dwcp_store::{Prepared, Sink, StoreError};
use proptest::prelude::*;

use crate::support::*;

const BLOCKS: u32 = 5;

#[derive(Clone, Debug)]
enum Event {
    Store(u32),
    Crash,
    TearLedger(u64),
    Damage(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..BLOCKS).prop_map(Event::Store),
        2 => Just(Event::Crash),
        1 => (1_u64..80).prop_map(Event::TearLedger),
        1 => (0..BLOCKS).prop_map(Event::Damage),
    ];
    prop::collection::vec(event, 0..20)
}

/// A directory or a link, of a small set of names so that they meet.
fn things() -> impl Strategy<Value = Vec<(Vec<&'static str>, Option<Vec<&'static str>>)>> {
    let names = prop::sample::select(vec!["a", "b", "c"]);
    let steps = prop::sample::select(vec!["a", "b", "c", "..", "..", "."]);
    let path = prop::collection::vec(names, 1..4);
    let target = prop::option::of(prop::collection::vec(steps, 1..5));
    prop::collection::vec((path, target), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_crash_leaves_only_true_blocks_are_announced(events in events()) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("file"), dir.path().join("to"));
        let mut content = noise(BLOCKS as usize * BLOCK - 7, 1);
        // A block of zeros is what a file that was never written looks like.
        content[BLOCK..2 * BLOCK].fill(0);
        fs::write(&from, &content).unwrap();
        let (manifest, source) = offer(&[&from]);
        let place = to.join(".dwcp").join(manifest.transfer_id().to_string());
        let mut receiver = sink(&to);
        prepare(&receiver, &manifest).unwrap();
        let check = |prepared: &Prepared| {
            for have in &prepared.haves {
                for (block, digest) in (have.first_block as usize..).zip(&have.digests) {
                    let block = content.chunks(BLOCK).nth(block).unwrap();
                    prop_assert_eq!(Digest::of(block), *digest);
                }
            }
            Ok(())
        };
        for event in events {
            match event {
                Event::Store(block) => {
                    let bytes = content.chunks(BLOCK).nth(block as usize).unwrap();
                    receiver.store(0, u64::from(block) * BLOCK as u64, bytes, Digest::of(bytes)).unwrap();
                    continue;
                }
                Event::Crash => receiver.abort(),
                Event::TearLedger(bytes) => {
                    receiver.abort();
                    let ledger = File::options().write(true).open(place.join("ledger")).unwrap();
                    ledger.set_len(ledger.metadata().unwrap().len().saturating_sub(bytes)).unwrap();
                }
                Event::Damage(block) => {
                    receiver.abort();
                    if let Ok(data) = File::options().write(true).open(place.join("data/0")) {
                        data.write_all_at(b"damage", u64::from(block) * BLOCK as u64).unwrap();
                    }
                }
            }
            receiver = sink(&to);
            check(&prepare(&receiver, &manifest).unwrap())?;
        }
        let prepared = prepare(&receiver, &manifest).unwrap();
        check(&prepared)?;
        fill(&manifest, &source, &receiver, &prepared, usize::MAX);
        commit(&receiver).unwrap();
        prop_assert_eq!(fs::read(to.join("file")).unwrap(), content);
    }

    #[test]
    fn no_link_that_is_taken_leads_out_of_the_target(things in things()) {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let mut entries: Vec<Entry> = Vec::new();
        for (path, target) in &things {
            let entry = Entry {
                kind: if target.is_some() { EntryKind::Symlink } else { EntryKind::Directory },
                path: path.join("/").into_bytes(),
                mode: if target.is_some() { 0 } else { 0o755 },
                mtime_ns: 0,
                size: 0,
                target: target.as_ref().map(|target| target.join("/").into_bytes()).unwrap_or_default(),
                candidates: Vec::new(),
            };
            entries.push(entry);
        }
        entries.sort_by(|left, right| left.path.cmp(&right.path));
        entries.dedup_by(|left, right| left.path == right.path);
        let Ok(manifest) = Manifest::new(BLOCK as u32, entries, &Limits::default()) else { return Ok(()) };
        let receiver = sink(&to);
        match prepare(&receiver, &Arc::new(manifest)) {
            Ok(_) => commit(&receiver).unwrap(),
            Err(StoreError::Refused { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        }
        let inside = to.canonicalize().unwrap();
        for (path, _) in things.iter().filter(|(_, target)| target.is_some()) {
            if let Ok(leads) = to.join(path.join("/")).canonicalize() {
                prop_assert!(leads.starts_with(&inside), "{:?} leads to {:?}", path, leads);
            }
        }
    }
}
