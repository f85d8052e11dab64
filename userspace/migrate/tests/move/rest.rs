// SPDX-License-Identifier: GPL-2.0
//! Devices that are in the middle of something when their guest is paused.

use crate::fake::Operation;
use crate::network::Scene;
use pvmm_migrate::error::{Error, Guest};
use pvmm_migrate::Mode;
use std::time::Duration;

#[test]
fn a_guest_runs_on_until_its_device_has_come_to_rest_and_then_moves_with_everything() {
    for mode in [Mode::Precopy, Mode::Stopcopy] {
        let mut scene = Scene::plain();
        scene.options.mode = mode;
        scene.source.busy_captures = 3;
        let report = scene.migrate().expect("it comes to rest");
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        assert_eq!(scene.faults.count(Operation::Pause), 4);
        assert_eq!(scene.faults.count(Operation::Resume), 3);
        let clock = scene.source.resumed.flatten().expect("its clock was set");
        assert!(clock.vm_ns > 0);
        let target = scene.arrived();
        scene.assert_moved(&target);
    }
}

#[test]
fn a_device_that_does_not_come_to_rest_fails_the_move_by_the_name_of_its_register() {
    let mut scene = Scene::plain();
    scene.options.rest_limit = Duration::from_millis(100);
    scene.source.busy_captures = u32::MAX;
    let failure = scene.migrate().expect_err("it is always busy");
    assert!(
        matches!(failure.error, Error::NotAtRest { .. }),
        "{failure}"
    );
    assert!(matches!(failure.guest, Guest::Unchanged));
    let text = failure.to_string();
    for part in ["serial (device 2)", "register LSR", "move it again"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    // Tried more than once, and once the time was over no more.
    let pauses = scene.faults.count(Operation::Pause);
    assert!((2..=6).contains(&pauses), "{pauses}");
    scene.assert_unchanged();
}

#[test]
fn a_guest_that_its_operator_has_paused_is_not_let_run_for_a_device_to_come_to_rest() {
    let mut scene = Scene::plain();
    scene.source = scene.source.paused();
    scene.source.busy_captures = 1;
    let failure = scene.migrate().expect_err("it cannot finish");
    let text = failure.to_string();
    assert!(text.contains("resume the guest"), "{text}");
    assert_eq!(scene.faults.count(Operation::Resume), 0);
    assert!(!scene.source.runs());
}

#[test]
fn a_device_that_gets_busy_between_pause_and_capture_fails_the_move() {
    let mut scene = Scene::plain();
    scene.options.hook = None;
    // The first capture after the pause finds it at rest.
    scene.source.busy_after = Some(1);
    let failure = scene.migrate().expect_err("it got busy");
    assert_eq!(failure.phase, "device-state");
    assert!(failure.to_string().contains("register LSR"), "{failure}");
}
