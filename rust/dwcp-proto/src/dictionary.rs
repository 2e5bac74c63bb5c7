//! The dictionary of a transfer: announced behind OFFER, and either known to the receiver, sent to it, or not used.
//!
//! All of that is settled before ACCEPT, so that no block ever waits for it, whichever lane it comes on.

use std::collections::VecDeque;
use std::sync::Arc;

use dwcp_codec::{Dictionary, Digest};

use crate::error::SessionError;
use crate::frame::{DictionaryNote, DictionaryWord, Frame};

/// How many dictionaries that senders gave a session keeps: the last ones.
const MAX_LEARNED: usize = 4;

/// The side of the sender.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    dictionary: Option<Arc<Dictionary>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not announced in the present OFFER.
    #[default]
    Untold,
    Told,
    Wanted,
    Given,
    Declined,
}

impl Offered {
    pub(crate) fn new(dictionary: Option<Arc<Dictionary>>) -> Offered {
        Offered { dictionary, stage: Stage::Untold }
    }

    /// Whether there is none to offer.
    pub(crate) fn is_none(&self) -> bool {
        self.dictionary.is_none()
    }

    /// The same dictionary, to be told anew.
    pub(crate) fn again(&self) -> Offered {
        Offered::new(self.dictionary.clone())
    }

    /// What is to be said of it now, on the lane of the offer.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let dictionary = self.dictionary.as_ref()?;
        let word = match self.stage {
            Stage::Untold => DictionaryWord::Announced,
            Stage::Wanted => DictionaryWord::Given(dictionary.bytes().to_vec()),
            Stage::Told | Stage::Given | Stage::Declined => return None,
        };
        self.stage = if self.stage == Stage::Untold { Stage::Told } else { Stage::Given };
        let (digest, length) = (dictionary.digest(), dictionary.bytes().len() as u32);
        Some(Frame::Dictionary(DictionaryNote { digest, length, word }))
    }

    /// Takes the receiver's answer. Tells whether it has a place here.
    pub(crate) fn hear(&mut self, note: &DictionaryNote) -> bool {
        let is_ours = self.dictionary.as_ref().is_some_and(|ours| ours.digest() == note.digest);
        if !is_ours || self.stage != Stage::Told {
            return false;
        }
        self.stage = match note.word {
            DictionaryWord::Wanted => Stage::Wanted,
            DictionaryWord::Declined => Stage::Declined,
            DictionaryWord::Announced | DictionaryWord::Given(_) => return false,
        };
        true
    }

    /// Whether the receiver waits for it, and so cannot have accepted.
    pub(crate) fn is_due(&self) -> bool {
        self.stage == Stage::Wanted
    }

    /// Whether blocks may be made with it, once the transfer is accepted.
    pub(crate) fn is_agreed(&self) -> bool {
        matches!(self.stage, Stage::Told | Stage::Given)
    }
}

/// The side of the receiver: what it knows, and what became of the dictionary of the present transfer.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    known: Arc<[Arc<Dictionary>]>,
    /// What senders gave in this session.
    learned: VecDeque<Arc<Dictionary>>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// None was announced.
    #[default]
    None,
    Wanted {
        digest: Digest,
        length: u32,
    },
    Declined,
    Ready(Arc<Dictionary>),
}

impl Taken {
    pub(crate) fn new(known: Arc<[Arc<Dictionary>]>) -> Taken {
        Taken { known, ..Taken::default() }
    }

    /// Forgets what became of the last transfer's.
    pub(crate) fn begin(&mut self) {
        self.state = State::None;
    }

    /// The one that blocks of the transfer may be made with.
    pub(crate) fn ready(&self) -> Option<&Arc<Dictionary>> {
        if let State::Ready(dictionary) = &self.state { Some(dictionary) } else { None }
    }

    /// Whether the sender has yet to give it.
    pub(crate) fn is_due(&self) -> bool {
        matches!(self.state, State::Wanted { .. })
    }

    /// Takes what the sender says, and gives the answer, if there is one. `limit` is the longest that is taken.
    pub(crate) fn hear(&mut self, note: DictionaryNote, limit: u32) -> Result<Option<Frame>, SessionError> {
        let DictionaryNote { digest, length, word } = note;
        match (word, &self.state) {
            (DictionaryWord::Announced, State::None) => {
                let mut known = self.known.iter().chain(&self.learned);
                let word = match known.find(|known| known.digest() == digest) {
                    Some(known) => {
                        self.state = State::Ready(Arc::clone(known));
                        return Ok(None);
                    }
                    None if length > limit => {
                        self.state = State::Declined;
                        DictionaryWord::Declined
                    }
                    None => {
                        self.state = State::Wanted { digest, length };
                        DictionaryWord::Wanted
                    }
                };
                Ok(Some(Frame::Dictionary(DictionaryNote { digest, length, word })))
            }
            (DictionaryWord::Given(bytes), State::Wanted { digest: expected, length: announced })
                if digest == *expected && length == *announced =>
            {
                let actual = Digest::of(&bytes);
                if actual != digest {
                    return Err(SessionError::DictionaryDigest { expected: digest, actual });
                }
                let made = Dictionary::new(bytes)
                    .map_err(|_| SessionError::UnusableDictionary { digest, length })?;
                let made = Arc::new(made);
                if self.learned.len() == MAX_LEARNED {
                    self.learned.pop_front();
                }
                self.learned.push_back(Arc::clone(&made));
                self.state = State::Ready(made);
                Ok(None)
            }
            _ => Err(SessionError::DictionaryOrder { digest }),
        }
    }
}
