// SPDX-License-Identifier: GPL-2.0
//! The bus of ports that userspace serves: where an `EXIT_IO` goes.
//!
//! An access belongs to the device that owns its first port: a double word to CF8h (PCI configuration) must not reset the
//! machine by its second byte. A wide access to a device of byte registers is several byte accesses at ascending ports, as
//! on an ISA bus. A port that nobody owns reads all ones and swallows writes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A device of byte registers.
pub trait PortDevice: Send {
    /// Reads the register at `offset` in the device's range.
    fn read(&mut self, offset: u16) -> u8;
    /// Writes the register at `offset` in the device's range.
    fn write(&mut self, offset: u16, value: u8) -> Option<Event>;
}

/// What a write can ask of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Reset it.
    Reset,
}

/// Two devices want the same port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ports {:#x} to {:#x} of {name} overlap those of {owner}", .range.start, .range.end - 1)]
pub struct Overlap {
    /// The device that came second.
    pub name: &'static str,
    /// Its ports.
    pub range: Range<u32>,
    /// The device that was there.
    pub owner: &'static str,
}

struct Slot {
    name: &'static str,
    range: Range<u32>,
    device: Arc<Mutex<dyn PortDevice>>,
}

/// The bus. Built once, before the first vCPU runs.
#[derive(Default)]
pub struct PortBus {
    slots: Vec<Slot>,
}

impl PortBus {
    /// Adds a device at `count` ports from `port`.
    pub fn add(
        &mut self,
        name: &'static str,
        port: u16,
        count: u16,
        device: Arc<Mutex<dyn PortDevice>>,
    ) -> Result<(), Overlap> {
        let range = u32::from(port)..u32::from(port) + u32::from(count);
        if let Some(slot) = self
            .slots
            .iter()
            .find(|slot| slot.range.start < range.end && range.start < slot.range.end)
        {
            return Err(Overlap {
                name,
                range,
                owner: slot.name,
            });
        }
        self.slots.push(Slot {
            name,
            range,
            device,
        });
        Ok(())
    }

    /// A guest's read of `width` bytes (1, 2 or 4) at `port`.
    pub fn read(&self, port: u16, width: u32) -> u64 {
        let bytes = width.min(8) as u16;
        let mut value = u64::MAX;
        if let Some((slot, first)) = self.slot(port) {
            let mut device = slot.device.lock().unwrap_or_else(PoisonError::into_inner);
            value = 0;
            for byte in 0..bytes {
                let read = match slot.offset(first, byte) {
                    Some(offset) => device.read(offset),
                    None => 0xff,
                };
                value |= u64::from(read) << (8 * byte);
            }
        }
        match bytes {
            8 => value,
            bytes => value & ((1 << (8 * bytes)) - 1),
        }
    }

    /// A guest's write of `width` bytes (1, 2 or 4) at `port`.
    pub fn write(&self, port: u16, width: u32, value: u64) -> Option<Event> {
        let (slot, first) = self.slot(port)?;
        let mut device = slot.device.lock().unwrap_or_else(PoisonError::into_inner);
        let mut event = None;
        for (byte, value) in (0..width.min(8) as u16).zip(value.to_le_bytes()) {
            if let Some(offset) = slot.offset(first, byte) {
                event = device.write(offset, value).or(event);
            }
        }
        event
    }

    fn slot(&self, port: u16) -> Option<(&Slot, u16)> {
        let port = u32::from(port);
        let slot = self.slots.iter().find(|slot| slot.range.contains(&port))?;
        // A range has at most 2^16 ports, so an offset in it fits.
        Some((slot, (port - slot.range.start) as u16))
    }
}

impl Slot {
    /// The offset `byte` bytes after `first`, if the device has it.
    fn offset(&self, first: u16, byte: u16) -> Option<u16> {
        let offset = u32::from(first) + u32::from(byte);
        (self.range.start + offset < self.range.end).then_some(offset as u16)
    }
}

/// Port 64h as far as an absent 8042 still pulses the reset line: command FEh. Everything else is absent, so that the
/// guest finds no keyboard controller.
pub struct ResetPort64;

impl PortDevice for ResetPort64 {
    fn read(&mut self, _offset: u16) -> u8 {
        0xff
    }

    fn write(&mut self, _offset: u16, value: u8) -> Option<Event> {
        (value == 0xfe).then_some(Event::Reset)
    }
}

/// The reset control register of PC chipsets at port CF9h: bit 2 set resets, with or without a full power cycle (bit 3).
#[derive(Default)]
pub struct ResetControl {
    value: u8,
}

/// Bits of [`ResetControl`] that keep what is written: system reset and full reset.
const RST_CNT_KEPT: u8 = 0x0a;
/// Bit of [`ResetControl`] that starts the reset.
const RST_CPU: u8 = 0x04;

impl PortDevice for ResetControl {
    fn read(&mut self, _offset: u16) -> u8 {
        self.value
    }

    fn write(&mut self, _offset: u16, value: u8) -> Option<Event> {
        self.value = value & RST_CNT_KEPT;
        (value & RST_CPU != 0).then_some(Event::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes([u8; 2]);

    impl PortDevice for Bytes {
        fn read(&mut self, offset: u16) -> u8 {
            self.0[usize::from(offset)]
        }
        fn write(&mut self, offset: u16, value: u8) -> Option<Event> {
            self.0[usize::from(offset)] = value;
            None
        }
    }

    fn bus() -> PortBus {
        let mut bus = PortBus::default();
        bus.add("bytes", 0x70, 2, Arc::new(Mutex::new(Bytes([1, 2]))))
            .expect("the bus is empty");
        bus.add("port 64h", 0x64, 1, Arc::new(Mutex::new(ResetPort64)))
            .expect("no overlap");
        bus.add(
            "RST_CNT",
            0xcf9,
            1,
            Arc::new(Mutex::<ResetControl>::default()),
        )
        .expect("no overlap");
        bus
    }

    #[test]
    fn an_absent_port_reads_all_ones_in_every_width() {
        let bus = bus();
        assert_eq!(bus.read(0x300, 1), 0xff);
        assert_eq!(bus.read(0x300, 4), 0xffff_ffff);
        assert_eq!(bus.read(0xffff, 4), 0xffff_ffff);
        assert_eq!(bus.write(0xffff, 4, 0), None);
    }

    #[test]
    fn a_wide_access_is_bytes_at_ascending_ports() {
        let bus = bus();
        assert_eq!(bus.read(0x70, 2), 0x0201);
        assert_eq!(bus.read(0x71, 2), 0xff02);
        bus.write(0x70, 2, 0xbbaa);
        assert_eq!(bus.read(0x70, 4), 0xffff_bbaa);
    }

    #[test]
    fn a_pulse_of_the_reset_line_resets() {
        let bus = bus();
        assert_eq!(bus.write(0x64, 1, 0xd1), None);
        assert_eq!(bus.write(0x64, 1, 0xfe), Some(Event::Reset));
        assert_eq!(bus.write(0xcf9, 1, 0x02), None);
        assert_eq!(bus.read(0xcf9, 1), 0x02);
        assert_eq!(bus.write(0xcf9, 1, 0x06), Some(Event::Reset));
        assert_eq!(bus.read(0x64, 1), 0xff);
    }

    #[test]
    fn a_pci_configuration_address_does_not_reset() {
        assert_eq!(bus().write(0xcf8, 4, 0x8000_ff00), None);
    }

    #[test]
    fn overlapping_devices_are_refused_by_name() {
        let error = bus()
            .add("second", 0x71, 1, Arc::new(Mutex::new(ResetPort64)))
            .expect_err("71h is taken");
        assert_eq!(
            error.to_string(),
            "ports 0x71 to 0x71 of second overlap those of bytes"
        );
    }
}
