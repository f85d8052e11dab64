// SPDX-License-Identifier: GPL-2.0
//! Asking whether a guest would be taken: what is found out, and that nothing happens to the guest or at the target.

use crate::fake::{Fault, Faults, Operation};
use crate::network::Scene;
use pvmm_migrate::error::Error;
use pvmm_migrate::source::{check, Check};
use pvmm_migrate::target::Served;
use pvmm_migrate::vm::RunState;
use pvmm_migrate::{Mode, SourceOptions};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Asks, and checks that everything is as before.
fn ask(scene: &mut Scene) -> Result<Check, Error> {
    let found = check(&mut scene.source, &scene.network, &scene.options);
    let results = scene.network.results();
    assert_eq!(scene.faults.count(Operation::Pause), 0);
    assert_eq!(scene.world.made.load(Ordering::SeqCst), 0);
    assert!(scene.source.dirty.is_none(), "the dirty log is off again");
    if found.is_ok() {
        assert!(matches!(results[..], [Ok(Served::Checked)]), "{results:?}");
    }
    scene.assert_unchanged();
    found
}

#[test]
fn a_guest_that_fits_is_measured_and_left_alone() {
    let mut scene = Scene::plain();
    let found = ask(&mut scene).expect("nothing stands against it");
    assert!(found.answer.is_ok(), "{:?}", found.answer);
    assert!(found.bandwidth > 0 && found.content > 0);
    assert!(found.content <= found.description.memory_size());
    assert!(found.prediction.total >= found.prediction.downtime);
    // And the same guest can still be moved.
    scene.migrate().expect("nothing stands against it");
}

#[test]
fn every_reason_is_there_at_once() {
    let mut scene = Scene::plain();
    let host = Arc::get_mut(&mut scene.network.host).expect("nobody has connected");
    host.description.free_memory = 0;
    host.description.granted.clear();
    let refusal = ask(&mut scene)
        .expect("it was found out")
        .answer
        .expect_err("no memory and no device");
    let text = refusal.to_string();
    assert!(text.contains("--max-memory"), "{text}");
    assert!(text.contains("--grant serial"), "{text}");
    let about_devices = refusal
        .reasons
        .iter()
        .filter(|reason| reason.concern().is_some());
    assert_eq!(about_devices.count(), 1, "{text}");
}

#[test]
fn what_only_the_daemon_knows_is_a_reason_too() {
    let mut scene = Scene::new(Faults::new(Some(Fault {
        operation: Operation::Prepare,
        skip: 0,
    })));
    let found = ask(&mut scene).expect("it was found out");
    let text = found.answer.expect_err("injected").to_string();
    assert!(text.contains("injected failure"), "{text}");
}

#[test]
fn the_dirty_log_is_off_again_when_it_could_not_be_read() {
    let mut scene = Scene::new(Faults::new(Some(Fault {
        operation: Operation::FetchDirty,
        skip: 0,
    })));
    let error = ask(&mut scene).expect_err("injected");
    assert!(error.to_string().contains("fetch dirty pages"), "{error}");
}

#[test]
fn a_paused_guest_would_not_be_paused_longer_and_stopcopy_pauses_for_all() {
    let mut scene = Scene::plain();
    scene.source.description.state = RunState::Paused;
    let paused = check(&mut scene.source, &scene.network, &scene.options).expect("it fits");
    assert_eq!(paused.prediction.downtime, Duration::ZERO);
    assert_eq!(paused.dirty_rate, 0);

    let mut scene = Scene::plain();
    scene.options = SourceOptions {
        mode: Mode::Stopcopy,
        ..SourceOptions::default()
    };
    let whole = ask(&mut scene).expect("it fits").prediction;
    assert_eq!(whole.downtime, whole.total);
}

#[test]
fn a_target_that_is_this_daemon_says_so() {
    let mut scene = Scene::plain();
    scene.options.sessions = Some(scene.network.sessions.clone());
    let found = ask(&mut scene).expect("it was found out");
    let text = found.answer.expect_err("it leads back").to_string();
    assert!(text.contains("leads back"), "{text}");
}
