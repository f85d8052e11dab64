// SPDX-License-Identifier: GPL-2.0
//! Moves over TLS, and every way in which a peer that must not take part is kept out: nothing of a guest is made at the target,
//! and the guest goes on at the source.

use crate::certificates::{explicit, Fleet, FUTURE, NOW, PAST};
use crate::fake_target::FakeHost;
use crate::network::Scene;
use crate::ways::{assert_moved, migrate, Ended, Far};
use pvmm_migrate::error::Error;
use pvmm_migrate::statistics::Status;
use pvmm_migrate::target::{self, Served};
use pvmm_migrate::tls::{TlsError, CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_KEY};
use pvmm_migrate::{Job, Listener, Peer, Security, Sessions, TargetOptions, Tls, Url};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LOOPBACK: &str = "127.0.0.1";

fn listen(security: &Security) -> (Listener, Url) {
    let url = format!("tcp:{LOOPBACK}:0").parse().expect("an address");
    let listener = Listener::bind(&url, security).expect("good certificates and a free port");
    let url = listener.url().expect("it is bound");
    (listener, url)
}

/// Moves a guest between two hosts with these settings.
fn between(scene: &Scene, source: Security, target: &Security) -> Ended {
    let (listener, url) = listen(target);
    let security = source;
    let peer = Peer { url, security };
    migrate(scene, (Box::new(peer), Far::Listener(listener)), 1 << 30)
}

/// Asserts that a move was refused on both sides; returns what both were told.
fn refused(scene: &Scene, (guest, sent, received): Ended) -> (Error, Error) {
    let failure = sent.expect_err("the source is refused");
    let received = received.expect_err("the target takes nothing");
    assert!(guest.runs(), "{failure}");
    assert_eq!(scene.world.made.load(Ordering::SeqCst), 0);
    assert_eq!(scene.job.statistics().ram.transferred, 0);
    (failure.error, received)
}

/// A good fleet with two hosts.
fn two_hosts() -> (Fleet, Security, Security) {
    let fleet = Fleet::new();
    let one = explicit(&fleet.host("one", &[LOOPBACK, "one.example"], NOW));
    let two = explicit(&fleet.host("two", &[LOOPBACK, "two.example"], NOW));
    (fleet, one, two)
}

#[test]
fn a_guest_moves_over_tls() {
    let (_fleet, one, two) = two_hosts();
    let scene = Scene::plain();
    assert_moved(&scene, between(&scene, one, &two));
}

#[test]
fn a_refusal_and_a_failure_end_both_sides_over_tls_too() {
    let (_fleet, one, two) = two_hosts();
    let mut scene = Scene::plain();
    scene.options.hook = Some(Box::new(|phase| match phase.name() {
        "verify" => Err("injected".into()),
        _ => Ok(()),
    }));
    let (guest, sent, received) = between(&scene, one, &two);
    assert!(sent.is_err() && guest.runs());
    let told = received.expect_err("the source gave up").to_string();
    // The name is the certificate's.
    assert!(
        told.contains("injected") && told.contains("(one)"),
        "{told}"
    );
}

#[test]
fn a_peer_of_another_ca_is_refused_by_either_side() {
    let (fleet, one, two) = two_hosts();
    let strangers = Fleet::new();
    let other = strangers.host("two", &[LOOPBACK], NOW);
    let scene = Scene::plain();
    // The source finds it.
    let (here, there) = refused(&scene, between(&scene, one.clone(), &explicit(&other)));
    assert!(
        matches!(
            here,
            Error::Tls {
                source: TlsError::PeerCertificate(_),
                ..
            }
        ),
        "{here}"
    );
    assert!(here.to_string().contains("another CA"), "{here}");
    assert!(there.to_string().contains("refuses this host"), "{there}");

    // The target finds it: the source knows both CAs.
    let directory = fleet.host("three", &[LOOPBACK], NOW);
    let Security::Everywhere(two_tls) = &two else {
        panic!("it is explicit");
    };
    let foreign = strangers.host("foreign", &[LOOPBACK], NOW);
    for name in [CLIENT_CERTIFICATE, CLIENT_KEY] {
        fs::copy(foreign.join(name), directory.join(name)).expect("it is there");
    }
    let both = [
        fs::read_to_string(foreign.join(CA_CERTIFICATE)).expect("it is there"),
        fs::read_to_string(two_tls.directory.join(CA_CERTIFICATE)).expect("it is there"),
    ];
    fs::write(directory.join(CA_CERTIFICATE), both.concat()).expect("writable");
    let (here, there) = refused(&scene, between(&scene, explicit(&directory), &two));
    assert!(
        matches!(
            here,
            Error::Tls {
                source: TlsError::Refused(_),
                ..
            }
        ),
        "{here}"
    );
    assert!(here.to_string().contains("does not know the CA"), "{here}");
    assert!(there.to_string().contains("another CA"), "{there}");
}

#[test]
fn a_target_that_is_somebody_else_than_the_dialled_is_refused() {
    let (fleet, one, _) = two_hosts();
    let three = explicit(&fleet.host("three", &["three.example", "192.0.2.3"], NOW));
    let scene = Scene::plain();
    let (here, _) = refused(&scene, between(&scene, one, &three));
    let text = here.to_string();
    let names = "three.example, 192.0.2.3, and not 127.0.0.1";
    for part in [names, "`pvmmd cert issue 127.0.0.1`"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn a_target_with_a_list_takes_who_is_in_it_and_nobody_else() {
    let (_fleet, one, two) = two_hosts();
    let Security::Everywhere(tls) = two else {
        panic!("it is explicit");
    };
    let allow = |names: &[&str]| {
        Security::Everywhere(Tls {
            allowed: names.iter().map(ToString::to_string).collect(),
            ..tls.clone()
        })
    };
    // By common name, and by DNS name in whatever case.
    for names in [&["other", "one"][..], &["ONE.example"]] {
        let scene = Scene::plain();
        let (_, sent, received) = between(&scene, one.clone(), &allow(names));
        assert!(sent.is_ok() && received.is_ok(), "{sent:?}");
    }
    for names in [&["two"][..], &["one.exampl"], &["*"], &[""]] {
        let scene = Scene::plain();
        let (here, there) = refused(&scene, between(&scene, one.clone(), &allow(names)));
        assert!(here.to_string().contains("--allow-peer"), "{here}");
        assert!(matches!(there, Error::Tls { .. }), "{there}");
    }
}

#[test]
fn a_plain_peer_and_a_tls_peer_tell_each_other_what_is_wrong() {
    let (_fleet, one, two) = two_hosts();
    let scene = Scene::plain();
    let (here, there) = refused(&scene, between(&scene, Security::Insecure, &two));
    assert!(here.to_string().contains("over TLS only"), "{here}");
    assert!(there.to_string().contains("without TLS"), "{there}");

    let scene = Scene::plain();
    let (here, there) = refused(&scene, between(&scene, one, &Security::Insecure));
    assert!(
        matches!(
            here,
            Error::Tls {
                source: TlsError::Plain,
                ..
            }
        ),
        "{here}"
    );
    assert!(there.to_string().contains("speaks TLS"), "{there}");
}

/// Lets one connection of another kind arrive at a target, whose limit for the handshake is `limit`.
fn stranger<T: Send + 'static>(
    tls: &Security,
    limit: Duration,
    stranger: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (T, Error) {
    let (listener, url) = listen(tls);
    let Url::Tcp { host, port } = url else {
        panic!("it listens on TCP");
    };
    let other = thread::spawn(move || {
        let stream = TcpStream::connect((host, port)).expect("it listens");
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).expect("not zero");
        stranger(stream)
    });
    let scene = Scene::plain();
    let host = FakeHost::new(&scene.world, &scene.faults);
    let options = TargetOptions {
        handshake_limit: limit,
        ..TargetOptions::default()
    };
    let (arrival, job) = (listener.accept().expect("it comes"), Job::new());
    let result = target::receive(arrival, &host, &Sessions::new(), &options, &job);
    let error = result.expect_err("a stranger is not taken");
    assert_eq!(job.statistics().status, Status::Failed);
    assert_eq!(scene.world.made.load(Ordering::SeqCst), 0);
    (other.join().expect("it does not panic"), error)
}

/// How a foreign client's handshake and first read end.
fn handshake(config: ClientConfig, mut stream: TcpStream) -> Option<rustls::Error> {
    let name = ServerName::try_from(LOOPBACK).expect("an address");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a good config");
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let error = tls
        .read(&mut [0])
        .expect_err("nothing is said to a stranger");
    let inner = error.into_inner()?;
    inner.downcast_ref::<rustls::Error>().cloned()
}

pub fn roots(directory: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(directory.join(CA_CERTIFICATE)).expect("PEM");
    roots.add(ca).expect("a CA");
    roots
}

pub fn with_certificate(
    directory: &Path,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConfig {
    let chain = CertificateDer::from_pem_file(directory.join(CLIENT_CERTIFICATE)).expect("PEM");
    let key = PrivateKeyDer::from_pem_file(directory.join(CLIENT_KEY)).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("ring has its suites")
        .with_root_certificates(roots(directory))
        .with_client_auth_cert(vec![chain], key)
        .expect("they belong together")
}

#[test]
fn a_client_of_tls_1_2_is_refused() {
    let (fleet, _, two) = two_hosts();
    let directory = fleet.host("old", &[LOOPBACK], NOW);
    let old = move |stream| handshake(with_certificate(&directory, &TLS12), stream);
    let (alert, error) = stranger(&two, Duration::from_secs(30), old);
    assert_eq!(
        alert,
        Some(rustls::Error::AlertReceived(
            AlertDescription::ProtocolVersion
        ))
    );
    assert!(error.to_string().contains("not TLS 1.3"), "{error}");
}

#[test]
fn a_client_whose_certificate_is_none_or_not_of_today_is_refused() {
    let (fleet, _, two) = two_hosts();
    for (name, days) in [("expired", PAST), ("early", FUTURE)] {
        let directory = fleet.host(name, &[LOOPBACK], days);
        let client = move |stream| handshake(with_certificate(&directory, &TLS13), stream);
        let (alert, error) = stranger(&two, Duration::from_secs(30), client);
        assert_eq!(
            alert,
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateExpired
            ))
        );
        assert!(error.to_string().contains("clocks"), "{error}");
    }
    let directory = fleet.host("anonymous", &[], NOW);
    let anonymous = move |stream| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("ring has its suites")
            .with_root_certificates(roots(&directory))
            .with_no_client_auth();
        handshake(config, stream)
    };
    let (alert, error) = stranger(&two, Duration::from_secs(30), anonymous);
    assert_eq!(
        alert,
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
        ))
    );
    assert!(error.to_string().contains("has sent none"), "{error}");
    // A certificate for a server's use does not let a client in.
    let usages = [ExtendedKeyUsagePurpose::ServerAuth];
    let directory = fleet.host_for("server", &[LOOPBACK], NOW, &usages);
    let server = move |stream| handshake(with_certificate(&directory, &TLS13), stream);
    let (alert, _) = stranger(&two, Duration::from_secs(30), server);
    assert!(
        matches!(alert, Some(rustls::Error::AlertReceived(_))),
        "{alert:?}"
    );
}

#[test]
fn garbage_instead_of_a_handshake_is_refused() {
    let (_fleet, _, two) = two_hosts();
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: two\r\n\r\n"[..],
        &[0xff; 4096],
        // A record of a handshake whose message makes no sense.
        b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\xff\xff\xff\xff",
        // pvmm's first bytes, and then something else.
        b"PVMMMIG\n and so on and so on and so on",
    ] {
        let send = move |mut stream: TcpStream| {
            // It may be closed already.
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answer
        };
        let (answer, error) = stranger(&two, Duration::from_secs(30), send);
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        // An alert or a preamble at most.
        assert!(answer.len() < 256, "{answer:02x?}");
    }
}

#[test]
fn a_peer_that_stalls_in_the_handshake_is_turned_away() {
    let (_fleet, _, two) = two_hosts();
    // Nothing, and the begin of a ClientHello.
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let wait = move |mut stream: TcpStream| {
            stream.write_all(begin).expect("it is open");
            let mut answer = Vec::new();
            // Until the target closes.
            let _ = stream.read_to_end(&mut answer);
        };
        let ((), error) = stranger(&two, Duration::from_millis(300), wait);
        assert!(
            matches!(
                error,
                Error::Tls {
                    source: TlsError::Stalled(_),
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn files_that_cannot_serve_are_named_together_with_what_to_do() {
    let fleet = Fleet::new();
    let check = |directory: &Path, parts: &[&str]| {
        let tls = Tls::new(directory);
        let error = tls.check_server().expect_err("it cannot be used");
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    };
    check(
        Path::new("/nonexistent/tls"),
        &[
            "/nonexistent/tls/ca-cert.pem",
            "pvmmd cert init",
            "--insecure",
        ],
    );
    let broken = fleet.host("broken", &[LOOPBACK], NOW);
    fs::write(broken.join(SERVER_KEY), "not a key").expect("writable");
    check(&broken, &["broken/server-key.pem", "private key"]);
    fs::remove_file(broken.join(SERVER_KEY)).expect("it is there");
    check(&broken, &["broken/server-key.pem", "No such file"]);

    check(
        &fleet.host("expired", &[LOOPBACK], PAST),
        &["expired/server-cert.pem", "expired on", "pvmmd cert issue"],
    );
    check(
        &fleet.host("early", &[LOOPBACK], FUTURE),
        &["early/server-cert.pem", "clock"],
    );
    let old_ca = Fleet::with_ca(PAST);
    check(
        &old_ca.host("old-ca", &[LOOPBACK], NOW),
        &["old-ca/ca-cert.pem", "expired on", "pvmmd cert init"],
    );
    let (mixed, other) = (
        fleet.host("mixed", &[LOOPBACK], NOW),
        fleet.host("other", &[LOOPBACK], NOW),
    );
    fs::copy(other.join(SERVER_KEY), mixed.join(SERVER_KEY)).expect("it is there");
    check(
        &mixed,
        &[
            "mixed/server-key.pem",
            "mixed/server-cert.pem",
            "not the key",
        ],
    );
    let stray = fleet.host("stray", &[LOOPBACK], NOW);
    let strangers = Fleet::new();
    let foreign = strangers.host("foreign", &[LOOPBACK], NOW);
    fs::copy(foreign.join(CA_CERTIFICATE), stray.join(CA_CERTIFICATE)).expect("it is there");
    check(
        &stray,
        &["stray/server-cert.pem", "stray/ca-cert.pem", "not signed"],
    );
    let error = Tls::new(&stray).check_client().expect_err("nor this");
    assert!(error.to_string().contains("client-cert.pem"), "{error}");

    let usages = [ExtendedKeyUsagePurpose::ClientAuth];
    let client_only = fleet.host_for("client-only", &[LOOPBACK], NOW, &usages);
    check(&client_only, &["client-only/server-cert.pem"]);
    Tls::new(&client_only)
        .check_client()
        .expect("that it can do");
}

/// A relay that can cut what goes through it.
struct Relay {
    url: Url,
    ends: Arc<Mutex<Vec<TcpStream>>>,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    fn to(target: &Url) -> Self {
        let Url::Tcp { host, port } = target.clone() else {
            panic!("it listens on TCP");
        };
        let listener = TcpListener::bind((LOOPBACK, 0)).expect("a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let (ends, connections) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (kept, count) = (Arc::clone(&ends), Arc::clone(&connections));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let far = TcpStream::connect((host.as_str(), port)).expect("it listens");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let mut from = from.try_clone().expect("a descriptor");
                    let mut to = to.try_clone().expect("a descriptor");
                    thread::spawn(move || {
                        // A cut ends it with an error.
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
                kept.lock().expect("no panic").extend([near, far]);
            }
        });
        Self {
            url: format!("tcp:{LOOPBACK}:{own}").parse().expect("an address"),
            ends,
            connections,
        }
    }
}

#[test]
fn a_source_whose_link_broke_at_the_commit_asks_again_over_tls() {
    let (_fleet, one, two) = two_hosts();
    let (listener, url) = listen(&two);
    let relay = Relay::to(&url);
    let ends = Arc::clone(&relay.ends);
    let scene = Scene::plain();
    let (host, sessions) = (
        FakeHost::new(&scene.world, &scene.faults),
        Arc::new(Sessions::new()),
    );
    let target = thread::spawn(move || {
        let cut = move |phase: pvmm_migrate::phase::TargetPhase| {
            if phase.name() == "start" {
                for end in ends.lock().expect("no panic").drain(..) {
                    // It may be closed already.
                    let _ = end.shutdown(Shutdown::Both);
                }
            }
            Ok(())
        };
        let options = TargetOptions {
            hook: Some(Box::new(cut)),
            ..TargetOptions::default()
        };
        let served = |options: &TargetOptions| {
            let arrival = listener.accept().expect("it comes");
            target::receive(arrival, &host, &sessions, options, &Job::new())
        };
        (served(&options), served(&TargetOptions::default()))
    });
    let mut guest = crate::fake_source::FakeSource::new(&scene.world, &scene.faults);
    let peer = Peer {
        url: relay.url.clone(),
        security: one,
    };
    pvmm_migrate::source::migrate(&mut guest, &peer, &scene.options, &scene.job)
        .expect("the target says that it runs the guest");
    let (moved, asked) = target.join().expect("it does not panic");
    assert!(matches!(moved, Ok(Served::Arrived(_))), "{moved:?}");
    assert!(matches!(asked, Ok(Served::Asked { .. })), "{asked:?}");
    assert_eq!(relay.connections.load(Ordering::SeqCst), 2);
    assert!(guest.released && !scene.world.sides().violated);
}
