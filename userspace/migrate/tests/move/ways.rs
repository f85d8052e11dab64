// SPDX-License-Identifier: GPL-2.0
//! Other ways between the hosts than a socket pair: TCP, and a tunnel of two pipes.

use crate::fake_source::FakeSource;
use crate::fake_target::{FakeHost, FakeTarget};
use crate::network::{assert_same, Scene};
use pvmm_migrate::error::Error;
use pvmm_migrate::source::{self, Report};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::target::{self, Served};
use pvmm_migrate::transport::{Connect, Duplex, Link};
use pvmm_migrate::{Failure, Job, Listener, Peer, Security, Sessions, TargetOptions, Url};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

/// Two sockets that are used in one direction each, and whose reads and writes cannot be bounded.
struct Tunnel(Mutex<Option<(UnixStream, UnixStream)>>);

impl Connect for Tunnel {
    fn connect(&self) -> io::Result<Box<dyn Link>> {
        let ends = self.0.lock().expect("no holder panics").take();
        let (reader, writer) = ends.ok_or(io::ErrorKind::NotConnected)?;
        Ok(Box::new(Duplex {
            reader,
            writer,
            name: self.name(),
        }))
    }

    fn name(&self) -> String {
        "the tunnel".into()
    }
}

/// What waits at the far end of a way for the one connection.
pub enum Far {
    Listener(Listener),
    Link(Box<dyn Link>),
}

/// A way.
pub type Way = (Box<dyn Connect>, Far);

fn tcp() -> Way {
    let url: Url = "tcp:127.0.0.1:0".parse().expect("an address");
    let security = Security::default();
    let listener = Listener::bind(&url, &security).expect("a free port");
    let url = listener.url().expect("it is bound");
    (Box::new(Peer { url, security }), Far::Listener(listener))
}

fn tunnel() -> Way {
    let (near_in, far_out) = UnixStream::pair().expect("a socket pair");
    let (far_in, near_out) = UnixStream::pair().expect("a socket pair");
    let far = Duplex {
        reader: far_in,
        writer: far_out,
        name: "the other end".into(),
    };
    let near = Tunnel(Mutex::new(Some((near_in, near_out))));
    (Box::new(near), Far::Link(Box::new(far)))
}

pub type Ended = (
    FakeSource,
    Result<Report, Box<Failure>>,
    Result<Served<FakeTarget>, Error>,
);

/// Moves a guest over a way to a host with that much memory.
pub fn migrate(scene: &Scene, (connect, far): Way, free_memory: u64) -> Ended {
    let mut guest = FakeSource::new(&scene.world, &scene.faults);
    let mut host = FakeHost::new(&scene.world, &scene.faults);
    host.description.free_memory = free_memory;
    let receiver = std::thread::spawn(move || {
        let (sessions, options) = (Sessions::new(), TargetOptions::default());
        match far {
            Far::Listener(listener) => {
                let arrival = listener.accept().expect("somebody connects");
                target::receive(arrival, &host, &sessions, &options, &Job::new())
            }
            Far::Link(link) => target::serve(link, &host, &sessions, &options, &Job::new()),
        }
    });
    let sent = source::migrate(&mut guest, &*connect, &scene.options, &scene.job);
    drop(connect);
    let received = receiver.join().expect("it does not panic");
    (guest, sent, received)
}

/// Asserts that a move went well, on both sides.
pub fn assert_moved(scene: &Scene, (guest, sent, received): Ended) {
    sent.expect("nothing stands against it");
    let Ok(Served::Arrived(arrived)) = received else {
        panic!("no guest has arrived: {received:?}");
    };
    assert_same(&guest, &arrived.vm);
    assert_eq!(arrived.statistics.status, Status::Completed);
    assert!(guest.released && !scene.world.sides().violated);
}

#[test]
fn a_guest_moves_over_tcp_and_over_a_tunnel() {
    for way in [tcp(), tunnel()] {
        let scene = Scene::plain();
        assert_moved(&scene, migrate(&scene, way, 1 << 30));
    }
}

#[test]
fn a_refusal_and_a_failure_end_both_sides_on_either_way() {
    for make in [tcp, tunnel] {
        let scene = Scene::plain();
        let (guest, sent, received) = migrate(&scene, make(), 0);
        let refused = sent.expect_err("there is no memory");
        assert!(matches!(refused.error, Error::Refused(_)), "{refused}");
        assert!(received.is_err() && guest.runs());

        let mut scene = Scene::plain();
        scene.options.hook = Some(Box::new(|phase| match phase.name() {
            "verify" => Err("injected".into()),
            _ => Ok(()),
        }));
        let (guest, sent, received) = migrate(&scene, make(), 1 << 30);
        assert!(sent.is_err() && guest.runs());
        let told = received.expect_err("the source gave up").to_string();
        assert!(told.contains("injected"), "{told}");
    }
}
