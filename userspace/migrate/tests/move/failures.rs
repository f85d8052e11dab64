// SPDX-License-Identifier: GPL-2.0
//! A failure in every phase and in every call, on each side: afterwards exactly one side runs the guest, and it is the
//! source, unless the commit was over.

use crate::devices::{Hardware, UART};
use crate::fake::{Fault, Faults, Operation, START_CLOCK};
use crate::network::Scene;
use pvmm_migrate::error::Guest;
use pvmm_migrate::options::TargetOptions;
use pvmm_migrate::phase::{SourcePhase, TargetPhase};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::Mode;

#[test]
fn a_failure_in_any_phase_of_the_source_leaves_the_guest_there_until_the_commit() {
    assert!(SourcePhase::ALL.len() > 8);
    for mode in [Mode::Precopy, Mode::Stopcopy] {
        for phase in SourcePhase::ALL {
            if mode == Mode::Stopcopy && *phase == SourcePhase::Precopy {
                continue;
            }
            let mut scene = Scene::plain();
            scene.options.mode = mode;
            let at = *phase;
            scene.options.hook = Some(Box::new(move |phase| {
                if phase == at {
                    Err("injected".into())
                } else {
                    Ok(())
                }
            }));
            let result = scene.migrate();
            if *phase > SourcePhase::Commit {
                result.expect("the commit was over");
                let target = scene.arrived();
                scene.assert_moved(&target);
                continue;
            }
            let failure = result.expect_err("a hook failed");
            assert_eq!(failure.phase, phase.name());
            assert!(failure.to_string().contains("injected"), "{failure}");
            assert!(failure.notes.is_empty(), "{failure}");
            assert!(matches!(failure.guest, Guest::Unchanged));
            let statistics = scene.job.statistics();
            assert_eq!(statistics.status, Status::Failed);
            assert!(statistics
                .error_desc
                .is_some_and(|text| text.contains("injected")));
            scene.assert_unchanged();
        }
    }
}

#[test]
fn a_character_that_arrives_between_capture_and_failure_is_kept() {
    let mut scene = Scene::plain();
    scene.source.arrives_after_capture = Some(b'!');
    scene.options.hook = Some(Box::new(|phase| match phase {
        SourcePhase::Commit => Err("injected".into()),
        _ => Ok(()),
    }));
    let failure = scene.migrate().expect_err("the hook failed");
    assert!(failure.notes.is_empty(), "{failure}");
    let Hardware::Uart(uart) = &scene.source.devices[&UART].hardware else {
        panic!("device {UART} is the UART");
    };
    assert_eq!(uart.received, b"in!");
}

#[test]
fn a_failure_in_any_phase_of_the_target_leaves_the_guest_at_the_source() {
    assert!(TargetPhase::ALL.len() > 6);
    for phase in TargetPhase::ALL {
        let mut scene = Scene::plain();
        let at = *phase;
        let options = TargetOptions {
            hook: Some(Box::new(move |phase| {
                if phase == at {
                    Err("injected".into())
                } else {
                    Ok(())
                }
            })),
            ..TargetOptions::default()
        };
        *scene
            .network
            .target_options
            .lock()
            .expect("no holder panics") = Some(options);
        let failure = scene.migrate().expect_err("the target's hook failed");
        assert!(
            failure.to_string().contains("injected"),
            "{phase}: {failure}"
        );
        assert!(matches!(failure.guest, Guest::Unchanged), "{phase}");
        assert!(failure.notes.is_empty(), "{failure}");
        scene.assert_unchanged();
    }
}

/// What may be left of a failure: nothing, or a guest that has moved, or a note.
fn expect_after(operation: Operation, skip: usize) {
    let mut scene = Scene::new(Faults::new(Some(Fault { operation, skip })));
    let result = scene.migrate();
    if scene.faults.count(operation) <= skip {
        // It was not called that often, so nothing failed.
        let _ = result.expect("nothing stands against it");
        return;
    }
    match operation {
        Operation::Release => {
            assert_eq!(result.expect("the guest has moved").notes.len(), 1);
            let target = scene.arrived();
            scene.assert_moved(&target);
        }
        _ => {
            let failure = result.expect_err("a call failed");
            let text = failure.to_string();
            assert!(
                text.contains(&format!("{operation:?}")),
                "{operation:?}: {text}"
            );
            scene.assert_unchanged();
        }
    }
}

#[test]
fn a_failure_of_any_call_leaves_the_guest_on_one_side() {
    // These are made only after another failure; see below.
    let after_failure = [
        Operation::StopDirtyLog,
        Operation::Resume,
        Operation::PutBack,
    ];
    assert!(Operation::ALL.len() > 20);
    for operation in Operation::ALL {
        if after_failure.contains(operation) {
            continue;
        }
        for skip in 0..3 {
            expect_after(*operation, skip);
        }
    }
}

#[test]
fn every_operation_of_a_move_is_really_called_by_it() {
    let mut scene = Scene::plain();
    // Enough writes that a page which was sent becomes zero.
    scene.source.writes_per_step = 200;
    scene.migrate().expect("nothing stands against it");
    let _ = scene.network.results();
    let only_after_failure = [
        Operation::StopDirtyLog,
        Operation::Resume,
        Operation::PutBack,
    ];
    for operation in Operation::ALL {
        let called = scene.faults.count(*operation) > 0;
        assert_eq!(
            called,
            !only_after_failure.contains(operation),
            "{operation:?}"
        );
    }
}

/// A scene whose move fails after the pause, and in which `operation` then fails too.
fn fails_twice(operation: Operation) -> Scene {
    let mut scene = Scene::new(Faults::new(Some(Fault { operation, skip: 0 })));
    scene.options.hook = Some(Box::new(|phase| {
        if phase == SourcePhase::Verify {
            Err("injected".into())
        } else {
            Ok(())
        }
    }));
    scene
}

#[test]
fn a_guest_that_cannot_be_resumed_is_reported_as_paused_at_the_source() {
    let mut scene = fails_twice(Operation::Resume);
    let failure = scene.migrate().expect_err("a hook failed");
    assert!(
        matches!(&failure.guest, Guest::Paused(why) if why.contains("Resume")),
        "{failure}"
    );
    let _ = scene.network.results();
    let sides = scene.world.sides();
    assert!(!sides.source && !sides.target);
}

#[test]
fn what_cannot_be_put_back_is_a_note_and_the_guest_goes_on() {
    for operation in [Operation::StopDirtyLog, Operation::PutBack] {
        let mut scene = fails_twice(operation);
        let failure = scene.migrate().expect_err("a hook failed");
        assert!(matches!(failure.guest, Guest::Unchanged));
        assert_eq!(failure.notes.len(), 1, "{failure}");
        let _ = scene.network.results();
        assert!(scene.world.sides().source);
    }
}

#[test]
fn after_a_failure_guest_time_goes_on_without_a_step_back() {
    let mut scene = fails_twice(Operation::Release);
    scene.migrate().expect_err("a hook failed");
    let clock = scene
        .source
        .resumed
        .flatten()
        .expect("it was resumed with a clock");
    assert!(clock.vm_ns > START_CLOCK.vm_ns && clock.tsc > START_CLOCK.tsc);
}

#[test]
fn a_target_that_cannot_be_reached_fails_before_anything_happens() {
    let mut scene = Scene::plain();
    scene.network.reachable = 0.into();
    let failure = scene.migrate().expect_err("nobody is there");
    assert!(failure.to_string().contains("unix:test"), "{failure}");
    scene.assert_unchanged();
    assert_eq!(scene.faults.count(Operation::Describe), 0);
}

#[test]
fn a_second_attempt_after_a_failure_succeeds() {
    let mut scene = Scene::new(Faults::new(Some(Fault {
        operation: Operation::Verify,
        skip: 0,
    })));
    scene.migrate().expect_err("the target's check fails once");
    scene.assert_unchanged();
    scene.job = std::sync::Arc::new(pvmm_migrate::Job::new());
    scene.migrate().expect("the fault was for once");
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn a_device_that_does_not_take_its_state_fails_the_move_by_the_register_s_name() {
    use crate::devices::{Hardware, UART};
    let mut scene = Scene::plain();
    let host = std::sync::Arc::get_mut(&mut scene.network.host).expect("nobody has it yet");
    let uart = host.devices.get_mut(&UART).expect("it is there");
    let Hardware::Uart(hardware) = &mut uart.hardware else {
        panic!("not a UART");
    };
    hardware.scratch_is_broken = true;
    let failure = scene.migrate().expect_err("SCR cannot be restored");
    let text = failure.to_string();
    assert!(
        text.contains("serial") && text.contains("SCR") && text.contains("0x5a"),
        "{text}"
    );
    scene.assert_unchanged();
}

#[test]
fn a_device_whose_state_makes_no_plan_fails_the_move_by_the_register_s_name() {
    let mut scene = Scene::plain();
    scene.source.spoil_records = true;
    let failure = scene.migrate().expect_err("an 8259 has no such register");
    let text = failure.to_string();
    assert!(
        text.contains("i8259") && text.contains("register 9999"),
        "{text}"
    );
    let _ = scene.network.results();
    assert!(scene.world.sides().source);
}
