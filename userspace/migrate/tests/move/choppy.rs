// SPDX-License-Identifier: GPL-2.0
//! TLS over a link that takes and gives bits and pieces, and often nothing in time, as a slow network does with timeouts of 100 ms:
//! no byte may be lost or come twice.

use crate::certificates::{Fleet, NOW};
use crate::network::{assert_same, Scene};
use crate::tls::with_certificate;
use crate::ways::{migrate, Far};
use pvmm_migrate::target::Served;
use pvmm_migrate::tls::TlsLink;
use pvmm_migrate::transport::{Connect, Link};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConnection, Connection, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A socket of a bad network.
struct Choppy {
    inner: UnixStream,
    random: u64,
}

impl Choppy {
    fn new(inner: UnixStream, seed: u64) -> Self {
        let random = seed;
        Self { inner, random }
    }

    /// How many of `wanted` bytes go now: every fourth time none at all, else some thousand at most, often few.
    fn room(&mut self, wanted: usize) -> io::Result<usize> {
        // Knuth's MMIX constants.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bits = self.random >> 33;
        match bits % 4 {
            0 if bits % 8 == 0 => Err(ErrorKind::WouldBlock.into()),
            0 => Err(ErrorKind::TimedOut.into()),
            1 => Ok(wanted.min(1 + (bits >> 3) as usize % 7)),
            _ => Ok(wanted.min(1 + (bits >> 3) as usize % 20_000)),
        }
    }
}

impl Read for Choppy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        self.inner.read(&mut buffer[..room])
    }
}

impl Write for Choppy {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = self.room(buffer.len())?;
        self.inner.write(&buffer[..room])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Link for Choppy {
    fn set_timeout(&mut self, limit: Duration) -> io::Result<()> {
        self.inner.set_timeout(limit)
    }

    fn end_sending(&mut self) -> io::Result<()> {
        self.inner.end_sending()
    }

    fn peer(&self) -> String {
        "the choppy peer".into()
    }
}

fn server(directory: &Path) -> Connection {
    let chain = CertificateDer::from_pem_file(directory.join("server-cert.pem")).expect("PEM");
    let key = PrivateKeyDer::from_pem_file(directory.join("server-key.pem")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(crate::tls::roots(directory));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .expect("there is a CA");
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has its suites")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![chain], key)
        .expect("they belong together");
    ServerConnection::new(Arc::new(config))
        .expect("a good config")
        .into()
}

fn client(directory: &Path) -> Connection {
    let name = ServerName::try_from("host").expect("a name");
    ClientConnection::new(Arc::new(with_certificate(directory, &TLS13)), name)
        .expect("a good config")
        .into()
}

/// Both ends of a choppy link. The handshake is left to the first reads and writes.
fn ends(seed: u64) -> (TlsLink<Choppy>, TlsLink<Choppy>) {
    let fleet = Fleet::new();
    let directory = fleet.host("host", &["host"], NOW);
    let (near, far) = UnixStream::pair().expect("a socket pair");
    (
        TlsLink::new(Choppy::new(near, seed), client(&directory)),
        TlsLink::new(Choppy::new(far, !seed), server(&directory)),
    )
}

fn is_poll(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Does something until it does not run into the poll interval.
fn patiently<T>(mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match step() {
            Err(error) if is_poll(&error) => {}
            result => return result,
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn every_byte_arrives_once_and_in_order_in_both_directions() {
    for seed in 1..=4 {
        let (mut near, mut far) = ends(seed);
        let sent = pattern(1 << 20);
        let expected = sent.clone();
        let echo = thread::spawn(move || -> io::Result<Vec<u8>> {
            far.set_timeout(Duration::from_millis(10))?;
            let (mut all, mut buffer) = (Vec::new(), vec![0; 70_000]);
            loop {
                let count = patiently(|| far.read(&mut buffer))?;
                if count == 0 {
                    break;
                }
                all.extend_from_slice(&buffer[..count]);
            }
            // The other direction is still open.
            let mut rest = &all[..];
            while !rest.is_empty() {
                let count = patiently(|| far.write(rest))?;
                rest = &rest[count..];
            }
            patiently(|| far.end_sending())?;
            Ok(all)
        });
        let limit = Duration::from_millis(10);
        near.set_timeout(limit).expect("not zero");
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let size = rest.len().min(50_000);
            let count = patiently(|| near.write(&rest[..size])).expect("it is read");
            rest = &rest[count..];
        }
        patiently(|| near.flush()).expect("it is read");
        assert_eq!(near.unsent(), 0);
        patiently(|| near.end_sending()).expect("it is read");
        let (mut back, mut buffer) = (Vec::new(), vec![0; 9000]);
        loop {
            let count = patiently(|| near.read(&mut buffer)).expect("the far end sends");
            if count == 0 {
                break;
            }
            back.extend_from_slice(&buffer[..count]);
        }
        let there = echo.join().expect("it does not panic");
        assert!(
            there.expect("the near end sends") == expected,
            "seed {seed}"
        );
        assert!(back == expected, "seed {seed}");
    }
}

struct Once(Mutex<Option<TlsLink<Choppy>>>);

impl Connect for Once {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        let link = self.0.lock().expect("no holder panics").take();
        Ok(Box::new(link.ok_or(ErrorKind::NotConnected)?))
    }

    fn name(&self) -> String {
        "the choppy target".into()
    }
}

#[test]
fn a_guest_moves_over_it() {
    let (near, far) = ends(7);
    let scene = Scene::plain();
    let way = (
        Box::new(Once(Mutex::new(Some(near)))) as Box<dyn Connect>,
        Far::Link(Box::new(far)),
    );
    let (guest, sent, received) = migrate(&scene, way, 1 << 30);
    sent.expect("it is slow, and nothing else");
    let Ok(Served::Arrived(arrived)) = received else {
        panic!("no guest has arrived: {received:?}");
    };
    assert_same(&guest, &arrived.vm);
}
