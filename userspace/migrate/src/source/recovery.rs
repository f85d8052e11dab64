// SPDX-License-Identifier: GPL-2.0
//! After a failure: letting the guest go on at the source, asking the target for the outcome, and the operator's decision.
//!
//! The rules that keep the guest on exactly one side are in [`crate::session`].

use crate::channel::{printable, Channel};
use crate::clock;
use crate::devices;
use crate::error::{Error, Failure, Guest};
use crate::job::Job;
use crate::message::OutcomeAnswer;
use crate::options::SourceOptions;
use crate::phase::Scope;
use crate::session::{Held, InDoubt, Outcome, SessionId};
use crate::statistics::Status;
use crate::transport::Connect;
use crate::vm::{CapturedDevice, RunState, SourceVm, VmError};
use crate::wire::{Offer, Purpose, PROTOCOL_VERSIONS};
use pvmm_uapi::Clock;
use std::time::{Duration, Instant};

/// Between two questions to a target that could not be reached.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long [`resume_here`] asks the target before it believes the operator.
const LAST_QUESTION: Duration = Duration::from_secs(5);
const PHASE: &str = "recover";

/// How a doubt was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// The target runs the guest; what it held here has been released. Notes say what could not be.
    AtTarget {
        /// What went wrong.
        notes: Vec<String>,
    },
    /// The guest goes on here, as before the move. Notes say what could not be put back.
    ResumedHere {
        /// What went wrong.
        notes: Vec<String>,
    },
}

/// Asks the target again what became of the move (`pvmmd migrate-recover NAME`), for at most
/// [`SourceOptions::recover_limit`], and acts on the answer.
///
/// # Errors
///
/// The doubt remains ([`Guest::InDoubt`]), or the guest could not be resumed.
pub fn recover(
    vm: &mut dyn SourceVm,
    in_doubt: InDoubt,
    target: &dyn Connect,
    options: &SourceOptions,
    job: &Job,
) -> Result<Recovered, Box<Failure>> {
    let asked = ask(
        target,
        in_doubt.session,
        options.recover_limit,
        options.stall_limit,
    );
    match asked {
        Ok(Outcome::Committed) => Ok(at_target(vm, job)),
        Ok(Outcome::NotCommitted { reason }) => here(vm, in_doubt, job, &reason),
        Ok(Outcome::Unknown | Outcome::Starting) => {
            let reason = "it does not know this move".to_owned();
            Err(still(in_doubt, job, reason))
        }
        Err(why) => Err(still(in_doubt, job, format!("it cannot be asked: {why}"))),
    }
}

/// The operator says that the target does not run the guest (`--resume-here`). If the target can be reached it is asked
/// once more, and its answer counts: a guest that runs there is not run here.
///
/// # Errors
///
/// The target runs it, or the guest could not be resumed.
pub fn resume_here(
    vm: &mut dyn SourceVm,
    in_doubt: InDoubt,
    target: &dyn Connect,
    job: &Job,
) -> Result<Recovered, Box<Failure>> {
    match ask(target, in_doubt.session, LAST_QUESTION, LAST_QUESTION) {
        Ok(Outcome::Committed) => {
            let reason = "it says that it does; use --discard here".to_owned();
            Err(still(in_doubt, job, reason))
        }
        Ok(Outcome::Starting) => {
            let reason = "it says that it is starting it; ask again".to_owned();
            Err(still(in_doubt, job, reason))
        }
        Ok(Outcome::NotCommitted { .. } | Outcome::Unknown) | Err(_) => {
            here(vm, in_doubt, job, "the operator resumed it at the source")
        }
    }
}

/// The operator says that the target runs the guest (`--discard`): what it holds here is released.
pub fn discard(vm: &mut dyn SourceVm, in_doubt: InDoubt, job: &Job) -> Recovered {
    tracing::info!(session = %in_doubt.session, "the operator discards the guest at the source");
    at_target(vm, job)
}

fn at_target(vm: &mut dyn SourceVm, job: &Job) -> Recovered {
    let mut notes = Vec::new();
    if let Err(error) = vm.release() {
        notes.push(format!("cannot release the guest that has moved: {error}"));
    }
    job.finish(Status::Completed, None);
    Recovered::AtTarget { notes }
}

fn here(
    vm: &mut dyn SourceVm,
    in_doubt: InDoubt,
    job: &Job,
    reason: &str,
) -> Result<Recovered, Box<Failure>> {
    let mut notes = Vec::new();
    let guest = let_go_on(vm, in_doubt.held, &mut notes);
    let error = Error::Outcome(format!("the move did not happen: {}", printable(reason)));
    match guest {
        Guest::Unchanged => {
            job.finish(Status::Failed, Some(error.to_string()));
            Ok(Recovered::ResumedHere { notes })
        }
        guest => {
            let failure = Box::new(Failure {
                error,
                phase: PHASE,
                guest,
                notes,
            });
            job.finish(Status::Failed, Some(failure.to_string()));
            Err(failure)
        }
    }
}

fn still(in_doubt: InDoubt, job: &Job, reason: String) -> Box<Failure> {
    let failure = Box::new(Failure {
        error: Error::Outcome("the outcome of the move is still not known".into()),
        phase: PHASE,
        guest: Guest::InDoubt(Box::new(InDoubt { reason, ..in_doubt })),
        notes: Vec::new(),
    });
    job.finish(Status::InDoubt, Some(failure.to_string()));
    failure
}

/// Asks for the outcome until there is an answer, at most `limit`. The error is why there was none.
pub(super) fn ask(
    target: &dyn Connect,
    session: SessionId,
    limit: Duration,
    stall_limit: Duration,
) -> Result<Outcome, String> {
    let scope = Scope::with_limit(PHASE, limit);
    loop {
        let why = match ask_once(target, session, stall_limit, &scope) {
            Ok(Outcome::Starting) => "the target is still starting the guest".to_owned(),
            Ok(outcome) => return Ok(outcome),
            Err(error) => error.to_string(),
        };
        tracing::debug!(%session, %why, "asking again");
        let until = Instant::now() + RETRY_INTERVAL;
        while Instant::now() < until {
            if scope.check().is_err() {
                return Err(why);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn ask_once(
    target: &dyn Connect,
    session: SessionId,
    stall_limit: Duration,
    scope: &Scope<'_>,
) -> Result<Outcome, Error> {
    scope.check()?;
    let link = target
        .connect()
        .map_err(|source| Error::connect(target.name(), source))?;
    let mut channel = Channel::new(link, stall_limit)?;
    let offer = Offer {
        purpose: Purpose::Outcome,
        versions: PROTOCOL_VERSIONS.to_vec(),
        session,
    };
    channel.offer(scope, &offer)?;
    let answer: OutcomeAnswer = channel.expect(scope)?;
    Ok(answer.outcome)
}

/// Lets the guest go on here as if nothing had happened: devices put back, dirty tracking off, the clock advanced by the
/// pause.
pub(super) fn let_go_on(vm: &mut dyn SourceVm, held: Held, notes: &mut Vec<String>) -> Guest {
    for (device, captured) in &held.captured {
        if let Err(error) = put_back(vm, *device, captured) {
            tracing::warn!(device, %error, "a device could not be put back");
            notes.push(format!("after the failure: {error}"));
        }
    }
    if held.dirty_log {
        if let Err(error) = vm.stop_dirty_log() {
            notes.push(format!(
                "after the failure: cannot stop dirty tracking: {error}"
            ));
        }
    }
    let (RunState::Running, Some(paused_at)) = (held.state, held.paused_at) else {
        return Guest::Unchanged;
    };
    match resume(vm, held.clock, paused_at) {
        Ok(()) => Guest::Unchanged,
        Err(error) => Guest::Paused(error.to_string()),
    }
}

/// Lets a guest run that was paused at `paused_at`, with the pause counted. `clock` is what was captured of its time.
pub(super) fn resume(
    vm: &mut dyn SourceVm,
    clock: Option<Clock>,
    paused_at: Instant,
) -> Result<(), VmError> {
    let clock = clock.or_else(|| vm.capture_clock().ok());
    vm.resume(clock.map(|clock| clock::advance(&clock, paused_at.elapsed())))
}

/// A capture may change what it reads (it drains a receive FIFO): the plan that would restore the device on the peer puts
/// it back here. It is captured once more before, since a real device goes on receiving; the recorder still has what the
/// first capture took.
pub(super) fn put_back(
    vm: &mut dyn SourceVm,
    device: u32,
    captured: &CapturedDevice,
) -> Result<(), VmError> {
    let again = vm.capture_device(device);
    let captured = match &again {
        Ok(again) => again,
        Err(error) => {
            tracing::warn!(
                device,
                ?error,
                "cannot be captured again; putting back what there is"
            );
            captured
        }
    };
    let steps = devices::plan(device, captured)?;
    let executed = vm.execute(device, &steps)?;
    devices::check(device, captured.kind, &steps, executed)?;
    Ok(())
}
