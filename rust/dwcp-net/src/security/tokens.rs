//! The tokens a receiver takes, and whom each belongs to.

use std::sync::Mutex;
use std::time::Duration;

use subtle::ConstantTimeEq;

use super::{Fingerprint, Token};
use crate::cancel::{Cancel, lock};
use crate::error::NetError;

/// This many wrong tokens are answered at full speed.
const FREE_ATTEMPTS: u32 = 10;

/// The longest delay of one check.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// A token and the client it belongs to since its first use.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The secret.
    pub token: Token,
    /// The certificate of the client that used it first; nobody else can use it.
    pub client: Option<Fingerprint>,
}

/// The tokens of a receiver. Each is good for the first client that shows it, and from then on only for that client.
#[derive(Debug, Default)]
pub struct TokenBook(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    tickets: Vec<Ticket>,
    wrong: u32,
}

impl TokenBook {
    /// A book with these tickets, for example those an earlier receiver exported.
    #[must_use]
    pub fn new(tickets: Vec<Ticket>) -> TokenBook {
        TokenBook(Mutex::new(Book { tickets, wrong: 0 }))
    }

    /// Adds a token that belongs to nobody yet.
    pub fn add(&self, token: Token) {
        lock(&self.0).tickets.push(Ticket { token, client: None });
    }

    /// All tickets, so that a restarted receiver keeps its pairings.
    #[must_use]
    pub fn export(&self) -> Vec<Ticket> {
        lock(&self.0).tickets.clone()
    }

    /// Admits `client` if the token is known and not another client's, and binds the token to it.
    pub(crate) fn admit(
        &self,
        token: &[u8; 32],
        client: &Fingerprint,
        cancel: &Cancel,
    ) -> Result<(), NetError> {
        let delay = {
            let excess = lock(&self.0).wrong.saturating_sub(FREE_ATTEMPTS);
            Duration::from_millis(u64::from(excess) * 100).min(MAX_DELAY)
        };
        if !delay.is_zero() {
            cancel.sleep(delay)?;
        }
        let mut book = lock(&self.0);
        let mut found = None;
        // Every ticket is compared whatever came before, so the time tells nothing.
        for (index, ticket) in book.tickets.iter().enumerate() {
            if bool::from(ticket.token.0.ct_eq(token)) {
                found = Some(index);
            }
        }
        let Some(index) = found else {
            book.wrong = book.wrong.saturating_add(1);
            return Err(NetError::Auth { reason: "the token is wrong".to_owned() });
        };
        match &mut book.tickets[index].client {
            Some(owner) if owner != client => {
                Err(NetError::Auth { reason: "the token belongs to another client".to_owned() })
            }
            owner => {
                *owner = Some(*client);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_first_client_even_after_an_export() {
        let cancel = Cancel::new();
        let book = TokenBook::default();
        book.add(Token::from_bytes([1; 32]));
        book.add(Token::from_bytes([2; 32]));
        let (alice, bob) = (Fingerprint([8; 32]), Fingerprint([9; 32]));
        book.admit(&[1; 32], &alice, &cancel).unwrap();
        let book = TokenBook::new(book.export());
        book.admit(&[1; 32], &alice, &cancel).unwrap();
        assert!(matches!(book.admit(&[1; 32], &bob, &cancel), Err(NetError::Auth { .. })));
        book.admit(&[2; 32], &bob, &cancel).unwrap();
        assert!(matches!(book.admit(&[0; 32], &bob, &cancel), Err(NetError::Auth { .. })));
    }

    #[test]
    fn guessing_is_slowed_and_the_delay_can_be_cancelled() {
        let cancel = Cancel::new();
        let book = TokenBook::default();
        let client = Fingerprint([8; 32]);
        for _ in 0..=FREE_ATTEMPTS {
            assert!(matches!(book.admit(&[0; 32], &client, &cancel), Err(NetError::Auth { .. })));
        }
        cancel.cancel();
        assert!(matches!(book.admit(&[0; 32], &client, &cancel), Err(NetError::Cancelled)));
    }
}
