// SPDX-License-Identifier: GPL-2.0
//! Moves that succeed.

use crate::fake::{description, frames, Memory, Operation, START_CLOCK};
use crate::network::{assert_same, Scene};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::vm::{RunState, PAGE_SIZE};
use pvmm_migrate::{Mode, TargetOptions};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn a_guest_that_works_meanwhile_arrives_with_everything() {
    let mut scene = Scene::plain();
    let report = scene.migrate().expect("nothing stands against it");
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let target = scene.arrived();
    scene.assert_moved(&target);
    assert!(scene.faults.count(Operation::FetchDirty) >= 2);
    assert_eq!(scene.world.made.load(Ordering::SeqCst), 1);
    assert_eq!(scene.network.connections(), 1);
}

#[test]
fn stop_and_copy_moves_everything_once_without_dirty_tracking() {
    let mut scene = Scene::plain();
    scene.options.mode = Mode::Stopcopy;
    let report = scene.migrate().expect("nothing stands against it");
    let target = scene.arrived();
    scene.assert_moved(&target);
    assert_eq!(scene.faults.count(Operation::StartDirtyLog), 0);
    let ram = &report.statistics.ram;
    assert_eq!(ram.duplicate + ram.normal, frames().count() as u64);
    assert_eq!(ram.dirty_sync_count, 1);
}

#[test]
fn a_guest_that_was_paused_arrives_paused_with_its_clock_unchanged() {
    let mut scene = Scene::plain();
    scene.source = scene.source.paused();
    scene.migrate().expect("nothing stands against it");
    let target = scene.arrived();
    assert_same(&scene.source, &target);
    assert_eq!(target.started, Some((START_CLOCK, RunState::Paused)));
    assert_eq!(scene.faults.count(Operation::Pause), 0);
    assert!(!scene.world.sides().target);
    assert!(scene.source.released);
}

#[test]
fn memory_that_is_zero_and_slow_to_read_does_not_look_like_a_link_that_is_lost() {
    let mut scene = Scene::plain();
    scene.source.memory = Memory::default();
    scene.source.writes_per_step = 0;
    scene.source.read_takes = Duration::from_millis(900);
    // Three reads take longer than this, one does not.
    let limit = Duration::from_secs(2);
    scene.options.stall_limit = limit;
    let target_options = TargetOptions {
        stall_limit: limit,
        ..TargetOptions::default()
    };
    *scene
        .network
        .target_options
        .lock()
        .expect("no holder panics") = Some(target_options);
    scene.migrate().expect("nothing stands against it");
    assert!(scene.faults.count(Operation::ReadPages) >= 3);
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn guest_time_goes_on_across_the_move_by_no_more_than_the_move_took() {
    let mut scene = Scene::plain();
    let begin = Instant::now();
    scene.migrate().expect("nothing stands against it");
    let target = scene.arrived();
    let took = begin.elapsed().as_nanos() as u64;
    assert_eq!(target.restored_clock, Some(START_CLOCK));
    let (clock, state) = target.started.expect("it was started");
    assert_eq!(state, RunState::Running);
    let jump = clock.vm_ns - START_CLOCK.vm_ns;
    assert!(jump > 0 && jump <= took, "{jump} ns of {took} ns");
    // 2 GHz: two ticks for each nanosecond, rounded down.
    assert_eq!(clock.tsc - START_CLOCK.tsc, jump * 2);
    assert_eq!(clock.tsc_khz, START_CLOCK.tsc_khz);
}

#[test]
fn statistics_tell_where_bytes_and_time_went() {
    let mut scene = Scene::plain();
    let statistics = scene
        .migrate()
        .expect("nothing stands against it")
        .statistics;
    let ram = &statistics.ram;
    assert_eq!(statistics.status, Status::Completed);
    assert_eq!(statistics.progress_percent, 100);
    assert_eq!(ram.total, description().memory_size());
    assert_eq!((ram.remaining, ram.page_size), (0, PAGE_SIZE as u64));
    // A third of the guest's pages is zero, and it writes some while it is copied.
    assert!(ram.duplicate >= 200 && ram.normal >= 400, "{ram:?}");
    assert_eq!(ram.normal_bytes, ram.normal * PAGE_SIZE as u64);
    let moved = scene.network.moved.load(Ordering::SeqCst) as u64;
    assert!(ram.transferred > ram.normal_bytes && ram.transferred <= moved);

    let breakdown = statistics.breakdown.expect("the move is over");
    let sum = breakdown.memory + breakdown.cpu_state + breakdown.device_state + breakdown.other;
    assert!((sum - breakdown.total).abs() < 0.01, "{breakdown:?}");
    assert!(breakdown.downtime <= breakdown.total);
    let pause = statistics.downtime_breakdown.expect("it was paused");
    assert_eq!(pause.total, pause.downtime);
    assert_eq!(statistics.downtime, Some(pause.downtime as u64));
    assert!(!statistics.phases.is_empty());
    let user: Vec<_> = statistics
        .devices
        .iter()
        .filter(|it| it.device.is_none())
        .collect();
    assert_eq!(user.len(), 2);
}

#[test]
fn statistics_have_the_keys_of_query_migrate() {
    let mut scene = Scene::plain();
    let statistics = scene
        .migrate()
        .expect("nothing stands against it")
        .statistics;
    let json = serde_json::to_value(&statistics).expect("it is plain data");
    for key in [
        "status",
        "total-time",
        "setup-time",
        "downtime",
        "expected-downtime",
        "ram",
        "progress-percent",
    ] {
        assert!(json.get(key).is_some(), "{key} is missing in {json}");
    }
    for key in [
        "transferred",
        "remaining",
        "total",
        "duplicate",
        "normal",
        "normal-bytes",
        "dirty-pages-rate",
        "mbps",
        "dirty-sync-count",
        "page-size",
    ] {
        assert!(
            json["ram"].get(key).is_some(),
            "ram.{key} is missing in {json}"
        );
    }
    for key in [
        "memory",
        "cpu-state",
        "device-state",
        "other",
        "total",
        "downtime",
    ] {
        assert!(json["downtime-breakdown"].get(key).is_some(), "{key}");
    }
    assert_eq!(json["status"], "completed");
}

#[test]
fn the_progress_never_goes_back_and_ends_at_100() {
    let mut scene = Scene::plain();
    scene.source.job = Some(scene.job.clone());
    scene.source.writes_per_step = 60;
    scene.migrate().expect("nothing stands against it");
    let progress = &scene.source.progress;
    assert!(progress.len() > 3);
    assert!(progress.is_sorted(), "{progress:?}");
    assert!(progress.iter().all(|percent| *percent < 100));
    assert_eq!(scene.job.statistics().progress_percent, 100);
}

#[test]
fn a_release_that_fails_is_a_note_and_the_guest_has_moved() {
    let faults = crate::fake::Faults::new(Some(crate::fake::Fault {
        operation: Operation::Release,
        skip: 0,
    }));
    let mut scene = Scene::new(faults);
    let report = scene.migrate().expect("the guest runs at the target");
    assert_eq!(report.notes.len(), 1);
    let target = scene.arrived();
    scene.assert_moved(&target);
}

#[test]
fn a_guest_takes_over_the_tsc_rate_of_a_host_that_measured_its_own_a_little_differently() {
    let mut scene = Scene::plain();
    let host = std::sync::Arc::get_mut(&mut scene.network.host).expect("nobody has it yet");
    host.description.tsc_khz = START_CLOCK.tsc_khz + 300;
    scene.migrate().expect("the rates count as the same");
    let target = scene.arrived();
    scene.assert_moved(&target);
    assert_eq!(target.prepared_tsc_khz, START_CLOCK.tsc_khz + 300);
    let clocks = [
        target.restored_clock,
        target.started.map(|(clock, _)| clock),
    ];
    for clock in clocks {
        let clock = clock.expect("it was restored and started");
        assert_eq!(clock.tsc_khz, START_CLOCK.tsc_khz + 300);
        assert!(clock.tsc >= START_CLOCK.tsc);
    }
}

#[test]
fn a_guest_keeps_another_tsc_rate_where_the_host_can_scale() {
    let mut scene = Scene::plain();
    let host = std::sync::Arc::get_mut(&mut scene.network.host).expect("nobody has it yet");
    host.description.tsc_khz = 3_000_000;
    host.description.features = pvmm_uapi::FEATURE_TSC_SCALING;
    scene.migrate().expect("the host can scale");
    let target = scene.arrived();
    assert_eq!(target.prepared_tsc_khz, START_CLOCK.tsc_khz);
    assert_eq!(target.restored_clock, Some(START_CLOCK));
}
