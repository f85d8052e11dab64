// SPDX-License-Identifier: GPL-2.0
//! `migrate-cancel` at every step: before the commit the guest goes on here, afterwards it is too late.

use crate::host::{error, name, Host, Machine};
use crate::process::{Gate, Step};
use pvmm_control::{ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::phase::{SourcePhase, TargetPhase};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::TargetOptions;

/// If a move can still be cancelled when the source enters a phase.
fn in_time(phase: SourcePhase) -> bool {
    match phase {
        SourcePhase::Connect
        | SourcePhase::Handshake
        | SourcePhase::Prepare
        | SourcePhase::Precopy
        | SourcePhase::Pause
        | SourcePhase::LastPages
        | SourcePhase::CpuState
        | SourcePhase::DeviceState
        | SourcePhase::Verify
        // It has not been sent.
        | SourcePhase::Commit => true,
        SourcePhase::Release => false,
    }
}

fn status(host: &Host) -> Status {
    match host.call(Request::JobInfo(name("one"))) {
        Ok(Reply::Job(job)) => job.status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_move_is_cancelled_at_any_step_before_the_commit_and_at_none_after() {
    let (mut cancelled, mut late) = (0, 0);
    for &phase in SourcePhase::ALL {
        let gate = Gate::new();
        let hook = gate.source_hook();
        let here = Host::with_options(TargetOptions::default(), |options| {
            options.source_hook = Some(hook);
        });
        let there = Host::plain();
        here.run("one", &[]).expect("nothing against it");
        gate.hold(Step::Source(phase));
        let (moved, asked) = std::thread::scope(|scope| {
            let mover = scope.spawn(|| here.migrate("one", &there.url).0);
            gate.wait_for(Step::Source(phase));
            let asked = here.call(Request::MigrateCancel(name("one")));
            gate.open();
            (mover.join().expect("no panic"), asked)
        });
        if !in_time(phase) {
            let refused = error(asked);
            assert!(refused.desc.contains("no longer be cancelled"), "{refused}");
            moved.expect("nothing else stood against it");
            assert_eq!((here.running(), there.running()), (0, 1));
            late += 1;
            continue;
        }
        asked.expect("it is in time");
        let told = error(moved);
        assert_eq!((told.class, told.exit_code()), (ErrorClass::Cancelled, 3));
        assert!(told.desc.contains("goes on here as before"), "{told}");
        assert_eq!(status(&here), Status::Cancelled);
        assert_eq!(here.info("one").state, GuestState::Running, "{phase}");
        here.goes_on("one");
        there.wait_empty();
        let (again, _) = here.migrate("one", &there.url);
        again.unwrap_or_else(|error| panic!("{phase}: the next move fails: {error}"));
        assert_eq!((here.running(), there.running()), (0, 1));
        cancelled += 1;
    }
    assert!(cancelled > 8 && late > 0);
}

#[test]
fn a_move_whose_commit_is_on_its_way_can_no_longer_be_cancelled() {
    let gate = Gate::new();
    let here = Host::plain();
    let target_options = TargetOptions {
        hook: Some(gate.target_hook()),
        ..TargetOptions::default()
    };
    let there = Host::new(&[], target_options);
    here.run("one", &[]).expect("nothing against it");
    gate.hold(Step::Target(TargetPhase::Start));
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| here.migrate("one", &there.url).0);
        gate.wait_for(Step::Target(TargetPhase::Start));
        let late = error(here.call(Request::MigrateCancel(name("one"))));
        assert!(late.desc.contains("told to run the guest"), "{late}");
        gate.open();
        mover.join().expect("no panic").expect("nothing against it");
    });
    assert_eq!((here.running(), there.running()), (0, 1));
}
