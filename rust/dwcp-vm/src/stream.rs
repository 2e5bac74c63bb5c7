//! Finds guest pages in the migration stream of QEMU (version 3), as its bytes come.
//!
//! Everything but the content of pages is passed on as it is, so a wrong guess about the stream costs bytes and nothing
//! else. From the first thing on that is not known, or of which the length is not told, nothing is looked into any more.

/// The bytes of a page; QEMU's target page on x86, and where a stream does not say otherwise.
pub const PAGE_BYTES: usize = 4_096;

/// More than the longest thing that [`Parser::next`] has to see whole.
pub const MAX_ITEM_BYTES: usize = PAGE_BYTES + 8 + 1 + 255 + 16;

const MAGIC: [u8; 8] = *b"QEVM\0\0\0\x03";
const RAM_VERSION: u32 = 4;

const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;
/// The command behind which the rest of the machine comes in one package.
const PACKAGED: u16 = 6;

pub(crate) const FLAG_FILL: u64 = 0x02;
const FLAG_SIZE: u64 = 0x04;
pub(crate) const FLAG_PAGE: u64 = 0x08;
const FLAG_EOS: u64 = 0x10;
pub(crate) const FLAG_CONTINUE: u64 = 0x20;
const FLAG_XBZRLE: u64 = 0x40;
const FLAG_COMPRESSED: u64 = 0x100;
const FLAG_MULTIFD_FLUSH: u64 = 0x200;
pub(crate) const FLAGS: u64 = 0xfff;

/// A page as the stream introduces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The number of the page in its block of RAM.
    pub(crate) number: u64,
    /// Where the name of the block lies in the item; none if it is the block of the page before.
    pub(crate) name: Option<(usize, usize)>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// So many bytes that are passed on as they are.
    Bytes(usize),
    /// A page all of whose bytes are zero, told in so many bytes.
    Zero(Header, usize),
    /// A page, told in so many bytes of which the last [`PAGE_BYTES`] are its content.
    Page(Header, usize),
    /// A page that is passed on as it is, or what introduces it, in so many bytes.
    Passed(Header, usize),
    /// The bytes that are there do not suffice to tell.
    More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Section,
    /// The names of blocks and their lengths, of which so much is missing.
    Blocks(u64),
    Pages,
    /// Behind a section of RAM, where a footer may be.
    Footer,
    /// So many bytes are known to belong to what came before.
    Skip(u64, Next),
    Opaque,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Section,
    Pages,
}

/// Reads the stream.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    ram: Option<u32>,
    reason: Option<&'static str>,
    compressed: bool,
}

fn be16(input: &[u8], at: usize) -> Option<u16> {
    input.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(input: &[u8], at: usize) -> Option<u32> {
    input.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(input: &[u8], at: usize) -> Option<u64> {
    input.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl Parser {
    pub(crate) fn new() -> Parser {
        Parser { state: State::Start, ram: None, reason: None, compressed: false }
    }

    /// What was met that is not known, if nothing is looked into for that reason.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// Whether pages were met that QEMU has compressed itself.
    pub(crate) fn compressed(&self) -> bool {
        self.compressed
    }

    /// Tells what `input` begins with, and takes it for read unless more has to be there.
    pub(crate) fn next(&mut self, input: &[u8]) -> Item {
        if input.is_empty() {
            return Item::More;
        }
        let item = match self.state {
            State::Start => self.start(input),
            State::Section => self.section(input),
            State::Blocks(left) => self.block(input, left),
            State::Pages => self.page(input),
            State::Footer if input[0] == FOOTER => {
                if input.len() < 5 {
                    return Item::More;
                }
                self.state = State::Section;
                Some(Item::Bytes(5))
            }
            State::Footer => {
                self.state = State::Section;
                self.section(input)
            }
            State::Skip(left, next) => {
                let count = left.min(input.len() as u64);
                self.state = match (left - count, next) {
                    (0, Next::Section) => State::Section,
                    (0, Next::Pages) => State::Pages,
                    (left, next) => State::Skip(left, next),
                };
                Some(Item::Bytes(count as usize))
            }
            State::Opaque => Some(Item::Bytes(input.len())),
        };
        item.unwrap_or(Item::More)
    }

    /// From here on nothing is looked into, for a reason unless that is the ordinary end of what can be.
    fn give_up(&mut self, input: &[u8], reason: Option<&'static str>) -> Option<Item> {
        self.reason = self.reason.or(reason);
        self.state = State::Opaque;
        Some(Item::Bytes(input.len()))
    }

    fn start(&mut self, input: &[u8]) -> Option<Item> {
        let known = input.len().min(MAGIC.len());
        if input[..known] != MAGIC[..known] {
            return self.give_up(input, Some("another kind or version of stream"));
        }
        input.get(..MAGIC.len())?;
        self.state = State::Section;
        Some(Item::Bytes(MAGIC.len()))
    }

    fn section(&mut self, input: &[u8]) -> Option<Item> {
        match input[0] {
            CONFIGURATION => {
                let length = be32(input, 1)?;
                if length > 255 {
                    return self.give_up(input, Some("a configuration that is not known"));
                }
                self.state = State::Skip(u64::from(length), Next::Section);
                Some(Item::Bytes(5))
            }
            SECTION_START => {
                let id = be32(input, 1)?;
                let length = usize::from(*input.get(5)?);
                let name = input.get(6..6 + length)?;
                let version = be32(input, 6 + length + 4)?;
                if name != b"ram" || version != RAM_VERSION || self.ram.is_some() {
                    return self.give_up(input, Some("a live section that is not of ram"));
                }
                self.ram = Some(id);
                self.state = State::Pages;
                Some(Item::Bytes(6 + length + 8))
            }
            SECTION_PART | SECTION_END => {
                if Some(be32(input, 1)?) != self.ram {
                    return self.give_up(input, Some("a live section that is not of ram"));
                }
                self.state = State::Pages;
                Some(Item::Bytes(5))
            }
            COMMAND => {
                if be16(input, 1)? == PACKAGED {
                    return self.give_up(input, Some("postcopy"));
                }
                self.state = State::Skip(u64::from(be16(input, 3)?), Next::Section);
                Some(Item::Bytes(5))
            }
            // What devices tell has no length; all of it comes behind the last page.
            0x00 | 0x04 | 0x06 => self.give_up(input, None),
            _ => self.give_up(input, Some("a section that is not known")),
        }
    }

    fn block(&mut self, input: &[u8], left: u64) -> Option<Item> {
        let length = usize::from(input[0]);
        let size = be64(input, 1 + length)?;
        let Some(left) = left.checked_sub(size).filter(|_| length > 0 && size > 0) else {
            return self.give_up(input, Some("blocks of ram that do not add up"));
        };
        self.state = if left == 0 { State::Pages } else { State::Blocks(left) };
        Some(Item::Bytes(1 + length + 8))
    }

    fn page(&mut self, input: &[u8]) -> Option<Item> {
        let word = be64(input, 0)?;
        let (flags, number) = (word & FLAGS, word / PAGE_BYTES as u64);
        let (continues, flags) = (flags & FLAG_CONTINUE != 0, flags & !FLAG_CONTINUE);
        match flags {
            FLAG_SIZE if !continues && number > 0 => {
                self.state = State::Blocks(word & !FLAGS);
                return Some(Item::Bytes(8));
            }
            FLAG_EOS if !continues && number == 0 => {
                self.state = State::Footer;
                return Some(Item::Bytes(8));
            }
            FLAG_MULTIFD_FLUSH if !continues && number == 0 => return Some(Item::Bytes(8)),
            FLAG_FILL | FLAG_PAGE | FLAG_XBZRLE | FLAG_COMPRESSED => {}
            _ => return self.give_up(input, Some("a page of a kind that is not known")),
        }
        let name = if continues {
            None
        } else {
            let length = usize::from(*input.get(8)?);
            Some((9, 9 + length))
        };
        let at = name.map_or(8, |(_, end)| end);
        let header = Header { number, name };
        match flags {
            FLAG_FILL => Some(match *input.get(at)? {
                0 => Item::Zero(header, at + 1),
                _ => Item::Passed(header, at + 1),
            }),
            FLAG_PAGE => {
                input.get(at + PAGE_BYTES - 1)?;
                Some(Item::Page(header, at + PAGE_BYTES))
            }
            FLAG_XBZRLE => {
                let length = be16(input, at + 1)?;
                self.skip_compressed(header, at + 3, length.into())
            }
            _ => {
                let length = be32(input, at)?;
                self.skip_compressed(header, at + 4, length.into())
            }
        }
    }

    fn skip_compressed(&mut self, header: Header, told: usize, length: u64) -> Option<Item> {
        self.compressed = true;
        self.state = State::Skip(length, Next::Pages);
        Some(Item::Passed(header, told))
    }
}
