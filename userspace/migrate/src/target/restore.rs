// SPDX-License-Identifier: GPL-2.0
//! Restoring vCPUs, clock, chipset and devices.
//!
//! Place on the path: the target's phases cpu-state and device-state; here a device's records become a plan that is executed
//! and verified. Records are taken in exactly the order in which the guest's description names their owners.

use super::Target;
use crate::description::VmDescription;
use crate::devices;
use crate::error::Error;
use crate::message::{Kind, StateEnd};
use crate::phase::Scope;
use crate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use crate::statistics::DeviceStatistics;
use crate::vm::{TargetHost, TargetVm, UserDeviceState};
use crate::wire::WireError;
use pvmm_uapi::{ChipsetState, Clock};
use std::time::Instant;

impl<H: TargetHost> Target<'_, H> {
    pub(super) fn cpu_state(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<(), Error> {
        for vcpu in 0..description.vcpus {
            let record: VcpuRecord = self.channel.expect(scope)?;
            let begin = Instant::now();
            if record.vcpu != vcpu {
                let text = format!("vCPU {} has arrived where {vcpu} was due", record.vcpu);
                return Err(self.channel.wire(WireError::Missing(text)));
            }
            let state = record
                .to_state()
                .map_err(|reason| self.payload(Kind::Vcpu, reason))?;
            self.vm()?
                .restore_vcpu(vcpu, &state)
                .map_err(Error::vm("restore a vCPU"))?;
            self.times.cpu += begin.elapsed();
        }
        Ok(())
    }

    pub(super) fn payload(&self, kind: Kind, reason: String) -> Error {
        self.channel.wire(WireError::Payload {
            kind: kind.name(),
            reason,
        })
    }

    pub(super) fn device_state(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<Clock, Error> {
        let record: ClockRecord = self.channel.expect(scope)?;
        let mut clock = Clock::from(&record);
        if clock.tsc_khz != self.sent_tsc_khz {
            let reason = format!(
                "a TSC rate of {} kHz, the guest was described with {} kHz",
                clock.tsc_khz, self.sent_tsc_khz
            );
            return Err(self.payload(Kind::Clock, reason));
        }
        clock.tsc_khz = description.tsc_khz;
        let record: ChipsetRecord = self.channel.expect(scope)?;
        let chipset = ChipsetState::from(&record);
        let begin = Instant::now();
        let vm = self.vm()?;
        vm.restore_clock(&clock)
            .map_err(Error::vm("restore the clock"))?;
        vm.restore_chipset(&chipset)
            .map_err(Error::vm("restore the chipset"))?;
        self.times.device += begin.elapsed();
        for described in &description.devices {
            let record: DeviceRecord = self.channel.expect(scope)?;
            let begin = Instant::now();
            self.recorded_device(
                &record,
                (described.device, described.kind, described.version),
            )?;
            self.times.device += begin.elapsed();
        }
        for described in &description.user_devices {
            let state: UserDeviceState = self.channel.expect(scope)?;
            let begin = Instant::now();
            if (&state.name, state.version) != (&described.name, described.version) {
                let reason = format!(
                    "{:?} version {} has arrived where {:?} version {} was due",
                    state.name, state.version, described.name, described.version
                );
                return Err(self.payload(Kind::UserDevice, reason));
            }
            self.vm()?
                .restore_user_device(&state)
                .map_err(Error::vm("restore a userspace device"))?;
            self.times.device += begin.elapsed();
            self.note_device(state.name, None, 0, state.data.len() as u64);
        }
        self.state_end(scope, description)?;
        Ok(clock)
    }

    fn recorded_device(
        &mut self,
        record: &DeviceRecord,
        due: (u32, u32, u32),
    ) -> Result<(), Error> {
        let captured = record
            .to_captured()
            .map_err(|reason| self.payload(Kind::Device, reason))?;
        let device = record.device;
        if (device, captured.kind, captured.version) != due {
            let reason = format!(
                "device {device} of kind {} version {} has arrived where device {} of kind {} version {} was due",
                captured.kind, captured.version, due.0, due.1, due.2
            );
            return Err(self.payload(Kind::Device, reason));
        }
        let steps = devices::plan(device, &captured)?;
        let executed = self
            .vm()?
            .execute(device, &steps)
            .map_err(Error::vm("execute a device's restore plan"))?;
        devices::check(device, captured.kind, &steps, executed)?;
        let name = devices::kind_name(captured.kind).unwrap_or("unknown");
        self.note_device(
            name.to_owned(),
            Some(device),
            captured.records.len() as u64,
            0,
        );
        Ok(())
    }

    fn note_device(&self, name: String, device: Option<u32>, registers_saved: u64, bytes: u64) {
        self.job.update(|statistics| {
            statistics.devices.push(DeviceStatistics {
                name,
                device,
                registers_saved,
                bytes,
            });
        });
    }

    fn state_end(&mut self, scope: &Scope<'_>, description: &VmDescription) -> Result<(), Error> {
        let end: StateEnd = self.channel.expect(scope)?;
        let due = StateEnd {
            vcpus: description.vcpus,
            // Limited by the description's validation.
            devices: description.devices.len() as u32,
            user_devices: description.user_devices.len() as u32,
        };
        if end != due {
            let text = format!("the source counts {end:?}, what has arrived is {due:?}");
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        Ok(())
    }
}
