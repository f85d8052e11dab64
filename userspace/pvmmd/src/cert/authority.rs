// SPDX-License-Identifier: GPL-2.0
//! The CA of a fleet: made once, read for each certificate that it signs.

use super::files::{existing, write_all, Access, NewFile};
use super::{validity, CertError, CA_VALIDITY};
use pvmm_migrate::tls::{Certificate, CA_CERTIFICATE, CA_KEY};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use std::fs;
use std::path::Path;
use time::OffsetDateTime;

/// Makes a CA in a directory.
///
/// # Errors
///
/// There is one already; a file cannot be written.
pub fn init(directory: &Path, name: &str) -> Result<(), CertError> {
    let (not_before, not_after) = validity(CA_VALIDITY);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    // It signs hosts, and no further CAs.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = not_before;
    params.not_after = not_after;
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let files = [
        NewFile {
            name: CA_KEY,
            content: &key,
            access: Access::Owner,
        },
        NewFile {
            name: CA_CERTIFICATE,
            content: &certificate,
            access: Access::All,
        },
    ];
    if let Some(path) = existing(directory, &files) {
        return Err(CertError::CaExists(path));
    }
    write_all(directory, &files)
}

/// A CA that can sign.
pub struct Authority {
    /// Its name and key.
    pub issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as it was read.
    pub certificate: String,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

impl Authority {
    /// Reads the CA of a directory.
    ///
    /// # Errors
    ///
    /// It is not there, of no use, or has ended.
    pub fn read(directory: &Path) -> Result<Self, CertError> {
        let read = |name| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|reason| CertError::NoCa { path, reason })
        };
        let bad = |name, reason: String| CertError::BadCa {
            path: directory.join(name),
            reason,
        };
        let (certificate, key) = (read(CA_CERTIFICATE)?, read(CA_KEY)?);
        let key = KeyPair::from_pem(&key).map_err(|error| bad(CA_KEY, error.to_string()))?;
        let own = Certificate::read(&directory.join(CA_CERTIFICATE))?;
        if own.public_key != key.subject_public_key_info() {
            return Err(bad(
                CA_KEY,
                format!("it is not the key of the {CA_CERTIFICATE} beside it"),
            ));
        }
        let not_after = OffsetDateTime::from_unix_timestamp(own.not_after)
            .map_err(|error| bad(CA_CERTIFICATE, error.to_string()))?;
        if not_after <= OffsetDateTime::now_utc() {
            return Err(bad(
                CA_CERTIFICATE,
                format!(
                    "it expired on {}; make a new CA in another directory",
                    own.expiry()
                ),
            ));
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(|error| bad(CA_CERTIFICATE, error.to_string()))?;
        Ok(Self {
            issuer,
            certificate,
            not_after,
        })
    }
}
