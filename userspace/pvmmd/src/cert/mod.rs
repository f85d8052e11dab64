// SPDX-License-Identifier: GPL-2.0
//! Certificates for moves (`pvmmd cert`): a CA of the fleet's own, and one certificate for each host, which serves at both ends
//! of a connection.
//!
//! Names of files and their use are [`pvmm_migrate::tls`]'s. Nothing is ever overwritten: a new CA makes every certificate of the
//! old one useless, and a new key makes a copy of its certificate useless.

mod authority;
mod files;
mod host;

pub use authority::init;
pub use host::{issue, HostNames};

use pvmm_migrate::tls::TlsError;
use std::io;
use std::path::PathBuf;
use time::{Duration, OffsetDateTime};

/// How far the clocks of two hosts may be apart on the day on which a certificate is made.
const CLOCK_SKEW: Duration = Duration::DAY;
/// How long a CA holds.
const CA_VALIDITY: Duration = Duration::days(3652);
/// How long a host's certificate holds, unless its CA ends before.
const HOST_VALIDITY: Duration = Duration::days(730);

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// There is a CA already.
    #[error(
        "{0} is there already; a new CA would make all certificates of the old one useless. Use it with `pvmmd cert issue`, \
         choose another directory with --tls-dir, or move the old one away"
    )]
    CaExists(PathBuf),
    /// The host's files are there already.
    #[error("{0} is there already and is not overwritten; move it away, or choose another directory with --out")]
    Exists(PathBuf),
    /// The CA's key or certificate cannot be read.
    #[error("cannot read {path}: {reason}; make a CA with `pvmmd cert init`, or say with --tls-dir where it is")]
    NoCa {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The CA's files are of no use.
    #[error("{path} cannot be used: {reason}; use the files that `pvmmd cert init` made")]
    BadCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A name that no certificate can have.
    #[error("\"{0}\" is neither a DNS name nor an IP address")]
    Name(String),
    /// The certificate cannot be made.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificates that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Begin and end of a certificate that is made now.
fn validity(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - CLOCK_SKEW, now + length)
}
