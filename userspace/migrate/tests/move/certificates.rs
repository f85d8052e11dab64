// SPDX-License-Identifier: GPL-2.0
//! Certificates of a made-up fleet, good ones and others.

use pvmm_migrate::tls::{
    CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE, SERVER_KEY,
};
use pvmm_migrate::{Security, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use time::{Duration, OffsetDateTime};

/// Valid from yesterday to tomorrow.
pub const NOW: Range<i64> = -1..1;
/// Expired yesterday.
pub const PAST: Range<i64> = -2..-1;
/// Valid from tomorrow on.
pub const FUTURE: Range<i64> = 1..2;

/// A CA and a directory for each host.
pub struct Fleet {
    ca: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Fleet {
    pub fn new() -> Self {
        Self::with_ca(NOW)
    }

    /// A fleet whose CA is valid on those days, counted from today.
    pub fn with_ca(days: Range<i64>) -> Self {
        let mut params = params("CA", days);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self {
            ca: CertifiedIssuer::self_signed(params, key).expect("a certificate"),
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    /// The directory of a host whose certificate is for `names` and valid on those days.
    pub fn host(&self, common_name: &str, names: &[&str], days: Range<i64>) -> PathBuf {
        let usages = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.host_for(common_name, names, days, &usages)
    }

    /// As [`Self::host`], for those uses only.
    pub fn host_for(
        &self,
        common_name: &str,
        names: &[&str],
        days: Range<i64>,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> PathBuf {
        let mut params = params(common_name, days);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        params.subject_alt_names = CertificateParams::new(names)
            .expect("valid names")
            .subject_alt_names;
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
        let directory = self.directory.path().join(common_name);
        fs::create_dir(&directory).expect("a new directory");
        for (name, text) in [
            (CA_CERTIFICATE, self.ca.pem()),
            (SERVER_CERTIFICATE, certificate.pem()),
            (CLIENT_CERTIFICATE, certificate.pem()),
            (SERVER_KEY, key.serialize_pem()),
            (CLIENT_KEY, key.serialize_pem()),
        ] {
            fs::write(directory.join(name), text).expect("writable");
        }
        directory
    }
}

fn params(common_name: &str, days: Range<i64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::days(days.start);
    params.not_after = now + Duration::days(days.end);
    params
}

/// TLS on loopback too.
pub fn explicit(directory: &std::path::Path) -> Security {
    Security::Everywhere(Tls::new(directory))
}
