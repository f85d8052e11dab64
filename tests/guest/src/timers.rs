//! Do the guest's timers fire on time, and none is lost?
//!
//! On the path this checks what a move restores of interrupt controllers and timer devices (8254,
//! local APIC timer): a timer that was armed on one host has to fire on the other.
//!
//! A periodic timerfd returns the number of expirations since the last read (timerfd_create(2)).
//! Together they have to be exactly as many as periods have passed: fewer are lost, more are early.

/// A timer that misbehaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerFault {
    /// More expirations than periods.
    #[error("{early} expirations too many after {total}")]
    Early {
        /// How many too many.
        early: u64,
        /// Expirations so far.
        total: u64,
    },
    /// Fewer expirations than periods.
    #[error("{lost} expirations lost after {total}")]
    Lost {
        /// How many are missing.
        lost: u64,
        /// Expirations so far.
        total: u64,
    },
    /// Later than allowed.
    #[error("fired {late_us} us late, limit {limit_us} us")]
    Late {
        /// By how much.
        late_us: u64,
        /// What was allowed.
        limit_us: u64,
    },
    /// A sleep ended before its time.
    #[error("a sleep of {wanted_us} us ended after {slept_us} us")]
    Short {
        /// What was asked for.
        wanted_us: u64,
        /// What it was.
        slept_us: u64,
    },
}

/// Checks a periodic timer.
#[derive(Clone, Debug)]
pub struct PeriodicCheck {
    first_ns: i64,
    period_ns: i64,
    limit_ns: i64,
    total: u64,
    max_late_ns: i64,
}

impl PeriodicCheck {
    /// A timer that expires first at `first_ns` of its clock and then every `period_ns` (at least
    /// 1). `limit_ms`: how late it may be.
    pub fn new(first_ns: i64, period_ns: i64, limit_ms: u32) -> Self {
        PeriodicCheck {
            first_ns,
            period_ns: period_ns.max(1),
            limit_ns: i64::from(limit_ms) * 1_000_000,
            total: 0,
            max_late_ns: 0,
        }
    }

    /// Expirations due at `now_ns`.
    fn due(&self, now_ns: i64) -> u64 {
        let since = now_ns.saturating_sub(self.first_ns);
        if since < 0 {
            0
        } else {
            since.unsigned_abs() / self.period_ns.unsigned_abs() + 1
        }
    }

    /// A read returned `expirations`; the timer's clock was `before_ns` when the timer was known to
    /// be readable and is `after_ns` now.
    ///
    /// # Errors
    /// Lost, early or late expirations. After an error the count starts afresh from what is due, so
    /// that it is reported once.
    pub fn observe(
        &mut self,
        before_ns: i64,
        expirations: u64,
        after_ns: i64,
    ) -> Result<(), TimerFault> {
        // When the first of these expirations was due.
        let scheduled = i64::try_from(self.total)
            .unwrap_or(i64::MAX)
            .saturating_mul(self.period_ns)
            .saturating_add(self.first_ns);
        let late_ns = before_ns.saturating_sub(scheduled);
        let total = self.total.saturating_add(expirations);
        let (least, most) = (self.due(before_ns), self.due(after_ns));
        self.total = total.clamp(least, most.max(least));
        if total > most {
            let early = total - most;
            return Err(TimerFault::Early { early, total });
        }
        if total < least {
            let lost = least - total;
            return Err(TimerFault::Lost { lost, total });
        }
        self.max_late_ns = self.max_late_ns.max(late_ns);
        if late_ns > self.limit_ns {
            return Err(TimerFault::Late {
                late_us: late_ns.unsigned_abs() / 1_000,
                limit_us: self.limit_ns.unsigned_abs() / 1_000,
            });
        }
        Ok(())
    }

    /// Expirations so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Largest delay so far, in us.
    pub fn max_late_us(&self) -> u64 {
        self.max_late_ns.max(0).unsigned_abs() / 1_000
    }
}

/// Checks one sleep of `wanted_ns` that took `slept_ns`; by how much it was late, in us.
///
/// # Errors
/// Too short, or longer than allowed by more than `limit_ms`.
pub fn check_sleep(wanted_ns: i64, slept_ns: i64, limit_ms: u32) -> Result<u64, TimerFault> {
    let late_ns = slept_ns.saturating_sub(wanted_ns);
    let late_us = late_ns.unsigned_abs() / 1_000;
    if late_ns < 0 {
        return Err(TimerFault::Short {
            wanted_us: wanted_ns.max(0).unsigned_abs() / 1_000,
            slept_us: slept_ns.max(0).unsigned_abs() / 1_000,
        });
    }
    if late_ns > i64::from(limit_ms) * 1_000_000 {
        return Err(TimerFault::Late {
            late_us,
            limit_us: u64::from(limit_ms) * 1_000,
        });
    }
    Ok(late_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: i64 = 1_000_000;

    fn check() -> PeriodicCheck {
        PeriodicCheck::new(1_000 * MS, 20 * MS, 100)
    }

    #[test]
    fn expirations_on_time_are_accepted() {
        let mut check = check();
        assert_eq!(check.observe(1_000 * MS, 1, 1_001 * MS), Ok(()));
        assert_eq!(check.observe(1_021 * MS, 1, 1_021 * MS), Ok(()));
        // 3 periods at once after a pause within the limit.
        assert_eq!(check.observe(1_085 * MS, 3, 1_085 * MS), Ok(()));
        assert_eq!(check.total(), 5);
        assert_eq!(check.max_late_us(), 45_000);
    }

    #[test]
    fn an_expiration_before_its_time_is_early() {
        let early = Err(TimerFault::Early { early: 1, total: 1 });
        assert_eq!(check().observe(999 * MS, 1, 999 * MS), early);
    }

    #[test]
    fn a_missing_expiration_is_lost_and_reported_once() {
        let mut check = check();
        let lost = Err(TimerFault::Lost { lost: 2, total: 1 });
        assert_eq!(check.observe(1_045 * MS, 1, 1_045 * MS), lost);
        assert_eq!(check.observe(1_060 * MS, 1, 1_060 * MS), Ok(()));
    }

    #[test]
    fn an_expiration_after_more_than_the_limit_is_late() {
        let late = TimerFault::Late {
            late_us: 140_000,
            limit_us: 100_000,
        };
        assert_eq!(check().observe(1_140 * MS, 8, 1_140 * MS), Err(late));
    }

    #[test]
    fn a_sleep_may_be_late_by_the_limit_but_never_short() {
        assert_eq!(check_sleep(5 * MS, 5 * MS, 10), Ok(0));
        assert_eq!(check_sleep(5 * MS, 15 * MS, 10), Ok(10_000));
        assert!(matches!(
            check_sleep(5 * MS, 16 * MS, 10),
            Err(TimerFault::Late { .. })
        ));
        assert!(matches!(
            check_sleep(5 * MS, 5 * MS - 1, 10),
            Err(TimerFault::Short { .. })
        ));
    }

    proptest! {
        /// An ideal timer, written from the manual page, against the check.
        #[test]
        fn an_ideal_timer_is_never_reported(
            waits in prop::collection::vec((1..80 * MS, 0..3 * MS), 1..100),
        ) {
            let mut check = check();
            let mut next_expiry = 1_000 * MS;
            let mut now = next_expiry;
            for (wait, reading) in waits {
                let before = now.max(next_expiry);
                let at = before + reading;
                let mut count = 0;
                while next_expiry <= at {
                    next_expiry += 20 * MS;
                    count += 1;
                }
                now = at;
                prop_assert_eq!(check.observe(before, count, now), Ok(()));
                now += wait;
            }
        }
    }
}
