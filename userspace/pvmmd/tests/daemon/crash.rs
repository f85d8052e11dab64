// SPDX-License-Identifier: GPL-2.0
//! A crash at every step of a move: the source's daemon killed, the target's daemon killed, or the link cut, when either
//! side enters a phase.
//!
//! The list of steps is made of the phase enums, and [`fate`] says for each what must become of the guest, so that a
//! phase without an answer does not compile. A daemon that is killed takes its guests with it, as a host that loses power
//! does; what is held here is that nobody else loses or doubles a guest, and that the next move works.

use crate::cable::Cable;
use crate::host::{assert_whole, beats, error, move_of, name, ConsoleReader, Machine};
use crate::process::{Gate, Process, Step};
use pvmm_control::request::{Decision, Recover};
use pvmm_control::{ClientError, ErrorClass, GuestState, Reply, Request};
use pvmm_migrate::phase::{SourcePhase, TargetPhase};
use pvmm_vmm::vcpu::End;
use std::sync::Arc;

/// What crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Source,
    Target,
    Link,
}

/// What must become of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on at the source as if nothing had happened.
    Here,
    /// It runs at the target.
    There,
    /// It is paused at the source, and the target may run it.
    InDoubt,
    /// Its daemon was killed, and nobody else has anything of it.
    Gone,
}

/// What becomes of a guest when `victim` crashes while somebody is about to do `step`.
pub fn fate(step: Step, victim: Victim) -> Fate {
    use SourcePhase as S;
    use TargetPhase as T;
    match step {
        Step::Source(
            S::Connect
            | S::Handshake
            | S::Prepare
            | S::Precopy
            | S::Pause
            | S::LastPages
            | S::CpuState
            | S::DeviceState
            | S::Verify,
        )
        | Step::Target(
            T::Handshake
            | T::Prepare
            | T::Precopy
            | T::LastPages
            | T::CpuState
            | T::DeviceState
            | T::Verify,
        ) => match victim {
            Victim::Source => Fate::Gone,
            Victim::Target | Victim::Link => Fate::Here,
        },
        // The source is about to send the commit, and finds out only then.
        Step::Source(S::Commit) | Step::Target(T::Commit) => match victim {
            Victim::Source => Fate::Gone,
            Victim::Target | Victim::Link => Fate::InDoubt,
        },
        // The target has the commit.
        Step::Target(T::Start) => match victim {
            Victim::Source => Fate::There,
            Victim::Target | Victim::Link => Fate::InDoubt,
        },
        // The source knows that the guest runs there.
        Step::Source(S::Release) => match victim {
            Victim::Source | Victim::Link => Fate::There,
            Victim::Target => Fate::Gone,
        },
    }
}

/// Where the other side must be so that nothing is on its way that would decide otherwise.
pub fn companion(step: Step) -> Option<Step> {
    match step {
        // The target has not said that everything is in place.
        Step::Source(SourcePhase::Verify) => Some(Step::Target(TargetPhase::Verify)),
        // The commit has not been sent. `Start` is where it has certainly arrived.
        Step::Target(TargetPhase::Commit) => Some(Step::Source(SourcePhase::Commit)),
        Step::Source(_) | Step::Target(_) => None,
    }
}

fn steps() -> Vec<Step> {
    let sources = SourcePhase::ALL.iter().map(|phase| Step::Source(*phase));
    let targets = TargetPhase::ALL.iter().map(|phase| Step::Target(*phase));
    sources.chain(targets).collect()
}

/// Two daemons, a guest on the first, and the way between them.
struct Scene {
    gate: Arc<Gate>,
    here: Process,
    there: Process,
    cable: Arc<Cable>,
}

impl Scene {
    fn new() -> Self {
        let gate = Gate::new();
        let here = Process::start(&gate, &[], &[]);
        let there = Process::start(&gate, &[], &[]);
        let cable = Cable::new();
        cable.plug(&there.url);
        here.run("one", &[]).expect("nothing against it");
        Self {
            gate,
            here,
            there,
            cable,
        }
    }

    /// Moves the guest, crashes `victim` at `step`, and returns what the client was told.
    fn crash(&mut self, step: Step, victim: Victim) -> Result<Reply, ClientError> {
        let steps = [Some(step), companion(step)];
        steps
            .iter()
            .flatten()
            .for_each(|step| self.gate.hold(*step));
        let url = match victim {
            Victim::Link => self.cable.url(),
            Victim::Source | Victim::Target => self.there.url.clone(),
        };
        std::thread::scope(|scope| {
            let mut client = self.here.client();
            let mover = scope.spawn(move || client.call(move_of("one", &url)));
            steps
                .iter()
                .flatten()
                .for_each(|step| self.gate.wait_for(*step));
            match victim {
                Victim::Source => self.here.kill(),
                Victim::Target => self.there.kill(),
                Victim::Link => self.cable.cut(),
            }
            self.gate.open();
            mover.join().expect("no panic")
        })
    }

    fn recover(&self, decision: Decision) -> Result<Reply, ClientError> {
        self.here.call(Request::MigrateRecover(Recover {
            name: "one".into(),
            decision,
        }))
    }
}

/// The guest goes on there where it stopped here, where it has printed all of `before`.
fn goes_on_there(scene: &Scene, before: &str) {
    // One stream, even where a line was cut by the move.
    assert_whole(&(before.to_owned() + &scene.there.goes_on("one")));
}

fn check(step: Step, victim: Victim) {
    let due = fate(step, victim);
    eprintln!("{victim:?} crashes at {step:?}: {due:?}");
    let mut scene = Scene::new();
    let mut console = scene.here.console("one");
    console.wait_for("beat 3\n");
    let result = scene.crash(step, victim);
    match due {
        Fate::Here => {
            let failed = error(result);
            assert_eq!(failed.class, ErrorClass::Failed);
            for part in ["check", "goes on here as before"] {
                assert!(failed.desc.contains(part), "{failed}");
            }
            assert_eq!(scene.here.info("one").state, GuestState::Running);
            if victim == Victim::Target {
                scene.there.again();
            }
            next_move(&mut scene, &mut console);
        }
        Fate::There => {
            if victim == Victim::Source {
                result.expect_err("nobody could answer");
                // The killed daemon may have kept the last of what the guest printed.
                console.wait_end();
                let after = scene.there.goes_on("one");
                let (last, first) = (beats(&console.seen).pop(), beats(&after).first().copied());
                assert!(first > last, "{last:?} was followed by {first:?}");
                scene.here.again();
                assert_eq!(scene.here.guests(), []);
            } else {
                result.expect("the guest has moved");
                has_moved(&mut scene, &mut console);
            }
            let (back, _) = scene.there.migrate("one", &scene.here.url);
            back.expect("the next move works");
        }
        Fate::InDoubt => in_doubt(&mut scene, &mut console, step, victim, result),
        Fate::Gone => {
            if victim == Victim::Source {
                result.expect_err("nobody could answer");
                scene.there.wait_empty();
                scene.here.again();
                assert_eq!(scene.here.guests(), []);
            } else {
                result.expect("the guest had moved");
                assert_eq!(scene.here.info("one").end, Some(End::Moved));
                scene.there.again();
                assert_eq!(scene.there.guests(), []);
            }
            scene.here.run("one", &[]).expect("its name is free");
            let (again, _) = scene.here.migrate("one", &scene.there.url);
            again.expect("the next move works");
            scene.there.goes_on("one");
        }
    }
    assert_eq!(scene.here.running() + scene.there.running(), 1);
}

/// The guest goes on here, and can be moved.
fn next_move(scene: &mut Scene, console: &mut ConsoleReader) {
    scene.there.wait_empty();
    scene.here.goes_on("one");
    let (again, _) = scene.here.migrate("one", &scene.there.url);
    again.expect("the next move works");
    has_moved(scene, console);
}

/// The guest is over here, and goes on there.
fn has_moved(scene: &mut Scene, console: &mut ConsoleReader) {
    assert_eq!(scene.here.info("one").end, Some(End::Moved));
    console.wait_end();
    goes_on_there(scene, &console.seen);
}

fn in_doubt(
    scene: &mut Scene,
    console: &mut ConsoleReader,
    step: Step,
    victim: Victim,
    result: Result<Reply, ClientError>,
) {
    let doubt = error(result);
    for part in [
        "pvmmd list",
        "migrate-recover one --discard",
        "--resume-here",
    ] {
        assert!(doubt.desc.contains(part), "{doubt}");
    }
    assert_eq!(scene.here.info("one").state, GuestState::InDoubt);
    let refused = error(scene.here.call(Request::Resume(name("one"))));
    assert!(refused.desc.contains("migrate-recover"), "{refused}");
    if victim == Victim::Target {
        // A daemon that was started again cannot know what the killed one did. The operator does: its guests are gone.
        scene.there.again();
        let still = error(scene.recover(Decision::Ask));
        assert!(still.desc.contains("does not know this move"), "{still}");
        assert_eq!(scene.there.guests(), []);
        scene
            .recover(Decision::ResumeHere)
            .expect("nobody else runs it");
        next_move(scene, console);
        return;
    }
    scene.cable.plug(&scene.there.url);
    scene
        .recover(Decision::Ask)
        .expect("the target can be asked");
    if step == Step::Target(TargetPhase::Start) {
        has_moved(scene, console);
        let (back, _) = scene.there.migrate("one", &scene.here.url);
        back.expect("the next move works");
    } else {
        next_move(scene, console);
    }
}

fn check_all(victim: Victim) {
    let steps = steps();
    assert_eq!(steps.len(), SourcePhase::ALL.len() + TargetPhase::ALL.len());
    for step in steps {
        check(step, victim);
    }
}

#[test]
fn a_source_that_is_killed_at_any_step_leaves_no_second_guest_and_nothing_at_the_target() {
    check_all(Victim::Source);
}

#[test]
fn a_target_that_is_killed_at_any_step_leaves_the_guest_at_the_source_or_in_doubt() {
    check_all(Victim::Target);
}

#[test]
fn a_link_that_is_cut_at_any_step_leaves_the_guest_on_exactly_one_side() {
    check_all(Victim::Link);
}
