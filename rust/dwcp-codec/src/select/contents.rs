//! What actions make of contents, as measured, for the controller in virtual time.

use super::Action;

pub(super) const COUNT: usize = Action::ALL.len();

/// Ratio and nanoseconds for each byte, as measured on real blocks of such content, by the number of the action.
pub(super) type Content = [(f64, f64); COUNT];

pub(super) const NOISE: Content = [
    (1.0, 0.0),
    (1.0, 0.15),
    (1.0, 0.3),
    (1.0, 0.4),
    (1.0, 0.5),
    (1.0, 0.8),
    (1.0, 1.0),
    (1.0, 2.0),
    (1.0, 3.0),
    (1.0, 1.0),
];
pub(super) const TEXT: Content = [
    (1.0, 0.0),
    (0.41, 1.4),
    (0.336, 1.87),
    (0.335, 1.9),
    (0.271, 2.17),
    (0.231, 2.25),
    (0.216, 2.95),
    (0.195, 9.0),
    (0.187, 16.0),
    (0.9, 1.5),
];
/// Pages of which most are zero, as in the memory of a machine.
pub(super) const SPARSE: Content = [
    (1.0, 0.0),
    (0.06, 0.22),
    (0.055, 0.25),
    (0.05, 0.3),
    (0.048, 0.35),
    (0.045, 0.4),
    (0.043, 0.5),
    (0.04, 1.5),
    (0.039, 3.0),
    (0.5, 1.0),
];
pub(super) const HEAP: Content = [
    (1.0, 0.0),
    (0.40, 0.8),
    (0.36, 1.05),
    (0.35, 1.1),
    (0.31, 1.35),
    (0.27, 1.65),
    (0.255, 2.4),
    (0.24, 7.0),
    (0.235, 13.0),
    (0.8, 1.5),
];

/// A stream of `count` blocks, a third of them noise, the rest sparse or heap.
pub(super) fn machine(count: usize) -> Vec<Content> {
    (0..count).map(|block| [SPARSE, HEAP, NOISE][(block * 31 + block / 7) % 3]).collect()
}

/// A stream whose content changes every 64 blocks.
pub(super) fn mixed(count: usize) -> Vec<Content> {
    (0..count).map(|block| [TEXT, NOISE, HEAP, SPARSE][block / 64 % 4]).collect()
}
