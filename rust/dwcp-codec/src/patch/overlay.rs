//! New versions that are told by what changes: the rest is that of the held version, and is not read again.

use std::borrow::Cow;
use std::ops::Range;

use super::error::PatchError;
use super::source::{Source, slice};
use super::step::Next;
use crate::kernel::element::{Element, with_element};
use crate::kernel::{Level, changes, lines};

/// Which elements may have changed; one that has not is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask<'a> {
    /// A byte for each element, not 0 if it may have changed.
    Bytes(&'a [u8]),
    /// A bit for each element, the low bit of each byte first; those past the last element are not looked at.
    Bits(&'a [u8]),
}

/// Bytes of a mask that are looked at together.
const GROUP: usize = 64;
/// How many of these are looked at to see how many elements a mask names.
const SAMPLED_GROUPS: usize = 64;

impl Mask<'_> {
    /// A bit for each of `count` elements from number `first` on.
    fn words(&self, first: usize, count: usize) -> Vec<u64> {
        let mut words = Vec::with_capacity(count.div_ceil(64));
        match self {
            Mask::Bytes(mask) => lines::set_bytes(Level::detected(), &mask[first..first + count], &mut words),
            Mask::Bits(mask) => words.extend((0..count).step_by(64).map(|at| {
                let (start, count) = (first + at, (count - at).min(64));
                let mut group = [0; 16];
                let bytes = &mask[start / 8..(start + count).div_ceil(8)];
                group[..bytes.len()].copy_from_slice(bytes);
                (u128::from_le_bytes(group) >> (start % 8)) as u64 & (u64::MAX >> (64 - count))
            })),
        }
        words
    }
}

/// Changes to elements of a held version.
pub(super) trait Overlay: Sync {
    /// Size of an element in bytes.
    fn element_bytes(&self) -> usize;

    /// Whether there may be changes to elements in `range`.
    fn touches(&self, range: Range<usize>) -> bool;

    /// Whether no more than about three of four of so many elements are named.
    fn names_some(&self, elements: usize) -> bool;

    /// Makes the changes to `elements`, the first of which is number `first`.
    fn put(&self, first: usize, elements: &mut [u8]);
}

/// A version of which some elements are taken from `new`.
pub(super) struct Masked<'a> {
    new: &'a [u8],
    mask: Mask<'a>,
    width: usize,
}

impl<'a> Masked<'a> {
    pub(super) fn new(
        held: &[u8],
        new: &'a [u8],
        mask: Mask<'a>,
        width: usize,
    ) -> Result<Masked<'a>, PatchError> {
        let elements = held.len() / width;
        let (actual, expected) = match mask {
            Mask::Bytes(mask) => (mask.len(), elements),
            Mask::Bits(mask) => (mask.len(), elements.div_ceil(8)),
        };
        for (what, expected, actual) in [("new version", held.len(), new.len()), ("mask", expected, actual)] {
            if expected != actual {
                let (expected, actual) = (expected as u64, actual as u64);
                return Err(PatchError::Length { what, expected, actual });
            }
        }
        Ok(Masked { new, mask, width })
    }
}

impl Overlay for Masked<'_> {
    fn element_bytes(&self) -> usize {
        self.width
    }

    fn touches(&self, range: Range<usize>) -> bool {
        match self.mask {
            Mask::Bytes(mask) => {
                mask[range].chunks(GROUP).any(|group| group.iter().fold(0, |all, byte| all | byte) != 0)
            }
            // Bits beside the range may be seen too: there is nothing to be changed then.
            Mask::Bits(mask) => mask[range.start / 8..range.end.div_ceil(8)].iter().any(|byte| *byte != 0),
        }
    }

    fn names_some(&self, elements: usize) -> bool {
        let step = (elements / SAMPLED_GROUPS).max(GROUP);
        let groups = (0..elements).step_by(step).map(|first| (first, (elements - first).min(GROUP)));
        let (named, all) = groups.fold((0, 0), |(named, all), (first, count)| {
            let words = self.mask.words(first, count);
            (named + words.iter().map(|word| word.count_ones() as usize).sum::<usize>(), all + count)
        });
        named <= all / 4 * 3
    }

    fn put(&self, first: usize, elements: &mut [u8]) {
        let named = self.mask.words(first, elements.len() / self.width);
        let new = &self.new[first * self.width..][..elements.len()];
        changes::take(Level::detected(), self.width, &named, new, elements);
    }
}

/// The number of an element, in one of the forms that lists of them come in.
pub trait ElementNumber: Copy + Sync {
    /// The number.
    fn number(self) -> u64;
}

impl ElementNumber for u64 {
    fn number(self) -> u64 {
        self
    }
}

/// The bytes of a `u64` as it is in memory, wherever that begins.
impl ElementNumber for [u8; 8] {
    fn number(self) -> u64 {
        u64::from_ne_bytes(self)
    }
}

/// The bytes of a `u32` as it is in memory, wherever that begins.
impl ElementNumber for [u8; 4] {
    fn number(self) -> u64 {
        u32::from_ne_bytes(self).into()
    }
}

/// A version of which some elements have told values.
pub(super) struct Assigned<'a, I: ElementNumber> {
    /// In order, each once.
    index: Cow<'a, [I]>,
    /// Where the values of these are, if not in the same order.
    places: Option<Vec<usize>>,
    values: &'a [u8],
    width: usize,
}

impl<'a, I: ElementNumber> Assigned<'a, I> {
    pub(super) fn new(
        held: &[u8],
        index: &'a [I],
        values: &'a [u8],
        width: usize,
    ) -> Result<Assigned<'a, I>, PatchError> {
        let (expected, actual) = ((index.len() * width) as u64, values.len() as u64);
        if expected != actual {
            return Err(PatchError::Length { what: "values", expected, actual });
        }
        let mut assigned = Assigned { index: Cow::Borrowed(index), places: None, values, width };
        let rises = index.is_sorted_by(|one, next| one.number() < next.number());
        if !rises {
            let mut places: Vec<usize> = (0..index.len()).collect();
            places.sort_unstable_by_key(|place| index[*place].number());
            assigned.index = places.iter().map(|place| index[*place]).collect();
            assigned.places = Some(places);
        }
        let count = (held.len() / width) as u64;
        let last = assigned.index.last().map(|index| index.number());
        if let Some(index) = last.filter(|index| *index >= count) {
            return Err(PatchError::NoSuchElement { index, count });
        }
        let twice = |pair: &&[I]| pair[0].number() == pair[1].number();
        if !rises && let Some(pair) = assigned.index.windows(2).find(twice) {
            return Err(PatchError::DuplicateElement { index: pair[0].number() });
        }
        Ok(assigned)
    }

    /// The assignments to elements in `range`, by number.
    fn within(&self, range: Range<usize>) -> Range<usize> {
        let start = self.index.partition_point(|index| index.number() < range.start as u64);
        let end = self.index.partition_point(|index| index.number() < range.end as u64);
        // Somebody else may write to the list meanwhile.
        start..end.max(start)
    }

    fn put_with<const W: usize>(&self, first: usize, elements: &mut [u8]) {
        let (elements, _) = elements.as_chunks_mut::<W>();
        let (values, _) = self.values.as_chunks::<W>();
        let within = self.within(first..first + elements.len());
        // No index is past the end of the version, which is in memory.
        let index = self.index[within.clone()].iter();
        let index = index.map(|index| (index.number() as usize).wrapping_sub(first));
        // What is not there now was when the list was looked through: somebody else wrote to it.
        let mut put = |at: usize, value: [u8; W]| {
            if let Some(element) = elements.get_mut(at) {
                *element = value;
            }
        };
        match &self.places {
            None => index.zip(&values[within]).for_each(|(at, value)| put(at, *value)),
            Some(places) => index.zip(&places[within]).for_each(|(at, place)| put(at, values[*place])),
        }
    }
}

impl<I: ElementNumber> Overlay for Assigned<'_, I> {
    fn element_bytes(&self) -> usize {
        self.width
    }

    fn touches(&self, range: Range<usize>) -> bool {
        !self.within(range).is_empty()
    }

    fn names_some(&self, elements: usize) -> bool {
        self.index.len() <= elements / 4 * 3
    }

    fn put(&self, first: usize, elements: &mut [u8]) {
        with_element!(self.width, E => self.put_with::<{ E::WIDTH }>(first, elements));
    }
}

/// A held version with changes, as a source. `check` is called at every reading, and may refuse to go on.
pub(super) struct Overlaid<'a, O, C> {
    pub(super) held: &'a [u8],
    pub(super) overlay: &'a O,
    pub(super) check: C,
}

impl<O, C, E> Source for Overlaid<'_, O, C>
where
    O: Overlay,
    C: Fn() -> Result<(), E> + Sync,
    E: From<PatchError> + Send,
{
    type Error = E;

    fn size(&self) -> u64 {
        self.held.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, length: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], E> {
        (self.check)()?;
        let held = slice(self.held, offset, length)?;
        let width = self.overlay.element_bytes();
        let start = offset as usize;
        // The elements that the bytes are parts of; those past the last whole one do not change.
        let (first, last) = (start / width, (start + length).div_ceil(width).min(self.held.len() / width));
        if first >= last || !self.overlay.touches(first..last) {
            return Ok(held);
        }
        let from = first * width;
        let to = (last * width).max(start + length);
        buffer.clear();
        buffer.extend_from_slice(&self.held[from..to]);
        self.overlay.put(first, &mut buffer[..(last - first) * width]);
        Ok(&buffer[start - from..start - from + length])
    }
}

/// Changes to a held version, as the next one. `check` is called at every block, and may refuse to go on.
pub(super) struct Onto<'a, O, C> {
    pub(super) overlay: &'a O,
    pub(super) check: C,
}

impl<O, C, E> Next for Onto<'_, O, C>
where
    O: Overlay,
    C: Fn() -> Result<(), E> + Sync,
    E: From<PatchError> + Send,
{
    type Error = E;

    fn block<'a>(&'a self, at: usize, held: &[u8], buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, E> {
        (self.check)()?;
        let width = self.overlay.element_bytes();
        // Blocks begin with an element, and only the last may end with a part of one.
        let (first, count) = (at / width, held.len() / width);
        if count == 0 || !self.overlay.touches(first..first + count) {
            return Ok(None);
        }
        buffer.clear();
        buffer.extend_from_slice(held);
        self.overlay.put(first, &mut buffer[..count * width]);
        Ok(Some(buffer))
    }
}

/// Memory as a source, or the next version, that asks `check` at every reading.
pub(super) struct Checked<'a, C> {
    pub(super) bytes: &'a [u8],
    pub(super) check: C,
}

impl<C, E> Source for Checked<'_, C>
where
    C: Fn() -> Result<(), E> + Sync,
    E: From<PatchError> + Send,
{
    type Error = E;

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, length: usize, _: &'a mut Vec<u8>) -> Result<&'a [u8], E> {
        (self.check)()?;
        Ok(slice(self.bytes, offset, length)?)
    }
}

impl<C, E> Next for Checked<'_, C>
where
    C: Fn() -> Result<(), E> + Sync,
    E: From<PatchError> + Send,
{
    type Error = E;

    fn block<'a>(&'a self, at: usize, held: &[u8], buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, E> {
        self.read(at as u64, held.len(), buffer).map(Some)
    }
}
