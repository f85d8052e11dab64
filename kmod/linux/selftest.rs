// SPDX-License-Identifier: GPL-2.0
//! `insmod pvmm.ko selftest=1`: the host-ABI conformance suite on this kernel.

use crate::host::{mem, Linux};
use crate::shim;
use kernel::prelude::*;
use pvmm_core::arch::x86::registers::rdtsc;
use pvmm_hostabi::conformance::{self, Fixture, USER_PAGES};
use pvmm_hostabi::{Hva, PAGE_SIZE};

/// Memory of the process that runs `insmod`.
struct UserPages(usize);

impl UserPages {
    fn map() -> Result<Self> {
        // SAFETY: maps fresh memory into the calling process.
        match unsafe { shim::pvmm_user_map(USER_PAGES as usize) } {
            0 => Err(ENOMEM),
            at => Ok(Self(at)),
        }
    }
}

impl Drop for UserPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` in the same process.
        unsafe { shim::pvmm_user_unmap(self.0, USER_PAGES as usize) };
    }
}

/// Runs the suite and reports each contract in the kernel log. Fails if one does not hold.
pub(crate) fn run() -> Result {
    let pages = UserPages::map()?;
    let start = pages.0 as u64;
    let fixture = Fixture {
        tsc: rdtsc,
        live: mem::live,
        user: Hva(start)..Hva(start + USER_PAGES * PAGE_SIZE),
    };
    let summary = conformance::run::<Linux>(&fixture, &mut |name, outcome| match outcome {
        Ok(()) => pr_info!("selftest: ok: {}\n", name),
        Err(failure) => pr_err!(
            "selftest: FAILED: {}: {}\n",
            name,
            format_args!("{failure}")
        ),
    });
    pr_info!(
        "selftest: {} passed, {} failed\n",
        summary.passed,
        summary.failed
    );
    if summary.failed == 0 && summary.passed > 0 {
        Ok(())
    } else {
        Err(EIO)
    }
}
