// SPDX-License-Identifier: GPL-2.0
//! The requests of the ioctl ABI. All of it is here, so that a port has only its device node and two copy functions.
#![forbid(unsafe_code)]

use super::Vm;
use core::mem::size_of;
use pvmm_hostabi::{ClaimError, Fault, Host, Mutex, OutOfMemory, WatchError};
use pvmm_uapi::*;

/// Why a request failed. A port turns it into its own error numbers; Linux's are named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// An argument is out of range, or a reserved field is not zero (`EINVAL`).
    Invalid,
    /// No such request (`ENOTTY`).
    NoSuchRequest,
    /// The caller's memory is not accessible (`EFAULT`).
    Fault,
    /// The host has no memory left (`ENOMEM`).
    OutOfMemory,
    /// A vCPU is running, or a device is in use (`EBUSY`).
    Busy,
    /// It is there already, or overlaps (`EEXIST`).
    Exists,
    /// The VM, or its vCPU, must be made first, or its clock set going (`ENXIO`).
    NotReady,
    /// The caller is not the process that made the vCPU (`EPERM`).
    WrongProcess,
    /// There is no such device (`ENODEV`).
    NoDevice,
    /// This host can't do that (`EOPNOTSUPP`).
    NotSupported,
    /// More than there is room for (`ENOSPC`).
    NoSpace,
    /// A signal is pending (`EINTR`).
    Interrupted,
    /// A device is in the middle of something; the guest has to run on before it is tried again (`EAGAIN`).
    NotAtRest,
    /// The state can't be captured or restored (`EIO`).
    Failed,
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<WatchError> for Error {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::OutOfMemory => Self::OutOfMemory,
            WatchError::Interrupted => Self::Interrupted,
        }
    }
}

impl From<Fault> for Error {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

impl From<ClaimError> for Error {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Busy => Self::Busy,
            ClaimError::Invalid => Self::Invalid,
            ClaimError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// Copies a structure in.
pub(super) fn read<H: Host, T: Pod + Default>(address: u64) -> Result<T, Error> {
    let mut value = T::default();
    H::copy_in(address, value.as_bytes_mut())?;
    Ok(value)
}

/// Copies a structure out.
pub(super) fn write<H: Host, T: Pod>(address: u64, value: &T) -> Result<(), Error> {
    Ok(H::copy_out(address, value.as_bytes())?)
}

/// The address of the `index`th element of an array of `T` at `base`.
pub(super) fn element<T: Pod>(base: u64, index: usize) -> Result<u64, Error> {
    (size_of::<T>() as u64)
        .checked_mul(index as u64)
        .and_then(|offset| base.checked_add(offset))
        .ok_or(Error::Fault)
}

impl<H: Host> Vm<H> {
    /// Carries out one request; returns its non-negative result. Process context.
    pub fn ioctl(&self, request: u32, argument: u64) -> Result<i64, Error> {
        match request {
            GET_API_VERSION => return Ok(i64::from(API_VERSION)),
            GET_CAPABILITIES => write::<H, _>(argument, &self.monitor.capabilities())?,
            GET_SUPPORTED_CPUID => self.get_supported_cpuid(argument)?,
            CREATE_VM => self.create_vm(&read::<H, _>(argument)?)?,
            SET_MEMORY_REGION => self.set_memory_region(&read::<H, _>(argument)?)?,
            CREATE_VCPU => self.create_vcpu(&read::<H, _>(argument)?)?,
            SET_CPUID => self.set_cpuid(argument)?,
            RUN => self.run(argument)?,
            GET_VCPU_STATE => self.get_vcpu_state(&read::<H, _>(argument)?)?,
            SET_VCPU_STATE => self.set_vcpu_state(&read::<H, _>(argument)?)?,
            GET_CLOCK => self.get_clock(argument)?,
            SET_CLOCK => self.set_clock(&read::<H, _>(argument)?)?,
            GET_CHIPSET_STATE => self.get_chipset_state(argument)?,
            SET_CHIPSET_STATE => self.set_chipset_state(argument)?,
            IRQ_LINE => self.irq_line(&read::<H, _>(argument)?)?,
            DIRTY_LOG => self.dirty_log(&read::<H, _>(argument)?)?,
            DIRTY_FETCH => self.dirty_fetch(argument)?,
            ATTACH_DEVICE => self.attach_device(argument)?,
            DEVICE_CAPTURE => self.device_capture(argument)?,
            DEVICE_EXECUTE => self.device_execute(argument)?,
            DEVICE_PEEK => self.device_peek(argument)?,
            DEVICE_TRACE => self.device_trace(argument)?,
            _ => return Err(Error::NoSuchRequest),
        }
        Ok(0)
    }

    fn create_vm(&self, create: &CreateVm) -> Result<(), Error> {
        let mut setup = self.setup.lock();
        if setup.is_some() {
            return Err(Error::Exists);
        }
        if create.flags & !VM_APIC != 0 {
            return Err(Error::Invalid);
        }
        let host_khz = self.monitor.tsc_khz().0;
        let tsc_khz = if create.tsc_khz == 0 {
            host_khz
        } else {
            create.tsc_khz
        };
        // A scaled rate is limited to what the multiplier and the timer arithmetic hold.
        if !(100_000..=100_000_000).contains(&tsc_khz) && tsc_khz != host_khz {
            return Err(Error::Invalid);
        }
        if tsc_khz != host_khz && !self.monitor.capability.has_tsc_scaling() {
            return Err(Error::NotSupported);
        }
        *setup = Some(super::Setup {
            create: CreateVm {
                flags: create.flags,
                tsc_khz,
            },
            regions: Default::default(),
        });
        Ok(())
    }

    fn irq_line(&self, line: &IrqLine) -> Result<(), Error> {
        if line.level > 1 || line.irq > 15 || matches!(line.irq, 0 | 2) {
            return Err(Error::Invalid);
        }
        self.parts()?.control.set_line(line.irq, line.level != 0);
        Ok(())
    }
}
