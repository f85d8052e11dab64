// SPDX-License-Identifier: GPL-2.0
//! Time. The core reads the TSC itself; all its clocks are linear in it.

use crate::TscKhz;

/// What the host knows about its TSC.
pub trait HostTime {
    /// The TSC's rate. Constant while the module is loaded. Any context.
    fn tsc_khz() -> TscKhz;

    /// Whether the TSC is synchronised between CPUs and never stops. A host on which it is not cannot run guests.
    fn tsc_is_stable() -> bool;

    /// Busy-waits for at least `ns` nanoseconds. Any context; meant for microseconds.
    fn delay(ns: crate::Ns);
}
