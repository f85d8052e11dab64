// SPDX-License-Identifier: GPL-2.0
//! What the daemon needs of the module, as two traits: [`Hypervisor`] makes virtual machines, [`VmFd`] is one.
//!
//! The real one is [`crate::ioctl::DevPvmm`]; tests use a fake. The methods are the requests of `pvmm-uapi`, one each,
//! with arrays as slices; errors are the kernel's, with the request's name and what a user can do about it.

use crate::memory::GuestRegion;
use nix::errno::Errno;
use pvmm_uapi::{
    AttachDevice, Capabilities, ChipsetState, Clock, CpuidEntry, CreateVm, DeviceExecute,
    DevicePeek, DirtyRange, IrqLine, PlanStep, Run, StateRecord, TraceEntry, VcpuState,
    PEEK_OVERFLOWED, PEEK_UNRECORDED,
};
use std::sync::Arc;

/// Makes virtual machines.
pub trait Hypervisor: Send + Sync {
    /// What module and host can do. Fails if there is no module, or one with another ABI.
    fn capabilities(&self) -> Result<Capabilities, HypervisorError>;

    /// The CPUID table that a guest gets here when nothing narrower is set.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError>;

    /// Makes a virtual machine without memory, vCPU or attached device.
    fn create_vm(&self, arguments: &CreateVm) -> Result<Box<dyn VmFd>, HypervisorError>;
}

/// One virtual machine. It ends, with all that it owns, when this is dropped.
///
/// Every method may be called from any thread. Those that touch a vCPU or what belongs to all vCPUs fail with `EBUSY`
/// while one runs, as their request's documentation says.
pub trait VmFd: Send + Sync {
    /// Adds guest memory. Keeps the mapping alive at least as long as the virtual machine.
    fn set_memory_region(&self, region: &Arc<GuestRegion>) -> Result<(), HypervisorError>;
    /// Adds the vCPU numbered `vcpu`.
    fn create_vcpu(&self, vcpu: u32) -> Result<(), HypervisorError>;
    /// Sets a vCPU's CPUID table.
    fn set_cpuid(&self, vcpu: u32, entries: &[CpuidEntry]) -> Result<(), HypervisorError>;
    /// Runs a vCPU until userspace has something to do. `EINTR` when a signal came.
    fn run(&self, run: &mut Run) -> Result<(), HypervisorError>;
    /// Reads a vCPU's state.
    fn vcpu_state(&self, vcpu: u32) -> Result<Box<VcpuState>, HypervisorError>;
    /// Writes a vCPU's state.
    fn set_vcpu_state(&self, vcpu: u32, state: &VcpuState) -> Result<(), HypervisorError>;
    /// Reads the clock.
    fn clock(&self) -> Result<Clock, HypervisorError>;
    /// Sets the clock.
    fn set_clock(&self, clock: &Clock) -> Result<(), HypervisorError>;
    /// Reads the chipset's state.
    fn chipset_state(&self) -> Result<ChipsetState, HypervisorError>;
    /// Writes the chipset's state.
    fn set_chipset_state(&self, state: &ChipsetState) -> Result<(), HypervisorError>;
    /// Drives an interrupt line.
    fn irq_line(&self, line: IrqLine) -> Result<(), HypervisorError>;
    /// Starts or stops dirty tracking.
    fn dirty_log(&self, enable: bool) -> Result<(), HypervisorError>;
    /// Fetches and clears dirty pages into `ranges`. Returns how many entries were written, and if dirty pages were
    /// left because the array was full.
    fn dirty_fetch(&self, ranges: &mut [DirtyRange]) -> Result<(usize, bool), HypervisorError>;
    /// Gives the virtual machine a device; returns its number.
    fn attach_device(&self, device: &AttachDevice) -> Result<u32, HypervisorError>;
    /// Captures a device's state.
    fn device_capture(&self, device: u32) -> Result<CapturedDevice, HypervisorError>;
    /// Executes a restore plan. The outcome (see `OUTCOME_*`) is in the answer.
    fn device_execute(
        &self,
        device: u32,
        steps: &[PlanStep],
    ) -> Result<DeviceExecute, HypervisorError>;
    /// Looks at a device without changing it.
    fn device_peek(&self, device: u32) -> Result<PeekedDevice, HypervisorError>;
    /// Notes what the guest does to a device from now on. Also while a vCPU runs, as the next two.
    fn trace_start(&self, device: u32) -> Result<(), HypervisorError>;
    /// Takes the oldest entries of a trace into `entries`: how many, and how many accesses were lost since the start.
    fn trace_fetch(
        &self,
        device: u32,
        entries: &mut [TraceEntry],
    ) -> Result<(usize, u64), HypervisorError>;
    /// Ends a trace.
    fn trace_stop(&self, device: u32) -> Result<(), HypervisorError>;
}

/// What a look at a device gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeekedDevice {
    /// `KIND_*`.
    pub kind: u32,
    /// `BACKEND_*`.
    pub backend: u32,
    /// Its log, what could be read, and what a model knows beside that, in this order.
    pub records: Vec<StateRecord>,
    /// Accesses in its recorder's log.
    pub log_length: u32,
    /// Most accesses that the log can hold.
    pub log_bound: u32,
    /// If the recorder sees the guest's accesses.
    pub recorded: bool,
    /// If the log has lost one.
    pub overflowed: bool,
}

impl PeekedDevice {
    /// The answer to a request, with its array.
    pub fn new(answer: &DevicePeek, records: Vec<StateRecord>) -> Self {
        Self {
            kind: answer.kind,
            backend: answer.backend,
            records,
            log_length: answer.log_length,
            log_bound: answer.log_bound,
            recorded: answer.flags & PEEK_UNRECORDED == 0,
            overflowed: answer.flags & PEEK_OVERFLOWED != 0,
        }
    }
}

/// What a device's capture gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedDevice {
    /// `KIND_*`.
    pub kind: u32,
    /// Version of the kind's state layout.
    pub version: u32,
    /// The state.
    pub records: Vec<StateRecord>,
}

/// Why a request to the module failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// There is no usable `/dev/pvmm`.
    #[error("cannot open {path}: {reason}; {advice}")]
    Open {
        /// The device file.
        path: String,
        /// The kernel's reason.
        reason: Errno,
        /// What to do.
        advice: &'static str,
    },
    /// The module speaks another version of the ABI.
    #[error(
        "the loaded pvmm module speaks ABI version {module}, this pvmmd version {daemon}; load the module that was \
         built with this pvmmd (rmmod pvmm, then insmod)"
    )]
    Version {
        /// The module's version.
        module: u32,
        /// Ours.
        daemon: u32,
    },
    /// A request failed.
    #[error("{request} failed: {errno}{}", advice(.request, *.errno))]
    Request {
        /// Its name in `pvmm-uapi`.
        request: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// A device is in the middle of something that the guest has to finish before it can be captured.
    #[error(
        "the state of device {device} cannot be captured now: register {register} of its kind shows that it is in the middle \
         of something; let the guest run on and try again"
    )]
    NotAtRest {
        /// Its number.
        device: u32,
        /// The register, numbered by the kind's register table.
        register: u16,
    },
    /// The host cannot provide a CPUID table.
    #[error(
        "this host cannot provide CPUID leaf {leaf:#x} subleaf {subleaf:#x} {register} (bits {bits:#x}); the guest \
         needs a host whose CPU has them"
    )]
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
        /// Name of the register.
        register: &'static str,
        /// The bits in question.
        bits: u32,
    },
}

impl HypervisorError {
    /// A failed request.
    pub fn request(request: &'static str, errno: Errno) -> Self {
        Self::Request { request, errno }
    }

    /// If the request was interrupted by a signal.
    pub fn is_interrupted(&self) -> bool {
        matches!(
            self,
            Self::Request {
                errno: Errno::EINTR,
                ..
            }
        )
    }
}

/// What a user can do about a failed request, as the end of a sentence.
fn advice(request: &&'static str, errno: Errno) -> &'static str {
    match (*request, errno) {
        ("CREATE_VM", Errno::EBUSY) => {
            "; another hypervisor owns this CPU's VT-x: unload it (for KVM: rmmod kvm_intel)"
        }
        ("CREATE_VM", Errno::ENODEV) => {
            "; this CPU has no usable VT-x: enable it in the firmware setup"
        }
        ("CREATE_VM", Errno::EOPNOTSUPP) => {
            "; this host's CPU has no TSC scaling, so it can only take guests with its own TSC rate"
        }
        ("ATTACH_DEVICE", Errno::EBUSY) => {
            "; the ports or the interrupt belong to a host driver or to another guest (see /proc/ioports and /proc/interrupts; \
             `pvmmd host devices` says how to free a device)"
        }
        ("ATTACH_DEVICE", Errno::ENODEV) => "; there is no such device at the host's port",
        ("ATTACH_DEVICE", Errno::EEXIST) => "; the guest already has a device at these ports",
        ("DEVICE_TRACE", Errno::EEXIST) => {
            "; a device of the guest is being traced already, and one can be at a time: end that first"
        }
        ("SET_MEMORY_REGION", Errno::EEXIST) => "; the region overlaps another one",
        (_, Errno::EBUSY) => "; a vCPU of the guest is running",
        (_, Errno::ENOMEM) => "; the host has not enough memory",
        (_, Errno::ENOTTY) => "; the loaded pvmm module does not know this request",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_request_and_says_what_to_do() {
        let text = HypervisorError::request("ATTACH_DEVICE", Errno::EBUSY).to_string();
        assert!(text.starts_with("ATTACH_DEVICE failed: EBUSY"), "{text}");
        assert!(text.contains("/proc/ioports"), "{text}");
    }
}
