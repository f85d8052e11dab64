// SPDX-License-Identifier: GPL-2.0
//! Moves whose link breaks at the commit: the guest is in doubt until the peer or the operator says where it runs.

use crate::host::{error, name, Host, LIMIT};
use pvmm_control::request::{Decision, Recover};
use pvmm_control::{ClientError, ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::phase::TargetPhase;
use pvmm_migrate::{TargetOptions, Url};
use pvmm_vmm::vcpu::End;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A network cable between two hosts that can be cut.
struct Cable {
    directory: tempfile::TempDir,
    ends: Mutex<Vec<UnixStream>>,
    peer: Mutex<Option<Url>>,
}

impl Cable {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            ends: Mutex::default(),
            peer: Mutex::default(),
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cable.sock")
    }

    fn url(&self) -> Url {
        Url::Unix(self.path())
    }

    /// Connects the near end to `peer`.
    fn plug(self: &Arc<Self>, peer: &Url) {
        *self.peer.lock().expect("no panic") = Some(peer.clone());
        let listener = UnixListener::bind(self.path()).expect("the path is free");
        let cable = Arc::clone(self);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                cable.carry(near);
            }
        });
    }

    fn carry(&self, near: UnixStream) {
        let Some(Url::Tcp { host, port }) = self.peer.lock().expect("no panic").clone() else {
            return;
        };
        let far = TcpStream::connect((host.as_str(), port)).expect("the peer listens");
        let end = near.try_clone().expect("a descriptor");
        self.ends.lock().expect("no panic").push(end);
        let (mut near_in, mut far_out) = (
            near.try_clone().expect("a descriptor"),
            far.try_clone().expect("a descriptor"),
        );
        std::thread::spawn(move || {
            // A cut cable ends it with an error.
            let _ = io::copy(&mut near_in, &mut far_out);
            let _ = far_out.shutdown(Shutdown::Both);
        });
        std::thread::spawn(move || {
            let (mut near, mut far) = (near, far);
            let _ = io::copy(&mut far, &mut near);
            let _ = near.shutdown(Shutdown::Both);
        });
    }

    /// Breaks every connection and lets no new one through.
    fn cut(&self) {
        // Without its name nobody can reach the listener.
        let _ = std::fs::remove_file(self.path());
        for end in self.ends.lock().expect("no panic").drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Two hosts whose cable is cut when the target enters `phase`, after a move that ended so.
fn cut_at(phase: TargetPhase) -> (Host, Host, Arc<Cable>, Result<Reply, ClientError>) {
    let cable = Cable::new();
    let hook = {
        let cable = Arc::clone(&cable);
        move |now| {
            if now == phase {
                cable.cut();
            }
            Ok(())
        }
    };
    let here = Host::new(&[], TargetOptions::default());
    let there = Host::new(
        &[],
        TargetOptions {
            hook: Some(Box::new(hook)),
            ..TargetOptions::default()
        },
    );
    cable.plug(&there.url);
    here.run("one", &[]).expect("nothing against it");
    let (result, _) = here.migrate("one", &cable.url());
    (here, there, cable, result)
}

fn recover(host: &Host, decision: Decision) -> Result<Reply, ClientError> {
    host.call(Request::MigrateRecover(Recover {
        name: "one".into(),
        decision,
    }))
}

#[test]
fn a_guest_whose_commit_is_not_answered_stays_paused_until_somebody_decides() {
    let (here, there, cable, result) = cut_at(TargetPhase::Start);
    let doubt = error(result);
    assert_eq!(doubt.class, ErrorClass::Failed);
    assert!(
        doubt.desc.contains("migrate-recover one --discard"),
        "{doubt}"
    );
    there.wait_state("one", GuestState::Running);
    assert_eq!(here.info("one").state, GuestState::InDoubt);
    for request in [Request::Resume(name("one")), Request::Stop(name("one"))] {
        let refused = error(here.call(request));
        assert!(refused.desc.contains("migrate-recover"), "{refused}");
    }
    assert!(!cable.path().exists());
    let still = error(recover(&here, Decision::Ask));
    assert!(still.desc.contains("still not known"), "{still}");
    assert_eq!(here.info("one").state, GuestState::InDoubt);
    recover(&here, Decision::Discard).expect("the operator knows");
    assert_eq!(here.info("one").end, Some(End::Moved));
    assert_eq!((here.running(), there.running()), (0, 1));
}

#[test]
fn a_peer_that_can_be_asked_again_resolves_the_doubt() {
    let (here, there, cable, result) = cut_at(TargetPhase::Start);
    error(result);
    there.wait_state("one", GuestState::Running);
    cable.plug(&there.url);
    let refused = error(recover(&here, Decision::ResumeHere));
    assert!(
        refused.desc.contains("--discard"),
        "the peer's word counts: {refused}"
    );
    recover(&here, Decision::Ask).expect("the peer answers");
    assert_eq!(here.info("one").end, Some(End::Moved));
    assert_eq!((here.running(), there.running()), (0, 1));
}

#[test]
fn an_operator_who_looks_at_the_peer_decides_right_whenever_the_link_broke() {
    let (here, there, _cable, result) = cut_at(TargetPhase::Commit);
    error(result);
    // Whether the commit got through before the cut is a race, and all three ends of it are right.
    let limit = Instant::now() + LIMIT;
    while there
        .guests()
        .iter()
        .any(|guest| guest.state == GuestState::Inmigrate)
    {
        assert!(Instant::now() < limit, "the peer does not notice the cut");
        std::thread::yield_now();
    }
    if here.info("one").state == GuestState::InDoubt {
        let decision = match there.running() {
            0 => Decision::ResumeHere,
            _ => Decision::Discard,
        };
        recover(&here, decision).expect("the operator knows");
    }
    assert_eq!(here.running() + there.running(), 1);
    let home = if here.running() == 1 { &here } else { &there };
    let mut console = home.console("one");
    console.wait_for("beat");
    let last = console.beats().last().copied().unwrap_or(0);
    console.wait_for(&format!("beat {}\n", last + 20));
    console.beats();
}

#[test]
fn there_is_nothing_to_recover_without_a_doubt() {
    let host = Host::plain();
    host.run("one", &[]).expect("nothing against it");
    let request = Request::MigrateRecover(Recover {
        name: "one".into(),
        decision: Decision::Discard,
    });
    let refused = error(host.call(request));
    assert!(refused.desc.contains("no doubt"), "{refused}");
    assert_eq!(host.info("one").state, GuestState::Running);
}
