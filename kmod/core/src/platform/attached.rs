// SPDX-License-Identifier: GPL-2.0
//! A device of the host that the guest owns.
#![forbid(unsafe_code)]

use crate::devices::RecorderState;
use crate::iospace::bitmap::IoBitmap;
use crate::iospace::{Access, Direction, Location, Width};
use crate::record::Recorder;
use crate::replay::Backend;
use crate::vcpu::DeviceLine;
use pvmm_hostabi::{Host, Ports};

/// Why a device could not be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// The guest's ports overlap those of another device, or of the chipset.
    Overlap,
    /// There are as many devices as there is room for.
    TooMany,
}

/// A claimed device, its recorder, and where the guest sees it.
pub struct Attached<H: Host> {
    ports: H::Ports,
    _irq: H::Irq<DeviceLine<H>>,
    guest_base: u16,
    recorder: H::Box<RecorderState>,
}

/// The device's hardware, for the monitor's own accesses.
pub struct Hardware<'a, P: Ports>(&'a P);

impl<P: Ports> Backend for Hardware<'_, P> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        // A range has far less than 2^16 ports; an offset beyond is refused by the claimed range.
        u64::from(self.0.read(at.offset.min(0xffff) as u16, width.bytes())) & width.mask()
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.0
            .write(at.offset.min(0xffff) as u16, width.bytes(), value as u32);
    }
}

impl<H: Host> Attached<H> {
    /// A device that was claimed from the host.
    pub const fn new(
        ports: H::Ports,
        irq: H::Irq<DeviceLine<H>>,
        guest_base: u16,
        recorder: H::Box<RecorderState>,
    ) -> Self {
        Self {
            ports,
            _irq: irq,
            guest_base,
            recorder,
        }
    }

    /// Its recorder and its hardware.
    pub fn parts(&mut self) -> (&mut RecorderState, Hardware<'_, H::Ports>) {
        (&mut self.recorder, Hardware(&self.ports))
    }

    /// First port that the guest sees.
    pub const fn guest_base(&self) -> u16 {
        self.guest_base
    }

    /// Whether the guest's `port` is this device's.
    pub fn covers(&self, port: u16) -> bool {
        port >= self.guest_base && port - self.guest_base < self.ports.count()
    }

    /// The guest's access, made on the hardware and shown to the recorder.
    pub fn access(&mut self, port: u16, width: Width, direction: Direction, value: u64) -> u64 {
        let at = Location::new(0, u64::from(port.wrapping_sub(self.guest_base)));
        let mut hardware = Hardware(&self.ports);
        let value = match direction {
            Direction::Read => hardware.read(at, width),
            Direction::Write => {
                hardware.write(at, width, value);
                value
            }
        };
        self.recorder.after(&Access {
            at,
            width,
            direction,
            value: value & width.mask(),
        });
        value
    }

    /// Lets those ports through that need no recording in the device's present state. Only ports at the same place for guest
    /// and host can go through.
    pub fn update_bitmap(&self, bitmap: &IoBitmap<H>) {
        let moved = self.guest_base != self.ports.base();
        let traps = self.recorder.traps(0);
        for offset in 0..self.ports.count() {
            let recorded = offset >= 64 || traps & (1 << offset) != 0;
            bitmap.set(self.guest_base.wrapping_add(offset), moved || recorded);
        }
    }
}
