// SPDX-License-Identifier: GPL-2.0
//! Several guests and several moves at once.

use crate::host::{error, move_of, name, Host, Machine};
use crate::process::{Gate, Step};
use pvmm_control::{GuestState, Reply, Request};
use pvmm_migrate::phase::SourcePhase;
use pvmm_migrate::TargetOptions;
use std::sync::Arc;

const PRECOPY: Step = Step::Source(SourcePhase::Precopy);

/// A host whose moves are held in pre-copy.
fn held() -> (Arc<Gate>, Host) {
    let gate = Gate::new();
    let hook = gate.source_hook();
    let host = Host::with_options(TargetOptions::default(), |options| {
        options.source_hook = Some(hook);
    });
    gate.hold(PRECOPY);
    (gate, host)
}

#[test]
fn a_second_move_of_a_guest_is_refused_by_its_name_and_the_first_goes_on() {
    let (gate, here) = held();
    let (there, elsewhere) = (Host::plain(), Host::plain());
    here.run("one", &[]).expect("nothing against it");
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| here.migrate("one", &there.url).0);
        gate.wait_for(PRECOPY);
        for url in [&there.url, &elsewhere.url] {
            let refused = error(here.call(move_of("one", url)));
            for part in ["guest \"one\" is being moved", "migrate-cancel one"] {
                assert!(refused.desc.contains(part), "{refused}");
            }
        }
        gate.open();
        mover.join().expect("no panic").expect("it went on");
    });
    assert_eq!((there.running(), elsewhere.guests()), (1, vec![]));
}

#[test]
fn of_moves_that_are_started_at_the_same_time_one_wins() {
    let (gate, here) = held();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let won = std::thread::scope(|scope| {
        let movers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| here.migrate("one", &there.url).0))
            .collect();
        gate.wait_for(PRECOPY);
        // The losers are answered at once, the winner when it may go on.
        let limit = std::time::Instant::now() + crate::host::LIMIT;
        while movers.iter().filter(|mover| !mover.is_finished()).count() > 1 {
            assert!(std::time::Instant::now() < limit, "they wait");
            std::thread::yield_now();
        }
        gate.open();
        let results = movers
            .into_iter()
            .map(|mover| mover.join().expect("no panic"));
        results.filter(Result::is_ok).count()
    });
    assert_eq!((won, here.running(), there.running()), (1, 0, 1));
}

#[test]
fn two_guests_move_at_once_to_one_host_and_past_each_other() {
    let (gate, here) = held();
    let hook = gate.source_hook();
    let there = Host::with_options(TargetOptions::default(), |options| {
        options.source_hook = Some(hook);
    });
    for guest in ["one", "two"] {
        here.run(guest, &[]).expect("nothing against it");
    }
    there.run("three", &[]).expect("nothing against it");
    std::thread::scope(|scope| {
        let movers = [
            scope.spawn(|| here.migrate("one", &there.url).0),
            scope.spawn(|| here.migrate("two", &there.url).0),
            scope.spawn(|| there.migrate("three", &here.url).0),
        ];
        gate.wait_for_times(PRECOPY, 3);
        for (host, names) in [(&here, &["one", "two"][..]), (&there, &["three"])] {
            for guest in names {
                let info = host.info(guest);
                assert_eq!((info.state, info.migrating), (GuestState::Running, true));
            }
        }
        gate.open();
        for mover in movers {
            mover.join().expect("no panic").expect("nothing against it");
        }
    });
    assert_eq!((here.running(), there.running()), (1, 2));
    for (host, guest) in [(&there, "one"), (&there, "two"), (&here, "three")] {
        host.goes_on(guest);
    }
}

#[test]
fn a_client_that_is_killed_does_not_stop_its_move_and_another_can_follow_it() {
    let (gate, here) = held();
    let there = Host::plain();
    here.run("one", &[]).expect("nothing against it");
    let mut client = here.program(&["migrate", "one", &there.url.to_string()]);
    let mut client = client.spawn().expect("the program is built");
    gate.wait_for(PRECOPY);
    client.kill().expect("it is a child");
    client.wait().expect("it is a child");
    let Ok(Reply::Job(job)) = here.call(Request::JobInfo(name("one"))) else {
        panic!("it is being moved");
    };
    assert_eq!(job.phase, "precopy");
    let shown = here
        .program(&["job-info", "one"])
        .output()
        .expect("the program is built");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("precopy"), "{shown}");
    gate.open();
    there.wait_state("one", GuestState::Running);
    here.wait_state("one", GuestState::Ended);
    let Ok(Reply::Job(job)) = here.call(Request::JobInfo(name("one"))) else {
        panic!("it was moved");
    };
    assert_eq!(job.progress_percent, 100);
}
