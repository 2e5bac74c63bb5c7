//! XXH3 digests of bytes, blocks and whole objects. They find damage and equal content; they do not resist forgery.

use std::fmt;
use std::str::FromStr;

use twox_hash::{XxHash3_64, XxHash3_128, xxhash3_128};

use crate::error::CodecError;

/// The first bytes of every tree digest, so that it never equals the digest of data.
const TREE_DOMAIN: &[u8; 9] = b"dwcp-tree";

/// Up to this many bytes the parts of a check are joined on the stack: cheaper than a streaming state.
const JOIN_BYTES: usize = 512;

/// An XXH3-128 digest as its canonical (big-endian) bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(XxHash3_128::oneshot(bytes).to_be_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Digest, CodecError> {
        let invalid = CodecError::InvalidDigest { length: text.len() };
        // from_str_radix alone would also take a sign.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid);
        }
        u128::from_str_radix(text, 16).map(|value| Digest(value.to_be_bytes())).map_err(|_| invalid)
    }
}

/// XXH3-64 with `seed` over the concatenation of `parts`.
#[must_use]
pub fn check64(seed: u64, parts: &[&[u8]]) -> u64 {
    if let [part] = parts {
        return XxHash3_64::oneshot_with_seed(seed, part);
    }
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length <= JOIN_BYTES {
        let mut joined = [0; JOIN_BYTES];
        let mut at = 0;
        for part in parts {
            joined[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        return XxHash3_64::oneshot_with_seed(seed, &joined[..length]);
    }
    let mut hasher = CheckHasher::new(seed);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finish()
}

/// [`check64`] of parts that come one by one.
#[derive(Clone)]
pub(crate) struct CheckHasher(XxHash3_64);

impl CheckHasher {
    /// A hasher of nothing so far.
    pub(crate) fn new(seed: u64) -> CheckHasher {
        CheckHasher(XxHash3_64::with_seed(seed))
    }

    /// Adds the next part.
    pub(crate) fn update(&mut self, part: &[u8]) {
        std::hash::Hasher::write(&mut self.0, part);
    }

    /// The check of the parts so far.
    pub(crate) fn finish(&self) -> u64 {
        std::hash::Hasher::finish(&self.0)
    }
}

/// The tree digest of an object of `size` bytes whose blocks of `block_bytes` have the digests `leaves`, in order.
///
/// Leaf `i` is the digest of bytes `i * block_bytes` up to `min((i + 1) * block_bytes, size)`; an empty object has
/// no leaves. The digest is XXH3-128 over `dwcp-tree`, the size (u64 LE), the block size (u32 LE) and the leaves.
#[must_use]
pub fn tree(size: u64, block_bytes: u32, leaves: &[Digest]) -> Digest {
    let mut hasher = TreeHasher::new(size, block_bytes);
    leaves.iter().for_each(|leaf| hasher.push(*leaf));
    hasher.finish()
}

/// The digests of the blocks of `bytes`, the leaves of its [`tree`]. A `block_bytes` of 0 counts as 1.
#[must_use]
pub fn leaves_of(bytes: &[u8], block_bytes: u32) -> Vec<Digest> {
    bytes.chunks(block_bytes.max(1) as usize).map(Digest::of).collect()
}

/// [`Digest::of`] bytes that come one by one.
#[derive(Clone)]
pub struct BlockHasher(xxhash3_128::Hasher);

impl BlockHasher {
    /// A hasher of nothing so far.
    #[must_use]
    #[allow(clippy::new_without_default)] // Nothing is meant by one that has seen nothing.
    pub fn new() -> BlockHasher {
        BlockHasher(xxhash3_128::Hasher::new())
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The digest of the bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(self.0.finish_128().to_be_bytes())
    }

    /// The digest of the bytes so far and of the last ones.
    pub(crate) fn digest_with(mut self, last: &[u8]) -> Digest {
        self.update(last);
        self.digest()
    }
}

/// [`tree`] for leaves that come one by one.
pub struct TreeHasher(xxhash3_128::Hasher);

impl TreeHasher {
    /// A hasher for an object of `size` bytes in blocks of `block_bytes`.
    #[must_use]
    pub fn new(size: u64, block_bytes: u32) -> TreeHasher {
        let mut hasher = xxhash3_128::Hasher::new();
        hasher.write(TREE_DOMAIN);
        hasher.write(&size.to_le_bytes());
        hasher.write(&block_bytes.to_le_bytes());
        TreeHasher(hasher)
    }

    /// Adds the digest of the next block.
    pub fn push(&mut self, leaf: Digest) {
        self.0.write(&leaf.0);
    }

    /// The tree digest of the leaves so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(self.0.finish_128().to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_canonical_xxh3_128() {
        // Reference values of XXH3-128: the empty input, and "a" as printed by xxhsum -H2.
        assert_eq!(Digest::of(b"").to_string(), "99aa06d3014798d86001c324468d497f");
        assert_eq!(Digest::of(b"a").to_string(), "a96faf705af16834e6c632b61e964e1f");
    }

    #[test]
    fn digest_text_is_read_back_and_other_text_is_refused() {
        let digest = Digest::of(b"text");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in [
            "",
            "+9aa06d3014798d86001c324468d497f",
            "99aa06d3014798d86001c324468d497",
            "é9aa06d3014798d86001c324468d497",
        ] {
            assert_eq!(bad.parse::<Digest>(), Err(CodecError::InvalidDigest { length: bad.len() }));
        }
    }

    #[test]
    fn check_does_not_depend_on_how_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..3_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for length in [0, 1, 100, JOIN_BYTES, JOIN_BYTES + 1, 3_000] {
            let whole = check64(7, &[&bytes[..length]]);
            assert_eq!(whole, check64(7, &[&bytes[..length / 3], &bytes[length / 3..length]]), "{length}");
            assert_ne!(whole, check64(8, &[&bytes[..length]]), "{length}");
        }
    }

    #[test]
    fn tree_commits_to_size_block_size_and_leaves() {
        let bytes = [5; 100];
        let leaves = leaves_of(&bytes, 64);
        assert_eq!(leaves, [Digest::of(&bytes[..64]), Digest::of(&bytes[64..])]);
        let digest = tree(100, 64, &leaves);
        let mut joined = b"dwcp-tree\x64\0\0\0\0\0\0\0\x40\0\0\0".to_vec();
        leaves.iter().for_each(|leaf| joined.extend(leaf.0));
        assert_eq!(digest, Digest::of(&joined));
        assert_ne!(digest, tree(101, 64, &leaves));
        assert_ne!(digest, tree(100, 128, &leaves));
        assert_ne!(digest, tree(100, 64, &leaves[..1]));
    }
}
