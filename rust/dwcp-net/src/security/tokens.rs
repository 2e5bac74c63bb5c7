//! The tokens a listener takes, and whom each belongs to.

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

/// A token and the clients it belongs to since they first used it.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The secret.
    pub token: Token,
    /// How many clients it is good for; none for any number, which are not kept then.
    pub most_clients: Option<u32>,
    /// The certificates of the clients that used it first; when they are as many as it is good for, nobody else can.
    pub clients: Vec<Fingerprint>,
}

impl Ticket {
    /// A token that nobody has used yet.
    #[must_use]
    pub fn new(token: Token, most_clients: Option<u32>) -> Ticket {
        Ticket { token, most_clients, clients: Vec::new() }
    }

    /// Whether `client` may use it; from then on it belongs to it.
    fn bind(&mut self, client: &Fingerprint) -> bool {
        let Some(most) = self.most_clients else { return true };
        if self.clients.contains(client) {
            return true;
        }
        let room = self.clients.len() < most as usize;
        if room {
            self.clients.push(*client);
        }
        room
    }
}

/// The tokens of a listener. Each is good for the first clients that show it, as many as its ticket says, and from then
/// on only for those.
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

    /// Adds a token for one client, which belongs to nobody yet.
    pub fn add(&self, token: Token) {
        lock(&self.0).tickets.push(Ticket::new(token, Some(1)));
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
        if book.tickets[index].bind(client) {
            Ok(())
        } else {
            Err(NetError::Auth { reason: "the token belongs to another client".to_owned() })
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
    fn a_token_for_two_is_refused_to_the_third_and_one_for_all_to_nobody() {
        let cancel = Cancel::new();
        let book = TokenBook::new(vec![
            Ticket::new(Token::from_bytes([1; 32]), Some(2)),
            Ticket::new(Token::from_bytes([2; 32]), None),
        ]);
        let [alice, bob, carol] = [7, 8, 9].map(|byte| Fingerprint([byte; 32]));
        for client in [&alice, &bob, &alice] {
            book.admit(&[1; 32], client, &cancel).unwrap();
        }
        let book = TokenBook::new(book.export());
        assert!(matches!(book.admit(&[1; 32], &carol, &cancel), Err(NetError::Auth { .. })));
        book.admit(&[1; 32], &bob, &cancel).unwrap();
        for client in [&alice, &bob, &carol] {
            book.admit(&[2; 32], client, &cancel).unwrap();
        }
        assert!(book.export()[1].clients.is_empty());
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
