//! Makes chunks of a stream.

use std::collections::HashMap;

use dwcp_codec::block::BlockEncoder;
use dwcp_codec::digest::check64;
use dwcp_codec::{Codec, Digest};

use crate::base::BaseIndex;
use crate::cache::{Key, PageCache};
use crate::chunk::{self, MAX_BLOCKS, MAX_STREAM_BYTES, Op, PLACED, put, zigzag};
use crate::stream::{Header, Item, PAGE_BYTES, Parser};
use crate::{Keep, Page};

/// What differs is told if it is no longer than this; the page as it is compresses as well then.
const MAX_DELTA_BYTES: usize = PAGE_BYTES * 3 / 4;

/// How many pages were told in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// All zeros.
    pub zero: u64,
    /// As they were when they were last sent.
    pub same: u64,
    /// Like another page that both sides hold.
    pub copy: u64,
    /// By what differs from what they were when they were last sent.
    pub delta: u64,
    /// By the base.
    pub base: u64,
    /// As they are.
    pub full: u64,
}

impl PageCounts {
    /// The count of what a decoder is told.
    pub(crate) fn told(&mut self, op: Op) -> &mut u64 {
        match op {
            Op::Zero => &mut self.zero,
            Op::Same => &mut self.same,
            Op::Copy => &mut self.copy,
            Op::Delta => &mut self.delta,
            Op::Base | Op::BaseCopy => &mut self.base,
            Op::Full | Op::Bytes => &mut self.full,
        }
    }
}

/// Encodes one stream.
pub struct PageEncoder {
    parser: Parser,
    cache: PageCache,
    /// Where a page with this check lies.
    by_check: HashMap<u64, u32>,
    /// The check of the page in each slot.
    checks: Vec<u64>,
    base: Option<BaseIndex>,
    keep: Option<Box<dyn Keep>>,
    blocks: HashMap<Vec<u8>, u16>,
    names: Vec<Vec<u8>>,
    /// Whether the decoder knows the name of a block.
    told: Vec<bool>,
    /// The page behind the last one that the stream had of each block.
    ends: Vec<u64>,
    /// Whether the stream has come back to pages that it had before.
    returns: bool,
    /// The block of the page that the stream told last, whether or not that page was coded.
    current: Option<u16>,
    /// The page that was coded last.
    last: Option<Key>,
    encoder: BlockEncoder,
    counts: PageCounts,
    ops: Vec<u8>,
    literals: Vec<u8>,
    /// What is told in a row: the operation, where its tag begins, and how many pages or bytes.
    run: Option<(Op, bool, Vec<u8>, u64)>,
}

impl PageEncoder {
    /// An encoder that holds pages in `cache_bytes` at most.
    #[must_use]
    pub fn new(cache_bytes: u64, base: Option<BaseIndex>, keep: Option<Box<dyn Keep>>) -> PageEncoder {
        PageEncoder {
            parser: Parser::new(),
            cache: PageCache::new(cache_bytes),
            by_check: HashMap::new(),
            checks: Vec::new(),
            base,
            keep,
            blocks: HashMap::new(),
            names: Vec::new(),
            told: Vec::new(),
            ends: Vec::new(),
            returns: false,
            current: None,
            last: None,
            encoder: BlockEncoder::new(),
            counts: PageCounts::default(),
            ops: Vec::new(),
            literals: Vec::new(),
            run: None,
        }
    }

    /// How many pages were told in which way by now.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        self.counts
    }

    /// Why the stream is passed on as it is from some point on, if that is not the ordinary end of its pages.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        self.parser.reason()
    }

    /// Whether the stream, as far as it was read, goes through its pages once more: they come in the order of their
    /// addresses, again and again.
    #[must_use]
    pub fn returns(&self) -> bool {
        self.returns
    }

    /// Whether QEMU compresses pages itself.
    #[must_use]
    pub fn compressed(&self) -> bool {
        self.parser.compressed()
    }

    /// Makes a chunk of the front of `input`, and tells of how many bytes: none if what is there is too little to tell
    /// what it is, which cannot be from [`MAX_ITEM_BYTES`](crate::MAX_ITEM_BYTES) on, nor at the `end` of the stream.
    pub fn encode(&mut self, input: &[u8], end: bool, out: &mut Vec<u8>) -> usize {
        let input = &input[..input.len().min(MAX_STREAM_BYTES)];
        self.ops.clear();
        self.literals.clear();
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.parser.next(rest) {
                Item::Bytes(count) => {
                    self.bytes(&rest[..count]);
                    at += count;
                }
                Item::Passed(header, length) => {
                    // It may name the block of the pages behind it.
                    self.place(&header, &rest[..length]);
                    self.bytes(&rest[..length]);
                    at += length;
                }
                Item::Zero(header, length) => {
                    let key = self.place(&header, &rest[..length]);
                    match key {
                        Some(key) => self.zero(key, &header),
                        None => self.bytes(&rest[..length]),
                    }
                    at += length;
                }
                Item::Page(header, length) => {
                    let (told, content) = rest[..length].split_at(length - PAGE_BYTES);
                    let page = content.first_chunk::<PAGE_BYTES>();
                    match (self.place(&header, told), page) {
                        (Some(key), Some(page)) => self.page(key, &header, page),
                        _ => self.bytes(&rest[..length]),
                    }
                    at += length;
                }
                Item::More if end && !rest.is_empty() => {
                    self.bytes(rest);
                    at = input.len();
                }
                Item::More => break,
            }
        }
        if at > 0 {
            self.flush();
            out.extend_from_slice(&Digest::of(&input[..at]).0);
            put(at as u64, out);
            put(self.ops.len() as u64, out);
            out.extend_from_slice(&self.ops);
            out.extend_from_slice(&self.literals);
        }
        at
    }

    /// Reads the front of `input` that is to be passed on as it is, in place of [`PageEncoder::encode`], and tells how many
    /// bytes that are: under the same conditions. Its pages are held by nobody.
    pub fn pass(&mut self, input: &[u8], end: bool) -> usize {
        let input = &input[..input.len().min(MAX_STREAM_BYTES)];
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let (header, length, content) = match self.parser.next(rest) {
                Item::Bytes(count) => {
                    at += count;
                    continue;
                }
                Item::More if end => return input.len(),
                Item::More => return at,
                Item::Passed(header, length) => {
                    self.place(&header, &rest[..length]);
                    at += length;
                    continue;
                }
                Item::Zero(header, length) => {
                    self.counts.zero += 1;
                    (header, length, None)
                }
                Item::Page(header, length) => {
                    self.counts.full += 1;
                    (header, length, Some(&rest[length - PAGE_BYTES..length]))
                }
            };
            let key = self.place(&header, &rest[..length]);
            if let (Some(keep), Some((block, number))) = (&mut self.keep, key) {
                keep.page(&self.names[usize::from(block)], number, content);
            }
            at += length;
        }
    }

    /// The place of a page, if it can be told.
    fn place(&mut self, header: &Header, told: &[u8]) -> Option<Key> {
        let block = match header.name {
            None => self.current,
            Some((from, to)) => {
                let name = &told[from..to];
                self.blocks.get(name).copied().or_else(|| {
                    let number =
                        u16::try_from(self.names.len()).ok().filter(|_| self.names.len() < MAX_BLOCKS)?;
                    self.names.push(name.to_vec());
                    self.told.push(false);
                    self.ends.push(0);
                    self.blocks.insert(name.to_vec(), number);
                    Some(number)
                })
            }
        };
        self.current = block;
        let end = &mut self.ends[usize::from(block?)];
        self.returns = header.number < *end;
        *end = (*end).max(header.number.saturating_add(1));
        block.map(|block| (block, header.number))
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.literals.extend_from_slice(bytes);
        if let Some((Op::Bytes, _, _, count)) = &mut self.run {
            *count += bytes.len() as u64;
        } else {
            self.flush();
            self.run = Some((Op::Bytes, false, Vec::new(), bytes.len() as u64));
        }
    }

    fn zero(&mut self, key: Key, header: &Header) {
        self.counts.zero += 1;
        self.tell(Op::Zero, key, header, &[]);
        if let Some(keep) = &mut self.keep {
            keep.page(&self.names[usize::from(key.0)], key.1, None);
        }
    }

    fn page(&mut self, key: Key, header: &Header, page: &Page) {
        if let Some(keep) = &mut self.keep {
            keep.page(&self.names[usize::from(key.0)], key.1, Some(page));
        }
        let before = self.cache.find(key);
        let held = before.and_then(|slot| self.cache.content(slot));
        if let (Some(slot), true) = (before, held == Some(page)) {
            self.counts.same += 1;
            self.tell(Op::Same, key, header, &[]);
            self.cache.touch(slot);
            return;
        }
        let check = check64(0, &[page]);
        let mut extra = Vec::new();
        let like = self.by_check.get(&check).copied();
        if let Some(slot) = like.filter(|slot| self.cache.content(*slot) == Some(page)) {
            self.counts.copy += 1;
            put(slot.into(), &mut extra);
            self.tell(Op::Copy, key, header, &extra);
        } else if let Some(op) = self.in_base(key, page, &mut extra) {
            self.counts.base += 1;
            self.tell(op, key, header, &extra);
        } else if self.delta(before, page, &mut extra) {
            self.counts.delta += 1;
            self.tell(Op::Delta, key, header, &extra);
        } else {
            self.counts.full += 1;
            self.tell(Op::Full, key, header, &[]);
            self.literals.extend_from_slice(page);
        }
        self.hold(key, before, page, check);
    }

    fn in_base(&self, key: Key, page: &Page, extra: &mut Vec<u8>) -> Option<Op> {
        let base = self.base.as_ref()?;
        let digest = Digest::of(page);
        if base.holds(&self.names[usize::from(key.0)], key.1, &digest) {
            return Some(Op::Base);
        }
        let (block, number) = base.find(&digest)?;
        put(block.into(), extra);
        put(number.into(), extra);
        Some(Op::BaseCopy)
    }

    /// Appends what differs from the version before to the literals, if that is short; `extra` tells of it.
    fn delta(&mut self, before: Option<u32>, page: &Page, extra: &mut Vec<u8>) -> bool {
        let Some(held) = before.and_then(|slot| self.cache.content(slot)) else { return false };
        // An encoder that has no memory left sends the page as it is.
        let Ok(coded) = self.encoder.encode(Codec::None, page, Some(held)) else { return false };
        if !coded.kind.needs_base() || coded.wire.len() > MAX_DELTA_BYTES {
            return false;
        }
        put(coded.kind as u64, extra);
        put(coded.wire.len() as u64, extra);
        self.literals.extend_from_slice(coded.wire);
        true
    }

    fn hold(&mut self, key: Key, before: Option<u32>, page: &Page, check: u64) {
        let Some(slot) = self.cache.insert(key, before, page) else { return };
        let at = slot as usize;
        if let Some(old) = self.checks.get(at) {
            if self.by_check.get(old) == Some(&slot) {
                self.by_check.remove(old);
            }
            self.checks[at] = check;
        } else {
            self.checks.push(check);
        }
        self.by_check.insert(check, slot);
    }

    /// Says something of the next page.
    fn tell(&mut self, op: Op, key: Key, header: &Header, extra: &[u8]) {
        let follows = self.last.is_some_and(|(block, number)| (block, number + 1) == key);
        let placed = !follows || header.name.is_some();
        if let Some((running, _, _, count)) = &mut self.run
            && *running == op
            && op.runs()
            && !placed
        {
            *count += 1;
        } else {
            self.flush();
            let mut place = Vec::new();
            if placed {
                self.put_place(key, header, &mut place);
            }
            place.extend_from_slice(extra);
            self.run = Some((op, placed, place, 1));
        }
        self.last = Some(key);
    }

    fn put_place(&mut self, (block, number): Key, header: &Header, out: &mut Vec<u8>) {
        let expected = self.last.map_or(0, |(_, number)| number + 1);
        put(zigzag(number.wrapping_sub(expected) as i64), out);
        let is_new = !std::mem::replace(&mut self.told[usize::from(block)], true);
        put(u64::from(block) << 2 | u64::from(is_new) << 1 | u64::from(header.name.is_some()), out);
        if is_new {
            let name = &self.names[usize::from(block)];
            put(name.len() as u64, out);
            out.extend_from_slice(name);
        }
    }

    fn flush(&mut self) {
        if let Some((op, placed, extra, count)) = self.run.take() {
            let tag = op as u64 | if placed { PLACED } else { 0 } | (count - 1) << 4;
            chunk::put(tag, &mut self.ops);
            self.ops.extend_from_slice(&extra);
        }
    }
}
