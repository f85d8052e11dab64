// SPDX-License-Identifier: GPL-2.0
//! The guest's time across a move.
//!
//! The VM's clock stands still while the guest is paused, but the world's does not. So that the guest's clocks go on
//! without a step back and without falling behind, whoever lets it run again adds the pause:
//!
//! 1. The source sends [`crate::message::Paused`] at the moment of the pause. Every earlier record has been answered, so
//!    nothing delays it, and the target notes its own monotonic clock on receipt.
//! 2. The source sends the clock as it stood at the pause.
//! 3. Before it starts the guest, the target adds the time that passed *on its own clock* since 1 to the VM's nanoseconds and,
//!    at the guest's TSC rate, to its TSC.
//!
//! The two hosts' clocks are never compared. What is lost is the way of the marker (half a round trip) and the microseconds
//! between the addition and the first instruction, so the guest's time jumps ahead by at most the downtime, and never
//! back. If the move fails, the source does the same with its own clock. A guest that its operator had paused before the
//! move keeps its time.
//!
//! Two hosts of the same part measure TSC rates that differ by a few parts per million. Rates within
//! [`crate::compat::TSC_TOLERANCE_PPM`] count as the same: the guest then takes over the target's, in its description and in
//! its clock, so that its TSC needs no scaling there; its own timekeeping follows as it follows any drifting clock.

use pvmm_uapi::Clock;
use std::time::Duration;

/// The clock `elapsed` later, and going. Saturates at the end of the range, which is centuries away.
pub fn advance(clock: &Clock, elapsed: Duration) -> Clock {
    let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    // kHz are ticks per millisecond. u64 * u32 fits into 96 bits.
    let ticks = u128::from(ns) * u128::from(clock.tsc_khz) / 1_000_000;
    Clock {
        vm_ns: clock.vm_ns.saturating_add(ns),
        // The TSC wraps as the hardware's does.
        tsc: clock.tsc.wrapping_add(ticks as u64),
        tsc_khz: clock.tsc_khz,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pause_is_added_to_both_counters_at_their_rates() {
        let clock = Clock {
            vm_ns: 5_000_000_000,
            tsc: 100,
            tsc_khz: 2_500_000,
            flags: 0,
        };
        let later = advance(&clock, Duration::from_millis(40));
        assert_eq!(later.vm_ns, 5_040_000_000);
        assert_eq!(later.tsc, 100 + 40 * 2_500_000);
        assert_eq!(later.tsc_khz, clock.tsc_khz);
    }

    proptest! {
        #[test]
        fn time_never_steps_back(vm_ns in 0u64..1 << 62, tsc in 0u64..1 << 62, tsc_khz in 1u32..10_000_000, ms in 0u64..100_000_000) {
            let clock = Clock { vm_ns, tsc, tsc_khz, flags: 0 };
            let later = advance(&clock, Duration::from_millis(ms));
            prop_assert!(later.vm_ns >= vm_ns && later.tsc >= tsc);
            prop_assert_eq!(later.vm_ns - vm_ns, ms * 1_000_000);
            prop_assert_eq!(later.tsc - tsc, ms * u64::from(tsc_khz));
        }
    }
}
