// SPDX-License-Identifier: GPL-2.0
//! Request numbers. The encoding is Linux's `_IOC` (direction, size, type, number), computed here so that the
//! core and userspace agree on it on every host.

use crate::{
    AttachDevice, Capabilities, ChipsetState, Clock, CpuidTable, CreateVcpu, CreateVm,
    DeviceCapture, DeviceExecute, DevicePeek, DeviceTrace, DirtyFetch, DirtyLog, IrqLine,
    MemoryRegion, Run, VcpuStateRequest,
};
use core::mem::size_of;

/// The `_IOC` type byte of every pvmm request.
pub const IOCTL_TYPE: u32 = 0xB5;

const WRITE: u32 = 1;
const READ: u32 = 2;

const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    // `_IOC` has 14 bits for the size; every structure here is far smaller.
    (direction << 30) | ((size as u32) << 16) | (IOCTL_TYPE << 8) | number
}

const fn io(number: u32) -> u32 {
    ioc(0, number, 0)
}

const fn iow<T>(number: u32) -> u32 {
    ioc(WRITE, number, size_of::<T>())
}

const fn ior<T>(number: u32) -> u32 {
    ioc(READ, number, size_of::<T>())
}

const fn iowr<T>(number: u32) -> u32 {
    ioc(READ | WRITE, number, size_of::<T>())
}

/// Size in bytes of the structure that a request carries.
pub const fn request_size(request: u32) -> usize {
    ((request >> 16) & 0x3fff) as usize
}

/// Returns [`crate::API_VERSION`] as the ioctl's result. Always allowed.
pub const GET_API_VERSION: u32 = io(0x00);
/// What this module and this host can do. Always allowed.
pub const GET_CAPABILITIES: u32 = ior::<Capabilities>(0x01);
/// The CPUID table that a guest gets on this host when nothing narrower is set. Always allowed.
pub const GET_SUPPORTED_CPUID: u32 = iowr::<CpuidTable>(0x02);
/// Makes this open file a virtual machine.
pub const CREATE_VM: u32 = iow::<CreateVm>(0x10);
/// Adds one range of guest-physical memory.
pub const SET_MEMORY_REGION: u32 = iow::<MemoryRegion>(0x11);
/// Adds a virtual CPU. A signal that arrives meanwhile ends it with `EINTR` and without one.
pub const CREATE_VCPU: u32 = iow::<CreateVcpu>(0x12);
/// Sets a vCPU's CPUID table; refused with `EINVAL` if the host cannot provide a feature in it.
pub const SET_CPUID: u32 = iowr::<CpuidTable>(0x13);
/// Runs a vCPU until userspace has something to do. One thread per vCPU at a time (`EBUSY` otherwise); the VM's clock must
/// not be stopped (`ENXIO`).
pub const RUN: u32 = iowr::<Run>(0x20);
/// Reads a vCPU's architectural state. The vCPU must not be running (`EBUSY`).
pub const GET_VCPU_STATE: u32 = iow::<VcpuStateRequest>(0x21);
/// Writes a vCPU's architectural state. The vCPU must not be running (`EBUSY`).
pub const SET_VCPU_STATE: u32 = iow::<VcpuStateRequest>(0x22);
/// Reads the VM's clock. Also while a vCPU runs.
pub const GET_CLOCK: u32 = ior::<Clock>(0x23);
/// Sets the VM's clock and, with it, every vCPU's TSC, and stops it or lets it go on ([`crate::CLOCK_STOPPED`]). No vCPU may
/// be running (`EBUSY`).
pub const SET_CLOCK: u32 = iow::<Clock>(0x24);
/// Reads the chipset's state. No vCPU may be running (`EBUSY`).
pub const GET_CHIPSET_STATE: u32 = ior::<ChipsetState>(0x25);
/// Writes the chipset's state. No vCPU may be running (`EBUSY`).
pub const SET_CHIPSET_STATE: u32 = iow::<ChipsetState>(0x26);
/// Drives one of the VM's interrupt lines, for devices that live in userspace.
pub const IRQ_LINE: u32 = iow::<IrqLine>(0x30);
/// Starts or stops dirty tracking.
pub const DIRTY_LOG: u32 = iow::<DirtyLog>(0x40);
/// Fetches and clears dirty pages.
pub const DIRTY_FETCH: u32 = iowr::<DirtyFetch>(0x41);
/// Gives the VM a device; claims it from the host when it is physical.
pub const ATTACH_DEVICE: u32 = iowr::<AttachDevice>(0x50);
/// Captures a device's state. No vCPU may be running (`EBUSY`).
pub const DEVICE_CAPTURE: u32 = iowr::<DeviceCapture>(0x51);
/// Executes a restore plan on a device. No vCPU may be running (`EBUSY`).
pub const DEVICE_EXECUTE: u32 = iowr::<DeviceExecute>(0x52);
/// Looks at a device's state without changing it. No vCPU may be running (`EBUSY`), but the VM's clock may go on.
pub const DEVICE_PEEK: u32 = iowr::<DevicePeek>(0x53);
/// Notes what the guest does to a device. Also while a vCPU runs.
pub const DEVICE_TRACE: u32 = iowr::<DeviceTrace>(0x54);
