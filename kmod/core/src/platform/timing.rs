// SPDX-License-Identifier: GPL-2.0
//! Real time for the monitor's own work on devices: it goes on while the VM's clock is stopped.
#![forbid(unsafe_code)]

use crate::arch::x86::registers::rdtsc;
use crate::replay::Timing;
use core::marker::PhantomData;
use core::num::NonZeroU64;
use pvmm_hostabi::{Host, Ns};

const NS_PER_MS: u64 = 1_000_000;

/// The host's time, from its TSC.
pub struct HostTiming<H: Host> {
    start: u64,
    khz: NonZeroU64,
    host: PhantomData<H>,
}

impl<H: Host> HostTiming<H> {
    /// Time that begins now. Any context.
    pub fn begin() -> Self {
        Self {
            start: rdtsc(),
            // A host that doesn't know its rate runs no guests. Should one say 0, limits are over at once.
            khz: NonZeroU64::new(H::tsc_khz().0.into()).unwrap_or(NonZeroU64::MIN),
            host: PhantomData,
        }
    }
}

impl<H: Host> Timing for HostTiming<H> {
    fn now_ns(&mut self) -> u64 {
        let ticks = rdtsc().saturating_sub(self.start);
        let whole = (ticks / self.khz).saturating_mul(NS_PER_MS);
        // Less than a rate of 32 bits, times a million.
        whole.saturating_add((ticks % self.khz) * NS_PER_MS / self.khz)
    }

    fn delay_ns(&mut self, ns: u64) {
        H::delay(Ns(ns));
    }
}
