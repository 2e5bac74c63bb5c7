//! Identities, and what each side demands of the other.

use std::path::PathBuf;
use std::sync::Arc;

use dwcp_net::security::{self as net, Fingerprint, Pairing, Ticket, Token, TokenBook};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Failure;
use crate::native;

/// Length of a ticket as [`ListenSecurity::tickets`] writes it, before its clients: token, most clients (0 for any),
/// and how many clients follow, in little-endian order.
const TICKET_BYTES: usize = 40;

/// Length of a client in a ticket: the SHA-256 of its certificate.
const CLIENT_BYTES: usize = 32;

/// A certificate and its private key.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct Identity(net::Identity);

#[pymethods]
impl Identity {
    /// Make a self-signed identity.
    #[staticmethod]
    fn generate(py: Python<'_>) -> PyResult<Identity> {
        native::run(py, || Ok(Identity(net::Identity::generate()?)))
    }

    /// Read a certificate chain and its key from PEM files.
    #[staticmethod]
    fn load_pem(py: Python<'_>, certificates: PathBuf, key: PathBuf) -> PyResult<Identity> {
        native::run(py, || Ok(Identity(net::Identity::load_pem(&certificates, &key)?)))
    }

    /// Read what `to_blob` gave.
    #[staticmethod]
    fn from_blob(py: Python<'_>, blob: Vec<u8>) -> PyResult<Identity> {
        native::run(py, || Ok(Identity(net::Identity::from_blob(&blob)?)))
    }

    /// The identity as bytes to keep; they hold the private key.
    fn to_blob<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_blob())
    }

    /// SHA-256 of the certificate, in base64url.
    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }
}

/// How a sender knows the receiver and shows who it is.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct DialSecurity(pub net::DialSecurity);

#[pymethods]
impl DialSecurity {
    /// By a pairing string.
    #[staticmethod]
    fn paired(py: Python<'_>, pairing: &str, identity: &Identity) -> PyResult<DialSecurity> {
        let Pairing { fingerprint, token, .. } = parse(py, pairing)?;
        Ok(DialSecurity(net::DialSecurity::Paired { fingerprint, token, identity: identity.0.clone() }))
    }

    /// By certificates of the authorities in the PEM file `ca`.
    #[staticmethod]
    fn mutual(
        py: Python<'_>,
        identity: &Identity,
        ca: PathBuf,
        server_name: String,
    ) -> PyResult<DialSecurity> {
        let roots = native::run(py, || Ok(net::read_certificates(&ca)?))?;
        Ok(DialSecurity(net::DialSecurity::Mutual { identity: identity.0.clone(), roots, server_name }))
    }

    /// Not at all, and in plain text.
    #[staticmethod]
    fn insecure() -> DialSecurity {
        DialSecurity(net::DialSecurity::Insecure)
    }
}

/// How a receiver knows senders and shows who it is.
#[pyclass(frozen, module = "dwcp_fast._core")]
pub struct ListenSecurity(pub net::ListenSecurity);

#[pymethods]
impl ListenSecurity {
    /// By the tickets of an earlier listener, or one new token, good for `clients`, or for any number of them.
    #[staticmethod]
    #[pyo3(signature = (identity, tickets, clients))]
    fn paired(
        py: Python<'_>,
        identity: &Identity,
        tickets: Option<Vec<u8>>,
        clients: Option<u32>,
    ) -> PyResult<ListenSecurity> {
        let tickets = match tickets {
            Some(blob) => {
                let mut tickets =
                    read_tickets(&blob).ok_or_else(|| Failure::Tickets { length: blob.len() }.raise(py))?;
                // Whoever is bound already stays so.
                tickets.iter_mut().for_each(|ticket| ticket.most_clients = clients);
                tickets
            }
            None => {
                let token = Token::generate().map_err(|error| Failure::from(error).raise(py))?;
                vec![Ticket::new(token, clients)]
            }
        };
        let tokens = Arc::new(TokenBook::new(tickets));
        Ok(ListenSecurity(net::ListenSecurity::Paired { identity: identity.0.clone(), tokens }))
    }

    /// By certificates of the authorities in the PEM file `ca`.
    #[staticmethod]
    fn mutual(py: Python<'_>, identity: &Identity, ca: PathBuf) -> PyResult<ListenSecurity> {
        let roots = native::run(py, || Ok(net::read_certificates(&ca)?))?;
        Ok(ListenSecurity(net::ListenSecurity::Mutual { identity: identity.0.clone(), roots }))
    }

    /// Not at all, and in plain text.
    #[staticmethod]
    fn insecure() -> ListenSecurity {
        ListenSecurity(net::ListenSecurity::Insecure)
    }

    /// The tokens and whose they are, to keep; they are secrets. None where there are none.
    fn tickets<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let net::ListenSecurity::Paired { tokens, .. } = &self.0 else { return None };
        let mut blob = Vec::new();
        for Ticket { token, most_clients, clients } in tokens.export() {
            blob.extend(token.to_bytes());
            blob.extend(most_clients.unwrap_or(0).to_le_bytes());
            blob.extend((clients.len() as u32).to_le_bytes());
            clients.iter().for_each(|client| blob.extend(client.0));
        }
        Some(PyBytes::new(py, &blob))
    }

    /// The pairing string for a receiver that is reached at `host` and `port`, or None without pairing.
    fn pairing(&self, host: String, port: u16) -> Option<String> {
        let net::ListenSecurity::Paired { identity, tokens } = &self.0 else { return None };
        let token = tokens.export().into_iter().next()?.token;
        Some(Pairing { host, port, fingerprint: identity.fingerprint(), token }.to_string())
    }
}

/// `HOST:PORT` of a pairing string.
#[pyfunction]
pub fn pairing_address(py: Python<'_>, pairing: &str) -> PyResult<String> {
    Ok(parse(py, pairing)?.address())
}

/// Host and port of `HOST:PORT`.
#[pyfunction]
pub fn split_address(py: Python<'_>, address: &str) -> PyResult<(String, u16)> {
    net::split_address(address).map_err(|error| Failure::from(error).raise(py))
}

fn parse(py: Python<'_>, pairing: &str) -> PyResult<Pairing> {
    pairing.parse().map_err(|error| Failure::Net(error).raise(py))
}

fn read_tickets(blob: &[u8]) -> Option<Vec<Ticket>> {
    let mut tickets = Vec::new();
    let mut rest = blob;
    while !rest.is_empty() {
        let (ticket, tail) = rest.split_first_chunk::<TICKET_BYTES>()?;
        let (token, numbers) = ticket.split_first_chunk::<32>()?;
        let (most, count) = numbers.split_first_chunk::<4>()?;
        let (most, count) = (u32::from_le_bytes(*most), u32::from_le_bytes(count.try_into().ok()?));
        let (clients, tail) = tail.split_at_checked((count as usize).checked_mul(CLIENT_BYTES)?)?;
        let clients = clients.as_chunks::<CLIENT_BYTES>().0.iter().map(|client| Fingerprint(*client));
        tickets.push(Ticket {
            token: Token::from_bytes(*token),
            most_clients: (most != 0).then_some(most),
            clients: clients.collect(),
        });
        rest = tail;
    }
    (!tickets.is_empty()).then_some(tickets)
}
