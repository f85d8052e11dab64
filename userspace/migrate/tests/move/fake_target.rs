// SPDX-License-Identifier: GPL-2.0
//! The receiving host and the guest there.

use crate::devices::{fresh, Device};
use crate::fake::{host_description, Faults, Memory, Operation, World};
use pvmm_migrate::description::{HostDescription, VmDescription};
use pvmm_migrate::refusal::Refusal;
use pvmm_migrate::vm::{Executed, RunState, TargetHost, TargetVm, UserDeviceState, VmError};
use pvmm_uapi::{ChipsetState, Clock, PlanStep, VcpuState};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// The receiving host.
pub struct FakeHost {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub description: HostDescription,
    /// What stands there for the guest.
    pub devices: BTreeMap<u32, Device>,
}

impl FakeHost {
    pub fn new(world: &Arc<World>, faults: &Arc<Faults>) -> Self {
        Self {
            world: world.clone(),
            faults: faults.clone(),
            description: host_description(),
            devices: fresh(),
        }
    }
}

/// The guest at the target.
#[derive(Debug)]
pub struct FakeTarget {
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub prepared_tsc_khz: u32,
    pub memory: Memory,
    pub vcpu: Option<VcpuState>,
    pub chipset: Option<ChipsetState>,
    pub devices: BTreeMap<u32, Device>,
    pub executed: usize,
    pub user_devices: Vec<UserDeviceState>,
    pub restored_clock: Option<Clock>,
    pub started: Option<(Clock, RunState)>,
}

impl TargetHost for FakeHost {
    type Vm = FakeTarget;

    fn describe_host(&self) -> Result<HostDescription, VmError> {
        self.faults.call(Operation::DescribeHost)?;
        Ok(self.description.clone())
    }

    fn check(&self, _description: &VmDescription) -> Result<(), Refusal> {
        self.faults
            .call(Operation::Prepare)
            .map_err(|error| Refusal::other(error.to_string()))
    }

    fn prepare(&self, description: &VmDescription) -> Result<FakeTarget, Refusal> {
        self.faults
            .call(Operation::Prepare)
            .map_err(|error| Refusal::other(error.to_string()))?;
        self.world.made.fetch_add(1, Ordering::SeqCst);
        Ok(FakeTarget {
            world: self.world.clone(),
            faults: self.faults.clone(),
            prepared_tsc_khz: description.tsc_khz,
            memory: Memory::default(),
            vcpu: None,
            chipset: None,
            devices: self.devices.clone(),
            executed: 0,
            user_devices: Vec::new(),
            restored_clock: None,
            started: None,
        })
    }
}

impl TargetVm for FakeTarget {
    fn write_pages(&mut self, gfn: u64, data: &[u8]) -> Result<(), VmError> {
        self.faults.call(Operation::WritePages)?;
        self.memory.write(gfn, data);
        Ok(())
    }

    fn zero_pages(&mut self, gfn: u64, pages: u64) -> Result<(), VmError> {
        self.faults.call(Operation::ZeroPages)?;
        for gfn in gfn..gfn + pages {
            self.memory.0.remove(&gfn);
        }
        Ok(())
    }

    fn restore_vcpu(&mut self, vcpu: u32, state: &VcpuState) -> Result<(), VmError> {
        assert_eq!(vcpu, 0);
        self.faults.call(Operation::RestoreVcpu)?;
        self.vcpu = Some(*state);
        Ok(())
    }

    fn restore_chipset(&mut self, state: &ChipsetState) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreChipset)?;
        self.chipset = Some(*state);
        Ok(())
    }

    fn restore_clock(&mut self, clock: &Clock) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreClock)?;
        assert_eq!(self.executed, 0, "the clock comes before the devices");
        self.restored_clock = Some(*clock);
        Ok(())
    }

    fn execute(&mut self, device: u32, steps: &[PlanStep]) -> Result<Executed, VmError> {
        self.faults.call(Operation::ExecutePlan)?;
        self.executed += 1;
        let device = self.devices.get_mut(&device).ok_or("no such device")?;
        Ok(device.execute(steps))
    }

    fn restore_user_device(&mut self, state: &UserDeviceState) -> Result<(), VmError> {
        self.faults.call(Operation::RestoreUserDevice)?;
        self.user_devices.push(state.clone());
        Ok(())
    }

    fn verify(&mut self) -> Result<(), VmError> {
        self.faults.call(Operation::Verify)
    }

    fn start(&mut self, clock: &Clock, state: RunState) -> Result<(), VmError> {
        self.faults.call(Operation::Start)?;
        self.started = Some((*clock, state));
        self.world.set(|sides| {
            sides.target = state == RunState::Running;
            sides.starts += 1;
        });
        Ok(())
    }

    fn discard(&mut self) {
        assert!(
            self.started.is_none(),
            "a guest is discarded that was started"
        );
        self.world.made.fetch_sub(1, Ordering::SeqCst);
    }
}
