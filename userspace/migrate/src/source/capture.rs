// SPDX-License-Identifier: GPL-2.0
//! Capturing vCPUs, clock, chipset and devices, and sending them.
//!
//! Place on the path: the source's phases cpu-state and device-state. The order is the one in which the target restores.

use super::rest::Busy;
use super::Source;
use crate::description::VmDescription;
use crate::devices;
use crate::error::Error;
use crate::message::StateEnd;
use crate::phase::Scope;
use crate::state::{ChipsetRecord, ClockRecord, DeviceRecord, VcpuRecord};
use crate::statistics::DeviceStatistics;
use crate::vm::CaptureFailure;
use crate::wire::MAX_USER_DEVICE_BYTES;

impl Source<'_> {
    pub(super) fn cpu_state(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<(), Error> {
        for vcpu in 0..description.vcpus {
            let state = self
                .vm
                .capture_vcpu(vcpu)
                .map_err(Error::vm("capture a vCPU"))?;
            let record = VcpuRecord::new(vcpu, &state).map_err(Error::Inconsistent)?;
            self.channel()?.send(scope, &record)?;
        }
        Ok(())
    }

    /// Clock and chipset first: the target restores devices relative to the clock and into a chipset that is in place.
    pub(super) fn device_state(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<(), Error> {
        let clock = self
            .vm
            .capture_clock()
            .map_err(Error::vm("capture the clock"))?;
        self.held.clock = Some(clock);
        let chipset = self
            .vm
            .capture_chipset()
            .map_err(Error::vm("capture the chipset"))?;
        let channel = self.channel()?;
        channel.send(scope, &ClockRecord::from(&clock))?;
        channel.send(scope, &ChipsetRecord::from(&chipset))?;
        for described in &description.devices {
            scope.check()?;
            self.recorded_device(scope, described.device, described.kind, described.version)?;
        }
        self.user_devices(scope, description)?;
        // The counts were limited by the description's validation.
        let end = StateEnd {
            vcpus: description.vcpus,
            devices: description.devices.len() as u32,
            user_devices: description.user_devices.len() as u32,
        };
        self.channel()?.send(scope, &end)
    }

    fn recorded_device(
        &mut self,
        scope: &Scope<'_>,
        device: u32,
        kind: u32,
        version: u32,
    ) -> Result<(), Error> {
        let captured = match self.vm.capture_device(device) {
            Ok(captured) => captured,
            // It was at rest after the pause: something from outside has come since.
            Err(CaptureFailure::Busy { register }) => {
                return Err(self.not_at_rest(Busy::new(device, kind, register)))
            }
            Err(CaptureFailure::Failed(error)) => return Err(Error::vm("capture a device")(error)),
        };
        let record = DeviceRecord::new(device, &captured).map_err(Error::Inconsistent);
        let (captured_kind, captured_version) = (captured.kind, captured.version);
        let registers = captured.records.len() as u64;
        // Before anything can fail: from here on it has to be put back.
        self.held.captured.retain(|(other, _)| *other != device);
        self.held.captured.push((device, captured));
        let record = record?;
        if (captured_kind, captured_version) != (kind, version) {
            return Err(Error::Inconsistent(format!(
                "device {device} was described as kind {kind} version {version}, but its state is of kind \
                 {captured_kind} version {captured_version}"
            )));
        }
        let channel = self.channel()?;
        let before = channel.sent;
        channel.send(scope, &record)?;
        let bytes = channel.sent - before;
        self.job.update(|statistics| {
            statistics.devices.push(DeviceStatistics {
                name: devices::kind_name(kind).unwrap_or("unknown").to_owned(),
                device: Some(device),
                registers_saved: registers,
                bytes,
            });
        });
        Ok(())
    }

    fn user_devices(
        &mut self,
        scope: &Scope<'_>,
        description: &VmDescription,
    ) -> Result<(), Error> {
        let states = self
            .vm
            .capture_user_devices()
            .map_err(Error::vm("capture the userspace devices"))?;
        let described = description.user_devices.iter();
        let matching = states.len() == description.user_devices.len()
            && states
                .iter()
                .zip(described)
                .all(|(state, it)| state.name == it.name && state.version == it.version);
        if !matching {
            return Err(Error::Inconsistent(
                "the userspace devices differ from the guest's description".into(),
            ));
        }
        for state in states {
            if state.data.len() > MAX_USER_DEVICE_BYTES {
                return Err(Error::Inconsistent(format!(
                    "the state of userspace device \"{}\" has {} bytes, at most {MAX_USER_DEVICE_BYTES} are possible",
                    state.name,
                    state.data.len()
                )));
            }
            self.channel()?.send(scope, &state)?;
            self.job.update(|statistics| {
                statistics.devices.push(DeviceStatistics {
                    name: state.name.clone(),
                    device: None,
                    registers_saved: 0,
                    bytes: state.data.len() as u64,
                });
            });
        }
        Ok(())
    }
}
