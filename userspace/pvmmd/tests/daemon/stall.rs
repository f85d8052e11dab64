// SPDX-License-Identifier: GPL-2.0
//! Links that carry nothing for a while: less than the stall limit is survived, more ends the move where it was.

use crate::cable::Cable;
use crate::crash::{companion, fate, Fate, Victim};
use crate::host::{assert_whole, error, Host, Machine};
use crate::process::{Gate, Step};
use pvmm_control::request::{Decision, Recover};
use pvmm_control::{ClientError, ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::phase::SourcePhase;
use pvmm_migrate::TargetOptions;
use std::sync::Arc;
use std::time::Duration;

/// Two hosts, a guest on the first, and a cable that stalls when the source enters a phase.
struct Scene {
    gate: Arc<Gate>,
    here: Host,
    there: Host,
    cable: Arc<Cable>,
}

impl Scene {
    fn new(stall_limit: Duration) -> Self {
        let gate = Gate::new();
        let hook = gate.source_hook();
        let here = Host::with_options(TargetOptions::default(), |options| {
            options.stall_limit = Some(stall_limit);
            options.source_hook = Some(hook);
        });
        let target_options = TargetOptions {
            stall_limit,
            hook: Some(gate.target_hook()),
            ..TargetOptions::default()
        };
        let there = Host::new(&[], target_options);
        let cable = Cable::new();
        cable.plug(&there.url);
        here.run("one", &[]).expect("nothing against it");
        here.console("one").wait_for("beat 3\n");
        Self {
            gate,
            here,
            there,
            cable,
        }
    }

    /// Moves the guest; in `phase` the cable stalls, for `length` or until it is told to carry on.
    fn stall(&self, phase: SourcePhase, length: Option<Duration>) -> Result<Reply, ClientError> {
        let step = Step::Source(phase);
        let steps = [Some(step), companion(step)];
        steps
            .iter()
            .flatten()
            .for_each(|step| self.gate.hold(*step));
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| self.here.migrate("one", &self.cable.url()).0);
            steps
                .iter()
                .flatten()
                .for_each(|step| self.gate.wait_for(*step));
            self.cable.stall();
            self.gate.open();
            if let Some(length) = length {
                // The stall itself, not a wait for something.
                std::thread::sleep(length);
                self.cable.flow();
            }
            mover.join().expect("no panic")
        })
    }

    /// The guest runs there, and has lost nothing on its way.
    fn has_moved(&self) {
        let mut before = self.here.console("one");
        before.wait_end();
        assert_whole(&(before.seen + &self.there.goes_on("one")));
        assert_eq!((self.here.running(), self.there.running()), (0, 1));
    }
}

#[test]
fn a_short_stall_at_any_step_is_survived() {
    let mut phases = 0;
    for &phase in SourcePhase::ALL {
        let scene = Scene::new(Duration::from_secs(30));
        scene
            .stall(phase, Some(Duration::from_millis(100)))
            .unwrap_or_else(|error| panic!("{phase}: {error}"));
        scene.has_moved();
        phases += 1;
    }
    assert!(phases > 8);
}

#[test]
fn a_stall_of_seconds_within_the_limit_is_survived() {
    for ms in [300, 1000, 3000] {
        let scene = Scene::new(Duration::from_secs(30));
        scene
            .stall(SourcePhase::Precopy, Some(Duration::from_millis(ms)))
            .unwrap_or_else(|error| panic!("{ms} ms: {error}"));
        scene.has_moved();
    }
}

#[test]
fn a_stall_longer_than_the_limit_ends_the_move_with_the_guest_at_the_source() {
    let mut phases = 0;
    for &phase in SourcePhase::ALL {
        // Nothing else of a move is as long, even on a busy machine.
        let scene = Scene::new(Duration::from_secs(2));
        let result = scene.stall(phase, None);
        match fate(Step::Source(phase), Victim::Link) {
            Fate::Here => {
                let failed = error(result);
                assert_eq!(failed.class, ErrorClass::Failed, "{phase}: {failed}");
                // Both sides have the same limit, and the first to reach it closes the link.
                let stalled = ["carried nothing for 2 s", "check the network"];
                let closed = ["closed the link", "its log says why"];
                let says = |parts: [&str; 2]| parts.iter().all(|part| failed.desc.contains(part));
                assert!(says(stalled) || says(closed), "{phase}: {failed}");
                assert!(failed.desc.contains("goes on here"), "{phase}: {failed}");
                assert_eq!(scene.here.info("one").state, GuestState::Running);
            }
            Fate::InDoubt => {
                let doubt = error(result);
                assert!(doubt.desc.contains("migrate-recover one"), "{doubt}");
                assert_eq!(scene.here.info("one").state, GuestState::InDoubt);
                scene.cable.flow();
                let ask = Request::MigrateRecover(Recover {
                    name: "one".into(),
                    decision: Decision::Ask,
                });
                scene.here.call(ask).expect("the target can be asked");
            }
            Fate::There | Fate::Gone => {
                result.expect("the guest had moved");
            }
        }
        scene.cable.flow();
        if scene.here.running() == 1 {
            scene.there.wait_empty();
            let (again, _) = scene.here.migrate("one", &scene.cable.url());
            again.unwrap_or_else(|error| panic!("{phase}: the next move fails: {error}"));
        }
        scene.has_moved();
        phases += 1;
    }
    assert!(phases > 8);
}
