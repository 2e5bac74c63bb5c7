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
    /// Leaves of each tree, a power of two.
    leaves_each: usize,
    /// Of each tree as many as it has leaves: node 1 is the root, node `n` leads to nodes `2n` and `2n + 1`.
    features: Vec<u8>,
    thresholds: Vec<f32>,
    leaves: Vec<f32>,
}

/// The room of a tree in a forest, where all walks lead to 0 at first.
pub(super) struct Room<'a> {
    features: &'a mut [u8],
    thresholds: &'a mut [f32],
    leaves: &'a mut [f32],
}

impl Room<'_> {
    /// The place of the root. What is in place `n` leads to places `2n` and `2n + 1`.
    pub(super) const ROOT: u16 = 1;

    /// Has walks that come to a place go to the first of two others if the feature is at most the threshold. Tells whether
    /// that is deep enough in the tree for it to have others.
    pub(super) fn branch(&mut self, place: u16, feature: u8, threshold: f32) -> bool {
        let place = usize::from(place);
        let (Some(at), Some(limit)) = (self.features.get_mut(place), self.thresholds.get_mut(place)) else {
            return false;
        };
        (*at, *limit) = (feature, threshold);
        true
    }

    /// Has walks that come to a place end with a value: all ways from there lead to it.
    pub(super) fn end(&mut self, place: u16, value: f32) {
        let place = usize::from(place);
        let each = self.leaves.len() >> place.ilog2();
        let first = place * each - self.leaves.len();
        self.leaves[first..first + each].fill(value);
    }
}

impl Forest {
    /// A forest with room for so many trees: `base` and, for each unit of the natural logarithm of a feature, `slope`.
    pub(super) fn new(base: f32, slope: f32, feature: u8, depth: usize, trees: usize) -> Forest {
        let leaves_each = 1 << depth;
        // The trees that a group lacks lead to zeros.
        let length = trees.next_multiple_of(GROUP) * leaves_each;
        let (features, thresholds, leaves) = (vec![0; length], vec![0.0; length], vec![0.0; length]);
        Forest { base, slope, feature, leaves_each, features, thresholds, leaves }
    }

    /// The rooms of its trees, and of those that the last group lacks.
    pub(super) fn rooms(&mut self) -> impl Iterator<Item = Room<'_>> {
        let features = self.features.chunks_exact_mut(self.leaves_each);
        let thresholds = self.thresholds.chunks_exact_mut(self.leaves_each);
        let leaves = self.leaves.chunks_exact_mut(self.leaves_each);
        let rooms = features.zip(thresholds).zip(leaves);
        rooms.map(|((features, thresholds), leaves)| Room { features, thresholds, leaves })
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
