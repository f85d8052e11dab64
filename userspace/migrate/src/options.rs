// SPDX-License-Identifier: GPL-2.0
//! What an operator can choose about a move. Names are virsh's, defaults QEMU's where it has one.

use crate::phase::{SourcePhase, TargetPhase};
use crate::session::Sessions;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// When the guest stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Memory is copied while the guest runs, until the rest fits into the downtime limit.
    #[default]
    Precopy,
    /// The guest is paused first, everything is copied once. Shortest total time, longest downtime.
    Stopcopy,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "precopy" => Ok(Self::Precopy),
            "stopcopy" => Ok(Self::Stopcopy),
            _ => Err(format!(
                "unknown mode \"{text}\": precopy and stopcopy are possible"
            )),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Precopy => "precopy",
            Self::Stopcopy => "stopcopy",
        })
    }
}

/// What happens when pre-copy has not come to an end within the timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeoutAction {
    /// The move fails, the guest goes on at the source.
    #[default]
    Cancel,
    /// The guest is paused and the move finishes, however long the downtime becomes.
    Suspend,
    /// There is no timeout: pre-copy goes on until the rest fits into the downtime limit or somebody cancels.
    Ignore,
}

impl FromStr for TimeoutAction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cancel" => Ok(Self::Cancel),
            "suspend" => Ok(Self::Suspend),
            "ignore" => Ok(Self::Ignore),
            _ => Err(format!(
                "unknown timeout action \"{text}\": cancel, suspend and ignore are possible"
            )),
        }
    }
}

/// Called when a phase begins; an error fails the move in that phase. For hooks of an operator's scripts, and for
/// injecting failures. A phase after the commit cannot be failed: the error is only logged there.
pub type PhaseHook<P> = dyn Fn(P) -> Result<(), String> + Send + Sync;

/// Options of the sending side.
pub struct SourceOptions {
    /// `--mode`.
    pub mode: Mode,
    /// `--downtime-limit`: how long the guest may be paused, as predicted when pre-copy decides to end. Default 300 ms.
    pub downtime_limit: Duration,
    /// `--bandwidth`: bytes per second while the guest runs; `None` is no limit. Not applied while it is paused.
    pub bandwidth: Option<u64>,
    /// `--timeout`: how long the move may take until the guest is paused. `None` is 300 s or 150 s for each GiB of
    /// memory, whichever is longer.
    pub timeout: Option<Duration>,
    /// `--timeout-action`.
    pub timeout_action: TimeoutAction,
    /// How long the link may carry nothing at all before it counts as lost. Default 30 s.
    pub stall_limit: Duration,
    /// How long the guest may be paused, at most, before the move is given up and it goes on here. Does not apply where
    /// the operator asked for a pause of any length (`stopcopy`, `suspend`). Default 60 s.
    pub pause_limit: Duration,
    /// How long the guest is given, in parts, to finish what a device of the host is in the middle of when it is paused.
    /// Default 10 s.
    pub rest_limit: Duration,
    /// How long the source asks the target whether it committed when the answer to the commit got lost. Default 60 s.
    pub recover_limit: Duration,
    /// What CPU and device state are assumed to cost inside the downtime, on both hosts together. Default 30 ms.
    pub state_estimate: Duration,
    /// The moves that arrive at the same daemon, if it takes any: a move that comes back to its own sender is refused
    /// there as what it is.
    pub sessions: Option<Arc<Sessions>>,
    /// Called at the start of every phase.
    pub hook: Option<Box<PhaseHook<SourcePhase>>>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            mode: Mode::Precopy,
            downtime_limit: Duration::from_millis(300),
            bandwidth: None,
            timeout: None,
            timeout_action: TimeoutAction::Cancel,
            stall_limit: Duration::from_secs(30),
            pause_limit: Duration::from_secs(60),
            rest_limit: Duration::from_secs(10),
            recover_limit: Duration::from_secs(60),
            state_estimate: Duration::from_millis(30),
            sessions: None,
            hook: None,
        }
    }
}

impl fmt::Debug for SourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceOptions")
            .field("mode", &self.mode)
            .field("downtime_limit", &self.downtime_limit)
            .field("bandwidth", &self.bandwidth)
            .field("timeout", &self.timeout)
            .field("timeout_action", &self.timeout_action)
            .field("stall_limit", &self.stall_limit)
            .field("pause_limit", &self.pause_limit)
            .field("rest_limit", &self.rest_limit)
            .field("recover_limit", &self.recover_limit)
            .field("state_estimate", &self.state_estimate)
            .finish_non_exhaustive()
    }
}

/// Options of the receiving side.
pub struct TargetOptions {
    /// How long the link may carry nothing at all before it counts as lost and the guest is discarded. Default 30 s.
    pub stall_limit: Duration,
    /// How long a peer that has connected may take until it has described its guest. Default 10 s.
    pub handshake_limit: Duration,
    /// Called at the start of every phase.
    pub hook: Option<Box<PhaseHook<TargetPhase>>>,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            stall_limit: Duration::from_secs(30),
            handshake_limit: Duration::from_secs(10),
            hook: None,
        }
    }
}

impl fmt::Debug for TargetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetOptions")
            .field("stall_limit", &self.stall_limit)
            .field("handshake_limit", &self.handshake_limit)
            .finish_non_exhaustive()
    }
}
