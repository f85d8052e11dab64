// SPDX-License-Identifier: GPL-2.0
//! What both ends demand of each other: TLS 1.3, a certificate of the CA, no session that skips looking at it, and, where a
//! target has a list, a name in it.

use super::certificate::Certificate;
use super::error::TlsError;
use super::files::{rejected, Files, Role};
use super::Tls;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::sync::Arc;

/// The end that takes a guest.
pub(crate) fn server(tls: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let files = Files::load(&tls.directory, Role::Server, &provider)?;
    let verifier = AllowedPeers {
        signed: signed_by(files.roots, &provider)?,
        allowed: tls.allowed.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(files.chain, files.key)?;
    // A session that is resumed has no certificates to look at, and each move is one connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The end that sends a guest.
pub(crate) fn client(tls: &Tls) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let files = Files::load(&tls.directory, Role::Client, &provider)?;
    if let Some((own, intermediates)) = files.chain.split_first() {
        signed_by(files.roots.clone(), &provider)?
            .verify_client_cert(own, intermediates, UnixTime::now())
            .map_err(|error| rejected(&tls.directory, Role::Client, error))?;
    }
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(files.roots)
        .with_client_auth_cert(files.chain, files.key)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes every certificate that one of the CAs has signed for a client.
fn signed_by(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| match error {
            // `Files` never returns none, and no list is given.
            VerifierBuilderError::NoRootAnchors => {
                TlsError::PeerCertificate("there is no CA".into())
            }
            error => TlsError::PeerCertificate(error.to_string()),
        })
}

/// Takes the certificates that `signed` takes and whose name is in the list, so that a peer beyond it is refused inside of the
/// handshake, before a byte of a move is read.
#[derive(Debug)]
struct AllowedPeers {
    signed: Arc<dyn ClientCertVerifier>,
    /// Empty: all.
    allowed: Vec<String>,
}

impl ClientCertVerifier for AllowedPeers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .signed
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.allowed.is_empty() {
            return Ok(verified);
        }
        let certificate =
            Certificate::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if self.allowed.iter().any(|name| certificate.has_name(name)) {
            return Ok(verified);
        }
        tracing::warn!(
            name = certificate.common_name,
            dns_names = ?certificate.dns_names,
            "a peer is not in the --allow-peer list"
        );
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
