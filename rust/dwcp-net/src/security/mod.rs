//! Who may talk to whom: identities, pairing, tokens, and the TLS settings that follow from them.

mod base64url;
mod guesses;
mod identity;
mod pairing;
mod tokens;
mod verify;

use std::sync::Arc;

pub(crate) use guesses::network_of;
pub use identity::{Fingerprint, Identity, read_certificates};
pub(crate) use pairing::random_bytes;
pub use pairing::{Pairing, Token, split_address};
pub use tokens::{Ticket, TokenBook};
pub(crate) use verify::{client_config, server_config};

/// How a sender knows the receiver and shows who it is.
#[derive(Clone, Debug)]
pub enum DialSecurity {
    /// The receiver's pairing string was given.
    Paired {
        /// What the receiver's certificate must have.
        fingerprint: Fingerprint,
        /// The secret of the pairing.
        token: Token,
        /// The sender's own certificate; the token is bound to it.
        identity: Identity,
    },
    /// Both sides have certificates from known authorities.
    Mutual {
        /// The sender's certificate.
        identity: Identity,
        /// The authorities that may have signed the receiver's certificate, in DER form.
        roots: Vec<Vec<u8>>,
        /// The name that the receiver's certificate must have.
        server_name: String,
    },
    /// No encryption and no authentication.
    Insecure,
}

/// How a receiver knows senders and shows who it is.
#[derive(Clone, Debug)]
pub enum ListenSecurity {
    /// Senders were given a pairing string.
    Paired {
        /// The receiver's certificate, whose fingerprint is in the pairing string.
        identity: Identity,
        /// The tokens that are good.
        tokens: Arc<TokenBook>,
    },
    /// Both sides have certificates from known authorities.
    Mutual {
        /// The receiver's certificate.
        identity: Identity,
        /// The authorities that may have signed a sender's certificate, in DER form.
        roots: Vec<Vec<u8>>,
    },
    /// No encryption and no authentication.
    Insecure,
}
