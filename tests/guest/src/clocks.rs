//! Do the guest's clocks go on?
//!
//! On the path this is what the record of time in the stream (TSC offset and rate, wall clock) is
//! for: a guest that was moved must see no clock step back, none jump further than the downtime,
//! and all of them advance by the same amount.
//!
//! `CLOCK_REALTIME` and `CLOCK_BOOTTIME` differ from `CLOCK_MONOTONIC` by an offset that only
//! setting the clock or a suspend changes (clock_gettime(2)); nobody does either in the guest. The
//! TSC is compared by its rate, measured at the start (SDM volume 3B, section "Time-Stamp Counter").

use core::fmt;

/// One reading of all clocks, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// `CLOCK_MONOTONIC` before the others, in ns.
    pub before_ns: i64,
    /// `CLOCK_REALTIME`, in ns.
    pub realtime_ns: i64,
    /// `CLOCK_BOOTTIME`, in ns.
    pub boottime_ns: i64,
    /// The time-stamp counter.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC` after the others, in ns.
    pub after_ns: i64,
}

/// A clock that misbehaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`
    Monotonic,
    /// `CLOCK_REALTIME`
    Realtime,
    /// `CLOCK_BOOTTIME`
    Boottime,
    /// The time-stamp counter
    Tsc,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Clock::Monotonic => "CLOCK_MONOTONIC",
            Clock::Realtime => "CLOCK_REALTIME",
            Clock::Boottime => "CLOCK_BOOTTIME",
            Clock::Tsc => "TSC",
        })
    }
}

/// What is wrong with a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockFault {
    /// A later reading is smaller than an earlier one.
    #[error("{clock} stepped back by {by} {}", unit(*clock))]
    SteppedBack {
        /// Which one.
        clock: Clock,
        /// By how many ns, or ticks of the TSC.
        by: u64,
    },
    /// Two readings are further apart than the limit.
    #[error("{clock} jumped by {gap_us} us, limit {limit_us} us")]
    Jumped {
        /// Which one.
        clock: Clock,
        /// Distance of the readings.
        gap_us: u64,
        /// What was allowed.
        limit_us: u64,
    },
    /// A clock advanced differently from `CLOCK_MONOTONIC`.
    #[error("{clock} went {by_us} us {} than CLOCK_MONOTONIC", if *by_us < 0 { "less" } else { "more" })]
    Disagrees {
        /// Which one.
        clock: Clock,
        /// By how much, in us.
        by_us: i64,
    },
}

fn unit(clock: Clock) -> &'static str {
    if clock == Clock::Tsc {
        "ticks"
    } else {
        "ns"
    }
}

/// What is known of the constant offset between two clocks, one read between two readings of the
/// other: it lies between `low` and `high`.
#[derive(Clone, Copy, Debug)]
struct Offset {
    low: i64,
    high: i64,
}

impl Offset {
    /// The clocks are computed from one counter, by multiplications that round separately.
    const ROUNDING_NS: i64 = 1_000;

    fn of(clock_ns: i64, sample: &Sample) -> Self {
        Offset {
            low: clock_ns.saturating_sub(sample.after_ns),
            high: clock_ns.saturating_sub(sample.before_ns),
        }
    }

    /// Adds what `new` says. If both can't be true, `new` is what counts from now on.
    fn narrow(&mut self, new: Offset, clock: Clock) -> Result<(), ClockFault> {
        let low = self.low.max(new.low);
        let high = self.high.min(new.high);
        if low > high.saturating_add(Self::ROUNDING_NS) {
            let by = if new.low > self.high {
                new.low.saturating_sub(self.high)
            } else {
                new.high.saturating_sub(self.low)
            };
            *self = new;
            return Err(ClockFault::Disagrees {
                clock,
                by_us: by / 1_000,
            });
        }
        if low <= high {
            *self = Offset { low, high };
        }
        Ok(())
    }
}

/// Rate of the TSC against `CLOCK_MONOTONIC`, measured over windows.
#[derive(Clone, Copy, Debug)]
struct TscRate {
    start_ns: i64,
    start_tsc: u64,
    /// Ticks per ms, once known.
    khz: Option<u64>,
}

impl TscRate {
    /// Shortest window: the error of one reading in it is far below the tolerance.
    const WINDOW_NS: i64 = 1_000_000_000;
    /// Tolerated difference of rates, 1/1000: NTP slews by at most 1/2000, calibration is better.
    const PER_MILLE: i64 = 1;

    fn observe(&mut self, sample: &Sample, limit_ns: i64) -> Result<(), ClockFault> {
        let elapsed_ns = sample.after_ns.saturating_sub(self.start_ns);
        if elapsed_ns < Self::WINDOW_NS {
            return Ok(());
        }
        let ticks = sample.tsc.saturating_sub(self.start_tsc);
        (self.start_ns, self.start_tsc) = (sample.after_ns, sample.tsc);
        let Some(khz) = self.khz else {
            // Elapsed is at least WINDOW_NS; a TSC that stands still gets the rate 0 and is then
            // reported in the next window.
            let khz = u128::from(ticks) * 1_000_000 / elapsed_ns.unsigned_abs() as u128;
            self.khz = Some(u64::try_from(khz).unwrap_or(u64::MAX));
            return Ok(());
        };
        let tsc_ns = u128::from(ticks) * 1_000_000 / u128::from(khz.max(1));
        let by_ns = i64::try_from(tsc_ns)
            .unwrap_or(i64::MAX)
            .saturating_sub(elapsed_ns);
        let tolerance = limit_ns.saturating_add(elapsed_ns / 1000 * Self::PER_MILLE);
        if by_ns.saturating_abs() > tolerance {
            return Err(ClockFault::Disagrees {
                clock: Clock::Tsc,
                by_us: by_ns / 1_000,
            });
        }
        Ok(())
    }
}

/// Compares each sample with the ones before.
#[derive(Clone, Debug)]
pub struct ClockChecker {
    limit_ns: i64,
    last: Option<Sample>,
    realtime: Offset,
    boottime: Offset,
    tsc: TscRate,
    max_gap_ns: i64,
}

impl ClockChecker {
    /// `limit_ms`: how far apart two samples, and how different two clocks, may be.
    pub fn new(limit_ms: u32) -> Self {
        let none = Offset {
            low: i64::MIN,
            high: i64::MAX,
        };
        ClockChecker {
            limit_ns: i64::from(limit_ms) * 1_000_000,
            last: None,
            realtime: none,
            boottime: none,
            tsc: TscRate {
                start_ns: 0,
                start_tsc: 0,
                khz: None,
            },
            max_gap_ns: 0,
        }
    }

    /// Takes the next sample; what it shows to be wrong.
    pub fn observe(&mut self, sample: Sample) -> Vec<ClockFault> {
        let mut faults = Vec::new();
        let Some(last) = self.last.replace(sample) else {
            self.realtime = Offset::of(sample.realtime_ns, &sample);
            self.boottime = Offset::of(sample.boottime_ns, &sample);
            self.tsc.start_ns = sample.after_ns;
            self.tsc.start_tsc = sample.tsc;
            return faults;
        };
        let limit_ns = self.limit_ns;
        let mut step = |clock: Clock, from: i64, to: i64| {
            let gap = to.saturating_sub(from);
            if gap < 0 {
                faults.push(ClockFault::SteppedBack {
                    clock,
                    by: gap.unsigned_abs(),
                });
            } else if gap > limit_ns {
                faults.push(ClockFault::Jumped {
                    clock,
                    gap_us: gap.unsigned_abs() / 1_000,
                    limit_us: limit_ns.unsigned_abs() / 1_000,
                });
            }
        };
        step(Clock::Monotonic, last.after_ns, sample.before_ns);
        step(Clock::Monotonic, sample.before_ns, sample.after_ns);
        step(Clock::Realtime, last.realtime_ns, sample.realtime_ns);
        step(Clock::Boottime, last.boottime_ns, sample.boottime_ns);
        if sample.tsc < last.tsc {
            faults.push(ClockFault::SteppedBack {
                clock: Clock::Tsc,
                by: last.tsc - sample.tsc,
            });
            (self.tsc.start_ns, self.tsc.start_tsc) = (sample.after_ns, sample.tsc);
        }
        let gap = sample.after_ns.saturating_sub(last.after_ns);
        self.max_gap_ns = self.max_gap_ns.max(gap);

        let realtime = Offset::of(sample.realtime_ns, &sample);
        let boottime = Offset::of(sample.boottime_ns, &sample);
        faults.extend(self.realtime.narrow(realtime, Clock::Realtime).err());
        faults.extend(self.boottime.narrow(boottime, Clock::Boottime).err());
        faults.extend(self.tsc.observe(&sample, limit_ns).err());
        faults
    }

    /// Largest distance of two samples so far, in us.
    pub fn max_gap_us(&self) -> u64 {
        self.max_gap_ns.max(0).unsigned_abs() / 1_000
    }

    /// Rate of the TSC in kHz, after the first second.
    pub fn tsc_khz(&self) -> Option<u64> {
        self.tsc.khz
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: i64 = 1_000_000;
    const KHZ: i64 = 2_000_000;

    /// All clocks at `ns` of monotonic time, realtime ahead by `ahead`.
    fn at(ns: i64, ahead: i64) -> Sample {
        Sample {
            before_ns: ns,
            realtime_ns: ns + ahead,
            boottime_ns: ns,
            tsc: (ns / 1_000_000 * KHZ + ns % 1_000_000 * KHZ / 1_000_000) as u64,
            after_ns: ns + 2_000,
        }
    }

    fn started() -> ClockChecker {
        let mut checker = ClockChecker::new(100);
        for step in 0..150 {
            assert_eq!(checker.observe(at(step * 20 * MS, 5)), []);
        }
        checker
    }
    const NEXT: i64 = 150 * 20 * MS;

    #[test]
    fn the_rate_of_the_tsc_is_measured() {
        let khz = started().tsc_khz().unwrap() as i64;
        assert!((khz - KHZ).abs() <= KHZ / 100_000, "{khz}");
    }

    #[test]
    fn a_gap_within_the_limit_is_measured_and_accepted() {
        let mut checker = started();
        assert_eq!(checker.observe(at(NEXT + 60 * MS, 5)), []);
        assert_eq!(checker.max_gap_us(), 80_000);
    }

    #[test]
    fn a_jump_beyond_the_limit_is_reported_for_every_clock() {
        let faults = started().observe(at(NEXT + 200 * MS, 5));
        let jumped: Vec<_> = faults
            .iter()
            .filter(|fault| matches!(fault, ClockFault::Jumped { .. }))
            .collect();
        assert_eq!(jumped.len(), 3, "{faults:?}");
    }

    #[test]
    fn a_tsc_that_starts_over_on_the_peer_is_reported() {
        let mut sample = at(NEXT, 5);
        sample.tsc = 1000;
        let faults = started().observe(sample);
        assert!(
            matches!(
                faults[..],
                [ClockFault::SteppedBack {
                    clock: Clock::Tsc,
                    ..
                }]
            ),
            "{faults:?}"
        );
    }

    #[test]
    fn a_wall_clock_of_its_own_on_the_peer_is_reported_once() {
        let mut checker = started();
        // 50 ms ahead: no jump beyond the limit, but the clocks no longer agree.
        let faults = checker.observe(at(NEXT, 5 + 50 * MS));
        assert!(
            matches!(
                faults[..],
                [ClockFault::Disagrees {
                    clock: Clock::Realtime,
                    by_us: 49_990..=50_010
                }]
            ),
            "{faults:?}"
        );
        assert_eq!(checker.observe(at(NEXT + 20 * MS, 5 + 50 * MS)), []);
    }

    #[test]
    fn a_tsc_of_another_rate_on_the_peer_is_reported() {
        let mut checker = started();
        let start = at(NEXT, 5);
        checker.observe(start);
        let mut faults = Vec::new();
        for step in 1..200 {
            let mut sample = at(NEXT + step * 20 * MS, 5);
            sample.tsc = start.tsc + (sample.tsc - start.tsc) / 2;
            faults.extend(checker.observe(sample));
        }
        assert!(
            faults.iter().any(|fault| matches!(
                fault,
                ClockFault::Disagrees {
                    clock: Clock::Tsc,
                    by_us: ..0
                }
            )),
            "{faults:?}"
        );
    }

    #[test]
    fn a_fault_says_what_went_how_far() {
        let text = ClockFault::SteppedBack {
            clock: Clock::Tsc,
            by: 7,
        }
        .to_string();
        assert_eq!(text, "TSC stepped back by 7 ticks");
    }

    proptest! {
        #[test]
        fn clocks_that_go_on_are_never_reported(
            steps in prop::collection::vec((1..90 * MS, 0..500_000i64, 0..500_000i64), 1..200),
            ahead in 0..1_800_000_000_000_000_000i64,
        ) {
            let mut checker = ClockChecker::new(100);
            let mut now = 0;
            for (step, read, end) in steps {
                now += step;
                let mut sample = at(now + read, ahead);
                sample.before_ns = now;
                now += read + end;
                sample.after_ns = now;
                prop_assert_eq!(checker.observe(sample), []);
            }
        }

        #[test]
        fn any_step_back_is_reported(by in 1..NEXT - 20 * MS) {
            let faults = started().observe(at(NEXT - 20 * MS - by, 5));
            let tsc = |fault: &ClockFault| matches!(fault, ClockFault::SteppedBack { clock: Clock::Realtime, .. });
            prop_assert!(faults.iter().any(tsc), "{:?}", faults);
        }
    }
}
