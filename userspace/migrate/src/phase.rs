// SPDX-License-Identifier: GPL-2.0
//! The phases of a move, one enum per side, and `run_phase`, the one place through which each of them goes: it
//! traces, times, calls the operator's hook and gives the phase a [`Scope`] that knows when to stop.
//!
//! | source | target |
//! |---|---|
//! | connect, handshake | handshake: protocol version |
//! | prepare: describe, dirty log on | prepare: compare, allocate, claim |
//! | precopy: rounds while the guest runs | precopy |
//! | pause, last-pages | last-pages |
//! | cpu-state, device-state | cpu-state, device-state |
//! | verify: wait for the target's word | verify: read back, say *prepared* |
//! | commit: from here on only the target may run it | commit: wait for it; start: run the guest |
//! | release | |

use crate::error::Error;
use crate::job::Job;
use crate::options::PhaseHook;
use std::fmt;
use std::time::{Duration, Instant};

macro_rules! phases {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// All phases, in their order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in statistics, logs and errors.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

phases! {
    /// Phases of the sending side.
    SourcePhase {
        /// Reaching the target.
        Connect = "connect",
        /// Agreeing on a protocol version, measuring the round trip.
        Handshake = "handshake",
        /// Describing the guest; the target compares, allocates and claims, or refuses. Dirty tracking starts.
        Prepare = "prepare",
        /// Copying memory while the guest runs. Left out by stop-and-copy.
        Precopy = "precopy",
        /// Stopping the guest.
        Pause = "pause",
        /// The pages that are left.
        LastPages = "last-pages",
        /// vCPUs.
        CpuState = "cpu-state",
        /// Chipset, recorded devices, userspace devices, clock.
        DeviceState = "device-state",
        /// Waiting until the target has restored and verified everything.
        Verify = "verify",
        /// Handing over. Once the commit has been sent, only the target's word lets the guest run here again.
        Commit = "commit",
        /// Giving up what the guest held here.
        Release = "release",
    }
}

phases! {
    /// Phases of the receiving side.
    TargetPhase {
        /// Agreeing on a protocol version.
        Handshake = "handshake",
        /// Comparing the description with this host; memory is allocated, devices are claimed.
        Prepare = "prepare",
        /// Receiving memory while the guest runs at the source.
        Precopy = "precopy",
        /// The pages that are left; the guest is paused.
        LastPages = "last-pages",
        /// vCPUs.
        CpuState = "cpu-state",
        /// Chipset, clock, recorded devices, userspace devices.
        DeviceState = "device-state",
        /// Last check, and the word to the source that everything is in place.
        Verify = "verify",
        /// Waiting for the commit.
        Commit = "commit",
        /// Running the guest.
        Start = "start",
    }
}

/// What bounds a phase while it works: a cancel, a deadline. Whoever blocks asks [`Scope::check`] at least every
/// [`crate::transport::POLL_INTERVAL`].
#[derive(Debug)]
pub struct Scope<'a> {
    phase: &'static str,
    cancel: Option<&'a Job>,
    deadline: Option<(Instant, Duration)>,
}

impl Scope<'_> {
    /// A scope that ends after `limit`, without a job that could cancel it.
    pub fn with_limit(phase: &'static str, limit: Duration) -> Self {
        Self {
            phase,
            cancel: None,
            deadline: Instant::now().checked_add(limit).map(|at| (at, limit)),
        }
    }

    /// Fails when the job was cancelled or the phase's deadline has passed.
    pub fn check(&self) -> Result<(), Error> {
        if self.cancel.is_some_and(Job::is_cancel_requested) {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some((at, limit)) if Instant::now() >= at => Err(Error::Deadline {
                phase: self.phase,
                limit,
            }),
            _ => Ok(()),
        }
    }
}

/// How a phase is bounded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// A cancel request ends it.
    pub cancellable: bool,
    /// It must be over then; the duration is for the message.
    pub deadline: Option<(Instant, Duration)>,
}

/// The part of both enums that [`run_phase`] needs.
pub(crate) trait Phase: Copy {
    fn text(self) -> &'static str;
    /// Whether the commit lies behind it, so that nothing may fail the move any more.
    fn is_after_commit(self) -> bool;
}

impl Phase for SourcePhase {
    fn text(self) -> &'static str {
        self.name()
    }
    fn is_after_commit(self) -> bool {
        self > Self::Commit
    }
}

impl Phase for TargetPhase {
    fn text(self) -> &'static str {
        self.name()
    }
    fn is_after_commit(self) -> bool {
        // A target that cannot start the guest says so, and the source goes on.
        false
    }
}

/// Runs one phase and returns what it made and how long it took.
pub(crate) fn run_phase<P: Phase, T>(
    job: &Job,
    hook: Option<&PhaseHook<P>>,
    phase: P,
    bounds: Bounds,
    body: impl FnOnce(&Scope<'_>) -> Result<T, Error>,
) -> Result<(T, Duration), Error> {
    let name = phase.text();
    let scope = Scope {
        phase: name,
        cancel: bounds.cancellable.then_some(job),
        deadline: bounds.deadline,
    };
    let _span = tracing::info_span!("migrate", phase = name).entered();
    tracing::debug!("begins");
    job.begin_phase(name);
    let begin = Instant::now();
    let result = scope
        .check()
        .and_then(|()| call_hook(hook, phase))
        .and_then(|()| body(&scope));
    let duration = begin.elapsed();
    job.end_phase(name, duration);
    match result {
        Ok(value) => {
            tracing::debug!(ms = duration.as_millis(), "done");
            Ok((value, duration))
        }
        Err(error) => {
            tracing::warn!(ms = duration.as_millis(), %error, "failed");
            Err(error)
        }
    }
}

fn call_hook<P: Phase>(hook: Option<&PhaseHook<P>>, phase: P) -> Result<(), Error> {
    let Some(hook) = hook else { return Ok(()) };
    match hook(phase) {
        Ok(()) => Ok(()),
        Err(reason) if phase.is_after_commit() => {
            tracing::warn!(%reason, "the hook failed after the commit, which changes nothing");
            Ok(())
        }
        Err(reason) => Err(Error::Hook {
            phase: phase.text(),
            reason,
        }),
    }
}
