// SPDX-License-Identifier: GPL-2.0
//! The TSC.

use super::Linux;
use crate::shim;
use pvmm_hostabi::{HostTime, Ns, TscKhz};

impl HostTime for Linux {
    fn tsc_khz() -> TscKhz {
        // SAFETY: reads a variable that is constant once the kernel has booted.
        TscKhz(unsafe { shim::pvmm_tsc_khz() })
    }

    fn tsc_is_stable() -> bool {
        // SAFETY: reads a flag.
        unsafe { shim::pvmm_tsc_is_stable() }
    }

    fn delay(ns: Ns) {
        // SAFETY: busy-waits.
        unsafe { shim::pvmm_delay_ns(ns.0) };
    }
}
