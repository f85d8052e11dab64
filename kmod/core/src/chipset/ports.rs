// SPDX-License-Identifier: GPL-2.0
//! The chipset's ports.
//!
//! | ports | what |
//! |---|---|
//! | 20h-21h, A0h-A1h, 4D0h-4D1h | 8259 pair, ELCR |
//! | 40h-43h, 61h | 8254, NMI status and control |
//! | 600h-60Bh | ACPI fixed hardware ([`crate::models::acpi_pm`]) |
//! | CF9h | reset control register (ICH data sheets; FADT RESET_REG, RESET_VALUE 6) |
#![forbid(unsafe_code)]

use super::Chipset;
use crate::iospace::{Location, Width};
use crate::models::acpi_pm::{ACPI_PM_PORTS, PM1A_EVT_PORT};

/// RST_CNT: the reset control register. Nothing of it is kept: bits read as zero, and only RST_CPU has an effect.
const RST_CNT: u16 = 0xcf9;
/// RST_CNT.RST_CPU.
const RST_CPU: u8 = 1 << 2;

const ACPI_PM_LAST: u16 = PM1A_EVT_PORT + ACPI_PM_PORTS - 1;

/// What is behind a port.
enum Port {
    I8259(Location),
    I8254(Location),
    AcpiPm(u16),
    Reset,
}

/// Finds what is behind a port. Ranges are numbered as the kinds number them.
const fn find(port: u16) -> Option<Port> {
    Some(match port {
        0x20..=0x21 => Port::I8259(Location::new(0, port as u64 - 0x20)),
        0xa0..=0xa1 => Port::I8259(Location::new(1, port as u64 - 0xa0)),
        0x4d0..=0x4d1 => Port::I8259(Location::new(2, port as u64 - 0x4d0)),
        0x40..=0x43 => Port::I8254(Location::new(0, port as u64 - 0x40)),
        0x61 => Port::I8254(Location::new(1, 0)),
        PM1A_EVT_PORT..=ACPI_PM_LAST => Port::AcpiPm(port - PM1A_EVT_PORT),
        RST_CNT => Port::Reset,
        _ => return None,
    })
}

impl Chipset {
    /// Whether the chipset serves `port`.
    pub const fn claims_port(port: u16) -> bool {
        find(port).is_some()
    }

    /// Whether a read of `port` needs no look at what else has happened, and changes neither an interrupt nor a deadline:
    /// masks, ELCR, and what follows from the time alone.
    pub const fn only_shows(&self, port: u16) -> bool {
        match find(port) {
            // The other port of each shows requests, and either is the answer to a poll.
            Some(Port::I8259(at)) => (at.offset == 1 || at.range == 2) && !self.i8259.is_polled(),
            Some(Port::I8254(_) | Port::AcpiPm(_) | Port::Reset) => true,
            None => false,
        }
    }

    /// A guest's IN. `None` if the first byte is not the chipset's; other bytes of a wide access that are not read as
    /// ones.
    pub fn port_read(&mut self, port: u16, width: Width, now: u64) -> Option<u64> {
        if let Port::AcpiPm(offset) = find(port)? {
            return Some(self.acpi_pm.read(offset, width, now));
        }
        let only_shows = self.only_shows(port);
        // All others are byte devices, and the bus splits the access.
        let value = (0..width.bytes()).fold(0, |value, byte| {
            let at = port.wrapping_add(byte.into());
            value | u64::from(self.read_byte(at, now)) << (8 * byte)
        });
        if !only_shows {
            self.settle();
        }
        Some(value)
    }

    /// A guest's OUT. `None` if the first byte is not the chipset's; other bytes of a wide access that are not are lost.
    pub fn port_write(&mut self, port: u16, width: Width, value: u64, now: u64) -> Option<()> {
        if let Port::AcpiPm(offset) = find(port)? {
            self.acpi_pm.write(offset, width, value, now);
        } else {
            for (byte, value) in (0..width.bytes()).zip(value.to_le_bytes()) {
                self.write_byte(port.wrapping_add(byte.into()), value, now);
            }
        }
        self.settle();
        Some(())
    }

    fn read_byte(&mut self, port: u16, now: u64) -> u8 {
        match find(port) {
            Some(Port::I8259(at)) => self.i8259.read(at),
            Some(Port::I8254(at)) => self.i8254.read(at, now),
            Some(Port::AcpiPm(offset)) => self.acpi_pm.read(offset, Width::W1, now) as u8,
            Some(Port::Reset) => 0,
            None => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: u64) {
        match find(port) {
            Some(Port::I8259(at)) => self.i8259.write(at, value),
            Some(Port::I8254(at)) => self.i8254.write(at, value, now),
            Some(Port::AcpiPm(offset)) => {
                self.acpi_pm.write(offset, Width::W1, value.into(), now);
            }
            Some(Port::Reset) if value & RST_CPU != 0 => self.reset = true,
            Some(Port::Reset) | None => {}
        }
    }
}
