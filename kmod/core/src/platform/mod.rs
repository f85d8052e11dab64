// SPDX-License-Identifier: GPL-2.0
//! The machine around the vCPU: chipset, attached devices, the policy of each port, and the clock.
//!
//! Owned by the vCPU's lock, so that an exit finds it without taking another. Other threads reach it through
//! [`crate::vcpu::Control`] only.
#![forbid(unsafe_code)]

mod attached;
mod clock;
mod timing;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use attached::tests as attached_tests;
pub use attached::{AttachError, Attached, Claimed, PortRanges, Recording};
pub use clock::VmClock;
pub use timing::HostTiming;

use crate::chipset::{ApicFeatures, Chipset};
use crate::devices::RecorderState;
use crate::iospace::bitmap::IoBitmap;
use crate::iospace::{Access, Direction, Location, Width};
use crate::record::trace::{Seen, Tap};
use crate::record::{Recorded, Recorder};
use crate::replay::Backend;
use crate::vcpu::Control;
use pvmm_hostabi::{Host, Hpa, OutOfMemory};
use pvmm_uapi::{
    BACKEND_MODELLED, BACKEND_PHYSICAL, DEVICE_I8254, DEVICE_I8259, KIND_I8254, KIND_I8259,
};

/// Most devices that can be attached to a VM, beside the 8259 pair and the 8254.
pub const MAX_ATTACHED: usize = 4;

/// Number of the first attached device.
const FIRST_ATTACHED: u32 = 2;

/// How an access to a port ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortOutcome {
    /// The device has had it; for a read, what it returned.
    Done(u64),
    /// It is userspace's.
    User,
}

/// Chipset, devices, clock.
pub struct Platform<H: Host> {
    chipset: H::Box<Chipset>,
    /// VM nanosecond until which the chipset changes nothing by itself; 0 after it was touched.
    quiet_until: u64,
    clock: VmClock,
    tsc_adjust: u64,
    bitmap: IoBitmap<H>,
    pic_recorder: H::Box<RecorderState>,
    pit_recorder: H::Box<RecorderState>,
    attached: [Option<Attached<H>>; MAX_ATTACHED],
    control: H::Shared<Control<H>>,
    seen_levels: u32,
    nmi: bool,
    power_off: bool,
    reset: bool,
}

/// The recorded device that a chipset port belongs to, and the place in it.
fn recorded_location(port: u16) -> Option<(u32, Location)> {
    Some(match port {
        0x20..=0x21 => (KIND_I8259, Location::new(0, u64::from(port - 0x20))),
        0xa0..=0xa1 => (KIND_I8259, Location::new(1, u64::from(port - 0xa0))),
        0x4d0..=0x4d1 => (KIND_I8259, Location::new(2, u64::from(port - 0x4d0))),
        0x40..=0x43 => (KIND_I8254, Location::new(0, u64::from(port - 0x40))),
        0x61 => (KIND_I8254, Location::new(1, 0)),
        _ => return None,
    })
}

/// The guest's access to an attached device that somebody watches. Apart, because hardly anybody does.
#[cold]
fn traced_access<H: Host>(
    tap: &Tap<H>,
    device: &mut Attached<H>,
    at: Location,
    access: (Width, Direction, u64),
    now: u64,
) -> u64 {
    let (width, direction, value) = access;
    let mut access = Access {
        at,
        width,
        direction,
        value: value & width.mask(),
    };
    let recorded = device.recording() == Recording::On;
    let seen = Seen::before(device.parts().0, recorded, &access);
    let result = device.access(at, width, direction, value);
    if direction == Direction::Read {
        access.value = result & width.mask();
    }
    tap.note(seen.after(device.parts().0, &access, now));
    result
}

impl<H: Host> Platform<H> {
    /// A machine after reset.
    pub fn new(
        apic: Option<ApicFeatures>,
        clock: VmClock,
        control: H::Shared<Control<H>>,
    ) -> Result<Self, OutOfMemory> {
        let recorder = |kind| RecorderState::new(kind).ok_or(OutOfMemory);
        Ok(Self {
            chipset: H::boxed(Chipset::new(apic, clock.guest_clock(0)))?,
            quiet_until: 0,
            clock,
            tsc_adjust: 0,
            bitmap: IoBitmap::new()?,
            pic_recorder: H::boxed(recorder(KIND_I8259)?)?,
            pit_recorder: H::boxed(recorder(KIND_I8254)?)?,
            attached: [const { None }; MAX_ATTACHED],
            control,
            seen_levels: 0,
            nmi: false,
            power_off: false,
            reset: false,
        })
    }

    /// The chipset, to look at.
    pub fn chipset(&self) -> &Chipset {
        &self.chipset
    }

    /// The chipset as it is at `now`, for an access of the guest: what happened before must not meet what it changes.
    pub fn chipset_at(&mut self, now: u64) -> &mut Chipset {
        if !self.is_touched() {
            self.chipset.advance(now);
        }
        self.chipset_mut()
    }

    /// The chipset, to change: [`Platform::advance`] will look at it.
    pub fn chipset_mut(&mut self) -> &mut Chipset {
        self.quiet_until = 0;
        &mut self.chipset
    }

    /// Whether the chipset was touched since [`Platform::advance`] looked at it: there may be another interrupt, or another
    /// deadline.
    pub const fn is_touched(&self) -> bool {
        self.quiet_until == 0
    }

    /// Lets the chipset catch up with `now`, unless nothing can have changed: most exits touch nothing of it.
    pub fn advance(&mut self, now: u64) {
        if now < self.quiet_until {
            return;
        }
        let chipset = self.chipset_mut();
        chipset.advance(now);
        let requests = chipset.take_requests();
        let signals = chipset.take_signals();
        self.power_off |= requests.soft_off;
        self.reset |= requests.reset;
        self.nmi |= signals.nmi;
    }

    /// When to call [`Platform::advance`] next, in VM nanoseconds, if nothing touches the chipset before.
    pub fn next_deadline(&mut self, now: u64) -> Option<u64> {
        if self.quiet_until == 0 {
            self.quiet_until = self.chipset.next_deadline(now).unwrap_or(u64::MAX);
        }
        (self.quiet_until != u64::MAX).then_some(self.quiet_until)
    }

    /// Addresses of the two I/O bitmaps.
    pub fn io_bitmaps(&self) -> (Hpa, Hpa) {
        self.bitmap.phys()
    }

    /// VM nanoseconds at the host's TSC `tsc`.
    pub fn now(&self, tsc: u64) -> u64 {
        self.clock.vm_ns(tsc)
    }

    /// TSC ticks of the host in `ns` nanoseconds.
    pub fn host_ticks(&self, ns: u64) -> u64 {
        self.clock.host_ticks(ns)
    }

    /// The VM's clock.
    pub const fn clock(&self) -> &VmClock {
        &self.clock
    }

    /// Sets the VM's clock.
    pub fn set_clock(&mut self, clock: VmClock) {
        self.clock = clock;
        let line = clock.guest_clock(self.tsc_adjust);
        self.chipset_mut().set_clock(line);
    }

    /// Tells the chipset's TSC deadline of a new IA32_TSC_ADJUST.
    pub fn set_tsc_adjust(&mut self, adjust: u64) {
        self.tsc_adjust = adjust;
        let line = self.clock.guest_clock(adjust);
        self.chipset_mut().set_clock(line);
    }

    /// Brings interrupts that came from other threads to the chipset's pins.
    pub fn drain_interrupts(&mut self) {
        if !self.control.has_lines() {
            return;
        }
        let (rose, levels) = self.control.take_lines();
        let changed = rose | (levels ^ self.seen_levels);
        self.seen_levels = levels;
        for irq in (0..16u8).filter(|irq| changed & (1 << irq) != 0) {
            let level = levels & (1 << irq) != 0;
            if rose & (1 << irq) == 0 {
                self.chipset_mut().set_isa_line(irq, level);
            } else if level {
                // It may have fallen and risen again since the last look: an edge in any case.
                self.chipset_mut().set_isa_line(irq, false);
                self.chipset_mut().set_isa_line(irq, true);
            } else {
                self.chipset_mut().pulse_isa_line(irq);
            }
        }
    }

    /// Takes the levels of a captured state, which the chipset has already.
    pub fn set_levels(&mut self, levels: u32) {
        self.seen_levels = levels & 0xffff;
        self.control.set_levels(levels);
    }

    /// Takes an NMI that the local APIC asked for.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    /// Whether the guest has asked to be powered off or reset.
    pub const fn has_request(&self) -> bool {
        self.power_off || self.reset
    }

    /// Takes the request of [`Platform::has_request`]: power off, reset.
    pub fn take_request(&mut self) -> (bool, bool) {
        (
            core::mem::take(&mut self.power_off),
            core::mem::take(&mut self.reset),
        )
    }

    /// An access to ports. A device of the host gets the whole access if it is all in one of its ranges, and so do the ACPI
    /// registers; the chipset's other devices are byte devices, and each byte goes where it belongs. Any context.
    pub fn port(
        &mut self,
        port: u16,
        width: Width,
        direction: Direction,
        value: u64,
        now: u64,
    ) -> PortOutcome {
        if self.is_user(port) {
            return PortOutcome::User;
        }
        let whole = width == Width::W1
            || self.attached_at(port, width).is_some()
            || (Chipset::claims_port(port) && recorded_location(port).is_none());
        if whole {
            return PortOutcome::Done(self.single(port, width, direction, value, now));
        }
        let mut result = 0;
        for byte in 0..width.bytes() {
            let part = value >> (8 * byte) & 0xff;
            // Ports wrap at 64 KiB, as on the bus.
            let at = port.wrapping_add(u16::from(byte));
            result |= (self.single(at, Width::W1, direction, part, now) & 0xff) << (8 * byte);
        }
        PortOutcome::Done(result)
    }

    fn is_user(&self, port: u16) -> bool {
        !Chipset::claims_port(port) && self.attached_at(port, Width::W1).is_none()
    }

    /// The attached device that has the whole of an access, by its place in the list, and where in it.
    fn attached_at(&self, port: u16, width: Width) -> Option<(usize, Location)> {
        let devices = self.attached.iter().enumerate();
        devices
            .filter_map(|(index, device)| Some((index, device.as_ref()?)))
            .find_map(|(index, device)| Some((index, device.place(port, width.bytes())?)))
    }

    fn single(
        &mut self,
        port: u16,
        width: Width,
        direction: Direction,
        value: u64,
        now: u64,
    ) -> u64 {
        if let Some((index, at)) = self.attached_at(port, width) {
            if let Some(Some(device)) = self.attached.get_mut(index) {
                // Far fewer than 2^32.
                let number = FIRST_ATTACHED + index as u32;
                let tap = self.control.tap();
                let result = if tap.is_on(number) {
                    traced_access(tap, device, at, (width, direction, value), now)
                } else {
                    device.access(at, width, direction, value)
                };
                device.update_bitmap(&self.bitmap);
                return result;
            }
        }
        let result = match direction {
            // Without the mark that it was touched.
            Direction::Read if self.chipset.only_shows(port) => {
                self.chipset.port_read(port, width, now)
            }
            Direction::Read => self.chipset_at(now).port_read(port, width, now),
            Direction::Write => self
                .chipset_at(now)
                .port_write(port, width, value, now)
                .map(|()| value),
        };
        let Some(result) = result else {
            return width.mask();
        };
        if let Some((kind, at)) = recorded_location(port) {
            let access = Access {
                at,
                width,
                direction,
                value: result & width.mask(),
            };
            let (number, recorder) = match kind {
                KIND_I8259 => (DEVICE_I8259, &mut self.pic_recorder),
                _ => (DEVICE_I8254, &mut self.pit_recorder),
            };
            if self.control.tap().is_on(number) {
                let seen = Seen::before(recorder, true, &access);
                recorder.after(&access);
                let entry = seen.after(recorder, &access, now);
                self.control.tap().note(entry);
            } else {
                recorder.after(&access);
            }
        }
        result
    }

    /// Attaches a device that was claimed from the host; returns its number. The guest's ports must be free.
    pub fn attach(&mut self, mut device: Attached<H>) -> Result<u32, AttachError> {
        for (index, (base, count)) in device.guest_ranges().enumerate() {
            let end = base.checked_add(count).ok_or(AttachError::Overlap)?;
            let taken = (base..end).any(|port| !self.is_user(port));
            let doubled = device
                .guest_ranges()
                .take(index)
                .any(|(other, others)| base < other.saturating_add(others) && other < end);
            if taken || doubled {
                return Err(AttachError::Overlap);
            }
        }
        let (number, place) = (FIRST_ATTACHED..)
            .zip(&mut self.attached)
            .find(|(_, place)| place.is_none())
            .ok_or(AttachError::TooMany)?;
        device.update_bitmap(&self.bitmap);
        *place = Some(device);
        Ok(number)
    }

    /// Whether the state of device `number` can be captured, if there is such a device.
    pub fn is_recorded(&self, number: u32) -> bool {
        let attached = number
            .checked_sub(FIRST_ATTACHED)
            .and_then(|index| self.attached.get(index as usize)?.as_ref());
        attached.is_none_or(|device| device.recording() == Recording::On)
    }

    /// `BACKEND_*` of device `number`.
    pub const fn backend(&self, number: u32) -> u32 {
        if number < FIRST_ATTACHED {
            BACKEND_MODELLED
        } else {
            BACKEND_PHYSICAL
        }
    }

    /// Calls `body` with the kind, the ranges, the recorder and the backend of device `number`. `None` if there is no such
    /// device.
    pub fn with_device<R>(
        &mut self,
        number: u32,
        now: u64,
        body: impl FnOnce(&mut RecorderState, &mut dyn Backend) -> R,
    ) -> Option<R> {
        match number {
            DEVICE_I8259 => Some(body(&mut self.pic_recorder, self.chipset.i8259_mut())),
            DEVICE_I8254 => Some(body(
                &mut self.pit_recorder,
                &mut self.chipset.i8254_at(now),
            )),
            _ => {
                let index = number.checked_sub(FIRST_ATTACHED)? as usize;
                let device = self.attached.get_mut(index)?.as_mut()?;
                let (recorder, mut hardware) = device.parts();
                let result = body(recorder, &mut hardware);
                device.update_bitmap(&self.bitmap);
                Some(result)
            }
        }
    }

    /// Executes a restore plan on device `number`, which the device's recorder watches, so that the device can move on.
    pub fn execute(
        &mut self,
        number: u32,
        now: u64,
        steps: &[pvmm_uapi::PlanStep],
        timing: &mut dyn crate::replay::Timing,
    ) -> Option<crate::replay::Outcome> {
        self.with_device(number, now, |recorder, backend| {
            let ranges =
                crate::devices::kind(recorder.number()).map_or(&[][..], |kind| kind.ranges);
            let mut recorded = Recorded { backend, recorder };
            crate::replay::execute(steps, ranges, &mut recorded, timing)
        })
    }
}
