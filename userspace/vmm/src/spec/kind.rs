// SPDX-License-Identifier: GPL-2.0
//! The kinds of devices that an operator can give to a guest, and what can be said about each.
//!
//! What a kind *is* (its registers, ranges and state) is the core's; here is where such a device is found in a PC. Adding a
//! kind is one entry of [`KINDS`].

use pvmm_core::devices;
use pvmm_uapi::{KIND_PARALLEL, KIND_UART16550, MAX_PORT_RANGES};
use std::fmt;

/// ISA interrupts that a card can have. 0 and 2 belong to the chipset, 8 to the clock, 9 to ACPI, 13 to the coprocessor. 4 is
/// the console's in the guest, and may be the device's on the host.
const CARD_IRQS: &[u8] = &[3, 4, 5, 6, 7, 10, 11, 12, 14, 15];

/// Whether a device of a kind has an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// It has, and its drivers need it.
    Always,
    /// It may do without (`irq=none`); its drivers ask it now and then.
    Optional,
}

/// A port range beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherRange {
    /// Its part of the option `host-NAME-port`.
    pub name: &'static str,
    /// How far behind the first it begins in a PC. For a guest always, for a host unless the operator says otherwise.
    pub distance: u16,
}

/// A kind of device as an operator sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct DeviceKind {
    /// `KIND_*`.
    pub number: u32,
    /// What it is, for people.
    pub title: &'static str,
    /// What a guest's device is called, followed by a number.
    pub device: &'static str,
    /// The first device's number: COM1 is the console.
    pub first_device: usize,
    /// The first port is a multiple of this.
    pub alignment: u16,
    /// Where its first range is in a PC, most likely first.
    pub places: &'static [u16],
    /// Its other ranges.
    pub others: &'static [OtherRange],
    /// Whether it has an interrupt.
    pub interrupt: Interrupt,
    /// ISA interrupts that it can have.
    pub irqs: &'static [u8],
    /// A right `port=..,irq=..`, for messages.
    pub example: &'static str,
    /// Plug-and-play ids (ACPI, ISA PnP) of such devices.
    pub pnp_ids: &'static [&'static str],
}

/// The kinds.
pub static KINDS: &[DeviceKind] = &[
    DeviceKind {
        number: KIND_UART16550,
        title: "serial port (16550A)",
        device: "com",
        first_device: 2,
        alignment: 8,
        places: &[0x3f8, 0x2f8, 0x3e8, 0x2e8],
        others: &[],
        interrupt: Interrupt::Always,
        irqs: CARD_IRQS,
        example: "port=0x2f8,irq=3",
        pnp_ids: &["PNP0500", "PNP0501"],
    },
    DeviceKind {
        number: KIND_PARALLEL,
        title: "parallel port (SPP, bidirectional; no EPP and ECP)",
        device: "lpt",
        first_device: 1,
        alignment: 4,
        places: &[0x378, 0x278, 0x3bc],
        others: &[],
        interrupt: Interrupt::Optional,
        irqs: CARD_IRQS,
        example: "port=0x378,irq=7",
        pnp_ids: &["PNP0400", "PNP0401"],
    },
];

impl DeviceKind {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name() == name)
    }

    /// The kind of this `KIND_*`.
    pub fn numbered(number: u32) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.number == number)
    }

    /// Its name on the command line and in messages.
    pub fn name(&self) -> &'static str {
        // Every entry has a kind in the core; a test looks.
        devices::kind(self.number).map_or("", |kind| kind.name)
    }

    /// Lengths of its ranges in ports.
    pub fn lengths(&self) -> impl Iterator<Item = u16> {
        let ranges = devices::kind(self.number).map_or(&[][..], |kind| kind.ranges);
        // No kind has as many ports as there are.
        ranges
            .iter()
            .map(|bytes| u16::try_from(*bytes).unwrap_or(u16::MAX))
    }

    /// The first port of each range of a device whose first range is at `first`, as a PC has it.
    pub fn ports(&self, first: u16) -> [u16; MAX_PORT_RANGES] {
        let mut ports = [0; MAX_PORT_RANGES];
        let distances = std::iter::once(0).chain(self.others.iter().map(|other| other.distance));
        for (port, distance) in ports.iter_mut().zip(distances) {
            *port = first.saturating_add(distance);
        }
        ports
    }

    /// The names of all kinds, for messages.
    pub fn names() -> String {
        let names: Vec<&str> = KINDS.iter().map(DeviceKind::name).collect();
        names.join(", ")
    }

    /// Its keys, for messages.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = ["port", "irq", "backend", "host-port", "host-irq"]
            .map(String::from)
            .into();
        keys.extend(
            self.others
                .iter()
                .map(|other| format!("host-{}-port", other.name)),
        );
        keys.push("record".into());
        keys
    }

    /// The interrupts that it can have, as the end of a sentence.
    pub fn irq_choice(&self) -> String {
        let mut choice: Vec<String> = self.irqs.iter().map(u8::to_string).collect();
        if self.interrupt == Interrupt::Optional {
            choice.push("none".into());
        }
        let last = choice.pop().unwrap_or_default();
        format!("{} or {last}", choice.join(", "))
    }
}

/// What a right option looks like.
impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{},{}[,backend=physical][,host-port=PORT][,host-irq=IRQ]",
            self.name(),
            self.example
        )?;
        for other in self.others {
            write!(f, "[,host-{}-port=PORT]", other.name)?;
        }
        f.write_str("[,record=on|off]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_core_that_can_be_given_to_a_guest_has_options_and_no_other() {
        let attachable = devices::KINDS
            .iter()
            .map(|kind| kind.number)
            .filter(|number| devices::is_attachable(*number));
        assert!(attachable.eq(KINDS.iter().map(|kind| kind.number)));
        for kind in KINDS {
            assert_eq!(kind.lengths().count(), 1 + kind.others.len());
            assert!(kind.places.iter().all(|port| port % kind.alignment == 0));
            assert!(kind
                .lengths()
                .next()
                .is_some_and(|length| length <= 2 * kind.alignment));
        }
    }
}
