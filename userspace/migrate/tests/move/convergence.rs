// SPDX-License-Identifier: GPL-2.0
//! When pre-copy ends: by itself, by the timeout, by somebody who cancels.

use crate::network::Scene;
use pvmm_migrate::error::Error;
use pvmm_migrate::statistics::Status;
use pvmm_migrate::TimeoutAction;
use std::time::{Duration, Instant};

/// A guest that dirties memory faster than the (limited) link carries it.
fn busy() -> Scene {
    let mut scene = Scene::plain();
    scene.source.writes_per_step = 2000;
    scene.options.bandwidth = Some(8 << 20);
    scene.options.downtime_limit = Duration::from_millis(40);
    scene.options.state_estimate = Duration::ZERO;
    scene
}

#[test]
fn a_guest_that_never_converges_goes_on_at_the_source_after_the_timeout() {
    let mut scene = busy();
    scene.options.timeout = Some(Duration::from_secs(1));
    let failure = scene.migrate().expect_err("it cannot converge");
    assert!(
        matches!(failure.error, Error::NotConverging { .. }),
        "{failure}"
    );
    let text = failure.to_string();
    for word in [
        "--downtime-limit",
        "--timeout-action suspend",
        "goes on here",
    ] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(failure.exit_code(), 1);
    scene.assert_unchanged();
}

#[test]
fn a_guest_that_never_converges_is_paused_and_moved_if_the_operator_wants_that() {
    let mut scene = busy();
    scene.options.timeout = Some(Duration::from_millis(700));
    scene.options.timeout_action = TimeoutAction::Suspend;
    let report = scene.migrate().expect("it was paused");
    assert_eq!(report.statistics.status, Status::Completed);
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn a_timeout_inside_the_first_round_pauses_and_sends_the_rest() {
    let mut scene = busy();
    // The first round alone takes three times as long as this, and what comes before it much less on a busy machine, too.
    scene.options.bandwidth = Some(1 << 20);
    scene.options.timeout = Some(Duration::from_secs(1));
    scene.options.timeout_action = TimeoutAction::Suspend;
    let report = scene.migrate().expect("it was paused");
    assert_eq!(report.statistics.ram.dirty_sync_count, 2);
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn a_guest_that_calms_down_converges() {
    let mut scene = busy();
    scene.source.calms_down = true;
    let report = scene.migrate().expect("it converges");
    assert!(report.statistics.ram.dirty_sync_count >= 2);
    let expected = report.statistics.expected_downtime;
    assert!(expected.is_some_and(|ms| ms <= 40), "{expected:?}");
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn a_downtime_limit_that_state_alone_exceeds_is_said_and_not_tried_for_ever() {
    let mut scene = busy();
    scene.options.state_estimate = Duration::from_millis(50);
    let failure = scene.migrate().expect_err("the limit cannot be kept");
    assert!(
        matches!(failure.error, Error::LimitTooLow { .. }),
        "{failure}"
    );
    scene.assert_unchanged();
}

#[test]
fn a_cancel_during_precopy_leaves_the_guest_at_the_source() {
    let mut scene = busy();
    scene.options.timeout_action = TimeoutAction::Ignore;
    let job = scene.job.clone();
    let operator = std::thread::spawn(move || {
        let limit = Instant::now() + Duration::from_secs(20);
        while job.statistics().ram.dirty_sync_count < 2 {
            assert!(Instant::now() < limit, "pre-copy does not go on");
            std::thread::yield_now();
        }
        job.cancel()
    });
    let failure = scene.migrate().expect_err("it was cancelled");
    assert_eq!(operator.join().expect("pre-copy goes on"), Ok(()));
    assert!(matches!(failure.error, Error::Cancelled), "{failure}");
    assert_eq!(failure.exit_code(), 3);
    assert_eq!(scene.job.statistics().status, Status::Cancelled);
    scene.assert_unchanged();
}

#[test]
fn a_cancel_after_the_move_comes_too_late() {
    let mut scene = Scene::plain();
    scene.migrate().expect("nothing stands against it");
    assert!(scene.job.cancel().is_err());
    assert_eq!(scene.job.statistics().status, Status::Completed);
}

#[test]
fn a_cancel_in_any_phase_before_the_commit_leaves_the_guest_at_the_source() {
    use pvmm_migrate::phase::SourcePhase;
    let before = SourcePhase::ALL
        .iter()
        .filter(|phase| **phase <= SourcePhase::Commit);
    assert!(before.clone().count() > 5);
    for phase in before {
        let mut scene = Scene::plain();
        let job = scene.job.clone();
        let at = *phase;
        scene.options.hook = Some(Box::new(move |phase| {
            if phase == at {
                job.cancel().map_err(|error| error.to_string())?;
            }
            Ok(())
        }));
        let failure = scene.migrate().expect_err("it was cancelled");
        assert!(
            matches!(failure.error, Error::Cancelled),
            "{phase}: {failure}"
        );
        scene.assert_unchanged();
    }
}
