// SPDX-License-Identifier: GPL-2.0
//! The certificates and keys of a directory, under the names that QEMU gives them, checked as far as this host can check them
//! alone: whatever would let every handshake fail is found here, where the file has a name.

use super::certificate::Certificate;
use super::error::TlsError;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The CA's certificate.
pub const CA_CERTIFICATE: &str = "ca-cert.pem";
/// The CA's key; only the host that issues certificates has it.
pub const CA_KEY: &str = "ca-key.pem";
/// What this host shows to peers that send guests here.
pub const SERVER_CERTIFICATE: &str = "server-cert.pem";
/// Its key.
pub const SERVER_KEY: &str = "server-key.pem";
/// What this host shows to peers that it sends guests to.
pub const CLIENT_CERTIFICATE: &str = "client-cert.pem";
/// Its key.
pub const CLIENT_KEY: &str = "client-key.pem";

/// How long before its end a certificate is warned of.
const WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// Which end of a connection this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It takes a guest.
    Server,
    /// It sends a guest.
    Client,
}

impl Role {
    pub fn certificate(self) -> &'static str {
        match self {
            Self::Server => SERVER_CERTIFICATE,
            Self::Client => CLIENT_CERTIFICATE,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Server => SERVER_KEY,
            Self::Client => CLIENT_KEY,
        }
    }
}

/// What this host needs for one end of a connection.
pub(super) struct Files {
    /// The CAs that it believes.
    pub roots: RootCertStore,
    /// Its own certificate, then those between it and the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Files {
    /// Reads and checks them.
    pub fn load(directory: &Path, role: Role, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let now = UnixTime::now();
        let ca_path = directory.join(CA_CERTIFICATE);
        let mut roots = RootCertStore::empty();
        for ca in certificates(&ca_path)? {
            check_validity(&ca_path, &parse(&ca_path, &ca)?, now, "init")?;
            roots
                .add(ca)
                .map_err(|error| unusable(&ca_path, &error.to_string()))?;
        }

        let certificate_path = directory.join(role.certificate());
        let chain = certificates(&certificate_path)?;
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(unusable(&certificate_path, "it is empty"));
        };
        check_validity(
            &certificate_path,
            &parse(&certificate_path, own)?,
            now,
            "issue",
        )?;

        let key_path = directory.join(role.key());
        warn_of_readers(&key_path);
        let key: PrivateKeyDer<'static> = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|reason| not_pem(&key_path, "private key", reason))?;
        let signer = provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| unusable(&key_path, &error.to_string()))?;
        match CertifiedKey::new(chain.clone(), signer).keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::KeyMismatch {
                    key: key_path,
                    certificate: certificate_path,
                })
            }
            Err(error) => return Err(unusable(&certificate_path, &error.to_string())),
        }
        if role == Role::Server {
            // A client's certificate is checked by the verifier that it will meet; see `config`.
            let parsed = ParsedCertificate::try_from(own)
                .map_err(|error| unusable(&certificate_path, &error.to_string()))?;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &roots,
                intermediates,
                now,
                provider.signature_verification_algorithms.all,
            )
            .map_err(|error| rejected(directory, role, error))?;
        }
        Ok(Self { roots, chain, key })
    }
}

/// This host's own certificate does not hold before its own CA.
pub(super) fn rejected(directory: &Path, role: Role, error: rustls::Error) -> TlsError {
    let certificate = directory.join(role.certificate());
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => TlsError::OtherCa {
            certificate,
            ca: directory.join(CA_CERTIFICATE),
        },
        error => unusable(&certificate, &error.to_string()),
    }
}

/// What the first certificate of a file says.
pub(super) fn first_certificate(path: &Path) -> Result<Certificate, TlsError> {
    match certificates(path)?.first() {
        Some(der) => parse(path, der),
        None => Err(unusable(path, "it is empty")),
    }
}

/// The certificates of a file: at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let failed = |reason| not_pem(path, "certificate", reason);
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|reason| TlsError::Unreadable {
        path: path.to_owned(),
        reason,
    })
}

/// A key that everybody on this host can read protects nothing from them.
fn warn_of_readers(key: &Path) {
    if fs::metadata(key).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0) {
        tracing::warn!(path = %key.display(), "every user of this host can read this key; chmod 600 it");
    }
}

fn parse(path: &Path, der: &[u8]) -> Result<Certificate, TlsError> {
    Certificate::parse(der).map_err(|reason| unusable(path, &reason))
}

/// The verifier takes a CA's certificate for a name and a key only, so its validity is looked at here.
fn check_validity(
    path: &Path,
    certificate: &Certificate,
    now: UnixTime,
    command: &'static str,
) -> Result<(), TlsError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > certificate.not_after {
        return Err(TlsError::Expired {
            path: path.to_owned(),
            at: certificate.expiry(),
            command,
        });
    }
    if now < certificate.not_before {
        return Err(TlsError::NotYetValid {
            path: path.to_owned(),
            at: certificate.begin(),
        });
    }
    let left = certificate.not_after.saturating_sub(now);
    if u64::try_from(left).is_ok_and(|left| left < WARNING.as_secs()) {
        tracing::warn!(
            path = %path.display(),
            "this certificate expires on {}; make a new one with `pvmmd cert {command}`",
            certificate.expiry()
        );
    }
    Ok(())
}

fn unusable(path: &Path, reason: &str) -> TlsError {
    TlsError::Unusable {
        path: PathBuf::from(path),
        reason: reason.to_owned(),
    }
}

fn not_pem(path: &Path, what: &'static str, reason: pem::Error) -> TlsError {
    TlsError::NotPem {
        path: PathBuf::from(path),
        what,
        reason,
    }
}
