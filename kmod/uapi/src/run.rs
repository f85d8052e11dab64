// SPDX-License-Identifier: GPL-2.0
//! Running a vCPU and the reasons why it comes back to userspace.

/// [`Run::exit`]: the call was interrupted by a signal (the ioctl also fails with `EINTR`), or asked to return.
pub const EXIT_INTERRUPTED: u32 = 0;
/// [`Run::exit`]: the guest accessed a port that userspace serves. For a read, put the value into [`Run::value`]
/// and run again.
pub const EXIT_IO: u32 = 1;
/// [`Run::exit`]: the guest accessed guest-physical memory that is neither RAM nor modelled. As [`EXIT_IO`].
pub const EXIT_MMIO: u32 = 2;
/// [`Run::exit`]: the guest shut down (triple fault).
pub const EXIT_SHUTDOWN: u32 = 3;
/// [`Run::exit`]: the guest executed HLT with interrupts disabled, and nothing can wake it but an NMI or INIT.
pub const EXIT_HALTED_FOREVER: u32 = 4;
/// [`Run::exit`]: the monitor cannot go on with this guest; [`Run::error`] says why. The vCPU's state can still be read.
pub const EXIT_INTERNAL_ERROR: u32 = 5;

/// [`Run::exit`]: the guest asked to be powered off (ACPI S5).
pub const EXIT_POWER_OFF: u32 = 6;
/// [`Run::exit`]: the guest asked to be reset.
pub const EXIT_RESET: u32 = 7;

/// [`Run::error`]: VM entry failed because of invalid guest state; [`Run::value`] holds the exit qualification.
pub const ERROR_INVALID_GUEST_STATE: u32 = 1;
/// [`Run::error`]: an instruction that accesses a device could not be decoded; [`Run::address`] holds RIP.
pub const ERROR_DECODE: u32 = 2;
/// [`Run::error`]: VM-instruction error; [`Run::value`] holds its number (SDM volume 3, 32.4).
pub const ERROR_VM_INSTRUCTION: u32 = 3;
/// [`Run::error`]: the host could not provide a page of guest memory; [`Run::address`] holds the guest-physical address.
pub const ERROR_GUEST_MEMORY: u32 = 4;
/// [`Run::error`]: an exit reason that this monitor does not know; [`Run::value`] holds it.
pub const ERROR_UNKNOWN_EXIT: u32 = 5;

/// [`Run::error`]: another hypervisor has taken the virtualisation hardware. The guest can go on when it is free again.
pub const ERROR_VMX_UNAVAILABLE: u32 = 6;

/// [`Run::error`]: an interrupt or exception could not be delivered, because a table or the stack that it needs is not in
/// memory; [`Run::address`] holds the guest-physical address, [`Run::value`] holds RIP.
pub const ERROR_EVENT_DELIVERY: u32 = 7;

/// Argument of [`crate::RUN`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Which vCPU.
    pub vcpu: u32,
    /// Out: `EXIT_*`.
    pub exit: u32,
    /// Out: port of [`EXIT_IO`], guest-physical address of [`EXIT_MMIO`].
    pub address: u64,
    /// Out: value written. In: value read, when the last exit was a read.
    pub value: u64,
    /// Out: width of the access in bytes, 1, 2, 4 or 8.
    pub width: u32,
    /// Out: 1 for a write, 0 for a read.
    pub write: u32,
    /// Out: `ERROR_*` of [`EXIT_INTERNAL_ERROR`].
    pub error: u32,
    /// In: 1 returns before the guest runs, with the last access completed. Lets userspace finish a read before it
    /// captures state.
    pub immediate_exit: u32,
}
