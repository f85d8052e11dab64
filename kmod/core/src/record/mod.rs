// SPDX-License-Identifier: GPL-2.0
//! Recording: what a device was told that it cannot be asked for.
//!
//! A [`Recorder`] sees each access that is not passed through, after the device has had it, and keeps the shortest
//! sequence that brings a fresh device into the same state.
#![forbid(unsafe_code)]

pub mod log;
pub mod trace;

pub use log::{Entry, Log, LogView};

use crate::iospace::{Access, Location, Width};
use crate::replay::{Backend, Hidden};

/// Watches one device. It sees accesses, it cannot change them.
pub trait Recorder {
    /// Notes an access that the device has had. Called in the exit path: short, no sleep, any CPU.
    fn after(&mut self, access: &Access);

    /// The register that an access of one byte would reach in the device's present state, numbered by the kind's table.
    /// For those who watch; asked before [`Recorder::after`]. `None` leaves the answer to the table, which knows it where one
    /// register is at the place.
    fn classify(&self, access: &Access) -> Option<u16> {
        let _ = access;
        None
    }
}

/// Shows a recorder each byte of an access to an 8-bit device, at rising offsets, as the ISA bus splits it.
pub(crate) fn each_byte(access: &Access, mut show: impl FnMut(Access)) {
    for (index, value) in (0..access.width.bytes()).zip(access.value.to_le_bytes()) {
        show(Access {
            at: Location::new(access.at.range, access.at.offset.wrapping_add(index.into())),
            width: Width::W1,
            direction: access.direction,
            value: value.into(),
        });
    }
}

/// A backend whose recorder sees what the monitor does to it. Restore plans are executed on this, so that the device
/// can be captured again, and moved on, as if the guest had programmed it here.
pub struct Recorded<'a> {
    /// The device.
    pub backend: &'a mut dyn Backend,
    /// Its recorder.
    pub recorder: &'a mut dyn Recorder,
}

impl Backend for Recorded<'_> {
    fn read(&mut self, at: Location, width: Width) -> u64 {
        let value = self.backend.read(at, width);
        self.recorder.after(&Access::read(at, width, value));
        value
    }

    fn write(&mut self, at: Location, width: Width, value: u64) {
        self.backend.write(at, width, value);
        self.recorder.after(&Access::write(at, width, value));
    }

    fn hidden(&mut self) -> Option<&mut dyn Hidden> {
        self.backend.hidden()
    }
}
