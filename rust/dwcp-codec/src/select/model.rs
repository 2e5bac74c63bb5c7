//! A trained model, read from its file: "Selector model" of docs/format-files.md.

use super::actions::Action;
use super::features::{FEATURES, Features};
use super::forest::{FEATURES_ROOM, Forest, MAX_DEPTH, Room};
use crate::digest::Digest;

const MAGIC: [u8; 4] = *b"DWSM";
const VERSION: u8 = 1;
/// The longest file that is read, in bytes.
const MAX_MODEL_BYTES: usize = 16 << 20;
/// Trees of a sum, at most.
const MAX_TREES: usize = 256;
/// Nodes of a tree of the greatest depth.
const MAX_NODES: usize = (2 << MAX_DEPTH) - 1;
const NODE_BYTES: usize = 9;
const DIGEST_BYTES: usize = 16;
/// The number of a feature that says that a node is a leaf.
const LEAF: u8 = 255;
/// The number of an action that says that a sum starts from none.
const NO_ACTION: u8 = 255;
/// Numbers of trees are this far from 0 at most, and times this long.
const FAR: f32 = 1e9;
const MOST_TIME: f32 = 1e6;
/// Logarithms are cut to this, so that what comes of them is a number of some use.
const MOST_LOG: f32 = 30.0;

/// Why bytes are no model for this version.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// More bytes than any model has.
    #[error("model of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// It ends within one of its parts.
    #[error("{what}: {needed} bytes are needed and {left} are left of the model")]
    Truncated {
        /// The part.
        what: &'static str,
        /// Length needed in bytes.
        needed: usize,
        /// Length of what is left in bytes.
        left: usize,
    },
    /// Something follows the last part.
    #[error("{bytes} bytes follow the last part of the model")]
    Left {
        /// How many bytes.
        bytes: usize,
    },
    /// It does not begin with its magic.
    #[error("not a DWSM model: it begins with {found:02x?}")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// It is of another version.
    #[error("model version {version} is not supported, the only known is {known}")]
    UnsupportedVersion {
        /// The version as read.
        version: u8,
        /// The known version.
        known: u8,
    },
    /// The bytes are not those that were written.
    #[error("digest of the model is {actual}, expected {expected}")]
    DigestMismatch {
        /// The digest at the end.
        expected: Digest,
        /// The digest of what is before it.
        actual: Digest,
    },
    /// A number is outside its range.
    #[error("{what} is {value}, outside {low}..={high}")]
    Number {
        /// What the number tells.
        what: &'static str,
        /// The number as read.
        value: usize,
        /// The least it can be.
        low: usize,
        /// The most it can be.
        high: usize,
    },
    /// A number that is none, or is outside its range.
    #[error("{what} is {value}, outside {low}..={high}")]
    Float {
        /// What the number tells.
        what: &'static str,
        /// The number as read.
        value: f32,
        /// The least it can be.
        low: f32,
        /// The most it can be.
        high: f32,
    },
    /// It was made for other features or actions, or for these in another order.
    #[error("{what} {place} of the model is {found:?}, of this version {expected:?}")]
    Name {
        /// `feature` or `action`.
        what: &'static str,
        /// Which of them, from 0 on.
        place: usize,
        /// The name as read; empty if the model has fewer.
        found: String,
        /// The name of this version; empty if it has fewer.
        expected: String,
    },
    /// A sum starts from an action that is not before its own.
    #[error("the {sum} of {action} starts from action {found}, which is not before it")]
    Start {
        /// The action.
        action: Action,
        /// What the sum predicts.
        sum: &'static str,
        /// The number of the action as read.
        found: u8,
    },
    /// The nodes of a tree are none.
    #[error("tree {tree} of the {sum} of {action}: node {node} {reason}")]
    Tree {
        /// The action.
        action: Action,
        /// What the tree helps to predict.
        sum: &'static str,
        /// Which tree, from 0 on.
        tree: usize,
        /// Which node, from 0 on.
        node: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What an action is expected to do with a block.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Prediction {
    /// Bytes sent for each byte of the block.
    pub ratio: f32,
    /// Processor time for each byte of the block.
    pub compress_ns_per_byte: f32,
    /// Processor time of the other side for each byte of the block.
    pub decompress_ns_per_byte: f32,
}

/// Speed of an action where the model was trained, on the sample for calibration.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reference {
    /// Processor time for each byte.
    pub compress_ns_per_byte: f32,
    /// Processor time of the other side for each byte.
    pub decompress_ns_per_byte: f32,
}

/// What is predicted for an action.
const SUMS: [&str; 3] = ["ratio", "compress time", "decompress time"];

/// The logarithm of what is predicted.
#[derive(Debug)]
struct Sum {
    /// The action to whose logarithm this one is added.
    start: Option<usize>,
    forest: Forest,
}

/// A trained model.
#[derive(Debug)]
pub struct Model {
    sums: Vec<[Sum; 3]>,
    references: Vec<Reference>,
    digest: Digest,
}

impl Model {
    /// Reads a model. The memory it takes is at most 20 MiB, whatever the bytes say.
    ///
    /// # Errors
    ///
    /// [`ModelError`], if these are not the bytes of a model for the features and actions of this version.
    pub fn read(bytes: &[u8]) -> Result<Model, ModelError> {
        if bytes.len() > MAX_MODEL_BYTES {
            return Err(ModelError::TooLong { length: bytes.len(), limit: MAX_MODEL_BYTES });
        }
        let mut reader = Reader { rest: bytes };
        let magic = *reader.array("magic")?;
        if magic != MAGIC {
            return Err(ModelError::BadMagic { found: magic });
        }
        let version = reader.byte("version")?;
        if version != VERSION {
            return Err(ModelError::UnsupportedVersion { version, known: VERSION });
        }
        // Only now is it known that a digest stands at the end.
        let Some((content, expected)) = reader.rest.split_last_chunk::<DIGEST_BYTES>() else {
            let left = reader.rest.len();
            return Err(ModelError::Truncated { what: "digest", needed: DIGEST_BYTES, left });
        };
        let (expected, actual) = (Digest(*expected), Digest::of(&bytes[..bytes.len() - DIGEST_BYTES]));
        if expected != actual {
            return Err(ModelError::DigestMismatch { expected, actual });
        }
        let mut reader = Reader { rest: content };
        reader.names("feature", FEATURES.map(str::to_owned).as_slice())?;
        reader.names("action", Action::ALL.map(|action| action.to_string()).as_slice())?;
        let mut references = Vec::with_capacity(Action::ALL.len());
        for _ in Action::ALL {
            let mut time = || read_float("reference time", *reader.array("reference time")?, 0.0, MOST_TIME);
            let (compress_ns_per_byte, decompress_ns_per_byte) = (time()?, time()?);
            references.push(Reference { compress_ns_per_byte, decompress_ns_per_byte });
        }
        let mut sums = Vec::with_capacity(Action::ALL.len());
        for action in Action::ALL {
            let [ratio, compress, decompress] = SUMS;
            let mut sum = |sum| reader.sum(action, sum);
            sums.push([sum(ratio)?, sum(compress)?, sum(decompress)?]);
        }
        match reader.rest.len() {
            0 => Ok(Model { sums, references, digest: actual }),
            bytes => Err(ModelError::Left { bytes }),
        }
    }

    /// Predicts for each action, in the order of [`Action::ALL`].
    #[must_use]
    pub fn predict(&self, features: &Features) -> [Prediction; Action::ALL.len()] {
        let mut values = [0.0; FEATURES_ROOM];
        values[..FEATURES.len()].copy_from_slice(features.values());
        let mut logarithms = [[0.0_f32; SUMS.len()]; Action::ALL.len()];
        let mut predictions = [Prediction::default(); Action::ALL.len()];
        for (action, (prediction, sums)) in predictions.iter_mut().zip(&self.sums).enumerate() {
            for (quantity, sum) in sums.iter().enumerate() {
                let start = sum.start.map_or(0.0, |before| logarithms[before][quantity]);
                let logarithm = sum.forest.evaluate(&values) + start;
                logarithms[action][quantity] = logarithm.clamp(-MOST_LOG, MOST_LOG);
            }
            let [ratio, compress, decompress] = logarithms[action].map(f32::exp);
            *prediction =
                Prediction { ratio, compress_ns_per_byte: compress, decompress_ns_per_byte: decompress };
        }
        predictions
    }

    /// The speed of `action` where the model was trained.
    #[must_use]
    pub fn reference(&self, action: Action) -> Reference {
        self.references[action.index()]
    }

    /// The digest of the model's bytes without the digest at their end, which is the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// What has not been read yet.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], ModelError> {
        let left = self.rest.len();
        let truncated = ModelError::Truncated { what, needed: length, left };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<&'a [u8; N], ModelError> {
        let left = self.rest.len();
        let truncated = ModelError::Truncated { what, needed: N, left };
        let (array, rest) = self.rest.split_first_chunk().ok_or(truncated)?;
        self.rest = rest;
        Ok(array)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, ModelError> {
        self.array(what).map(|[byte]| *byte)
    }

    /// A count of 16 bits.
    fn count(&mut self, what: &'static str, low: usize, high: usize) -> Result<usize, ModelError> {
        let value = usize::from(u16::from_le_bytes(*self.array(what)?));
        within(what, value, low, high)
    }

    fn float(&mut self, what: &'static str) -> Result<f32, ModelError> {
        read_float(what, *self.array(what)?, -FAR, FAR)
    }

    /// A list of names, which must be `expected`.
    fn names(&mut self, what: &'static str, expected: &[String]) -> Result<(), ModelError> {
        let count = usize::from(self.byte(what)?);
        for place in 0..count.max(expected.len()) {
            let found = if place < count {
                let length = usize::from(self.byte(what)?);
                String::from_utf8_lossy(self.bytes(what, length)?).into_owned()
            } else {
                String::new()
            };
            let expected = expected.get(place).cloned().unwrap_or_default();
            if found != expected || found.is_empty() {
                let found = found.chars().take(64).collect();
                return Err(ModelError::Name { what, place, found, expected });
            }
        }
        Ok(())
    }

    fn sum(&mut self, action: Action, sum: &'static str) -> Result<Sum, ModelError> {
        let start = match self.byte("action that a sum starts from")? {
            NO_ACTION => None,
            found if usize::from(found) < action.index() => Some(usize::from(found)),
            found => return Err(ModelError::Start { action, sum, found }),
        };
        Ok(Sum { start, forest: self.forest(action, sum)? })
    }

    fn forest(&mut self, action: Action, sum: &'static str) -> Result<Forest, ModelError> {
        let (base, slope) = (self.float("base")?, self.float("slope")?);
        let feature = self.byte("feature of the slope")?;
        within("feature of the slope", usize::from(feature), 0, FEATURES.len() - 1)?;
        let depth = within("depth", usize::from(self.byte("depth")?), 0, MAX_DEPTH)?;
        let trees = self.count("number of trees", 0, MAX_TREES)?;
        let mut forest = Forest::new(base, slope, feature, depth, trees);
        for (tree, mut room) in forest.rooms().take(trees).enumerate() {
            let count = self.count("number of nodes", 1, MAX_NODES)?;
            let nodes = self.bytes("nodes", count * NODE_BYTES)?.as_chunks().0;
            fill(&mut room, nodes, |node, reason| ModelError::Tree { action, sum, tree, node, reason })?;
        }
        Ok(forest)
    }
}

fn within(what: &'static str, value: usize, low: usize, high: usize) -> Result<usize, ModelError> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(ModelError::Number { what, value, low, high })
}

fn read_float(what: &'static str, bytes: [u8; 4], low: f32, high: f32) -> Result<f32, ModelError> {
    let value = f32::from_le_bytes(bytes);
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(ModelError::Float { what, value, low, high })
}

/// Fills a room with the nodes of a tree: every one is reached from the first, once, and none by more branches than the
/// room is deep. `wrong` tells of a node with which it is not so.
fn fill(
    room: &mut Room<'_>,
    nodes: &[[u8; NODE_BYTES]],
    wrong: impl Fn(usize, &'static str) -> ModelError,
) -> Result<(), ModelError> {
    // Branches lead onwards only, so that the place of a node is known when it is come to; 0 is none.
    let mut places = [0_u16; MAX_NODES];
    let places = &mut places[..nodes.len()];
    places[0] = Room::ROOT;
    for (number, bytes) in nodes.iter().enumerate() {
        let [feature, a, b, c, d, left_low, left_high, right_low, right_high] = *bytes;
        let place = places[number];
        if place == 0 {
            return Err(wrong(number, "is led to by none"));
        }
        if feature == LEAF {
            room.end(place, read_float("value of a leaf", [a, b, c, d], -FAR, FAR)?);
            continue;
        }
        within("feature of a node", usize::from(feature), 0, FEATURES.len() - 1)?;
        let threshold = read_float("threshold", [a, b, c, d], -FAR, FAR)?;
        if !room.branch(place, feature, threshold) {
            return Err(wrong(number, "leads deeper than was said"));
        }
        let next = [[left_low, left_high], [right_low, right_high]].map(u16::from_le_bytes);
        for (way, next) in (0..).zip(next.map(usize::from)) {
            match places.get_mut(next) {
                _ if next <= number => return Err(wrong(number, "leads back")),
                None => return Err(wrong(number, "leads to none")),
                Some(empty @ 0) => *empty = 2 * place + way,
                Some(_) => return Err(wrong(number, "leads where another does")),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
