// SPDX-License-Identifier: GPL-2.0
//! Links that break anywhere, and the doubt that they leave.

use crate::fake::{Operation, Sides};
use crate::network::Scene;
use proptest::prelude::*;
use pvmm_migrate::error::{Failure, Guest};
use pvmm_migrate::session::InDoubt;
use pvmm_migrate::source::{self, Recovered};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::Mode;
use std::sync::atomic::Ordering;
use std::sync::OnceLock;
use std::time::Duration;

/// A guest whose move is the same every time, byte for byte in length.
fn steady() -> Scene {
    let mut scene = Scene::plain();
    scene.options.mode = Mode::Stopcopy;
    scene
}

/// How many bytes such a move is long, both ways together.
fn length() -> usize {
    static LENGTH: OnceLock<usize> = OnceLock::new();
    *LENGTH.get_or_init(|| {
        let mut scene = steady();
        scene.migrate().expect("nothing stands against it");
        let _ = scene.network.results();
        scene.network.moved.load(Ordering::SeqCst)
    })
}

/// Bytes of the last exchange: the commit (12 + 16) and the answer (12 + 16).
const COMMIT: usize = 28;
const RUNNING: usize = 28;

/// Exactly one side runs the guest, and the source's result says which.
fn assert_one_side(scene: &Scene, moved: bool) {
    let _ = scene.network.results();
    let sides = scene.world.sides();
    assert!(!sides.violated);
    assert_eq!((sides.source, sides.target), (!moved, moved), "{sides:?}");
    if moved {
        assert!(scene.source.released);
    } else {
        scene.assert_unchanged();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_link_cut_at_any_byte_leaves_the_guest_on_exactly_one_side(
        cut in prop_oneof![0..length() + 1, length() - 400..length() + 1],
        precopy: bool,
    ) {
        let mut scene = steady();
        if precopy {
            scene.options.mode = Mode::Precopy;
        }
        scene.network.cuts = vec![Some(cut)];
        let result = scene.migrate();
        if let Err(failure) = &result {
            prop_assert!(matches!(failure.guest, Guest::Unchanged), "{}", failure);
        }
        assert_one_side(&scene, result.is_ok());
    }

    #[test]
    fn links_that_keep_breaking_leave_it_on_one_side_or_in_doubt(
        cut in length() - 120..length(),
        later in prop::collection::vec(prop::option::of(0usize..80), 0..4),
    ) {
        let mut scene = steady();
        scene.options.recover_limit = Duration::from_millis(300);
        scene.network.cuts = std::iter::once(Some(cut)).chain(later).collect();
        match scene.migrate() {
            Ok(_) => assert_one_side(&scene, true),
            Err(failure) => match failure.guest {
                Guest::Unchanged => assert_one_side(&scene, false),
                Guest::InDoubt(in_doubt) => {
                    assert_doubt(&scene);
                    scene.network.cuts = Vec::new();
                    scene.options.recover_limit = Duration::from_secs(20);
                    let recovered = recover(&mut scene, *in_doubt).expect("the link is back");
                    assert_one_side(&scene, matches!(recovered, Recovered::AtTarget { .. }));
                }
                Guest::Paused(why) => prop_assert!(false, "{}", why),
            },
        }
    }
}

fn recover(scene: &mut Scene, in_doubt: InDoubt) -> Result<Recovered, Box<Failure>> {
    let Scene {
        source,
        network,
        options,
        job,
        ..
    } = scene;
    source::recover(source, in_doubt, network, options, job)
}

/// The source does not run the guest and has not released it.
fn assert_doubt(scene: &Scene) {
    let sides = scene.world.sides();
    assert!(!sides.source && !sides.violated, "{sides:?}");
    assert!(!scene.source.released);
    assert_eq!(scene.job.statistics().status, Status::InDoubt);
}

/// A move whose link breaks at `cut`, to a target that cannot be reached afterwards.
fn in_doubt(cut: usize) -> (Scene, InDoubt) {
    let mut scene = steady();
    scene.options.recover_limit = Duration::from_millis(50);
    scene.network.cuts = vec![Some(cut)];
    scene.network.reachable = 1.into();
    let failure = scene.migrate().expect_err("the answer is lost");
    let text = failure.to_string();
    for word in ["guest-1", "--resume-here", "--discard", "unix:test"] {
        assert!(text.contains(word), "{text}");
    }
    let Guest::InDoubt(in_doubt) = failure.guest else {
        panic!("not in doubt: {text}");
    };
    assert_doubt(&scene);
    (scene, *in_doubt)
}

fn reach_again(scene: &mut Scene) {
    scene.network.reachable = usize::MAX.into();
    scene.options.recover_limit = Duration::from_secs(20);
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_out_by_asking() {
    let (mut scene, in_doubt) = in_doubt(length() - RUNNING);
    reach_again(&mut scene);
    let recovered = recover(&mut scene, in_doubt).expect("the target answers");
    assert_eq!(recovered, Recovered::AtTarget { notes: vec![] });
    assert_one_side(&scene, true);
    assert_eq!(scene.job.statistics().status, Status::Completed);
}

#[test]
fn a_commit_that_did_not_get_through_is_found_out_by_asking() {
    let (mut scene, in_doubt) = in_doubt(length() - RUNNING - 1);
    reach_again(&mut scene);
    let recovered = recover(&mut scene, in_doubt).expect("the target answers");
    assert_eq!(recovered, Recovered::ResumedHere { notes: vec![] });
    assert_one_side(&scene, false);
    assert_eq!(scene.job.statistics().status, Status::Failed);
}

#[test]
fn a_target_that_stays_away_leaves_the_doubt_and_asking_again_is_possible() {
    let (mut scene, doubt) = in_doubt(length() - RUNNING);
    let failure = recover(&mut scene, doubt).expect_err("nobody is there");
    let Guest::InDoubt(doubt) = failure.guest else {
        panic!("not in doubt: {failure}");
    };
    assert_doubt(&scene);
    reach_again(&mut scene);
    recover(&mut scene, *doubt).expect("the target answers");
    assert_one_side(&scene, true);
}

#[test]
fn a_target_that_has_forgotten_leaves_the_decision_to_the_operator() {
    let (mut scene, doubt) = in_doubt(length() - RUNNING - COMMIT + 3);
    // As after a restart of the target's daemon.
    let _ = scene.network.results();
    scene.network.sessions = Default::default();
    reach_again(&mut scene);
    let failure = recover(&mut scene, doubt).expect_err("the target does not know");
    let Guest::InDoubt(doubt) = failure.guest else {
        panic!("not in doubt: {failure}");
    };
    assert_doubt(&scene);
    let Scene {
        source,
        network,
        job,
        ..
    } = &mut scene;
    let resumed = source::resume_here(source, *doubt, network, job);
    assert_eq!(
        resumed.expect("nothing speaks against it"),
        Recovered::ResumedHere { notes: vec![] }
    );
    assert_one_side(&scene, false);
}

#[test]
fn an_operator_who_errs_is_told_that_the_target_runs_the_guest() {
    let (mut scene, doubt) = in_doubt(length() - RUNNING);
    let _ = scene.network.results();
    reach_again(&mut scene);
    let Scene {
        source,
        network,
        job,
        ..
    } = &mut scene;
    let failure = source::resume_here(source, doubt, network, job).expect_err("the target runs it");
    assert!(failure.to_string().contains("--discard"), "{failure}");
    let Guest::InDoubt(doubt) = failure.guest else {
        panic!("not in doubt: {failure}");
    };
    let discarded = source::discard(source, *doubt, job);
    assert_eq!(discarded, Recovered::AtTarget { notes: vec![] });
    assert_one_side(&scene, true);
}

#[test]
fn a_target_that_could_not_start_the_guest_and_not_say_so_says_it_when_asked() {
    let faults = crate::fake::Faults::new(Some(crate::fake::Fault {
        operation: Operation::Start,
        skip: 0,
    }));
    let mut scene = Scene::new(faults);
    scene.options.mode = Mode::Stopcopy;
    scene.network.cuts = vec![Some(length() - RUNNING)];
    let failure = scene.migrate().expect_err("the target cannot start it");
    assert!(matches!(failure.guest, Guest::Unchanged), "{failure}");
    assert_eq!(scene.network.connections(), 2);
    scene.assert_unchanged();
    let Sides { starts, .. } = scene.world.sides();
    assert_eq!(starts, 0);
}
