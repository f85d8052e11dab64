// SPDX-License-Identifier: GPL-2.0
//! The simulated host's VT-x: who owns it, and on which CPUs it works. There is nothing behind it that runs a guest.

use super::cpu::SimIrqOff;
use super::lock;
use super::machine::Machine;
use super::thread::process_context;
use super::SimHost;
use crate::{HostCpu, HostVmx, VmxUnavailable};
use std::marker::PhantomData;

/// This CPU is in VMX operation.
pub struct SimVmxOperation<'a> {
    machine: Machine,
    cpu: usize,
    _irq: PhantomData<(&'a SimIrqOff, *const ())>,
}

impl Drop for SimVmxOperation<'_> {
    fn drop(&mut self) {
        self.machine.set_vmx_of(self.cpu, None);
    }
}

impl Machine {
    /// Sets why VT-x cannot be used on any CPU, or with `None` that it can.
    pub fn set_vmx(&self, unavailable: Option<VmxUnavailable>) {
        lock(&self.0.vmx).fill(unavailable);
    }

    /// Sets why VT-x cannot be used on one CPU, or with `None` that it can.
    pub fn set_vmx_of(&self, cpu: usize, unavailable: Option<VmxUnavailable>) {
        if let Some(state) = lock(&self.0.vmx).get_mut(cpu) {
            *state = unavailable;
        }
    }
}

impl HostVmx for SimHost {
    type VmxOperation<'a> = SimVmxOperation<'a>;

    #[track_caller]
    fn probe() -> Result<(), VmxUnavailable> {
        process_context("HostVmx::probe");
        let machine = Machine::current();
        let states = lock(&machine.0.vmx);
        states.iter().flatten().next().map_or(Ok(()), |e| Err(*e))
    }

    fn enter_vmx(irq: &SimIrqOff) -> Result<SimVmxOperation<'_>, VmxUnavailable> {
        let machine = Machine::current();
        let cpu = Self::current(irq).0 as usize;
        {
            let mut states = lock(&machine.0.vmx);
            if let Some(unavailable) = states[cpu] {
                return Err(unavailable);
            }
            // CR4.VMXE is set from here on.
            states[cpu] = Some(VmxUnavailable::Busy);
        }
        Ok(SimVmxOperation {
            machine,
            cpu,
            _irq: PhantomData,
        })
    }
}
