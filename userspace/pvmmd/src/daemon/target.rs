// SPDX-License-Identifier: GPL-2.0
//! This host as the migration engine sees it when a guest arrives.
//!
//! What the peer says decides nothing here by itself: the name, the memory and the devices must be what this host's
//! operator allows, and a device's plan reaches only the device that was granted.

use super::guest::Guest;
use super::source::{address, execute, guest_irq, producer, recorded_devices, user_devices};
use super::{Claim, Daemon};
use pvmm_migrate::description::{
    Backend, GrantedDevice, HostDescription, MemoryRange, VmDescription,
};
use pvmm_migrate::refusal::Refusal;
use pvmm_migrate::vm::{Executed, RunState, TargetHost, TargetVm, UserDeviceState, VmError};
use pvmm_uapi::*;
use pvmm_vmm::memory::{layout, HIGH_MEMORY, LOW_MEMORY_END, PAGE_SIZE};
use pvmm_vmm::vcpu::End;
use pvmm_vmm::{com1, rtc, DeviceSpec, IrqChip, Vm, VmConfig, VmFd};
use std::sync::Arc;

/// This host, open to guests from peers.
pub struct Host(pub Arc<Daemon>);

impl TargetHost for Host {
    type Vm = Arriving;

    fn describe_host(&self) -> Result<HostDescription, VmError> {
        let daemon = &self.0;
        let capabilities = daemon.hypervisor().capabilities()?;
        let cpuid = daemon.hypervisor().supported_cpuid()?;
        let (free_memory, in_use) = daemon.free();
        let granted = |spec: &DeviceSpec| GrantedDevice {
            kind: spec.kind.number,
            guest_port: spec.port.into(),
            guest_irq: guest_irq(spec),
            in_use: in_use.iter().any(|used| used.shares_hardware(spec)),
        };
        Ok(HostDescription {
            producer: producer(&capabilities),
            api_version: capabilities.api_version,
            features: capabilities.features,
            vm_flags: VM_APIC,
            max_vcpus: capabilities.max_vcpus.min(MAX_VCPUS),
            tsc_khz: capabilities.tsc_khz,
            supported_xcr0: capabilities.supported_xcr0,
            cpuid: cpuid.iter().map(Into::into).collect(),
            free_memory,
            granted: daemon.options().grants.iter().map(granted).collect(),
            user_devices: user_devices(),
            names: daemon.live_names(),
        })
    }

    fn check(&self, description: &VmDescription) -> Result<(), Refusal> {
        let config = self.config(description)?;
        self.0
            .could_reserve(&config.name, &claim(&config))
            .map_err(|error| Refusal::other(error.to_string()))
    }

    fn prepare(&self, description: &VmDescription) -> Result<Arriving, Refusal> {
        let config = self.config(description)?;
        let claim = claim(&config);
        let refused = |error: &dyn std::fmt::Display| Refusal::other(error.to_string());
        let reservation = self
            .0
            .reserve(&config.name, claim)
            .map_err(|error| refused(&error))?;
        let vm = Vm::prepare(self.0.hypervisor(), self.0.ports(), config)
            .map_err(|error| refused(&error))?;
        let devices = recorded_devices(&vm).map_err(|error| refused(&error))?;
        if devices != description.devices {
            return Err(Refusal::other(
                "the guest's devices have other numbers or places than they would have here; install the same version of \
                 pvmm on both hosts",
            ));
        }
        let guest = reservation
            .fill(vm, true)
            .map_err(|error| refused(&error))?;
        tracing::info!(guest = guest.name(), from = %description.producer, "arriving");
        Ok(Arriving {
            daemon: Arc::clone(&self.0),
            guest,
            started: false,
            restored: None,
        })
    }
}

/// What a guest takes.
fn claim(config: &VmConfig) -> Claim {
    Claim {
        memory: config.memory,
        devices: config.devices.clone(),
    }
}

impl Host {
    /// The virtual machine that fits a description.
    fn config(&self, description: &VmDescription) -> Result<VmConfig, Refusal> {
        let memory = memory_size(&description.memory).ok_or_else(|| {
            Refusal::other(
                "the guest's memory is laid out differently from a guest's of this pvmmd; install the same version of pvmmd \
                 on both hosts",
            )
        })?;
        let mut devices = Vec::new();
        for device in description
            .devices
            .iter()
            .filter(|device| device.backend == Backend::Physical)
        {
            let spec = self.0.options().grants.iter().find(|spec| {
                u32::from(spec.port) == device.guest_port
                    && guest_irq(spec) == device.guest_irq
                    && spec.kind.number == device.kind
            });
            let spec = spec.ok_or_else(|| {
                Refusal::other(format!(
                    "no device is granted here for the guest's device at port {:#x} IRQ {}; start the daemon with --grant",
                    device.guest_port, device.guest_irq
                ))
            })?;
            devices.push(*spec);
        }
        Ok(VmConfig {
            name: description.name.clone(),
            memory,
            irqchip: if description.flags & VM_APIC != 0 {
                IrqChip::Apic
            } else {
                IrqChip::Pic
            },
            devices,
            tsc_khz: description.tsc_khz,
            cpuid: Some(description.cpuid.iter().map(Into::into).collect()),
        })
    }
}

/// The memory size whose layout these ranges are.
fn memory_size(ranges: &[MemoryRange]) -> Option<u64> {
    let last = ranges.last()?;
    let size = if last.gpa == HIGH_MEMORY {
        LOW_MEMORY_END.checked_add(last.size)?
    } else {
        last.gpa.checked_add(last.size)?
    };
    let expected = layout(size).ok()?;
    let same = expected.len() == ranges.len()
        && expected
            .iter()
            .zip(ranges)
            .all(|(one, other)| (one.gpa, one.size) == (other.gpa, other.size));
    same.then_some(size)
}

/// A guest that is being received. Gives everything back when dropped before it has been started.
pub struct Arriving {
    daemon: Arc<Daemon>,
    guest: Arc<Guest>,
    started: bool,
    /// The vCPU's state as received, to be verified.
    restored: Option<Box<VcpuState>>,
}

impl Arriving {
    /// The guest.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    fn vm(&self) -> Result<Arc<Vm>, VmError> {
        Ok(self.guest.vm()?)
    }

    fn fd(&self) -> Result<Arc<dyn VmFd>, VmError> {
        Ok(self.vm()?.fd()?)
    }
}

impl TargetVm for Arriving {
    fn write_pages(&mut self, gfn: u64, data: &[u8]) -> Result<(), VmError> {
        Ok(self.vm()?.ram().write(address(gfn)?, data)?)
    }

    fn zero_pages(&mut self, gfn: u64, pages: u64) -> Result<(), VmError> {
        let vm = self.vm()?;
        let zeros = [0; PAGE_SIZE as usize];
        for page in 0..pages {
            let gfn = gfn
                .checked_add(page)
                .ok_or("a frame beyond every address")?;
            vm.ram().write(address(gfn)?, &zeros)?;
        }
        Ok(())
    }

    fn restore_vcpu(&mut self, vcpu: u32, state: &VcpuState) -> Result<(), VmError> {
        self.fd()?.set_vcpu_state(vcpu, state)?;
        self.restored = Some(Box::new(*state));
        Ok(())
    }

    fn restore_chipset(&mut self, state: &ChipsetState) -> Result<(), VmError> {
        Ok(self.fd()?.set_chipset_state(state)?)
    }

    fn restore_clock(&mut self, clock: &Clock) -> Result<(), VmError> {
        Ok(self.vm()?.set_clock(clock)?)
    }

    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
        execute(&*self.fd()?, device, steps)
    }

    fn restore_user_device(&mut self, state: &UserDeviceState) -> Result<(), VmError> {
        let vm = self.vm()?;
        let unreadable = |error: serde_json::Error| {
            format!("the state of {} cannot be read: {error}", state.name)
        };
        match state.name.as_str() {
            com1::STATE_NAME => {
                let state = serde_json::from_slice(&state.data).map_err(unreadable)?;
                vm.com1().restore(&state)?;
            }
            rtc::STATE_NAME => {
                let state = serde_json::from_slice(&state.data).map_err(unreadable)?;
                vm.rtc().restore(&state)?;
            }
            other => return Err(format!("there is no userspace device \"{other}\" here").into()),
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), VmError> {
        let fd = self.fd()?;
        let restored = self
            .restored
            .as_deref()
            .ok_or("no vCPU state was received")?;
        let found = fd.vcpu_state(0)?;
        for (register, want, have) in registers(restored, &found) {
            if want != have {
                return Err(format!(
                    "{register} reads {have:#x} where {want:#x} was restored; see the kernel log of this host"
                )
                .into());
            }
        }
        fd.chipset_state()?;
        Ok(())
    }

    fn start(&mut self, clock: &Clock, state: RunState) -> Result<(), VmError> {
        let vm = self.vm()?;
        match state {
            RunState::Running => vm.resume(Some(*clock))?,
            RunState::Paused => vm.set_clock(clock)?,
        }
        self.started = true;
        self.guest.arrived();
        tracing::info!(guest = self.guest.name(), "arrived");
        Ok(())
    }

    fn discard(&mut self) {
        if !self.started {
            self.guest.finish(End::Stopped);
            self.daemon.forget(&self.guest);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.discard();
    }
}

/// The registers that must read back exactly as they were restored, in pairs.
fn registers(want: &VcpuState, have: &VcpuState) -> impl Iterator<Item = (&'static str, u64, u64)> {
    const GPR: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12",
        "R13", "R14", "R15",
    ];
    const SEGMENT: [&str; 8] = [
        "ES base",
        "CS base",
        "SS base",
        "DS base",
        "FS base",
        "GS base",
        "LDTR base",
        "TR base",
    ];
    let general = GPR
        .into_iter()
        .zip(want.gpr.into_iter().zip(have.gpr))
        .map(|(name, (want, have))| (name, want, have));
    let segments = SEGMENT
        .into_iter()
        .zip(want.segments.into_iter().zip(have.segments))
        .map(|(name, (want, have))| (name, want.base, have.base));
    let others = [
        ("RIP", want.rip, have.rip),
        ("RFLAGS", want.rflags, have.rflags),
        ("CR0", want.cr0, have.cr0),
        ("CR2", want.cr2, have.cr2),
        ("CR3", want.cr3, have.cr3),
        ("CR4", want.cr4, have.cr4),
        ("IA32_EFER", want.efer, have.efer),
        ("XCR0", want.xcr0, have.xcr0),
        ("GDTR base", want.gdtr.base, have.gdtr.base),
        ("IDTR base", want.idtr.base, have.idtr.base),
    ];
    general.chain(segments).chain(others)
}
