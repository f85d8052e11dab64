// SPDX-License-Identifier: GPL-2.0
//! One move, seen from outside: its statistics, live, and the handle that cancels it.
//!
//! The engine's thread writes, any other thread reads: the daemon keeps an `Arc<Job>` per move.

use crate::statistics::{ms, PhaseTime, Statistics, Status};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const GOING_ON: u8 = 0;
const CANCEL_REQUESTED: u8 = 1;
const COMMITTED: u8 = 2;

/// [`Job::cancel`] came too late: the source has committed, or the move is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the move can no longer be cancelled: it is over, or the target has been told to run the guest"
)]
pub struct TooLate;

/// A move and its progress. Share it by `Arc`.
#[derive(Debug)]
pub struct Job {
    state: AtomicU8,
    started: Instant,
    // Held only for the length of a copy or of an update, never while anything blocks.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    statistics: Statistics,
    ended: Option<Instant>,
}

impl Default for Job {
    fn default() -> Self {
        Self::new()
    }
}

impl Job {
    /// A move that begins now.
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(GOING_ON),
            started: Instant::now(),
            inner: Mutex::new(Inner {
                statistics: Statistics::default(),
                ended: None,
            }),
        }
    }

    /// Asks the engine to give the move up; it does so at the next step, and the guest goes on at the source. Returns at
    /// once: [`Self::statistics`] tells when it has happened.
    pub fn cancel(&self) -> Result<(), TooLate> {
        let result = self.state.compare_exchange(
            GOING_ON,
            CANCEL_REQUESTED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match result {
            Ok(_) => {
                self.update(|statistics| {
                    if !statistics.status.is_final() {
                        statistics.status = Status::Cancelling;
                    }
                });
                Ok(())
            }
            Err(CANCEL_REQUESTED) => Ok(()),
            Err(_) => Err(TooLate),
        }
    }

    /// How the move stands.
    pub fn statistics(&self) -> Statistics {
        let inner = self.lock();
        let mut statistics = inner.statistics.clone();
        let end = inner.ended.unwrap_or_else(Instant::now);
        statistics.total_time = whole_ms(end.saturating_duration_since(self.started));
        statistics
    }

    /// When the move began.
    pub fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn is_cancel_requested(&self) -> bool {
        self.state.load(Ordering::Acquire) == CANCEL_REQUESTED
    }

    /// From here on the move cannot be cancelled. False if somebody was faster and cancelled it.
    pub(crate) fn commit(&self) -> bool {
        self.state
            .compare_exchange(GOING_ON, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.lock().statistics);
    }

    /// Sets the status, unless somebody has just cancelled: that stays visible until the move has ended.
    pub(crate) fn enter(&self, status: Status) {
        self.update(|statistics| {
            if statistics.status != Status::Cancelling {
                statistics.status = status;
            }
        });
    }

    pub(crate) fn begin_phase(&self, phase: &str) {
        self.update(|statistics| phase.clone_into(&mut statistics.phase));
    }

    pub(crate) fn end_phase(&self, phase: &str, duration: Duration) {
        self.update(|statistics| {
            statistics.phases.push(PhaseTime {
                phase: phase.to_owned(),
                ms: ms(duration),
            });
        });
    }

    /// Raises the progress; a lower value than before changes nothing. 100 is left to the end.
    pub(crate) fn progress(&self, done: u64, left: u64) {
        let sum = done.saturating_add(left);
        let percent = match sum {
            0 => 0,
            // At most 99, so it fits.
            _ => ((u128::from(done) * 100 / u128::from(sum)) as u8).min(99),
        };
        self.update(|statistics| {
            statistics.progress_percent = statistics.progress_percent.max(percent);
        });
    }

    /// The move is over; later updates of the time are ignored, and it can no longer be cancelled.
    pub(crate) fn finish(&self, status: Status, error: Option<String>) {
        self.state.store(COMMITTED, Ordering::Release);
        let mut inner = self.lock();
        inner.statistics.status = status;
        inner.statistics.error_desc = error;
        if status == Status::Completed {
            inner.statistics.progress_percent = 100;
            inner.statistics.ram.remaining = 0;
        }
        if inner.ended.is_none() {
            inner.ended = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held can leave nothing half done that would matter to a reader.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole milliseconds, saturating.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
