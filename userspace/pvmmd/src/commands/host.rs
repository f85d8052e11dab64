// SPDX-License-Identifier: GPL-2.0
//! Commands that need no daemon: what kinds of devices there are, and what this host has of them.

use super::output::out;
use super::serve::this_hosts_devices;
use super::show::json;
use super::Failure;
use pvmm_vmm::spec::{Interrupt, KINDS};
use serde::Serialize;
use std::path::Path;

/// A kind of device, for programs.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Kind {
    name: &'static str,
    title: &'static str,
    /// Number of ports of each range.
    ranges: Vec<u16>,
    /// Where a PC has the first range.
    places: &'static [u16],
    irqs: &'static [u8],
    /// Whether `irq=none` is possible.
    irq_optional: bool,
    /// The keys of its options.
    options: Vec<String>,
    /// What an option looks like.
    form: String,
}

/// `pvmmd device-kinds`.
pub fn device_kinds(as_json: bool) -> Result<(), Failure> {
    let kinds = KINDS.iter().map(|kind| Kind {
        name: kind.name(),
        title: kind.title,
        ranges: kind.lengths().collect(),
        places: kind.places,
        irqs: kind.irqs,
        irq_optional: kind.interrupt == Interrupt::Optional,
        options: kind.keys(),
        form: kind.to_string(),
    });
    if as_json {
        return json(&kinds.collect::<Vec<_>>());
    }
    for (kind, row) in KINDS.iter().zip(kinds) {
        let places: Vec<String> = row.places.iter().map(|port| format!("{port:#x}")).collect();
        let ports: Vec<String> = row.ranges.iter().map(u16::to_string).collect();
        out!("{}: {}", row.name, row.title)?;
        out!("    {}", row.form)?;
        out!(
            "    port       first of {} ports as the guest sees it, a multiple of {}; usual: {}",
            ports.join(" + "),
            kind.alignment,
            places.join(", ")
        )?;
        out!(
            "    irq        the guest's ISA interrupt: {}",
            kind.irq_choice()
        )?;
        out!("    host-port  first port of the host's device; default: port")?;
        for other in kind.others {
            let key = format!("host-{}-port", other.name);
            out!("    {key:<10} default: host-port + {:#x}", other.distance)?;
        }
        out!("    host-irq   the device's ISA interrupt on the host; default: irq")?;
        out!("    record     on (default): the guest can move; off: fewer exits, and it cannot")?;
    }
    Ok(())
}

/// `pvmmd host devices`.
pub fn devices(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let devices = this_hosts_devices(socket).list();
    if as_json {
        return json(&devices);
    }
    out!(
        "{:<10} {:<7} {:<4} {:<12} {:<6} HOW",
        "KIND",
        "PORT",
        "IRQ",
        "HELD BY",
        "FREE"
    )?;
    for device in devices {
        out!(
            "{:<10} {:<7} {:<4} {:<12} {:<6} {}",
            device.kind,
            format!("{:#x}", device.port),
            device.irq.map_or("-".into(), |irq| irq.to_string()),
            device.holder.as_deref().unwrap_or("-"),
            if device.available { "yes" } else { "no" },
            device.how
        )?;
    }
    Ok(())
}
