// SPDX-License-Identifier: GPL-2.0
//! Moves between two daemons.

use crate::cable::Cable;
use crate::host::{beats, error, name, Host, Machine, SERIAL};
use pvmm_control::request::Migrate;
use pvmm_control::{ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::statistics::Status;
use pvmm_migrate::TargetOptions;
use pvmm_vmm::vcpu::End;

#[test]
fn a_running_guest_moves_there_and_back_and_loses_no_beat() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let mut text = String::new();
    let mut moves = 0;
    for (from, to) in [(&here, &there), (&there, &here), (&here, &there)] {
        let mut console = from.console("one");
        console.wait_for("beat");
        let (result, _) = from.migrate("one", &to.url);
        let Ok(Reply::Job(statistics)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(statistics.status, Status::Completed);
        assert_eq!(statistics.progress_percent, 100);
        assert!(statistics.downtime.is_some() && statistics.downtime_breakdown.is_some());
        console.wait_end();
        console.beats();
        text += &console.seen;
        let left = from.info("one");
        assert_eq!(
            (left.state, left.end),
            (GuestState::Ended, Some(End::Moved))
        );
        assert_eq!(to.info("one").state, GuestState::Running);
        moves += 1;
    }
    assert_eq!(moves, 3);
    let mut console = there.console("one");
    let last = beats(&text).last().copied().expect("it has beaten");
    console.wait_for(&format!("beat {}\n", last + 20));
    text += &console.seen;
    // The text of the moves is one stream, even where a line was cut by a move.
    let beats = beats(&text);
    assert!(beats.len() as u64 > last, "{text}");
    for (index, beat) in beats.iter().enumerate() {
        assert_eq!(*beat, index as u64, "{text}");
    }
    assert!(!text.contains("LOST"), "{text}");
}

#[test]
fn a_paused_guest_moves_and_stays_paused() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    here.call(Request::Pause(name("one"))).expect("it runs");
    here.migrate("one", &there.url)
        .0
        .expect("nothing against it");
    assert_eq!(there.info("one").state, GuestState::Paused);
    there
        .call(Request::Resume(name("one")))
        .expect("it is paused");
    there.console("one").wait_for("beat");
}

#[test]
fn a_guest_with_a_device_goes_only_where_it_is_granted() {
    let here = Host::plain();
    let closed = Host::plain();
    let open = Host::new(&[SERIAL], TargetOptions::default());
    here.run("one", &[SERIAL]).expect("nothing against it");
    let refused = error(here.migrate("one", &closed.url).0);
    assert_eq!(refused.class, ErrorClass::Refused);
    assert_eq!(refused.exit_code(), 4);
    assert!(
        refused.desc.contains("--grant serial,port=0x2f8,irq=3"),
        "{refused}"
    );
    assert_eq!(here.info("one").state, GuestState::Running);
    assert_eq!(closed.guests(), [], "a refused guest leaves nothing");
    here.migrate("one", &open.url).0.expect("it is granted");
    assert_eq!(
        open.info("one").devices,
        ["serial,port=0x2f8,irq=3,backend=physical"]
    );
    here.run("two", &[SERIAL])
        .expect("the device is free here again");
    let taken = error(here.migrate("two", &open.url).0);
    assert_eq!(taken.class, ErrorClass::Refused);
    assert_eq!(here.info("two").state, GuestState::Running);
}

#[test]
fn a_guest_with_devices_of_several_kinds_takes_them_along() {
    // Without an interrupt here, elsewhere there, as only the host's part may be.
    let granted = "parallel,port=0x278,irq=none,host-port=0x378";
    let here = Host::plain();
    let mismatched = Host::new(
        &[SERIAL, "parallel,port=0x278,irq=7,host-port=0x378"],
        TargetOptions::default(),
    );
    let there = Host::new(&[SERIAL, granted], TargetOptions::default());
    here.run("one", &[granted, SERIAL])
        .expect("nothing against it");
    let refused = error(here.migrate("one", &mismatched.url).0);
    assert!(
        refused
            .desc
            .contains("--grant parallel,port=0x278,irq=none"),
        "{refused}"
    );
    here.migrate("one", &there.url).0.expect("both are granted");
    assert_eq!(
        there.info("one").devices,
        [
            "parallel,port=0x278,irq=none,backend=physical,host-port=0x378",
            "serial,port=0x2f8,irq=3,backend=physical"
        ]
    );
    let Ok(Reply::Devices(devices)) = there.call(Request::Devices(name("one"))) else {
        panic!("a guest has devices");
    };
    let named: Vec<&str> = devices
        .iter()
        .map(|device| device.device.as_str())
        .collect();
    assert_eq!(named[4..], ["lpt1", "com2"]);
}

#[test]
fn a_guest_with_a_device_that_is_not_recorded_stays() {
    let (here, there) = (Host::plain(), Host::plain());
    here.run("one", &["serial,port=0x2f8,irq=3,record=off"])
        .expect("nothing against it");
    let refused = error(here.migrate("one", &there.url).0);
    assert_eq!(refused.class, ErrorClass::Refused);
    assert!(refused.desc.contains("without record=off"), "{refused}");
    assert_eq!(here.info("one").state, GuestState::Running);
    assert_eq!(there.guests(), []);
}

#[test]
fn a_host_that_cannot_take_the_guest_says_why() {
    let here = Host::plain();
    let full = Host::plain();
    for number in 0..4 {
        full.run(&format!("guest{number}"), &[])
            .expect("64 MiB are four of 16");
    }
    here.run("guest0", &[]).expect("nothing against it");
    let refused = error(here.migrate("guest0", &full.url).0);
    assert_eq!(refused.class, ErrorClass::Refused);
    assert!(refused.desc.contains("already on this host"), "{refused}");
    assert!(
        refused.desc.contains("--max-memory"),
        "every reason at once: {refused}"
    );
    let nobody = error(
        here.migrate("guest0", &"tcp:127.0.0.1:1".parse().expect("valid"))
            .0,
    );
    assert_eq!(nobody.class, ErrorClass::Failed);
    assert_eq!(here.info("guest0").state, GuestState::Running);
}

#[test]
fn a_move_that_fails_at_the_peer_leaves_the_guest_running_here() {
    let mut phases = 0;
    for &phase in pvmm_migrate::phase::TargetPhase::ALL {
        let options = TargetOptions {
            hook: Some(Box::new(move |now| match now == phase {
                true => Err("injected".into()),
                false => Ok(()),
            })),
            ..TargetOptions::default()
        };
        let here = Host::plain();
        let there = Host::new(&[], options);
        here.run("one", &[]).expect("nothing against it");
        let (result, _) = here.migrate("one", &there.url);
        assert_eq!(here.running() + there.running(), 1, "{phase:?}: {result:?}");
        if result.is_err() {
            let mut console = here.console("one");
            console.wait_for("beat");
            let last = console.beats().last().copied().unwrap_or(0);
            console.wait_for(&format!("beat {}\n", last + 20));
            console.beats();
            assert_eq!(there.guests(), [], "{phase:?}");
        }
        phases += 1;
    }
    assert!(phases > 3);
}

#[test]
fn a_move_can_be_cancelled_and_the_guest_goes_on() {
    let here = Host::plain();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let mut client = here.client();
    let request = Migrate {
        name: "one".into(),
        url: there.url.to_string(),
        mode: None,
        // No limit can be kept, so pre-copy goes on until it is cancelled.
        downtime_limit: Some(1000),
        max_bandwidth: Some(4096),
        timeout: None,
        timeout_action: None,
    };
    let mut asked = false;
    let result = client.call_with_events(Request::Migrate(Box::new(request)), |_| {
        if !asked {
            let busy = error(here.call(Request::Pause(name("one"))));
            assert!(busy.desc.contains("migrate-cancel"), "{busy}");
            assert!(here.info("one").migrating);
            here.call(Request::MigrateCancel(name("one")))
                .expect("it is being moved");
            asked = true;
        }
    });
    let cancelled = error(result);
    assert_eq!(
        (cancelled.class, cancelled.exit_code()),
        (ErrorClass::Cancelled, 3)
    );
    assert!(asked, "the move was over before it could be cancelled");
    assert_eq!(here.info("one").state, GuestState::Running);
    let again = error(here.call(Request::MigrateCancel(name("one"))));
    assert!(again.desc.contains("not being moved"), "{again}");
    let Reply::Job(job) = here
        .call(Request::JobInfo(name("one")))
        .expect("it is there")
    else {
        panic!("a job was asked for");
    };
    assert_eq!(job.status, Status::Cancelled);
    here.migrate("one", &there.url)
        .0
        .expect("it can be moved later");
}

#[test]
fn a_move_that_leads_back_to_its_sender_is_refused_whatever_the_address() {
    let here = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    // As a port that is forwarded, or another name of the host.
    let cable = Cable::new();
    cable.plug(&here.url);
    let mut refusals = 0;
    for url in [&here.url, &cable.url()] {
        let (result, events) = here.migrate("one", url);
        let refused = error(result);
        assert_eq!(refused.class, ErrorClass::Refused);
        assert!(
            refused.desc.contains("leads back to the daemon that sends"),
            "{refused}"
        );
        assert!(
            !refused.desc.contains("already on this host"),
            "one reason, the right one: {refused}"
        );
        assert!(events.iter().all(|event| event.ram.transferred == 0));
        assert_eq!(here.info("one").state, GuestState::Running);
        assert_eq!(here.guests().len(), 1);
        refusals += 1;
    }
    assert_eq!(refusals, 2);
}
