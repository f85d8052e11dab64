// SPDX-License-Identifier: GPL-2.0
//! What a certificate says (RFC 5280): whose it is and how long it holds. Whether it is true is the verifier's business.

use super::error::TlsError;
use super::files::first_certificate;
use std::net::IpAddr;
use std::path::Path;
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

/// The parts of a certificate that an operator wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Common name of the subject; empty if there is none.
    pub common_name: String,
    /// Common name of the CA that has signed it; empty if there is none.
    pub issuer: String,
    /// DNS names that it is for.
    pub dns_names: Vec<String>,
    /// Addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// Begin of its validity, in seconds since 1970.
    pub not_before: i64,
    /// End of its validity, in seconds since 1970.
    pub not_after: i64,
    /// Its public key (`SubjectPublicKeyInfo` in DER).
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds none.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        first_certificate(path)
    }

    /// Reads a certificate in DER.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".into());
        }
        let common_name = |name: &x509_parser::x509::X509Name<'_>| {
            let value = name.iter_common_name().next();
            let text = value.and_then(|value| value.as_str().ok());
            crate::channel::printable(text.unwrap_or_default())
        };
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| format!("its alternative names cannot be read: {error}"))?;
        let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push(crate::channel::printable(name)),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(Self {
            common_name: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            dns_names,
            addresses,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// Whether `name` is its common name or one of its DNS names. DNS knows no case.
    pub fn has_name(&self, name: &str) -> bool {
        std::iter::once(&self.common_name)
            .chain(&self.dns_names)
            .any(|own| !own.is_empty() && own.eq_ignore_ascii_case(name))
    }

    /// The end of its validity as text.
    pub fn expiry(&self) -> String {
        date(self.not_after)
    }

    /// The begin of its validity as text.
    pub fn begin(&self) -> String {
        date(self.not_before)
    }
}

/// An address as it stands in a certificate: its bytes, without a length.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn date(seconds: i64) -> String {
    match ASN1Time::from_timestamp(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [
            &b""[..],
            b"\x30\x03\x02\x01",
            b"-----BEGIN CERTIFICATE-----",
        ] {
            assert!(Certificate::parse(bytes).is_err());
        }
    }

    #[test]
    fn a_name_is_found_whatever_its_case_and_nobody_has_the_empty_one() {
        let certificate = Certificate {
            common_name: String::new(),
            issuer: "ca".into(),
            dns_names: vec!["Host.example".into()],
            addresses: Vec::new(),
            not_before: 0,
            not_after: 0,
            public_key: Vec::new(),
        };
        assert!(certificate.has_name("hOST.EXAMPLE"));
        assert!(!certificate.has_name("") && !certificate.has_name("host"));
    }
}
