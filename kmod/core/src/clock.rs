// SPDX-License-Identifier: GPL-2.0
//! The line that ties VM nanoseconds and the guest's TSC together.
//!
//! Every timer model counts in VM nanoseconds; the guest may also ask for "when the TSC reaches this" (TSC deadline,
//! SDM volume 3, 12.5.4.1). Both directions are exact integer arithmetic, so that a deadline that was converted to
//! nanoseconds never comes before its TSC value and is never missed by the rounding. The kernel has no 128-bit division,
//! so products are split instead.
#![forbid(unsafe_code)]

use core::num::NonZeroU64;
use pvmm_uapi::Clock;

/// Nanoseconds in a millisecond: a rate in kHz is ticks per this many nanoseconds.
const NS_PER_MS: u64 = 1_000_000;

/// A linear function from VM nanoseconds to a TSC value: `tsc(vm_ns) = tsc0 + floor((vm_ns - ns0) * kHz / 10^6)`.
///
/// The TSC is modulo 2^64, as the register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    vm_ns: u64,
    tsc: u64,
    /// Non-zero in its type, so that divisions by it have no panic.
    tsc_khz: NonZeroU64,
}

impl GuestClock {
    /// The line through the point of `clock` with its rate. `None` if the rate is zero.
    pub const fn new(clock: &Clock) -> Option<Self> {
        let Some(tsc_khz) = NonZeroU64::new(clock.tsc_khz as u64) else {
            return None;
        };
        Some(Self {
            vm_ns: clock.vm_ns,
            tsc: clock.tsc,
            tsc_khz,
        })
    }

    /// The same clock seen through IA32_TSC_ADJUST, or through a write of the TSC by the guest: every value is higher
    /// by `adjust`, modulo 2^64.
    #[must_use]
    pub const fn adjusted(self, adjust: u64) -> Self {
        Self {
            tsc: self.tsc.wrapping_add(adjust),
            ..self
        }
    }

    /// The same line, told from `now` on if the TSC has passed 2^64 since the point that it was told from. For times
    /// after `now` [`Self::ns_at_or_after`] is then right, though up to one tick late; otherwise it would take a value
    /// that is still to come for one from before.
    #[must_use]
    pub const fn told_at(self, now: u64) -> Self {
        let tsc = self.tsc_at(now);
        if now < self.vm_ns || tsc >= self.tsc {
            return self;
        }
        Self {
            vm_ns: now,
            tsc,
            ..self
        }
    }

    /// The guest's TSC rate in kHz.
    pub const fn tsc_khz(&self) -> u32 {
        // Made from 32 bits.
        self.tsc_khz.get() as u32
    }

    /// The TSC at VM nanosecond `vm_ns`.
    pub const fn tsc_at(&self, vm_ns: u64) -> u64 {
        let khz = self.tsc_khz.get();
        if vm_ns >= self.vm_ns {
            let elapsed = vm_ns - self.vm_ns;
            let whole = (elapsed / NS_PER_MS).wrapping_mul(khz);
            let rest = (elapsed % NS_PER_MS) * khz / NS_PER_MS;
            self.tsc.wrapping_add(whole).wrapping_add(rest)
        } else {
            // Before the reference point the distance is rounded up: that is the floor of the negative difference.
            let missing = self.vm_ns - vm_ns;
            let whole = (missing / NS_PER_MS).wrapping_mul(khz);
            let rest = ((missing % NS_PER_MS) * khz).div_ceil(NS_PER_MS);
            self.tsc.wrapping_sub(whole).wrapping_sub(rest)
        }
    }

    /// The first VM nanosecond at which the TSC is at least `tsc`: never early, and one nanosecond before it the TSC is
    /// still lower. 0 if that was before the VM was made; `None` if it is beyond 2^64 ns.
    pub fn ns_at_or_after(&self, tsc: u64) -> Option<u64> {
        let khz = self.tsc_khz;
        if tsc >= self.tsc {
            let ticks = tsc - self.tsc;
            let whole = (ticks / khz).checked_mul(NS_PER_MS)?;
            // Rounded up: u64 has no div_ceil by a non-zero type.
            let rest = ((ticks % khz) * NS_PER_MS + (khz.get() - 1)) / khz;
            let distance = whole.checked_add(rest)?;
            self.vm_ns.checked_add(distance)
        } else {
            let ticks = self.tsc - tsc;
            let Some(whole) = (ticks / khz).checked_mul(NS_PER_MS) else {
                return Some(0);
            };
            let rest = (ticks % khz) * NS_PER_MS / khz;
            Some(self.vm_ns.saturating_sub(whole.saturating_add(rest)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clock(vm_ns: u64, tsc: u64, tsc_khz: u32) -> GuestClock {
        GuestClock::new(&Clock {
            vm_ns,
            tsc,
            tsc_khz,
            flags: 0,
        })
        .expect("the rate is not zero in these tests")
    }

    #[test]
    fn a_clock_without_a_rate_is_refused() {
        assert_eq!(GuestClock::new(&Clock::default()), None);
    }

    #[test]
    fn a_second_is_a_thousand_times_the_rate_in_khz() {
        let clock = clock(5, 100, 2_400_000);
        assert_eq!(clock.tsc_at(5), 100);
        assert_eq!(clock.tsc_at(1_000_000_005), 2_400_000_100);
    }

    #[test]
    fn the_time_of_a_tsc_beyond_the_last_nanosecond_is_never() {
        assert_eq!(clock(0, 0, 1).ns_at_or_after(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn the_tsc_is_the_floor_of_the_exact_product(
            ns0 in 0..1u64 << 50, tsc0 in 1u64 << 62..1u64 << 63, khz in 1u32.., ns in 0..1u64 << 50,
        ) {
            let exact = i128::from(tsc0)
                + ((i128::from(ns) - i128::from(ns0)) * i128::from(khz)).div_euclid(1_000_000);
            prop_assert_eq!(clock(ns0, tsc0, khz).tsc_at(ns), exact as u64);
        }

        #[test]
        fn a_deadline_is_neither_early_nor_late(
            ns0 in 1u64 << 40..1u64 << 50, tsc0 in 1u64 << 40..1u64 << 60, khz in 1u32..16_000_000, ahead in 0..1u64 << 50,
        ) {
            let clock = clock(ns0, tsc0, khz);
            let target = tsc0 + ahead;
            if let Some(at) = clock.ns_at_or_after(target) {
                prop_assert!(clock.tsc_at(at) >= target);
                prop_assert!(clock.tsc_at(at - 1) < target);
            }
        }

        #[test]
        fn a_deadline_in_the_past_is_found_too(
            khz in 1000u32..16_000_000, ahead in 0..1u64 << 60, back in 1..1u64 << 40,
        ) {
            let clock = clock(1 << 60, 1 << 61, khz).adjusted(ahead);
            let target = (1u64 << 61) + ahead - back;
            let at = clock.ns_at_or_after(target).expect("the past is before the end of time");
            prop_assert!(clock.tsc_at(at) >= target);
            prop_assert!(clock.tsc_at(at - 1) < target);
        }
    }

    #[test]
    fn a_tsc_that_wraps_is_not_taken_for_the_past() {
        let line = clock(1000, u64::MAX - 9, 1_000_000);
        // Ten ticks of 1 ns later the TSC is 0.
        assert_eq!(line.tsc_at(1010), 0);
        assert_eq!(line.told_at(1005), line);
        assert_eq!(line.told_at(1010).ns_at_or_after(5), Some(1015));
    }
}
