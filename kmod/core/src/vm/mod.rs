// SPDX-License-Identifier: GPL-2.0
//! A virtual machine: one open file of the host's device node.
//!
//! Lock order: `setup`, then `vcpu`, then `live`, then `clock`. The vCPU's lock is held while it runs; requests that must
//! work meanwhile take only the others, and only long enough to copy what is in them.
#![forbid(unsafe_code)]

mod cpu;
mod device;
mod dispatch;
mod inspect;
mod memory;
#[cfg(test)]
mod tests;

pub use dispatch::Error;

use crate::memory::regions::Regions;
use crate::memory::GuestMemory;
use crate::monitor::Monitor;
use crate::platform::VmClock;
use crate::vcpu::{Control, Surroundings, Vcpu};
use pvmm_hostabi::{Host, Mutex, OutOfMemory};
use pvmm_uapi::CreateVm;

/// What was asked for before the first vCPU was made.
#[derive(Clone, Copy)]
struct Setup {
    create: CreateVm,
    regions: Regions,
}

/// What requests use while a vCPU runs.
struct Parts<H: Host> {
    memory: H::Shared<GuestMemory<H>>,
    control: H::Shared<Control<H>>,
    space: H::Shared<H::AddressSpace>,
}

impl<H: Host> Clone for Parts<H> {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            control: self.control.clone(),
            space: self.space.clone(),
        }
    }
}

/// The VM's shared parts and the registration that keeps them true. The registration goes first.
struct Live<H: Host> {
    _watch: H::Watch<GuestMemory<H>>,
    parts: Parts<H>,
}

/// A virtual machine, or an open file that has not become one yet.
pub struct Vm<H: Host> {
    monitor: H::Shared<Monitor<H>>,
    setup: H::Mutex<Option<Setup>>,
    vcpu: H::Mutex<Option<H::Box<Vcpu<H>>>>,
    live: H::Mutex<Option<Live<H>>>,
    /// The platform's clock once more, for who asks while the vCPU runs.
    clock: H::SpinLock<Option<VmClock>>,
}

impl<H: Host> Vm<H> {
    /// An open file. Process context.
    pub fn new(monitor: H::Shared<Monitor<H>>) -> Result<Self, OutOfMemory> {
        Ok(Self {
            monitor,
            setup: H::mutex(None)?,
            vcpu: H::mutex(None)?,
            live: H::mutex(None)?,
            clock: H::spin_lock(None)?,
        })
    }

    /// The shared parts. Fails before the first vCPU is made, and for a caller that is not the owner: guest memory is its.
    fn parts(&self) -> Result<Parts<H>, Error> {
        let live = self.live.lock();
        let parts = live.as_ref().ok_or(Error::NotReady)?.parts.clone();
        if !H::is_current(&parts.space) {
            return Err(Error::WrongProcess);
        }
        Ok(parts)
    }

    /// Calls `body` with the vCPU, unless it runs.
    fn with_vcpu<R>(
        &self,
        body: impl FnOnce(&mut Vcpu<H>, &Surroundings<'_, H>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let parts = self.parts()?;
        let mut vcpu = self.vcpu.try_lock().ok_or(Error::Busy)?;
        let vcpu = vcpu.as_mut().ok_or(Error::NotReady)?;
        let around = Surroundings {
            memory: &parts.memory,
            space: &parts.space,
            control: &parts.control,
        };
        body(vcpu, &around)
    }
}
