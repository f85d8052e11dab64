// SPDX-License-Identifier: GPL-2.0
//! `pvmmd migrate --dry-run`: what it says, and that guest and peer are as before.

use crate::host::{error, move_of, Host, Machine, SERIAL};
use crate::process::{Gate, Step};
use pvmm_control::{ErrorClass, GuestState, MoveCheck, Reply, Request};
use pvmm_migrate::phase::SourcePhase;
use pvmm_migrate::statistics::Status;
use pvmm_migrate::{TargetOptions, Url};

/// The request of a dry run.
fn check_of(name: &str, to: &Url) -> Request {
    match move_of(name, to) {
        Request::Migrate(request) => Request::MigrateCheck(request),
        other => other,
    }
}

fn check(here: &Host, name: &str, there: &Host) -> MoveCheck {
    let request = check_of(name, &there.url);
    match here.call(request) {
        Ok(Reply::MoveCheck(check)) => *check,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_would_be_taken_is_told_what_it_would_take_and_is_not_moved() {
    let here = Host::plain();
    let there = Host::new(&[SERIAL], TargetOptions::default());
    here.run("one", &[SERIAL]).expect("nothing against it");
    let found = check(&here, "one", &there);
    assert!(found.accepted, "{found:?}");
    assert!(found.target.is_some_and(|target| target.contains("pvmmd")));
    let names: Vec<_> = found.devices.iter().map(|it| it.device.as_str()).collect();
    assert_eq!(names, ["pic", "pit", "com1", "rtc", "com2"]);
    assert_eq!(found.downtime_limit, 5000, "as the request has it");
    assert!(found.bandwidth > 0 && found.expected_total_time >= found.expected_downtime);
    assert_eq!(there.guests(), []);
    let one = here.info("one");
    assert_eq!((one.state, one.migrating), (GuestState::Running, false));
    here.goes_on("one");
    here.migrate("one", &there.url).0.expect("as was said");
}

#[test]
fn what_stands_against_it_is_said_at_the_device_that_it_is_about() {
    let (here, there) = (Host::plain(), Host::plain());
    here.run("one", &[SERIAL]).expect("nothing against it");
    there.run("one", &[]).expect("nothing against it");
    let found = check(&here, "one", &there);
    assert!(!found.accepted);
    let [reason] = &found.reasons[..] else {
        panic!("the name is one: {found:?}");
    };
    assert!(reason.contains("already on this host"), "{reason}");
    for device in &found.devices {
        let expected = usize::from(device.device == "com2");
        assert_eq!(device.reasons.len(), expected, "{device:?}");
    }
    let text = format!("{:?}", found.devices);
    assert!(text.contains("--grant serial,port=0x2f8,irq=3"), "{text}");

    // The program says the same to people and to programs, with the exit code of a refusal.
    let url = there.url.to_string();
    for (options, expected) in [
        (&[][..], "com2 (serial):"),
        (&["--json"], "\"accepted\":false"),
    ] {
        let arguments = [&["migrate", "one", &url, "--dry-run"], options].concat();
        let ended = here.program(&arguments).output().expect("it is built");
        assert_eq!(ended.status.code(), Some(4));
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_device_that_is_not_recorded_is_a_reason() {
    let here = Host::plain();
    let there = Host::new(&[SERIAL], TargetOptions::default());
    here.run("one", &["serial,port=0x2f8,irq=3,record=off"])
        .expect("nothing against it");
    let found = check(&here, "one", &there);
    assert!(!found.accepted && found.target.is_some());
    let com2 = found.devices.last().expect("it has devices");
    assert!(com2.reasons[0].contains("without record=off"), "{com2:?}");
}

#[test]
fn nobody_asks_while_the_guest_is_being_moved() {
    let gate = Gate::new();
    let hook = gate.source_hook();
    let held = Step::Source(SourcePhase::Precopy);
    let here = Host::with_options(TargetOptions::default(), |options| {
        options.source_hook = Some(hook);
    });
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    gate.hold(held);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| here.migrate("one", &there.url).0);
        gate.wait_for(held);
        let request = check_of("one", &there.url);
        let refused = error(here.call(request));
        assert_eq!(refused.class, ErrorClass::Failed);
        assert!(refused.desc.contains("is being moved"), "{refused}");
        gate.open();
        let Ok(Reply::Job(job)) = moving.join().expect("it does not panic") else {
            panic!("nothing stands against it");
        };
        assert_eq!(job.status, Status::Completed);
    });
    there.goes_on("one");
}
