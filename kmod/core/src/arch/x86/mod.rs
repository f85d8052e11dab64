// SPDX-License-Identifier: GPL-2.0
//! x86-64.
// Privileged instructions are what this folder is for; each use argues its safety.
#![allow(unsafe_code)]

pub mod cpuid;
pub mod msr;
pub mod registers;
pub mod snapshot;
pub mod vmx;
pub mod xsave;

use pvmm_hostabi::Host;

/// Reads the VMX capability of the current CPU. The host's probe must have found VMX.
pub fn read_capability<H: Host>() -> Result<vmx::capability::VmxCapability, vmx::capability::Missing>
{
    let _irq = H::irq_off();
    // SAFETY: the core runs in supervisor mode, and `HostVmx::probe` has found VMX on every CPU (the caller's order).
    unsafe { vmx::capability::VmxCapability::read() }
}

/// The host's XCR0; 1 if it does not use XSAVE.
pub fn host_xcr0<H: Host>() -> u64 {
    let _irq = H::irq_off();
    // SAFETY: the core runs in supervisor mode.
    if unsafe { registers::read_cr4() } & registers::CR4_OSXSAVE == 0 {
        return 1;
    }
    // SAFETY: CR4.OSXSAVE is set.
    unsafe { xsave::xgetbv0() }
}
