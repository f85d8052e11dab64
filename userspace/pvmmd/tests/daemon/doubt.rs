// SPDX-License-Identifier: GPL-2.0
//! Moves whose link breaks at the commit: the guest is in doubt until the peer or the operator says where it runs.

use crate::cable::Cable;
use crate::host::{error, name, Host, Machine, LIMIT};
use pvmm_control::request::{Decision, Recover};
use pvmm_control::{ClientError, ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::phase::TargetPhase;
use pvmm_migrate::TargetOptions;
use pvmm_vmm::vcpu::End;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the peer is asked.
const SHORT: Duration = Duration::from_secs(1);
/// As long as it takes somebody else to come, too.
const LONG: Duration = Duration::from_secs(5);

/// Two hosts whose cable is cut when the target enters `phase`, after a move that ended so.
fn cut_at(
    phase: TargetPhase,
    recover_limit: Duration,
) -> (Host, Host, Arc<Cable>, Result<Reply, ClientError>) {
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
    let here = Host::with_options(TargetOptions::default(), |options| {
        options.recover_limit = Some(recover_limit);
    });
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
    let (here, there, cable, result) = cut_at(TargetPhase::Start, SHORT);
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
    assert!(!cable.is_plugged());
    let still = error(recover(&here, Decision::Ask));
    assert!(still.desc.contains("still not known"), "{still}");
    assert_eq!(here.info("one").state, GuestState::InDoubt);
    recover(&here, Decision::Discard).expect("the operator knows");
    assert_eq!(here.info("one").end, Some(End::Moved));
    assert_eq!((here.running(), there.running()), (0, 1));
}

#[test]
fn a_peer_that_can_be_asked_again_resolves_the_doubt() {
    let (here, there, cable, result) = cut_at(TargetPhase::Start, SHORT);
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
    let (here, there, _cable, result) = cut_at(TargetPhase::Commit, SHORT);
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
fn who_comes_second_to_resolve_a_doubt_is_told_that_somebody_is_at_it() {
    let (here, there, cable, result) = cut_at(TargetPhase::Start, LONG);
    error(result);
    there.wait_state("one", GuestState::Running);
    cable.plug(&there.url);
    cable.stall();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| recover(&here, Decision::Ask));
        let limit = Instant::now() + LIMIT;
        let being_found_out = |text: &str| text.contains("being found out");
        while !being_found_out(&error(here.call(Request::Resume(name("one")))).desc) {
            assert!(Instant::now() < limit && !first.is_finished());
            std::thread::yield_now();
        }
        let second = error(recover(&here, Decision::ResumeHere));
        assert!(being_found_out(&second.desc), "{second}");
        cable.flow();
        first.join().expect("no panic").expect("the peer answers");
    });
    assert_eq!((here.running(), there.running()), (0, 1));
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
