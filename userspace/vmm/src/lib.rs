// SPDX-License-Identifier: GPL-2.0
//! The userspace half of a virtual machine.
//!
//! On the path of a guest access this is where an exit that the module does not serve itself arrives
//! ([`vcpu`]), is looked up on the bus of userspace ports ([`bus`]) and is answered by a device ([`com1`], [`rtc`]).
//! Beside that it makes a virtual machine ([`vm`]) out of the module's requests ([`ioctl`]), of memory ([`memory`])
//! and of what a guest finds at its start ([`boot`], [`acpi`]).
//!
//! What the process gives up before it does any of this is in [`confine`].
//!
//! All `unsafe` of the crate is in [`ioctl`] and [`confine::refused`].
#![deny(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod com1;
pub mod confine;
pub mod console;
pub mod cpuid;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod host_device;
pub mod hypervisor;
pub mod ioctl;
pub mod memory;
pub mod rtc;
pub mod spec;
pub mod vcpu;
pub mod vm;

pub use error::VmmError;
pub use hypervisor::{Hypervisor, HypervisorError, VmFd};
pub use spec::{DeviceKind, DeviceSpec, IrqChip, SpecError};
pub use vm::{Vm, VmConfig};
