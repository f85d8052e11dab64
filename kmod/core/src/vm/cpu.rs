// SPDX-License-Identifier: GPL-2.0
//! vCPU requests: making it, running it, its state and the clock's.
#![forbid(unsafe_code)]

use super::dispatch::{element, read, write, Error};
use super::{Live, Parts, Setup, Vm};
use crate::arch::x86::cpuid::GuestCpuid;
use crate::arch::x86::registers::rdtsc;
use crate::arch::x86::vmx::VmxVcpu;
use crate::arch::zeroed;
use crate::chipset::ApicFeatures;
use crate::memory::GuestMemory;
use crate::platform::{Platform, VmClock};
use crate::vcpu::{Control, Vcpu};
use core::mem::size_of;
use pvmm_hostabi::{Host, Mutex, SpinLock};
use pvmm_uapi::*;

/// What a CPUID table says of the local APIC; `None` if there is none.
fn apic_features(cpuid: &GuestCpuid) -> Option<ApicFeatures> {
    let (has_apic, x2apic, tsc_deadline) = cpuid.apic();
    has_apic.then_some(ApicFeatures {
        x2apic,
        tsc_deadline,
        physical_address_bits: cpuid.physical_address_bits(),
    })
}

impl<H: Host> Vm<H> {
    /// The table that a guest gets; before CREATE_VM, that of a VM with APICs at the host's TSC rate.
    fn default_cpuid(&self) -> Result<H::Box<GuestCpuid>, Error> {
        let setup = *self.setup.lock();
        self.default_cpuid_of(setup.as_ref())
    }

    fn default_cpuid_of(&self, setup: Option<&Setup>) -> Result<H::Box<GuestCpuid>, Error> {
        let (apic, tsc_khz) = match setup {
            Some(setup) => (setup.create.flags & VM_APIC != 0, setup.create.tsc_khz),
            None => (true, self.monitor.tsc_khz().0),
        };
        let mut cpuid = GuestCpuid::boxed::<H>()?;
        cpuid.fill_from_host(
            &self.monitor.capability,
            self.monitor.host_xcr0,
            tsc_khz,
            apic,
        );
        Ok(cpuid)
    }

    #[inline(never)]
    pub(super) fn get_supported_cpuid(&self, argument: u64) -> Result<(), Error> {
        let mut table: CpuidTable = read::<H, _>(argument)?;
        let cpuid = self.default_cpuid()?;
        let entries = cpuid.entries();
        if entries.len() > table.count as usize {
            return Err(Error::NoSpace);
        }
        for (index, entry) in entries.iter().enumerate() {
            write::<H, _>(element::<CpuidEntry>(table.entries, index)?, entry)?;
        }
        table.count = entries.len() as u32;
        write::<H, _>(argument, &table)
    }

    #[inline(never)]
    pub(super) fn create_vcpu(&self, create: &CreateVcpu) -> Result<(), Error> {
        if create.vcpu >= MAX_VCPUS || create.reserved != 0 {
            return Err(Error::Invalid);
        }
        // Held to the end: a region that is accepted must not be too late for the vCPU.
        let setup = self.setup.lock();
        let setup = setup.as_ref().ok_or(Error::NotReady)?;
        if setup.regions.is_empty() {
            return Err(Error::NotReady);
        }
        let mut vcpu = self.vcpu.try_lock().ok_or(Error::Busy)?;
        let mut live = self.live.lock();
        if vcpu.is_some() || live.is_some() {
            return Err(Error::Exists);
        }
        let space = H::shared(H::current_address_space()?)?;
        let memory = H::shared(GuestMemory::<H>::new(setup.regions)?)?;
        let control = H::shared(Control::<H>::new()?)?;
        let watch = H::watch(&space, memory.clone())?;
        let cpuid = self.default_cpuid_of(Some(setup))?;
        let apic = apic_features(&cpuid);
        let point = Clock {
            vm_ns: 0,
            tsc: 0,
            tsc_khz: setup.create.tsc_khz,
            flags: 0,
        };
        let clock = VmClock::new(point, rdtsc(), self.monitor.tsc_khz().0).ok_or(Error::Invalid)?;
        let mut platform = Platform::<H>::new(apic, clock, control.clone())?;
        // Guests start without firmware, which would have done this.
        platform.chipset_mut().enter_virtual_wire();
        let number = self.monitor.vcpu_number();
        let mut cpu = VmxVcpu::<H>::new(self.monitor.capability, number, cpuid)?;
        cpu.set_tsc(clock.tsc_offset(), clock.multiplier());
        *self.clock.lock() = Some(clock);
        *vcpu = Some(H::boxed(Vcpu::new(cpu, platform))?);
        *live = Some(Live {
            _watch: watch,
            parts: Parts {
                memory,
                control,
                space,
            },
        });
        Ok(())
    }

    #[inline(never)]
    pub(super) fn set_cpuid(&self, argument: u64) -> Result<(), Error> {
        let mut table: CpuidTable = read::<H, _>(argument)?;
        if table.vcpu >= MAX_VCPUS || table.count > MAX_CPUID_ENTRIES || table.reserved != 0 {
            return Err(Error::Invalid);
        }
        let mut wanted = zeroed::<H, [CpuidEntry; MAX_CPUID_ENTRIES as usize]>()?;
        for (index, place) in wanted.iter_mut().take(table.count as usize).enumerate() {
            *place = read::<H, _>(element::<CpuidEntry>(table.entries, index)?)?;
        }
        let host = self.default_cpuid()?;
        let mut cpuid = GuestCpuid::boxed::<H>()?;
        match cpuid.fill_restricted(&host, wanted.get(..table.count as usize).unwrap_or(&[])) {
            Ok(()) => self.with_vcpu(|vcpu, _| {
                if let Some(features) = apic_features(&cpuid) {
                    vcpu.platform.chipset_mut().set_apic_features(features);
                }
                vcpu.cpu.set_cpuid(cpuid);
                Ok(())
            }),
            Err(refused) => {
                table.refused_entry = refused.entry;
                table.refused_register = refused.register;
                table.refused_bits = refused.bits;
                write::<H, _>(argument, &table)?;
                Err(Error::Invalid)
            }
        }
    }

    #[inline(never)]
    pub(super) fn run(&self, argument: u64) -> Result<(), Error> {
        let mut run: Run = read::<H, _>(argument)?;
        if run.vcpu >= MAX_VCPUS || run.immediate_exit > 1 {
            return Err(Error::Invalid);
        }
        let outcome = self.with_vcpu(|vcpu, around| {
            if vcpu.platform.clock().is_stopped() {
                return Err(Error::NotReady);
            }
            Ok(vcpu.run(around, &mut run))
        })?;
        write::<H, _>(argument, &run)?;
        outcome.map_err(|_| Error::Interrupted)
    }

    fn check_state_request(request: &VcpuStateRequest) -> Result<(), Error> {
        if request.vcpu >= MAX_VCPUS || request.size as usize != size_of::<VcpuState>() {
            return Err(Error::Invalid);
        }
        Ok(())
    }

    #[inline(never)]
    pub(super) fn get_vcpu_state(&self, request: &VcpuStateRequest) -> Result<(), Error> {
        Self::check_state_request(request)?;
        let mut state = zeroed::<H, VcpuState>()?;
        self.with_vcpu(|vcpu, around| {
            if vcpu.is_waiting_for_user() {
                return Err(Error::Busy);
            }
            if !vcpu.get_state(around, &mut state) {
                return Err(Error::Failed);
            }
            Ok(())
        })?;
        write::<H, VcpuState>(request.state, &state)
    }

    #[inline(never)]
    pub(super) fn set_vcpu_state(&self, request: &VcpuStateRequest) -> Result<(), Error> {
        Self::check_state_request(request)?;
        let mut state = zeroed::<H, VcpuState>()?;
        H::copy_in(request.state, state.as_bytes_mut())?;
        self.with_vcpu(|vcpu, _| {
            let apic = state.apic;
            let cr8 = state.cr8;
            let has_apic = vcpu.cpu.cpuid().apic().0;
            vcpu.cpu.check_state(&state).map_err(|_| Error::Invalid)?;
            if has_apic && apic.apic_base != 0 {
                vcpu.platform
                    .chipset_mut()
                    .restore_local_apic(&apic)
                    .map_err(|_| Error::Invalid)?;
            }
            vcpu.cpu.set_state(state).map_err(|_| Error::Invalid)?;
            if has_apic && apic.apic_base == 0 {
                vcpu.platform.chipset_mut().set_cr8(cr8);
            }
            vcpu.platform.set_tsc_adjust(vcpu.cpu.tsc_adjust());
            Ok(())
        })
    }

    #[inline(never)]
    pub(super) fn get_clock(&self, argument: u64) -> Result<(), Error> {
        self.parts()?;
        let clock = (*self.clock.lock()).ok_or(Error::NotReady)?;
        write::<H, _>(argument, &clock.at(rdtsc()))
    }

    #[inline(never)]
    pub(super) fn set_clock(&self, clock: &Clock) -> Result<(), Error> {
        let tsc_khz = self.setup.lock().ok_or(Error::NotReady)?.create.tsc_khz;
        if clock.tsc_khz != tsc_khz || clock.flags & !CLOCK_STOPPED != 0 {
            return Err(Error::Invalid);
        }
        self.with_vcpu(|vcpu, _| {
            let clock =
                VmClock::new(*clock, rdtsc(), self.monitor.tsc_khz().0).ok_or(Error::Invalid)?;
            vcpu.platform.set_clock(clock);
            *self.clock.lock() = Some(clock);
            vcpu.cpu.set_tsc(clock.tsc_offset(), clock.multiplier());
            Ok(())
        })
    }

    #[inline(never)]
    pub(super) fn get_chipset_state(&self, argument: u64) -> Result<(), Error> {
        // Nothing is delivered here: an interrupt must not move into a local APIC that has already been captured.
        let state = self.with_vcpu(|vcpu, _| {
            let now = vcpu.platform.now(rdtsc());
            Ok(vcpu.platform.chipset_mut().save(now))
        })?;
        write::<H, _>(argument, &state)
    }

    #[inline(never)]
    pub(super) fn set_chipset_state(&self, argument: u64) -> Result<(), Error> {
        let state: ChipsetState = read::<H, _>(argument)?;
        self.with_vcpu(|vcpu, _| {
            let now = vcpu.platform.now(rdtsc());
            vcpu.platform
                .chipset_mut()
                .restore(&state, now)
                .map_err(|_| Error::Invalid)?;
            vcpu.platform.set_levels(state.isa_levels);
            Ok(())
        })
    }
}
