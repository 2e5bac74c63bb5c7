//! The pages that both sides hold: the same ones in the same slots, since both do the same with every page.

use std::collections::HashMap;

use crate::Page;
use crate::stream::PAGE_BYTES;

/// What one page costs beside its content: its slot, and its places in the maps of both sides.
pub(crate) const OVERHEAD_BYTES: usize = 96;

/// Slots that are looked at when one has to be given up.
const LOOKED_AT: usize = 4;

/// So many looks a page outlasts for each time that it was of use.
const USE: u8 = 8;

/// Pages that memory is asked for at once: for each alone takes longer than to copy it.
const SLAB_PAGES: usize = 256;

/// Where a page is: the number of its block of RAM, and its own in it.
pub(crate) type Key = (u16, u64);

struct Slot {
    key: Key,
    /// Of how much use it was, up to a bound.
    uses: u8,
}

/// Pages by their place, as many as fit a bound.
pub(crate) struct PageCache {
    slots: Vec<Slot>,
    /// The content of the slots.
    slabs: Vec<Box<[Page]>>,
    most: usize,
    by_key: HashMap<Key, u32>,
    random: u64,
}

impl PageCache {
    pub(crate) fn new(bytes: u64) -> PageCache {
        let most = (bytes / (PAGE_BYTES + OVERHEAD_BYTES) as u64).min(u64::from(u32::MAX)) as usize;
        let (slots, slabs, by_key) = (Vec::new(), Vec::new(), HashMap::new());
        PageCache { slots, slabs, most, by_key, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Where the version of a page lies that was sent before.
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn content(&self, slot: u32) -> Option<&Page> {
        let slot = slot as usize;
        // The last slab has room for slots that are not made yet.
        (slot < self.slots.len()).then(|| &self.slabs[slot / SLAB_PAGES][slot % SLAB_PAGES])
    }

    /// A page was sent again as it was.
    pub(crate) fn touch(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.uses = slot.uses.saturating_add(USE);
        }
    }

    /// Holds a page from now on, whose version before lies in `before`; tells where, if there is any room at all.
    pub(crate) fn insert(&mut self, key: Key, before: Option<u32>, content: &Page) -> Option<u32> {
        if let Some(slot) = before {
            self.touch(slot);
            self.put(slot, content);
            return Some(slot);
        }
        let slot = if self.slots.len() < self.most {
            let slot = self.slots.len();
            if slot == self.slabs.len() * SLAB_PAGES {
                let pages = SLAB_PAGES.min(self.most - slot);
                self.slabs.push(vec![[0; PAGE_BYTES]; pages].into_boxed_slice());
            }
            self.slots.push(Slot { key, uses: 0 });
            slot as u32
        } else {
            let slot = self.least_useful()?;
            let held = &mut self.slots[slot as usize];
            self.by_key.remove(&held.key);
            (held.key, held.uses) = (key, 0);
            slot
        };
        self.put(slot, content);
        self.by_key.insert(key, slot);
        Some(slot)
    }

    fn put(&mut self, slot: u32, content: &Page) {
        let slot = slot as usize;
        self.slabs[slot / SLAB_PAGES][slot % SLAB_PAGES].copy_from_slice(content);
    }

    /// The least used of a few; the others count for a little less from then on. Pages come back in the order of their
    /// addresses, round by round, which is why the oldest would be the worst choice.
    fn least_useful(&mut self) -> Option<u32> {
        let count = self.slots.len() as u64;
        if count == 0 {
            return None;
        }
        let mut least: Option<usize> = None;
        for _ in 0..LOOKED_AT {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let at = (self.random % count) as usize;
            let uses = self.slots[at].uses;
            if least.is_none_or(|least| uses < self.slots[least].uses) {
                least = Some(at);
            } else {
                self.slots[at].uses = uses.saturating_sub(1);
            }
        }
        least.map(|at| at as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_come_again_outlast_those_that_pass_by_once() {
        let mut cache = PageCache::new(64 * (PAGE_BYTES + OVERHEAD_BYTES) as u64);
        for round in 0..40_u64 {
            for hot in 0..16 {
                cache.insert((0, hot), cache.find((0, hot)), &[round as u8; PAGE_BYTES]);
            }
            for cold in 0..64 {
                cache.insert((1, round * 64 + cold), None, &[7; PAGE_BYTES]);
            }
        }
        assert_eq!(cache.slots.len(), 64);
        assert!((0..16).filter(|hot| cache.find((0, *hot)).is_some()).count() >= 12);
    }

    #[test]
    fn cache_without_room_holds_nothing() {
        let mut cache = PageCache::new(PAGE_BYTES as u64);
        assert_eq!(cache.insert((0, 1), None, &[1; PAGE_BYTES]), None);
        assert_eq!(cache.find((0, 1)), None);
    }
}
