//! Trees laid out so that walking down them waits for nothing but their own comparisons.

/// Features that any tree may look at, as a power of two: what a walk indexes is masked by it instead of checked.
pub(super) const MAX_FEATURES: usize = 64;
/// Comparisons from the root to a leaf, at most.
pub(super) const MAX_DEPTH: usize = 8;

/// A sum of trees, all filled up to the depth of the deepest: a walk takes as many steps in each, so that a processor
/// walks down several at a time.
#[derive(Debug)]
pub(super) struct Forest {
    base: f32,
    slope: f32,
    feature: u8,
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
        Forest { base, slope, feature, leaves_each, features: vec![], thresholds: vec![], leaves: vec![] }
    }

    /// Adds a tree of no more depth than was said, whose branches lead to nodes that there are.
    pub(super) fn push(&mut self, nodes: &[Node]) {
        let first = self.leaves.len();
        let length = first + self.leaves_each;
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
    pub(super) fn evaluate(&self, values: &[f32; MAX_FEATURES]) -> f32 {
        /// The least of which a logarithm is taken.
        const LEAST: f32 = 1.0 / 256.0;
        let linear = if self.slope == 0.0 {
            0.0
        } else {
            self.slope * values[usize::from(self.feature) % MAX_FEATURES].max(LEAST).ln()
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

    fn sum<const LEAVES: usize>(&self, start: f32, values: &[f32; MAX_FEATURES]) -> f32 {
        let features = self.features.as_chunks::<LEAVES>().0;
        let thresholds = self.thresholds.as_chunks::<LEAVES>().0;
        let leaves = self.leaves.as_chunks::<LEAVES>().0;
        let trees = features.iter().zip(thresholds).zip(leaves);
        trees.fold(start, |sum, ((features, thresholds), leaves)| {
            let mut at = 1_usize;
            for _ in 0..LEAVES.trailing_zeros() {
                let node = at % LEAVES;
                let value = values[usize::from(features[node]) % MAX_FEATURES];
                // What is not a number goes the second way, as it does in numpy.
                at = 2 * at + 1 - usize::from(value <= thresholds[node]);
            }
            sum + leaves[at % LEAVES]
        })
    }
}
