//! Goes along with a stream whose bytes are passed on as they are.

use crate::Keep;
use crate::encode::PageCounts;
use crate::stream::{Item, MAX_ITEM_BYTES, PAGE_BYTES, Parser};

/// Looks for pages in the bytes of a stream, wherever they are cut.
pub(crate) struct Follower {
    parser: Parser,
    keep: Option<Box<dyn Keep>>,
    /// The name of the block of RAM that the stream told last.
    block: Option<Vec<u8>>,
    /// What came and is too little to tell what it is.
    rest: Vec<u8>,
    /// Pages that were seen, as the stream has them.
    pub(crate) counts: PageCounts,
}

impl Follower {
    pub(crate) fn new(keep: Option<Box<dyn Keep>>) -> Follower {
        let (parser, counts) = (Parser::new(), PageCounts::default());
        Follower { parser, keep, block: None, rest: Vec::new(), counts }
    }

    /// These bytes are next.
    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        let mut at = 0;
        if !self.rest.is_empty() {
            let held = self.rest.len();
            let mut front = std::mem::take(&mut self.rest);
            front.extend_from_slice(&bytes[..bytes.len().min(MAX_ITEM_BYTES)]);
            let mut read = 0;
            while read < held {
                match self.item(&front[read..]) {
                    Some(count) => read += count,
                    None => {
                        // As much as this always suffices: there is no more.
                        front.drain(..read);
                        self.rest = front;
                        return;
                    }
                }
            }
            at = read - held;
        }
        while at < bytes.len() {
            match self.item(&bytes[at..]) {
                Some(count) => at += count,
                None => {
                    self.rest = bytes[at..].to_vec();
                    return;
                }
            }
        }
    }

    /// Notes what comes next, and tells how long that is.
    fn item(&mut self, input: &[u8]) -> Option<usize> {
        let item = self.parser.next(input);
        let (header, length) = match item {
            Item::More => return None,
            Item::Bytes(count) => return Some(count),
            Item::Zero(header, length) | Item::Page(header, length) | Item::Passed(header, length) => {
                (header, length)
            }
        };
        if let Some((from, to)) = header.name {
            self.block = Some(input[from..to].to_vec());
        }
        let content = match item {
            Item::Zero(..) => {
                self.counts.zero += 1;
                None
            }
            Item::Page(..) => {
                self.counts.full += 1;
                Some(&input[length - PAGE_BYTES..length])
            }
            _ => return Some(length),
        };
        if let (Some(keep), Some(block)) = (&mut self.keep, &self.block) {
            keep.page(block, header.number, content);
        }
        Some(length)
    }
}
