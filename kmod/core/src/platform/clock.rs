// SPDX-License-Identifier: GPL-2.0
//! The VM's clock: VM nanoseconds and the guest's TSC, both linear in the host's TSC, or both standing still.
//!
//! Everything that a guest can tell time by is computed from one counter, so its clocks can't drift apart. While the VM is
//! paused the clock is stopped, so that all parts of the machine are captured, and restored, at the same instant.
#![forbid(unsafe_code)]

use crate::clock::GuestClock;
use core::num::NonZeroU64;
use pvmm_uapi::{Clock, CLOCK_STOPPED};

const NS_PER_MS: u64 = 1_000_000;
/// Fraction bits of the TSC multiplier (SDM volume 3, 26.6.5).
const MULTIPLIER_FRACTION: u32 = 48;

/// A point in both times, and the rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmClock {
    host_tsc: u64,
    /// As a non-zero type, so that divisions by it have no panic, which a static checker of the kernel would trip over.
    host_khz: NonZeroU64,
    point: Clock,
    line: GuestClock,
}

impl VmClock {
    /// The clock that shows `point` when the host's TSC is `host_tsc`, and stays there if the point's flags say so. `None`
    /// if a rate is 0.
    pub const fn new(point: Clock, host_tsc: u64, host_khz: u32) -> Option<Self> {
        match (GuestClock::new(&point), NonZeroU64::new(host_khz as u64)) {
            (Some(line), Some(host_khz)) => Some(Self {
                host_tsc,
                host_khz,
                point,
                line,
            }),
            _ => None,
        }
    }

    /// Whether the clock stands still.
    pub const fn is_stopped(&self) -> bool {
        self.point.flags & CLOCK_STOPPED != 0
    }

    /// VM nanoseconds at the host's TSC `tsc`. Never before the point: a TSC that seems to have gone back counts as the
    /// point's.
    pub fn vm_ns(&self, tsc: u64) -> u64 {
        if self.is_stopped() {
            return self.point.vm_ns;
        }
        let ticks = tsc.saturating_sub(self.host_tsc);
        let khz = self.host_khz;
        let whole = (ticks / khz).wrapping_mul(NS_PER_MS);
        self.point
            .vm_ns
            .wrapping_add(whole)
            .wrapping_add((ticks % khz) * NS_PER_MS / khz)
    }

    /// Host TSC ticks in `ns` nanoseconds, rounded up.
    pub const fn host_ticks(&self, ns: u64) -> u64 {
        let khz = self.host_khz.get();
        (ns / NS_PER_MS)
            .saturating_mul(khz)
            .saturating_add(((ns % NS_PER_MS) * khz).div_ceil(NS_PER_MS))
    }

    /// The TSC multiplier; 0 if the guest's rate is the host's.
    pub fn multiplier(&self) -> u64 {
        if u64::from(self.point.tsc_khz) == self.host_khz.get() {
            return 0;
        }
        // (guest / host) * 2^48 in two steps, as the product has more than 64 bits.
        let (guest, host) = (u64::from(self.point.tsc_khz), self.host_khz);
        let high = (guest << 24) / host;
        let rest = (guest << 24) % host;
        (high << 24) | ((rest << 24) / host)
    }

    /// What to add to the host's TSC, scaled, for the guest's, without IA32_TSC_ADJUST.
    pub fn tsc_offset(&self) -> u64 {
        self.point.tsc.wrapping_sub(self.scale(self.host_tsc))
    }

    fn scale(&self, tsc: u64) -> u64 {
        match self.multiplier() {
            0 => tsc,
            multiplier => {
                ((u128::from(tsc) * u128::from(multiplier)) >> MULTIPLIER_FRACTION) as u64
            }
        }
    }

    /// Both times at the host's TSC `tsc`.
    pub fn at(&self, tsc: u64) -> Clock {
        if self.is_stopped() {
            return self.point;
        }
        Clock {
            vm_ns: self.vm_ns(tsc),
            tsc: self.scale(tsc).wrapping_add(self.tsc_offset()),
            tsc_khz: self.point.tsc_khz,
            flags: 0,
        }
    }

    /// The line between VM nanoseconds and the guest's TSC with IA32_TSC_ADJUST `adjust`.
    pub const fn guest_clock(&self, adjust: u64) -> GuestClock {
        self.line.adjusted(adjust)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(vm_ns: u64, tsc: u64, tsc_khz: u32) -> Clock {
        Clock {
            vm_ns,
            tsc,
            tsc_khz,
            flags: 0,
        }
    }

    #[test]
    fn a_clock_without_a_rate_is_refused() {
        assert_eq!(VmClock::new(point(0, 0, 0), 0, 1), None);
        assert_eq!(VmClock::new(point(0, 0, 1), 0, 0), None);
    }

    #[test]
    fn at_the_hosts_own_rate_the_tsc_is_offset_only() {
        let clock =
            VmClock::new(point(10, 100, 2_000_000), 5000, 2_000_000).expect("rates are set");
        assert_eq!(clock.multiplier(), 0);
        assert_eq!(clock.at(5000), point(10, 100, 2_000_000));
        assert_eq!(
            clock.at(2_000_005_000),
            point(1_000_000_010, 2_000_000_100, 2_000_000)
        );
    }

    #[test]
    fn a_stopped_clock_shows_the_same_whenever_it_is_looked_at() {
        let stopped = Clock {
            flags: CLOCK_STOPPED,
            ..point(10, 100, 2_000_000)
        };
        let clock = VmClock::new(stopped, 5000, 1_000_000).expect("rates are set");
        assert!(clock.is_stopped());
        assert_eq!(clock.vm_ns(5000), clock.vm_ns(1 << 50));
        assert_eq!(clock.at(1 << 50), stopped);
    }

    proptest! {
        #[test]
        fn time_never_goes_back_and_both_clocks_agree(
            host_khz in 100_000u32..6_000_000, guest_khz in 100_000u32..6_000_000,
            start in 0..1u64 << 40, first in 0..1u64 << 44, second in 0..1u64 << 44,
        ) {
            let clock = VmClock::new(point(7, 9, guest_khz), start, host_khz).expect("rates are set");
            let (first, second) = (start + first.min(second), start + first.max(second));
            let (a, b) = (clock.at(first), clock.at(second));
            prop_assert!(a.vm_ns <= b.vm_ns && a.tsc <= b.tsc);
            let exact = i128::from(b.vm_ns - 7) * i128::from(guest_khz) / 1_000_000;
            // The multiplier has 48 bits of fraction, the nanosecond is a unit of rounding.
            let tolerance = i128::from(second >> 20) + i128::from(guest_khz) / 1_000_000 + 2;
            prop_assert!((exact - i128::from(b.tsc - 9)).abs() <= tolerance);
        }

        #[test]
        fn ticks_cover_the_nanoseconds(ns in 0..1u64 << 40, khz in 1000u32..6_000_000) {
            let clock = VmClock::new(point(0, 0, khz), 0, khz).expect("rates are set");
            prop_assert!(clock.vm_ns(clock.host_ticks(ns)) + 1 >= ns);
        }
    }
}
