//! The pairing string: everything a sender needs to reach a receiver and to know it.

use std::fmt;
use std::str::FromStr;

use super::{Fingerprint, base64url};
use crate::error::NetError;

/// The longest host name or literal that is taken.
const MAX_HOST: usize = 255;

/// A pairing secret. It never shows in `Debug`; only [`Pairing`]'s text form tells it.
#[derive(Clone)]
pub struct Token(pub(crate) [u8; 32]);

impl Token {
    /// A new random token.
    ///
    /// # Errors
    /// [`NetError::Random`] when the machine has no randomness to give.
    pub fn generate() -> Result<Token, NetError> {
        random_bytes().map(Token)
    }

    /// The token with these bytes, for one that was kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Token {
        Token(bytes)
    }

    /// The secret itself, to keep it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Random bytes.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], NetError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| NetError::Random { reason: error.to_string() })?;
    Ok(bytes)
}

/// `dwcp://HOST:PORT#FINGERPRINT.TOKEN`.
#[derive(Clone, Debug)]
pub struct Pairing {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The receiver's TCP port.
    pub port: u16,
    /// What the receiver's certificate must have.
    pub fingerprint: Fingerprint,
    /// What the receiver wants to see.
    pub token: Token,
}

impl Pairing {
    /// `HOST:PORT`, with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dwcp://{}#{}.{}", self.address(), self.fingerprint, base64url::encode(&self.token.0))
    }
}

impl FromStr for Pairing {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Pairing, NetError> {
        let invalid = |reason| NetError::Pairing { reason };
        let rest = text.trim().strip_prefix("dwcp://").ok_or(invalid("it does not start with dwcp://"))?;
        let (address, secrets) =
            rest.split_once('#').ok_or(invalid("there is no # before the fingerprint"))?;
        let (fingerprint, token) =
            secrets.split_once('.').ok_or(invalid("there is no . before the token"))?;
        let fingerprint = base64url::decode(fingerprint)
            .ok_or(invalid("the fingerprint is not 43 base64url characters"))?;
        let token = base64url::decode(token).ok_or(invalid("the token is not 43 base64url characters"))?;
        let (host, port) = split_address(address).map_err(|_| invalid("the address is not HOST:PORT"))?;
        Ok(Pairing { host, port, fingerprint: Fingerprint(fingerprint), token: Token(token) })
    }
}

/// Takes `HOST:PORT` apart; an IPv6 host stands in brackets and comes back without them.
///
/// # Errors
/// [`NetError::Address`] when the text is anything else.
pub fn split_address(address: &str) -> Result<(String, u16), NetError> {
    let invalid = |reason| NetError::Address { address: address.to_owned(), reason };
    let (host, port) = address.rsplit_once(':').ok_or(invalid("there is no port"))?;
    // u16's parser alone would also take a sign.
    let port = Some(port)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse().ok())
        .ok_or(invalid("the port is not a number from 0 to 65535"))?;
    let host = if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or(invalid("the bracket is not closed"))?;
        let literal = inner.split_once('%').map_or(inner, |(literal, _zone)| literal);
        literal
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| invalid("there is no ipv6 address in the brackets"))?;
        inner
    } else if host.contains(':') {
        return Err(invalid("an ipv6 address needs brackets"));
    } else {
        host
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"#/@?[]".contains(&byte);
    if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(plain) {
        return Err(invalid("the host is empty, too long, or not plain text"));
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairing(host: &str) -> Pairing {
        let token = Token::from_bytes([7; 32]);
        Pairing { host: host.to_owned(), port: 9_000, fingerprint: Fingerprint([1; 32]), token }
    }

    #[test]
    fn pairing_text_is_read_back() {
        for host in ["example.org", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"] {
            let text = pairing(host).to_string();
            let back: Pairing = text.parse().unwrap();
            assert_eq!(
                (back.host.as_str(), back.port, back.fingerprint),
                (host, 9_000, Fingerprint([1; 32]))
            );
            assert_eq!(back.token.to_bytes(), [7; 32]);
            assert_eq!(back.to_string(), text);
        }
        assert!(pairing("2001:db8::1").to_string().starts_with("dwcp://[2001:db8::1]:9000#"));
    }

    #[test]
    fn a_damaged_pairing_is_refused() {
        let good = pairing("h").to_string();
        for bad in [
            good.replace("dwcp://", "http://"),
            good.replace('#', "."),
            good.replace(":9000", ""),
            good.replace(":9000", ":+900"),
            good.replace(":9000", ":65536"),
            good.replace("//h", "//::1"),
            good.replace("//h", "//[::1"),
            good.replace("//h", "//[h]"),
            good.replace("//h", "//"),
            good[..good.len() - 1].to_owned(),
            format!("{good}A"),
        ] {
            assert!(matches!(bad.parse::<Pairing>(), Err(NetError::Pairing { .. })), "{bad}");
        }
    }

    #[test]
    fn the_token_is_not_in_debug_output() {
        let shown = format!("{:?}", pairing("h"));
        assert!(!shown.contains(&base64url::encode(&[7; 32])) && !shown.contains("7, 7"), "{shown}");
    }
}
