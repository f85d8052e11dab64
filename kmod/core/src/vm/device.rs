// SPDX-License-Identifier: GPL-2.0
//! Device requests: attaching, capturing, executing plans.
#![forbid(unsafe_code)]

use super::dispatch::{element, read, write, Error};
use super::Vm;
use crate::arch::x86::registers::rdtsc;
use crate::arch::zeroed;
use crate::devices::{self, CaptureError, RecorderState, Sink};
use crate::platform::{AttachError, Attached, Claimed, HostTiming, PortRanges, Recording};
use crate::vcpu::DeviceLine;
use pvmm_hostabi::Host;
use pvmm_uapi::*;

/// The first ports of a kind's ranges. There must be no other.
fn ports(values: [u32; MAX_PORT_RANGES], ranges: usize) -> Result<[u16; MAX_PORT_RANGES], Error> {
    let mut ports = [0; MAX_PORT_RANGES];
    for (index, (place, value)) in ports.iter_mut().zip(values).enumerate() {
        if index >= ranges && value != 0 {
            return Err(Error::Invalid);
        }
        *place = u16::try_from(value).map_err(|_| Error::Invalid)?;
    }
    Ok(ports)
}

/// The guest's and the host's interrupt, if the device has one. Lines 0 and 2 belong to the chipset.
fn interrupts(attach: &AttachDevice) -> Result<Option<(u32, u32)>, Error> {
    match (attach.guest_irq, attach.host_irq) {
        (NO_IRQ, NO_IRQ) => Ok(None),
        (guest, host) if [guest, host].iter().all(|irq| matches!(irq, 1 | 3..=15)) => {
            Ok(Some((guest, host)))
        }
        _ => Err(Error::Invalid),
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Overlap => Self::Exists,
            AttachError::TooMany => Self::NoSpace,
            AttachError::NotReset => Self::NoDevice,
            AttachError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl<H: Host> Vm<H> {
    #[inline(never)]
    pub(super) fn attach_device(&self, argument: u64) -> Result<(), Error> {
        let mut attach: AttachDevice = read::<H, _>(argument)?;
        if attach.backend != BACKEND_PHYSICAL
            || !devices::is_attachable(attach.kind)
            || attach.flags & !ATTACH_UNRECORDED != 0
        {
            return Err(Error::Invalid);
        }
        let kind = devices::kind(attach.kind).ok_or(Error::Invalid)?;
        let interrupts = interrupts(&attach)?;
        let guest_ports = ports(attach.guest_ports, kind.ranges.len())?;
        let host_ports = ports(attach.host_ports, kind.ranges.len())?;
        let recorder = H::boxed(RecorderState::new(attach.kind).ok_or(Error::Invalid)?)?;
        let control = self.parts()?.control;
        attach.device = self.with_vcpu(|vcpu, _| {
            // Before the interrupt line, so that what the device still had to say reaches nobody.
            let mut ranges: PortRanges<H::Ports> = [const { None }; MAX_PORT_RANGES];
            for (place, (base, bytes)) in ranges.iter_mut().zip(host_ports.iter().zip(kind.ranges))
            {
                let count = u16::try_from(*bytes).map_err(|_| Error::Invalid)?;
                *place = Some(H::claim_ports(*base, count)?);
            }
            let claimed = Claimed::<H>::new(attach.kind, ranges)?;
            let irq = match interrupts {
                Some((guest, host)) => {
                    let line = H::shared(DeviceLine::<H> {
                        control,
                        irq: guest,
                    })?;
                    Some(H::claim_irq(host, line)?)
                }
                None => None,
            };
            let recording = match attach.flags & ATTACH_UNRECORDED {
                0 => Recording::On,
                _ => Recording::Off,
            };
            let device = Attached::new(claimed, irq, guest_ports, recorder, recording);
            Ok(vcpu.platform.attach(device)?)
        })?;
        write::<H, _>(argument, &attach)
    }

    #[inline(never)]
    pub(super) fn device_capture(&self, argument: u64) -> Result<(), Error> {
        let mut request: DeviceCapture = read::<H, _>(argument)?;
        let mut storage = zeroed::<H, [StateRecord; MAX_STATE_RECORDS as usize]>()?;
        let room = request.count.min(MAX_STATE_RECORDS) as usize;
        let (kind, captured) = self.with_vcpu(|vcpu, _| {
            if !vcpu.platform.is_recorded(request.device) {
                return Err(Error::NotSupported);
            }
            let now = vcpu.platform.now(rdtsc());
            let mut timing = HostTiming::<H>::begin();
            vcpu.platform
                .with_device(request.device, now, |recorder, backend| {
                    let mut sink = Sink::new(storage.get_mut(..room).unwrap_or(&mut []));
                    let captured = recorder.capture(backend, &mut timing, &mut sink);
                    (recorder.number(), captured.map(|()| sink.len()))
                })
                .ok_or(Error::Invalid)
        })?;
        request.kind = kind;
        let count = match captured {
            Ok(count) => count,
            Err(error) => {
                let (error, register) = match error {
                    CaptureError::Full => return Err(Error::NoSpace),
                    CaptureError::Busy { register } => (Error::NotAtRest, register),
                    CaptureError::Unknowable { register } => (Error::Failed, register),
                    CaptureError::LogOverflow => (Error::Failed, 0),
                };
                request.register = register.into();
                write::<H, _>(argument, &request)?;
                return Err(error);
            }
        };
        for (index, record) in storage.iter().take(count).enumerate() {
            write::<H, _>(element::<StateRecord>(request.records, index)?, record)?;
        }
        request.count = count as u32;
        request.version = devices::kind(kind).map_or(0, |kind| kind.state_version);
        write::<H, _>(argument, &request)
    }

    #[inline(never)]
    pub(super) fn device_execute(&self, argument: u64) -> Result<(), Error> {
        let mut request: DeviceExecute = read::<H, _>(argument)?;
        if request.count > MAX_PLAN_STEPS {
            return Err(Error::Invalid);
        }
        // The plan is copied before it is checked, so that the caller can't change it in between.
        let mut steps = zeroed::<H, [PlanStep; MAX_PLAN_STEPS as usize]>()?;
        let count = request.count as usize;
        for (index, place) in steps.iter_mut().take(count).enumerate() {
            *place = read::<H, _>(element::<PlanStep>(request.steps, index)?)?;
        }
        let outcome = self.with_vcpu(|vcpu, _| {
            let now = vcpu.platform.now(rdtsc());
            let mut timing = HostTiming::<H>::begin();
            let plan = steps.get(..count).unwrap_or(&[]);
            vcpu.platform
                .execute(request.device, now, plan, &mut timing)
                .ok_or(Error::Invalid)
        })?;
        request.outcome = outcome.outcome;
        request.step = outcome.step;
        request.found = outcome.found;
        write::<H, _>(argument, &request)
    }
}
