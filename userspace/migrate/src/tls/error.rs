// SPDX-License-Identifier: GPL-2.0
//! Why there is no TLS connection, and what to do about it.

use rustls::pki_types::pem;
use rustls::{AlertDescription, CertificateError};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What a text says when a file is missing or of no use.
const REMEDY: &str = "make certificates with `pvmmd cert init` and `pvmmd cert issue`, name their directory with --tls-dir, \
                      or use --insecure on a network that only trusted hosts reach";

/// What stands against a TLS connection: a file of this host, or the peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}; {REMEDY}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file is not what its name says.
    #[error("{path} holds no {what} in PEM format: {reason}; {REMEDY}")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: pem::Error,
    },
    /// A certificate or key that cannot be used.
    #[error("{path} cannot be used: {reason}; make a new one with `pvmmd cert issue`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate of this host or its CA is over.
    #[error("{path} expired on {at}; make a new one with `pvmmd cert {command}`, and check this host's clock")]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        at: String,
        /// The command that makes one.
        command: &'static str,
    },
    /// A certificate of this host or its CA has not begun.
    #[error("{path} is valid from {at} on only; check this host's clock")]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it begins.
        at: String,
    },
    /// Certificate and key do not belong together.
    #[error(
        "{key} is not the key of {certificate}; copy both from the same run of `pvmmd cert issue`"
    )]
    KeyMismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// The certificate is from another CA.
    #[error("{certificate} was not signed by the CA in {ca}; copy both from the same run of `pvmmd cert issue`")]
    OtherCa {
        /// The certificate.
        certificate: PathBuf,
        /// The CA's certificate.
        ca: PathBuf,
    },
    /// What was dialled cannot stand in a certificate.
    #[error("\"{0}\" is neither a DNS name nor an IP address, so no certificate can be for it")]
    Name(String),
    /// The peer speaks without TLS.
    #[error(
        "the peer speaks without TLS; give its `pvmmd serve` certificates with --tls-dir, or use --insecure on both hosts of a \
         network that only trusted hosts reach"
    )]
    Plain,
    /// The peer's certificate is for somebody else.
    #[error(
        "the peer has proved to be {names}, and not {dialled}; issue it a certificate with `pvmmd cert issue {dialled}`, or \
         dial a name that its certificate has"
    )]
    OtherName {
        /// The name or address that was dialled.
        dialled: String,
        /// Names and addresses of the peer's certificate.
        names: String,
    },
    /// The peer's certificate proves nothing.
    #[error("the peer's certificate is refused: {0}")]
    PeerCertificate(String),
    /// The peer refuses this host.
    #[error("the peer refuses this host: {0}")]
    Refused(String),
    /// The peer began a handshake and did not end it.
    #[error("the TLS handshake was not over within {} s", .0.as_secs())]
    Stalled(Duration),
    /// The peer closed the connection instead of saying what is wrong.
    #[error("the peer closed the connection in the TLS handshake; its log says why")]
    Closed,
    /// What the peer sends is not TLS 1.3.
    #[error("what the peer sends is not TLS 1.3: {0}")]
    Protocol(rustls::Error),
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Refused(alert_text(alert)),
            rustls::Error::InvalidCertificate(reason) => Self::from(reason),
            rustls::Error::NoCertificatesPresented => {
                Self::PeerCertificate("it has sent none".into())
            }
            error => Self::Protocol(error),
        }
    }
}

impl From<CertificateError> for TlsError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::OtherName {
                dialled: expected.to_str().into_owned(),
                names: match presented.is_empty() {
                    true => "nobody".into(),
                    false => presented
                        .iter()
                        .map(|name| bare(name))
                        .collect::<Vec<_>>()
                        .join(", "),
                },
            },
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::PeerCertificate("it was signed by another CA than this host's".into())
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Self::PeerCertificate(
                    "it has expired; issue a new one with `pvmmd cert issue`, and check the clocks of both hosts".into(),
                )
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::PeerCertificate(
                    "it is not valid yet; check the clocks of both hosts".into(),
                )
            }
            error => Self::PeerCertificate(error.to_string()),
        }
    }
}

/// A name as it would be dialled: the verifier writes `DnsName("host")`.
fn bare(presented: &str) -> &str {
    let inner = presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(presented, |name| name.trim_matches('"'))
}

/// What the peer means by an alert (RFC 8446, section 6.2), and what to do there.
fn alert_text(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let text = match alert {
        A::AccessDenied => "this host is not in its --allow-peer list",
        A::UnknownCA | A::DecryptError => {
            "it does not know the CA of this host's certificate; both need certificates of the same CA"
        }
        A::CertificateRequired | A::NoCertificate => "it asks for a certificate",
        A::CertificateExpired => {
            "it finds this host's certificate expired or not valid yet; check the clocks of both hosts"
        }
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => {
            "it does not accept this host's certificate; its log says why"
        }
        A::ProtocolVersion => "it does not speak the same version of TLS",
        _ => return format!("it has sent the TLS alert {alert:?}; its log says why"),
    };
    text.to_owned()
}
