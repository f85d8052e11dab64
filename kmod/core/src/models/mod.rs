// SPDX-License-Identifier: GPL-2.0
//! Models of the interrupt controllers and timers that every VM has.
#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod apic_message;
pub mod i8254;
pub mod i8259;
pub mod invalid_state;
pub mod ioapic;
pub mod local_apic;

pub use i8254::I8254;
pub use i8259::I8259Pair;
pub use invalid_state::InvalidState;

use crate::iospace::{Location, Width};

/// Splits a read of an 8-bit device into single bytes at rising offsets, as the ISA bus does.
fn read_bytes(at: Location, width: Width, mut read: impl FnMut(Location) -> u8) -> u64 {
    (0..width.bytes()).fold(0, |value, index| {
        let at = Location::new(at.range, at.offset.wrapping_add(index.into()));
        value | u64::from(read(at)) << (u32::from(index) * 8)
    })
}

/// Splits a write of an 8-bit device into single bytes at rising offsets, as the ISA bus does.
fn write_bytes(at: Location, width: Width, value: u64, mut write: impl FnMut(Location, u8)) {
    for (index, byte) in (0..width.bytes()).zip(value.to_le_bytes()) {
        write(
            Location::new(at.range, at.offset.wrapping_add(index.into())),
            byte,
        );
    }
}
