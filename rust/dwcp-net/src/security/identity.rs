//! A certificate and its private key.

use std::fmt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::base64url;
use crate::error::NetError;

/// Opens a stored identity; followed by the certificate count and length-prefixed DER.
const BLOB_MAGIC: &[u8; 8] = b"DWCPID1\n";

/// The most certificates of a chain, in a file or blob.
const MAX_CHAIN: usize = 16;

/// The most certificates of a file of authorities.
const MAX_AUTHORITIES: usize = 1_024;

/// The SHA-256 of a certificate in DER form; its text form is base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Fingerprint {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Fingerprint(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url::encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a peer is: a certificate chain, the peer's own certificate first, and the private key of that certificate.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
}

impl Identity {
    /// Makes a self-signed identity with a new P-256 key, for pairing.
    ///
    /// # Errors
    /// [`NetError::Identity`] when the machine has no randomness to give.
    pub fn generate() -> Result<Identity, NetError> {
        let refused = |error: rcgen::Error| NetError::Identity { reason: error.to_string() };
        let key = rcgen::KeyPair::generate().map_err(refused)?;
        // The default validity is as long as the format allows: pairing compares fingerprints, not dates.
        let params = rcgen::CertificateParams::new(vec!["dwcp".to_owned()]).map_err(refused)?;
        let certificate = params.self_signed(&key).map_err(refused)?;
        Ok(Identity { chain: vec![certificate.der().to_vec()], key: key.serialize_der() })
    }

    /// Reads a certificate chain and its private key from PEM files.
    ///
    /// # Errors
    /// [`NetError::Pem`] when a file cannot be read, holds no certificate or key, or more than 16 certificates.
    pub fn load_pem(certificates: &Path, key: &Path) -> Result<Identity, NetError> {
        let chain = read_at_most(MAX_CHAIN, certificates)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| pem_error(key, &error))?;
        Ok(Identity { chain, key: key.secret_der().to_vec() })
    }

    /// The fingerprint of the identity's own certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.chain.first().map_or(&[], Vec::as_slice))
    }

    /// The identity as bytes to keep. They hold the private key.
    #[must_use]
    pub fn to_blob(&self) -> Vec<u8> {
        let mut blob = BLOB_MAGIC.to_vec();
        blob.push(self.chain.len() as u8);
        for part in self.chain.iter().chain([&self.key]) {
            blob.extend((part.len() as u32).to_le_bytes());
            blob.extend(part);
        }
        blob
    }

    /// Reads back what [`Identity::to_blob`] gave.
    ///
    /// # Errors
    /// [`NetError::Identity`] when `blob` is anything else.
    pub fn from_blob(blob: &[u8]) -> Result<Identity, NetError> {
        let invalid = || NetError::Identity { reason: "the stored identity is damaged".to_owned() };
        let rest = blob.strip_prefix(BLOB_MAGIC).ok_or_else(invalid)?;
        let (&count, mut rest) = rest.split_first().ok_or_else(invalid)?;
        if count == 0 || usize::from(count) > MAX_CHAIN {
            return Err(invalid());
        }
        let mut parts = Vec::with_capacity(usize::from(count) + 1);
        for _ in 0..=count {
            let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(invalid)?;
            let (part, tail) =
                tail.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(invalid)?;
            parts.push(part.to_vec());
            rest = tail;
        }
        let key = parts.pop().ok_or_else(invalid)?;
        if rest.is_empty() { Ok(Identity { chain: parts, key }) } else { Err(invalid()) }
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().cloned().map(CertificateDer::from).collect()
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, NetError> {
        // PKCS#8 is what generate() makes; files may also hold the older forms.
        PrivateKeyDer::try_from(self.key.clone())
            .or_else(|_| Ok::<_, NetError>(PrivatePkcs8KeyDer::from(self.key.clone()).into()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// Reads the certificates of a PEM file, for example the authorities of mutual TLS, in DER form.
///
/// # Errors
/// [`NetError::Pem`] when the file cannot be read, or holds no certificate or more than 1,024.
pub fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, NetError> {
    read_at_most(MAX_AUTHORITIES, path)
}

fn read_at_most(most: usize, path: &Path) -> Result<Vec<Vec<u8>>, NetError> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| pem_error(path, &error))? {
        let certificate = certificate.map_err(|error| pem_error(path, &error))?;
        if chain.len() == most {
            let reason = format!("more than {most} certificates in the file, the most that there may be");
            return Err(NetError::Pem { path: path.to_owned(), reason });
        }
        chain.push(certificate.to_vec());
    }
    if chain.is_empty() {
        return Err(NetError::Pem { path: path.to_owned(), reason: "no certificate in the file".to_owned() });
    }
    Ok(chain)
}

fn pem_error(path: &Path, error: &rustls::pki_types::pem::Error) -> NetError {
    NetError::Pem { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_identity_is_read_back_and_a_damaged_one_is_refused() {
        let identity = Identity::generate().unwrap();
        let blob = identity.to_blob();
        let back = Identity::from_blob(&blob).unwrap();
        assert_eq!(back.fingerprint(), identity.fingerprint());
        assert_eq!(back.key, identity.key);
        for cut in 0..blob.len() {
            assert!(Identity::from_blob(&blob[..cut]).is_err(), "{cut}");
        }
        assert!(Identity::from_blob(&[blob.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn certificates_above_the_limit_are_refused_and_none_is_left_out() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["dwcp".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap().pem();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let certificates = |count| file("certificates", certificate.repeat(count));
        let key = file("key", pair.serialize_pem());
        let load = |count| Identity::load_pem(&certificates(count), &key);
        let longest = load(MAX_CHAIN).unwrap();
        assert_eq!(Identity::from_blob(&longest.to_blob()).unwrap().chain, longest.chain);
        let error = load(MAX_CHAIN + 1).unwrap_err().to_string();
        assert!(error.contains("more than 16 certificates"), "{error}");
        assert_eq!(read_certificates(&certificates(MAX_AUTHORITIES)).unwrap().len(), MAX_AUTHORITIES);
        let error = read_certificates(&certificates(MAX_AUTHORITIES + 1)).unwrap_err().to_string();
        assert!(error.contains("more than 1024 certificates"), "{error}");
    }

    #[test]
    fn two_identities_differ() {
        assert_ne!(Identity::generate().unwrap().fingerprint(), Identity::generate().unwrap().fingerprint());
    }
}
