//! TLS 1.3 settings: which certificates are taken, and by which rule.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    RootCertStore, ServerConfig, SignatureScheme,
};
use subtle::ConstantTimeEq;

use super::{DialSecurity, Fingerprint, ListenSecurity};
use crate::error::NetError;

/// Ring's algorithms with the fastest cipher first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..rustls::crypto::ring::default_provider()
    })
}

fn config_error(error: &dyn std::fmt::Display) -> NetError {
    NetError::Identity { reason: error.to_string() }
}

/// The client settings and the name to ask for; `None` means plaintext.
pub(crate) fn client_config(
    security: &DialSecurity,
) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>, NetError> {
    let provider = provider();
    let (verifier, identity, name): (Arc<dyn ServerCertVerifier>, _, _) = match security {
        DialSecurity::Insecure => return Ok(None),
        DialSecurity::Paired { fingerprint, identity, .. } => {
            let verifier = Arc::new(ByFingerprint {
                expected: *fingerprint,
                algorithms: provider.signature_verification_algorithms,
            });
            (verifier, identity, "dwcp")
        }
        DialSecurity::Mutual { identity, roots, server_name } => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(root_store(roots)?, Arc::clone(&provider))
                    .build()
                    .map_err(|error| config_error(&error))?;
            (verifier, identity, server_name.as_str())
        }
    };
    let name = ServerName::try_from(name.to_owned()).map_err(|error| config_error(&error))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| config_error(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain(), identity.key()?)
        .map_err(|error| config_error(&error))?;
    config.resumption = Resumption::disabled();
    Ok(Some((Arc::new(config), name)))
}

/// The server settings; `None` means plaintext.
pub(crate) fn server_config(security: &ListenSecurity) -> Result<Option<Arc<ServerConfig>>, NetError> {
    let provider = provider();
    let (verifier, identity): (Arc<dyn ClientCertVerifier>, _) = match security {
        ListenSecurity::Insecure => return Ok(None),
        ListenSecurity::Paired { identity, .. } => {
            (Arc::new(AnyClient { algorithms: provider.signature_verification_algorithms }), identity)
        }
        ListenSecurity::Mutual { identity, roots } => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(root_store(roots)?, Arc::clone(&provider))
                    .build()
                    .map_err(|error| config_error(&error))?;
            (verifier, identity)
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| config_error(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key()?)
        .map_err(|error| config_error(&error))?;
    // Every lane shows its certificate; nothing is resumed.
    config.send_tls13_tickets = 0;
    Ok(Some(Arc::new(config)))
}

fn root_store(roots: &[Vec<u8>]) -> Result<Arc<RootCertStore>, NetError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.clone())).map_err(|error| config_error(&error))?;
    }
    Ok(Arc::new(store))
}

/// What a signature of TLS 1.2 comes to, which the configurations above never negotiate.
fn only_tls13() -> Error {
    Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired)
}

/// Takes exactly one server certificate, by fingerprint.
#[derive(Debug)]
struct ByFingerprint {
    expected: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if bool::from(Fingerprint::of(end_entity).0.ct_eq(&self.expected.0)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes any client certificate whose key the client has; the token tells later whether it is welcome.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
