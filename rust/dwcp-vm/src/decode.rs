//! Makes the stream of its chunks again.

use std::collections::HashMap;

use dwcp_codec::block::{BlockDecoder, BlockKind};
use dwcp_codec::{CodecId, Digest};

use crate::base::BasePages;
use crate::cache::{Key, PageCache};
use crate::chunk::{MAX_BLOCKS, MAX_STREAM_BYTES, Op, PLACED, Reader, unzigzag};
use crate::encode::PageCounts;
use crate::error::VmError;
use crate::follow::Follower;
use crate::stream::{FLAG_CONTINUE, FLAG_FILL, FLAG_PAGE, PAGE_BYTES};
use crate::{Keep, Page};

/// The number of a page whose address has 64 bits.
const MAX_NUMBER: u64 = u64::MAX / PAGE_BYTES as u64;

/// Decodes one stream: chunks in the order in which they were made, each once.
pub struct PageDecoder {
    cache: PageCache,
    base: Box<dyn BasePages>,
    /// Has seen all of the stream.
    follower: Follower,
    counts: PageCounts,
    names: HashMap<u16, Vec<u8>>,
    last: Option<Key>,
    decoder: BlockDecoder,
}

impl PageDecoder {
    /// A decoder that holds as many bytes of pages as the encoder does.
    #[must_use]
    pub fn new(cache_bytes: u64, base: Box<dyn BasePages>, keep: Option<Box<dyn Keep>>) -> PageDecoder {
        PageDecoder {
            cache: PageCache::new(cache_bytes),
            base,
            follower: Follower::new(keep),
            counts: PageCounts::default(),
            names: HashMap::new(),
            last: None,
            decoder: BlockDecoder::new(),
        }
    }

    /// Appends the bytes of the stream that `chunk` stands for to `out`, once they are proven.
    ///
    /// # Errors
    /// [`VmError`]; `out` is as it was then, and the decoder is of no more use.
    pub fn decode(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), VmError> {
        let start = out.len();
        let decoded = self.decode_to(chunk, out);
        if decoded.is_err() {
            out.truncate(start);
        } else {
            // They are counted by how they were told.
            let passed = self.follower.counts;
            self.follower.follow(&out[start..]);
            self.follower.counts = passed;
        }
        decoded
    }

    /// Takes note of bytes of the stream that came as they are, in place of a chunk.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.follower.follow(bytes);
    }

    /// How many pages were told in which way by now.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        let passed = self.follower.counts;
        PageCounts {
            zero: self.counts.zero + passed.zero,
            full: self.counts.full + passed.full,
            ..self.counts
        }
    }

    fn decode_to(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), VmError> {
        let mut reader = Reader::new(chunk);
        let digest = reader.take("the digest", 16)?;
        let length = reader.number("the length of a chunk's bytes", MAX_STREAM_BYTES as u64)? as usize;
        let ops = reader.number("the length of what is said", reader.left() as u64)? as usize;
        let mut ops = Reader::new(reader.take("what is said", ops)?);
        let start = out.len();
        out.reserve(length);
        let room = |out: &Vec<u8>, count: u64| {
            let value = ((out.len() - start) as u64).saturating_add(count);
            if value <= length as u64 {
                return Ok(());
            }
            Err(VmError::Range { what: "the bytes that are told", value, limit: length as u64 })
        };
        while ops.left() > 0 {
            let tag = ops.number("a tag", (MAX_STREAM_BYTES as u64) << 4 | 0xf)?;
            let (op, count) = (Op::ALL[(tag & 7) as usize], (tag >> 4) + 1);
            if op == Op::Bytes {
                room(out, count)?;
                out.extend_from_slice(reader.take("bytes", count as usize)?);
                continue;
            }
            if count > 1 && !op.runs() {
                return Err(VmError::Range { what: "the pages of a tag", value: count, limit: 1 });
            }
            let mut named = if tag & PLACED != 0 { self.place(&mut ops)? } else { self.follow()? };
            for index in 0..count {
                if index > 0 {
                    named = self.follow()?;
                }
                room(out, if op == Op::Zero { 9 } else { PAGE_BYTES as u64 + 8 })?;
                self.page(op, named, (&mut ops, &mut reader), out)?;
            }
        }
        if reader.left() > 0 {
            return Err(VmError::LeftOver { count: reader.left() });
        }
        if out.len() - start != length || Digest::of(&out[start..]).0 != *digest {
            return Err(VmError::Differs { length });
        }
        Ok(())
    }

    /// The next page is the one behind the page before.
    fn follow(&mut self) -> Result<bool, VmError> {
        let (block, number) = self.last.ok_or(VmError::NotHeld { block: 0, number: 0 })?;
        self.last = Some((block, number.saturating_add(1).min(MAX_NUMBER)));
        Ok(false)
    }

    /// Reads where the next page is; tells whether the stream names its block.
    fn place(&mut self, ops: &mut Reader<'_>) -> Result<bool, VmError> {
        let difference = unzigzag(ops.number("a difference of places", u64::MAX)?);
        let expected = self.last.map_or(0, |(_, number)| number + 1);
        let number = expected.wrapping_add_signed(difference);
        if number > MAX_NUMBER {
            return Err(VmError::Range { what: "the number of a page", value: number, limit: MAX_NUMBER });
        }
        let word = ops.number("a block of ram", (MAX_BLOCKS as u64) << 2 | 3)?;
        let block = (word >> 2) as u16;
        if word & 2 != 0 {
            let length = ops.number("the length of a name", 255)? as usize;
            self.names.insert(block, ops.take("a name", length)?.to_vec());
        } else if !self.names.contains_key(&block) {
            return Err(VmError::NotHeld { block: block.into(), number });
        }
        self.last = Some((block, number));
        Ok(word & 1 != 0)
    }

    fn page(
        &mut self,
        op: Op,
        named: bool,
        (ops, literals): (&mut Reader<'_>, &mut Reader<'_>),
        out: &mut Vec<u8>,
    ) -> Result<(), VmError> {
        let (block, number) = self.last.unwrap_or_default();
        let key = (block, number);
        let missing = VmError::NotHeld { block: block.into(), number };
        let flag = if op == Op::Zero { FLAG_FILL } else { FLAG_PAGE };
        let name = self.names.get(&block).map(Vec::as_slice).unwrap_or_default();
        let word = (number * PAGE_BYTES as u64) | flag | if named { 0 } else { FLAG_CONTINUE };
        out.extend_from_slice(&word.to_be_bytes());
        if named {
            out.push(name.len() as u8);
            out.extend_from_slice(name);
        }
        *self.counts.told(op) += 1;
        let before = self.cache.find(key);
        let mut made: Page;
        let page = match op {
            Op::Zero => {
                out.push(0);
                return Ok(());
            }
            Op::Bytes | Op::Full => literals.page()?,
            Op::Same => {
                let slot = before.ok_or(missing)?;
                let held = self.cache.content(slot);
                out.extend_from_slice(held.ok_or(VmError::NotHeld { block: block.into(), number })?);
                self.cache.touch(slot);
                return Ok(());
            }
            Op::Copy => {
                let slot = ops.number("a slot", u64::from(u32::MAX))? as u32;
                made = *self.cache.content(slot).ok_or(missing)?;
                &made
            }
            Op::Delta => {
                let kind = BlockKind::try_from(ops.number("a kind", u64::from(u8::MAX))? as u8)?;
                let length = ops.number("the length of what differs", PAGE_BYTES as u64)? as usize;
                let base = before.and_then(|slot| self.cache.content(slot)).ok_or(missing)?;
                let wire = literals.take("what differs", length)?;
                made = [0; PAGE_BYTES];
                self.decoder.decode(kind, CodecId::None, wire, Some(base), &mut made)?;
                &made
            }
            Op::Base => {
                made = [0; PAGE_BYTES];
                self.base.read(name, number, &mut made)?;
                &made
            }
            Op::BaseCopy => {
                let block = ops.number("a block of the base", u64::from(u16::MAX))? as u16;
                let number = ops.number("a page of the base", u64::from(u32::MAX))? as u32;
                made = [0; PAGE_BYTES];
                self.base.read_at(block, number, &mut made)?;
                &made
            }
        };
        out.extend_from_slice(page);
        self.cache.insert(key, before, page);
        Ok(())
    }
}
