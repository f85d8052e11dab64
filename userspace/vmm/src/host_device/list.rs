// SPDX-License-Identifier: GPL-2.0
//! What of the host could be given to a guest, who has it now, and what it takes to free it. Nothing is touched: a device that
//! neither the firmware nor a driver names is not found.

use super::{file_name, owner, HostDevices};
use crate::spec::{DeviceKind, KINDS};
use pvmm_uapi::KIND_UART16550;
use serde::Serialize;
use std::collections::BTreeMap;

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostDevice {
    /// The kind's name.
    pub kind: &'static str,
    /// First port of its first range.
    pub port: u16,
    /// Its interrupt, where the host says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq: Option<u8>,
    /// Who has it: a driver, a tty, `pvmm` for a guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Whether it can be given to a guest as things are.
    pub available: bool,
    /// What happens, or what to do first.
    pub how: String,
    /// The option that gives it to a guest at the same place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
}

impl HostDevices {
    /// The devices of this host that are of a known kind, by port.
    pub fn list(&self) -> Vec<HostDevice> {
        let mut found = BTreeMap::new();
        for kind in KINDS {
            for (port, irq) in self.candidates(kind) {
                found.insert(port, self.describe(kind, port, irq));
            }
        }
        found.into_values().collect()
    }

    /// First ports and interrupts of what seems to be a device of a kind.
    fn candidates(&self, kind: &'static DeviceKind) -> BTreeMap<u16, Option<u8>> {
        let mut candidates = BTreeMap::new();
        if kind.number == KIND_UART16550 {
            candidates.extend(self.serial_ports());
        }
        for place in kind.places {
            let length = kind.lengths().next().unwrap_or(1);
            let ports = u32::from(*place)..u32::from(*place) + u32::from(length);
            // A driver that has the place of another kind of device says nothing about this one.
            let matches = |owner: &String| kind.device == "lpt" && owner.starts_with("parport");
            if self.owner(ports).is_some_and(|owner| matches(&owner)) {
                candidates.entry(*place).or_insert(None);
            }
        }
        for device in self.pnp_devices() {
            let first = device
                .ports
                .first()
                .and_then(|it| u16::try_from(it.start).ok());
            if let Some(first) = first.filter(|_| device.is_a(kind)) {
                let irq = candidates.entry(first).or_insert(device.irq);
                *irq = irq.or(device.irq);
            }
        }
        candidates
    }

    fn describe(&self, kind: &'static DeviceKind, port: u16, irq: Option<u8>) -> HostDevice {
        let ports = u32::from(port)..u32::from(port) + kind.lengths().next().map_or(1, u32::from);
        let pnp = self.pnp_devices().into_iter().find(|device| {
            let mut ranges = device.ports.iter();
            device.is_a(kind)
                && device.driver.is_some()
                && ranges.any(|range| range.contains(&u32::from(port)))
        });
        let driver = pnp.and_then(|device| Some(file_name(&device.driver?)));
        let tty = match kind.number {
            KIND_UART16550 => self.tty(port),
            _ => None,
        };
        let (holder, available, how) = if let Some(tty) = tty {
            match self.serial_obstacle(port) {
                None => (
                    Some(tty),
                    true,
                    "taken from its driver when the guest starts".into(),
                ),
                Some(why) => (Some(tty), false, why),
            }
        } else if let Some(driver) = driver {
            let how = format!("taken from the driver {driver} when the guest starts");
            (Some(driver), true, how)
        } else if let Some(owner) = self.owner(ports) {
            let advice = owner::advice(&owner);
            (Some(owner), false, advice)
        } else {
            (None, true, "no driver has it".into())
        };
        let irq_text = irq.map_or("none".into(), |irq| irq.to_string());
        let option = format!("{},port={port:#x},irq={irq_text}", kind.name());
        HostDevice {
            kind: kind.name(),
            port,
            irq,
            holder,
            available,
            how,
            // Not at a place that is the console's in a guest.
            option: option
                .parse::<crate::DeviceSpec>()
                .is_ok()
                .then_some(option),
        }
    }
}
