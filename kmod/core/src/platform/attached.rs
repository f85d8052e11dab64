// SPDX-License-Identifier: GPL-2.0
//! A device of the host that the guest owns.
//!
//! The guest gets it in the state after a reset, whatever its driver left it in, and so does the host when it is taken
//! back: the next owner finds no interrupt enabled and no character of the guest.
#![forbid(unsafe_code)]

use super::HostTiming;
use crate::arch::zeroed;
use crate::devices::{self, RecorderState, Sink};
use crate::iospace::bitmap::IoBitmap;
use crate::iospace::{Access, Direction, Location, Width};
use crate::record::Recorder;
use crate::replay::{self, Backend, Outcome};
use crate::vcpu::DeviceLine;
use pvmm_hostabi::{Host, OutOfMemory, Ports};
use pvmm_uapi::{PlanStep, MAX_PLAN_STEPS, MAX_PORT_RANGES, OUTCOME_DONE};

/// Why a device could not be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// The guest's ports overlap those of another device, or of the chipset.
    Overlap,
    /// There are as many devices as there is room for.
    TooMany,
    /// The hardware isn't of the kind, or doesn't work: it didn't come into the state after a reset.
    NotReset,
    /// The host has no memory left.
    OutOfMemory,
}

impl From<OutOfMemory> for AttachError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// The port ranges of a device, in the order of its kind. Places for ranges that the kind does not have are empty.
pub type PortRanges<P> = [Option<P>; MAX_PORT_RANGES];

/// The hardware of a device that was claimed from the host, with the plan that resets it. Dropping it resets the device
/// and gives it back.
pub struct Claimed<H: Host> {
    ports: PortRanges<H::Ports>,
    /// Made when the device is claimed, so that giving it back can't fail for want of memory.
    reset: H::Box<[PlanStep; MAX_PLAN_STEPS as usize]>,
    steps: usize,
    ranges: &'static [u64],
}

impl<H: Host> Claimed<H> {
    /// Resets a device of kind `number` at `ports`, which are as many and as long as the kind's ranges. Process context.
    ///
    /// # Errors
    ///
    /// [`AttachError::NotReset`], [`AttachError::OutOfMemory`].
    pub fn new(number: u32, ports: PortRanges<H::Ports>) -> Result<Self, AttachError> {
        let kind = devices::kind(number).ok_or(AttachError::NotReset)?;
        let mut reset = zeroed::<H, [PlanStep; MAX_PLAN_STEPS as usize]>()?;
        let mut sink = Sink::new(reset.as_mut_slice());
        devices::reset(number, &mut sink).map_err(|_| AttachError::NotReset)?;
        let steps = sink.len();
        let claimed = Self {
            ports,
            reset,
            steps,
            ranges: kind.ranges,
        };
        match claimed.reset().outcome {
            OUTCOME_DONE => Ok(claimed),
            _ => Err(AttachError::NotReset),
        }
    }

    fn reset(&self) -> Outcome {
        let steps = self.reset.get(..self.steps).unwrap_or(&[]);
        let mut hardware = Hardware(&self.ports);
        replay::execute(
            steps,
            self.ranges,
            &mut hardware,
            &mut HostTiming::<H>::begin(),
        )
    }
}

impl<H: Host> Drop for Claimed<H> {
    fn drop(&mut self) {
        // A device that no longer works is the host driver's to find out.
        self.reset();
    }
}

/// Whether a device's recorder sees the guest's accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// It sees all that it asks for, so that the device can move.
    On,
    /// It sees nothing, and no access exits for its sake. The device stays on this host.
    Off,
}

/// A claimed device, its recorder, and where the guest sees it.
pub struct Attached<H: Host> {
    claimed: Claimed<H>,
    _irq: Option<H::Irq<DeviceLine<H>>>,
    guest_ports: [u16; MAX_PORT_RANGES],
    recorder: H::Box<RecorderState>,
    recording: Recording,
    /// The recorder's traps that the I/O bitmap has, for each range.
    traps: [Option<u64>; MAX_PORT_RANGES],
}

/// The device's hardware, for the monitor's own accesses.
pub struct Hardware<'a, P: Ports>(&'a PortRanges<P>);

impl<P: Ports> Hardware<'_, P> {
    fn range(&self, at: Location) -> Option<&P> {
        self.0.get(usize::from(at.range))?.as_ref()
    }
}

impl<P: Ports> Backend for Hardware<'_, P> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        // A range has far less than 2^16 ports; an offset beyond is refused by the claimed range. A range that the device
        // does not have reads as where nothing is.
        let read = |ports: &P| ports.read(at.offset.min(0xffff) as u16, width.bytes());
        u64::from(self.range(at).map_or(u32::MAX, read)) & width.mask()
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        if let Some(ports) = self.range(at) {
            ports.write(at.offset.min(0xffff) as u16, width.bytes(), value as u32);
        }
    }
}

impl<H: Host> Attached<H> {
    /// A device in the state that a new `recorder` stands for. `guest_ports` has the first port of each range.
    pub const fn new(
        claimed: Claimed<H>,
        irq: Option<H::Irq<DeviceLine<H>>>,
        guest_ports: [u16; MAX_PORT_RANGES],
        recorder: H::Box<RecorderState>,
        recording: Recording,
    ) -> Self {
        Self {
            claimed,
            _irq: irq,
            guest_ports,
            recorder,
            recording,
            traps: [None; MAX_PORT_RANGES],
        }
    }

    /// Whether its recorder sees the guest's accesses.
    pub const fn recording(&self) -> Recording {
        self.recording
    }

    /// Its recorder and its hardware.
    pub fn parts(&mut self) -> (&mut RecorderState, Hardware<'_, H::Ports>) {
        (&mut self.recorder, Hardware(&self.claimed.ports))
    }

    /// First port and number of ports of each range, as the guest sees them.
    pub fn guest_ranges(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let ranges = self.guest_ports.iter().zip(&self.claimed.ports);
        ranges.filter_map(|(base, ports)| Some((*base, ports.as_ref()?.count())))
    }

    /// Where the guest's access of `bytes` at `port` is in this device, if it is all in one of its ranges.
    pub fn place(&self, port: u16, bytes: u8) -> Option<Location> {
        (0u8..)
            .zip(self.guest_ranges())
            .find_map(|(range, (base, count))| {
                let offset = port.checked_sub(base)?;
                let inside = u32::from(offset) + u32::from(bytes) <= u32::from(count);
                inside.then_some(Location::new(range, u64::from(offset)))
            })
    }

    /// The guest's access at a [`Self::place`], made on the hardware and shown to the recorder.
    pub fn access(&mut self, at: Location, width: Width, direction: Direction, value: u64) -> u64 {
        let mut hardware = Hardware(&self.claimed.ports);
        let value = match direction {
            Direction::Read => hardware.read(at, width),
            Direction::Write => {
                hardware.write(at, width, value);
                value
            }
        };
        if self.recording == Recording::On {
            self.recorder.after(&Access {
                at,
                width,
                direction,
                value: value & width.mask(),
            });
        }
        value
    }

    /// Lets those ports through that need no recording in the device's present state. Only ports at the same place for guest
    /// and host can go through.
    pub fn update_bitmap(&mut self, bitmap: &IoBitmap<H>) {
        let places = self.guest_ports.iter().zip(&self.claimed.ports);
        for (range, ((base, ports), known)) in (0u8..).zip(places.zip(&mut self.traps)) {
            let Some(ports) = ports else { continue };
            let traps = match self.recording {
                Recording::On => self.recorder.traps(range),
                Recording::Off => 0,
            };
            if known.replace(traps) == Some(traps) {
                continue;
            }
            let moved = *base != ports.base();
            for offset in 0..ports.count() {
                let recorded = offset >= 64 && self.recording == Recording::On
                    || offset < 64 && traps & (1 << offset) != 0;
                bitmap.set(base.wrapping_add(offset), moved || recorded);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
