// SPDX-License-Identifier: GPL-2.0
//! The local APIC's timer (SDM volume 3, 12.5.4): one-shot, periodic and TSC-deadline.
//!
//! The count is never stepped: it is derived from the time at which it had a known value. That pair, the value in
//! the current-count register's place and the time in `timer_start`, moves to the peer.
#![forbid(unsafe_code)]

use super::registers::{
    CURRENT_COUNT, DIVIDE, INITIAL_COUNT, LVT_MASKED, LVT_TIMER, TIMER_MODE, TIMER_MODE_DEADLINE,
};
use super::LocalApic;
use crate::clock::GuestClock;

/// The frequency that the divide configuration divides, in Hz: the crystal clock of CPUID leaf 15H, as in Intel's
/// processors of today.
pub const CRYSTAL_HZ: u32 = 25_000_000;
/// VM nanoseconds of one period of it.
const NS_PER_CLOCK: u64 = 1_000_000_000 / CRYSTAL_HZ as u64;

/// A periodic timer of a shorter period, in nanoseconds, raises its interrupts together at most this often. Software could
/// otherwise keep the host's timer firing without pause; a processor at its limit would coalesce them as well, since IRR
/// holds one request per vector.
pub const MIN_PERIOD_NS: u64 = 100_000;

/// The timer mode of the LVT timer register, bits 18:17.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// 11b, reserved: nothing counts.
    Reserved,
}

impl Mode {
    pub(super) const fn of(lvt_timer: u32) -> Self {
        match lvt_timer >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

impl LocalApic {
    pub(super) const fn timer_mode(&self) -> Mode {
        Mode::of(self.registers[LVT_TIMER])
    }

    /// Nanoseconds per count: those of the crystal clock times 1, 2, 4, ... 128.
    const fn ns_per_count(&self) -> u64 {
        let field = self.registers[DIVIDE];
        // Bits 3, 1 and 0 make a number; 111b divides by 1, 000b by 2.
        let number = (field & 3) | (field >> 1 & 4);
        NS_PER_CLOCK << ((number + 1) & 7)
    }

    /// Lets the timer catch up: raises its interrupt if it ran out at `now` (VM nanoseconds) or at `tsc` (the guest's TSC
    /// at `now`). Several periods that passed raise one interrupt.
    pub fn advance(&mut self, now: u64, tsc: u64) {
        let expired = match self.timer_mode() {
            Mode::OneShot | Mode::Periodic => self.count_down(now),
            Mode::TscDeadline if self.tsc_deadline != 0 && tsc >= self.tsc_deadline => {
                self.tsc_deadline = 0;
                true
            }
            Mode::TscDeadline | Mode::Reserved => false,
        };
        if expired {
            self.raise_local(LVT_TIMER);
        }
    }

    /// Moves the known count up to `now` if it reached zero in between, and tells whether it did.
    fn count_down(&mut self, now: u64) -> bool {
        let count = u64::from(self.registers[CURRENT_COUNT]);
        let ticks = now.saturating_sub(self.timer_start) / self.ns_per_count();
        if count == 0 || ticks < count {
            return false;
        }
        let initial = self.registers[INITIAL_COUNT];
        if self.timer_mode() == Mode::OneShot || initial == 0 {
            self.registers[CURRENT_COUNT] = 0;
            return true;
        }
        let since_reload = (ticks - count) % u64::from(initial);
        // At most the time since the start, so that neither step overflows.
        self.timer_start += (ticks - since_reload) * self.ns_per_count();
        self.registers[CURRENT_COUNT] = initial;
        true
    }

    /// The current-count register. The timer has caught up with `now`.
    pub(super) const fn current_count(&self, now: u64) -> u32 {
        if !self.timer_mode().counts() {
            return 0;
        }
        let ticks = now.saturating_sub(self.timer_start) / self.ns_per_count();
        let count = self.registers[CURRENT_COUNT];
        if ticks >= count as u64 {
            0
        } else {
            count - ticks as u32
        }
    }

    /// A write of the initial count starts the timer; 0 stops it. Ignored in TSC-deadline mode.
    pub(super) fn set_initial_count(&mut self, value: u32, now: u64) {
        if self.timer_mode().counts() {
            self.registers[INITIAL_COUNT] = value;
            self.registers[CURRENT_COUNT] = value;
            self.timer_start = now;
        }
    }

    /// A write of the divide configuration changes the rate from here on; the count stays.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        self.registers[CURRENT_COUNT] = self.current_count(now);
        self.timer_start = now;
        self.registers[DIVIDE] = value;
    }

    /// A write of the LVT timer register. Going into or out of TSC-deadline mode disarms the timer.
    pub(super) fn set_lvt_timer(&mut self, value: u32) {
        let (old, new) = (self.timer_mode(), Mode::of(value));
        self.registers[LVT_TIMER] = value;
        if old != new && !(old.counts() && new.counts()) {
            self.registers[INITIAL_COUNT] = 0;
            self.registers[CURRENT_COUNT] = 0;
            self.tsc_deadline = 0;
        }
    }

    /// IA32_TSC_DEADLINE as the guest reads it: 0 when disarmed or in another mode.
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// A write of IA32_TSC_DEADLINE; 0 disarms. Ignored in another mode.
    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// When the timer raises its next interrupt, in VM nanoseconds: the time to call [`Self::advance`]. `None` if it
    /// will not, because it is stopped or masked. The answer holds until the next access.
    pub fn next_deadline(&self, clock: &GuestClock) -> Option<u64> {
        if self.registers[LVT_TIMER] & LVT_MASKED != 0 {
            return None;
        }
        let count = u64::from(self.registers[CURRENT_COUNT]);
        match self.timer_mode() {
            Mode::OneShot | Mode::Periodic if count == 0 => None,
            Mode::OneShot => self.timer_start.checked_add(count * self.ns_per_count()),
            Mode::Periodic => {
                let first = self.timer_start.checked_add(count * self.ns_per_count())?;
                let period = u64::from(self.registers[INITIAL_COUNT]) * self.ns_per_count();
                // As many periods as fit into the minimum, less the one that `first` already has.
                let together = MIN_PERIOD_NS
                    .saturating_sub(1)
                    .checked_div(period)
                    .unwrap_or(0);
                first.checked_add(period * together)
            }
            Mode::TscDeadline if self.tsc_deadline != 0 => clock.ns_at_or_after(self.tsc_deadline),
            Mode::TscDeadline | Mode::Reserved => None,
        }
    }

    /// Whether saved timer registers fit each other; the first that does not is returned.
    pub(super) const fn check_timer(registers: &[u32; 64], tsc_deadline: u64) -> Result<(), usize> {
        let mode = Mode::of(registers[LVT_TIMER]);
        if registers[CURRENT_COUNT] > registers[INITIAL_COUNT] {
            return Err(CURRENT_COUNT);
        }
        if !mode.counts() && registers[INITIAL_COUNT] != 0 {
            return Err(INITIAL_COUNT);
        }
        let deadline_mode = registers[LVT_TIMER] & TIMER_MODE == TIMER_MODE_DEADLINE;
        if tsc_deadline != 0 && !deadline_mode {
            return Err(LVT_TIMER);
        }
        Ok(())
    }
}
