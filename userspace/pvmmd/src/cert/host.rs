// SPDX-License-Identifier: GPL-2.0
//! A host's certificate: one for both ends of a connection, so that guests can go and come.

use super::authority::Authority;
use super::files::{existing, write_all, Access, NewFile};
use super::{validity, CertError, HOST_VALIDITY};
use pvmm_migrate::tls::{
    is_dns_name, CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE, SERVER_KEY,
};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// Who a host is.
#[derive(Debug, Clone, Default)]
pub struct HostNames {
    /// Its first name or address; the common name of its certificate.
    pub host: String,
    /// Further DNS names.
    pub dns: Vec<String>,
    /// Further addresses.
    pub addresses: Vec<IpAddr>,
}

impl HostNames {
    /// All of them, as they stand in a certificate.
    fn alternative_names(&self) -> Result<Vec<SanType>, CertError> {
        let mut names = Vec::new();
        for name in std::iter::once(&self.host).chain(&self.dns) {
            names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if is_dns_name(name) => SanType::DnsName(name.as_str().try_into()?),
                Err(_) => return Err(CertError::Name(name.clone())),
            });
        }
        names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        Ok(names)
    }
}

/// Makes a host's certificate and key, signed by the CA in `ca`, and writes them to `out` with the CA's certificate: what the host
/// needs as its `--tls-dir`.
///
/// # Errors
///
/// There is no CA; a file is there already or cannot be written; a name cannot stand in a certificate.
pub fn issue(names: &HostNames, ca: &Path, out: &Path) -> Result<(), CertError> {
    let authority = Authority::read(ca)?;
    let (not_before, not_after) = validity(HOST_VALIDITY);
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, names.host.as_str());
    params.subject_alt_names = names.alternative_names()?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = not_before;
    // What outlives its CA helps nobody.
    params.not_after = not_after.min(authority.not_after);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let file = |name, content, access| NewFile {
        name,
        content,
        access,
    };
    let mut files = vec![
        file(SERVER_KEY, key.as_str(), Access::Owner),
        file(CLIENT_KEY, key.as_str(), Access::Owner),
        file(SERVER_CERTIFICATE, certificate.as_str(), Access::All),
        file(CLIENT_CERTIFICATE, certificate.as_str(), Access::All),
    ];
    // A host that issues its own certificate, or gets a new one, has the CA's already.
    let ca_certificate = out.join(CA_CERTIFICATE);
    match fs::read_to_string(&ca_certificate) {
        Ok(present) if present == authority.certificate => {}
        _ => files.push(file(
            CA_CERTIFICATE,
            authority.certificate.as_str(),
            Access::All,
        )),
    }
    if let Some(path) = existing(out, &files) {
        return Err(CertError::Exists(path));
    }
    write_all(out, &files)
}
