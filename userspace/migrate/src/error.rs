// SPDX-License-Identifier: GPL-2.0
//! Why a move failed, and where its guest is then.

use crate::refusal::Refusal;
use crate::session::InDoubt;
use crate::tls::TlsError;
use crate::vm::VmError;
use crate::wire::WireError;
use std::fmt;
use std::io;
use std::time::Duration;

/// What ended a move. Each text says what failed and, where the operator can do something, what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The target could not be reached.
    #[error("cannot reach {peer}: {source}; check the address, and that pvmmd serve --listen runs there")]
    Connect {
        /// The address.
        peer: String,
        /// The system's word.
        source: io::Error,
    },
    /// There is no TLS connection, or none any more.
    #[error("no TLS connection with {peer}: {source}")]
    Tls {
        /// The other side.
        peer: String,
        /// What stands against it.
        source: TlsError,
    },
    /// The link broke.
    #[error("the link to {peer} broke: {source}; check the network between the hosts, and that pvmmd still runs there")]
    Link {
        /// The other side.
        peer: String,
        /// The system's word.
        source: io::Error,
    },
    /// The other side ended the stream in the middle.
    #[error("{peer} closed the link in the middle of the move; check that pvmmd still runs there, its log says why")]
    Closed {
        /// The other side.
        peer: String,
    },
    /// Nothing came or went for too long.
    #[error("the link to {peer} carried nothing for {} s; check the network between the hosts, and that pvmmd still runs there", limit.as_secs_f64())]
    Stalled {
        /// The other side.
        peer: String,
        /// The limit.
        limit: Duration,
    },
    /// A phase took too long.
    #[error("phase {phase} was not over within {} ms", limit.as_millis())]
    Deadline {
        /// The phase.
        phase: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// Somebody cancelled the move on this side.
    #[error("cancelled")]
    Cancelled,
    /// The target does not take the guest.
    #[error("the target refuses the guest: {0}")]
    Refused(Refusal),
    /// What came from the other side is not our format, or not in our order.
    #[error("{peer} sent something that this version does not take: {source}")]
    Wire {
        /// The other side.
        peer: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The other side gave up, and said why.
    #[error("{peer} gave up: {reason}")]
    Peer {
        /// The other side.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The daemon's part failed.
    #[error("cannot {action}: {source}")]
    Vm {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        source: VmError,
    },
    /// The daemon's part returned something impossible.
    #[error("{0}")]
    Inconsistent(String),
    /// A device could not be restored.
    #[error("{0}")]
    Device(#[from] crate::devices::DeviceError),
    /// A device of the host was in the middle of something whenever the guest was paused.
    #[error(
        "{kind} (device {device}) did not come to rest: register {register} shows that it is in the middle of something, also \
         after {} ms; {}",
        waited.as_millis(),
        match *may_run {
            true => "let the guest finish what it does with it, and move it again",
            false => "resume the guest, so that it can finish what it does with it, and move it again",
        }
    )]
    NotAtRest {
        /// Its number.
        device: u32,
        /// The kind's name.
        kind: &'static str,
        /// The register's name.
        register: String,
        /// How long the guest was given.
        waited: Duration,
        /// Whether it could use that time: it is not paused by its operator.
        may_run: bool,
    },
    /// A hook failed.
    #[error("the hook of phase {phase} failed: {reason}")]
    Hook {
        /// The phase.
        phase: &'static str,
        /// Its reason.
        reason: String,
    },
    /// Pre-copy ran into its timeout.
    #[error(
        "memory did not converge within {} s: {remaining} bytes are left after {rounds} rounds, the guest dirties {dirty_rate} \
         bytes/s and the link carries {bandwidth} bytes/s, so the pause would take {expected_ms} ms where {limit_ms} ms \
         are allowed; raise --downtime-limit, --bandwidth or --timeout, or take --timeout-action suspend",
        timeout.as_secs()
    )]
    NotConverging {
        /// The timeout.
        timeout: Duration,
        /// Rounds done.
        rounds: u64,
        /// Bytes left.
        remaining: u64,
        /// Bytes that the guest dirties per second.
        dirty_rate: u64,
        /// Bytes per second that the link carries.
        bandwidth: u64,
        /// The pause that this would mean.
        expected_ms: u64,
        /// The pause that is allowed.
        limit_ms: u64,
    },
    /// The downtime limit leaves nothing for memory.
    #[error(
        "a downtime limit of {limit_ms} ms cannot be kept: CPU and device state and the round trips on this link are \
         expected to take {fixed_ms} ms; raise --downtime-limit"
    )]
    LimitTooLow {
        /// The limit.
        limit_ms: u64,
        /// What is expected without any memory.
        fixed_ms: u64,
    },
    /// The target's answer to a question about an outcome.
    #[error("{0}")]
    Outcome(String),
}

impl Error {
    /// A connection could not be made.
    pub(crate) fn connect(peer: String, source: io::Error) -> Self {
        match source.downcast() {
            Ok(source) => Self::Tls { peer, source },
            Err(source) => Self::Connect { peer, source },
        }
    }

    /// A connection broke.
    pub(crate) fn link(peer: &str, source: io::Error) -> Self {
        let peer = peer.to_owned();
        match source.downcast() {
            Ok(source) => Self::Tls { peer, source },
            Err(source) => Self::Link { peer, source },
        }
    }

    /// Wraps an error of the daemon's part.
    pub(crate) fn vm(action: &'static str) -> impl FnOnce(VmError) -> Self {
        move |source| Self::Vm { action, source }
    }
}

/// Where the guest is after a move that failed.
#[derive(Debug)]
pub enum Guest {
    /// At the source, as before the move: running if it ran, paused if it was paused.
    Unchanged,
    /// At the source, but it could not be resumed: it is paused there, for the reason given.
    Paused(String),
    /// Paused at the source, and the target may have it: see [`InDoubt`].
    InDoubt(Box<InDoubt>),
}

/// A move that failed, as the source sees it.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// The phase that failed.
    pub phase: &'static str,
    /// Where the guest is.
    pub guest: Guest,
    /// What else went wrong while the source went back: a device that could not be put back, ...
    pub notes: Vec<String>,
}

impl Failure {
    /// The exit code that the command line gives it: 1 failed, 3 cancelled, 4 refused before the first page.
    pub fn exit_code(&self) -> u8 {
        match self.error {
            Error::Cancelled => 3,
            Error::Refused(_) => 4,
            _ => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (in phase {})", self.error, self.phase)?;
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        match &self.guest {
            Guest::Unchanged => f.write_str("; the guest goes on here as before"),
            Guest::Paused(why) => write!(f, "; the guest is paused here: {why}"),
            Guest::InDoubt(in_doubt) => write!(f, "; {in_doubt}"),
        }
    }
}

impl std::error::Error for Failure {}
