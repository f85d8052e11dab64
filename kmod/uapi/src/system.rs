// SPDX-License-Identifier: GPL-2.0
//! What the module and the host can do, and how a VM is made.

/// Version of this ABI. A daemon refuses to work with a module that reports another one.
pub const API_VERSION: u32 = 1;

/// Highest number of vCPUs in a VM.
pub const MAX_VCPUS: u32 = 1;

/// [`Capabilities::features`]: page-modification logging is used for dirty tracking.
pub const FEATURE_PML: u64 = 1 << 0;
/// [`Capabilities::features`]: EPT accessed and dirty flags.
pub const FEATURE_EPT_AD: u64 = 1 << 1;
/// [`Capabilities::features`]: TSC scaling, so that a guest keeps its TSC rate on a host with another one.
pub const FEATURE_TSC_SCALING: u64 = 1 << 2;
/// [`Capabilities::features`]: virtual-processor identifiers.
pub const FEATURE_VPID: u64 = 1 << 3;

/// Answer to [`crate::GET_CAPABILITIES`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `FEATURE_*` bits.
    pub features: u64,
    /// [`API_VERSION`] of the module.
    pub api_version: u32,
    /// Highest number of vCPUs in a VM.
    pub max_vcpus: u32,
    /// Host CPUs that are online.
    pub host_cpus: u32,
    /// The host's TSC rate in kHz.
    pub tsc_khz: u32,
    /// XCR0 bits that a guest may set (SDM volume 1, 13.3).
    pub supported_xcr0: u64,
    /// IA32_VMX_BASIC (SDM volume 3, appendix A.1), for diagnosis.
    pub vmx_basic: u64,
    /// IA32_VMX_EPT_VPID_CAP (SDM volume 3, appendix A.10), for diagnosis.
    pub vmx_ept_vpid_cap: u64,
    /// IA32_VMX_PROCBASED_CTLS2 (SDM volume 3, appendix A.3.3), for diagnosis.
    pub vmx_procbased_ctls2: u64,
    /// The module's version, NUL-padded ASCII.
    pub module_version: [u8; 32],
}

/// [`CreateVm::flags`]: the VM has a local APIC and an I/O APIC beside the 8259 pair.
pub const VM_APIC: u32 = 1 << 0;

/// Argument of [`crate::CREATE_VM`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateVm {
    /// `VM_*` bits.
    pub flags: u32,
    /// The guest's TSC rate in kHz; 0 takes the host's. Another rate than the host's needs [`FEATURE_TSC_SCALING`]
    /// (`EOPNOTSUPP` otherwise).
    pub tsc_khz: u32,
}

/// The VM's clock, for [`crate::GET_CLOCK`] and [`crate::SET_CLOCK`].
///
/// Every timer model counts in VM nanoseconds, and the guest's TSC is a linear function of them, so these values together
/// place the guest in time.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds since the VM was made, not counting the time that the clock was stopped.
    pub vm_ns: u64,
    /// The guest's TSC (before IA32_TSC_ADJUST) at `vm_ns`.
    pub tsc: u64,
    /// The guest's TSC rate in kHz. Must be the VM's own on set.
    pub tsc_khz: u32,
    /// `CLOCK_*` bits.
    pub flags: u32,
}

/// Bit of [`Clock::flags`]: the clock stands still at these values. A VM with such a clock can't run; setting the clock
/// without the bit lets time go on from the new values.
pub const CLOCK_STOPPED: u32 = 1 << 0;

/// Argument of [`crate::IRQ_LINE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqLine {
    /// ISA interrupt 0 to 15, except 0 and 2, which belong to the VM itself.
    pub irq: u32,
    /// 0 or 1.
    pub level: u32,
}
