//! The tokens a listener takes, and whom each belongs to.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use super::guesses::Guesses;
use super::{Fingerprint, Token};
use crate::cancel::lock;
use crate::error::NetError;

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
    guesses: Guesses,
}

impl TokenBook {
    /// A book with these tickets, for example those an earlier receiver exported.
    #[must_use]
    pub fn new(tickets: Vec<Ticket>) -> TokenBook {
        TokenBook(Mutex::new(Book { tickets, guesses: Guesses::default() }))
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

    /// Admits `client` if the token is known and not another client's, and binds the token to it. Else also tells how
    /// long the answer is to be delayed.
    pub(crate) fn admit(
        &self,
        token: &[u8; 32],
        client: &Fingerprint,
        from: IpAddr,
    ) -> Result<(), (NetError, Duration)> {
        let mut book = lock(&self.0);
        let mut found = None;
        // Every ticket is compared whatever came before, so the time tells nothing.
        for (index, ticket) in book.tickets.iter().enumerate() {
            if bool::from(ticket.token.0.ct_eq(token)) {
                found = Some(index);
            }
        }
        let Some(index) = found else {
            let delay = book.guesses.note(from, Instant::now());
            return Err((NetError::Auth { reason: "the token is wrong".to_owned() }, delay));
        };
        if book.tickets[index].bind(client) {
            Ok(())
        } else {
            let error = NetError::Auth { reason: "the token belongs to another client".to_owned() };
            Err((error, Duration::ZERO))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_token_belongs_to_its_first_client_even_after_an_export() {
        let book = TokenBook::default();
        book.add(Token::from_bytes([1; 32]));
        book.add(Token::from_bytes([2; 32]));
        let (alice, bob) = (Fingerprint([8; 32]), Fingerprint([9; 32]));
        book.admit(&[1; 32], &alice, FROM).unwrap();
        let book = TokenBook::new(book.export());
        book.admit(&[1; 32], &alice, FROM).unwrap();
        assert!(matches!(book.admit(&[1; 32], &bob, FROM), Err((NetError::Auth { .. }, _))));
        book.admit(&[2; 32], &bob, FROM).unwrap();
        assert!(matches!(book.admit(&[0; 32], &bob, FROM), Err((NetError::Auth { .. }, _))));
    }

    #[test]
    fn a_token_for_two_is_refused_to_the_third_and_one_for_all_to_nobody() {
        let book = TokenBook::new(vec![
            Ticket::new(Token::from_bytes([1; 32]), Some(2)),
            Ticket::new(Token::from_bytes([2; 32]), None),
        ]);
        let [alice, bob, carol] = [7, 8, 9].map(|byte| Fingerprint([byte; 32]));
        for client in [&alice, &bob, &alice] {
            book.admit(&[1; 32], client, FROM).unwrap();
        }
        let book = TokenBook::new(book.export());
        assert!(matches!(book.admit(&[1; 32], &carol, FROM), Err((NetError::Auth { .. }, _))));
        book.admit(&[1; 32], &bob, FROM).unwrap();
        for client in [&alice, &bob, &carol] {
            book.admit(&[2; 32], client, FROM).unwrap();
        }
        assert!(book.export()[1].clients.is_empty());
    }
}
