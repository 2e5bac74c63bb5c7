//! Trees laid out so that walking down them waits for nothing but their own comparisons.

/// Room for a feature of any number, so that a walk need not check which it looks at.
pub(super) const FEATURES_ROOM: usize = u8::MAX as usize + 1;
/// Comparisons from the root to a leaf, at most.
pub(super) const MAX_DEPTH: usize = 8;

/// Trees that are walked down together: a step in one does not wait for that in another.
const GROUP: usize = 4;

/// A sum of trees, all filled up to the same depth, so that all walks take as many steps and none takes a branch.
#[derive(Debug)]
pub(super) struct Forest {
    base: f32,
    slope: f32,
    feature: u8,
    trees: usize,
    /// Leaves of each tree, a power of two.
    leaves_each: usize,
    /// Of each tree as many as it has leaves: node 1 is the root, node `n` leads to nodes `2n` and `2n + 1`.
    features: Vec<u8>,
    thresholds: Vec<f32>,
    leaves: Vec<f32>,
}

/// A node of a tree as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    /// Where a walk ends.
    Leaf(f32),
    /// Where it goes to one of two nodes further on: to the first if the feature is at most the threshold.
    Branch { feature: u8, threshold: f32, next: [u16; 2] },
}

impl Forest {
    /// A forest of no tree: `base` and, for each unit of the natural logarithm of a feature, `slope`.
    pub(super) fn new(base: f32, slope: f32, feature: u8, depth: usize) -> Forest {
        let leaves_each = 1 << depth;
        let (features, thresholds, leaves) = (vec![], vec![], vec![]);
        Forest { base, slope, feature, trees: 0, leaves_each, features, thresholds, leaves }
    }

    /// Adds a tree of no more depth than was said, whose branches lead to nodes that there are.
    pub(super) fn push(&mut self, nodes: &[Node]) {
        let first = self.trees * self.leaves_each;
        self.trees += 1;
        // The trees that a group lacks lead to zeros.
        let length = self.trees.next_multiple_of(GROUP) * self.leaves_each;
        self.features.resize(length, 0);
        self.thresholds.resize(length, 0.0);
        self.leaves.resize(length, 0.0);
        let mut open = vec![(1_usize, 0_usize)];
        while let Some((place, number)) = open.pop() {
            let node = nodes.get(number).copied().unwrap_or(Node::Leaf(0.0));
            if let Some(leaf) = place.checked_sub(self.leaves_each) {
                if let (Some(leaf), Node::Leaf(value)) = (self.leaves.get_mut(first + leaf), node) {
                    *leaf = value;
                }
                continue;
            }
            let (feature, threshold, next) = match node {
                Node::Branch { feature, threshold, next } => (feature, threshold, next.map(usize::from)),
                // Both ways lead to the same leaf.
                Node::Leaf(_) => (0, 0.0, [number; 2]),
            };
            self.features[first + place] = feature;
            self.thresholds[first + place] = threshold;
            open.extend([(2 * place, next[0]), (2 * place + 1, next[1])]);
        }
    }

    /// The sum for `values`, of which those that no feature has are not looked at.
    pub(super) fn evaluate(&self, values: &[f32; FEATURES_ROOM]) -> f32 {
        /// The least of which a logarithm is taken.
        const LEAST: f32 = 1.0 / 256.0;
        let linear = if self.slope == 0.0 {
            0.0
        } else {
            self.slope * values[usize::from(self.feature)].max(LEAST).ln()
        };
        let start = self.base + linear;
        match self.leaves_each {
            1 => self.leaves.iter().fold(start, |sum, leaf| sum + leaf),
            2 => self.sum::<2>(start, values),
            4 => self.sum::<4>(start, values),
            8 => self.sum::<8>(start, values),
            16 => self.sum::<16>(start, values),
            32 => self.sum::<32>(start, values),
            64 => self.sum::<64>(start, values),
            128 => self.sum::<128>(start, values),
            _ => self.sum::<256>(start, values),
        }
    }

    fn sum<const LEAVES: usize>(&self, start: f32, values: &[f32; FEATURES_ROOM]) -> f32 {
        let features = groups::<u8, LEAVES>(&self.features);
        let thresholds = groups::<f32, LEAVES>(&self.thresholds);
        let leaves = groups::<f32, LEAVES>(&self.leaves);
        let mut sum = start;
        for ((features, thresholds), leaves) in features.iter().zip(thresholds).zip(leaves) {
            let mut places = [1_usize; GROUP];
            for _ in 0..LEAVES.trailing_zeros() {
                places = std::array::from_fn(|tree| {
                    let node = places[tree] % LEAVES;
                    let is_first = values[usize::from(features[tree][node])] <= thresholds[tree][node];
                    2 * places[tree] + 1 - usize::from(is_first)
                });
            }
            for (place, leaves) in places.into_iter().zip(leaves) {
                sum += leaves[place % LEAVES];
            }
        }
        sum
    }
}

/// Numbers of trees of `LEAVES` leaves, by groups of trees.
fn groups<T, const LEAVES: usize>(numbers: &[T]) -> &[[[T; LEAVES]; GROUP]] {
    numbers.as_chunks::<LEAVES>().0.as_chunks().0
}
