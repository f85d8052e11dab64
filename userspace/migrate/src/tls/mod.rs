// SPDX-License-Identifier: GPL-2.0
//! TLS 1.3 between the two daemons, with a certificate on both sides.
//!
//! Place on the path: between the socket and the [`crate::transport::Link`] that the engine uses. [`Security`] is what the
//! operator chose, [`files`] reads the certificates of a directory, [`config`] makes TLS of them, [`handshake`] runs before
//! the first byte of a move, [`link`] carries the move.
//!
//! The files have the names that QEMU gives them (`tls-creds-x509`), and the rules are QEMU's: both sides must have a
//! certificate that the CA has signed; the source checks that the target's is for the host that it dialled; the target takes
//! every source, or those of a list. Files are read for each connection, so a renewed certificate needs no restart of a daemon
//! that has guests.

mod certificate;
mod config;
mod error;
mod files;
mod handshake;
mod link;

pub use certificate::Certificate;
pub use error::TlsError;
pub use files::{
    CA_CERTIFICATE, CA_KEY, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE, SERVER_KEY,
};
pub use handshake::HANDSHAKE_LIMIT;
pub use link::TlsLink;

pub(crate) use config::{client, server};
pub(crate) use handshake::{accept, connect, speaks_plain, speaks_tls};

use crate::transport::Url;
use files::Role;
use rustls::pki_types::DnsName;
use std::path::PathBuf;

/// Where certificates are looked for if the operator names no directory.
pub const DEFAULT_DIRECTORY: &str = "/etc/pki/pvmm";

/// How this host shows who it is, and whom it takes guests from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Where the certificates are (`--tls-dir`).
    pub directory: PathBuf,
    /// Names of the peers that may send guests here (`--allow-peer`): the common name or a DNS name of their certificate. Empty:
    /// every peer whose certificate the CA has signed.
    pub allowed: Vec<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            directory: DEFAULT_DIRECTORY.into(),
            allowed: Vec::new(),
        }
    }
}

impl Tls {
    /// Certificates in a directory, and every peer that the CA vouches for.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            ..Self::default()
        }
    }

    /// Whether guests could be taken with what is in the directory now.
    ///
    /// # Errors
    ///
    /// The file that stands against it, and what to do.
    pub fn check_server(&self) -> Result<(), TlsError> {
        config::server(self).map(drop)
    }

    /// Whether guests could be sent with what is in the directory now.
    ///
    /// # Errors
    ///
    /// The file that stands against it, and what to do.
    pub fn check_client(&self) -> Result<(), TlsError> {
        config::client(self).map(drop)
    }

    /// The CA's certificate, and this host's for guests that come (`server-cert.pem`) and go (`client-cert.pem`): as they are,
    /// whether they can be used or not, or why they cannot be read.
    pub fn certificates(&self) -> [(PathBuf, Result<Certificate, TlsError>); 3] {
        [
            CA_CERTIFICATE,
            Role::Server.certificate(),
            Role::Client.certificate(),
        ]
        .map(|name| {
            let path = self.directory.join(name);
            let certificate = Certificate::read(&path);
            (path, certificate)
        })
    }
}

/// Whether a name can stand in a certificate as a DNS name.
pub fn is_dns_name(name: &str) -> bool {
    DnsName::try_from(name).is_ok()
}

/// How connections between hosts are protected. A unix socket never is: nobody can listen in on it, and its owner and mode say
/// who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Nothing is protected (`--insecure`): every host on the network can read a guest's memory, change it, and send guests.
    Insecure,
    /// TLS, except with this host itself: `localhost` and the addresses of the loopback network.
    Network(Tls),
    /// TLS with this host itself too: the operator named certificates or peers.
    Everywhere(Tls),
}

impl Default for Security {
    fn default() -> Self {
        Self::Network(Tls::default())
    }
}

impl Security {
    /// What a connection to or at `url` needs; `None` is nothing. What counts is the address as the operator wrote it: a name
    /// that a resolver turns into a loopback address is still the name of a peer.
    pub fn tls(&self, url: &Url) -> Option<&Tls> {
        match self {
            _ if matches!(url, Url::Unix(_)) => None,
            Self::Insecure => None,
            Self::Network(_) if url.is_loopback() => None,
            Self::Network(tls) | Self::Everywhere(tls) => Some(tls),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_itself_is_reached_without_tls() {
        let network = Security::default();
        let everywhere = Security::Everywhere(Tls::default());
        for (text, on_network, explicitly) in [
            ("tcp:peer.example:1", true, true),
            ("tcp:0.0.0.0:1", true, true),
            ("tcp:[::]:1", true, true),
            ("tcp:192.0.2.1:1", true, true),
            ("tcp:[2001:db8::1]:1", true, true),
            ("tcp:localhost.example:1", true, true),
            ("tcp:127.0.0.1:1", false, true),
            ("tcp:127.9.9.9:1", false, true),
            ("tcp:[::1]:1", false, true),
            ("tcp:[::ffff:127.0.0.1]:1", false, true),
            ("tcp:localhost:1", false, true),
            ("unix:/run/x", false, false),
        ] {
            let url = text.parse().expect("an address");
            assert_eq!(network.tls(&url).is_some(), on_network, "{text}");
            assert_eq!(everywhere.tls(&url).is_some(), explicitly, "{text}");
            assert_eq!(Security::Insecure.tls(&url), None, "{text}");
        }
    }
}
