// SPDX-License-Identifier: GPL-2.0
//! A guest as the migration engine sees it on the host that it leaves: where its state is captured.

use pvmm_control::ControlError;
use pvmm_migrate::description::{
    Backend, DeviceDescription, MemoryRange, UserDeviceDescription, VmDescription,
};
use pvmm_migrate::devices::state_version;
use pvmm_migrate::vm::{
    CaptureFailure, CapturedDevice, Executed, RunState, SourceVm, UserDeviceState, VmError,
};
use pvmm_uapi::*;
use pvmm_vmm::vcpu::End;
use pvmm_vmm::vm::VCPU;
use pvmm_vmm::{com1, rtc, DeviceSpec, HypervisorError, IrqChip, Vm, VmFd};
use std::sync::Arc;

/// How many dirty ranges one request fetches.
const DIRTY_RANGES: usize = 4096;

/// A guest that is being moved away.
pub struct Leaving {
    vm: Arc<Vm>,
    capabilities: Capabilities,
    producer: String,
    tsc_khz: u32,
}

/// Who sends or receives a guest, for the log of the other side.
pub fn producer(capabilities: &Capabilities) -> String {
    format!(
        "pvmmd {} pvmm.ko {}",
        env!("CARGO_PKG_VERSION"),
        module_version(capabilities)
    )
}

/// The module's version, as text.
pub fn module_version(capabilities: &Capabilities) -> String {
    let version = &capabilities.module_version;
    let end = version
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(version.len());
    String::from_utf8_lossy(&version[..end]).into_owned()
}

/// The devices of a guest that live in the daemon, in the order in which they are restored.
pub fn user_devices() -> Vec<UserDeviceDescription> {
    [
        (com1::STATE_NAME, com1::STATE_VERSION),
        (rtc::STATE_NAME, rtc::STATE_VERSION),
    ]
    .map(|(name, version)| UserDeviceDescription {
        name: name.into(),
        version,
    })
    .into()
}

/// The devices that every guest has in the module, and the kinds that the attached ones have.
pub fn recorded_devices(vm: &Vm) -> Result<Vec<DeviceDescription>, ControlError> {
    let version = |kind| {
        state_version(kind)
            .ok_or_else(|| ControlError::failed(format!("device kind {kind} has no state version")))
    };
    let own = |device, kind| {
        Ok(DeviceDescription {
            device,
            kind,
            backend: Backend::Modelled,
            guest_port: 0,
            guest_irq: 0,
            version: version(kind)?,
        })
    };
    let mut devices = vec![
        own(DEVICE_I8259, KIND_I8259)?,
        own(DEVICE_I8254, KIND_I8254)?,
    ];
    for attached in vm.devices() {
        devices.push(DeviceDescription {
            device: attached.number,
            kind: attached.spec.kind.number,
            backend: Backend::Physical,
            guest_port: attached.spec.port.into(),
            guest_irq: guest_irq(&attached.spec),
            version: version(attached.spec.kind.number)?,
        });
    }
    Ok(devices)
}

/// A device's interrupt as a description has it: line 0 is never a device's that was attached.
pub fn guest_irq(spec: &DeviceSpec) -> u32 {
    spec.irq.map_or(0, u32::from)
}

impl Leaving {
    /// Prepares a guest to be moved; it runs on as before.
    pub fn new(vm: Arc<Vm>, capabilities: &Capabilities) -> Result<Self, ControlError> {
        let tsc_khz = vm.clock().map_err(ControlError::failed)?.tsc_khz;
        Ok(Self {
            producer: producer(capabilities),
            capabilities: *capabilities,
            tsc_khz,
            vm,
        })
    }

    fn fd(&self) -> Result<Arc<dyn VmFd>, VmError> {
        Ok(self.vm.fd()?)
    }

    /// XCR0 bits that the guest may set: CPUID.0DH.0 says which (SDM volume 1, 13.2).
    fn xcr0(&self) -> u64 {
        self.vm
            .cpuid()
            .iter()
            .find(|entry| entry.leaf == 0xd && entry.subleaf == 0)
            .map_or(1, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32)
    }
}

impl SourceVm for Leaving {
    fn describe(&mut self) -> Result<VmDescription, VmError> {
        let config = self.vm.config();
        Ok(VmDescription {
            name: config.name.clone(),
            producer: self.producer.clone(),
            api_version: self.capabilities.api_version,
            flags: match config.irqchip {
                IrqChip::Pic => 0,
                IrqChip::Apic => VM_APIC,
            },
            vcpus: 1,
            tsc_khz: self.tsc_khz,
            xcr0: self.xcr0(),
            cpuid: self.vm.cpuid().iter().map(Into::into).collect(),
            memory: self
                .vm
                .ram()
                .ranges()
                .iter()
                .map(|range| MemoryRange {
                    gpa: range.gpa,
                    size: range.size,
                })
                .collect(),
            devices: recorded_devices(&self.vm)?,
            user_devices: user_devices(),
            state: if self.vm.is_paused() {
                RunState::Paused
            } else {
                RunState::Running
            },
        })
    }

    fn start_dirty_log(&mut self) -> Result<(), VmError> {
        Ok(self.fd()?.dirty_log(true)?)
    }

    fn fetch_dirty(&mut self) -> Result<Vec<DirtyRange>, VmError> {
        let fd = self.fd()?;
        let mut all = Vec::new();
        let mut ranges = vec![DirtyRange::default(); DIRTY_RANGES];
        loop {
            let (count, more) = fd.dirty_fetch(&mut ranges)?;
            all.extend_from_slice(&ranges[..count]);
            // A fetch that fills nothing and still has more would go on for ever.
            if !more || count == 0 {
                return Ok(all);
            }
        }
    }

    fn stop_dirty_log(&mut self) -> Result<(), VmError> {
        Ok(self.fd()?.dirty_log(false)?)
    }

    fn read_pages(&mut self, gfn: u64, buffer: &mut [u8]) -> Result<(), VmError> {
        Ok(self.vm.ram().read(address(gfn)?, buffer)?)
    }

    fn pause(&mut self) -> Result<(), VmError> {
        Ok(self.vm.pause()?)
    }

    fn resume(&mut self, clock: Option<Clock>) -> Result<(), VmError> {
        Ok(self.vm.resume(clock)?)
    }

    fn capture_vcpu(&mut self, vcpu: u32) -> Result<VcpuState, VmError> {
        let _alone = self.vm.alone();
        Ok(*self.fd()?.vcpu_state(vcpu)?)
    }

    fn capture_chipset(&mut self) -> Result<ChipsetState, VmError> {
        let _alone = self.vm.alone();
        Ok(self.fd()?.chipset_state()?)
    }

    fn capture_clock(&mut self) -> Result<Clock, VmError> {
        Ok(self.vm.clock()?)
    }

    fn capture_device(&mut self, device: u32) -> Result<CapturedDevice, CaptureFailure> {
        let _alone = self.vm.alone();
        let captured = match self.fd()?.device_capture(device) {
            Ok(captured) => captured,
            Err(HypervisorError::NotAtRest { register, .. }) => {
                return Err(CaptureFailure::Busy { register })
            }
            Err(error) => return Err(CaptureFailure::Failed(error.into())),
        };
        Ok(CapturedDevice {
            kind: captured.kind,
            version: captured.version,
            records: captured.records,
        })
    }

    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
        let _alone = self.vm.alone();
        execute(&*self.fd()?, device, steps)
    }

    fn capture_user_devices(&mut self) -> Result<Vec<UserDeviceState>, VmError> {
        let state = |name: &str, version, data| UserDeviceState {
            name: name.into(),
            version,
            data,
        };
        Ok(vec![
            state(
                com1::STATE_NAME,
                com1::STATE_VERSION,
                serde_json::to_vec(&self.vm.com1().save())?,
            ),
            state(
                rtc::STATE_NAME,
                rtc::STATE_VERSION,
                serde_json::to_vec(&self.vm.rtc().save())?,
            ),
        ])
    }

    fn release(&mut self) -> Result<(), VmError> {
        self.vm.finish(End::Moved);
        Ok(())
    }
}

/// A frame's address.
pub fn address(gfn: u64) -> Result<u64, VmError> {
    gfn.checked_mul(pvmm_vmm::memory::PAGE_SIZE)
        .ok_or_else(|| format!("frame {gfn:#x} is beyond every address").into())
}

/// `DEVICE_EXECUTE`.
pub fn execute(fd: &dyn VmFd, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
    let executed = fd.device_execute(device, steps)?;
    Ok(Executed {
        outcome: executed.outcome,
        step: executed.step,
        found: executed.found,
    })
}

// A guest has one vCPU, with the number that the engine counts from.
const _: () = assert!(VCPU == 0 && MAX_VCPUS == 1);
