// SPDX-License-Identifier: GPL-2.0
//! The files of `pvmmd cert`: who may read them, that none is overwritten, and that others understand them.
#![forbid(unsafe_code)]

use pvmm_migrate::tls::{
    Certificate, CA_CERTIFICATE, CA_KEY, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE,
    SERVER_KEY,
};
use pvmm_migrate::Tls;
use pvmmd::cert::{init, issue, CertError, HostNames};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const DAY: i64 = 24 * 3600;

fn names(host: &str) -> HostNames {
    HostNames {
        host: host.into(),
        dns: vec![format!("{host}.example")],
        addresses: vec![
            "192.0.2.7".parse().expect("an address"),
            "2001:db8::7".parse().expect("an address"),
        ],
    }
}

fn mode(path: &Path) -> u32 {
    let permissions = fs::metadata(path).expect("it exists").permissions();
    permissions.mode() & 0o777
}

fn content(directory: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .expect("it exists")
        .map(|entry| entry.expect("readable"))
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let bytes = fs::read(entry.path()).expect("readable");
            (entry.file_name(), bytes)
        })
        .collect();
    all.sort();
    all
}

/// A CA, and a host "one" in a directory of its own.
fn fleet() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let ca = directory.path().join("pki/ca");
    init(&ca, "the fleet").expect("an empty directory");
    issue(&names("one"), &ca, &directory.path().join("one")).expect("there is a CA");
    directory
}

#[test]
fn keys_are_their_owners_alone() {
    let fleet = fleet();
    let (ca, one) = (fleet.path().join("pki/ca"), fleet.path().join("one"));
    assert_eq!((mode(&ca), mode(&one)), (0o700, 0o700));
    for key in [ca.join(CA_KEY), one.join(SERVER_KEY), one.join(CLIENT_KEY)] {
        assert_eq!(mode(&key), 0o600, "{}", key.display());
        let text = fs::read_to_string(&key).expect("readable");
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----"));
    }
    for certificate in [SERVER_CERTIFICATE, CLIENT_CERTIFICATE, CA_CERTIFICATE] {
        let text = fs::read_to_string(one.join(certificate)).expect("readable");
        assert!(!text.contains("PRIVATE"), "{certificate}");
    }
    assert!(!one.join(CA_KEY).exists(), "a host must not let others in");
}

#[test]
fn nothing_is_overwritten() {
    let fleet = fleet();
    let (ca, one) = (fleet.path().join("pki/ca"), fleet.path().join("one"));
    let (ca_before, one_before) = (content(&ca), content(&one));
    let again = init(&ca, "another").expect_err("there is one");
    assert!(matches!(again, CertError::CaExists(_)), "{again}");
    let text = again.to_string();
    assert!(
        text.contains("ca-key.pem") && text.contains("--tls-dir"),
        "{text}"
    );
    let again = issue(&names("one"), &ca, &one).expect_err("it is there");
    assert!(matches!(again, CertError::Exists(_)), "{again}");
    assert!(again.to_string().contains("--out"), "{again}");

    // One file is enough, and the others are not made then.
    for name in [CA_CERTIFICATE, CA_KEY, SERVER_KEY] {
        let two = fleet.path().join(format!("with-{name}"));
        fs::create_dir(&two).expect("a new directory");
        fs::write(two.join(name), "something").expect("writable");
        let result = match name {
            CA_KEY => init(&two, "another"),
            _ => issue(&names("two"), &ca, &two),
        };
        result.expect_err("something is there");
        assert_eq!(content(&two), [(name.into(), b"something".to_vec())]);
    }
    assert_eq!((content(&ca), content(&one)), (ca_before, one_before));
}

#[test]
fn the_host_of_the_ca_gets_its_certificate_beside_it() {
    let fleet = fleet();
    let ca = fleet.path().join("pki/ca");
    issue(&names("here"), &ca, &ca).expect("the CA's certificate is the same");
    Tls::new(&ca).check_server().expect("it can be used");
}

#[test]
fn a_host_can_take_and_send_guests_for_two_years_under_its_names() {
    let fleet = fleet();
    let one = Tls::new(fleet.path().join("one"));
    one.check_server().expect("it can be used");
    one.check_client().expect("it can be used");
    let [ca, server, client] = one
        .certificates()
        .map(|(_, certificate)| certificate.expect("readable"));
    assert_eq!(
        (ca.common_name.as_str(), ca.issuer.as_str()),
        ("the fleet", "the fleet")
    );
    assert_eq!(server, client);
    assert_eq!(
        (server.common_name.as_str(), server.issuer.as_str()),
        ("one", "the fleet")
    );
    assert_eq!(server.dns_names, ["one", "one.example"]);
    let addresses: Vec<String> = server.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.7", "2001:db8::7"]);
    // A day for clocks that differ.
    assert_eq!(server.not_after - server.not_before, 731 * DAY);
    assert_eq!(ca.not_after - ca.not_before, 3653 * DAY);
    assert!(server.has_name("ONE.example") && !server.has_name("the fleet"));
}

#[test]
fn what_cannot_be_issued_is_refused_before_a_file_is_made() {
    let fleet = fleet();
    let (ca, out) = (fleet.path().join("pki/ca"), fleet.path().join("out"));
    for host in ["", "a b", "..", "a/b", "*.example", "-", "ä"] {
        let names = HostNames {
            host: host.into(),
            ..HostNames::default()
        };
        let error = issue(&names, &ca, &out).expect_err(host);
        assert!(matches!(error, CertError::Name(_)), "{host}: {error}");
    }
    let nowhere = fleet.path().join("nowhere");
    let error = issue(&names("two"), &nowhere, &out).expect_err("there is no CA");
    assert!(error.to_string().contains("pvmmd cert init"), "{error}");
    // The key of another CA.
    let other = fleet.path().join("other");
    init(&other, "other").expect("an empty directory");
    fs::copy(other.join(CA_KEY), ca.join(CA_KEY)).expect("it is there");
    let error = issue(&names("two"), &ca, &out).expect_err("it cannot sign for this CA");
    assert!(matches!(error, CertError::BadCa { .. }), "{error}");
    assert!(!out.exists());
}

/// An independent implementation: OpenSSL, where it is installed.
#[test]
fn openssl_verifies_the_chain_for_both_uses() {
    let fleet = fleet();
    let one = fleet.path().join("one");
    let openssl = |words: &[&str]| {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(&one)
            .output();
        match output {
            Ok(output) => Some((
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("openssl cannot be run: {error}"),
        }
    };
    let mut uses = 0;
    for (purpose, file, key) in [
        ("sslserver", SERVER_CERTIFICATE, SERVER_KEY),
        ("sslclient", CLIENT_CERTIFICATE, CLIENT_KEY),
    ] {
        let verify = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            CA_CERTIFICATE,
        ];
        let names = ["-verify_hostname", "one.example", file];
        let Some((good, said)) = openssl(&[&verify[..], &names].concat()) else {
            eprintln!("openssl is not installed; webpki's word is in the other tests");
            // At least the file is what it should be.
            Certificate::read(&one.join(file)).expect("a certificate");
            return;
        };
        assert!(good && said.contains("OK"), "{purpose}: {said}");
        let (good, _) = openssl(&[&verify[..], &["-verify_ip", "192.0.2.8", file]].concat())
            .expect("it is installed");
        assert!(!good, "it is for every address");
        let of_certificate = openssl(&["x509", "-in", file, "-pubkey", "-noout"]);
        assert_eq!(of_certificate, openssl(&["pkey", "-in", key, "-pubout"]));
        uses += 1;
    }
    assert_eq!(uses, 2);
}
