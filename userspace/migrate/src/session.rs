// SPDX-License-Identifier: GPL-2.0
//! The outcome of a move: the target's memory of it ([`Sessions`]) and the source's doubt about it ([`InDoubt`]).
//!
//! Place on the path: the commit. A guest must run on exactly one side at every instant, whatever gets lost:
//!
//! - The target runs the guest only after it has received the commit, and only if its session is still *prepared*.
//! - The source, having sent the commit, runs the guest only after the target has said that it did not commit.
//! - The target's session changes under one lock: *prepared* becomes *starting* by the commit, or *not committed* by
//!   whatever ends the connection, or by the source's question. Whichever is first wins for good, so a commit that arrives
//!   late finds the session closed.
//!
//! A source that has lost the answer asks until its limit; if the target cannot be reached for that long, or does
//! not know the session (it was restarted, or has forgotten), the guest stays paused and the operator decides.

use crate::vm::{CapturedDevice, RunState};
use pvmm_uapi::Clock;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Names one move. Random, chosen by the source; who knows it may ask for the outcome.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// A new one.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn random() -> Result<Self, String> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| format!("the system gives no random numbers: {error}"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// What the target answers about a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest runs, or has run, at the target: the source must not run it.
    Committed,
    /// The guest has not run at the target and never will in this session: the source may run it.
    NotCommitted {
        /// Why.
        reason: String,
    },
    /// The target is just starting it; ask again.
    Starting,
    /// The target does not know the session.
    Unknown,
}

/// How many sessions a target remembers.
pub const REMEMBERED_SESSIONS: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Prepared,
    Starting,
    Committed,
    NotCommitted { reason: String },
}

/// The target's memory of the moves that got as far as *prepared*. One per daemon, shared by all connections.
#[derive(Debug, Default)]
pub struct Sessions {
    // The lock is held for the length of a search, never while anything else blocks.
    table: Mutex<VecDeque<(SessionId, State)>>,
    changed: Condvar,
    /// The moves that this daemon itself sends. Few at a time; the lock is held for the length of a search.
    own: Mutex<Vec<SessionId>>,
}

/// While it lives, a move that this daemon sends and that arrives at this daemon is known for what it is.
#[derive(Debug)]
pub(crate) struct Sending<'a> {
    sessions: &'a Sessions,
    session: SessionId,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.sessions.own().retain(|own| *own != self.session);
    }
}

impl Sessions {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that this daemon sends a move, until the result is dropped.
    pub(crate) fn sending(&self, session: SessionId) -> Sending<'_> {
        self.own().push(session);
        Sending {
            sessions: self,
            session,
        }
    }

    /// Whether this daemon itself sends that move: then the address that it was sent to leads back here, whatever it is.
    pub(crate) fn is_own(&self, session: SessionId) -> bool {
        self.own().contains(&session)
    }

    /// What became of a session. A session that is only prepared is closed by the question: its commit has not
    /// arrived and will be refused when it does. A session that is being started is waited for, at most `wait`.
    pub fn outcome(&self, session: SessionId, wait: Duration) -> Outcome {
        let limit = Instant::now() + wait.min(Duration::from_secs(60));
        let mut table = self.lock();
        loop {
            let Some((_, state)) = table.iter_mut().find(|(id, _)| *id == session) else {
                return Outcome::Unknown;
            };
            match state {
                State::Prepared => {
                    let reason = "the commit had not arrived when the source asked for the outcome"
                        .to_owned();
                    *state = State::NotCommitted {
                        reason: reason.clone(),
                    };
                    return Outcome::NotCommitted { reason };
                }
                State::NotCommitted { reason } => {
                    return Outcome::NotCommitted {
                        reason: reason.clone(),
                    }
                }
                State::Committed => return Outcome::Committed,
                State::Starting => {
                    let left = limit.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Outcome::Starting;
                    }
                    table = self
                        .changed
                        .wait_timeout(table, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }

    /// Everything is restored and verified. False if the session is known already: a peer reused its id.
    pub(crate) fn prepared(&self, session: SessionId) -> bool {
        let mut table = self.lock();
        if table.iter().any(|(id, _)| *id == session) {
            return false;
        }
        if table.len() >= REMEMBERED_SESSIONS {
            // The oldest that is over; one that goes on is never forgotten.
            let over =
                |state: &State| matches!(state, State::Committed | State::NotCommitted { .. });
            if let Some(index) = table.iter().position(|(_, state)| over(state)) {
                table.remove(index);
            }
        }
        table.push_back((session, State::Prepared));
        true
    }

    /// The commit has arrived: from here on the target owns the guest. An error if the session was closed before.
    pub(crate) fn starting(&self, session: SessionId) -> Result<(), String> {
        let mut table = self.lock();
        match table.iter_mut().find(|(id, _)| *id == session) {
            Some((_, state @ State::Prepared)) => {
                *state = State::Starting;
                Ok(())
            }
            Some((_, State::NotCommitted { reason })) => Err(reason.clone()),
            _ => Err("the session is not waiting for a commit".into()),
        }
    }

    /// The guest runs here.
    pub(crate) fn committed(&self, session: SessionId) {
        self.set(session, State::Committed);
    }

    /// The guest has not run here and never will in this session. Changes nothing once it is committed.
    pub(crate) fn not_committed(&self, session: SessionId, reason: &str) {
        self.set(
            session,
            State::NotCommitted {
                reason: reason.to_owned(),
            },
        );
    }

    fn set(&self, session: SessionId, new: State) {
        let mut table = self.lock();
        if let Some((_, state)) = table.iter_mut().find(|(id, _)| *id == session) {
            if *state != State::Committed {
                *state = new;
            }
        }
        drop(table);
        self.changed.notify_all();
    }

    fn own(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(SessionId, State)>> {
        // Every change of the table is one assignment, so a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest that is paused at the source because the target may be running it.
///
/// Hand it to [`crate::source::recover`] to ask again, to [`crate::source::resume_here`] or [`crate::source::discard`]
/// when the operator has decided.
#[derive(Debug)]
pub struct InDoubt {
    /// The move.
    pub session: SessionId,
    /// Name of the guest.
    pub name: String,
    /// The target.
    pub peer: String,
    /// Why the outcome is not known.
    pub reason: String,
    pub(crate) held: Held,
}

impl fmt::Display for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest is paused here and {} may be running it ({}): look there with `pvmmd list`; if it is there, run `pvmmd \
             migrate-recover {name} --discard` here, if it certainly is not, `pvmmd migrate-recover {name} --resume-here`; \
             `pvmmd migrate-recover {name}` asks the target again",
            self.peer,
            self.reason,
            name = self.name
        )
    }
}

/// What a paused source needs to let the guest go on.
#[derive(Debug)]
pub(crate) struct Held {
    /// Whether the guest ran before the move.
    pub state: RunState,
    /// Whether dirty tracking is on.
    pub dirty_log: bool,
    /// When the pause began; `None` if it has not.
    pub paused_at: Option<Instant>,
    /// The clock as captured, if that far.
    pub clock: Option<Clock>,
    /// The devices captured so far, to be put back.
    pub captured: Vec<(u32, CapturedDevice)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId([7; 16]);

    #[test]
    fn a_question_closes_a_prepared_session_so_that_a_late_commit_is_refused() {
        let sessions = Sessions::new();
        assert!(sessions.prepared(ID));
        let outcome = sessions.outcome(ID, Duration::ZERO);
        assert!(matches!(outcome, Outcome::NotCommitted { .. }));
        assert!(sessions.starting(ID).is_err());
    }

    #[test]
    fn a_committed_session_stays_committed() {
        let sessions = Sessions::new();
        assert!(sessions.prepared(ID));
        sessions.starting(ID).expect("it is prepared");
        assert_eq!(sessions.outcome(ID, Duration::ZERO), Outcome::Starting);
        sessions.committed(ID);
        sessions.not_committed(ID, "too late");
        assert_eq!(sessions.outcome(ID, Duration::ZERO), Outcome::Committed);
    }

    #[test]
    fn a_session_is_committed_at_most_once_and_its_id_cannot_be_reused() {
        let sessions = Sessions::new();
        assert!(sessions.prepared(ID));
        assert!(!sessions.prepared(ID));
        sessions.starting(ID).expect("it is prepared");
        assert!(sessions.starting(ID).is_err());
    }

    #[test]
    fn a_move_is_this_daemon_s_own_while_it_is_being_sent() {
        let sessions = Sessions::new();
        let other = SessionId([8; 16]);
        let sending = sessions.sending(ID);
        let second = sessions.sending(other);
        assert!(sessions.is_own(ID) && sessions.is_own(other));
        drop(sending);
        assert!(!sessions.is_own(ID) && sessions.is_own(other));
        drop(second);
        assert!(!sessions.is_own(other));
    }

    #[test]
    fn old_sessions_are_forgotten_and_open_ones_are_not() {
        let sessions = Sessions::new();
        assert!(sessions.prepared(ID));
        sessions.starting(ID).expect("it is prepared");
        for number in 0..(REMEMBERED_SESSIONS as u128 + 10) {
            let id = SessionId((number + 1000).to_be_bytes());
            assert!(sessions.prepared(id));
            sessions.not_committed(id, "test");
        }
        assert_eq!(sessions.outcome(ID, Duration::ZERO), Outcome::Starting);
        assert_eq!(sessions.lock().len(), REMEMBERED_SESSIONS);
        let forgotten = SessionId(1000u128.to_be_bytes());
        assert_eq!(
            sessions.outcome(forgotten, Duration::ZERO),
            Outcome::Unknown
        );
    }
}
