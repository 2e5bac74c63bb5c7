//! What is sent, and what the receiver holds of it beforehand.

use std::collections::BTreeMap;
use std::sync::Arc;

use dwcp_codec::digest::{leaves_of, tree};
use dwcp_proto::limits::Limits;
use dwcp_proto::manifest::{Candidate, Entry, EntryKind, Manifest};

use crate::disk::Disk;
use crate::link::Random;

pub const BLOCK: u32 = 65_536;

/// The state that the sender holds.
pub struct Source {
    pub manifest: Arc<Manifest>,
    pub objects: BTreeMap<u32, Vec<u8>>,
    /// The sender's copies of the candidates.
    pub candidates: BTreeMap<u32, Vec<u8>>,
}

/// `blocks` blocks and `more` bytes that compress well and differ by `salt` and place.
pub fn content(salt: u64, blocks: u64, more: u64) -> Vec<u8> {
    let size = blocks * u64::from(BLOCK) + more;
    let word = |block: u64| Random(salt << 20 | block).draw().to_le_bytes();
    (0..size).map(|at| word(at / u64::from(BLOCK))[(at % 7) as usize]).collect()
}

fn entry(kind: EntryKind, path: &[u8], object: &[u8]) -> Entry {
    Entry {
        kind,
        path: path.to_vec(),
        mode: 0,
        mtime_ns: 0,
        size: object.len() as u64,
        target: vec![],
        candidates: vec![],
    }
}

/// A state of buffers.
fn buffers<const N: usize>(named: [(&[u8; 1], Vec<u8>); N]) -> Source {
    let entries = named.iter().map(|(path, object)| entry(EntryKind::Buffer, *path, object)).collect();
    Source {
        manifest: Arc::new(Manifest::new(BLOCK, entries, &Limits::default()).unwrap()),
        objects: (0..).zip(named.map(|(_, object)| object)).collect(),
        candidates: BTreeMap::new(),
    }
}

/// A state of files, one of buffers, and one so small that it goes with its offer. The bases of the first are on `disk`,
/// and other content of the last is staged there.
pub fn sources(salt: u64, stale_base: bool, disk: &mut Disk) -> [Source; 3] {
    let (f1, mut f2, mut f3) = (content(salt, 5, 17), content(salt + 1, 4, 0), content(salt + 2, 6, 4_000));
    // A base at the same path with some equal blocks, and one that both sides hold, longer than the object.
    let block = BLOCK as usize;
    let mut same_path = f2.clone();
    same_path[block..2 * block].fill(3);
    disk.bases.insert(b"d/f2".to_vec(), same_path);
    let mut base = f3.clone();
    base.extend([9; 100_000]);
    for changed in [1, 3, 4] {
        f3[changed * block + 5] ^= 0xFF;
    }
    f2[3 * block] ^= 1;
    let digest = tree(base.len() as u64, BLOCK, &leaves_of(&base, BLOCK));
    let candidate = Candidate { size: base.len() as u64, digest };
    if stale_base {
        // The receiver's index still names the base, but the file was changed below it.
        for (number, kept) in [(0_usize, 4_u8), (3, 5)] {
            let mut stale = base[number * block..(number + 1) * block].to_vec();
            stale[77] = kept;
            disk.stale.insert((b"d/f3".to_vec(), number as u32), stale);
        }
        disk.stale.insert((b"d/f2".to_vec(), 2), vec![1; block]);
    }
    disk.bases.insert(b"d/f3".to_vec(), base.clone());
    let entries = vec![
        entry(EntryKind::Directory, b"d", &[]),
        entry(EntryKind::File, b"d/empty", &[]),
        entry(EntryKind::File, b"d/f1", &f1),
        entry(EntryKind::File, b"d/f2", &f2),
        Entry { candidates: vec![candidate], ..entry(EntryKind::File, b"d/f3", &f3) },
        Entry { target: b"f1".to_vec(), ..entry(EntryKind::Symlink, b"d/link", &[]) },
    ];
    let manifest = Arc::new(Manifest::new(BLOCK, entries, &Limits::default()).unwrap());
    let files = Source {
        manifest,
        objects: BTreeMap::from([(2, f1), (3, f2), (4, f3)]),
        candidates: BTreeMap::from([(4, base)]),
    };
    let several = buffers([(b"a", content(salt + 3, 2, 1)), (b"b", content(salt + 4, 0, 1))]);
    let small = [(b"c", content(salt + 5, 0, 4_096)), (b"d", content(salt + 6, 0, 9)), (b"e", vec![])];
    let small = buffers(small);
    disk.prepare(&small.manifest, false);
    disk.store(&small.manifest, 0, 0, &[5; 4_096]);
    [files, several, small]
}
