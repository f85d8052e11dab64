// SPDX-License-Identifier: GPL-2.0
//! The right to use the virtualisation hardware.

use crate::HostCpu;

/// Why VT-x cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmxUnavailable {
    /// The CPU has no VMX (CPUID.1:ECX.VMX is 0).
    Absent,
    /// Firmware has locked it out (IA32_FEATURE_CONTROL).
    DisabledByFirmware,
    /// CR4.VMXE is already set: another hypervisor owns the CPU.
    Busy,
    /// VMXON failed.
    Failed,
}

/// VMX operation. How a CPU gets into it is the host's business: a host that grants it for good returns an empty guard; a
/// host that cannot have CR4.VMXE set behind its back enters and leaves with the guard.
pub trait HostVmx: HostCpu {
    /// The CPU is in VMX root operation while this lives. What an exit leaves changed in the CPU and the host needs
    /// (descriptor-table limits, the task register's limit, CR4) is as before when it has been dropped. The current
    /// VMCS must have been cleared by then.
    type VmxOperation<'a>;

    /// Checks every online CPU. Process context.
    fn probe() -> Result<(), VmxUnavailable>;

    /// Enters VMX operation on this CPU, after a [`HostVmx::probe`] that succeeded. Fails if another hypervisor has taken
    /// the CPU since. Not nested.
    fn enter_vmx(irq: &Self::IrqOff) -> Result<Self::VmxOperation<'_>, VmxUnavailable>;
}
