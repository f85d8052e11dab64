// SPDX-License-Identifier: GPL-2.0
//! A move away from here: started by a request, carried out in a thread of its own, watched by any number of clients. A
//! client that goes away does not stop it.

use super::guest::Guest;
use super::source::Leaving;
use super::{lock, spawn, Daemon, SourceHook};
use pvmm_control::request::{Decision, Migrate};
use pvmm_control::{ControlError, ErrorClass};
use pvmm_migrate::source::{self, Recovered};
use pvmm_migrate::{Connect, Failure, Job, Peer, SourceOptions, Url};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What a move came to.
pub type Outcome = Result<(), ControlError>;

/// A move.
pub struct Move {
    job: Job,
    target: Peer,
    outcome: Mutex<Option<Outcome>>,
    over: Condvar,
}

impl Move {
    fn new(target: Peer) -> Arc<Self> {
        Arc::new(Self {
            job: Job::new(),
            target,
            outcome: Mutex::default(),
            over: Condvar::new(),
        })
    }

    /// Its statistics and the handle that cancels it.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// If its thread has ended. A guest in doubt is not being moved any more.
    pub fn is_over(&self) -> bool {
        lock(&self.outcome).is_some()
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.over
            .wait_timeout_while(lock(&self.outcome), limit, |outcome| outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    fn finish(&self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.over.notify_all();
    }
}

/// Ends a move's record even if its thread panics or cannot be started.
struct FinishGuard(Arc<Move>);

impl Drop for FinishGuard {
    fn drop(&mut self) {
        if !self.0.is_over() {
            self.0.finish(Err(ControlError::failed(
                "the thread of the move ended unexpectedly; see the daemon's log",
            )));
        }
    }
}

/// The engine's options as this daemon's operator wants them.
fn defaults(daemon: &Daemon) -> SourceOptions {
    let mut options = SourceOptions::default();
    if let Some(limit) = daemon.options().recover_limit {
        options.recover_limit = limit;
    }
    if let Some(limit) = daemon.options().stall_limit {
        options.stall_limit = limit;
    }
    if let Some(SourceHook(hook)) = daemon.options().source_hook.clone() {
        options.hook = Some(Box::new(move |phase| hook(phase)));
    }
    options.sessions = Some(Arc::clone(daemon.sessions()));
    options
}

/// The engine's options for a request.
fn options(daemon: &Daemon, request: &Migrate) -> Result<SourceOptions, ControlError> {
    let mut options = defaults(daemon);
    if let Some(mode) = &request.mode {
        options.mode = mode.parse().map_err(ControlError::invalid)?;
    }
    if let Some(limit) = request.downtime_limit {
        options.downtime_limit = Duration::from_millis(limit);
    }
    if request.max_bandwidth == Some(0) {
        return Err(ControlError::invalid(
            "a bandwidth of 0 would never move anything; leave it out for no limit",
        ));
    }
    options.bandwidth = request.max_bandwidth;
    options.timeout = request.timeout.map(Duration::from_secs);
    if let Some(action) = &request.timeout_action {
        options.timeout_action = action.parse().map_err(ControlError::invalid)?;
    }
    Ok(options)
}

/// Why a guest cannot move whatever the peer says: what it did to a device is not known.
pub fn unrecorded(guest: &Guest) -> Option<(usize, String)> {
    let (index, device) = guest
        .devices()
        .iter()
        .enumerate()
        .find(|(_, device)| !device.spec.recorded)?;
    let why = format!(
        "what the guest did to {} is not known; start guests that are to move without record=off",
        device.spec
    );
    Some((index, why))
}

/// A guest that is to be moved, and where to.
fn prepare(
    daemon: &Daemon,
    guest: &Guest,
    request: &Migrate,
) -> Result<(Leaving, Peer, SourceOptions), ControlError> {
    let url: Url = request.url.parse().map_err(ControlError::invalid)?;
    let options = options(daemon, request)?;
    let vm = guest.vm()?;
    let capabilities = daemon
        .hypervisor()
        .capabilities()
        .map_err(ControlError::failed)?;
    let leaving = Leaving::new(vm, &capabilities)?;
    let peer = Peer {
        url,
        security: daemon.options().security.clone(),
    };
    Ok((leaving, peer, options))
}

/// Finds out whether a guest could be moved, and what that would cost.
pub fn check(
    daemon: &Daemon,
    guest: &Guest,
    request: &Migrate,
) -> Result<source::Check, ControlError> {
    let (mut leaving, peer, options) = prepare(daemon, guest, request)?;
    let _checking = guest.begin_check()?;
    source::check(&mut leaving, &peer, &options).map_err(ControlError::failed)
}

/// Starts to move a guest away.
pub fn start(
    daemon: &Daemon,
    guest: &Arc<Guest>,
    request: &Migrate,
) -> Result<Arc<Move>, ControlError> {
    let (mut leaving, peer, options) = prepare(daemon, guest, request)?;
    if let Some((_, why)) = unrecorded(guest) {
        let text = format!("{} cannot be moved: {why}", guest.name());
        return Err(ControlError::new(ErrorClass::Refused, text));
    }
    let new = Move::new(peer);
    guest.begin_move(&new)?;
    let (this, guest) = (Arc::clone(&new), Arc::clone(guest));
    // Made here: it ends the move's record even if the thread does not start.
    let guard = FinishGuard(Arc::clone(&new));
    spawn(format!("move {}", guest.name()), move || {
        tracing::info!(guest = guest.name(), target = this.target.name(), "moving");
        let outcome = match source::migrate(&mut leaving, &this.target, &options, &this.job) {
            Ok(report) => {
                for note in &report.notes {
                    tracing::warn!(guest = guest.name(), "{note}");
                }
                guest.finish(pvmm_vmm::vcpu::End::Moved);
                Ok(())
            }
            Err(failure) => Err(failed(&guest, *failure)),
        };
        this.finish(outcome);
        drop(guard);
    })?;
    Ok(new)
}

/// Resolves a doubt as the operator decided.
pub fn recover(guest: &Arc<Guest>, decision: Decision, daemon: &Daemon) -> Outcome {
    let name = guest.name();
    let not_in_doubt = || {
        ControlError::failed(format!(
            "there is no doubt where guest \"{name}\" runs; `pvmmd info {name}` says what it does"
        ))
    };
    let (vm, this) = (guest.vm()?, guest.current_move().ok_or_else(not_in_doubt)?);
    let capabilities = daemon
        .hypervisor()
        .capabilities()
        .map_err(ControlError::failed)?;
    let mut leaving = Leaving::new(vm, &capabilities)?;
    let Some(in_doubt) = guest.take_doubt() else {
        // Somebody may be finding out already, or the move may go on.
        guest.check_free()?;
        return Err(not_in_doubt());
    };
    let (target, job) = (&this.target, &this.job);
    let recovered = match decision {
        Decision::Ask => source::recover(&mut leaving, *in_doubt, target, &defaults(daemon), job),
        Decision::ResumeHere => source::resume_here(&mut leaving, *in_doubt, target, job),
        Decision::Discard => Ok(source::discard(&mut leaving, *in_doubt, job)),
    };
    let notes = match recovered {
        Ok(Recovered::AtTarget { notes }) => {
            guest.finish(pvmm_vmm::vcpu::End::Moved);
            notes
        }
        Ok(Recovered::ResumedHere { notes }) => {
            guest.set_here();
            notes
        }
        Err(failure) => {
            let error = failed(guest, *failure);
            // Unless the doubt remains: then it has been put back.
            guest.set_here();
            return Err(error);
        }
    };
    for note in notes {
        tracing::warn!(guest = name, "{note}");
    }
    Ok(())
}

/// Keeps a doubt, and tells a client why a move failed.
fn failed(guest: &Guest, failure: Failure) -> ControlError {
    let class = match failure.exit_code() {
        3 => ErrorClass::Cancelled,
        4 => ErrorClass::Refused,
        _ => ErrorClass::Failed,
    };
    let error = ControlError::new(class, failure.to_string());
    tracing::warn!(guest = guest.name(), %error, "the move failed");
    if let pvmm_migrate::Guest::InDoubt(in_doubt) = failure.guest {
        guest.set_in_doubt(in_doubt);
    }
    error
}
